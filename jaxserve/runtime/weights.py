"""The weights of a stage on its submesh: which share an array, and how they get there.

Every argument of a compiled program costs time at each call, so small weights of one shape, dtype and sharding lie
stacked in one array, and the program takes them out by static slices: biases and scales of norms, which XLA reads in
place. The operands of products do not, as XLA would copy each out of the stack at every call.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxserve.model import Model
from jaxserve.model.params import Shape

# bench/dispatch.py measures it: stacking saves 0.3 us and more for each vector of up to 256 KiB, on one CPU device and
# on four, but costs about 1 us for each small matrix on one and 2 us on four. The bound
# keeps the copies at loading small.
STACK_BELOW_BYTES = 64 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One leaf of the params, as a stage uses it.

    Attributes:
        index: of the leaf.
        shape: shape and dtype.
        spec: how it lies on the stage's submesh.
        added: whether the stage only adds it, multiplies by it and the like.
    """

    index: int
    shape: Shape
    spec: PartitionSpec
    added: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the whole leaf."""
        return math.prod(self.shape.shape) * self.shape.dtype.itemsize


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One array on a submesh.

    Attributes:
        params: indices of the leaves of the model's params that it holds; several lie stacked along a first axis.
        shape: shape and dtype of the array.
        sharding: where it lies.
    """

    params: tuple[int, ...]
    shape: Shape
    sharding: NamedSharding

    @property
    def stacked(self) -> bool:
        """Whether it holds more than one weight."""
        return len(self.params) > 1

    @property
    def bytes_per_device(self) -> int:
        """Bytes that it takes on each device."""
        return math.prod(self.sharding.shard_shape(self.shape.shape)) * self.shape.dtype.itemsize


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """All weights of a stage, in the order in which its programs take them."""

    slots: tuple[Slot, ...]

    @property
    def bytes_per_device(self) -> int:
        """Bytes of weights on each device of the stage."""
        return sum(slot.bytes_per_device for slot in self.slots)

    def unpack(self, arrays: Sequence[jax.Array]) -> dict[int, jax.Array]:
        """The weights by the index of their leaf; traced inside the stage's program."""
        weights: dict[int, jax.Array] = {}
        for slot, array in zip(self.slots, arrays, strict=True):
            if slot.stacked:
                weights.update((param, array[place]) for place, param in enumerate(slot.params))
            else:
                weights[slot.params[0]] = array
        return weights


def lay_out(weights: Sequence[Weight], mesh: Mesh, *, stack_below_bytes: int = STACK_BELOW_BYTES) -> Layout:
    """Groups a stage's weights into arrays: small ones are stacked where XLA reads them in place."""
    groups: dict[Any, list[Weight]] = {}
    for weight in weights:
        stackable = weight.added and weight.nbytes < stack_below_bytes
        kind = (weight.shape.shape, weight.shape.dtype, weight.spec) if stackable else weight.index
        groups.setdefault(kind, []).append(weight)
    slots: list[Slot] = []
    for members in groups.values():
        shape, spec = members[0].shape, members[0].spec
        if len(members) > 1:
            shape, spec = Shape((len(members), *shape.shape), shape.dtype), PartitionSpec(None, *spec)
        indices = tuple(weight.index for weight in members)
        slots.append(Slot(params=indices, shape=shape, sharding=NamedSharding(mesh, spec)))
    return Layout(slots=tuple(slots))


def load_weights(
    model: Model, layouts: Sequence[Layout], *, loaded: Callable[[int, int], None] = lambda done, total: None
) -> list[list[jax.Array]]:
    """The arrays of each layout, filled leaf by leaf: no more of the host's memory is used than a few leaves take.

    A leaf that two stages use is read once for each. `loaded` is called with the count of leaves that are in place.
    """
    wanted = [
        (param, stage, place)
        for stage, layout in enumerate(layouts)
        for place, slot in enumerate(layout.slots)
        for param in slot.params
    ]
    wanted.sort()  # in the order of the source, a leaf's uses side by side
    arrays: list[dict[int, jax.Array]] = [{} for _ in layouts]
    waiting: dict[tuple[int, int], dict[int, np.ndarray[Any, Any]]] = collections.defaultdict(dict)
    targets = [(model.param_paths[param], _target(layouts[stage].slots[place])) for param, stage, place in wanted]
    before: jax.Array | None = None
    for done, (leaf, (param, stage, place)) in enumerate(zip(model.param_source.read(targets), wanted, strict=True)):
        if before is not None:  # transfers are asynchronous, and hold the host's copy until they end
            before.block_until_ready()
        before = leaf
        slot = layouts[stage].slots[place]
        if slot.stacked:
            rows = waiting[stage, place]
            rows[param] = np.asarray(leaf)
            if len(rows) == len(slot.params):
                stack = np.stack([rows[member] for member in slot.params])
                arrays[stage][place] = jax.device_put(stack, slot.sharding)
                del waiting[stage, place]
        else:
            arrays[stage][place] = leaf
        loaded(done + 1, len(wanted))
    return [[arrays[stage][place] for place in range(len(layout.slots))] for stage, layout in enumerate(layouts)]


def _target(slot: Slot) -> jax.sharding.Sharding:
    """Where a leaf of a slot is read to: a small one to one device, to be fetched and stacked."""
    return SingleDeviceSharding(next(iter(slot.sharding.device_set))) if slot.stacked else slot.sharding
