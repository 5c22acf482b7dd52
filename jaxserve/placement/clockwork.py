"""Clockwork++: selective replication, placed anew for every window of the traffic on that window's own requests.

AlpaServe [OSDI'23, section 6] makes it of Clockwork [OSDI'20], which swaps models in as requests come: here the swaps
cost nothing and the placement knows the window's future. On the traffic that it was made for, this is as good as
swapping gets with this heuristic; on other traffic it is not, since the windows then say little about what comes.
"""

from collections.abc import Iterator

import numpy as np

from jaxserve.placement.budget import Budget
from jaxserve.placement.groups import index_of
from jaxserve.placement.problem import Effort, Plan, Policy, Problem
from jaxserve.placement.replicas import Judge, Selection, fast_heuristic
from jaxserve.plans import ParallelConfig, Placement, Segment
from jaxserve.workload import Workload, between
from jaxserve.workload.checks import check_positive


def clockwork_plus_plus(window_s: float = 60.0) -> Policy:
    """The policy `clockwork++`: a segment of the placement for each window of `window_s` seconds.

    A window begins with a request, the next one with the first request that is more than `window_s` later. The last
    segment has no end.

    Raises:
        ConfigError: a window that is not greater than 0.
        PlacementError: from the policy: no model of the fleet has a profile for one device.
    """
    check_positive(window_s=window_s)

    def policy(problem: Problem, effort: Effort) -> Plan:
        single = index_of(problem, ParallelConfig(1, 1), needed_by="clockwork++")
        start = Selection.empty((single,) * problem.fleet.devices)
        budget = Budget(effort)
        windows = list(split(problem.workload, window_s))
        segments: list[Segment] = []
        served = 0
        for index, window in enumerate(windows):
            judge = Judge(problem, budget, workload=window, served=served)
            selection, score = fast_heuristic(judge, start, until=budget.share(len(windows) - index))
            served += int(score.served.sum())
            groups = problem.placement(selection.shape(len(problem.fleet.models))).groups
            segments.append(Segment(start_s=float(window.arrival_s[0]) if segments else 0.0, groups=groups))
        return Plan(
            placement=Placement(groups=segments[0].groups, segments=tuple(segments)), simulations=budget.simulations
        )

    return policy


def split(workload: Workload, window_s: float) -> Iterator[Workload]:
    """The windows of a workload, none of them empty; arrivals keep their times."""
    arrival_s = workload.arrival_s
    first = 0
    while first < len(workload):
        end = int(np.searchsorted(arrival_s, arrival_s[first] + window_s, side="right"))
        end_s = float(arrival_s[end]) if end < len(workload) else np.inf
        yield between(workload, float(arrival_s[first]), end_s, from_zero=False)
        first = end
