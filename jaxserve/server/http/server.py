"""The HTTP server: listens on TCP and, for administration, on a Unix socket of its own; and ends in order."""

import asyncio
import contextlib
import functools
import logging
import ssl
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import HttpVersion10, HttpVersion11, web
from multidict import istr

from jaxserve.errors import EngineStopped, JaxserveError
from jaxserve.server.access import Access
from jaxserve.server.handshake import Handshake
from jaxserve.server.http.answers import error_parts, refusal, request_id_of
from jaxserve.server.http.body import Budget, Refused
from jaxserve.server.http.connection import Connection, Connections
from jaxserve.server.http.exchange import Exchange, Route, Site
from jaxserve.server.http.routes import Routes
from jaxserve.server.identity import OPERATOR
from jaxserve.server.service import Service
from jaxserve.server.tcp import in_url, listen_tcp
from jaxserve.server.unix import UnixSocket

_log = logging.getLogger("jaxserve.http")
_REQUEST_ID = istr("X-Request-Id")
_UPGRADE = istr("Upgrade")
_BACKLOG = 1024
_VERSIONS = (HttpVersion10, HttpVersion11)
_LOOK_EVERY_S = 1.0
_TLS_SHUTDOWN_S = 1.0
_OPENAI = "/v1/"
"""Below it, unknown paths are asked for by OpenAI's clients: those of TensorFlow Serving know `/v1/models` only."""


class HttpServer:
    """Serves the Open Inference Protocol, plain JSON, the live page and metrics; an async context manager.

    Args:
        service: what serves the requests; its engine must outlive the server.
        site: what people and monitoring look at.
        host: where to listen.
        port: the TCP port, 0 for one that is free (see `port`), None for no TCP.
        tls: to be spoken on the TCP port; None for plain HTTP.
        admin_path: a Unix socket whose clients may do everything; only this user can reach it.

    Raises:
        ConfigError: an address that cannot be listened on, on entering.
    """

    def __init__(
        self,
        service: Service,
        site: Site,
        *,
        host: str = "127.0.0.1",
        port: int | None = 0,
        tls: ssl.SSLContext | None = None,
        admin_path: str | Path | None = None,
    ) -> None:
        self._service = service
        self._site = site
        self._host = host
        self._requested_port = port
        self._tls = tls
        self._admin = None if admin_path is None else UnixSocket(admin_path, mode=0o600)
        self._handshakes: set[Handshake] = set()
        self._routes = Routes()
        self._budget = Budget(service.limits.max_buffered_bytes)
        self._listeners: list[asyncio.Server] = []
        self._look: asyncio.TimerHandle | None = None
        self._handling = 0
        self._idle = asyncio.Event()
        self._draining = False
        self._connections: Connections
        self.port: int | None = None
        self.answered: Counter[int] = Counter()
        """Requests by the status that they were answered with."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where clients find it."""
        scheme = "http" if self._tls is None else "https"
        found = [] if self.port is None else [f"{scheme}://{in_url(self._host)}:{self.port}"]
        return (*found, *([] if self._admin is None else [f"unix:{self._admin.path}"]))

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return self._connections.total

    @property
    def refused_connections(self) -> int:
        """Connections that were closed at once, because there were too many."""
        return self._connections.refused

    @property
    def in_flight(self) -> int:
        """Requests that are being answered, but for those who look at the live page."""
        return self._handling - self._site.feed.viewers

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        access = self._service.access
        self._connections = Connections(
            self._handle, limits=self._service.limits, access=access, admin_access=Access(everybody=OPERATOR)
        )
        try:
            if self._requested_port is not None:
                await self._listen_tcp(self._requested_port)
            if self._admin is not None:
                admin = functools.partial(self._connections, is_admin=True)
                self._listeners.append(await self._admin.listen(loop, admin, backlog=_BACKLOG))
        except BaseException:
            await self._stop_listening()
            raise
        self._look = loop.call_later(_LOOK_EVERY_S, self._look_at_connections)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain(0.0)

    async def _listen_tcp(self, port: int) -> None:
        make = self._connections if self._tls is None else self._make_handshake
        listener, self.port = await listen_tcp(make, self._host, port, backlog=_BACKLOG)
        self._listeners.append(listener)

    def _make_handshake(self) -> Handshake:
        """What becomes a connection once TLS stands; until then it is counted here."""
        assert self._tls is not None
        return Handshake(
            self._tls,
            self._connection_after,
            timeout_s=self._service.limits.head_timeout_s,
            shutdown_s=_TLS_SHUTDOWN_S,
            on_open=self._shaking,
            on_close=self._shaken,
        )

    def _shaking(self, handshake: Handshake) -> None:
        self._handshakes.add(handshake)
        if self._connections.admit(handshake.client) is not None or self._draining:
            handshake.abort()  # without a word: there are no keys yet to say it with

    def _connection_after(self, handshake: Handshake) -> Connection:
        return self._connections(on_open=lambda: self._shaken(handshake))  # from then on it counts as a connection

    def _shaken(self, handshake: Handshake) -> None:
        if handshake in self._handshakes:
            self._handshakes.remove(handshake)
            self._connections.release(handshake.client)
            self._idle.set()

    async def drain(self, grace_s: float) -> None:
        """Ends in order: no new connections, no new requests, `grace_s` seconds for those in flight.

        What is still in flight then is answered with 503 `engine_stopped`. May be called again, with less patience.
        """
        self._draining = True
        for handshake in tuple(self._handshakes):
            handshake.abort()
        self._close_listeners()
        self._connections.close_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._until_idle(but_viewers=True)
        self._service.stop_in_flight("http")
        self._site.feed.end()  # who looks at the live page has seen the rest finish
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):  # for those answers to be taken
                await self._until_idle()
        await self._connections.shutdown(0.1)
        while self._handshakes:
            self._idle.clear()
            await self._idle.wait()
        if self._look is not None:
            self._look.cancel()
            self._look = None
        await self._stop_listening()

    async def _until_idle(self, *, but_viewers: bool = False) -> None:
        while self.in_flight if but_viewers else self._handling:
            self._idle.clear()
            await self._idle.wait()

    def _close_listeners(self) -> None:
        if self._admin is not None:
            self._admin.unlink()
        for listener in self._listeners:
            listener.close()

    async def _stop_listening(self) -> None:
        self._close_listeners()
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            await listener.wait_closed()

    def _look_at_connections(self) -> None:
        loop = asyncio.get_running_loop()
        self._connections.look(loop.time())
        self._look = loop.call_later(_LOOK_EVERY_S, self._look_at_connections)

    # ------------------------------------------------------------------------------------------------------ requests

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers one request, whatever it is."""
        if request.version not in _VERSIONS:  # aiohttp would answer in the version that it was asked in
            raise ConnectionResetError("the client speaks another HTTP")
        self._handling += 1
        route: Route | None = None
        exchange: Exchange | None = None
        try:
            headers = request.headers
            request_id = request_id_of(headers.get(_REQUEST_ID)) or self._service.new_request_id()
            with self._budget.share() as share:
                try:
                    path = request.raw_path
                    if path[:1] != "/":  # a proxy may send the whole URL [RFC 9112, 3.2.2]
                        path = request.rel_url.raw_path
                    route = self._routes.find(path)
                    if route is None:
                        raise Refused(404, "no_such_path", f"there is nothing at {path!r:.200}")
                    handler = route.handlers.get(request.method)
                    if handler is None:
                        raise _wrong_method(request.method, route)
                    if self._draining:
                        raise EngineStopped("the server is draining; the request was not taken", refused=1)
                    exchange = Exchange(self._service, self._site, request, route, request_id=request_id, share=share)
                    response = await handler(exchange)
                except JaxserveError as error:
                    response = self._refuse(error, route, request.raw_path)
                    if not error.is_told:
                        self._service.turned_away["http", error_parts(error)[1]] += 1
                        _tell(error, response.status, request, exchange.request_id if exchange else request_id)
                except ConnectionError:
                    raise
                except Exception:
                    _log.exception("a request failed", extra={"request_id": request_id, "path": request.raw_path[:200]})
                    failed = JaxserveError("the server failed for a reason that is its own; its log says more")
                    response = self._refuse(failed, route, request.raw_path)
            if self._draining or _UPGRADE in request.headers:  # aiohttp may lose what came right behind one
                response.force_close()
            if not response.prepared:
                response.headers["X-Request-Id"] = request_id if exchange is None else exchange.request_id
            self.answered[response.status] += 1
            return response
        except asyncio.CancelledError:
            self.answered[499] += 1  # its client has gone
            raise
        finally:
            self._handling -= 1
            self._idle.set()

    def _refuse(self, error: JaxserveError, route: Route | None, path: str) -> web.Response:
        return refusal(error, is_openai=path.startswith(_OPENAI) if route is None else route.is_openai)


def _wrong_method(method: str, route: Route) -> Refused:
    allowed = ", ".join(route.handlers)
    return Refused(
        405, "wrong_method", f"{method[:20]} is not possible here; use {allowed}", headers={"Allow": allowed}
    )


def _tell(error: JaxserveError, status: int, request: web.BaseRequest, request_id: str) -> None:
    """Logs a request that was refused before it was one of a model; who knocks without a key is of more interest."""
    code = error_parts(error)[1]
    extra = {"status": status, "path": request.raw_path[:200], "client": request.remote or "", "why": str(error)[:500]}
    level = logging.WARNING if status in (401, 403) else logging.INFO
    _log.log(level, f"request refused: {code}", extra={"request_id": request_id, **extra})
