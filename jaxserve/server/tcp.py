"""Listening on TCP."""

import asyncio
from collections.abc import Callable

from jaxserve.errors import ConfigError


async def listen_tcp(
    make: Callable[[], asyncio.BaseProtocol], host: str, port: int, *, backlog: int
) -> tuple[asyncio.Server, int]:
    """Listens on the loop that is running; the port, too, which was chosen where `port` is 0.

    Raises:
        ConfigError: it cannot be listened on.
    """
    try:
        listener = await asyncio.get_running_loop().create_server(make, host, port, backlog=backlog)
    except (OSError, OverflowError) as error:
        raise cannot_listen(host, port, error) from error
    return listener, listener.sockets[0].getsockname()[1]


def cannot_listen(host: str, port: int, error: Exception) -> ConfigError:
    """What whoever runs the server is told."""
    return ConfigError(
        f"cannot listen on {in_url(host)}:{port}: {error}; choose another port, or 0 for any that is free"
    )


def in_url(host: str) -> str:
    """A host as it stands before a colon and a port."""
    return f"[{host}]" if ":" in host else host
