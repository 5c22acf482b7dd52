"""What a server needs of an engine. `jaxserve.Engine` has it; tests bring a small one of their own."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from jaxserve.errors import InferenceError
from jaxserve.metrics import Observation, Timeline
from jaxserve.model import Model

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


class ServedEngine(Protocol):
    """What the servers of standard protocols need beside it, to tell who is ready and to administer."""

    @property
    def models(self) -> Mapping[str, Model]:
        """The models that are served, by name."""
        ...

    def submit(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        deadline_s: float | None,
        on_settled: OnSettled,
        priority: int = 0,
        tenant: str = "",
        timeline: Timeline | None = None,
        is_probe: bool = False,
    ) -> int:
        """See `InferenceEngine.submit`; fills in the timeline, and counts no probe."""
        ...

    def cancel(self, ticket: int) -> None:
        """See `InferenceEngine.cancel`."""
        ...

    def observe(self) -> Observation:
        """The state of everything at this moment."""
        ...

    def now_s(self) -> float:
        """The engine's clock."""
        ...

    def describe(self) -> list[dict[str, Any]]:
        """The models and their signatures, as plain values."""
        ...

    def description(self, name: str) -> dict[str, Any] | None:
        """One of them; None where there is no such model."""
        ...

    async def load(self, model: Model) -> None:
        """Loads one more model."""
        ...

    async def unload(self, name: str) -> None:
        """Takes a model out."""
        ...
