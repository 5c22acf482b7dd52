"""Selective replication: every device a group of its own, and the replicas where the simulator says.

What AlpaServe [OSDI'23, section 6] is compared with as "SR": its Algorithm 1 in the fast form, without model
parallelism.
"""

from jaxserve.placement.budget import Budget
from jaxserve.placement.groups import index_of
from jaxserve.placement.problem import Effort, Plan, Problem
from jaxserve.placement.replicas import Judge, Selection, fast_heuristic, planned
from jaxserve.plans import ParallelConfig


def selective_replication(problem: Problem, effort: Effort) -> Plan:
    """Fills devices with whole models, one replica after each simulation.

    Raises:
        PlacementError: no model of the fleet has a profile for one device.
    """
    single = index_of(problem, ParallelConfig(1, 1), needed_by="selective replication")
    budget = Budget(effort)
    start = Selection.empty((single,) * problem.fleet.devices)
    selection, _ = fast_heuristic(Judge(problem, budget), start)
    return planned(problem, selection, budget)
