"""Clients of every flavour at once, some of which give up, while models and servers come and go."""

import asyncio
import concurrent.futures
import contextlib
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.protocols_live.flavours import FLAVOURS, INVALID, NOT_FOUND, REFUSED, UNAVAILABLE, Caller, Flavour, Replies
from tests.protocols_live.live import LIMITS, LiveServer
from tests.protocols_live.models import PATIENCE_S

X = np.arange(4, dtype=np.float32).reshape(1, 4)


async def _all_at_once(caller: Caller, method: str, count: int, **options: Any) -> list[Any]:
    calls = [getattr(caller.client, method)("spare", **options) for _ in range(count)]
    return await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("flavour", [each for each in FLAVOURS if each.is_async], ids=lambda flavour: flavour.name)
def test_models_are_unloaded_and_loaded_by_several_at_once(live: LiveServer, flavour: Flavour) -> None:
    headers = live.authorization("operator")
    with live.restored(), Caller(flavour, live.guarded) as caller:
        unloaded = caller.run(_all_at_once(caller, "unload_model", 4, headers=headers))
        assert None in unloaded
        loaded = caller.run(_all_at_once(caller, "load_model", 4, headers=headers))
        assert loaded == [None] * 4  # whoever comes later finds it there
        for refused in unloaded:
            if refused is not None:
                assert isinstance(refused, InferenceServerException)
                assert refused.status() in NOT_FOUND, str(refused)
        result = caller.infer("spare", {"x": X}, headers=headers)
        np.testing.assert_array_equal(result.as_numpy("output"), X - 1)


@pytest.mark.parametrize(
    "flavour",
    [each for each in FLAVOURS if each.is_async],
    ids=lambda flavour: flavour.name,
)
def test_more_at_once_than_a_client_may_are_served_or_refused(live: LiveServer, flavour: Flavour) -> None:
    with Caller(flavour, live.public) as caller:
        inputs = [flavour.input("x", X)]

        async def infer() -> list[Any]:
            calls = [caller.client.infer("affine", inputs) for _ in range(50 * LIMITS.max_in_flight_per_client)]
            return await asyncio.gather(*calls, return_exceptions=True)

        results = caller.run(infer())
    refused = [result for result in results if isinstance(result, Exception)]
    assert len(refused) < len(results)
    for error in refused:
        assert isinstance(error, InferenceServerException)
        assert error.status() in REFUSED, str(error)


def test_every_flavour_in_a_thread_of_its_own(live: LiveServer) -> None:
    def infer(flavour: Flavour) -> None:
        with Caller(flavour, live.public) as caller:
            for rows in (1, 2, 3, 4) * 5:
                x = np.full((rows, 4), rows, np.float32)
                np.testing.assert_array_equal(caller.infer("affine", {"x": x}).as_numpy("output"), 2 * x + 1)
                caller.refuses(NOT_FOUND, "no model", caller.infer, "nothing", {"x": x})
                caller.refuses(INVALID, "dimension 1", caller.infer, "affine", {"x": x[:, :2]})

    with concurrent.futures.ThreadPoolExecutor(len(FLAVOURS)) as threads:
        for done in [threads.submit(infer, flavour) for flavour in FLAVOURS]:
            done.result(PATIENCE_S)


def test_who_gives_up_is_let_go(live: LiveServer, flavour: Flavour) -> None:
    """A client that goes takes its request with it, long before the gate opens."""
    with live.gate.closed(), Caller(flavour, live.public) as caller:
        inputs = [flavour.input("x", X)]
        if flavour.is_async:

            async def give_up() -> None:
                asked = asyncio.ensure_future(caller.client.infer("gated", inputs))
                await asyncio.to_thread(live.until_in_flight, live.public, 1)
                asked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked

            caller.run(give_up())
        elif flavour.is_grpc:
            replies = Replies()
            asked = caller.call("async_infer", "gated", inputs, replies)
            live.until_in_flight(live.public, 1)
            asked.cancel()
            with pytest.raises(InferenceServerException, match=r"(?i)cancelled"):
                replies.next()
        else:
            impatient = flavour.module.InferenceServerClient(f"127.0.0.1:{live.public.http}", network_timeout=0.1)
            with pytest.raises(TimeoutError):
                impatient.infer("gated", inputs)
            impatient.close()
        live.until_in_flight(live.public, 0)


def test_who_waits_for_a_server_that_stops_is_told(live: LiveServer, flavour: Flavour) -> None:
    def stop() -> None:
        live.until_in_flight(door, 1)
        live.drain(door, grace_s=0.0).result(PATIENCE_S)

    with live.closing() as door, live.gate.closed(), Caller(flavour, door) as caller:
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            stopped = threads.submit(stop)
            caller.refuses(UNAVAILABLE, "server stopped before", caller.infer, "gated", {"x": X})
            stopped.result(PATIENCE_S)
        with pytest.raises((InferenceServerException, OSError)):
            caller.call("is_server_live")


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda flavour: flavour.name)
def test_who_is_inside_is_served_before_a_server_stops(live: LiveServer, flavour: Flavour) -> None:
    def stop() -> "concurrent.futures.Future[Any]":
        live.until_in_flight(door, 1)
        stopping = live.drain(door, grace_s=PATIENCE_S)
        opening.close()
        return stopping

    with live.closing() as door, contextlib.ExitStack() as opening, Caller(flavour, door) as caller:
        opening.enter_context(live.gate.closed())
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            stopping = threads.submit(stop)
            np.testing.assert_array_equal(caller.infer("gated", {"x": X}).as_numpy("output"), X + 1)
            stopping.result(PATIENCE_S).result(PATIENCE_S)
