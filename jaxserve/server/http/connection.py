"""Connections of the HTTP server: aiohttp's, with bounds on their number and on how long a client may dawdle.

aiohttp closes what is idle between requests, and bounds lines and headers. It does not end a client that sends the head
of a request a byte at a time, or that does not take its answer. Here the server looks at all its connections once a
second; a request pays for that with a few attributes.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import orjson
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_server import Server

from jaxserve.server.access import Access, Memory
from jaxserve.server.http.answers import json_answer
from jaxserve.server.limits import SLOWEST_BYTES_PER_S, Limits

_log = logging.getLogger("jaxserve.http")
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"Retry-After: 1\r\nConnection: close\r\n\r\n%b"
)


class Connection(RequestHandler):
    """One client's connection."""

    __slots__ = ("client", "head_since_s", "identify", "on_open", "paused_bytes", "paused_since_s")

    _manager: "Connections | None"  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        manager: "Connections",
        *,
        access: Access,
        on_open: Callable[[], None] | None,
        **options: Any,
    ) -> None:
        super().__init__(manager, **options)
        self.on_open = on_open
        self.client = ""
        self.identify = Memory(access).identify
        self.head_since_s: float | None = None
        self.paused_since_s: float | None = None
        self.paused_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The loop has accepted the client."""
        assert self._manager is not None
        if self.on_open is not None:
            self.on_open()
        peer = transport.get_extra_info("peername")
        self.client = peer[0] if isinstance(peer, tuple) else ""
        reason = self._manager.admit(self.client)
        self.head_since_s = self._loop.time()
        super().connection_made(transport)
        if reason is not None:
            body = orjson.dumps({"error": reason, "code": "too_many_connections"})
            cast(asyncio.Transport, transport).write(_FULL % (len(body), body))
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone."""
        if self._manager is not None:
            self._manager.release(self.client)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The client has sent something."""
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            self.head_since_s = None
        elif self.head_since_s is None and self._waiter is not None and not self._waiter.done():  # for a request
            self.head_since_s = self._loop.time()

    def pause_writing(self) -> None:
        """The client does not take its answer as fast as it comes."""
        super().pause_writing()
        self.paused_since_s = self._loop.time()
        self.paused_bytes = self._waiting_bytes()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self.paused_since_s = None

    def resume_reading(self, resume_parser: bool = True) -> None:
        """A body was taken; what was not paused need not be resumed, which takes aiohttp longer than all else of it."""
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    def close_if_idle(self) -> None:
        """Closes a connection on which nothing of a request has come that is not answered."""
        is_answering = self._request_in_progress or self._messages
        if not is_answering and (self.head_since_s is None or self._request_count == 0):
            self.force_close()

    def look(self, now_s: float, limits: Limits) -> None:
        """Ends the connection if its client has had its time."""
        transport = self.transport
        if transport is None:
            return
        if self.head_since_s is not None and now_s - self.head_since_s > limits.head_timeout_s:
            _log.info("a client was too slow", extra={"client": self.client, "at": "head"})
            self.force_close()
        elif self.paused_since_s is not None:
            patience_s = limits.write_timeout_s + self.paused_bytes / SLOWEST_BYTES_PER_S
            if now_s - self.paused_since_s > patience_s:
                _log.info("a client was too slow", extra={"client": self.client, "at": "answer"})
                transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP, and to what nobody foresaw."""
        if isinstance(exc, ConnectionError):
            raise exc  # the client went before its request was read; aiohttp ends the connection
        if isinstance(exc, LineTooLong):
            status, code = 431, "too_long"
            text = f"a line or a header of the request is longer than {self.max_line_size} bytes, which are allowed"
        elif status < 500:
            text, code = (message or "this is no HTTP request").strip().split("\n")[0][:200], "bad_request"
        else:
            text, code = "the server failed for a reason that is its own; its log says more", "server_error"
            _log.error("a request failed", exc_info=exc, extra={"client": self.client})
        if request.writer.output_size > 0:
            raise ConnectionError("part of an answer was sent already")
        response = json_answer({"error": text, "code": code}, status=status)
        response.force_close()
        return response

    def _waiting_bytes(self) -> int:
        return 0 if self.transport is None else self.transport.get_write_buffer_size()


class Connections(Server):
    """All connections of a server, of its public sockets and of the one for administration.

    Args:
        handler: answers requests.
        limits: what clients may cost.
        access: who public clients are.
        admin_access: who those of the administration socket are.
    """

    def __init__(self, handler: Any, *, limits: Limits, access: Access, admin_access: Access) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._limits = limits
        self._access, self._admin_access = access, admin_access
        self._of_client: Counter[str] = Counter()
        self._total = 0
        self.refused = 0

    def __call__(self, *, is_admin: bool = False, on_open: Callable[[], None] | None = None) -> Connection:
        """A connection for the loop to use; `on_open` is called once it stands."""
        return Connection(
            self,
            access=self._admin_access if is_admin else self._access,
            on_open=on_open,
            loop=self._loop,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=self._limits.keepalive_timeout_s,
            lingering_time=2.0,
            max_line_size=self._limits.max_header_bytes,
            max_field_size=self._limits.max_header_bytes,
        )

    def admit(self, client: str) -> str | None:
        """Counts a connection; why it cannot stay, if so."""
        self._total += 1
        self._of_client[client] += 1
        if self._total > self._limits.max_connections:
            reason = f"{self._limits.max_connections} connections are open, as many as may be"
        elif client and self._of_client[client] > self._limits.max_connections_per_client:
            reason = (
                f"{self._limits.max_connections_per_client} connections of {client} are open, as many as it may have"
            )
        else:
            return None
        self.refused += 1
        _log.warning("a connection was refused", extra={"client": client, "why": reason})
        return f"{reason}; close some, or try again later"

    def release(self, client: str) -> None:
        """Counts a connection that has ended."""
        self._total -= 1
        self._of_client[client] -= 1
        if not self._of_client[client]:
            del self._of_client[client]

    @property
    def total(self) -> int:
        """Connections that are open."""
        return self._total

    def close_idle(self) -> None:
        """Closes those that are idle; the others close after their answer."""
        for connection in self.connections:
            if isinstance(connection, Connection):
                connection.close_if_idle()

    def look(self, now_s: float) -> None:
        """Ends the connections whose clients have had their time."""
        for connection in self.connections:
            if isinstance(connection, Connection):
                connection.look(now_s, self._limits)
