"""Unix sockets to listen on: bound in place of a dead one, never of another, and removed at the end."""

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from jaxserve.errors import ConfigError


class UnixSocket:
    """A Unix socket.

    Args:
        path: where. A stale socket of that name is replaced (see `check_unix_path`); at the end it is removed, unless
            something else is there by then.
        mode: who may connect; None for what the umask says.
    """

    def __init__(self, path: str | Path, *, mode: int | None = None) -> None:
        self.path = Path(path)
        self._mode = mode
        self._bound: tuple[int, int] | None = None  # device and inode of the socket that is ours

    async def listen(
        self, loop: asyncio.AbstractEventLoop, make_protocol: Callable[[], asyncio.BaseProtocol], *, backlog: int
    ) -> asyncio.Server:
        """Listens.

        Raises:
            ConfigError: it cannot.
        """
        check_unix_path(self.path)
        try:
            sock, self._bound = _bind(self.path, self._mode)
            return await loop.create_unix_server(make_protocol, sock=sock, backlog=backlog)
        except OSError as error:
            raise ConfigError(f"cannot listen on {self.path}: {error}; choose another path") from error

    def unlink(self) -> None:
        """Removes our socket. Before it is closed: only until then its inode can be nobody else's."""
        bound, self._bound = self._bound, None
        if bound is None:
            return
        with contextlib.suppress(OSError):  # gone already, with its directory perhaps
            status = self.path.lstat()
            if (status.st_dev, status.st_ino) == bound:
                self.path.unlink()


def check_unix_path(path: str | Path) -> None:
    """Looks whether a server could listen on a Unix socket at `path`. `UnixSocket` does so itself, but late.

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


def _bind(path: Path, mode: int | None) -> tuple[socket.socket, tuple[int, int]]:
    """A socket bound to `path`, with the device and inode that it got there; in place of a dead one, never of another.

    The loop is not asked to do it, for uvloop puts its socket in the place of whatever socket is there.
    """
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode) and _is_dead(path):
            path.unlink()
    sock = socket.socket(socket.AF_UNIX)
    try:
        if mode is not None:
            os.fchmod(sock.fileno(), mode)  # before it has a name; on Linux the name gets this mode
        sock.bind(os.fspath(path))
        if mode is not None:
            path.chmod(mode)
        status = path.lstat()
    except BaseException:
        sock.close()
        raise
    return sock, (status.st_dev, status.st_ino)
