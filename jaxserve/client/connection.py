"""One connection of the native protocol, seen from the client.

    connecting --welcome--> open --goodbye--> draining --last answer--> closed
        |                     |                  |                         ^
        +---------------------+------- lost, or a protocol error ----------+

A request is *unsent* until its bytes were handed to the transport: only such a request may be tried elsewhere when the
connection ends, for the server may have begun with any other.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast

from jaxserve.errors import ConnectionLost, DeadlineExceeded, JaxserveError, ProtocolError, from_wire
from jaxserve.protocols import messages, native
from jaxserve.protocols.loop import write_parts
from jaxserve.protocols.messages import Value
from jaxserve.protocols.tensors import Buffer


class NeverSent(ConnectionLost):
    """The connection ended while the request was still here: it may be sent again."""


class Connection(asyncio.Protocol):
    """Sends requests, and gives each answer to whoever waits for it.

    Args:
        address: for messages.
        token: shown to the server; empty for none.
        max_frame_bytes: the largest answer that is read.
        on_room: called when one more request may be sent than before.
        on_end: called once, when no more requests may be sent.
        on_close: called once, after `on_end`, when the connection is gone.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str,
        max_frame_bytes: int,
        on_room: Callable[[], None],
        on_end: Callable[[], None],
        on_close: Callable[[], None],
    ) -> None:
        self._address = address
        self._token = token
        self._on_room = on_room
        self._on_end = on_end
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._decoder = native.Decoder(end="client", max_frame_bytes=max_frame_bytes)
        self._max_frame_bytes = max_frame_bytes
        self._transport: asyncio.Transport | None = None
        self._welcome: messages.Welcome | None = None
        self._welcomed: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._is_ending = False
        self._is_writing_paused = False
        self._error: JaxserveError | None = None
        self._next_id = 1
        # Who waits for which answer. None: nobody any more, but the server still counts the request as in flight.
        self._pending: dict[int, asyncio.Future[Any] | None] = {}
        self._unsent: list[int] = []
        self._out: list[Buffer] = []

    @property
    def is_open(self) -> bool:
        """Whether requests may be sent."""
        return self._welcome is not None and not self._is_ending

    @property
    def has_room(self) -> bool:
        """Whether one more request may be sent now."""
        return (
            self._welcome is not None
            and not self._is_ending
            and not self._is_writing_paused
            and len(self._pending) < self._welcome.max_in_flight
        )

    @property
    def in_flight(self) -> int:
        """Requests that the server has not answered."""
        return len(self._pending)

    async def welcomed(self) -> None:
        """Waits for the end of the handshake."""
        await asyncio.shield(self._welcomed)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Value],
        *,
        deadline_s: float | None,
        priority: int,
        tenant: str,
        silence_margin_s: float,
    ) -> dict[str, Value]:
        """One request and its answer.

        Args:
            model: the model's name.
            inputs: what travels.
            deadline_s: seconds left.
            priority: as in `messages.Infer`.
            tenant: as in `messages.Infer`.
            silence_margin_s: seconds after the deadline until the client gives up on hearing anything.
        """
        assert self._welcome is not None
        request_id = self._next_id
        parts = native.encode_infer(
            request_id,
            model,
            deadline_s,
            inputs,
            priority=priority,
            tenant=tenant,
            max_frame_bytes=self._welcome.max_frame_bytes,
        )
        if deadline_s is None:
            return await self._answer(request_id, parts)
        timer = self._loop.call_later(deadline_s + silence_margin_s, self._expire, request_id, deadline_s)
        try:
            return await self._answer(request_id, parts)
        finally:
            timer.cancel()

    async def query(self, kind: Callable[[int], messages.Message]) -> Any:
        """The server's answer to a `StatusQuery` or a `DescribeQuery`."""
        return await self._answer(self._next_id, native.encode(kind(self._next_id)))

    def close(self) -> None:
        """Closes; whatever is unanswered is lost."""
        self._end()
        if self._transport is not None:
            self._transport.close()

    async def wait_closed(self) -> None:
        """Waits until the connection is gone."""
        if self._transport is not None:
            await asyncio.shield(self._closed)

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server has accepted: greet it."""
        transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._transport = transport
        hello = native.encode(messages.Hello(native.VERSIONS, self._max_frame_bytes, native.AGENT, self._token))
        transport.write(native.PREAMBLE + b"".join(hello))

    def data_received(self, data: bytes) -> None:
        """The server has sent something."""
        for message in self._decoder.feed(data):
            if type(message) is messages.Result:
                self._settle(message.id, message.outputs)
            else:
                self._handle(message)
        if self._is_ending and not self._pending:
            self.close()

    def eof_received(self) -> None:
        """The server has closed its side: the loop closes ours."""

    def pause_writing(self) -> None:
        """The server does not read as fast as requests come."""
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        """The server has caught up."""
        self._is_writing_paused = False
        self._on_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, and with it the answers that have not come."""
        self._end()
        reason = f": {exc}" if exc is not None else ""
        if self._welcome is None:
            text = f"{self._address} ended the connection before it greeted{reason}; does that port speak TLS (`tls=`)?"
        else:
            text = f"the connection to {self._address} ended before the answer came{reason}"
        lost = self._error or ConnectionLost(text)
        if not self._welcomed.done():
            self._welcomed.set_exception(lost)
            self._welcomed.exception()  # nobody may be waiting any more, which is no mishap
        unsent = set(self._unsent)
        pending, self._pending = self._pending, {}
        for request_id, future in pending.items():
            if future is not None and not future.done():
                never_sent = request_id in unsent
                future.set_exception(NeverSent(str(lost)) if never_sent else type(lost)(str(lost)))
        self._out.clear()
        self._unsent.clear()
        if not self._closed.done():
            self._closed.set_result(None)
        self._on_close()

    # Requests

    async def _answer(self, request_id: int, parts: list[Buffer]) -> Any:
        self._next_id += 1
        future = self._pending[request_id] = self._loop.create_future()
        self._unsent.append(request_id)
        self._send(parts)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                future.exception()  # an answer that came in the same turn; the cancellation wins
            self._abandon(request_id)
            raise

    def _expire(self, request_id: int, deadline_s: float) -> None:
        future = self._pending.get(request_id)
        if future is not None and not future.done():
            future.set_exception(
                DeadlineExceeded(
                    f"{self._address} was silent until past the deadline of {deadline_s:.3g} s", deadline_s=deadline_s
                )
            )
            self._abandon(request_id)

    def _abandon(self, request_id: int) -> None:
        if self._pending.get(request_id) is not None:
            self._pending[request_id] = None
            self._send(native.encode(messages.Cancel(request_id)))

    def _send(self, parts: list[Buffer]) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += parts

    def _flush(self) -> None:
        if not self._out or self._transport is None or self._transport.is_closing():
            return
        parts, self._out = self._out, []
        self._unsent.clear()
        write_parts(self._transport, parts)

    # Messages

    def _handle(self, message: messages.Message | ProtocolError) -> None:
        match message:
            case messages.Failure(id=0):
                self._fail(native.connection_error(message))
            case messages.Failure(id=request_id, code=code, message=text, details=details):
                self._settle(request_id, from_wire(code, text, details))
            case messages.Report(id=query_id, value=value):
                self._settle(query_id, value)
            case messages.Welcome():
                self._take_welcome(message)
            case messages.Goodbye():
                self._end()
            case ProtocolError():
                self._fail(message)
            case _:
                raise AssertionError(f"the decoder let a {type(message).__name__} through to the client")

    def _take_welcome(self, welcome: messages.Welcome) -> None:
        if welcome.version not in native.VERSIONS:
            self._fail(ProtocolError(f"{self._address} chose version {welcome.version}, which was not offered"))
            return
        self._welcome = welcome
        if not self._welcomed.done():
            self._welcomed.set_result(None)

    def _settle(self, request_id: int, answer: Any) -> None:
        if request_id not in self._pending:
            self._fail(ProtocolError(f"{self._address} answered request {request_id}, which is not in flight"))
            return
        future = self._pending.pop(request_id)
        if future is not None and not future.done():
            if isinstance(answer, JaxserveError):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        self._on_room()

    def _fail(self, error: native.Ending) -> None:
        self._error = self._error or error
        self.close()

    def _end(self) -> None:
        if not self._is_ending:
            self._is_ending = True
            self._on_end()
