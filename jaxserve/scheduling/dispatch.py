"""Which group gets a request, among those that hold its model."""

from collections.abc import Callable, Sequence

from jaxserve.scheduling.group import GroupState

Latencies = tuple[tuple[float, ...], ...]
"""Seconds of each stage, for each bucket."""

Candidate = tuple[int, GroupState, Latencies]
"""A group's index, its state, and what the model's buckets take there; candidates come in order of index."""

Dispatch = Callable[[Sequence[Candidate], float], Candidate]
"""Chooses among one or more candidates at a time in seconds."""


def alpaserve(candidates: Sequence[Candidate], now_s: float) -> Candidate:
    """The group whose last stage is free earliest; the lowest index on a tie.

    What AlpaServe's controller and simulator do (OSDI'23, section 4.3: the group with the shortest queue).
    """
    best = candidates[0]
    best_clock_s = best[1].clocks(now_s)[-1]
    for candidate in candidates[1:]:
        clock_s = candidate[1].clocks(now_s)[-1]
        if clock_s < best_clock_s:
            best, best_clock_s = candidate, clock_s
    return best


DISPATCHES: dict[str, Dispatch] = {"alpaserve": alpaserve}
