"""The native server: listens on TCP and Unix sockets, and ends in order."""

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from jaxserve.errors import ConfigError
from jaxserve.protocols.envelopes import SMALLEST_FRAME_LIMIT_BYTES
from jaxserve.protocols.native import AGENT, DEFAULT_MAX_FRAME_BYTES, LARGEST_FRAME_BYTES
from jaxserve.server.connection import Connection, Flusher, Limits
from jaxserve.server.seam import InferenceEngine

_BACKLOG = 1024


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
        if max_in_flight < 1:
            raise ConfigError(f"max_in_flight={max_in_flight}; it must be 1 or more")
        self._engine = engine
        self._host = host
        self._requested_port = port
        self._path = None if path is None else Path(path)
        self._limits = Limits(
            max_frame_bytes=max_frame_bytes,
            max_in_flight=max_in_flight,
            max_in_flight_bytes=max_in_flight_bytes,
            write_high_water_bytes=write_high_water_bytes,
            handshake_timeout_s=handshake_timeout_s,
            linger_s=linger_s,
        )
        self._listeners: list[asyncio.Server] = []
        self._bound: tuple[int, int] | None = None  # device and inode of the Unix socket that is ours
        self._connections: set[Connection] = set()
        self._changed = asyncio.Event()  # a connection went, or a request was settled while draining
        self._draining = False
        self.port: int | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where clients find it, in the form that they take: `host:port`, `unix:/path`."""
        addresses: list[str] = []
        if self.port is not None:
            host = f"[{self._host}]" if ":" in self._host else self._host
            addresses.append(f"{host}:{self.port}")
        if self._path is not None:
            addresses.append(f"unix:{self._path}")
        return tuple(addresses)

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    @property
    def in_flight(self) -> int:
        """Requests taken and not answered, over all connections."""
        return sum(connection.in_flight for connection in self._connections)

    async def __aenter__(self) -> Self:
        self._flusher = Flusher()
        try:
            if self._requested_port is not None:
                await self._listen_tcp(self._requested_port)
            if self._path is not None:
                await self._listen_unix(self._path)
        except BaseException:
            self._close_listeners()
            await self._stop_listening()
            raise
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
        while self._connections:
            self._changed.clear()
            await self._changed.wait()
        await self._stop_listening()

    async def _until(self, reached: Callable[[], bool], *, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not reached():
                    self._changed.clear()
                    await self._changed.wait()

    async def _listen_tcp(self, port: int) -> None:
        try:
            listener = await asyncio.get_running_loop().create_server(
                self._make_connection, self._host, port, backlog=_BACKLOG
            )
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"cannot listen on {self._host}:{port}: {error}; choose another port, or 0 for any that is free"
            ) from error
        self._listeners.append(listener)
        self.port = listener.sockets[0].getsockname()[1]

    async def _listen_unix(self, path: Path) -> None:
        check_unix_path(path)
        try:
            sock, self._bound = _bind(path)
            listener = await asyncio.get_running_loop().create_unix_server(
                self._make_connection, sock=sock, backlog=_BACKLOG
            )
        except OSError as error:
            raise ConfigError(f"cannot listen on {path}: {error}; choose another path") from error
        self._listeners.append(listener)

    def _close_listeners(self) -> None:
        self._unlink()
        for listener in self._listeners:
            listener.close()

    def _unlink(self) -> None:
        """Removes our socket. Before it is closed: only until then its inode can be nobody else's."""
        bound, self._bound = self._bound, None
        if bound is None or self._path is None:
            return
        with contextlib.suppress(OSError):  # gone already, with its directory perhaps
            status = self._path.lstat()
            if (status.st_dev, status.st_ino) == bound:
                self._path.unlink()

    async def _stop_listening(self) -> None:
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            await listener.wait_closed()

    def _make_connection(self) -> Connection:
        return Connection(
            self._engine,
            self._limits,
            self._flusher,
            agent=AGENT,
            on_open=self._opened,
            on_close=self._closed,
            on_settled=self._changed.set,
        )

    def _opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        if self._draining:  # accepted in the turn of the loop in which the listener was closed
            connection.say_goodbye(grace_s=0.0, reason="the server is draining")

    def _closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._changed.set()


def check_unix_path(path: str | Path) -> None:
    """Looks whether a server could listen on a Unix socket at `path`. `NativeServer` does so itself, but late.

    Raises:
        ConfigError: the directory does not exist, `path` is something else than a socket, or something listens there.
    """
    path = Path(path)
    try:
        if not path.parent.is_dir():
            raise ConfigError(
                f"cannot listen on {path}: there is no directory {path.parent}; make it, or choose another path"
            )
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"cannot listen on {path}: {error}; choose another path") from error
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"cannot listen on {path}: it exists and is not a socket; choose another path")
    if not _is_dead(path):
        raise ConfigError(f"cannot listen on {path}: it is in use by another server; choose another path")


def _is_dead(path: Path) -> bool:
    """Whether nothing listens on a socket. Where that cannot be told (no permission, another kind) it is alive."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # else it would wait while the other's backlog is full
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            return False
        return False


def _bind(path: Path) -> tuple[socket.socket, tuple[int, int]]:
    """A socket bound to `path`, with the device and inode that it got there; in place of a dead one, never of another.

    The loop is not asked to do it, for uvloop puts its socket in the place of whatever socket is there.
    """
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode) and _is_dead(path):
            path.unlink()
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(os.fspath(path))
        status = path.lstat()
    except BaseException:
        sock.close()
        raise
    return sock, (status.st_dev, status.st_ino)
