"""Greedy placement on pipelines of one length: AlpaServe without its group partition [OSDI'23, section 6.6]."""

from jaxserve.errors import ConfigError, PlacementError
from jaxserve.placement.budget import Budget
from jaxserve.placement.groups import alike, index_of
from jaxserve.placement.problem import Effort, Plan, Policy, Problem
from jaxserve.placement.replicas import Judge, Selection, fast_heuristic, planned
from jaxserve.plans import ParallelConfig


def greedy(stages: int) -> Policy:
    """The policy `greedy-N`: pipelines of N stages of one device, filled by the fast heuristic of Algorithm 1.

    Devices that are too few for one more pipeline of N stages become shorter ones, their lengths the powers of two that
    sum up to what is left; those that no model has a profile for stay idle. (AlpaServe refuses such a cluster.)

    Raises:
        ConfigError: `stages` is less than 1.
        PlacementError: from the policy: no model has a profile for N stages, or the cluster has fewer devices.
    """
    if stages < 1:
        raise ConfigError(f"greedy-{stages} was asked for, but a pipeline has at least 1 stage")

    def policy(problem: Problem, effort: Effort) -> Plan:
        config, devices = ParallelConfig(1, stages), problem.fleet.devices
        index_of(problem, config, needed_by=f"greedy-{stages}")
        if devices < stages:
            raise PlacementError(
                f"greedy-{stages} needs pipelines of {stages} devices, but the cluster has {devices}; "
                f"choose greedy-{devices} or shorter"
            )
        budget = Budget(effort)
        start = Selection.empty(alike(problem, config, devices))
        selection, _ = fast_heuristic(Judge(problem, budget), start)
        return planned(problem, selection, budget)

    return policy
