"""An event loop whose clock jumps to the next timer, so that tests of time take none."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Deadlock(RuntimeError):
    """Nothing is ready and no timer is set, so nothing can ever happen."""


class JumpingLoop(asyncio.SelectorEventLoop):
    """Runs what is ready; then jumps to the next timer. No sockets; what is for a thread is run at once."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0

    def time(self) -> float:
        return self._now_s

    @property
    def timers(self) -> list[float]:
        """When the timers that are set are due, in no order."""
        return [handle.when() for handle in self._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> "asyncio.Future[T]":
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done

    def _run_once(self) -> None:
        timers = self.timers
        if not self._ready:  # type: ignore[attr-defined]
            if not timers:
                raise Deadlock("every task waits for something that nothing will bring")
            self._now_s = max(self._now_s, min(timers))
        self._clock_resolution = math.ulp(self._now_s)  # a timer is run where its time is not after now, and no sooner
        super()._run_once()  # type: ignore[misc]


def run(main: Coroutine[Any, Any, T]) -> T:
    """Like `asyncio.run`, on a jumping loop."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main)


async def until(when_s: float) -> None:
    """Waits until the loop's clock says exactly `when_s`; returns at once where it is later."""
    loop = asyncio.get_running_loop()
    if loop.time() < when_s:
        reached: asyncio.Future[None] = loop.create_future()
        loop.call_at(when_s, reached.set_result, None)
        await reached
