"""What a model returns: names, dtypes, and which dimensions follow the batch and the other variable dimensions.

The model is traced abstractly at two sizes of each variable dimension. An output dimension that goes from the one size
to the other follows it, and is cut back to the request's size when the padding comes off.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxserve.errors import ModelError
from jaxserve.model.buckets import BucketGrid
from jaxserve.model.params import Shape
from jaxserve.model.signature import BATCH, Signature, TensorSpec, numpy_dtype

Evaluate = Callable[[Mapping[str, int]], Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The outputs of a model.

    Attributes:
        specs: by name, in the order of the leaves of what the model returns.
        tree: structure of what the model returns.
        bare: whether that is a single array.
    """

    specs: dict[str, TensorSpec]
    tree: Any
    bare: bool

    def restore(self, outputs: Mapping[str, Any]) -> Any:
        """The named outputs in the structure that the model returns."""
        return self.tree.unflatten([outputs[name] for name in self.specs])

    def named(self, returned: Any) -> dict[str, Any]:
        """What the model returned, by name.

        Raises:
            ValueError: it has another structure than when the model was made.
        """
        leaves, tree = jax.tree.flatten(returned)
        if tree != self.tree:
            raise ValueError(f"it returned {tree}, but when the model was made {self.tree}")
        return dict(zip(self.specs, leaves, strict=True))


def abstract_inputs(signature: Signature, sizes: Mapping[str, int]) -> dict[str, Shape]:
    """The inputs at these sizes, as shapes."""
    return {name: Shape(spec.resolve(sizes), numpy_dtype(spec.dtype)) for name, spec in signature.items()}


def find_outputs(evaluate: Evaluate, grid: BucketGrid) -> Outputs:
    """The outputs of a model whose abstract value at given sizes `evaluate` returns.

    Raises:
        ModelError: it cannot be evaluated, or an output does not follow the batch.
    """
    base = grid.buckets[0].sizes
    try:
        returned = evaluate(base)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"its apply cannot be traced at {grid.buckets[0]}: {type(error).__name__}: {error}\n"
            f"inputs reach it as keyword arguments of their names"
        ) from error
    leaves, tree = jax.tree_util.tree_flatten_with_path(returned)
    if not leaves:
        raise ModelError("its apply returns nothing; it must return at least one array")
    names = [output_name(keys) for keys, _ in leaves]
    if len(set(names)) < len(names):
        raise ModelError(f"two outputs have one name: {names}; rename a key that holds '/'")
    shapes = [_shape(name, leaf) for name, (_, leaf) in zip(names, leaves, strict=True)]
    dims: list[list[int | str]] = [list(shape.shape) for shape in shapes]
    at_once = _probe_at_once(evaluate, grid, tree, shapes)
    for dim in grid.dims:
        probe, probed = at_once[dim] if at_once else _probe(evaluate, grid, dim, tree)
        _follow(names, shapes, probed, dims, (dim, base[dim], probe))
    specs = {
        name: TensorSpec(tuple(dim), str(shape.dtype)) for name, shape, dim in zip(names, shapes, dims, strict=True)
    }
    for sizes in _other_sizes(grid):
        _check_at(evaluate, sizes, specs, tree)
    return Outputs(specs=specs, tree=tree, bare=jax.tree_util.treedef_is_leaf(tree))


def _other_sizes(grid: BucketGrid) -> list[dict[str, int]]:
    """Where the outputs are looked at once more: at each further size of each dimension, and at the largest of all."""
    base = grid.buckets[0].sizes
    others = [{**base, dim: size} for dim in grid.dims for size in grid.sizes_of(dim)[2:]]  # the second was probed
    largest = grid.buckets[-1].sizes
    return others if len(grid.dims) == 1 or largest == base else [*others, largest]


def _check_at(evaluate: Evaluate, sizes: Mapping[str, int], specs: Mapping[str, TensorSpec], tree: Any) -> None:
    where = ", ".join(f"{dim} {size}" for dim, size in sizes.items())
    try:
        leaves, found = jax.tree.flatten(evaluate(sizes))
    except Exception as error:
        raise ModelError(
            f"its apply cannot be traced at {where}: {type(error).__name__}: {error}; take that size out of the buckets"
        ) from error
    if found != tree:
        raise ModelError(f"it returns another structure at {where} than at its smallest bucket: {found} and {tree}")
    for (name, spec), leaf in zip(specs.items(), leaves, strict=True):
        shape = _shape(name, leaf)
        if shape.shape != spec.resolve(sizes) or str(shape.dtype) != spec.dtype:
            raise ModelError(
                f"output {name!r} at {where} is {shape.dtype} of {shape.shape}, but by its smaller buckets it should "
                f"be {spec.dtype} of {spec.resolve(sizes)}"
            )


def output_name(keys: Sequence[Any]) -> str:
    """Keys of a dict stay as they are, a bare array is "output", items of a tuple are "output_0" and so on."""
    names = []
    for place, key in enumerate(keys):
        index = getattr(key, "idx", None)
        if index is not None:
            names.append(str(index) if place else f"output_{index}")
        else:
            names.append(str(getattr(key, "key", getattr(key, "name", key))))
    return "/".join(names) or "output"


def _shape(name: str, leaf: Any) -> Shape:
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise ModelError(f"output {name!r} is a {type(leaf).__name__}, but must be an array")
    if not leaf.shape:
        raise ModelError(f"output {name!r} is a scalar, so it has no batch dimension; return one value for each item")
    try:
        numpy_dtype(str(leaf.dtype))
    except ModelError as error:
        raise ModelError(f"output {name!r}: {error}") from None
    return Shape(tuple(leaf.shape), np.dtype(leaf.dtype))


def _probe_at_once(
    evaluate: Evaluate, grid: BucketGrid, tree: Any, shapes: Sequence[Shape]
) -> dict[str, tuple[int, list[Shape]]] | None:
    """The outputs at another size of every dimension, each as if it alone had changed; one trace in place of several.

    None where that does not tell the dimensions apart, or cannot be traced: then each is probed by itself, and a
    message can say which one it is that fails.
    """
    base = grid.buckets[0].sizes
    probes: dict[str, int] = {}
    for dim in grid.dims:
        others = grid.sizes_of(dim)[1:]
        half = base[dim] // 2  # upwards a table of positions may end
        probes[dim] = others[0] if others else half if dim != BATCH and half > 1 else 2 * base[dim]
    changes = {(base[dim], probe): dim for dim, probe in probes.items()}
    if len(grid.dims) == 1 or len(changes) < len(probes):
        return None
    try:
        leaves, other_tree = jax.tree.flatten(evaluate({**base, **probes}))
        probed = [_shape("output", leaf) for leaf in leaves]
    except Exception:
        return None  # probing one dimension after the other will say why
    if other_tree != tree or any(len(a.shape) != len(b.shape) for a, b in zip(shapes, probed, strict=True)):
        return None
    found: dict[str, tuple[int, list[Shape]]] = {dim: (probe, []) for dim, probe in probes.items()}
    for shape, other in zip(shapes, probed, strict=True):
        axes = list(zip(shape.shape, other.shape, strict=True))
        if any(before != after and (before, after) not in changes for before, after in axes):
            return None
        for dim, (_, alone) in found.items():
            only = tuple(after if changes.get((before, after)) == dim else before for before, after in axes)
            alone.append(Shape(only, shape.dtype))
    return found


def _probe(evaluate: Evaluate, grid: BucketGrid, dim: str, tree: Any) -> tuple[int, list[Shape] | None]:
    """The outputs at another size of one dimension: of a bucket where there is a second, else of a guess.

    A size that is no bucket may well be impossible (a mesh of positions ends, groups must divide); then None.
    """
    base = grid.buckets[0].sizes
    size = base[dim]
    others = grid.sizes_of(dim)[1:]
    probes = [others[0]] if others else [2 * size, size + 1]
    if not others and dim != BATCH:  # a batch can always be larger; downwards a size of 1 would broadcast
        probes += [each for each in (size - 1, size // 2) if each > 1]
    for probe in probes:
        try:
            returned = evaluate({**base, dim: probe})
        except Exception as error:
            if others:
                raise ModelError(
                    f"its apply cannot be traced with {dim} {probe}: {type(error).__name__}: {error}"
                ) from error
            continue
        leaves, other_tree = jax.tree.flatten(returned)
        if other_tree != tree:
            raise ModelError(f"it returns another structure at {dim} {probe} than at {size}: {other_tree} and {tree}")
        return probe, [_shape("output", leaf) for leaf in leaves]
    return size, None


def _follow(
    names: Sequence[str],
    shapes: Sequence[Shape],
    probed: Sequence[Shape] | None,
    dims: list[list[int | str]],
    change: tuple[str, int, int],
) -> None:
    """Writes the name of the changed dimension into `dims` wherever an output follows it."""
    dim, size, probe = change
    for place, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        if probed is None:
            following = [axis for axis, extent in enumerate(shape.shape) if extent == size]
            if dim == BATCH:
                following = [axis for axis in following if axis == 0]
            elif following:
                raise ModelError(
                    f"dimension {following[0]} of output {name!r} may follow {dim!r} or may be fixed at {size}: the "
                    f"model can be traced at {dim} {size} only; fix that dimension of the inputs, or give a second size"
                )
        else:
            other = probed[place].shape
            if len(other) != len(shape.shape):
                raise ModelError(f"output {name!r} changes its rank with {dim}: {shape.shape} and {other}")
            following = [axis for axis, extent in enumerate(shape.shape) if other[axis] != extent]
            for axis in following:
                if (shape.shape[axis], other[axis]) != (size, probe):
                    raise ModelError(
                        f"dimension {axis} of output {name!r} goes from {shape.shape[axis]} to {other[axis]} as {dim} "
                        f"goes from {size} to {probe}; it must equal {dim}, so that padding can be taken off"
                    )
        if dim == BATCH and following != [0]:
            raise ModelError(
                f"output {name!r} of shape {shape.shape} has no batch dimension: its first dimension, and no other, "
                f"must be the batch; return one value for each item"
            )
        for axis in following:
            dims[place][axis] = dim
