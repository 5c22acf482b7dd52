"""How the arrays of a stage lie on its submesh, as jax is told."""

import dataclasses
import math
from collections.abc import Mapping

from jax.sharding import PartitionSpec

from jaxserve.parallel.layout import AXES, partition_spec
from jaxserve.parallel.plan import StagePlan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sharded:
    """The partition specs of a stage on its submesh.

    A value has one spec, whether it is taken or given, so that passing it between submeshes changes no spec (a change
    would block the sender).

    Attributes:
        mesh: axes of the submesh, with their sizes.
        params: for each of the stage's params.
        takes: for each value that it takes.
        gives: for each value that it gives.
        constraints: for the results of its operations, by the place of the equation.
        arrivals: for the operands of those that collectives bring something, likewise.
    """

    mesh: dict[str, int]
    params: tuple[PartitionSpec, ...]
    takes: tuple[PartitionSpec, ...]
    gives: tuple[PartitionSpec, ...]
    constraints: Mapping[int, tuple[PartitionSpec, ...]]
    arrivals: Mapping[int, tuple[PartitionSpec, ...]]


def sharded(plan: StagePlan) -> Sharded:
    """The specs of a planned stage."""
    steps = plan.steps if math.prod(plan.mesh_shape) > 1 else {}
    return Sharded(
        mesh=dict(zip(AXES, plan.mesh_shape, strict=False)),
        params=tuple(map(partition_spec, plan.weights)),
        takes=tuple(map(partition_spec, plan.takes)),
        gives=tuple(map(partition_spec, plan.gives)),
        constraints={place: tuple(map(partition_spec, step.results)) for place, step in steps.items()},
        arrivals={place: tuple(map(partition_spec, step.operands)) for place, step in steps.items() if step.before},
    )
