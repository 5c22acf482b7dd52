"""A small engine behind the server's seam: it answers at once, in the next turn of the loop, or when a test says so."""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxserve.errors import InferenceError, ModelFailed, ModelNotFound, RequestCancelled
from jaxserve.server.seam import OnSettled, Outputs


@dataclasses.dataclass(slots=True)
class Held:
    """A request that waits for the test."""

    model: str
    inputs: Mapping[str, np.ndarray | list[str]]
    deadline_s: float | None
    on_settled: OnSettled
    priority: int
    tenant: str


class FakeEngine:
    """Models: `now` and `soon` return their inputs, `held` waits, `failing` fails, `broken` breaks the engine."""

    def __init__(self) -> None:
        self.held: dict[int, Held] = {}
        self.submitted = 0
        self.cancelled: list[int] = []
        self._changed = asyncio.Event()

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
        self.submitted += 1
        ticket = self.submitted
        outputs: Any = dict(inputs)
        match model:
            case "now":
                on_settled(outputs)
                return -1
            case "failing":
                on_settled(ModelFailed("the model raised", model=model))
                return -1
            case "broken":
                raise RuntimeError("a bug in the engine")
            case "unsendable":
                on_settled({"z": np.zeros(1, np.complex64)})
                return -1
            case "soon" | "held":
                self.held[ticket] = Held(model, inputs, deadline_s, on_settled, priority, tenant)
                if model == "soon":
                    asyncio.get_running_loop().call_soon(self.release, ticket, outputs)
            case _:
                on_settled(ModelNotFound(f"no model {model!r} is served"))
                return -1
        self._changed.set()
        return ticket

    def release(self, ticket: int, outcome: Outputs | InferenceError) -> None:
        held = self.held.pop(ticket, None)
        if held is not None:
            held.on_settled(outcome)
            self._changed.set()

    def release_all(self) -> None:
        for ticket, held in list(self.held.items()):
            self.release(ticket, dict(held.inputs))  # pyright: ignore[reportArgumentType]

    def cancel(self, ticket: int) -> None:
        if ticket in self.held:
            self.cancelled.append(ticket)
            self.release(ticket, RequestCancelled("cancelled by its caller"))

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits until something is so; looked at whenever a request comes or goes."""
        async with asyncio.timeout(10.0):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    def status(self) -> dict[str, Any]:
        return {"in_flight": len(self.held), "submitted": self.submitted}

    def describe(self) -> list[dict[str, Any]]:
        inputs = {
            "x": {"shape": ["batch", 2], "dtype": "float32"},
            "ids": {"shape": ["batch"], "dtype": "int8"},
            "half": {"shape": ["batch"], "dtype": "bfloat16"},
            "count": {"shape": ["batch"], "dtype": "uint8"},
            "text": {"shape": ["batch"], "dtype": "string"},
        }
        return [
            {"name": name, "inputs": inputs, "outputs": inputs, "batch_sizes": [1], "deadline_s": None}
            for name in ("now", "soon", "held")
        ]
