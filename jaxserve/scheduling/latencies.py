"""What a model's stages take on one group: as profiled, and as corrected by what is observed.

A profile is measured on idle devices. Under load a stage takes longer: the host's cores are shared, and so is the
thread that hands it its work. Each end of a stage moves the estimate of its bucket a part of the way to what was seen:

    estimate += WEIGHT * (clip(seen, estimate / MOST, estimate * MOST) - estimate)

The clip keeps one stall from counting for more than a small change does. A difference of less than NEGLIGIBLE_S changes
nothing, so a simulation in which stages take their profiled time decides exactly by the profile.

How much longer than estimated a stage takes at times is followed, too: `tail` times the estimate is what 99 of 100 ends
keep. It rises by 9.9 % with each end that is beyond it and falls by 0.1 % with each that is not, so it is where these
balance. By it, what is merely slow is told from what is stuck (`GroupState.stuck_stage`).
"""

import dataclasses
from collections.abc import Sequence

from jaxserve.scheduling.grid import Grid

Latencies = tuple[tuple[float, ...], ...]
"""Seconds of each stage, for each bucket."""

WEIGHT = 0.25
MOST = 2.0
QUANTILE, TAIL_STEP = 0.99, 0.1
NEGLIGIBLE_S = 20e-6


@dataclasses.dataclass(slots=True, eq=False)
class StageLatencies:
    """What the stages of one model take on one group, and how its requests merge.

    Attributes:
        profiled: what each stage takes on an idle group, for each bucket.
        grid: which of its buckets merged requests run on.
        estimated: what each stage takes by what was observed, for each bucket.
        tail: by how much longer than estimated stages take once in a hundred times; at least 1.
        waiting: how many batches of it wait for stage 0.
    """

    profiled: Latencies
    grid: Grid
    estimated: list[tuple[float, ...]] = dataclasses.field(init=False)
    tail: float = 2.0
    waiting: int = 0
    _sums: list[tuple[float, float] | None] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.estimated = list(self.profiled)
        self._sums = [None] * len(self.profiled)

    def total_and_longest_s(self, bucket: int) -> tuple[float, float]:
        """What all stages together, and the slowest, take at a bucket by what was observed."""
        sums = self._sums[bucket]
        if sums is None:
            row = self.estimated[bucket]
            sums = self._sums[bucket] = (total_s(row), max(row))
        return sums

    def observe(self, bucket: int, stage: int, seen_s: float) -> None:
        """Corrects the estimate of one stage at one bucket by how long it took once."""
        row = self.estimated[bucket]
        estimate_s = row[stage]
        if -NEGLIGIBLE_S < seen_s - estimate_s < NEGLIGIBLE_S:
            return
        if seen_s > estimate_s * self.tail:
            self.tail += QUANTILE * TAIL_STEP * self.tail
        elif self.tail > 1.0:
            self.tail -= (1.0 - QUANTILE) * TAIL_STEP * self.tail
        if seen_s > estimate_s * MOST:
            seen_s = estimate_s * MOST
        elif seen_s < estimate_s / MOST:
            seen_s = estimate_s / MOST
        moved_s = estimate_s + WEIGHT * (seen_s - estimate_s)
        self.estimated[bucket] = (*row[:stage], moved_s, *row[stage + 1 :])
        self._sums[bucket] = None

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
    total = 0.0
    for each in seconds:
        total += each
    return total
