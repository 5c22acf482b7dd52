"""Waiting for what cannot be interrupted, such as a thread inside XLA."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def uninterrupted(work: Coroutine[Any, Any, T]) -> tuple[T, bool]:
    """Waits until `work` is done, even where the waiting task is cancelled meanwhile.

    Returns its result, and whether the task was cancelled: the caller then cleans up and raises `CancelledError`. So
    nothing goes on behind the back of who began it.
    """
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    return task.result(), cancelled
