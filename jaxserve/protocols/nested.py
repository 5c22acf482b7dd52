"""Arrays out of nested lists of JSON values.

numpy would take more than is meant: text that looks like a number, true for 1, a fraction cut to a whole number. So the
lists are taken apart level by level, which also finds where they are ragged, and is as fast.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from jaxserve.errors import InvalidInput

NARROW_DTYPES: Mapping[str, np.dtype] = {
    name: np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")
}
"""The dtypes that are not numpy's own; float32 holds all their values."""

_WHOLE = frozenset({int})
_WITH_FLOATS = ({float}, {int, float})
_FLOATS = frozenset({int, float})
_TAKES: Mapping[str, tuple[frozenset[type], str]] = {
    "b": (frozenset({bool}), "true and false"),
    "i": (_WHOLE, "whole numbers"),
    "u": (_WHOLE, "whole numbers"),
    "f": (_FLOATS, "numbers"),
    "V": (_FLOATS, "numbers"),  # most of the narrow ones are of numpy's kind V
    "c": (_FLOATS, "numbers"),
}
_JSON_WORDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a fraction",
    str: "text",
    dict: "an object",
    list: "a list",
    type(None): "null",
}


def array_of(value: Any, spec: Mapping[str, Any], *, name: str) -> np.ndarray:
    """The array of nested lists, of the dtype of this spec; its sizes may be others than those of the spec.

    Args:
        value: nested lists, or one number.
        spec: shape and dtype, as the engine describes a tensor.
        name: of the input, for errors.

    Raises:
        InvalidInput: the lists are not all of one shape, too deep, or hold what is no such value.
    """
    dtype = NARROW_DTYPES.get(spec["dtype"]) or np.dtype(spec["dtype"])
    takes, words = _TAKES[dtype.kind]
    shape: list[int] = []
    level: list[Any] = [value]
    kinds: set[type] = {type(value)}
    while kinds == {list}:
        lengths = set(map(len, level))
        if len(lengths) > 1:
            raise _ragged(name, level, shape)
        shape.append(lengths.pop())
        if len(shape) > len(spec["shape"]):
            raise InvalidInput(f"input {name!r} is nested {len(shape)} deep or more, but must be {_described(spec)}")
        level = level[0] if len(level) == 1 else list(itertools.chain.from_iterable(level))
        kinds = set(map(type, level))
    if takes is _WHOLE and kinds in _WITH_FLOATS and all(type(each) is int or each.is_integer() for each in level):
        level, kinds = list(map(int, level)), {int}  # JSON has one kind of number: 2.0 is 2
    if not kinds <= takes:
        given = " and ".join(sorted(_JSON_WORDS.get(kind, kind.__name__) for kind in kinds - takes))
        raise InvalidInput(f"input {name!r} holds {given}, but must hold only {words}, as {_described(spec)}")
    try:
        return _cast(level, dtype).reshape(shape)
    except OverflowError:
        what = f"input {name!r} holds a number beyond the range of {dtype.name}"
        raise InvalidInput(f"{what}; scale it, or ask for a model of a wider dtype") from None


def _cast(numbers: list[Any], dtype: np.dtype) -> np.ndarray:
    if dtype.kind in "biu":
        return np.array(numbers, dtype)
    wide = np.array(numbers, np.float64)
    with np.errstate(over="ignore"):
        cast = wide.astype(dtype, copy=False)
    finite = np.isfinite(cast)
    if not finite.all() and not np.array_equal(finite, np.isfinite(wide)):
        raise OverflowError
    return cast


def _ragged(name: str, level: Sequence[Any], shape: Sequence[int]) -> InvalidInput:
    """What is said of lists at `level`, which is all lists of one depth, where they are not equally long."""
    odd = next(index for index, inner in enumerate(level) if len(inner) != len(level[0]))
    where = "".join(f"[{index}]" for index in np.unravel_index(odd, shape))
    first = "[0]" * len(shape)
    return InvalidInput(
        f"input {name!r} is ragged: {where} has {len(level[odd])} elements, but {first} has {len(level[0])}; "
        f"pad or cut them to one length"
    )


def _described(spec: Mapping[str, Any]) -> str:
    return f"{spec['dtype']} of shape [{', '.join(map(str, spec['shape']))}]"


def word_for(value: Any) -> str:
    """What a value is in JSON, in words that go after "is"."""
    return _JSON_WORDS.get(type(value), type(value).__name__)
