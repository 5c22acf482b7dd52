"""What all standard protocols share: permissions, limits, cancellation, administration. On a jumping clock."""

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from jaxserve.errors import (
    AdministrationOff,
    DeadlineRefused,
    EngineStopped,
    InvalidInput,
    JaxserveError,
    ModelNotFound,
    PermissionDenied,
    TooManyInFlight,
)
from jaxserve.protocols.statuses import LONGEST_RETRY_S, status_of
from jaxserve.server.access import ANYBODY, Access, Identity
from jaxserve.server.health import Health
from jaxserve.server.limits import Limits
from jaxserve.server.service import Service
from tests.engine.test_engine import X, model, serving
from tests.jumping_loop import run

TEAM = Identity(name="team", infer=("m*",), admin=("m",))


@asynccontextmanager
async def service_of(*names: str, limits: Limits | None = None, **options: Any) -> AsyncIterator[Service]:
    models = [model(name) for name in names or ("m",)]
    async with serving(*models, stages=(0.5, 0.5)) as (engine, _), Health(engine) as health:
        service = Service(engine, health=health, access=Access(), known=models, limits=limits or Limits(), **options)
        yield service
        assert service.in_flight("test") == 0
        assert not service._in_flight


def infer(service: Service, name: str = "m", identity: Identity = ANYBODY, **options: Any) -> Any:
    return service.infer(name, {"x": X}, identity=identity, protocol="test", **options)


def in_time(test: Callable[[], Awaitable[None]]) -> None:
    run(test())  # type: ignore[arg-type]


def test_outputs_come_back():
    async def test() -> None:
        async with service_of() as service:
            outputs = await infer(service, version="1")
            assert set(outputs) == {"double", "sum"}
            assert isinstance(outputs["sum"], np.ndarray)

    in_time(test)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"name": "nobody"}, ModelNotFound, "no model 'nobody' is served"),
        ({"version": "2"}, ModelNotFound, "no version '2'; there is only '1'"),
        ({"deadline_s": 0.1}, DeadlineRefused, "would be answered after 1 s"),
        ({"deadline_s": -1.0}, InvalidInput, "deadline_s is -1.0"),
        ({"priority": 99}, InvalidInput, "priority is 99"),
        ({"name": "other", "identity": TEAM}, PermissionDenied, "the token 'team' may not use model 'other'"),
    ],
)
def test_errors(call: dict[str, Any], error: type[Exception], message: str):
    async def test() -> None:
        async with service_of() as service:
            with pytest.raises(error, match=message):
                await infer(service, **call)

    in_time(test)


def test_a_client_may_have_so_many_unanswered_and_no_more():
    async def test() -> None:
        async with service_of(limits=Limits(max_in_flight_per_client=2)) as service:
            async with asyncio.TaskGroup() as tasks:
                mine = [tasks.create_task(infer(service, client="a")) for _ in range(2)]
                await asyncio.sleep(0)
                with pytest.raises(TooManyInFlight, match="a has 2 requests unanswered"):
                    await infer(service, client="a")
                other = tasks.create_task(infer(service, client="b"))
                by_token = tasks.create_task(infer(service, client="a", identity=TEAM))
            assert all(task.result() for task in (*mine, other, by_token))
            await infer(service, client="a")

    in_time(test)


def test_to_cancel_a_call_cancels_the_request():
    async def test() -> None:
        async with service_of() as service:
            call = asyncio.create_task(infer(service))
            await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled()
            assert service.engine.observe().models["m"].metrics.cancelled == 1

    in_time(test)


def test_what_is_in_flight_at_the_end_gets_an_error_of_its_own():
    async def test() -> None:
        async with service_of() as service:
            calls = [asyncio.create_task(infer(service)) for _ in range(3)]
            await asyncio.sleep(0)
            assert service.in_flight("test") == 3
            service.stop_in_flight("test")
            await asyncio.wait(calls)
            for call in calls:
                assert isinstance(call.exception(), EngineStopped)
            assert service.engine.observe().in_flight == 0

    in_time(test)


def test_the_tenant_is_whose_token_it_is():
    seen: list[str] = []

    async def test() -> None:
        async with service_of() as service:
            submit = service.engine.submit

            def spy(*args: Any, **options: Any) -> int:
                seen.append(options["tenant"])
                return submit(*args, **options)

            service.engine.submit = spy  # type: ignore[method-assign]
            await infer(service, tenant="me")
            await infer(service, tenant="me", identity=TEAM)

    in_time(test)
    assert seen == ["me", "team"]


def test_models_are_unloaded_and_loaded_by_those_who_may():
    async def test() -> None:
        async with service_of("m", "n") as service:
            for call in (service.load, service.unload):
                with pytest.raises(AdministrationOff, match="--admin-unix"):
                    await call("m", identity=ANYBODY)
                with pytest.raises(PermissionDenied, match="may not administer model 'n'"):
                    await call("n", identity=TEAM)
            assert [each["state"] for each in service.repository_index(identity=ANYBODY)] == ["READY", "READY"]
            await service.unload("m", identity=TEAM)
            assert not service.is_model_ready("m")
            assert service.repository_index(identity=ANYBODY) == [
                {"name": "n", "version": "1", "state": "READY", "reason": ""},
                {"name": "m", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"},
            ]
            assert [each["name"] for each in service.repository_index(identity=ANYBODY, ready_only=True)] == ["n"]
            with pytest.raises(ModelNotFound, match="no model 'm' is served; there are n"):
                await infer(service)
            with pytest.raises(ModelNotFound):
                await service.unload("m", identity=TEAM)
            await service.load("m", identity=TEAM)
            await service.load("m", identity=TEAM)  # once more is nothing
            await infer(service)
            with pytest.raises(ModelNotFound, match="no model 'mm' is known"):
                await service.load("mm", identity=dataclasses.replace(TEAM, admin=("*",)))

    in_time(test)


def test_statistics_add_up():
    async def test() -> None:
        async with service_of() as service:
            for _ in range(3):
                await infer(service)
            with pytest.raises(DeadlineRefused):
                await infer(service, deadline_s=0.1)
            [statistics] = service.statistics("m", identity=ANYBODY)["model_stats"]
            assert (statistics["inference_count"], statistics["execution_count"]) == (3, 3)
            counted = statistics["inference_stats"]
            assert counted["success"] == {"count": 3, "ns": 3_000_000_000}
            assert counted["fail"]["count"] == 1
            assert counted["compute_infer"] == {"count": 3, "ns": 3_000_000_000}
            assert counted["queue"] == {"count": 3, "ns": 0}
            assert [batch["batch_size"] for batch in statistics["batch_stats"]] == [1]
            with pytest.raises(ModelNotFound):
                service.statistics("nobody", identity=ANYBODY)

    in_time(test)


@pytest.mark.parametrize("logs_requests", [False, True])
def test_what_is_logged(caplog: pytest.LogCaptureFixture, logs_requests: bool):
    caplog.set_level(logging.INFO, "jaxserve")

    async def test() -> None:
        async with service_of(logs_requests=logs_requests) as service:
            await infer(service, request_id="r-1")
            with pytest.raises(DeadlineRefused):
                await infer(service, deadline_s=0.1, request_id="r-2")

    in_time(test)
    logged = [
        (record.name, record.message, record.__dict__["request_id"])
        for record in caplog.records
        if "request_id" in record.__dict__
    ]
    if logs_requests:
        assert logged == [
            ("jaxserve.requests", "request served", "r-1"),
            ("jaxserve.requests", "request not served: deadline_refused", "r-2"),
        ]
    else:
        assert logged == [("jaxserve.service", "request not served: deadline_refused", "r-2")]


@pytest.mark.parametrize(
    ("make", "http", "grpc", "retry_after_s"),
    [
        (lambda: InvalidInput(""), 400, "INVALID_ARGUMENT", None),
        (lambda: DeadlineRefused("", retry_after_s=1.2), 429, "RESOURCE_EXHAUSTED", 2),
        (lambda: DeadlineRefused(""), 429, "RESOURCE_EXHAUSTED", LONGEST_RETRY_S),
        (lambda: TooManyInFlight(""), 429, "RESOURCE_EXHAUSTED", 1),
        (lambda: AdministrationOff(""), 503, "UNAVAILABLE", None),
        (lambda: JaxserveError(""), 500, "INTERNAL", None),
    ],
)
def test_statuses(make: Callable[[], JaxserveError], http: int, grpc: str, retry_after_s: int | None):
    status = status_of(make())
    assert (status.http, status.grpc, status.retry_after_s) == (http, grpc, retry_after_s)
