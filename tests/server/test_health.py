"""Who is ready: on emulated groups and a jumping clock."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from jaxserve.model import Model, TensorSpec
from jaxserve.server.health import Health
from jaxserve.simulator import StageTime
from tests.engine.test_engine import X, model, serving
from tests.jumping_loop import run, until


@asynccontextmanager
async def watched(*models: Model, ready_within_s: float = 10.0, **options: Any):
    async with serving(*models, **options) as (engine, cluster):
        async with Health(engine, ready_within_s=ready_within_s) as health:
            yield engine, cluster, health
        await until(asyncio.get_running_loop().time() + 1000.0)  # what was still asked for ends


def in_time(test: Callable[[], Awaitable[None]]) -> None:
    run(test())  # type: ignore[arg-type]


def test_models_are_ready_once_they_have_answered_and_probes_are_not_counted():
    async def test() -> None:
        async with watched(model("m"), model("n"), stages=(0.5, 0.25)) as (engine, _, health):
            assert asyncio.get_running_loop().time() == 1.25  # both have answered before it is entered
            assert health.readiness() == {"m": True, "n": True}
            assert health.is_ready()
            assert health.is_model_ready("m")
            assert not health.is_model_ready("nobody")
            await until(200.0)
            assert health.is_ready()
            counted = engine.status()["models"]["m"]
            assert {counted[key] for key in ("requests", "served", "batches", "failed", "cancelled")} == {0}
            assert counted["latency_p50_s"] is None

    in_time(test)


def test_a_hung_group_turns_its_models_not_ready_within_the_time_that_is_said_and_back():
    hangs = [(20.0, 60.0)]

    def stage_time(requests: Any, group: int, stage: int, latency_s: float) -> tuple[float, bool]:
        now_s = asyncio.get_running_loop().time()
        return next((end_s - now_s for begin_s, end_s in hangs if begin_s <= now_s < end_s), latency_s), False

    async def test() -> None:
        async with watched(model(), stages=(0.01,), stage_time=stage_time) as (_, _, health):
            start_s = asyncio.get_running_loop().time()
            hangs[:] = [(start_s + 20.0, start_s + 60.0)]
            await until(start_s + 19.0)
            assert health.is_model_ready("m")
            await until(start_s + 30.1)
            assert not health.is_model_ready("m")
            assert not health.is_ready()
            await until(start_s + 65.0)
            assert health.is_model_ready("m")

    in_time(test)


def noting(asked: list[float]) -> StageTime:
    """Stages that take what was profiled, and note when."""

    def stage_time(requests: Any, group: int, stage: int, latency_s: float) -> tuple[float, bool]:
        asked.append(asyncio.get_running_loop().time())
        return latency_s, False

    return stage_time


def test_asking_slow_models_takes_a_hundredth_of_the_time_and_they_stay_ready_meanwhile():
    asked: list[float] = []

    async def test() -> None:
        async with watched(model(), stages=(0.5,), stage_time=noting(asked)) as (_, _, health):
            asked.clear()
            for second in range(1, 1000):
                await until(float(second))
                assert health.is_model_ready("m"), second
            assert 0.005 * 1000 < 0.5 * len(asked) <= 0.01 * 1000

    in_time(test)


def test_a_model_with_a_group_that_is_well_stays_ready():
    def stage_time(requests: Any, group: int, stage: int, latency_s: float) -> tuple[float, bool]:
        return 1000.0 if group == 0 and asyncio.get_running_loop().time() > 20.0 else latency_s, False

    async def test() -> None:
        async with watched(model(), stages=(0.01,), groups=2, stage_time=stage_time) as (_, _, health):
            for second in range(1, 100):
                await until(float(second))
                if not 20 <= second <= 35:  # until the watchdog has found the stuck stage
                    assert health.is_model_ready("m"), second

    in_time(test)


def test_a_lost_group_turns_its_models_not_ready_at_once():
    async def test() -> None:
        async with watched(model(), stages=(0.01,)) as (_, cluster, health):
            assert health.is_ready()
            cluster.fail_group(0, asyncio.get_running_loop().time())
            assert not health.is_model_ready("m")

    in_time(test)


def test_requests_of_clients_show_readiness_too():
    asked: list[float] = []

    async def test() -> None:
        async with watched(model(), stages=(0.01,), stage_time=noting(asked)) as (engine, _, health):
            asked.clear()
            for second in range(1, 50):
                await until(float(second))
                await engine.infer("m", {"x": X})
                assert health.is_ready()
            assert len(asked) == 49  # nobody else has asked

    in_time(test)


def test_a_model_that_does_not_take_its_example_is_not_ready_and_says_why(caplog: pytest.LogCaptureFixture):
    def stage_time(requests: Any, group: int, stage: int, latency_s: float) -> tuple[float, bool]:
        return latency_s, True

    async def test() -> None:
        async with watched(model(), stages=(0.01,), stage_time=stage_time) as (_, _, health):
            assert not health.is_ready()
            assert "emulated failure" in health.reasons()["m"]
            await until(60.0)

    in_time(test)
    assert sum("does not answer its example" in record.message for record in caplog.records) == 1


def test_nothing_is_ready_while_the_server_drains():
    async def test() -> None:
        async with watched(model(), stages=(0.01,)) as (_, _, health):
            assert health.is_ready()
            health.drain()
            assert health.readiness() == {"m": False}
            assert not health.is_ready()

    in_time(test)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"x": [[0.0, 0.0, 0.0, 0.0]]}),
        ({"example": {"x": [[1.0, 2.0, 3.0, 4.0]]}}, {"x": [[1.0, 2.0, 3.0, 4.0]]}),
        (
            {"accepts": {"text": TensorSpec(("batch",), "string")}, "preprocess": lambda given: {"x": X}},
            {"text": ["a"]},
        ),
    ],
)
def test_a_model_has_an_example(options: dict[str, Any], expected: dict[str, Any]):
    example = model(**options).example
    assert {name: value if isinstance(value, list) else value.tolist() for name, value in example.items()} == expected
