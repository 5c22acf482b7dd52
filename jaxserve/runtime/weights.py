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
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxserve.model import Model
from jaxserve.model.params import Shape
from jaxserve.parallel import Derived
from jaxserve.runtime.evaluate import evaluate, host_device

# bench/dispatch.py measures it: stacking saves 0.3 us and more for each vector of up to 256 KiB, on one CPU device and
# on four, but costs about 1 us for each small matrix on one and 2 us on four. The bound
# keeps the copies at loading small.
STACK_BELOW_BYTES = 64 * 1024

HostCopy = np.ndarray[Any, Any] | jax.Array  # jax's own only of keys, which numpy cannot hold


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One weight, as a stage uses it.

    Attributes:
        index: in the list of the model's weights.
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
        """Bytes of the whole weight."""
        return math.prod(self.shape.shape) * self.shape.dtype.itemsize


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One array on a submesh.

    Attributes:
        weights: indices of the weights that it holds; several lie stacked along a first axis.
        shape: shape and dtype of the array.
        sharding: where it lies.
    """

    weights: tuple[int, ...]
    shape: Shape
    sharding: NamedSharding

    @property
    def stacked(self) -> bool:
        """Whether it holds more than one weight."""
        return len(self.weights) > 1

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
        """The weights by their index; traced inside the stage's program."""
        weights: dict[int, jax.Array] = {}
        for slot, array in zip(self.slots, arrays, strict=True):
            if slot.stacked:
                weights.update((weight, array[row]) for row, weight in enumerate(slot.weights))
            else:
                weights[slot.weights[0]] = array
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
        slots.append(Slot(weights=indices, shape=shape, sharding=NamedSharding(mesh, spec)))
    return Layout(slots=tuple(slots))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadedWeights:
    """The weights of a stage on its submesh.

    Attributes:
        arrays: one for each slot of the layout.
        owned: of these, the ones that nobody else may hold: they are deleted when the model is closed.
        copies: the same in host memory, where they were asked for.
    """

    arrays: tuple[jax.Array, ...]
    owned: tuple[jax.Array, ...]
    copies: tuple[HostCopy, ...] | None = None


def host_copy(value: Any) -> HostCopy:
    """A value in host memory; one that lies there already is not copied, unless its elements are not in order."""
    return value if jnp.issubdtype(value.dtype, jax.dtypes.extended) else np.asarray(value, order="C")


def load_weights(
    model: Model,
    derived: Sequence[Derived],
    layouts: Sequence[Layout],
    *,
    copies: bool = False,
    loaded: Callable[[int, int], None] = lambda done, total: None,
) -> list[LoadedWeights]:
    """The arrays of each layout, filled leaf by leaf: no more of the host's memory is used than a few leaves take.

    Each leaf is read once. One that is a weight itself goes straight to its devices. What is derived is computed on the
    host, so that no device ever holds more of a leaf than what its stage needs. Where copies are asked for, every leaf
    is read to the host, and the devices are filled from the copies.

    Args:
        model: whose params are read.
        derived: how each weight is made of leaves.
        layouts: one for each stage.
        copies: whether to keep a copy of each array in host memory; of arrays that lie there already, such as the
            model's own on jax's CPU device, it is no copy but the same memory.
        loaded: called with the count of weights that are in place, and of those there are; one counts in each stage.
    """
    uses = _Uses(derived, layouts, through_host=copies)
    fillings = [_Filling(layout, copies=copies) for layout in layouts]
    targets = [(model.param_paths[leaf], uses.target(leaf)) for leaf in uses.leaves]
    leaves: dict[int, jax.Array] = {}
    moving: list[jax.Array] = []
    done = 0
    for leaf, array in zip(uses.leaves, model.param_source.read(targets), strict=True):
        jax.block_until_ready(moving)  # transfers are asynchronous, and hold the host's copy until they end
        moving = []
        leaves[leaf] = array
        for weight in uses.complete_with(leaf):
            recipe = derived[weight]
            ours = recipe.program is not None
            value = array if recipe.program is None else evaluate(recipe.program, [leaves[i] for i in recipe.leaves])
            for stage, place in uses.places[weight]:
                moving += fillings[stage].put(place, weight, value, ours=ours)
                done += 1
                loaded(done, uses.total)
        for finished in uses.finished_with(leaf):
            del leaves[finished]
    return [filling.loaded(lends=model.param_source.lends) for filling in fillings]


class _Uses:
    """Which leaves are read, and where the weights go that are made of them.

    Attributes:
        leaves: what is read, in the order of the source.
        places: for each weight that a stage uses, the stages and the places of its slot there.
        total: number of all places.
    """

    def __init__(self, derived: Sequence[Derived], layouts: Sequence[Layout], *, through_host: bool) -> None:
        self._through_host = through_host
        self._layouts = layouts
        self.places: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
        for stage, layout in enumerate(layouts):
            for place, slot in enumerate(layout.slots):
                for weight in slot.weights:
                    self.places[weight].append((stage, place))
        self.total = sum(map(len, self.places.values()))
        self._weights: dict[int, list[int]] = collections.defaultdict(list)  # of a leaf
        self._complete: dict[int, list[int]] = collections.defaultdict(list)
        self._finished: dict[int, list[int]] = collections.defaultdict(list)
        for weight in sorted(self.places):
            self._complete[max(derived[weight].leaves)].append(weight)
            for leaf in derived[weight].leaves:
                self._weights[leaf].append(weight)
        self.leaves = sorted(self._weights)
        for leaf, weights in self._weights.items():
            self._finished[max(max(derived[weight].leaves) for weight in weights)].append(leaf)
        self._on_host = SingleDeviceSharding(host_device())
        self._derived = derived

    def target(self, leaf: int) -> jax.sharding.Sharding:
        """Where a leaf is read to: the host, if it is needed there, or else its first slot."""
        if self._through_host:
            return self._on_host
        slots = [
            self._layouts[stage].slots[place] for weight in self._weights[leaf] for stage, place in self.places[weight]
        ]
        derives = any(self._derived[weight].program is not None for weight in self._weights[leaf])
        return self._on_host if derives or any(slot.stacked for slot in slots) else slots[0].sharding

    def complete_with(self, leaf: int) -> Sequence[int]:
        """The weights that can be made when this leaf has been read."""
        return self._complete[leaf]

    def finished_with(self, leaf: int) -> Sequence[int]:
        """The leaves that nobody needs any more when they have been made."""
        return self._finished[leaf]


class _Filling:
    """The arrays of one layout, as far as they are there."""

    def __init__(self, layout: Layout, *, copies: bool) -> None:
        self._slots = layout.slots
        self._copies: dict[int, HostCopy] | None = {} if copies else None
        self._arrays: dict[int, jax.Array] = {}
        self._ours: set[int] = set()
        self._waiting: dict[int, dict[int, np.ndarray[Any, Any]]] = collections.defaultdict(dict)

    def put(self, place: int, weight: int, value: Any, *, ours: bool) -> list[jax.Array]:
        """Puts one weight into its slot; the array that is on its way now, if any is."""
        slot = self._slots[place]
        if slot.stacked:
            rows = self._waiting[place]
            rows[weight] = np.asarray(value)
            if len(rows) < len(slot.weights):
                return []
            value, ours = np.stack([rows[member] for member in slot.weights]), True
            del self._waiting[place]
        if self._copies is not None:
            value = self._copies[place] = host_copy(value)
        array = jax.device_put(value, slot.sharding)
        self._arrays[place] = array
        if ours:
            self._ours.add(place)
        return [array]

    def loaded(self, *, lends: bool) -> LoadedWeights:
        """All of them. Where the source lends its arrays, only those are ours that were made of them."""
        places = range(len(self._slots))
        arrays = tuple(self._arrays[place] for place in places)
        owned = tuple(array for place, array in enumerate(arrays) if place in self._ours or not lends)
        copies = None if self._copies is None else tuple(self._copies[place] for place in places)
        return LoadedWeights(arrays=arrays, owned=owned, copies=copies)
