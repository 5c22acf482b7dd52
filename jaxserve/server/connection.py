"""One connection of the native protocol, seen from the server.

Everything happens in callbacks of the loop: bytes arrive, the decoder makes requests of them, the engine takes them and
calls back. There is no task, no future and no queue per request; a request costs one entry in `_in_flight` until it is
settled. Answers are written at the end of the loop's turn (`Flusher`), those of one connection all in one.

    handshaking --hello--> serving --protocol error--> failed --peer closes, or linger_s passed--> closed
                              |                                                                      ^
                              +--------------------- peer closes, or the server ends ----------------+

A hello without a token that is known, where the server has tokens, fails a connection as a protocol error does.

Reading stops while the peer does not take its answers, or while more than `max_in_flight_bytes` of requests are
unanswered: TCP carries the pressure back. Nothing is dropped.
"""

import asyncio
import dataclasses
import enum
import functools
import logging
from collections.abc import Callable
from typing import Any, cast

from jaxserve.errors import (
    ConnectionLost,
    EngineStopped,
    FrameTooLarge,
    InferenceError,
    ProtocolError,
    Unauthenticated,
    VersionMismatch,
)
from jaxserve.protocols import messages, native
from jaxserve.protocols.envelopes import SMALLEST_FRAME_LIMIT_BYTES
from jaxserve.protocols.loop import write_parts
from jaxserve.protocols.tensors import Buffer, Unencodable
from jaxserve.server.access import Access, Identity
from jaxserve.server.seam import InferenceEngine, Outputs

_log = logging.getLogger("jaxserve.server")

_NOBODY = Identity(observe=False)

_NOT_YET = -1  # the ticket of a request that the engine is just being given

# Only requests of this size are counted against max_in_flight_bytes: the others are bounded by max_in_flight.
_LARGE_BYTES = 64 * 1024

# To describe an engine takes it about a millisecond for every two models. A chunk of queries must not stop the others.
_QUERIES_PER_TURN = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one connection may cost.

    Attributes:
        max_frame_bytes: the largest frame that is read.
        max_in_flight: requests that may be unanswered at a time; one more is refused, not queued.
        max_in_flight_bytes: reading stops while large requests of more than this are unanswered.
        write_high_water_bytes: reading stops while more than this waits for the peer to take it.
        handshake_timeout_s: seconds within which the hello must have arrived.
        linger_s: seconds that a peer has to close its side once it was told to.
    """

    max_frame_bytes: int
    max_in_flight: int
    max_in_flight_bytes: int
    write_high_water_bytes: int
    handshake_timeout_s: float
    linger_s: float


class _State(enum.Enum):
    HANDSHAKING = enum.auto()
    SERVING = enum.auto()
    FAILED = enum.auto()
    CLOSED = enum.auto()


_SERVING, _FAILED = _State.SERVING, _State.FAILED  # looked at for every request


class Flusher:
    """Writes what all connections of a server have to say, one after the other, at the end of the loop's turn.

    A write to a client that sleeps wakes it, which on a virtual machine takes longer than to serve a small request.
    Among the answers of one turn only the first one pays for that; with a write for each, all of them did.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: list[Connection] = []
        self._read: dict[str, Any] = {}

    def once_per_turn(self, name: str, read: Callable[[], Any]) -> Any:
        """What `read` returns, read once for all that ask for `name` in this turn. The caller then calls `add`."""
        if name not in self._read:
            self._read[name] = read()
        return self._read[name]

    def add(self, connection: "Connection") -> None:
        """Has `connection` flushed in this turn."""
        if not self._due:
            self._loop.call_soon(self._flush)
        self._due.append(connection)

    def _flush(self) -> None:
        self._read.clear()
        due, self._due = self._due, []
        for connection in due:
            connection.flush()


class Connection(asyncio.Protocol):
    """Carries one peer's requests to the engine and the answers back.

    Args:
        engine: what serves them.
        flusher: the server's.
        access: who may come in.
        agent: how the server introduces itself.
        on_open: called with the connection when it stands.
        on_close: called with the connection when it is gone.
        on_settled: called when a request was settled while the connection drains.
    """

    def __init__(
        self,
        engine: InferenceEngine,
        limits: Limits,
        flusher: Flusher,
        *,
        access: Access,
        agent: str,
        on_open: Callable[["Connection"], None],
        on_close: Callable[["Connection"], None],
        on_settled: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._flusher = flusher
        self._access = access
        self._agent = agent
        self._on_open = on_open
        self._on_close = on_close
        self._on_settled = on_settled
        self._loop = asyncio.get_running_loop()
        self._decoder = native.Decoder(end="server", max_frame_bytes=limits.max_frame_bytes)
        self._state = _State.HANDSHAKING
        self._identity = _NOBODY  # until the hello has said who it is
        self._restricted: Identity | None = None  # its identity again, if that bears on requests
        self._draining = False
        self._peer_max_frame_bytes = SMALLEST_FRAME_LIMIT_BYTES  # until it has said what it accepts
        self._queries = 0  # in this turn of the loop
        self._in_flight: dict[int, int] = {}  # request id -> the engine's ticket
        self._large_bytes: dict[int, int] = {}  # request id -> bytes of its frame, for large ones
        self._out: list[Buffer] = [native.PREAMBLE]
        self._is_flush_due = False
        self._is_reading_paused = False
        self._is_writing_paused = False
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self.client = ""
        """The address of the host that it comes from; empty on a Unix socket."""

    @property
    def in_flight(self) -> int:
        """Requests taken and not answered."""
        return len(self._in_flight)

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The loop has accepted the peer."""
        transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if isinstance(peer, tuple) else ""
        transport.set_write_buffer_limits(high=self._limits.write_high_water_bytes)
        self._timer = self._loop.call_later(self._limits.handshake_timeout_s, self._handshake_expired)
        self._on_open(self)

    def data_received(self, data: bytes) -> None:
        """The peer has sent something."""
        if self._state is _FAILED:
            return
        for message in self._decoder.feed(data):
            if type(message) is messages.Infer:
                self._infer(message)
            else:
                self._handle(message)
            if self._state is _FAILED:
                break

    def eof_received(self) -> None:
        """The peer has closed its side, and with that the whole connection: the loop closes ours."""

    def pause_writing(self) -> None:
        """The peer does not take its answers as fast as they come."""
        self._is_writing_paused = True
        self._throttle()

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self._is_writing_paused = False
        self._throttle()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone: so is the interest in its requests."""
        self._state = _State.CLOSED
        self._stop_timer()
        self._out.clear()
        self._cancel_all()
        self._on_close(self)

    # What the server calls

    def say_goodbye(self, *, grace_s: float, reason: str) -> None:
        """From here on requests are refused; those in flight go on."""
        if self._draining:
            return
        self._draining = True
        if self._state is _State.SERVING:
            self._send(native.encode(messages.Goodbye(grace_s, reason)))
        elif self._state is _State.HANDSHAKING:
            self._transport.close()

    def turn_away(self, reason: str) -> None:
        """Ends it before it has begun: there are too many."""
        self._fail(ConnectionLost(reason))

    def identify_again(self) -> None:
        """The tokens have changed: it may do what its token allows now, and ends if that is not known any more."""
        if self._state is not _State.SERVING:
            return
        identity = self._access.current(self._identity)
        if identity is None:
            self._fail(Unauthenticated("this server does not know the token any more; ask who runs it for another"))
        else:
            self._become(identity)

    def stop_in_flight(self) -> None:
        """Answers whatever is still in flight with `EngineStopped`."""
        error = EngineStopped("the server stopped before the request was answered")
        for request_id, ticket in list(self._in_flight.items()):
            self._forget(request_id)
            self._refuse(request_id, error)
            self._engine.cancel(ticket)

    def close(self) -> None:
        """Closes once everything written has been taken."""
        if self._state is not _State.CLOSED:
            self.flush()
            self._transport.close()

    def abort(self) -> None:
        """Closes at once."""
        self._transport.abort()

    # Messages

    def _infer(self, message: messages.Infer) -> None:
        request_id = message.id
        in_flight = self._in_flight
        restricted = self._restricted
        if request_id in in_flight:
            self._fail(ProtocolError(f"request id {request_id} is in flight already"))
        elif restricted is not None and not restricted.may_infer(message.model):
            self._refuse(request_id, restricted.cannot_infer(message.model))
        elif self._draining:
            self._refuse(request_id, EngineStopped("the server is draining; the request was not taken", refused=1))
        elif len(in_flight) >= self._limits.max_in_flight:
            text = f"more than {self._limits.max_in_flight} requests in flight on one connection"
            self._send_failure(messages.Failure(request_id, "too_many_in_flight", text, {}))
        else:
            in_flight[request_id] = _NOT_YET
            if message.size_bytes >= _LARGE_BYTES:
                self._large_bytes[request_id] = message.size_bytes
                self._throttle()
            on_settled = functools.partial(self._settle, request_id)
            try:
                ticket = self._engine.submit(
                    message.model,
                    message.inputs,
                    deadline_s=message.deadline_s,
                    on_settled=on_settled,
                    priority=message.priority,
                    tenant=message.tenant if restricted is None else restricted.tenant(message.tenant),
                )
            except Exception:  # the engine promises not to; if it does, that must cost one request, not a connection
                self._settle_failed(request_id, "submit")
            else:
                if request_id in in_flight:
                    in_flight[request_id] = ticket

    def _handle(self, message: messages.Message | ProtocolError) -> None:
        match message:
            case messages.BadInfer(id=request_id, error=error):
                if request_id in self._in_flight:
                    self._fail(ProtocolError(f"request id {request_id} is in flight already"))
                else:
                    self._refuse(request_id, error)
            case messages.Cancel(id=request_id):
                ticket = self._in_flight.get(request_id)
                if ticket is not None:
                    self._engine.cancel(ticket)
            case messages.StatusQuery(id=query_id):
                if self._identity.observe:
                    self._report(query_id, "status", self._engine.status)
                else:
                    self._refuse(query_id, self._identity.cannot_observe())
            case messages.DescribeQuery(id=query_id):
                self._report(query_id, "describe", self._engine.describe, self._visible)
            case messages.Hello():
                self._welcome(message)
            case ProtocolError():
                self._fail(message)
            case _:
                raise AssertionError(f"the decoder let a {type(message).__name__} through to the server")

    def _welcome(self, hello: messages.Hello) -> None:
        self._stop_timer()
        common = set(hello.versions) & set(native.VERSIONS)
        if not common:
            self._fail(
                VersionMismatch(
                    f"{hello.agent!r} speaks versions {list(hello.versions)} of the native protocol, "
                    f"this server {list(native.VERSIONS)}; upgrade the older of the two"
                )
            )
            return
        try:
            self._become(self._access.identify_token(hello.token))
        except Unauthenticated as error:
            self._fail(error)
            return
        self._peer_max_frame_bytes = hello.max_frame_bytes
        self._state = _State.SERVING
        limits = self._limits
        self._send(
            native.encode(messages.Welcome(max(common), limits.max_frame_bytes, limits.max_in_flight, self._agent))
        )

    def _become(self, identity: Identity) -> None:
        self._identity = identity
        self._restricted = identity if identity.name or "*" not in identity.infer else None

    def _visible(self, models: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The models that it may know of: all, or those that it may use."""
        if self._identity.observe:
            return models
        return [model for model in models if self._identity.may_infer(model["name"])]

    def _report(
        self, query_id: int, name: str, read: Callable[[], Any], cut: Callable[[Any], Any] | None = None
    ) -> None:
        self._queries += 1
        if self._queries > _QUERIES_PER_TURN:
            text = f"more than {_QUERIES_PER_TURN} queries at a time on one connection; wait for answers before more"
            self._send_failure(messages.Failure(query_id, "too_many_in_flight", text, {}))
            return
        try:
            value = self._flusher.once_per_turn(name, read)
            if cut is not None:
                value = cut(value)
            parts = native.encode(messages.Report(query_id, value), max_frame_bytes=self._peer_max_frame_bytes)
        except Exception:
            _log.exception("a query failed")
            self._send_failure(messages.Failure(query_id, "server_error", "the query failed; see the log", {}))
        else:
            self._send(parts)

    def _refuse(self, request_id: int, error: InferenceError) -> None:
        self._send_failure(native.failure(request_id, error))

    # Answers

    def _settle(self, request_id: int, outcome: Outputs | InferenceError) -> None:
        """The engine's answer. Not for a request that was answered otherwise, nor for a peer that is gone."""
        if self._in_flight.pop(request_id, None) is None:
            return
        if self._large_bytes:
            self._large_bytes.pop(request_id, None)
            self._throttle()
        if self._state is _SERVING:
            try:
                if isinstance(outcome, InferenceError):
                    self._refuse(request_id, outcome)
                else:
                    self._send(native.encode_result(request_id, outcome, max_frame_bytes=self._peer_max_frame_bytes))
            except (Unencodable, FrameTooLarge) as error:
                self._send_failure(messages.Failure(request_id, "server_error", f"the answer: {error}", {}))
        if self._draining:
            self._on_settled()

    def _settle_failed(self, request_id: int, call: str) -> None:
        _log.exception("the engine's %s raised", call)
        if request_id in self._in_flight:
            self._forget(request_id)
            text = "the server failed on this request; its log says more"
            self._send_failure(messages.Failure(request_id, "server_error", text, {}))

    def _forget(self, request_id: int) -> None:
        del self._in_flight[request_id]
        if self._large_bytes.pop(request_id, None) is not None:
            self._throttle()

    def _cancel_all(self) -> None:
        for request_id, ticket in list(self._in_flight.items()):
            self._engine.cancel(ticket)
            self._in_flight.pop(request_id, None)
        self._large_bytes.clear()

    def _send_failure(self, failure: messages.Failure) -> None:
        self._send(native.encode_failure(failure, max_frame_bytes=self._peer_max_frame_bytes))

    def _send(self, parts: list[Buffer]) -> None:
        self._out += parts
        if not self._is_flush_due:
            self._is_flush_due = True
            self._flusher.add(self)

    def flush(self) -> None:
        """Writes what waits to be written."""
        self._is_flush_due = False
        self._queries = 0
        parts, self._out = self._out, []
        if not parts or self._transport.is_closing():
            return
        write_parts(self._transport, parts)

    # The connection itself

    def _throttle(self) -> None:
        pause = self._is_writing_paused or sum(self._large_bytes.values()) > self._limits.max_in_flight_bytes
        if pause == self._is_reading_paused or self._transport.is_closing():
            return
        self._is_reading_paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _fail(self, error: native.Ending) -> None:
        """Tells the peer why, and waits a little for it to read that: closing at once could destroy the message."""
        _log.info("ending the connection of %s: %s", self._transport.get_extra_info("peername") or "a peer", error)
        self._send_failure(native.connection_failure(error))
        self._state = _State.FAILED
        self._stop_timer()
        self._cancel_all()
        self.flush()
        if not self._transport.is_closing():
            if self._is_reading_paused:  # what still comes is ignored, but the peer's end must be seen
                self._transport.resume_reading()
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:  # TLS has no half-closed connections, but its end waits for the peer's
                self._transport.close()
            self._timer = self._loop.call_later(self._limits.linger_s, self._transport.abort)

    def _handshake_expired(self) -> None:
        self._fail(ProtocolError(f"no hello within {self._limits.handshake_timeout_s} s"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
