"""The synchronous client: from plain code, from many threads, and from inside a running loop."""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from jaxserve.client import Client
from jaxserve.errors import ConfigError, ConnectionLost, DeadlineExceeded, InvalidInput, ModelNotFound
from jaxserve.server import NativeServer
from tests.server.fakes import FakeEngine
from tests.server.live import X


@contextlib.contextmanager
def served(**options: Any) -> Iterator[tuple[str, FakeEngine]]:
    """A server in a thread of its own: its address, and its engine."""
    ready: concurrent.futures.Future[tuple[str, FakeEngine]] = concurrent.futures.Future()
    with asyncio.Runner() as runner:
        loop, done = runner.get_loop(), asyncio.Event()

        async def serve() -> None:
            engine = FakeEngine()
            async with NativeServer(engine, linger_s=0.05, **options) as server:
                ready.set_result((server.addresses[0], engine))
                await done.wait()

        thread = threading.Thread(target=runner.run, args=(serve(),))
        thread.start()
        try:
            yield ready.result(10.0)
        finally:
            loop.call_soon_threadsafe(done.set)
            thread.join()


def test_calls():
    with served() as (address, _), Client(address) as client:
        np.testing.assert_array_equal(client.infer("soon", {"x": [[1.0, 2.0]]}, deadline_s=5.0)["x"], X)
        assert client.status()["submitted"] == 1
        assert [model["name"] for model in client.models()] == ["now", "soon", "held"]
        with pytest.raises(ModelNotFound):
            client.infer("nobody", {"x": X})
        with pytest.raises(DeadlineExceeded):
            client.infer("held", {"x": X}, deadline_s=0.01)


def test_priority_and_tenant_reach_the_engine():
    with served() as (address, engine), concurrent.futures.ThreadPoolExecutor(1) as pool:
        with Client(address) as client:
            with pytest.raises(InvalidInput, match="priority is 11"):
                client.infer("now", {"x": X}, priority=11)
            with pytest.raises(InvalidInput, match="tenant is 7"):
                client.infer("now", {"x": X}, tenant=7)  # pyright: ignore[reportArgumentType]
            call = pool.submit(client.infer, "held", {"x": X}, priority=-3, tenant="team")
            while not engine.held:
                client.status()
            [held] = engine.held.values()
            assert (held.priority, held.tenant) == (-3, "team")
        with pytest.raises(ConnectionLost):
            call.result(10.0)


def test_many_threads_share_it():
    with served() as (address, _), Client(address, connections=2) as client:

        def call(number: int) -> int:
            return int(client.infer("soon", {"x": np.array([number])})["x"][0])

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert list(pool.map(call, range(100))) == list(range(100))


def test_inside_a_running_loop():
    async def notebook_cell(address: str) -> np.ndarray:
        with Client(address) as client:
            return client.infer("now", {"x": X})["x"]

    with served() as (address, _):
        np.testing.assert_array_equal(asyncio.run(notebook_cell(address)), X)


def test_closing_ends_the_calls_of_other_threads():
    before = set(threading.enumerate())
    with served() as (address, engine), concurrent.futures.ThreadPoolExecutor(1) as pool:
        with Client(address) as client:
            call = pool.submit(client.infer, "held", {"x": X})
            while not engine.held:
                client.status()
        with pytest.raises(ConnectionLost):
            call.result(10.0)
        with pytest.raises(ConnectionLost, match="use it inside `with`"):
            client.infer("now", {"x": X})
        client.close()
        with client:  # it may be entered again
            client.infer("now", {"x": X})
    assert set(threading.enumerate()) == before


def test_nobody_at_the_address():
    with served() as (address, _):
        pass
    before = set(threading.enumerate())
    with pytest.raises(ConnectionLost, match="is the server running"), Client(address):
        pass
    assert set(threading.enumerate()) == before
    with pytest.raises(ConfigError, match="is not the address"):
        Client("nowhere")
