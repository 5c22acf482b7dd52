"""Tells the service manager how this process is, by systemd's notification protocol [sd_notify(3)].

A datagram of lines `NAME=value` to the Unix socket that `NOTIFY_SOCKET` names. Where it names none, nothing happens,
and where nobody listens there, neither: to be watched is not what a server is for.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncGenerator, Callable

from jaxserve.config import ServiceManager, service_manager

_log = logging.getLogger("jaxserve.notify")


class Notifier:
    """Sends notifications.

    Args:
        manager: whom to tell; None for nobody.
    """

    def __init__(self, manager: ServiceManager | None) -> None:
        self._manager = manager

    @classmethod
    def from_environment(cls) -> "Notifier":
        """For the manager that started this process, if one did."""
        return cls(service_manager())

    def ready(self, status: str = "") -> None:
        """It serves; also after `reloading`, once that is done."""
        self._send("READY=1", *_status(status))

    def reloading(self, status: str = "") -> None:
        """It reads its files again; `ready` follows."""
        now_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_usec}", *_status(status))

    def stopping(self, status: str = "") -> None:
        """It drains, and then ends."""
        self._send("STOPPING=1", *_status(status))

    def status(self, status: str) -> None:
        """What it does, in a few words for people."""
        self._send(*_status(status))

    @contextlib.asynccontextmanager
    async def watched(self, is_well: Callable[[], bool] = lambda: True) -> AsyncGenerator[None]:
        """While it is entered, feeds the watchdog twice in its time as long as the loop turns and `is_well` says so."""
        period_s = None if self._manager is None else self._manager.watchdog_s
        if period_s is None:
            yield
            return
        feeding = asyncio.create_task(self._feed(period_s / 2.0, is_well), name="jaxserve watchdog")
        try:
            yield
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])
        if not feeding.cancelled():
            feeding.result()  # a fault of `is_well` that must not stay unseen

    async def _feed(self, pause_s: float, is_well: Callable[[], bool]) -> None:
        while True:
            if is_well():
                self._send("WATCHDOG=1")
            await asyncio.sleep(pause_s)

    def _send(self, *lines: str) -> None:
        if self._manager is None or not lines:
            return
        path = self._manager.socket
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.connect(f"\0{path[1:]}" if path.startswith("@") else path)
                sock.send("\n".join(lines).encode())
        except OSError as error:
            _log.warning("the service manager cannot be told %s: %s", lines[0], error)


def _status(text: str) -> list[str]:
    return [f"STATUS={' '.join(text.split())}"] if text else []
