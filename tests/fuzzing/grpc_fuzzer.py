"""A fuzzer of the gRPC server over raw sockets.

A call ends with a status, which is typed: one that says that the server failed must say that a model did. To frames
that are no right HTTP/2 a server may say anything that is, or nothing; it must only go on with others.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import cast

from jaxserve.protocols.grpc_messages import ModelStreamInferResponse
from jaxserve.server.grpc_calls import FAILED
from tests.fuzzing.driver import drive
from tests.fuzzing.grpc_traffic import Frames, right_call, traffic
from tests.fuzzing.h2 import Heard
from tests.fuzzing.patience import PATIENCE_S, QUIET_S, Patience, local_address
from tests.fuzzing.reports import Report
from tests.fuzzing.subject import Hung, Subject

_MOST_GROWTH_BYTES = 128 * 2**20
"""Storms of calls leave gRPC's own threads with memory that they keep for the next: some 40 KB for each of the first
few thousand storms, and nothing for later ones."""
_OK, _CANCELLED, _UNKNOWN, _INTERNAL = 0, 1, 2, 13


class Caller(asyncio.Protocol):
    """One connection, and what is heard on it."""

    def __init__(self, sent: Frames) -> None:
        self._sent = sent
        self._loop = asyncio.get_running_loop()
        self.patience = Patience(PATIENCE_S if sent.is_call else QUIET_S)
        self._until_s = self._loop.time() + PATIENCE_S
        self.heard = Heard()
        self.is_closed = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server is there."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._sent.data)  # before anything that answers the server's first frames
        self.patience.wait()

    def data_received(self, data: bytes) -> None:
        """Some frames."""
        answer = self.heard.feed(data)
        if answer and not self.transport.is_closing():
            self.transport.write(answer)
        if (self._sent.is_call and self.heard.is_over) or self.heard.wrong or self._loop.time() > self._until_s:
            self.patience.end()
        else:
            self.patience.wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.is_closed = True
        self.patience.end()


class GrpcFuzzer:
    """Sends inputs to the gRPC server, and looks at what comes back.

    Args:
        subject: the server.
        seed: with which all inputs are made.
    """

    name = "grpc"

    def __init__(self, subject: Subject, seed: int) -> None:
        self._subject = subject
        self._seed = seed
        self.report = Report(self.name, seed)

    def input(self, index: int) -> Frames:
        """The input of this number; some are right, so that it is seen whether others are still served."""
        return right_call() if index % 64 == 0 else traffic(random.Random(f"{self.name} {self._seed} {index}"))

    async def run(self, indices: Sequence[int]) -> Report:
        """Sends these inputs."""
        return await drive(
            self._subject,
            self.report,
            self._attempt,
            indices,
            between=self._is_served,
            most_growth_bytes=_MOST_GROWTH_BYTES,
        )

    async def _is_served(self) -> None:
        caller = await self._send(right_call(), 0)
        if caller.heard.status != _OK:
            raise Hung(f"a call that is right is not served once a batch is over: {caller.heard}")

    async def _attempt(self, index: int) -> None:
        sent = self.input(index)
        caller = await self._send(sent, index)
        heard = caller.heard
        if heard.status is not None:
            self.report.outcomes[f"{heard.status} {heard.code}".strip()] += 1
        else:
            self.report.outcomes["sent away" if heard.went_away else "closed" if caller.is_closed else "silence"] += 1
        for what, detail in verdicts(sent, caller):
            self.report.add(what, detail, index=index, input=sent.data)

    async def _send(self, sent: Frames, index: int) -> Caller:
        loop = asyncio.get_running_loop()
        local = local_address(index)
        _, caller = await loop.create_connection(
            lambda: Caller(sent), "127.0.0.1", self._subject.ports["grpc"], local_addr=local
        )
        await caller.patience.over()
        caller.transport.abort() if index % 5 == 0 else caller.transport.close()
        return caller


def verdicts(sent: Frames, caller: Caller) -> list[tuple[str, str]]:
    """What is wrong with what came back."""
    heard = caller.heard
    # Only this fuzzer's own storms of calls make gRPC cancel right ones of other connections, without a word, before a
    # method of ours sees them: more calls wait then than `grpc.server.max_pending_requests` lets.
    is_crowded_out = heard.status == _CANCELLED and not heard.code and not heard.body
    found: list[tuple[str, str]] = []
    if heard.wrong is not None:
        found.append(("what comes back is no HTTP/2", heard.wrong))
    # What is no call may be told so by gRPC itself.
    if sent.is_call and (heard.status == _UNKNOWN or (heard.status == _INTERNAL and heard.code != "model_failed")):
        found.append((f"a call ends with status {heard.status} that is not typed", f"{heard}"))
    if sent.is_call and heard.status is None:
        found.append(("a call has no status", f"{heard}, closed {caller.is_closed}"))
    if sent.answers is not None and heard.status == _OK and len(heard.messages()) != sent.answers:
        found.append(("a call has another number of answers", f"{len(heard.messages())} for {sent.answers}"))
    if sent.answers is not None and heard.status not in (_OK, None) and not is_crowded_out:
        found.append(("a call that must succeed does not", f"{heard}"))
    if sent.is_call and heard.status == _OK:
        for data in heard.messages():
            if FAILED.encode() in data:
                found.append(("a call of a stream failed", str(ModelStreamInferResponse.FromString(data))[:500]))
    return found
