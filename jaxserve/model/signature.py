"""Named tensors: what a model takes and returns, and the check of what a caller gave."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from jaxserve.errors import InvalidInput, ModelError

BATCH = "batch"
STRING = "string"

_NUMPY_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
_MOST_SHOWN, _LONGEST_SHOWN = 8, 64
"""Of names that a stranger chose, in messages."""
_DTYPES: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(name) for name in _NUMPY_DTYPES},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")},
}

Tensor = np.ndarray[Any, np.dtype[Any]] | list[str]


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a name, bfloat16 included; `ModelError` for a name that is none."""
    dtype = _DTYPES.get(name)
    if dtype is None:
        raise ModelError(f"dtype {name!r} is unknown; choose one of {', '.join((*_DTYPES, STRING))}")
    return dtype


@dataclasses.dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype of one named tensor.

    Attributes:
        shape: a number for a fixed dimension, a name for a variable one; the first is "batch".
        dtype: a numpy name, "bfloat16", or "string" for a list of str (only in what a client sends).

    Raises:
        ModelError: a dimension or the dtype makes no sense.
    """

    shape: tuple[int | str, ...]
    dtype: str

    def __post_init__(self) -> None:
        if isinstance(self.shape, str) or not isinstance(self.shape, Sequence):
            raise ModelError(f"shape is {self.shape!r}, but must be a tuple of sizes and names, such as ('batch', 128)")
        object.__setattr__(self, "shape", tuple(self.shape))
        for dim in self.shape:
            if isinstance(dim, bool) or not isinstance(dim, int | str):
                raise ModelError(f"shape {self.shape} has {dim!r}; a dimension is a whole number or a name")
            if isinstance(dim, int) and dim < 1:
                raise ModelError(f"shape {self.shape} has {dim}; a fixed dimension is at least 1")
            if isinstance(dim, str) and not dim.isidentifier():
                raise ModelError(f"shape {self.shape} has {dim!r}; a variable dimension has a name such as 'length'")
        if self.shape.count(BATCH) > 1:
            raise ModelError(f"shape {self.shape} names the batch twice")
        if self.dtype != STRING:
            if not isinstance(self.dtype, str):
                raise ModelError(f"dtype is {self.dtype!r}, but must be a name such as 'float32'")
            numpy_dtype(self.dtype)

    def resolve(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with numbers in place of names."""
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.shape)


@dataclasses.dataclass(frozen=True, slots=True)
class _Input:
    """What the check of one input needs, worked out beforehand."""

    name: str
    dtype: np.dtype[Any] | None
    rank: int
    fixed: tuple[tuple[int, int], ...]
    variable: tuple[tuple[int, str], ...]
    spec: TensorSpec


class Signature(Mapping[str, TensorSpec]):
    """Named `TensorSpec`s, and the check of tensors against them.

    Raises:
        ModelError: there is none, or one does not begin with the batch.
    """

    __slots__ = ("_checks", "_specs", "dims")

    def __init__(self, specs: Mapping[str, TensorSpec], *, what: str, strings: bool) -> None:
        if not isinstance(specs, Mapping) or not specs:
            raise ModelError(f"{what} is {specs!r}, but must name at least one TensorSpec, such as {{'x': ...}}")
        for name, spec in specs.items():
            _check_spec(name, spec, what=what, strings=strings)
        self._specs = dict(specs)
        self._checks = tuple(_input(name, spec) for name, spec in self._specs.items())
        names = [dim for spec in self._specs.values() for dim in spec.shape if isinstance(dim, str)]
        self.dims: tuple[str, ...] = tuple(dict.fromkeys(names))

    def __getitem__(self, name: str) -> TensorSpec:
        return self._specs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __repr__(self) -> str:
        return repr(self._specs)

    def check(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The tensors as arrays (strings as lists), and the size of each variable dimension.

        Raises:
            InvalidInput: one is missing, unknown, or of another dtype, rank or size; the message names it.
        """
        if not isinstance(inputs, Mapping):
            raise InvalidInput(f"the inputs are a {type(inputs).__name__}, but must be a dict of arrays by name")
        if inputs.keys() != self._specs.keys():
            raise self._wrong_names(inputs)
        tensors: dict[str, Tensor] = {}
        sizes: dict[str, int] = {}
        for check in self._checks:
            value = inputs[check.name]
            if check.dtype is None:
                tensor, shape = _strings(check, value)
            else:
                tensor = value if type(value) is np.ndarray else _array(check, value)
                if tensor.dtype != check.dtype:
                    raise InvalidInput(
                        f"input {check.name!r} is an array of {tensor.dtype}, but must be of {check.spec.dtype}; "
                        f"cast it before sending"
                    )
                shape = tensor.shape
            _measure(check, shape, sizes)
            tensors[check.name] = tensor
        return tensors, sizes

    def _wrong_names(self, inputs: Mapping[str, Any]) -> InvalidInput:
        missing = [name for name in self._specs if name not in inputs]
        unknown = [str(name)[:_LONGEST_SHOWN] for name in inputs if name not in self._specs][:_MOST_SHOWN]
        parts = [f"lack {', '.join(map(repr, missing))}"] if missing else []
        parts += [f"have {', '.join(map(repr, unknown))}, which it does not take"] if unknown else []
        return InvalidInput(f"the inputs {' and '.join(parts)}; it takes {', '.join(map(repr, self._specs))}")


def _check_spec(name: str, spec: TensorSpec, *, what: str, strings: bool) -> None:
    if not isinstance(name, str) or not name:
        raise ModelError(f"{what} has the name {name!r}; a name is a non-empty str")
    if not isinstance(spec, TensorSpec):
        raise ModelError(f"{what}[{name!r}] is {spec!r}, but must be a TensorSpec")
    if not spec.shape or spec.shape[0] != BATCH:
        raise ModelError(f"{what}[{name!r}] has shape {spec.shape}, but its first dimension must be 'batch'")
    if spec.dtype == STRING and not strings:
        raise ModelError(
            f"{what}[{name!r}] is of strings, which no module takes; name it in accepts and give a preprocess"
        )
    if spec.dtype == STRING and len(spec.shape) != 1:
        raise ModelError(f"{what}[{name!r}] has shape {spec.shape}; strings come as ('batch',) only")


def _input(name: str, spec: TensorSpec) -> _Input:
    return _Input(
        name=name,
        dtype=None if spec.dtype == STRING else numpy_dtype(spec.dtype),
        rank=len(spec.shape),
        fixed=tuple((axis, dim) for axis, dim in enumerate(spec.shape) if isinstance(dim, int)),
        variable=tuple((axis, dim) for axis, dim in enumerate(spec.shape) if isinstance(dim, str)),
        spec=spec,
    )


def _measure(check: _Input, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    """Checks rank and fixed dimensions, and notes the variable ones in `sizes`."""
    if len(shape) != check.rank:
        raise InvalidInput(
            f"input {check.name!r} has shape {shape}, of rank {len(shape)}, but must have rank {check.rank}: "
            f"{check.spec.shape}"
        )
    for axis, dim in check.fixed:
        if shape[axis] != dim:
            raise InvalidInput(
                f"input {check.name!r} has shape {shape}, but dimension {axis} must be {dim}: {check.spec.shape}"
            )
    for axis, dim in check.variable:
        size = shape[axis]
        if size < 1:
            raise InvalidInput(f"input {check.name!r} has shape {shape}; {dim!r} must be at least 1")
        if sizes.setdefault(dim, size) != size:
            raise InvalidInput(
                f"input {check.name!r} has {dim!r} of {size}, but another input has {sizes[dim]}; they must agree"
            )


def _strings(check: _Input, value: Any) -> tuple[list[str], tuple[int, ...]]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, tuple):
        value = list(value)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidInput(f"input {check.name!r} must be a list of str")
    return value, (len(value),)


def _array(check: _Input, value: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """An array from what is none: lists and numbers are cast where their kind and their values allow it."""
    assert check.dtype is not None
    if isinstance(value, np.ndarray | np.generic) or not isinstance(value, list | tuple | int | float | complex):
        if not hasattr(value, "__array__"):
            raise InvalidInput(f"input {check.name!r} is a {type(value).__name__}, but must be an array or a list")
        return np.asarray(value)
    try:
        wide = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"input {check.name!r} is a list that is no array: {error}") from error
    if wide.dtype == check.dtype:
        return wide
    if wide.size == 0:  # an empty list has no kind of its own
        return wide.astype(check.dtype)
    if wide.dtype.kind not in _CAST_FROM[check.dtype.kind]:
        raise InvalidInput(f"input {check.name!r} is a list of {wide.dtype}, but must hold {check.spec.dtype}")
    with np.errstate(over="ignore"):
        cast = wide.astype(check.dtype)
    integers = check.dtype.kind in "iu"
    fits = np.array_equal(cast, wide) if integers else np.array_equal(np.isfinite(cast), np.isfinite(wide))
    if not fits:
        raise InvalidInput(f"input {check.name!r} is a list with values beyond the range of {check.spec.dtype}")
    return cast


# From which kinds of number a list may be cast to a kind. bfloat16 and the float8s are of numpy's kind V.
_CAST_FROM = {"b": "b", "i": "iu", "u": "iu", "f": "iuf", "V": "iuf", "c": "iufc"}
