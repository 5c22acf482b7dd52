"""What a model's stages take on one group: as profiled, and as corrected by what is observed.

A profile is measured on idle devices. Under load a stage takes longer: the host's cores are shared, and so is the
thread that hands it its work. Each end of a stage moves the estimate of its bucket a part of the way to what was seen:

    estimate += WEIGHT * (clip(seen, estimate / MOST, estimate * MOST) - estimate)

Buckets that do not run do not stay behind: whatever slowed the others down is likely to slow these, too. So with
every fourth end the next other bucket in turn moves by RELAX of the way to what the profile says times the ratio of the
bucket that ran.

What has moved by less than PUBLISHED is not told to the queues, which would have to correct their clocks for it.

The clip keeps one stall from counting for more than a small change does. A difference of less than NEGLIGIBLE_S changes
nothing, so a simulation in which stages take their profiled time decides exactly by the profile.

How much longer than estimated a stage takes at times is followed, too: `tail` times the estimate is what 99 of 100 ends
keep. It rises by 9.9 % with each end that is beyond it and falls by 0.1 % with each that is not, so it is where these
balance. By it, what is merely slow is told from what is stuck (`GroupState.stuck_stage`).

Where stages jitter, or something besides them takes time that is not in the prediction, some of those who were admitted
are late all the same. The *margin* is by how much sooner than its deadline a request has to be predicted: it rises by
9.9 % of what the model takes with each that was late and falls by 0.1 % with each that was not, so it is where one in a
hundred is late. As long as nobody is late it is nothing. It rises by `MOST_RISES` such steps at most before someone is
late who was admitted by it, so a single stall counts little, however many it makes late. On an idle group it is not
asked for.
"""

import dataclasses
import math
from collections.abc import Sequence

from jaxserve.request import Request
from jaxserve.scheduling.grid import Grid

Latencies = tuple[tuple[float, ...], ...]
"""Seconds of each stage, for each bucket."""

WEIGHT = 0.25
RELAX, RELAX_EVERY = 0.2, 4
PUBLISHED = 0.01
MOST = 2.0
QUANTILE, TAIL_STEP = 0.99, 0.1
MOST_MARGIN, MOST_RISES = 10.0, 2
NEGLIGIBLE_S = 20e-6


@dataclasses.dataclass(slots=True, eq=False)
class StageLatencies:
    """What the stages of one model take on one group, and how its requests merge.

    Attributes:
        profiled: what each stage takes on an idle group, for each bucket.
        grid: which of its buckets merged requests run on.
        estimated: what each stage takes by what was observed, for each bucket.
        margin_s: by how much sooner than its deadline a request has to be predicted to be admitted.
        tail: by how much longer than estimated stages take once in a hundred times; at least 1.
        waiting: how many batches of it wait for stage 0.
    """

    profiled: Latencies
    grid: Grid
    estimated: list[tuple[float, ...]] = dataclasses.field(init=False)
    margin_s: float = 0.0
    tail: float = 2.0
    waiting: int = 0
    _followed: list[list[float]] = dataclasses.field(init=False)
    _corrected: bool = False
    _turn: int = 0
    _raised_s: float = -math.inf
    _rises: int = 0
    _sums: list[tuple[float, float] | None] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.estimated = list(self.profiled)
        self._followed = [list(row) for row in self.profiled]
        self._sums = [None] * len(self.profiled)

    def total_and_longest_s(self, bucket: int) -> tuple[float, float]:
        """What all stages together, and the slowest, take at a bucket by what was observed."""
        sums = self._sums[bucket]
        if sums is None:
            row = self.estimated[bucket]
            sums = self._sums[bucket] = (total_s(row), max(row))
        return sums

    def share_and_total_s(self, request: Request) -> tuple[float, float]:
        """What a request takes of the slowest stage, and what all stages take, as profiled.

        Of the batch size on which it takes the least part of the slowest stage, of those on which it could be in time.
        """
        row = self.profiled[request.bucket]
        found = max(row), total_s(row)
        cell = self.grid.cell(request.bucket)
        for position, size in enumerate(self.grid.sizes):
            if size > request.rows:
                row = self.profiled[position * self.grid.cells + cell]
                share_s, all_s = max(row) * request.rows / size, total_s(row)
                if share_s < found[0] and all_s + max(row) <= request.slo_s:
                    found = share_s, all_s
        return found

    def observe(self, bucket: int, stage: int, seen_s: float) -> None:
        """Corrects the estimate of one stage at one bucket by how long it took once."""
        estimate_s = self._followed[bucket][stage]
        if self._corrected:
            self._turn += 1
            if self._turn % RELAX_EVERY == 0:
                self._relax(bucket, stage, estimate_s)
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
        self._follow(bucket, stage, moved_s)

    def _relax(self, bucket: int, stage: int, estimate_s: float) -> None:
        """Moves the next other bucket towards the ratio of one that runs."""
        turn = self._turn // RELAX_EVERY % len(self.profiled)
        if turn != bucket and self.profiled[bucket][stage] > 0.0:
            likely_s = self.profiled[turn][stage] * (estimate_s / self.profiled[bucket][stage])
            other_s = self._followed[turn][stage]
            if abs(likely_s - other_s) > NEGLIGIBLE_S:
                self._follow(turn, stage, other_s + RELAX * (likely_s - other_s))

    def _follow(self, bucket: int, stage: int, estimate_s: float) -> None:
        followed = self._followed[bucket]
        followed[stage] = estimate_s
        self._corrected = len(self.profiled) > 1
        off_s, known_s = estimate_s - self.estimated[bucket][stage], PUBLISHED * estimate_s
        if off_s > known_s or off_s < -known_s:
            self.estimated[bucket] = tuple(followed)
            self._sums[bucket] = None

    def note_late(self, arrival_s: float, now_s: float) -> None:
        """Corrects the margin, as one who was admitted was late."""
        if arrival_s > self._raised_s:
            self._raised_s, self._rises = now_s, 0
        if self._rises < MOST_RISES:
            self._rises += 1
            latency_s = total_s(self.profiled[0])
            self.margin_s = min(self.margin_s + QUANTILE * TAIL_STEP * latency_s, MOST_MARGIN * latency_s)

    def note_in_time(self) -> None:
        """Corrects the margin, as one who was admitted was not late."""
        self.margin_s = max(0.0, self.margin_s - (1.0 - QUANTILE) * TAIL_STEP * total_s(self.profiled[0]))

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
