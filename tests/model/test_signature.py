"""What a caller gave is checked by name, dtype, rank and size before anything runs."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.errors import InvalidInput, ModelError
from jaxserve.model import Bucket, TensorSpec
from jaxserve.model.buckets import BucketGrid
from jaxserve.model.signature import Signature

SIGNATURE = Signature(
    {"ids": TensorSpec(("batch", "length"), "int32"), "scale": TensorSpec(("batch", 2), "float32")},
    what="inputs",
    strings=False,
)
GOOD = {"ids": np.ones((3, 5), np.int32), "scale": np.ones((3, 2), np.float32)}


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        (("batch",), "float33", "dtype 'float33' is unknown; choose one of bool"),
        (("batch",), np.float32, "must be a name such as 'float32'"),
        (("batch", 0), "float32", "a fixed dimension is at least 1"),
        (("batch", -1), "float32", "a fixed dimension is at least 1"),
        (("batch", 1.5), "float32", "a whole number or a name"),
        (("batch", True), "float32", "a whole number or a name"),
        (("batch", "a b"), "float32", "has a name such as 'length'"),
        (("batch", "n", "batch"), "float32", "names the batch twice"),
        ("batch", "float32", "must be a tuple of sizes and names"),
    ],
)
def test_a_spec_that_makes_no_sense(shape, dtype, message):
    with pytest.raises(ModelError, match=message):
        TensorSpec(shape, dtype)


@pytest.mark.parametrize(
    ("specs", "strings", "message"),
    [
        ({}, False, "must name at least one TensorSpec"),
        ({"x": "float32"}, False, "must be a TensorSpec"),
        ({"": TensorSpec(("batch",), "int8")}, False, "a name is a non-empty str"),
        ({"x": TensorSpec((3, "batch"), "int8")}, False, "its first dimension must be 'batch'"),
        ({"x": TensorSpec((), "int8")}, False, "its first dimension must be 'batch'"),
        ({"x": TensorSpec(("batch",), "string")}, False, "name it in accepts and give a preprocess"),
        ({"x": TensorSpec(("batch", 2), "string")}, True, r"strings come as \('batch',\) only"),
    ],
)
def test_a_signature_that_makes_no_sense(specs, strings, message):
    with pytest.raises(ModelError, match=message):
        Signature(specs, what="inputs", strings=strings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": None}, "lack 'ids'; it takes 'ids', 'scale'"),
        ({"idz": 1}, "have 'idz', which it does not take"),
        ({"ids": None, "idz": 1}, "lack 'ids' and have 'idz'"),
        ({"ids": np.ones((3, 5), np.int64)}, "'ids' is an array of int64, but must be of int32"),
        ({"ids": np.ones((3, 5), ">i4")}, "'ids' is an array of >i4"),
        ({"scale": np.ones((3, 2))}, "'scale' is an array of float64"),
        ({"ids": np.ones(3, np.int32)}, "of rank 1, but must have rank 2"),
        ({"scale": np.ones((3, 3), np.float32)}, "dimension 1 must be 2"),
        ({"scale": np.ones((4, 2), np.float32)}, "has 'batch' of 4, but another input has 3"),
        ({"ids": np.ones((3, 0), np.int32)}, "'length' must be at least 1"),
        ({"ids": [[1, 2], [3]]}, "is a list that is no array"),
        ({"ids": [[1.5]] * 3}, "is a list of float64, but must hold int32"),
        ({"ids": [["1"]] * 3}, "is a list of <U1, but must hold int32"),
        ({"ids": [[True]] * 3}, "is a list of bool, but must hold int32"),
        ({"ids": [[2**31]] * 3}, "values beyond the range of int32"),
        ({"ids": [[2**70]] * 3}, "is a list of object, but must hold int32"),
        ({"scale": [[1e39, 0]] * 3}, "values beyond the range of float32"),
        ({"scale": [[1j, 0]] * 3}, "is a list of complex128"),
        ({"scale": [[None, 0]] * 3}, "is a list of object"),
        ({"scale": "xy"}, "is a str, but must be an array or a list"),
        ({"scale": {"a": 1}}, "is a dict, but must be an array or a list"),
    ],
)
def test_inputs_that_do_not_fit(change, message):
    inputs = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(InvalidInput, match=message):
        SIGNATURE.check(inputs)


def test_inputs_that_are_no_mapping():
    with pytest.raises(InvalidInput, match="the inputs are a list, but must be a dict of arrays by name"):
        SIGNATURE.check([GOOD["ids"]])  # pyright: ignore[reportArgumentType]


def test_good_inputs_are_passed_on_uncopied():
    tensors, sizes = SIGNATURE.check(GOOD)
    assert tensors["ids"] is GOOD["ids"]
    assert sizes == {"batch": 3, "length": 5}


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float32", [1, 2]),
        ("float32", [1.5, float("nan")]),
        ("float32", [float("inf"), -1.0]),
        ("bfloat16", [1.5, 2.0]),
        ("float16", [1.5, 2.0]),
        ("uint8", [0, 255]),
        ("int64", [2**40]),
        ("bool", [True, False]),
        ("complex64", [1.0, 2j]),
    ],
)
def test_lists_are_cast_where_their_values_fit(dtype, values):
    signature = Signature({"x": TensorSpec(("batch",), dtype)}, what="inputs", strings=False)
    tensors, sizes = signature.check({"x": values})
    expected = np.array(values, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    np.testing.assert_array_equal(tensors["x"], expected)
    assert (tensors["x"].dtype, sizes) == (expected.dtype, {"batch": len(values)})


@pytest.mark.parametrize("dtype", ["int8", "bool"])
def test_lists_of_another_kind_are_refused(dtype):
    signature = Signature({"x": TensorSpec(("batch",), dtype)}, what="inputs", strings=False)
    with pytest.raises(InvalidInput, match="is a list of float64"):
        signature.check({"x": [0.0, 1.0]})


def test_strings():
    signature = Signature({"text": TensorSpec(("batch",), "string")}, what="accepts", strings=True)
    for given_value in (["a", "b"], ("a", "b"), np.array(["a", "b"]), np.array(["a", "b"], object)):
        assert signature.check({"text": given_value}) == ({"text": ["a", "b"]}, {"batch": 2})
    for bad in ("ab", [1, 2], [b"a"], [["a"]], 3):
        with pytest.raises(InvalidInput, match="'text' must be a list of str"):
            signature.check({"text": bad})
    with pytest.raises(InvalidInput, match="'batch' must be at least 1"):
        signature.check({"text": []})


@pytest.mark.parametrize(
    ("batch_sizes", "others", "message"),
    [
        ((), {"length": (4,)}, "batch_sizes is .*, but must be a non-empty tuple"),
        (3, {"length": (4,)}, "batch_sizes is 3, but must be a non-empty tuple"),
        ((2, 1), {"length": (4,)}, r"sizes must ascend, each once: \(1, 2\)"),
        ((1, 1), {"length": (4,)}, "sizes must ascend, each once"),
        ((0, 1), {"length": (4,)}, "a whole number of at least 1"),
        ((1, 2.0), {"length": (4,)}, "a whole number of at least 1"),
        ((True,), {"length": (4,)}, "a whole number of at least 1"),
        ((1,), {}, "'length' is variable, but buckets has no sizes for it"),
        ((1,), {"length": ()}, r"buckets\['length'\] is \(\), but must be a non-empty"),
        ((1,), {"length": (8, 4)}, r"buckets\['length'\] is .* must ascend"),
        ((1,), {"length": (4,), "width": (4,)}, "names 'width', but the variable dimensions besides the batch are"),
        ((1,), {"length": (4,), "batch": (4,)}, "names 'batch', .*the batch has its batch_sizes"),
    ],
)
def test_buckets_that_make_no_sense(batch_sizes, others, message):
    with pytest.raises(ModelError, match=message):
        BucketGrid(SIGNATURE, batch_sizes, others)


ascending = st.sets(st.integers(1, 40), min_size=1, max_size=5).map(sorted)


@given(batches=ascending, lengths=ascending, batch=st.integers(1, 50), length=st.integers(1, 50))
def test_the_smallest_bucket_that_holds_the_request(batches, lengths, batch, length):
    grid = BucketGrid(SIGNATURE, batches, {"length": lengths})
    assert list(grid.buckets) == sorted(grid.buckets, key=lambda bucket: bucket.shape)
    fits = [bucket for bucket in grid.buckets if bucket.batch_size >= batch and (bucket.length or 0) >= length]
    if not fits:
        with pytest.raises(InvalidInput, match="but the largest bucket holds"):
            grid.index({"batch": batch, "length": length})
        return
    chosen = grid.buckets[grid.index({"batch": batch, "length": length})]
    assert all(mine <= other for bucket in fits for mine, other in zip(chosen.shape, bucket.shape, strict=True))


def test_a_bucket_of_several_lengths_counts_their_product():
    assert Bucket(("batch", "height", "width"), (2, 3, 4)).length == 12
    assert Bucket(("batch",), (2,)).length is None
    assert str(Bucket(("batch", "length"), (2, 3))) == "batch 2, length 3"
