"""The classification extension of the Open Inference Protocol: the greatest values of each row, as text."""

import math

import numpy as np

from jaxserve.errors import InvalidInput
from jaxserve.protocols.datatypes import Value

MAX_CLASSES = 65_536
"""The most classes that one output may be answered with, over all rows: each is a string to be made."""


def classify(value: Value, count: int, *, what: str) -> tuple[list[str], tuple[int, ...]]:
    """The `count` greatest values of each row as "value:index", the greatest first, and the shape of them all.

    A row is what belongs to one entry of the first dimension, the batch; where a row has fewer values, it gives them
    all. Of equal values the one of the lower index comes first; NaN is less than every number.

    Raises:
        InvalidInput: the value is not made of numbers, or that would be too many classes.
    """
    if isinstance(value, list) or value.dtype == np.bool_:
        raise InvalidInput(f"{what} has no numbers to be classified by; leave the parameter classification out")
    shape = value.shape or (1,)
    rows, values_per_row = shape[0], math.prod(shape[1:])
    taken = min(count, values_per_row)
    if rows * taken > MAX_CLASSES:
        raise InvalidInput(
            f"{what}: classification={count} of {rows} rows of {values_per_row} values; at most {MAX_CLASSES} classes "
            f"are answered at a time, so ask for fewer"
        )
    table = value.reshape(rows, values_per_row)
    is_float = table.dtype.kind not in "iu"
    if is_float:
        table = table.astype(np.float64)  # bfloat16 does not sort
    texts: list[str] = []
    for row in table:
        indices = _greatest(row, taken, is_float=is_float)
        for number, index in zip(row[indices].tolist(), indices.tolist(), strict=True):
            texts.append(f"{number:f}:{index}" if is_float else f"{number}:{index}")
    return texts, (rows, taken)


def _greatest(row: np.ndarray, count: int, *, is_float: bool) -> np.ndarray:
    """The indices of the `count` greatest values of a row, in descending order of the values."""
    if is_float:
        row = np.where(np.isnan(row), -math.inf, row)
    # A stable sort of the reversed row, read backwards: descending, and of equal values the lower index first.
    return row.size - 1 - np.argsort(row[::-1], kind="stable")[::-1][:count]
