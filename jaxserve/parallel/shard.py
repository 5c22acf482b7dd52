"""How the arrays of a stage lie on its submesh. For now: the batch is split, the params are on every device.

Alpa's intra-op pass will choose better, and returns the same value.
"""

import dataclasses
from typing import Any

from jax.sharding import PartitionSpec

from jaxserve.parallel.cut import Stage

DATA = "data"


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
    """

    mesh: dict[str, int]
    params: tuple[PartitionSpec, ...]
    takes: tuple[PartitionSpec, ...]
    gives: tuple[PartitionSpec, ...]


def shard_batch(stage: Stage, *, batch_size: int, devices: int) -> Sharded:
    """Splits over the devices whatever begins with the batch, where the batch divides; replicates the rest."""

    def spec(atom: Any) -> PartitionSpec:
        shape = getattr(atom.aval, "shape", ())
        # Activations may have the batch folded into their first dimension, as in [batch * length, features].
        divides = batch_size % devices == 0 and bool(shape) and shape[0] % batch_size == 0
        return PartitionSpec(DATA) if divides and devices > 1 else PartitionSpec()

    program = stage.program.jaxpr
    return Sharded(
        mesh={DATA: devices},
        params=(PartitionSpec(),) * len(stage.params),
        takes=tuple(spec(var) for var in program.invars[len(stage.params) + len(stage.constants) :]),
        gives=tuple(spec(atom) for atom in program.outvars),
    )
