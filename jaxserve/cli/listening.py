"""Looks, before models are loaded, whether an address can be listened on."""

import contextlib
import errno
import resource
import socket

from jaxserve.errors import ConfigError


def check_address(host: str, port: int, *, flag: str = "--port") -> None:
    """Finds out before models are loaded that the address cannot be listened on.

    Args:
        host: the address.
        port: the port.
        flag: that gives another port, for the message.

    Raises:
        ConfigError: it cannot.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"cannot listen on {host}:{port}; a port is from 1 to 65535, or 0 for any that is free")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: there is no such host ({error}); choose another --host, such as "
            f"127.0.0.1, or 0.0.0.0 for every address of this machine"
        ) from error
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        mend = "another --host" if error.errno == errno.EADDRNOTAVAIL else f"another {flag}, or 0 for any"
        raise ConfigError(f"cannot listen on {host}:{port} ({error}); choose {mend}") from error


def free_or(port: int | None, default: int, host: str) -> int:
    """The port that was asked for; else the default one or, where something listens there, any that is free."""
    if port is not None:
        return port
    with contextlib.suppress(ConfigError):
        check_address(host, default)
        return default
    return 0


def raise_file_limit() -> None:
    """Lets this process open as many files, and so connections, as it may: the usual 1024 are fewer than it serves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS says "infinity" and means less
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
