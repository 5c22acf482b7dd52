"""What a model's stages take on one group: as profiled, and as corrected by what is observed.

A profile is measured on idle devices. Under load a stage takes longer: the host's cores are shared, and so is the
thread that hands it its work. Each end of a stage moves the estimate of its bucket a part of the way to what was seen:

    estimate += WEIGHT * (clip(seen, estimate / MOST, estimate * MOST) - estimate)

The clip keeps one stall from counting for more than a small change does. A difference of less
than NEGLIGIBLE_S changes nothing, so a simulation in which stages take their profiled time decides exactly by the
profile.
"""

import dataclasses
import functools
import operator
from collections.abc import Sequence

from jaxserve.scheduling.grid import Grid

Latencies = tuple[tuple[float, ...], ...]
"""Seconds of each stage, for each bucket."""

WEIGHT = 0.25
MOST = 2.0
NEGLIGIBLE_S = 20e-6


@dataclasses.dataclass(slots=True, eq=False)
class StageLatencies:
    """What the stages of one model take on one group, and how its requests merge.

    Attributes:
        profiled: what each stage takes on an idle group, for each bucket.
        estimated: what each stage takes by what was observed, for each bucket.
        grid: which of its buckets merged requests run on.
    """

    profiled: Latencies
    estimated: list[tuple[float, ...]]
    grid: Grid

    def observe(self, bucket: int, stage: int, seen_s: float) -> None:
        """Corrects the estimate of one stage at one bucket by how long it took once."""
        row = self.estimated[bucket]
        estimate_s = row[stage]
        if -NEGLIGIBLE_S < seen_s - estimate_s < NEGLIGIBLE_S:
            return
        clipped_s = min(max(seen_s, estimate_s / MOST), estimate_s * MOST)
        moved_s = estimate_s + WEIGHT * (clipped_s - estimate_s)
        self.estimated[bucket] = (*row[:stage], moved_s, *row[stage + 1 :])

    @property
    def drift(self) -> float:
        """The largest ratio of an estimate to its profile."""
        pairs = [
            (estimate_s, profiled_s)
            for estimates, profiled in zip(self.estimated, self.profiled, strict=True)
            for estimate_s, profiled_s in zip(estimates, profiled, strict=True)
        ]
        return max((estimate_s / profiled_s for estimate_s, profiled_s in pairs if profiled_s > 0), default=1.0)


def total_s(seconds: Sequence[float]) -> float:
    """Their sum, added up one after another, as compiled code does it (from Python 3.12 on `sum` rounds otherwise)."""
    return functools.reduce(operator.add, seconds, 0.0)
