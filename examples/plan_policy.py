"""A policy of your own: one function in one file, scored beside those that come with jaxserve.

    python examples/plan_policy.py
    jaxserve plan --policy examples.plan_policy:most_requested_first --profiles examples/plan/profiles.json \
        --fleet examples/plan/fleet.json --workload examples/plan/workload.csv

A policy is given a `Problem` (the fleet, what its models cost, the traffic to plan for) and an `Effort` (how long it
may search), and returns a `Plan`. docs/placement.md says more.
"""

from pathlib import Path

import numpy as np

import jaxserve
from jaxserve.placement import Effort, Plan, Problem
from jaxserve.plans import Fleet, Profiles

FILES = Path(__file__).parent / "plan"


def most_requested_first(problem: Problem, effort: Effort) -> Plan:
    """Each device is a group of its own; again and again, the model with the most requests per replica gets another.

    It goes to the device with the most free memory among those that do not hold it yet.
    """
    single = problem.tables.configs.index(jaxserve.ParallelConfig(1, 1))
    shape = problem.empty([single] * problem.fleet.devices)
    weight_bytes = problem.tables.weight_bytes[single].sum(axis=1)  # [models]
    requests = problem.scorer().traffic.per_model  # [models]
    while True:
        free_bytes = problem.fleet.memory_bytes - shape.held @ weight_bytes  # [groups]
        fits = (free_bytes[:, None] >= weight_bytes) & (shape.held == 0)  # [groups, models]
        if not fits.any():
            return Plan(placement=problem.placement(shape), simulations=0)
        wanted = np.where(fits.any(axis=0), requests / (shape.held.sum(axis=0) + 1), -1.0)
        model = int(wanted.argmax())
        group = int(np.where(fits[:, model], free_bytes, -1.0).argmax())
        shape.held[group, model] = 1


def main() -> None:
    """Plans by it, and by the default policy."""
    profiles = Profiles.load(FILES / "profiles.json")
    fleet = Fleet.load(FILES / "fleet.json")
    workload = jaxserve.Workload.load(FILES / "workload.csv")
    for policy in (most_requested_first, "search"):
        plan = jaxserve.plan(profiles=profiles, fleet=fleet, workload=workload, policy=policy, simulations=2000)
        print(f"{plan.policy}: {100 * plan.slo_attainment:.1f} % on {plan.groups} groups")


if __name__ == "__main__":
    main()
