"""A fuzzer of the HTTP server over raw sockets.

Every input is made of the seed and its number alone, so that any one of them can be sent again.
"""

import asyncio
import random
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import cast

from tests.fuzzing.driver import drive
from tests.fuzzing.http_answers import Answer, Malformed, complaint, read_answers
from tests.fuzzing.http_traffic import Traffic, traffic
from tests.fuzzing.patience import PATIENCE_S, QUIET_S, Patience, local_address
from tests.fuzzing.reports import Report
from tests.fuzzing.subject import Subject


class Stranger(asyncio.Protocol):
    """One connection, and what comes back on it."""

    def __init__(self, sent: Traffic, patience_s: float) -> None:
        self._sent = sent
        self.patience = Patience(patience_s if sent.answers is not None else QUIET_S)
        self._chunks: list[bytes] = []
        self._since_read = b""
        self.answers: list[Answer] = []
        self.rest = b""
        self.malformed: str | None = None
        self.is_over = False
        self.was_reset = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server is there."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Something of an answer."""
        self.rest += data
        self._read()
        if self.malformed or (self._sent.answers is not None and len(self.answers) >= self._sent.answers):
            self.patience.end()
        else:
            self.patience.wait()

    def eof_received(self) -> None:
        """The server has closed its side."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.is_over = True
        self.was_reset = exc is not None
        self._read()
        self.patience.end()

    def _read(self) -> None:
        if self.malformed is None:
            try:
                found, self.rest = read_answers(self.rest, is_over=self.is_over, has_head=self._sent.has_head)
            except Malformed as error:
                self.malformed = str(error)
            else:
                self.answers += found


async def send(port: int, sent: Traffic, *, index: int = 0, patience_s: float = PATIENCE_S) -> Stranger:
    """Sends it over a connection of its own, and ends that; what came back."""
    loop = asyncio.get_running_loop()
    local = local_address(index)  # so that no address runs out of ports
    _, stranger = await loop.create_connection(lambda: Stranger(sent, patience_s), "127.0.0.1", port, local_addr=local)
    transport = stranger.transport
    start = 0
    for cut in sent.cuts:
        if transport.is_closing():
            break
        transport.write(sent.data[start:cut])
        start = cut
        await asyncio.sleep(0.001)
    if not transport.is_closing():
        transport.write(sent.data[start:])
        if sent.ending == "half" and sent.answers is None:
            transport.write_eof()
    if sent.ending != "leave":
        stranger.patience.wait()
        await stranger.patience.over()
    elif index % 2:
        await asyncio.sleep(0.001)
    if sent.ending in ("abort", "leave"):
        sock = cast(socket.socket, transport.get_extra_info("socket"))
        if sock is not None and not transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()
    return stranger


def verdicts(sent: Traffic, heard: Stranger) -> list[tuple[str, str]]:
    """What is wrong with what came back, each in words that are the same each time, and in detail."""
    found: list[tuple[str, str]] = []
    if heard.malformed is not None:
        found.append(("an answer is no HTTP", heard.malformed))
    for answer in heard.answers:
        what = complaint(answer)
        if what is not None:
            found.append((what, repr(answer.body[:1000])))
    if sent.answers is not None and len(heard.answers) < sent.answers and not sent.has_head and heard.malformed is None:
        what = "was closed on" if heard.is_over else "got no answer"
        found.append((f"a request {what}", f"{len(heard.answers)} of {sent.answers}; the rest is {heard.rest[:200]!r}"))
    return found


class HttpFuzzer:
    """Sends inputs to the HTTP server, and looks at what comes back.

    Args:
        subject: the server.
        seed: with which all inputs are made.
    """

    name = "http"

    def __init__(self, subject: Subject, seed: int) -> None:
        self._subject = subject
        self._seed = seed
        self.report = Report(self.name, seed)

    def input(self, index: int) -> Traffic:
        """The input of this number."""
        return traffic(random.Random(f"{self.name} {self._seed} {index}"))

    async def run(self, indices: Sequence[int]) -> Report:
        """Sends these inputs."""
        return await drive(self._subject, self.report, self._attempt, indices)

    async def _attempt(self, index: int) -> None:
        sent = self.input(index)
        heard = await send(self._subject.ports["http"], sent, index=index)
        self.report.outcomes.update(str(answer.status) for answer in heard.answers)
        if not heard.answers:
            self.report.outcomes["closed in silence" if heard.is_over else "silence"] += 1
        for what, detail in verdicts(sent, heard):
            self.report.add(what, detail, index=index, input=sent.data)


async def shortest(port: int, sent: Traffic, what: str, *, tries: int = 200) -> bytes:
    """A shorter input that does the same: pieces are left out as long as it does."""

    async def does(data: bytes) -> bool:
        trial = Traffic(data, sent.answers, sent.has_head)
        return any(found == what for found, _ in verdicts(trial, await send(port, trial, patience_s=0.2)))

    data, size = sent.data, max(1, len(sent.data) // 2)
    while size and tries > 0:
        for start in _backwards(len(data), size):
            tries -= 1
            shorter = data[:start] + data[start + size :]
            if tries > 0 and await does(shorter):
                data = shorter
        size //= 2
    return data


def _backwards(length: int, size: int) -> Iterable[int]:
    return range((length - 1) // size * size, -1, -size)
