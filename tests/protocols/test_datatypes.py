"""V2's datatypes: their names, and values from and to raw bytes and JSON."""

import json
import math

import ml_dtypes
import numpy as np
import orjson
import pytest
import tritonclient.utils as triton
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.errors import InvalidInput, Unsupported
from jaxserve.model.signature import STRING
from jaxserve.protocols import datatypes
from jaxserve.protocols.datatypes import DTYPES, MAX_STRINGS, from_json, from_raw, to_json, to_raw
from tests.protocols import strategies
from tests.protocols.comparable import comparable

JSON_DATATYPES = [name for name in DTYPES if name != "BF16"]


def as_text(value: object) -> bytes:
    return orjson.dumps(to_json(value), option=orjson.OPT_SERIALIZE_NUMPY)  # pyright: ignore[reportArgumentType]


def nested(data: list[object], shape: tuple[int, ...]) -> object:
    if len(shape) < 2:
        return data
    stride = math.prod(shape[1:])
    return [nested(data[row * stride : (row + 1) * stride], shape[1:]) for row in range(shape[0])]


@pytest.mark.parametrize("datatype", DTYPES)
def test_names_are_those_of_triton(datatype):
    dtype = DTYPES[datatype]
    assert triton.np_to_triton_dtype(dtype) == datatype
    assert np.dtype(triton.triton_to_np_dtype(datatype)) == dtype
    assert datatypes.datatype_of(dtype.name) == datatype
    assert datatypes.config_type_of(dtype.name) == f"TYPE_{datatype}"


def test_strings_are_bytes():
    assert datatypes.datatype_of(STRING) == "BYTES"
    assert datatypes.config_type_of(STRING) == "TYPE_STRING"


def test_a_dtype_without_a_name_says_so():
    with pytest.raises(Unsupported, match="no datatype for complex64, only for string, bool"):
        datatypes.datatype_of("complex64")
    with pytest.raises(Unsupported, match="float8_e5m2"):
        datatypes.datatype_of_value(np.zeros(1, ml_dtypes.float8_e5m2), what="output 'y'")


@given(strategies.tensors())
def test_raw_round_trip(array):
    datatype = datatypes.datatype_of_value(array, what="it")
    raw = bytes(to_raw(array))
    assert raw == array.tobytes()
    for buffer in (raw, bytearray(raw), memoryview(b"-" + raw)[1:]):
        read = from_raw(datatype, array.shape, buffer)
        assert comparable(read) == comparable(array)
        assert not read.flags.writeable


@given(st.lists(strategies.texts, max_size=5))
def test_strings_are_written_as_triton_writes_them(strings):
    raw = to_raw(strings)
    theirs = triton.serialize_byte_tensor(np.array(strings, np.object_))
    assert raw == (theirs.item() if theirs.size else b"")
    assert from_raw("BYTES", (len(strings),), raw) == strings
    assert from_raw("BYTES", (len(strings),), memoryview(raw)) == strings


@pytest.mark.parametrize("order", ["big-endian", "not contiguous"])
def test_arrays_of_another_layout_are_written_in_ours(order):
    array = np.arange(12, dtype=">i4").reshape(3, 4) if order == "big-endian" else np.arange(12, dtype="<i4")[::-2]
    assert bytes(to_raw(array)) == array.astype("<i4").tobytes()
    assert json.loads(as_text(array)) == array.ravel().tolist()


@given(strategies.tensors())
def test_json_round_trip(array):
    datatype = datatypes.datatype_of_value(array, what="it")
    if datatype == "BF16":
        with pytest.raises(InvalidInput, match="has no form in JSON; ask for binary data"):
            to_json(array)
        return
    flat = json.loads(as_text(array))
    for data in (flat, nested(flat, array.shape)):
        np.testing.assert_array_equal(from_json(datatype, array.shape, data), array)


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_what_is_not_finite_is_written_as_triton_writes_it(datatype):
    array = np.array([math.nan, 1.5, math.inf, -math.inf, 0.25], DTYPES[datatype])
    assert as_text(array) == b"[NaN,1.5,Infinity,-Infinity,0.25]"
    np.testing.assert_array_equal(from_json(datatype, (5,), json.loads(as_text(array))), array)


def test_float32_is_written_as_short_as_it_is():
    assert as_text(np.array([0.1], np.float32)) == b"[0.1]"


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", (2,), [1, 2.5]),
        ("FP32", (), [1]),
        ("FP64", (1,), [2**63]),
        ("INT64", (2,), [-(2**63), 2**63 - 1]),
        ("UINT64", (1,), [2**64 - 1]),
        ("FP16", (1,), [65504]),
        ("INT8", (0,), []),
        ("INT8", (0, 3), []),
        ("INT8", (2, 0), [[], []]),
        ("BOOL", (1, 2), [[True, False]]),
        ("INT32", (2, 1, 2), [[[1, 2]], [[3, 4]]]),
    ],
)
def test_json_that_fits(datatype, shape, data):
    read = from_json(datatype, shape, data)
    assert (read.dtype, read.shape) == (DTYPES[datatype], shape)
    np.testing.assert_array_equal(read, np.array(data, np.object_).reshape(shape))


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"),
    [
        ("FP32", (2,), [1.0], r"shape \[2\] takes 2 elements, but data has 1"),
        ("FP32", (2, 2), [[1, 2, 3], [4]], r"its lists at depth 2 must have 2 elements each"),
        ("FP32", (2, 2), [[1, 2], 3], r"nested otherwise than shape \[2, 2\]"),
        ("FP32", (4,), [[1, 2], [3, 4]], "its lists at depth 1 must have 4 elements"),
        ("FP32", (2,), [[1], [2]], "element 0 is a list"),
        ("FP32", (), [[1]], "element 0 is a list"),
        ("FP32", (1,), [None], "FP32 takes numbers, but element 0 is null"),
        ("FP32", (1,), ["1"], "element 0 is '1'"),
        ("FP32", (2,), [1, True], "element 1 is true"),
        ("FP32", (1,), [{}], "element 0 is an object"),
        ("FP32", (1,), ["a" * 100], r"element 0 is 'a{36}\.\.\.$"),
        ("FP32", (1,), 1.0, "data must be a list"),
        ("FP32", (1,), None, "data must be a list"),
        ("FP32", (1,), [1e39], "out of the range of FP32"),
        ("FP16", (1,), [65520], "out of the range of FP16"),
        ("INT32", (1,), [1.0], "INT32 takes whole numbers, but element 0 is 1.0"),
        ("INT32", (1,), [False], "element 0 is false"),
        ("INT8", (1,), [128], "out of the range of INT8"),
        ("UINT8", (1,), [-1], "out of the range of UINT8"),
        ("INT64", (1,), [2**63], "out of the range of INT64"),
        ("BOOL", (1,), [1], "BOOL takes true or false, but element 0 is 1"),
        ("BF16", (1,), [1.0], "BF16 has no form in JSON; send it as binary data"),
        ("BYTES", (1,), [1], "BYTES takes strings, but element 0 is 1"),
        ("BYTES", (2,), ["a"], r"shape is \[2\], but data has 1 elements"),
        ("BYTES", (1, 1), [["a"]], r"models take a list of strings, which is shape \[1\]"),
        ("BYTES", (), ["a"], "models take a list of strings"),
        ("BYTES", (MAX_STRINGS + 1,), [""], f"at most {MAX_STRINGS} are allowed"),
        ("FP8", (1,), [1.0], "it has datatype 'FP8'; there are BOOL, UINT8"),
        ("FP32", (-1,), [], "negative dimension"),
        ("FP32", (2**40, 2**40), [], "too large to exist"),
    ],
)
def test_json_that_does_not_fit(datatype, shape, data, message):
    with pytest.raises(InvalidInput, match=message):
        from_json(datatype, shape, data, what="it")


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "message"),
    [
        ("FP32", (2,), bytes(7), r"a FP32 tensor of shape \[2\] takes 8 bytes, but 7 were given"),
        ("FP32", (2,), bytes(9), "takes 8 bytes, but 9 were given"),
        ("FP32", (0,), bytes(4), "takes 0 bytes, but 4"),
        ("BOOL", (2,), b"\x01\x02", "a byte other than 0 and 1"),
        ("INT8", (2, -1), b"", "negative dimension"),
        ("INT8", (2**62, 2), b"", "too large to exist"),
        ("INT8", (0, 2**62, 2), b"", "too large to exist"),
        ("INT8", (1,) * 33, b"1", "33 dimensions; at most 32"),
        ("fp32", (1,), bytes(4), "datatype 'fp32'; there are"),
        ("BYTES", (1,), b"\x02\x00\x00\x00a", "string 0 claims 2 bytes, but 1 are left"),
        ("BYTES", (1,), b"\xff\xff\xff\xff", "claims 4294967295 bytes"),
        ("BYTES", (2,), b"\x01\x00\x00\x00a", r"shape is \[2\], but its 5 bytes end after 1 strings"),
        ("BYTES", (1,), b"\x01\x00\x00", r"its 3 bytes end after 0 strings"),
        ("BYTES", (1,), b"\x01\x00\x00\x00a-", "1 bytes are left over after 1 strings"),
        ("BYTES", (1,), b"\x01\x00\x00\x00\xff", "string 0 is not UTF-8"),
        ("BYTES", (1, 1), b"\x00\x00\x00\x00", r"BYTES of shape \[1, 1\]"),
        ("BYTES", (2**40,), b"", "at most 16384 are allowed"),
        ("BYTES", (-1,), b"", "negative dimension"),
    ],
)
def test_raw_that_does_not_fit(datatype, shape, raw, message):
    with pytest.raises(InvalidInput, match=message):
        from_raw(datatype, shape, raw, what="it")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (None, "it has no shape"),
        ("12", "it has no shape"),
        (5, "it has no shape"),
        ([1.0], "every dimension must be a whole number"),
        ([True], "every dimension must be a whole number"),
        ([None], "every dimension must be a whole number"),
        ([1, -1], "negative dimension"),
        ([1] * 33, "33 dimensions"),
        (["x" * 10**6], r"^it has shape \['x{198}; every dimension must be a whole number"),
    ],
)
def test_shapes_that_are_none(shape, message):
    with pytest.raises(InvalidInput, match=message):
        datatypes.check_shape(shape, what="it")


@given(st.sampled_from(JSON_DATATYPES), st.lists(st.integers(0, 3), max_size=3).map(tuple), strategies.plain)
def test_any_json_is_read_or_refused(datatype, shape, data):
    try:
        read = from_json(datatype, shape, data)
    except InvalidInput:
        return
    assert (read.dtype, read.shape) == (DTYPES[datatype], shape)
