"""Which group gets a request, among those that hold its model."""

from collections.abc import Callable, Sequence

from jaxserve.scheduling.replica import Replica

Dispatch = Callable[[Sequence[Replica], float], Replica]
"""Chooses among one or more replicas, in order of group, at a time in seconds."""


def alpaserve(replicas: Sequence[Replica], now_s: float) -> Replica:
    """The group whose last stage is free earliest; the lowest index on a tie.

    What AlpaServe's controller and simulator do (OSDI'23, section 4.3: the group with the shortest queue).
    """
    best = replicas[0]
    best_clock_s = best.state.clocks(now_s)[-1]
    for replica in replicas[1:]:
        clock_s = replica.state.clocks(now_s)[-1]
        if clock_s < best_clock_s:
            best, best_clock_s = replica, clock_s
    return best


DISPATCHES: dict[str, Dispatch] = {"alpaserve": alpaserve}
