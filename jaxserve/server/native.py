"""The native server: listens on TCP and Unix sockets, and ends in order."""

import asyncio
import contextlib
import functools
import ssl
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from jaxserve.errors import ConfigError
from jaxserve.protocols.envelopes import SMALLEST_FRAME_LIMIT_BYTES
from jaxserve.protocols.native import AGENT, DEFAULT_MAX_FRAME_BYTES, LARGEST_FRAME_BYTES
from jaxserve.server.access import Access
from jaxserve.server.connection import Connection, Flusher, Limits
from jaxserve.server.handshake import Handshake
from jaxserve.server.seam import InferenceEngine
from jaxserve.server.tcp import in_url, listen_tcp
from jaxserve.server.unix import UnixSocket

_BACKLOG = 1024

_SHORTEST_SHUTDOWN_S = 0.05  # of TLS; it may not be 0

# So many at a time of those who are one too many are told so; more of them are cut off without a word.
_TURNED_AWAY_AT_ONCE = 64


class NativeServer:
    """Serves an engine over the native protocol, on the loop that is running; an async context manager.

    It works on asyncio's own loop and, faster, on uvloop: `asyncio.Runner(loop_factory=loop_factory())` with
    `jaxserve.protocols.loop.loop_factory` picks the best of the platform. Leaving the context ends the server at once;
    `drain` first lets the requests in flight finish.

    Args:
        engine: what serves the requests; it must be running, and it must outlive the server.
        host: where to listen for TCP.
        port: the TCP port, 0 for one that is free (see `port`), None for no TCP.
        path: a Unix socket to listen on as well. A stale socket of that name is replaced (see `check_unix_path`);
            at the end it is removed, unless something else is there by then.
        access: who may come in, and what for; by default everybody, for everything.
        tls: makes the TCP port speak TLS, and nothing else.
        max_connections: that are open at a time; None for as many as the system allows.
        max_connections_per_client: of these, from one address; None for as many. Unix sockets do not count.
        max_frame_bytes: the largest frame that is read.
        max_in_flight: requests that one connection may have unanswered; clients learn it in the handshake.
        max_in_flight_bytes: a connection's reading stops while large requests of more than this are unanswered.
        write_high_water_bytes: a connection's reading stops while more than this waits for its peer.
        handshake_timeout_s: seconds that a peer has to say hello.
        linger_s: seconds that peers have, at the end, to close their side.

    Raises:
        ConfigError: settings that make no sense, here; an address that cannot be listened on, on entering.
    """

    def __init__(
        self,
        engine: InferenceEngine,
        *,
        host: str = "127.0.0.1",
        port: int | None = 0,
        path: str | Path | None = None,
        access: Access | None = None,
        tls: ssl.SSLContext | None = None,
        max_connections: int | None = None,
        max_connections_per_client: int | None = None,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        max_in_flight: int = 1024,
        max_in_flight_bytes: int = 4 * DEFAULT_MAX_FRAME_BYTES,
        write_high_water_bytes: int = 2**20,
        handshake_timeout_s: float = 10.0,
        linger_s: float = 1.0,
    ) -> None:
        if port is None and path is None:
            raise ConfigError("a server needs somewhere to listen: give it a port, a path, or both")
        if not SMALLEST_FRAME_LIMIT_BYTES <= max_frame_bytes <= LARGEST_FRAME_BYTES:
            raise ConfigError(
                f"max_frame_bytes={max_frame_bytes}; it must be from {SMALLEST_FRAME_LIMIT_BYTES} "
                f"to {LARGEST_FRAME_BYTES}"
            )
        for name, value in (
            ("max_in_flight", max_in_flight),
            ("max_connections", max_connections),
            ("max_connections_per_client", max_connections_per_client),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}; it must be 1 or more")
        self._engine = engine
        self._host = host
        self._requested_port = port
        self._unix = None if path is None else UnixSocket(path)
        self._access = Access() if access is None else access
        self._tls = tls
        self._max_connections = max_connections
        self._max_connections_per_client = max_connections_per_client
        self._limits = Limits(
            max_frame_bytes=max_frame_bytes,
            max_in_flight=max_in_flight,
            max_in_flight_bytes=max_in_flight_bytes,
            write_high_water_bytes=write_high_water_bytes,
            handshake_timeout_s=handshake_timeout_s,
            linger_s=linger_s,
        )
        self._listeners: list[asyncio.Server] = []
        self._connections: set[Connection] = set()
        self._turned_away: set[Connection] = set()  # of these, those that are one too many
        self._handshakes: set[Handshake] = set()  # connections to be, over TLS
        self._by_client: Counter[str] = Counter()
        self._unwatch: Callable[[], None] | None = None
        self._changed = asyncio.Event()  # a connection went, or a request was settled while draining
        self._draining = False
        self.port: int | None = None
        self.refused_connections = 0
        """Connections that were ended at once, because there were too many."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where clients find it, in the form that they take: `host:port`, `unix:/path`."""
        addresses: list[str] = []
        if self.port is not None:
            addresses.append(f"{in_url(self._host)}:{self.port}")
        if self._unix is not None:
            addresses.append(f"unix:{self._unix.path}")
        return tuple(addresses)

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._connections) + len(self._handshakes)

    @property
    def in_flight(self) -> int:
        """Requests taken and not answered, over all connections."""
        return sum(connection.in_flight for connection in self._connections)

    async def __aenter__(self) -> Self:
        self._flusher = Flusher()
        try:
            if self._requested_port is not None:
                await self._listen_tcp(self._requested_port)
            if self._unix is not None:
                loop = asyncio.get_running_loop()
                self._listeners.append(await self._unix.listen(loop, self._make_connection, backlog=_BACKLOG))
        except BaseException:
            self._close_listeners()
            await self._stop_listening()
            raise
        self._unwatch = self._access.watch(self._identify_again)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain(0.0)

    async def drain(self, grace_s: float) -> None:
        """Ends in order: no new connections, no new requests, `grace_s` seconds for those in flight.

        What is still in flight then is answered with `EngineStopped`. May be called again, with less patience, while or
        after a first call runs or was cancelled.
        """
        self._draining = True
        self._close_listeners()
        for handshake in tuple(self._handshakes):
            handshake.abort()
        for connection in tuple(self._connections):
            connection.say_goodbye(grace_s=grace_s, reason="the server is draining")
        await self._until(lambda: self.in_flight == 0, timeout_s=grace_s)
        for connection in tuple(self._connections):
            connection.stop_in_flight()
        # A request that crossed our goodbye on the way is refused while its client has not closed yet, so that the
        # client knows that it was not served.
        await self._until(lambda: not self._connections, timeout_s=self._limits.linger_s)
        for connection in tuple(self._connections):
            connection.close()
        await self._until(lambda: not self._connections, timeout_s=self._limits.linger_s)
        for connection in tuple(self._connections):
            connection.abort()
        while self._connections or self._handshakes:
            self._changed.clear()
            await self._changed.wait()
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        await self._stop_listening()

    async def _until(self, reached: Callable[[], bool], *, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not reached():
                    self._changed.clear()
                    await self._changed.wait()

    async def _listen_tcp(self, port: int) -> None:
        make = self._make_connection if self._tls is None else self._make_handshake
        listener, self.port = await listen_tcp(make, self._host, port, backlog=_BACKLOG)
        self._listeners.append(listener)

    def _close_listeners(self) -> None:
        if self._unix is not None:
            self._unix.unlink()
        for listener in self._listeners:
            listener.close()

    async def _stop_listening(self) -> None:
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            await listener.wait_closed()

    def _make_connection(self, on_open: Callable[[Connection], None] | None = None) -> Connection:
        return Connection(
            self._engine,
            self._limits,
            self._flusher,
            access=self._access,
            agent=AGENT,
            on_open=on_open or self._opened,
            on_close=self._closed,
            on_settled=self._changed.set,
        )

    def _make_handshake(self) -> Handshake:
        assert self._tls is not None
        return Handshake(
            self._tls,
            lambda handshake: self._make_connection(on_open=functools.partial(self._shaken_and_opened, handshake)),
            timeout_s=self._limits.handshake_timeout_s,
            shutdown_s=max(self._limits.linger_s, _SHORTEST_SHUTDOWN_S),
            on_open=self._begun,
            on_close=self._shaken,
        )

    def _begun(self, handshake: Handshake) -> None:
        if self._draining or self._too_many(handshake.client) is not None:
            self.refused_connections += 1
            handshake.abort()  # without a word: there are no keys yet to say it with
        self._handshakes.add(handshake)
        self._by_client[handshake.client] += 1

    def _shaken(self, handshake: Handshake) -> None:
        if handshake in self._handshakes:
            self._handshakes.remove(handshake)
            self._leave(handshake.client)
            self._changed.set()

    def _shaken_and_opened(self, handshake: Handshake, connection: Connection) -> None:
        self._shaken(handshake)
        self._opened(connection)

    def _opened(self, connection: Connection) -> None:
        reason = self._too_many(connection.client)
        self._connections.add(connection)
        if reason is not None:
            self.refused_connections += 1
            self._turned_away.add(connection)
            if len(self._turned_away) <= _TURNED_AWAY_AT_ONCE:
                connection.turn_away(reason)
            else:
                connection.abort()
            return
        self._by_client[connection.client] += 1
        if self._draining:  # accepted in the turn of the loop in which the listener was closed
            connection.say_goodbye(grace_s=0.0, reason="the server is draining")

    def _closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if connection in self._turned_away:
            self._turned_away.remove(connection)
        else:
            self._leave(connection.client)
        self._changed.set()

    def _leave(self, client: str) -> None:
        self._by_client[client] -= 1
        if not self._by_client[client]:
            del self._by_client[client]

    def _too_many(self, client: str) -> str | None:
        """Why the connection that has just come may not stay."""
        most, most_of_client = self._max_connections, self._max_connections_per_client
        if most is not None and self.connections - len(self._turned_away) >= most:
            return f"the server has {most} connections, as many as it may; try again later"
        if most_of_client is not None and client and self._by_client[client] >= most_of_client:
            return f"{client} has {most_of_client} connections to the server, as many as it may; close some"
        return None

    def _identify_again(self) -> None:
        for connection in tuple(self._connections):
            connection.identify_again()
