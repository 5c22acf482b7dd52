"""What a server needs of an engine. `jaxserve.Engine` has it; tests bring a small one of their own."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from jaxserve.errors import InferenceError

Outputs = Mapping[str, np.ndarray]
OnSettled = Callable[[Outputs | InferenceError], None]


class InferenceEngine(Protocol):
    """The callback side of an engine: no task and no future per request."""

    def submit(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray | list[str]],
        *,
        deadline_s: float | None,
        on_settled: OnSettled,
        priority: int = 0,
        tenant: str = "",
    ) -> int:
        """Takes a request and returns a ticket for `cancel`.

        `on_settled` is called exactly once, on the loop's thread, with the outputs or with the error that takes their
        place; it may be called before `submit` returns. `priority` and `tenant` are as in `messages.Infer`.
        """
        ...

    def cancel(self, ticket: int) -> None:
        """Settles the request as cancelled, unless it is settled already."""
        ...

    def status(self) -> dict[str, Any]:
        """Plain values: what runs, what waits, what was counted."""
        ...

    def describe(self) -> list[dict[str, Any]]:
        """The models and their signatures, as plain values."""
        ...
