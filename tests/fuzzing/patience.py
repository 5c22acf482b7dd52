"""How long a fuzzer waits for what comes back on a connection, and from where it connects."""

import asyncio

QUIET_S = 0.04
"""A server that has said nothing for so long waits for more, it is assumed, where nobody can say how much must come."""
PATIENCE_S = 15.0
"""In which an answer must come where one must come."""
_ADDRESSES = 200


class Patience:
    """Ends when it is told to, or where nothing came for some time.

    Args:
        seconds: for which nothing may come.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._over: asyncio.Future[None] = self._loop.create_future()

    def wait(self) -> None:
        """Waits for more, from now on."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._over.done():
            self._timer = self._loop.call_later(self.seconds, self.end)

    def end(self) -> None:
        """Waits for nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._over.done():
            self._over.set_result(None)

    async def over(self) -> None:
        """Waits for its end."""
        await self._over


def local_address(index: int) -> tuple[str, int]:
    """Where the client of an input is: at one of many addresses, each of which has ports of its own."""
    return f"127.0.1.{1 + index % _ADDRESSES}", 0
