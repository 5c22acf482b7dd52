"""The state of an engine at one moment, for whoever reports it: `status`, Prometheus, the live page."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

from jaxserve.cluster import DeviceMemory
from jaxserve.metrics.counters import GroupMetrics, ModelMetrics


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelObservation:
    """One model.

    Attributes:
        metrics: its counters; they go on counting.
        drift: how much longer its stages take than they were profiled for: the largest ratio, as observed of late.
        groups: indices of the groups that hold it.
    """

    metrics: ModelMetrics
    drift: float
    groups: Sequence[int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GroupObservation:
    """One group.

    Attributes:
        metrics: its counters; they go on counting.
        intra_op: devices of a stage.
        devices: indices of its devices.
        models: that it holds.
        resident_spares: of those that it loads on demand, which are on its devices.
        healthy: whether it takes requests.
        stuck: whether a stage has run for far longer than it should.
        queue: requests that wait.
        in_flight: requests that are inside, those that wait included.
        weight_bytes: of all models, on each device of each stage.
    """

    metrics: GroupMetrics
    intra_op: int
    devices: Sequence[int]
    models: Sequence[str]
    resident_spares: Sequence[str]
    healthy: bool
    stuck: bool
    queue: int
    in_flight: int
    weight_bytes: Sequence[float]

    @classmethod
    def of_host(cls, metrics: GroupMetrics, models: Sequence[str]) -> Self:
        """That of models that need no device: each runs as it is asked for, so nothing ever waits."""
        return cls(
            metrics=metrics,
            intra_op=1,
            devices=(),
            models=models,
            resident_spares=(),
            healthy=True,
            stuck=False,
            queue=0,
            in_flight=0,
            weight_bytes=(0.0,),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """An engine.

    Attributes:
        now_s: engine clock.
        uptime_s: since it was opened.
        accepting: whether it takes requests.
        in_flight: requests that are not settled.
        models: by name.
        groups: in the placement's order.
        host: the group of the models that need no device.
        memory: of the devices that tell.
    """

    now_s: float
    uptime_s: float
    accepting: bool
    in_flight: int
    models: Mapping[str, ModelObservation]
    groups: Sequence[GroupObservation]
    host: GroupObservation
    memory: Sequence[DeviceMemory]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "accepting": self.accepting,
            "uptime_s": self.uptime_s,
            "in_flight": self.in_flight,
            "models": {
                name: model.metrics.to_json(self.now_s) | {"drift": model.drift} for name, model in self.models.items()
            },
            "groups": [self._group(group) for group in self.groups],
            "host": self._group(self.host),
        }

    def _group(self, group: GroupObservation) -> dict[str, Any]:
        busy_s = group.metrics.busy_until(self.now_s)
        return {
            "intra_op": group.intra_op,
            "devices": list(group.devices),
            "models": list(group.models),
            "resident_spares": list(group.resident_spares),
            "stages": len(busy_s),
            "healthy": group.healthy,
            "stuck": group.stuck,
            "requests": group.metrics.requests,
            "queue": group.queue,
            "in_flight": group.in_flight,
            "utilization": sum(busy_s) / (self.uptime_s * len(busy_s)),
            "busy_s": sum(busy_s),
            "stage_busy_s": busy_s,
            "running": [stage.running for stage in group.metrics.stages],
            "weight_bytes": list(group.weight_bytes),
        }
