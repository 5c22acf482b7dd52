"""Which spare models are on a group's devices: loaded on demand, and taken off again by predicted need.

A *spare* of a group is a model that is compiled for it and has its weights in host memory. They go to the devices when
a request needs them, in a batch of its own ahead of that request's, which brings them stage by stage and takes as long
as was measured. What has to leave first is decided then, too: stages take batches in order, so on each of them those
ahead that need what leaves have passed before it does. So residency is known where the queue ends, which is where
requests are admitted, and the time of the swap is in every predicted finish.

The predicted need of a model is the time until its next request,

    max(mean gap between its requests, time since the last one)

with gaps averaged as they come (weight `WEIGHT`); the second is what a gap that is longer than the mean teaches. What
is needed last leaves first; of those that came once, the one that did so longest ago.

A request that is late only because of the swap is refused, and still its model should come: else one whose deadline is
short would never. So the driver is told (`RefuseReason.COLD`) and may `preload`, which brings the model if all that
would have to leave are needed later than it.
"""

import dataclasses
import math
from collections.abc import Sequence

from jaxserve.errors import PlacementError
from jaxserve.scheduling.grid import ALONE
from jaxserve.scheduling.latencies import StageLatencies

WEIGHT = 0.25


@dataclasses.dataclass(slots=True, eq=False)
class Spare:
    """A model of a group that is loaded on demand.

    Attributes:
        weight_bytes: what it takes on each device of each stage.
        latencies: what each stage takes to bring it, at bucket 0.
        resident: whether it is there after all that the group holds.
        last_s: when it was last asked for.
        gap_s: seconds between one request for it and the next, on average; infinite before the second.
    """

    weight_bytes: Sequence[float]
    latencies: StageLatencies
    resident: bool = False
    last_s: float | None = None
    gap_s: float = math.inf

    @classmethod
    def of(cls, weight_bytes: Sequence[float], restore_s: Sequence[float]) -> "Spare":
        """A spare of which stage k takes `weight_bytes[k]` on each device and `restore_s[k]` seconds to be brought."""
        return cls(weight_bytes, StageLatencies((tuple(restore_s),), ALONE))

    def ask(self, now_s: float) -> None:
        """Notes a request for it."""
        if self.last_s is not None:
            gap_s = now_s - self.last_s
            self.gap_s = gap_s if self.gap_s == math.inf else self.gap_s + WEIGHT * (gap_s - self.gap_s)
        self.last_s = now_s

    def need_s(self, now_s: float) -> float:
        """Seconds until it is expected to be needed next."""
        return math.inf if self.last_s is None else max(self.gap_s, now_s - self.last_s)

    def idle_s(self, now_s: float) -> float:
        """Seconds since it was last asked for."""
        return math.inf if self.last_s is None else now_s - self.last_s


class Residency:
    """The spares of one group.

    Args:
        memory_bytes: what spares may take on a device of each stage.
    """

    def __init__(self, memory_bytes: Sequence[float]) -> None:
        self._memory_bytes = tuple(memory_bytes)
        self._spares: dict[str, Spare] = {}
        self._partly: list[str] = []  # those that could not be brought to all stages

    def add(self, model: str, spare: Spare) -> None:
        """Adds a spare, which is not resident.

        Raises:
            PlacementError: it does not fit, even alone.
        """
        for stage, (needed, there) in enumerate(zip(spare.weight_bytes, self._memory_bytes, strict=True)):
            if needed > there:
                raise PlacementError(
                    f"spare {model!r} takes {needed:.4g} bytes on each device of stage {stage}, but spares may take "
                    f"{there:.4g}; allow them more, or use a config of more stages or devices"
                )
        self._spares[model] = spare

    def remove(self, model: str) -> None:
        """Takes a model away, if it is a spare."""
        self._spares.pop(model, None)

    def has(self, model: str) -> bool:
        """Whether a model is a spare here."""
        return model in self._spares

    @property
    def resident(self) -> list[str]:
        """The spares that are there after all that the group holds."""
        return [name for name, spare in self._spares.items() if spare.resident]

    def leaving(self, model: str, now_s: float) -> list[str]:
        """Those that have to leave so that a spare can come, the one that is needed last first."""
        spare = self._spares[model]
        resident = {name: each for name, each in self._spares.items() if each.resident and name != model}
        free = [
            there - sum(each.weight_bytes[stage] for each in resident.values())
            for stage, there in enumerate(self._memory_bytes)
        ]
        leaving: list[str] = []

        def rank(name: str) -> tuple[float, float, str]:
            return -resident[name].need_s(now_s), -resident[name].idle_s(now_s), name

        for name in sorted(resident, key=rank):
            short = [stage for stage, needed in enumerate(spare.weight_bytes) if needed > free[stage]]
            if not short:
                break
            if any(resident[name].weight_bytes[stage] > 0 for stage in short):
                leaving.append(name)
                free = [left + more for left, more in zip(free, resident[name].weight_bytes, strict=True)]
        return leaving

    def is_worth_it(self, model: str, now_s: float) -> bool:
        """Whether a spare is needed sooner than all that would have to leave for it."""
        need_s = self._spares[model].need_s(now_s)
        return all(self._spares[name].need_s(now_s) > need_s for name in self.leaving(model, now_s))

    def bring(self, model: str, now_s: float) -> tuple[str, ...]:
        """Notes that a spare comes; returns who leaves, and of whom a part has to be cleared away."""
        leaving = self.leaving(model, now_s)
        parts = [name for name in self._partly if name != model and name not in leaving]
        self._partly.clear()
        for name in leaving:
            self._spares[name].resident = False
        self._spares[model].resident = True
        return (*leaving, *parts)

    def failed(self, model: str) -> None:
        """Notes that a spare could not be brought, or not to all stages."""
        if model in self._spares:
            self._spares[model].resident = False
            self._partly.append(model)

    def forget(self) -> None:
        """Notes that nothing is there any more."""
        for spare in self._spares.values():
            spare.resident = False
