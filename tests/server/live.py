"""Live servers and raw peers for tests, on every event loop that is supported; and what must not be left behind."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Self

import numpy as np
import pytest

from jaxserve.protocols import messages, native
from jaxserve.protocols.loop import loop_factory
from jaxserve.server import NativeServer

LOOPS = {"asyncio": asyncio.new_event_loop, "fastest": loop_factory()}

X = np.array([[1.0, 2.0]], np.float32)
PATIENCE_S = 10.0

Main = Callable[[], Coroutine[Any, Any, None]]


def on_every_loop(main: Main) -> Any:
    """Makes a test of a coroutine function: it runs to its end in time, and leaves no task and no descriptor."""

    @pytest.mark.parametrize("loop", LOOPS)
    def test(loop: str) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(asyncio.sleep(0))  # the first loop of a process opens descriptors that stay
        before = _descriptors()
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(_to_its_end(main))
        assert _descriptors() <= before

    test.__name__ = main.__name__
    test.__doc__ = main.__doc__
    return test


async def _to_its_end(main: Main) -> None:
    async with asyncio.timeout(3 * PATIENCE_S):
        await main()
    assert asyncio.all_tasks() == {asyncio.current_task()}


def _descriptors() -> int:
    return len(os.listdir("/dev/fd"))


class Peer:
    """A client that sends exactly what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._decoder = native.Decoder(end="client")
        self._received: list[Any] = []

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def tell(self, message: messages.Message) -> None:
        await self.send(b"".join(native.encode(message)))

    async def hear(self) -> Any:
        """The next message; None at the end."""
        async with asyncio.timeout(PATIENCE_S):
            while not self._received:
                data = await self.reader.read(65536)
                if not data:
                    return None
                self._received += self._decoder.feed(data)
        return self._received.pop(0)

    async def greet(self, **changes: Any) -> messages.Welcome:
        await self.send(native.PREAMBLE)
        hello = {"versions": [1], "max_frame_bytes": 2**26, "agent": "test", **changes}
        await self.tell(messages.Hello(**hello))
        welcome = await self.hear()
        assert isinstance(welcome, messages.Welcome)
        return welcome

    async def infer(self, id: int, model: str = "now", deadline_s: float | None = None, **inputs: Any) -> None:
        await self.tell(messages.Infer(id, model, deadline_s, inputs or {"x": X}))

    def reset(self) -> None:
        """Ends the connection as a process does that was killed: with a reset."""
        sock = self.writer.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def connect(server: NativeServer) -> Peer:
    """A peer that has not said anything yet."""
    assert server.port is not None
    return Peer(*await asyncio.open_connection("127.0.0.1", server.port))


@contextlib.asynccontextmanager
async def greeted(server: NativeServer) -> AsyncIterator[Peer]:
    """A peer that has the handshake behind it."""
    async with await connect(server) as peer:
        await peer.greet()
        yield peer


async def serves(server: NativeServer) -> None:
    """The next good request is served, and nothing is left of what came before."""
    async with greeted(server) as peer:
        await peer.infer(1)
        result = await peer.hear()
        assert isinstance(result, messages.Result)
        np.testing.assert_array_equal(result.outputs["x"], X)
    assert server.in_flight == 0


async def until(holds: Callable[[], bool]) -> None:
    """Turns the loop until something is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110  # what is looked at sets no event
            await asyncio.sleep(0)
