"""Clients that are not well-behaved, for hostile.py: those who dawdle, and those who ask for more than there is."""

import asyncio
import itertools
import json
import socket
import struct
import time
from collections import Counter
from typing import Any, cast

import numpy as np

from jaxserve.protocols import messages, native

HOST = "127.0.0.1"
LOCAL = "127.0.0.2"
"""Where strangers come from, so that the server can tell them from others."""
KINDS = ("head", "body", "reader", "noise", "native", "grpc")
"""Of those who dawdle: a byte of the head a second, a byte of the body a second, one who asks and takes no answer, one
who says something else than HTTP and then nothing, and those who do no more than half a handshake elsewhere."""
EVERY_S = 1.0
READS_NOT_FOR_S = 10.0
ARRIVE_WITHIN_S = 5.0
"""They come one after the other."""
_PIPELINED = 400
"""Requests of one who takes no answers; together these are megabytes."""
_SMALL_WINDOW_BYTES = 4096
"""What a client's system takes for it while it does not read."""


def http_head(model: str, length: int, tenant: str, deadline_s: float) -> bytes:
    """The head of a request of the Open Inference Protocol."""
    return (
        b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nX-Tenant: %b\r\nX-Deadline-S: %g\r\n"
        % (model.encode(), length, tenant.encode(), deadline_s)
    )


def http_infer(model: str, x: np.ndarray[Any, Any], tenant: str, deadline_s: float) -> bytes:
    """A request with raw data."""
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    head = http_head(model, len(text) + x.nbytes, tenant, deadline_s)
    return b"%bInference-Header-Content-Length: %d\r\n\r\n%b%b" % (head, len(text), text, x.tobytes())


class Dawdler(asyncio.Protocol):
    """A connection that is kept open with as little as possible."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.began_s = self._loop.time()
        self.lost: asyncio.Future[float] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server is there."""
        self._transport = cast(asyncio.Transport, transport)
        self.began_s = self._loop.time()
        drip = b""
        match self._kind:
            case "head":
                drip = b"GET /v2/models/model HTTP/1.1\r\nHost: h\r\nX-Long: " + b"a" * 8000
            case "body":
                self._transport.write(http_head("model", 100_000, "strangers", 60.0) + b"\r\n")
                drip = b" " * 8000
            case "reader":
                self._transport.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * _PIPELINED)
                self._transport.pause_reading()
            case "noise":
                self._transport.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
            case "native":
                self._transport.write(native.PREAMBLE + struct.pack("<I", 60))
            case _:
                self._transport.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        if drip:
            self._drip(iter(drip))

    def _drip(self, rest: Any) -> None:
        byte = next(rest, None)
        if byte is not None and not self._transport.is_closing():
            self._transport.write(bytes((byte,)))
            self._timer = self._loop.call_later(EVERY_S, self._drip, rest)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server has had enough."""
        if self._timer is not None:
            self._timer.cancel()
        if not self.lost.done():
            self.lost.set_result(self._loop.time() - self.began_s)


class Dawdlers:
    """So many connections of every kind; each that is cut off is made anew.

    Attributes:
        open: how many there are, by kind.
        lasted_s: of those that were cut off, by kind.
    """

    def __init__(self, ports: dict[str, int], count: int) -> None:
        self._ports = ports
        self._kinds = [kind for kind, _ in zip(itertools.cycle(KINDS), range(count), strict=False)]
        self.open: Counter[str] = Counter()
        self.lasted_s: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.failed = 0

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for index, kind in enumerate(self._kinds):
                tasks.create_task(self._keep(kind, ARRIVE_WITHIN_S * index / len(self._kinds)))

    async def _keep(self, kind: str, after_s: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(after_s)
        port = self._ports[kind if kind in ("native", "grpc") else "http"]
        while True:
            sock = socket.socket()
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_WINDOW_BYTES)
                sock.bind((LOCAL, 0))
                await loop.sock_connect(sock, (HOST, port))
                transport, dawdler = await loop.create_connection(lambda: Dawdler(kind), sock=sock)
            except OSError:
                sock.close()
                self.failed += 1
                await asyncio.sleep(EVERY_S)
                continue
            self.open[kind] += 1
            try:
                if kind == "reader":  # one who does not read does not see that the other end has gone
                    await asyncio.sleep(READS_NOT_FOR_S)
                else:
                    self.lasted_s[kind].append(await dawdler.lost)
            finally:
                self.open[kind] -= 1
                transport.abort()
            await asyncio.sleep(EVERY_S)


class OverHttp(asyncio.Protocol):
    """One connection of many who ask without waiting for answers; only one request at a time, as HTTP has it."""

    def __init__(self, request: bytes, outcomes: Counter[str]) -> None:
        self._request = request
        self._outcomes = outcomes
        self._head = b""
        self._left = -1
        self.is_free = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server is there."""
        self._transport = cast(asyncio.Transport, transport)

    def send(self) -> bool:
        """Sends a request; whether it could."""
        if not self.is_free or self._transport.is_closing():
            return False
        self.is_free = False
        self._transport.write(self._request)
        return True

    def data_received(self, data: bytes) -> None:
        """Takes an answer, of which only the status matters."""
        self._head += data
        if self._left < 0:
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            start = self._head.find(b"\r\nContent-Length: ") + 18
            self._left = end + 4 + int(self._head[start : self._head.find(b"\r", start)])
        if len(self._head) >= self._left:
            self._outcomes[self._head[9:12].decode()] += 1
            self._head, self._left, self.is_free = b"", -1, True


class OverNative(asyncio.Protocol):
    """A connection of the native protocol on which requests are sent without waiting."""

    def __init__(self, model: str, x: np.ndarray[Any, Any], deadline_s: float, outcomes: Counter[str]) -> None:
        self._model = model
        self._x = x
        self._deadline_s = deadline_s
        self._outcomes = outcomes
        self._decoder = native.Decoder(end="client")
        self._ids = itertools.count(1)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server is there."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(native.PREAMBLE + b"".join(native.encode(messages.Hello([1], 2**26, "stranger"))))

    def send(self) -> bool:
        """Sends a request."""
        message = messages.Infer(next(self._ids), self._model, self._deadline_s, {"x": self._x}, 0, "strangers")
        self._transport.write(b"".join(native.encode(message)))
        return True

    def data_received(self, data: bytes) -> None:
        """Counts answers."""
        for message in self._decoder.feed(data):
            self._outcomes[message.code if isinstance(message, messages.Failure) else type(message).__name__] += 1


async def overload(
    ports: dict[str, int], model: str, rate: float, x: np.ndarray[Any, Any], deadline_s: float, outcomes: Counter[str]
) -> None:
    """Asks `rate` times a second, half over HTTP and half over the native protocol, whatever is answered; for ever."""
    loop = asyncio.get_running_loop()
    request = http_infer(model, x, "strangers", deadline_s)
    local = (LOCAL, 0)
    over_http = [
        (await loop.create_connection(lambda: OverHttp(request, outcomes), HOST, ports["http"], local_addr=local))[1]
        for _ in range(512)
    ]
    over_native = [
        (
            await loop.create_connection(
                lambda: OverNative(model, x, deadline_s, outcomes), HOST, ports["native"], local_addr=local
            )
        )[1]
        for _ in range(8)
    ]
    turns = itertools.cycle(
        [*itertools.chain.from_iterable(zip(over_http, itertools.cycle(over_native), strict=False))]
    )
    began_s, sent = time.perf_counter(), 0
    while True:
        due = int((time.perf_counter() - began_s) * rate)
        for _ in range(min(due - sent, 200)):
            if not next(turns).send():
                outcomes["not sent: all connections are waiting"] += 1
        sent = due
        await asyncio.sleep(0.005)
