"""The buckets of a model, as batches see them.

A bucket is a batch size together with a *cell*: a size of every other variable dimension. Requests merge into one
bucket: their rows add up along the batch, and its cell is at least as large as each of theirs in every dimension.
Buckets are numbered by batch size first, cells by their first dimension first, as in `model.buckets`.
"""

import bisect
import itertools
import math
from collections.abc import Sequence


class Grid:
    """Which buckets requests may be merged into.

    Args:
        batch_sizes: rows that each bucket holds, ascending.
        others: how many sizes each other variable dimension has.
        max_batch: larger buckets are for requests that fill them by themselves.

    Attributes:
        cells: how many cells there are.
        sizes: the batch sizes that are used, ascending.
        most_rows: what merged requests have together at most.
    """

    __slots__ = ("_position_of", "_united", "cells", "most_rows", "sizes")

    def __init__(self, batch_sizes: Sequence[int], others: Sequence[int] = (), *, max_batch: int) -> None:
        self.sizes = [size for size in batch_sizes if size <= max_batch]
        self.cells = math.prod(others)
        self.most_rows = self.sizes[-1] if self.sizes else 0
        self._position_of = [bisect.bisect_left(self.sizes, rows) for rows in range(self.most_rows + 1)]
        corners = list(itertools.product(*map(range, others)))
        index_of = {corner: index for index, corner in enumerate(corners)}
        self._united = [
            [index_of[tuple(map(max, one, other))] for other in corners] if len(others) > 1 else []
            for one in corners
        ]  # fmt: skip

    def cell(self, bucket: int) -> int:
        """The cell of a bucket."""
        return bucket % self.cells

    def united(self, one: int, other: int) -> int:
        """The smallest cell that holds two."""
        row = self._united[one]
        return row[other] if row else max(one, other)

    def holding(self, rows: int, cell: int) -> int:
        """The smallest bucket for so many rows, at most `most_rows`, in a cell."""
        return self._position_of[rows] * self.cells + cell


ALONE = Grid((), max_batch=0)
"""For a model whose requests are never merged."""
