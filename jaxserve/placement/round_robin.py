"""Round-robin placement on pipelines of four stages: AlpaServe without its algorithms [OSDI'23, section 6.6]."""

from jaxserve.errors import PlacementError
from jaxserve.placement.budget import Budget
from jaxserve.placement.groups import alike
from jaxserve.placement.memory import heaviest_stage_bytes
from jaxserve.placement.problem import Effort, Plan, Problem
from jaxserve.placement.replicas import Selection, planned
from jaxserve.plans import ParallelConfig

STAGES = 4


def round_robin(problem: Problem, effort: Effort) -> Plan:
    """Deals the models, in order and over and over, to the groups in turn.

    The turn passes on when a group takes a model. A model that the group whose turn it is holds already, or has no room
    for, is passed over, and the dealing ends when that group takes none of them, though others may have room: this is
    how AlpaServe's code deals, and it leaves memory unused where models differ in size. A group that has no room for
    any model even when empty gets no turn.

    The groups are pipelines of 4 stages of one device, or of 2 or 1 where no model has a profile for more or the
    cluster has fewer devices; the remainder becomes shorter ones (`groups.alike`). The traffic is not looked at.

    Raises:
        PlacementError: no model has a profile for any of these.
    """
    config = _pipeline(problem)
    selection = Selection.empty(alike(problem, config, problem.fleet.devices))
    return planned(problem, dealt(problem, selection), Budget(effort))


def dealt(problem: Problem, selection: Selection) -> Selection:
    """The models of the fleet dealt to these empty groups."""
    memory_bytes = problem.fleet.memory_bytes
    weights = heaviest_stage_bytes(problem.tables)
    turns = [index for index, config in enumerate(selection.config) if weights[config].min() <= memory_bytes]
    held: list[list[int]] = [[] for _ in selection.config]
    used_bytes = [0.0] * len(held)
    turn, taken = 0, bool(turns)
    while taken:
        taken = False
        for model in range(len(problem.fleet.models)):
            group = turns[turn]
            heavier_bytes = used_bytes[group] + float(weights[selection.config[group], model])
            if model not in held[group] and heavier_bytes <= memory_bytes:
                held[group].append(model)
                used_bytes[group] = heavier_bytes
                turn, taken = (turn + 1) % len(turns), True
    return Selection(config=selection.config, models=tuple(tuple(sorted(own)) for own in held))


def _pipeline(problem: Problem) -> ParallelConfig:
    for stages in (STAGES, 2, 1):
        config = ParallelConfig(1, stages)
        if config in problem.tables.configs and stages <= problem.fleet.devices:
            return config
    listed = ", ".join(f"({each.intra_op}, {each.inter_op})" for each in problem.tables.configs) or "none"
    raise PlacementError(
        f"round-robin needs a config of one device per stage and 4, 2 or 1 stages on at most {problem.fleet.devices} "
        f"devices, but the profiles of the fleet's models have {listed}: run `jaxserve profile`, "
        f"or choose another policy"
    )
