"""The beginning of a connection over TLS, until both ends have agreed on keys.

A loop that listens with TLS does that by itself, but then nobody owns it: who connects and says nothing counts nowhere,
and a server may end before its handshakes.
"""

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any

_log = logging.getLogger("jaxserve.server")


class Handshake(asyncio.Protocol):
    """A peer that has connected. Its socket is taken from the loop, and given back to it with TLS.

    Args:
        context: the server's.
        make_protocol: makes what the loop calls once TLS stands.
        timeout_s: seconds that the handshake may take.
        shutdown_s: seconds that the end of TLS may take, much later.
        on_open: called with this when the peer has connected.
        on_close: called with this when the handshake is over; after `connection_made` of the other, if it succeeded.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        make_protocol: Callable[["Handshake"], asyncio.Protocol],
        *,
        timeout_s: float,
        shutdown_s: float,
        on_open: Callable[["Handshake"], None],
        on_close: Callable[["Handshake"], None],
    ) -> None:
        self._context = context
        self._make_protocol = make_protocol
        self._timeout_s = timeout_s
        self._shutdown_s = shutdown_s
        self._on_open = on_open
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None
        self._socket: socket.socket | None = None  # until the loop has it
        self.client = ""
        """The address of the host that it comes from."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The loop has accepted the peer."""
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if isinstance(peer, tuple) else ""
        try:
            self._socket = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        except OSError as error:  # no more descriptors, or it has gone already
            _log.warning("a connection of %s is lost: %s", self.client or "a peer", error)
            return
        finally:
            transport.abort()  # pyright: ignore[reportAttributeAccessIssue]  # the connection itself stays
        self._task = self._loop.create_task(self._shake(), name="jaxserve TLS handshake")
        self._task.add_done_callback(self._over)
        self._on_open(self)

    def abort(self) -> None:
        """Ends it at once."""
        if self._task is not None:
            self._task.cancel()

    async def _shake(self) -> None:
        sock, self._socket = self._socket, None
        assert sock is not None
        await self._loop.connect_accepted_socket(
            lambda: self._make_protocol(self),
            sock,
            ssl=self._context,
            ssl_handshake_timeout=self._timeout_s,
            ssl_shutdown_timeout=self._shutdown_s,
        )

    def _over(self, task: asyncio.Task[Any]) -> None:
        if self._socket is not None:
            self._socket.close()
        self._on_close(self)
        try:
            task.result()
        except (asyncio.CancelledError, OSError) as error:  # ended, or the peer is not to be trusted, too slow, or gone
            _log.debug("no TLS with %s: %r", self.client or "a peer", error)
