"""Tensors of the Open Inference Protocol: its names of datatypes, and values from and to raw bytes and JSON.

Raw data is little-endian and row-major, as on the native wire. BYTES are strings here: each one 4 bytes of length,
little-endian, and then its UTF-8. Only a list of them travels, for that is all that a model takes.

JSON has no NaN and no infinities, but this protocol has: Triton reads and writes the bare words `NaN`, `Infinity` and
`-Infinity`, and its clients do too (so do Python's `json` and rapidjson). So do we, for the alternative of most writers
is to turn them into `null` without a word.
"""

import itertools
import math
import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import orjson

from jaxserve.errors import InvalidInput, Unsupported
from jaxserve.protocols.envelopes import MAX_ITEMS
from jaxserve.protocols.tensors import COPY_UP_TO_BYTES, MAX_NDIM, Buffer, Malformed, size_bytes_of, tensor_view

Value = np.ndarray | list[str]

BYTES = "BYTES"
MAX_STRINGS = MAX_ITEMS
"""The most strings in one input, as in the native protocol."""

DTYPES: Mapping[str, np.dtype] = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "UINT8": np.dtype(np.uint8),
        "UINT16": np.dtype("<u2"),
        "UINT32": np.dtype("<u4"),
        "UINT64": np.dtype("<u8"),
        "INT8": np.dtype(np.int8),
        "INT16": np.dtype("<i2"),
        "INT32": np.dtype("<i4"),
        "INT64": np.dtype("<i8"),
        "FP16": np.dtype("<f2"),
        "FP32": np.dtype("<f4"),
        "FP64": np.dtype("<f8"),
        "BF16": np.dtype(ml_dtypes.bfloat16),
    }
)
"""The numpy dtype of every datatype but BYTES."""

_DATATYPES: Mapping[np.dtype, str] = MappingProxyType({dtype: name for name, dtype in DTYPES.items()})
_STRING = "string"  # what `jaxserve.TensorSpec` calls BYTES
_NAMES: Mapping[str, str] = MappingProxyType({_STRING: BYTES} | {dtype.name: name for name, dtype in DTYPES.items()})
_CONFIG_NAMES: Mapping[str, str] = MappingProxyType({BYTES: "TYPE_STRING"})

_BOOL, _BF16 = DTYPES["BOOL"], DTYPES["BF16"]
_WHOLE = frozenset({int})
_REAL = frozenset({int, float})
_TYPES: Mapping[str, frozenset[type]] = MappingProxyType({"b": frozenset({bool}), "i": _WHOLE, "u": _WHOLE, "f": _REAL})
_WANTED: Mapping[str, str] = MappingProxyType(
    {"b": "true or false", "i": "whole numbers", "u": "whole numbers of 0 or more", "f": "numbers"}
)
_LENGTH = struct.Struct("<I")

_REMEMBERED_LAYOUTS = 1024
_layouts: dict[tuple[str, tuple[int, ...]], tuple[np.dtype, int]] = {}


# Names


def datatype_of(dtype: str) -> str:
    """What the protocol calls a dtype of `jaxserve.TensorSpec`: "FP32" for "float32", "BYTES" for "string".

    Raises:
        Unsupported: it has no name for it.
    """
    datatype = _NAMES.get(dtype)
    if datatype is None:
        raise Unsupported(
            f"the Open Inference Protocol has no datatype for {dtype}, only for {', '.join(_NAMES)}; "
            f"the native protocol has, or the model may convert it"
        )
    return datatype


def config_type_of(dtype: str) -> str:
    """What a model's configuration calls a dtype of `jaxserve.TensorSpec`: "TYPE_FP32" for "float32".

    Raises:
        Unsupported: it has no name for it.
    """
    datatype = datatype_of(dtype)
    return _CONFIG_NAMES.get(datatype, f"TYPE_{datatype}")


def numpy_dtype(datatype: object, *, what: str = "a tensor") -> np.dtype:
    """The numpy dtype of a datatype other than BYTES.

    Raises:
        InvalidInput: there is no such datatype.
    """
    dtype = DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise InvalidInput(f"{what} has datatype {str(datatype)[:64]!r}; there are {', '.join((*DTYPES, BYTES))}")
    return dtype


def datatype_of_value(value: Value, *, what: str) -> str:
    """What the protocol calls the values of an array, or of a list of strings.

    Raises:
        Unsupported: it has no name for them.
    """
    return BYTES if isinstance(value, list) else (_DATATYPES.get(value.dtype) or datatype_of(value.dtype.name))


# Shapes


def check_shape(shape: object, *, what: str) -> tuple[int, ...]:
    """A shape that a stranger gave, as a tuple.

    Raises:
        InvalidInput: it is not a list of whole numbers of 0 or more, or it has too many dimensions.
    """
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise InvalidInput(f"{what} has no shape; it must be a list of whole numbers, such as [1, 128]")
    if len(shape) > MAX_NDIM:
        raise InvalidInput(f"{what} has {len(shape)} dimensions; at most {MAX_NDIM} are allowed")
    dimensions = tuple(shape)
    if not set(map(type, dimensions)) <= _WHOLE:
        raise InvalidInput(f"{what} has shape {list(shape)!r:.200}; every dimension must be a whole number")
    if dimensions and min(dimensions) < 0:
        raise InvalidInput(f"{what}: shape {list(shape)!r:.200} has a negative dimension; say how many there are")
    return dimensions


def layout(datatype: str, shape: tuple[int, ...], *, what: str = "a tensor") -> tuple[np.dtype, int]:
    """The dtype and the size in bytes of a tensor; remembered, for a server sees the same few all day.

    Raises:
        InvalidInput: there is no such datatype, or the shape makes no sense.
    """
    key = (datatype, shape)
    known = _layouts.get(key)
    if known is None:
        dtype = numpy_dtype(datatype, what=what)
        check_shape(shape, what=what)
        try:
            known = dtype, size_bytes_of(dtype, shape)
        except Malformed as error:
            raise InvalidInput(f"{what}: {error}") from None
        if len(_layouts) >= _REMEMBERED_LAYOUTS:
            _layouts.clear()  # crude, but it bounds the memory, and a real server never comes near the bound
        _layouts[key] = known
    return known


# Raw bytes


def from_raw(datatype: str, shape: tuple[int, ...], buffer: Buffer, *, what: str = "a tensor") -> Value:
    """The value of raw bytes: a read-only view of them, or a list for BYTES.

    Raises:
        InvalidInput: the bytes are not those of such a tensor.
    """
    if datatype == BYTES:
        return _strings_from_raw(shape, buffer, what=what)
    dtype, size_bytes = layout(datatype, shape, what=what)
    if len(buffer) != size_bytes:
        raise InvalidInput(
            f"{what}: a {datatype} tensor of shape {list(shape)} takes {size_bytes} bytes, but {len(buffer)} were given"
        )
    if type(buffer) is not bytes:
        buffer = memoryview(buffer).toreadonly()
    array = np.ndarray(shape, dtype, buffer)
    if dtype is _BOOL:
        check_bools(array, what=what)
    return array


def check_bools(array: np.ndarray, *, what: str) -> None:
    """Looks whether raw bytes are bools, for a compiled model would do anything with others.

    Raises:
        InvalidInput: one is neither 0 nor 1.
    """
    if array.size and array.view(np.uint8).max() > 1:
        raise InvalidInput(f"{what}: a BOOL tensor holds a byte other than 0 and 1")


def _strings_from_raw(shape: tuple[int, ...], buffer: Buffer, *, what: str) -> list[str]:
    count = _check_strings(check_shape(shape, what=what), what=what)
    strings: list[str] = []
    start = 0
    end = len(buffer)
    for index in range(count):
        if end - start < _LENGTH.size:
            raise InvalidInput(f"{what}: shape is [{count}], but its {end} bytes end after {index} strings")
        (length,) = _LENGTH.unpack_from(buffer, start)
        start += _LENGTH.size
        if length > end - start:
            raise InvalidInput(
                f"{what}: string {index} claims {length} bytes, but {end - start} are left; a string is its length in "
                f"4 bytes, little-endian, and its UTF-8"
            )
        try:
            strings.append(str(buffer[start : start + length], "utf-8"))
        except UnicodeDecodeError:
            raise InvalidInput(f"{what}: string {index} is not UTF-8") from None
        start += length
    if start != end:
        raise InvalidInput(f"{what}: {end - start} bytes are left over after {count} strings")
    return strings


def _check_strings(shape: tuple[int, ...], *, what: str) -> int:
    if len(shape) != 1:
        raise InvalidInput(
            f"{what}: BYTES of shape {list(shape)}; models take a list of strings, which is shape [{math.prod(shape)}]"
        )
    (count,) = shape
    if count > MAX_STRINGS:
        raise InvalidInput(f"{what}: {count} strings; at most {MAX_STRINGS} are allowed, so send more requests")
    return count


def to_raw(value: Value) -> bytes | memoryview:
    """The raw bytes of a value: a large array's own memory, which must not change until it is sent."""
    if isinstance(value, list):
        return strings_to_raw(value)
    array = native(value)
    return array.tobytes() if array.nbytes <= COPY_UP_TO_BYTES else tensor_view(array)


def strings_to_raw(strings: Sequence[str]) -> bytes:
    """The raw bytes of BYTES."""
    encoded = [string.encode() for string in strings]
    return b"".join(itertools.chain.from_iterable((_LENGTH.pack(len(text)), text) for text in encoded))


def native(array: np.ndarray) -> np.ndarray:
    """The array with its values in the byte order of this machine, which is that of the wire."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


# JSON


def from_json(datatype: str, shape: tuple[int, ...], data: object, *, what: str = "a tensor") -> Value:
    """The value of a JSON list: flat in row-major order, or nested as the shape says.

    Raises:
        InvalidInput: it has not that shape, or holds what is no such value.
    """
    if type(data) is not list:
        raise InvalidInput(f"{what}: data must be a list, flat or nested as its shape")
    if datatype == BYTES:
        return _strings_from_json(shape, data, what=what)
    dtype, _ = layout(datatype, shape, what=what)
    if dtype is _BF16:
        raise InvalidInput(f"{what}: BF16 has no form in JSON; send it as binary data")
    flat = _flatten(data, shape, what=what)
    types = set(map(type, flat))
    packing = _PACKINGS.get(datatype)
    if packing is not None and types <= _NUMBERS:
        try:
            return np.ndarray(shape, dtype, struct.pack(packing % len(flat), *flat))
        except (OverflowError, struct.error):
            raise InvalidInput(f"{what}: a number is out of the range of {datatype}") from None
    if not types <= _TYPES[dtype.kind]:
        index, wrong = next((index, item) for index, item in enumerate(flat) if type(item) not in _TYPES[dtype.kind])
        raise InvalidInput(f"{what}: {datatype} takes {_WANTED[dtype.kind]}, but element {index} is {_shown(wrong)}")
    try:
        if dtype.kind == "f":
            with np.errstate(over="raise"):
                array = np.array(flat, dtype)
        else:
            array = np.array(flat, dtype)
    except (OverflowError, FloatingPointError):
        raise InvalidInput(f"{what}: a number is out of the range of {datatype}") from None
    return array.reshape(shape)


def from_json_text(datatype: str, shape: tuple[int, ...], text: bytes, *, what: str = "a tensor") -> Value:
    """The value of the text of a JSON list: as `from_json`, and at half its time for most lists of numbers.

    Raises:
        InvalidInput: as `from_json`.
        orjson.JSONDecodeError: it is no JSON, or has words that orjson does not know.
    """
    data = orjson.loads(text)
    packing = _PACKINGS.get(datatype)
    if packing is not None and b"u" not in text and b"l" not in text:  # no true, no false
        dtype, size_bytes = layout(datatype, shape, what=what)
        if len(data) * dtype.itemsize == size_bytes:
            try:
                return np.ndarray(shape, dtype, struct.pack(packing % len(data), *data))
            except (OverflowError, struct.error):
                return from_json(datatype, shape, data, what=what)  # says what is wrong
    return from_json(datatype, shape, data, what=what)


_PACKINGS = {"FP32": "=%df", "FP64": "=%dd"}
"""Of lists of numbers; twice as fast as numpy, and it says of itself when a number is too large."""
_NUMBERS = frozenset((int, float))


def _strings_from_json(shape: tuple[int, ...], data: list[Any], *, what: str) -> list[str]:
    count = _check_strings(check_shape(shape, what=what), what=what)
    if len(data) != count:
        raise InvalidInput(f"{what}: shape is [{count}], but data has {len(data)} elements")
    for index, item in enumerate(data):
        if type(item) is not str:
            raise InvalidInput(f"{what}: BYTES takes strings, but element {index} is {_shown(item)}")
    return data


def _flatten(data: list[Any], shape: tuple[int, ...], *, what: str) -> list[Any]:
    count = math.prod(shape)
    if not data or type(data[0]) is not list:
        if len(data) != count:
            raise InvalidInput(f"{what}: shape {list(shape)} takes {count} elements, but data has {len(data)}")
        return data
    level = [data]
    for depth, dimension in enumerate(shape):
        if not set(map(type, level)) <= {list} or not set(map(len, level)) <= {dimension}:
            raise InvalidInput(
                f"{what}: data is nested otherwise than shape {list(shape)}: its lists at depth {depth + 1} must have "
                f"{dimension} elements each"
            )
        level = list(itertools.chain.from_iterable(level))
    return level


def _shown(item: object) -> str:
    """What a wrong element is, in JSON's words and at most a few of them."""
    if item is None:
        return "null"
    if isinstance(item, list | dict):
        return "a list" if isinstance(item, list) else "an object"
    text = str(item).lower() if isinstance(item, bool) else repr(item)
    return text if len(text) <= 40 else f"{text[:37]}..."


def to_json(value: Value, *, what: str = "an output") -> Any:
    """What `orjson.dumps(..., option=orjson.OPT_SERIALIZE_NUMPY)` writes as the flat data of a value.

    Raises:
        InvalidInput: the value is of a dtype that JSON has no form for.
    """
    if isinstance(value, list):
        return value
    if value.dtype == _BF16:
        raise InvalidInput(f"{what} is BF16, which has no form in JSON; ask for binary data")
    return orjson.Fragment(json_text(value))


def json_text(value: np.ndarray) -> bytes:
    """The flat data of an array in JSON."""
    flat = np.ascontiguousarray(native(value)).reshape(-1)
    text = orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"u" in text:  # there is a null, for what is not finite; one letter is found ten times as fast as four
        text = with_words(text, flat)
    return text


def with_words(text: bytes, array: np.ndarray) -> bytes:
    """The JSON of an array, or of one number, with words where it is not finite and orjson has written `null`."""
    pieces = text.split(b"null")
    words = [_word(number) for number in array[~np.isfinite(array)].tolist()]
    woven = itertools.chain.from_iterable(zip(pieces, [*words, b""], strict=True))
    return b"".join(woven)


def _word(number: float) -> bytes:
    if math.isnan(number):
        return b"NaN"
    return b"Infinity" if number > 0 else b"-Infinity"
