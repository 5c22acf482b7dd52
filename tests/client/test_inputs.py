"""What a caller may give as an input, and what it becomes."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.client.inputs import needs_description, to_wire
from jaxserve.errors import InvalidInput


class Jaxlike:
    """An array of another library."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.ones(2, np.float16)


@pytest.mark.parametrize(
    ("value", "declared", "dtype", "expected"),
    [
        ([[1, 2.5]], "float32", "float32", [[1.0, 2.5]]),
        ([1, 2], "float16", "float16", [1, 2]),
        ([1, 2], "bfloat16", "bfloat16", [1, 2]),
        ([1, -2], "int8", "int8", [1, -2]),
        ([0, 255], "uint8", "uint8", [0, 255]),
        ([2**63], "uint64", "uint64", [2**63]),
        ([True, False], "bool", "bool", [True, False]),
        (3, "int32", "int32", 3),
        ((1.5, math.nan, math.inf), "float32", "float32", [1.5, math.nan, math.inf]),
        ([], "float32", "float32", []),
        ([np.float32(1.0), np.float32(2.0)], "float32", "float32", [1, 2]),
        ([1, 2], None, "int64", [1, 2]),
        (np.float64(2.0), "float32", "float64", 2.0),  # an array keeps its dtype: the server says whether it fits
        (np.arange(2), "float32", "int64", [0, 1]),
        (Jaxlike(), "float32", "float16", [1, 1]),
    ],
)
def test_numbers(value, declared, dtype, expected):
    array = to_wire({"x": value}, {"x": declared} if declared else {})["x"]
    assert isinstance(array, np.ndarray)
    assert array.dtype.name == dtype
    np.testing.assert_array_equal(array.astype(np.float64), np.asarray(expected, np.float64))


@pytest.mark.parametrize(
    "value", [["a", "ü"], ("a", "ü"), np.array(["a", "ü"]), np.array(["a", "ü"], object), np.array(["a", "ü"], "T")]
)
def test_texts(value):
    assert to_wire({"text": value}, {}) == {"text": ["a", "ü"]}


def test_no_texts():
    assert to_wire({"text": []}, {"text": "string"}) == {"text": []}


@pytest.mark.parametrize(
    ("value", "declared", "says"),
    [
        ([1.5], "int32", "'x' holds float64 values, the model takes int32"),
        ([1], "bool", "'x' holds int64 values, the model takes bool"),
        ([1j], "float32", "'x' holds complex128 values"),
        ([128], "int8", "out of range for int8"),
        ([-1], "uint8", "out of range for uint8"),
        ([1e39], "float32", "out of range for float32"),
        ([70000], "float16", "out of range for float16"),
        ([2**70], "int64", "neither an array of numbers nor a flat list of str"),
        ([[1, 2], [3]], "float32", "'x' is not a regular array"),
        (["a", 1], "string", "neither an array of numbers nor a flat list of str"),
        ([["a"]], "string", "neither an array of numbers nor a flat list of str"),
        (np.array([["a"]]), "string", "neither an array of numbers nor a flat list of str"),
        ([None], "float32", "neither an array of numbers nor a flat list of str"),
        ("text", "string", "single str; give a list of str"),
        (b"text", "string", "single bytes"),
        ([1, 2], "string", "must be a list of str, not numbers"),
    ],
)
def test_what_does_not_fit(value, declared, says):
    with pytest.raises(InvalidInput, match=says):
        to_wire({"x": value}, {"x": declared})


@given(st.lists(st.floats(width=16), max_size=5), st.sampled_from([np.float16, np.float32, np.float64]))
def test_numbers_that_fit_are_kept_exactly(values, dtype):
    array = to_wire({"x": values}, {"x": np.dtype(dtype).name})["x"]
    np.testing.assert_array_equal(array, np.array(values, dtype))


@pytest.mark.parametrize(
    ("value", "needed"),
    [(np.zeros(1), False), (["a"], False), (Jaxlike(), False), ([1.0], True), (1, True), ([], True), ("a", True)],
)
def test_only_what_has_no_dtype_needs_a_description(value, needed):
    assert needs_description({"x": np.zeros(1), "y": value}) is needed


def test_bfloat16_keeps_what_it_can():
    array = to_wire({"x": [1.0, 3.14159]}, {"x": "bfloat16"})["x"]
    assert isinstance(array, np.ndarray)
    assert array.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(array.astype(np.float32), [1.0, 3.14159], rtol=2**-8)
