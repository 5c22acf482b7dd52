"""What a model's stages take on one group: as profiled, and as corrected by what is observed.

A profile is measured on idle devices. Under load a stage takes longer: the host's cores are shared, and so is the
thread that hands it its work. Each end of a stage moves the estimate of its bucket a part of the way to what was seen:

    estimate += WEIGHT * (clip(seen, estimate / MOST, estimate * MOST) - estimate)

The clip keeps one stall from counting for more than a small change does. A difference of less
than NEGLIGIBLE_S changes nothing, so a simulation in which stages take their profiled time decides exactly by the
profile.

On an idle group a request is judged by the profile, not by the estimate: else an estimate above every deadline, from a
time that is over, would refuse every request, and nothing would ever be observed again.
"""

import dataclasses

from jaxserve.scheduling.group import GroupState

Latencies = tuple[tuple[float, ...], ...]
"""Seconds of each stage, for each bucket."""

WEIGHT = 0.25
MOST = 2.0
NEGLIGIBLE_S = 20e-6


@dataclasses.dataclass(slots=True, eq=False)
class Replica:
    """A model on a group.

    Attributes:
        group: the group's index.
        state: the group.
        profiled: what each stage takes on an idle group, for each bucket.
        estimates: what each stage takes by what was observed.
    """

    group: int
    state: GroupState
    profiled: Latencies
    estimates: list[tuple[float, ...]]

    def latency_s(self, bucket: int) -> tuple[float, ...]:
        """What each stage is expected to take for a request that arrives now."""
        return self.estimates[bucket] if self.state.in_flight else self.profiled[bucket]

    def observe(self, bucket: int, stage: int, seen_s: float) -> None:
        """Corrects the estimate of one stage at one bucket by how long it took once."""
        row = self.estimates[bucket]
        estimate_s = row[stage]
        if -NEGLIGIBLE_S < seen_s - estimate_s < NEGLIGIBLE_S:
            return
        clipped_s = min(max(seen_s, estimate_s / MOST), estimate_s * MOST)
        moved_s = estimate_s + WEIGHT * (clipped_s - estimate_s)
        self.estimates[bucket] = (*row[:stage], moved_s, *row[stage + 1 :])

    @property
    def drift(self) -> float:
        """The largest ratio of an estimate to its profile."""
        pairs = [
            (estimate_s, profiled_s)
            for estimates, profiled in zip(self.estimates, self.profiled, strict=True)
            for estimate_s, profiled_s in zip(estimates, profiled, strict=True)
        ]
        return max((estimate_s / profiled_s for estimate_s, profiled_s in pairs if profiled_s > 0), default=1.0)
