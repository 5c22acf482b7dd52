"""Buckets: the shapes that are compiled, and the smallest one that holds a request."""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from jaxserve.errors import InvalidInput, ModelError
from jaxserve.model.signature import BATCH, Signature


@dataclasses.dataclass(frozen=True, slots=True)
class Bucket:
    """One compiled shape.

    Attributes:
        dims: names of the variable dimensions, "batch" first.
        shape: their sizes.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Size by name of dimension."""
        return dict(zip(self.dims, self.shape, strict=True))

    @property
    def batch_size(self) -> int:
        """Size of the batch."""
        return self.shape[0]

    @property
    def length(self) -> int | None:
        """Size of the other variable dimension: None where there is none, the product where there are several."""
        return math.prod(self.shape[1:]) if len(self.shape) > 1 else None

    def __str__(self) -> str:
        return ", ".join(f"{dim} {size}" for dim, size in zip(self.dims, self.shape, strict=True))


class BucketGrid:
    """All buckets of a model: each size of the batch with each size of every other variable dimension.

    Attributes:
        dims: names of the variable dimensions, "batch" first.
        buckets: ascending by batch size first, then by the others.

    Raises:
        ModelError: a dimension has no sizes, or its sizes are not positive and ascending.
    """

    __slots__ = ("_axes", "buckets", "dims")

    def __init__(self, signature: Signature, batch_sizes: Sequence[int], others: Mapping[str, Sequence[int]]) -> None:
        sizes = {BATCH: _sizes("batch_sizes", batch_sizes)}
        for dim in signature.dims:
            if dim == BATCH:
                continue
            if dim not in others:
                raise ModelError(
                    f"dimension {dim!r} is variable, but buckets has no sizes for it; "
                    f"give buckets={{{dim!r}: (16, 32, 64)}} or fix the dimension"
                )
            sizes[dim] = _sizes(f"buckets[{dim!r}]", others[dim])
        unknown = [dim for dim in others if dim not in sizes or dim == BATCH]
        if unknown:
            raise ModelError(
                f"buckets names {unknown[0]!r}, but the variable dimensions besides the batch are "
                f"{[dim for dim in sizes if dim != BATCH]}; the batch has its batch_sizes"
            )
        self.dims = tuple(sizes)
        self.buckets = tuple(Bucket(self.dims, shape) for shape in itertools.product(*sizes.values()))
        self._axes = tuple(sizes.items())

    def sizes_of(self, dim: str) -> tuple[int, ...]:
        """The sizes of one dimension."""
        return dict(self._axes)[dim]

    def index(self, sizes: Mapping[str, int]) -> int:
        """Index of the smallest bucket that holds these sizes.

        Raises:
            InvalidInput: a size lies beyond the largest bucket.
        """
        index = 0
        for dim, steps in self._axes:
            position = bisect.bisect_left(steps, sizes[dim])
            if position == len(steps):
                raise InvalidInput(
                    f"{dim} is {sizes[dim]}, but the largest bucket holds {steps[-1]}; send at most that many",
                    **{dim: sizes[dim], "largest": steps[-1]},
                )
            index = index * len(steps) + position
        return index


def _sizes(what: str, sizes: Sequence[int]) -> tuple[int, ...]:
    if isinstance(sizes, str) or not isinstance(sizes, Sequence) or not sizes:
        raise ModelError(f"{what} is {sizes!r}, but must be a non-empty tuple of sizes, such as (1, 2, 4)")
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ModelError(f"{what} has {size!r}; a size is a whole number of at least 1")
    if any(second <= first for first, second in itertools.pairwise(sizes)):
        raise ModelError(f"{what} is {tuple(sizes)}, but sizes must ascend, each once: {tuple(sorted(set(sizes)))}")
    return tuple(sizes)
