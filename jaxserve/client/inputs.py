"""What a caller may give as an input, made into what travels: a numpy array, or a list of str.

Arrays travel as they are. Python numbers and nested lists have no dtype of their own: they take the one that the model
declares, if that loses nothing but precision.
"""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jaxserve.errors import InvalidInput
from jaxserve.protocols.messages import Value

DtypeNames = Mapping[str, str]
"""Input name -> the dtype that the model declares for it: a numpy name, `bfloat16` or `string`."""


def needs_description(inputs: Mapping[str, Any]) -> bool:
    """Whether some input has no dtype of its own."""
    return any(not (hasattr(value, "__array__") or _is_text(value)) for value in inputs.values())


def to_wire(inputs: Mapping[str, Any], declared: DtypeNames) -> dict[str, Value]:
    """The inputs as they travel.

    Args:
        inputs: arrays (or what becomes one), numbers, nested lists of numbers, lists of str, by name.
        declared: the model's dtypes, as far as they are known; the server checks the rest.

    Raises:
        InvalidInput: a value that is none of these, or that does not fit the declared dtype. The message names it.
    """
    return {name: _value(name, value, declared.get(name)) for name, value in inputs.items()}


def _value(name: str, value: Any, dtype_name: str | None) -> Value:
    if _is_text(value) or (dtype_name == "string" and isinstance(value, list | tuple) and not value):
        return list(value)
    if isinstance(value, str | bytes):
        raise InvalidInput(f"input {name!r} is a single {type(value).__name__}; give a list of str")
    has_dtype = hasattr(value, "__array__")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"input {name!r} is not a regular array of numbers: {error}") from error
    if array.dtype.kind in "UOT":
        texts = array.tolist()
        # numpy would make texts of the numbers in a mixed list
        if not has_dtype or array.ndim != 1 or not all(type(text) is str for text in texts):
            raise InvalidInput(f"input {name!r} is neither an array of numbers nor a flat list of str")
        return texts
    return array if has_dtype or dtype_name is None else _cast(name, array, dtype_name)


def _is_text(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(item, str) for item in value)


def _cast(name: str, array: np.ndarray, dtype_name: str) -> np.ndarray:
    """Python numbers, as numpy took them, in the declared dtype."""
    if dtype_name == "string":
        raise InvalidInput(f"input {name!r} must be a list of str, not numbers")
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype_name == "bfloat16" else dtype_name)
    if array.size == 0:
        return array.astype(dtype)
    if array.dtype.kind in "iu" and dtype.kind in "iu":
        limits = np.iinfo(dtype.name)
        fits = limits.min <= int(array.min()) and int(array.max()) <= limits.max
        result = array.astype(dtype)
    elif array.dtype.kind in "biuf" and np.can_cast(array.dtype, dtype, casting="same_kind"):
        with np.errstate(over="ignore"):
            result = array.astype(dtype)
        fits = np.array_equal(np.isfinite(result), np.isfinite(array))
    else:
        raise InvalidInput(f"input {name!r} holds {array.dtype.name} values, the model takes {dtype.name}")
    if not fits:
        raise InvalidInput(f"input {name!r} holds numbers that are out of range for {dtype.name}")
    return result
