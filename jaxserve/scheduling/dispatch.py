"""Which group gets a request, among those that hold its model.

Groups of one shape are alike, and then both rules choose nearly the same. Where a model is on groups of different
shapes they do not: a busy group of four devices may be done sooner than a free one of a single device. bench/choice.py
compares them; by it `earliest-finish` is the engine's default.
"""

from collections.abc import Callable, Sequence

from jaxserve.request import Request
from jaxserve.scheduling.replica import ROUGH, Replica

Dispatch = Callable[[Sequence[Replica], Request, float], Replica]
"""Chooses for a request among one or more replicas, in order of group, at a time in seconds."""


def alpaserve(replicas: Sequence[Replica], request: Request, now_s: float) -> Replica:
    """The group whose last stage is free earliest; the lowest index on a tie.

    What AlpaServe's controller and simulator do (OSDI'23, section 4.3: the group with the shortest queue).
    """
    best = replicas[0]
    best_clock_s = best.state.clocks(now_s, ROUGH)[-1]
    for replica in replicas[1:]:
        clock_s = replica.state.clocks(now_s, ROUGH)[-1]
        if clock_s < best_clock_s:
            best, best_clock_s = replica, clock_s
    return best


def earliest_finish(replicas: Sequence[Replica], request: Request, now_s: float) -> Replica:
    """The group that would have finished it earliest, behind all that it holds; the lowest index on a tie."""
    best = replicas[0]
    best_s = best.finish_s(request, now_s)
    for replica in replicas[1:]:
        finish_s = replica.finish_s(request, now_s)
        if finish_s < best_s:
            best, best_s = replica, finish_s
    return best


DISPATCHES: dict[str, Dispatch] = {"alpaserve": alpaserve, "earliest-finish": earliest_finish}
