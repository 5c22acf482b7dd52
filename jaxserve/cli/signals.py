"""What SIGTERM and Ctrl-C do: the first asks to stop, the second ends the process."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, Self

from jaxserve.cli.show import say


class StopSignals:
    """Listens for SIGTERM and SIGINT on the running loop.

    Until `ready` is called the first signal cancels the task that made this, as there is nothing to drain; from then on
    it lets `asked` go on. The second one begins `at_once` and leaves: a thread inside a compiled program cannot be
    interrupted, and whoever asks twice will not wait for it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._asked = asyncio.Event()
        self._ready = False
        self._leaving = False
        self._at_once: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._last: asyncio.Task[None] | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)

    def ready(self, at_once: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """From now on there is something to drain; `at_once` answers whoever still waits."""
        self._ready = True
        self._at_once = at_once

    async def asked(self) -> None:
        """Waits for the first signal."""
        await self._asked.wait()

    def close(self) -> None:
        """Gives the signals back."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._leaving:
            if self._at_once is not None:
                self._last = self._loop.create_task(self._at_once())
            self._loop.call_later(0.1, os._exit, 1)  # time for the last answers to leave
            return
        self._leaving = True
        self._asked.set()
        if not self._ready and self._task is not None:
            say("stopping ...")  # it may take a while: nothing interrupts a program that is being compiled
            self._task.cancel()


def leave_within(seconds: float, tell: Callable[[str], None]) -> None:
    """Ends the process after so long, if it has not ended by then: no thread can interrupt a model that hangs."""

    def leave() -> None:
        tell("stopped, though a model still runs")
        os._exit(1)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()


class FirstInterrupt:
    """While it is entered, the first Ctrl-C asks to stop, and the next one interrupts as ever.

    For what runs in the main thread and asks now and then; calling this answers whether it shall stop.

    Args:
        what: said once when it shall.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._asked = False
        self._said = False
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def __call__(self) -> bool:
        """Whether to stop."""
        if self._asked and not self._said:
            self._said = True
            say(self._what)  # not by the handler: it may come while this very stream is written to
        return self._asked

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
