"""What the live page is fed with: the state of everything, at most once a second however many look at it."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxserve.metrics import WINDOWS
from jaxserve.plans import Outlook
from jaxserve.server.health import Health
from jaxserve.server.seam import ServedEngine
from jaxserve.server.v2_forms import NAME, VERSION

_FRESH_S = 0.5


class Feed:
    """Snapshots for the live page.

    Args:
        engine: that is looked at.
        health: who is ready.
        outlook: what was planned, to show it beside what is observed; None where nothing was.
        addresses: where the server listens.
    """

    def __init__(
        self,
        engine: ServedEngine,
        health: Health,
        *,
        outlook: Outlook | None = None,
        addresses: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._engine = engine
        self._health = health
        self._outlook = outlook
        self._addresses = addresses
        self._latest: dict[str, Any] | None = None
        self._latest_s = 0.0
        self._over = asyncio.Event()
        self.viewers = 0

    @property
    def is_over(self) -> bool:
        """Whether the server stops."""
        return self._over.is_set()

    def end(self) -> None:
        """Sends everybody home."""
        self._over.set()

    @contextlib.contextmanager
    def viewing(self) -> Iterator[None]:
        """Counts somebody who looks."""
        self.viewers += 1
        try:
            yield
        finally:
            self.viewers -= 1

    async def wait(self, seconds: float) -> None:
        """Waits so long, or until the server stops."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()

    def snapshot(self) -> dict[str, Any]:
        """The state of everything, at most half a second old."""
        now_s = self._engine.now_s()
        if self._latest is None or now_s - self._latest_s > _FRESH_S:
            self._latest, self._latest_s = self._look(), now_s
        return self._latest

    def _look(self) -> dict[str, Any]:
        observed = self._engine.observe()
        status = observed.to_json()
        readiness = self._health.readiness(observed)
        outlook = self._outlook
        expected = {} if outlook is None else outlook.per_model
        utilization = () if outlook is None else outlook.utilization
        described = {description["name"]: description for description in self._engine.describe()}
        return {
            "server": {
                "name": NAME,
                "version": VERSION,
                "uptime_s": status["uptime_s"],
                "ready": self._health.is_ready(),
                "accepting": status["accepting"] and not self._health.is_draining,
                "in_flight": status["in_flight"],
                "addresses": list(self._addresses()),
            },
            "models": [
                {
                    "name": name,
                    "ready": readiness.get(name, False),
                    "groups": list(observed.models[name].groups),
                    **{
                        key: counted[key]
                        for key in ("requests", "served", "expired", "failed", "cancelled", "invalid", "batches")
                    },
                    "refused": counted["refusals"],
                    "attainment": {window: counted["recent_attainment"][window] for window in WINDOWS},
                    "predicted_attainment": expected.get(name),
                    "latency_p50_s": counted["latency_p50_s"],
                    "latency_p99_s": counted["latency_p99_s"],
                    "predicted_latency_s": described[name]["latency_s"],
                    "deadline_s": described[name]["deadline_s"],
                    "drift": counted["drift"],
                    "predicted_error_p50_s": counted["predicted_error_p50_s"],
                }
                for name, counted in status["models"].items()
                if name in described
            ],
            "groups": [
                {
                    "index": index,
                    "healthy": group["healthy"],
                    "stuck": group["stuck"],
                    "intra_op": group["intra_op"],
                    "inter_op": group["stages"],
                    "devices": group["devices"],
                    "queue": group["queue"],
                    "in_flight": group["in_flight"],
                    "requests": group["requests"],
                    "busy_s": group["stage_busy_s"],
                    "running": group["running"],
                    "models": group["models"],
                    "predicted_utilization": utilization[index] if index < len(utilization) else None,
                }
                for index, group in enumerate(status["groups"])
            ],
            "plan": None if outlook is None else {"slo_attainment": outlook.slo_attainment, "policy": outlook.policy},
        }
