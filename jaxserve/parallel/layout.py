"""How an array lies on a logical mesh, and what it costs to lay it out differently.

The devices of a stage are seen as a mesh of one or two axes. A spec says for each axis which dimension of the array is
split over it. Two axes may split the same dimension.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

from jax.sharding import PartitionSpec

from jaxserve.parallel.collectives import collective_s
from jaxserve.parallel.devices import Device
from jaxserve.parallel.rules import NONE

Spec = tuple[int, ...]  # for each axis of the mesh the dimension that it splits, or NONE

AXES = ("x", "y")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One collective over one axis of a mesh.

    Attributes:
        kind: "all_reduce", "all_gather", "reduce_scatter" or "all_to_all".
        nbytes: of the result on each device for all_gather, of the operand on each device for the others.
        devices: that take part.
    """

    kind: str
    nbytes: float
    devices: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogicalMesh:
    """The devices of a stage as a mesh.

    Attributes:
        shape: devices along each axis.
        device: what they are.
    """

    shape: tuple[int, ...]
    device: Device

    @property
    def size(self) -> int:
        """Number of devices."""
        return math.prod(self.shape)

    @property
    def axes(self) -> dict[str, int]:
        """Names of the axes, with their sizes."""
        return dict(zip(AXES, self.shape, strict=False))

    @property
    def replicated(self) -> Spec:
        """The spec of an array that is whole on every device."""
        return (NONE,) * len(self.shape)

    def shards(self, assigned: Sequence[int]) -> int:
        """Into how many parts something is split, given what each axis splits, or NONE."""
        return shards(self.shape, assigned)

    def seconds(self, transfers: Sequence[Transfer]) -> float:
        """How long collectives take, one after the other."""
        return sum(collective_s(self.device, each.kind, each.nbytes, each.devices) for each in transfers)


def shards(mesh_shape: Sequence[int], assigned: Sequence[int]) -> int:
    """Into how many parts something is split on a mesh of this shape, given what each axis splits, or NONE."""
    return math.prod(size for size, what in zip(mesh_shape, assigned, strict=True) if what != NONE)


def mesh_shapes(devices: int) -> tuple[tuple[int, ...], ...]:
    """Every way to see devices as a mesh of one axis, or of two longer than one.

    Axes may be given to factors in any order and all links are alike, so a mesh of 4 x 2 can do nothing that one of
    2 x 4 cannot: only those with the shorter axis first are tried.
    """
    pairs = [(rows, devices // rows) for rows in range(2, devices) if devices % rows == 0]
    return ((devices,), *((rows, columns) for rows, columns in pairs if rows <= columns))


@functools.lru_cache(maxsize=1 << 16)
def resharding(mesh: LogicalMesh, nbytes: float, source: Spec, target: Spec) -> tuple[Transfer, ...]:
    """The collectives that bring an array of `nbytes` bytes in all from one spec to another, as XLA makes them.

    What a device has whole it can split by itself, so an axis that only the target uses costs nothing. A dimension that
    is split over another axis instead is an all-to-all, and an axis that is given up an all-gather, which XLA makes
    before it splits. Where both axes move at once XLA has shorter ways for some cases, and for one none but to gather
    everything (it warns of "involuntary full rematerialization"); these were read from compiled programs.
    """
    if source == target:
        return ()
    local = nbytes / mesh.shards(source)
    moves = list(zip(mesh.shape, source, target, strict=True))
    given_up = [size for size, before, after in moves if before != NONE == after]
    moved = [size for size, before, after in moves if NONE not in (before, after) and before != after]
    if len(moves) == 2 and NONE not in source and source[0] == source[1]:  # one dimension over both axes
        if given_up and moved:
            return (Transfer(kind="all_gather", nbytes=nbytes, devices=mesh.size),)
        if len(moved) == 2:
            return (Transfer(kind="all_to_all", nbytes=local, devices=mesh.size),)
    if len(moves) == 2 and NONE == source[1] != source[0] != target[0] == target[1] != NONE:  # its shards interleave
        local = nbytes / mesh.size
        return tuple(
            Transfer(kind=kind, nbytes=local, devices=mesh.size) for kind in ("all_to_all", "collective_permute")
        )
    transfers: list[Transfer] = []
    if len(moves) == 2 and _shifts(source, target):
        smaller = min(local, nbytes / mesh.shards(target))
        transfers.append(Transfer(kind="collective_permute", nbytes=smaller, devices=mesh.size))
        if given_up and NONE in source:  # one dimension over one axis, now over the other
            fewer = mesh.shards(source) // mesh.shards(target)
            if fewer > 1:
                transfers.append(Transfer(kind="all_gather", nbytes=nbytes / mesh.shards(target), devices=fewer))
            return tuple(transfers)
    taken_up = [size for size, before, after in moves if before == NONE != after]
    for size in taken_up if not given_up else ():
        local /= size
    transfers += [Transfer(kind="all_to_all", nbytes=local, devices=size) for size in moved]
    for size in given_up:
        local *= size
        transfers.append(Transfer(kind="all_gather", nbytes=local, devices=size))
    return tuple(transfers)


def _shifts(source: Spec, target: Spec) -> bool:
    """Whether the order of shards along a dimension changes: another axis becomes its more significant one."""
    return any(
        dim in target and dim != NONE and dim in source and source.index(dim) != target.index(dim)
        for dim in {*source, *target}
    )


@functools.lru_cache(maxsize=1 << 16)
def resharding_s(mesh: LogicalMesh, nbytes: float, source: Spec, target: Spec) -> float:
    """Seconds that `resharding` takes."""
    return mesh.seconds(resharding(mesh, nbytes, source, target))


def partition_spec(spec: Spec) -> PartitionSpec:
    """As jax writes it."""
    if all(dim == NONE for dim in spec):
        return PartitionSpec()
    entries: list[tuple[str, ...]] = [()] * (max(spec) + 1)
    for axis, dim in zip(AXES, spec, strict=False):
        if dim != NONE:
            entries[dim] = (*entries[dim], axis)
    return PartitionSpec(*(entry[0] if len(entry) == 1 else (entry or None) for entry in entries))


def fits(mesh: LogicalMesh, shape: Sequence[int], spec: Spec) -> bool:
    """Whether the dimensions that a spec splits divide."""
    parts: dict[int, int] = {}
    for size, dim in zip(mesh.shape, spec, strict=True):
        if dim != NONE:
            parts[dim] = parts.get(dim, 1) * size
    return all(dim < len(shape) and shape[dim] % count == 0 and shape[dim] > 0 for dim, count in parts.items())
