"""TensorFlow Serving's form: what is meant is read, what cannot be meant is refused with advice, answers are exact."""

import base64
import json

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.errors import InvalidInput, Unsupported
from jaxserve.protocols import predict
from jaxserve.protocols.predict import read_request, write_response
from tests.protocols import strategies
from tests.protocols.descriptions import GPT, MINILM, MIXED, MLP, described

arrays = strategies.tensors().filter(lambda array: array.ndim > 0 and array.size > 0)


def columns(rows: int) -> st.SearchStrategy[np.ndarray | list[str]]:
    """Outputs of so many rows."""
    texts = st.lists(strategies.texts, min_size=rows, max_size=rows)
    return arrays.map(lambda array: np.resize(array, (rows, *array.shape[1:]))) | texts


def written(value: np.ndarray | list[str]) -> object:
    """What a client has once it has read the JSON of a value."""
    return json.loads(write_response({"only": value}, by_row=False))["outputs"]


def assert_same(read: object, sent: object) -> None:
    if isinstance(sent, list):
        assert read == sent
        return
    assert isinstance(sent, np.ndarray)
    assert isinstance(read, np.ndarray)
    assert read.dtype == sent.dtype
    assert read.shape == sent.shape
    with np.errstate(invalid="ignore"):  # of signalling NaNs
        np.testing.assert_array_equal(read.astype(np.float64), sent.astype(np.float64))


@given(arrays)
def test_an_array_that_is_written_and_read_is_the_same(array):
    description = described("m", {"x": (["batch"] * array.ndim, array.dtype.name)}, {})
    for body in (
        {"inputs": written(array)},
        {"inputs": {"x": written(array)}},
        {"instances": written(array)},
        {"instances": [{"x": row} for row in written(array)]},
    ):
        request = read_request(body, description)
        assert request.by_row == ("instances" in body)
        assert request.inputs.keys() == {"x"}
        assert_same(request.inputs["x"], array)


@given(st.integers(1, 4).flatmap(lambda rows: st.dictionaries(strategies.names, columns(rows), min_size=2, max_size=3)))
def test_rows_and_columns_say_the_same(outputs):
    by_column = json.loads(write_response(outputs, by_row=False))["outputs"]
    by_row = json.loads(write_response(outputs, by_row=True))["predictions"]
    assert by_column.keys() == outputs.keys()
    for name, column in by_column.items():
        np.testing.assert_array_equal([row[name] for row in by_row], column)


@given(columns(3))
def test_one_output_goes_without_its_name(value):
    assert orjson.loads(write_response({"y": value}, by_row=True).replace(b"NaN", b"1").replace(b"Infinity", b"1"))
    by_row = json.loads(write_response({"y": value}, by_row=True))
    np.testing.assert_array_equal(by_row["predictions"], written(value))
    assert by_row.keys() == {"predictions"}


NUMBERS = {"x": [1.0, 2.0], "mode": "fast", "count": 3}


def test_several_inputs_by_row_and_by_column():
    by_row = read_request({"instances": [NUMBERS, NUMBERS]}, MIXED)
    by_column = read_request({"inputs": {name: [value] * 2 for name, value in NUMBERS.items()}}, MIXED)
    for request in (by_row, by_column):
        assert_same(request.inputs["x"], np.array([[1, 2], [1, 2]], np.float16))
        assert_same(request.inputs["count"], np.array([3, 3], np.uint8))
        assert request.inputs["mode"] == ["fast", "fast"]


@pytest.mark.parametrize("value", ["a", {"b64": base64.b64encode(b"a").decode()}])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("form", ["instances", "inputs"])
def test_text_may_come_as_bytes(value, named, form):
    if form == "instances":
        body = {"instances": [{"text": value} if named else value]}
    else:
        body = {"inputs": {"text": [value]} if named else [value]}
    assert read_request(body, MINILM).inputs == {"text": ["a"]}


@pytest.mark.parametrize("name", ["", "serving_default"])
def test_there_is_one_signature(name):
    assert read_request({"signature_name": name, "instances": [[1, 2, 3]]}, MLP).inputs["x"].shape == (1, 3)
    with pytest.raises(InvalidInput, match="signature_name is 'other', but models here have only 'serving_default'"):
        read_request({"signature_name": "other", "instances": [[1, 2, 3]]}, MLP)


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        (MLP, [], "the body is a list, but must be an object with 'instances' .* or 'inputs'"),
        (MLP, None, "the body is null"),
        (MLP, {}, "neither 'instances' nor 'inputs'; send one of them"),
        (MLP, {"instances": [[1]], "inputs": [[1]]}, "both 'instances' and 'inputs'; send one of them"),
        (MLP, {"instances": [[1]], "timeout": 1}, "the body has 'timeout'; it may have 'instances' or 'inputs'"),
        (MLP, {"instances": []}, "'instances' is empty, but must be a list of at least one row"),
        (MLP, {"instances": {"x": 1}}, "'instances' is an object, but must be a list"),
        (MLP, {"instances": [[1, 2, 3], [1, 2]]}, r"'x' is ragged: \[1\] has 2 elements, but \[0\] has 3; pad or cut"),
        (
            GPT,
            {"instances": [{"input_ids": [1]}]},
            r"instances\[0\] lacks 'attention_mask'; it must have 'input_ids', 'a",
        ),
        (
            GPT,
            {"instances": [{"input_ids": [1], "attention_mask": [True]}, {"input_ids": [1], "mask": [True]}]},
            r"instances\[1\] lacks 'attention_mask' and has 'mask', which the model does not take; it must have",
        ),
        (
            GPT,
            {"instances": [[1]]},
            r"instances\[0\] is a list, but must be an object with 'input_ids', 'attention_mask'",
        ),
        (GPT, {"inputs": [[1]]}, "'inputs' is a list, but must be an object with 'input_ids', 'attention_mask'"),
        (GPT, {"inputs": {"input_ids": [[1]]}}, "'inputs' lacks 'attention_mask'"),
        (MLP, {"inputs": {"y": [[1, 2, 3]]}}, "'inputs' lacks 'x' and has 'y', which the model does not take"),
        (
            MLP,
            {"instances": [[1, 2, 3], {"x": [1, 2, 3]}]},
            r"instances\[0\] is a list, but must be an object with 'x'",
        ),
        (MLP, {"instances": [[1, 2, [3]]]}, "'x' holds a list, but must hold only numbers, as float32 of shape"),
        (MLP, {"instances": [[[[1]]]]}, r"'x' is nested 3 deep or more, but must be float32 of shape \[batch, 3\]"),
        (MLP, {"instances": [["1", "2", "3"]]}, "'x' holds text, but must hold only numbers, as float32"),
        (MLP, {"instances": [[True, 2, 3]]}, "'x' holds true or false, but must hold only numbers"),
        (MLP, {"instances": [[None, {}, 3]]}, "'x' holds an object and null, but must hold only numbers"),
        (MLP, {"instances": [[1e39, 2, 3]]}, "'x' holds a number beyond the range of float32; scale it"),
        (MLP, {"instances": {"b64": "YQ=="}}, "'instances' is an object, but must be a list"),
        (MLP, {"instances": [{"b64": "YQ=="}]}, "'x' holds an object, but must hold only numbers"),
        (MIXED, {"instances": [NUMBERS | {"count": 256}]}, "'count' holds a number beyond the range of uint8"),
        (MIXED, {"instances": [NUMBERS | {"count": -1}]}, "'count' holds a number beyond the range of uint8"),
        (MIXED, {"instances": [NUMBERS | {"count": 10**30}]}, "'count' holds a number beyond the range of uint8"),
        (
            MIXED,
            {"instances": [NUMBERS | {"count": 1.5}]},
            "'count' holds a fraction, but must hold only whole numbers",
        ),
        (MIXED, {"instances": [NUMBERS | {"count": True}]}, "'count' holds true or false, but must hold only whole"),
        (MIXED, {"inputs": NUMBERS | {"mode": "fast"}}, "'mode' is text, but must be a list of texts"),
        (MINILM, {"instances": ["a", 1]}, "'text' has a whole number at 1, but must be text there"),
        (MINILM, {"instances": [["a"]]}, "'text' has a list at 0, but must be text there"),
        (MINILM, {"inputs": ["a", {"b64": 1}]}, "'text' has an object at 1, but must be text there"),
        (MINILM, {"inputs": [{"b64": "%"}]}, "'text' has at 0 a 'b64' that is not base64"),
        (MINILM, {"inputs": [{"b64": "é"}]}, "'text' has at 0 a 'b64' that is not base64"),
        (MINILM, {"inputs": [{"b64": "/w=="}]}, "'text' has bytes at 0 that are no UTF-8 text .* so decode what it is"),
    ],
)
def test_what_cannot_be_meant_is_refused(model, body, message):
    with pytest.raises(InvalidInput, match=message):
        read_request(body, model)


def test_a_ragged_place_is_named_in_all_its_depth():
    description = described("m", {"x": (["batch", 2, "length"], "int64")}, {})
    with pytest.raises(InvalidInput, match=r"\[1\]\[0\] has 1 elements, but \[0\]\[0\] has 2"):
        read_request({"inputs": [[[1, 2], [3, 4]], [[5], [6, 7]]]}, description)


def test_strangers_do_not_choose_how_long_a_message_is():
    with pytest.raises(InvalidInput) as caught:
        read_request(dict.fromkeys(map(str, range(100_000)), 0) | {"x" * 100_000: 0}, MLP)
    assert len(str(caught.value)) < 1000
    with pytest.raises(InvalidInput) as caught:
        read_request({"signature_name": ["x" * 1000] * 1000, "inputs": []}, MLP)
    assert len(str(caught.value)) < 1000


@given(strategies.plain)
def test_whatever_comes_is_read_or_refused(value):
    for description in (MLP, GPT, MINILM, MIXED):
        names = list(description["inputs"])
        for body in (value, {"instances": value}, {"inputs": value}, {"instances": [dict.fromkeys(names, value)]}):
            try:
                request = read_request(body, description)
            except InvalidInput:
                continue
            assert list(request.inputs) == names


def test_a_whole_number_may_be_written_as_a_fraction():
    request = read_request({"inputs": {"x": [[1, 2]], "mode": ["a"], "count": [2.0]}}, MIXED)
    assert_same(request.inputs["count"], np.array([2], np.uint8))


SPECIAL = np.array([[np.nan, 1.5], [-np.inf, np.inf]], np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2])
def test_what_json_lacks_is_written_as_tensorflow_serving_does(dtype):
    outputs = {"y": SPECIAL.astype(dtype)}
    assert write_response(outputs, by_row=False) == b'{"outputs":[[NaN,1.5],[-Infinity,Infinity]]}'
    assert write_response(outputs, by_row=True) == b'{"predictions":[[NaN,1.5],[-Infinity,Infinity]]}'
    outputs |= {"text": ["null", "NaN"]}
    assert write_response(outputs, by_row=True) == (
        b'{"predictions":[{"y":[NaN,1.5],"text":"null"},{"y":[-Infinity,Infinity],"text":"NaN"}]}'
    )


def test_numbers_are_written_as_short_as_their_dtype_allows():
    outputs = {"y": np.array([0.1], np.float32), "z": np.array([0.1], np.float64)}
    assert write_response(outputs, by_row=True) == b'{"predictions":[{"y":0.1,"z":0.1}]}'


def test_an_array_may_be_a_view_in_any_order():
    value = np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2].T
    assert written(value) == value.tolist()


def test_complex_numbers_have_no_form():
    with pytest.raises(
        Unsupported, match="output 'y' is complex64, which JSON has no form for; ask in another protocol"
    ):
        write_response({"y": np.zeros(1, np.complex64)}, by_row=True)


# The two answers below are those of TensorFlow Serving's REST guide, with our names.


def test_status():
    assert predict.status("AVAILABLE") == {
        "model_version_status": [
            {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
    [version] = predict.status("END", "unloaded")["model_version_status"]
    assert version["status"] == {"error_code": "UNAVAILABLE", "error_message": "unloaded"}


def test_metadata():
    shape = {"dim": [{"size": "-1", "name": "batch"}, {"size": "3", "name": ""}], "unknown_rank": False}
    metadata = orjson.loads(predict.write_metadata(MLP))
    assert metadata["model_spec"] == {"name": "mlp", "signature_name": "", "version": "1"}
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"] == {"x": {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": "x"}}
    assert signature["method_name"] == "tensorflow/serving/predict"


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("string", "DT_STRING"),
        ("bool", "DT_BOOL"),
        ("int8", "DT_INT8"),
        ("uint64", "DT_UINT64"),
        ("float16", "DT_HALF"),
        ("float64", "DT_DOUBLE"),
        ("bfloat16", "DT_BFLOAT16"),
        ("complex64", "DT_COMPLEX64"),
        ("float8_e4m3fn", "DT_FLOAT8_E4M3FN"),
    ],
)
def test_tensorflows_names_of_dtypes(dtype, name):
    metadata = orjson.loads(predict.write_metadata(described("m", {"x": (["batch"], dtype)}, {})))
    assert metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]["x"]["dtype"] == name
