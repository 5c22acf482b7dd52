"""A fuzzer of the native protocol over raw sockets.

What comes back must be messages; a request that is right must be answered, unless the connection was ended with a
reason.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

from jaxserve.errors import ProtocolError
from jaxserve.protocols import messages, native
from tests.fuzzing.driver import drive
from tests.fuzzing.native_traffic import encoded, hello, inputs_that_fit, stream
from tests.fuzzing.patience import PATIENCE_S, QUIET_S, Patience, local_address
from tests.fuzzing.reports import Report
from tests.fuzzing.subject import Subject

_CANARY_ID = 77_777_777


class Peer(asyncio.Protocol):
    """One connection, and the messages that come back on it."""

    def __init__(self, patience_s: float) -> None:
        self.patience = Patience(patience_s)
        self._decoder = native.Decoder(end="client")
        self.expected = -1
        self.received: list[Any] = []
        self.is_over = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server is there."""
        self.transport = cast(asyncio.Transport, transport)
        self.patience.wait()

    def data_received(self, data: bytes) -> None:
        """Something of a message."""
        self.received += self._decoder.feed(data)
        if len(self.received) == self.expected:
            self.patience.end()
        else:
            self.patience.wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.is_over = True
        self.patience.end()


class NativeFuzzer:
    """Sends inputs to the native server, and looks at what comes back.

    Args:
        subject: the server.
        seed: with which all inputs are made.
    """

    name = "native"

    def __init__(self, subject: Subject, seed: int) -> None:
        self._subject = subject
        self._seed = seed
        self.report = Report(self.name, seed)

    def input(self, index: int) -> tuple[bytes, bool, random.Random]:
        """The input of this number, and whether it is right from beginning to end."""
        rng = random.Random(f"{self.name} {self._seed} {index}")
        data, is_right = stream(rng)
        return data, is_right, rng

    async def run(self, indices: Sequence[int]) -> Report:
        """Sends these inputs."""
        return await drive(self._subject, self.report, self._attempt, indices)

    async def _attempt(self, index: int) -> None:
        data, is_right, rng = self.input(index)
        if index % 64 == 0:  # a connection of its own must be served now
            _, inputs = inputs_that_fit(random.Random(1))
            data, is_right = hello() + encoded(messages.Infer(_CANARY_ID, "spare", 30.0, inputs)), True
        sent, refused = _expected(data)
        loop = asyncio.get_running_loop()
        local = local_address(index)
        port = self._subject.ports["native"]
        patience_s = PATIENCE_S if is_right else QUIET_S
        _, peer = await loop.create_connection(lambda: Peer(patience_s), "127.0.0.1", port, local_addr=local)
        peer.expected = 1 + len(sent) if is_right else -1
        await self._send(peer.transport, data, rng)
        await peer.patience.over()
        if rng.random() < 0.2:
            peer.transport.abort()
        else:
            peer.transport.close()
        self.report.outcomes.update(_outcome(message) for message in peer.received)
        if not peer.received:
            self.report.outcomes["closed in silence" if peer.is_over else "silence"] += 1
        for what, detail in _verdicts(peer, sent, is_right=is_right and not refused):
            self.report.add(what, detail, index=index, input=data)

    async def _send(self, transport: asyncio.Transport, data: bytes, rng: random.Random) -> None:
        start = 0
        if rng.random() < 0.15 and data:
            for cut in sorted(rng.randint(0, len(data)) for _ in range(rng.randint(1, 5))):
                if transport.is_closing():
                    return
                transport.write(data[start:cut])
                start = cut
                await asyncio.sleep(0.001)
        if not transport.is_closing():
            transport.write(data[start:])


def _expected(data: bytes) -> tuple[list[int], bool]:
    """The ids that are to be answered, and whether the codec refuses what is sent, or an id is sent twice."""
    received = native.Decoder(end="server").feed(data)
    asked = [
        message for message in received if not isinstance(message, messages.Hello | messages.Cancel | ProtocolError)
    ]
    ids = [message.id for message in asked if not isinstance(message, messages.Goodbye)]  # pyright: ignore
    return ids, len(set(ids)) < len(ids) or any(isinstance(message, ProtocolError) for message in received)


def _outcome(message: Any) -> str:
    return message.code if isinstance(message, messages.Failure) else type(message).__name__


def _verdicts(peer: Peer, sent: list[int], *, is_right: bool) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    answered: Counter[int] = Counter()
    for message in peer.received:
        if isinstance(message, ProtocolError):
            found.append(("what comes back is not the native protocol", str(message)))
        elif isinstance(message, messages.Failure):
            answered[message.id] += 1
            if message.code == "server_error" and "over the receiver's limit" not in message.message:
                found.append(("a failure is a server_error", message.message))
            if "Traceback" in message.message:
                found.append(("a failure shows a trace", message.message))
        elif isinstance(message, messages.Result | messages.Report):
            answered[message.id] += 1
    if is_right:
        missing = [id for id in sent if not answered[id]]
        if missing:
            found.append(
                ("a request got no answer", f"{missing} of {sent}; {peer.received!r:.500}, over {peer.is_over}")
            )
    if any(count > sent.count(id) for id, count in answered.items() if id):
        found.append(("an answer to nothing", f"{answered} for {sent}"))
    return found
