"""V2 over gRPC: requests as real clients write them, answers as they read them, and what is wrong with others."""

import contextlib
import math
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.grpc._utils import _get_inference_request

from jaxserve.errors import InvalidInput, Unsupported
from jaxserve.protocols import grpc_recall, open_inference_grpc, remembered
from jaxserve.protocols.datatypes import DTYPES, datatype_of_value
from jaxserve.protocols.infer_request import InferRequest, RequestedOutput
from jaxserve.protocols.open_inference_grpc import (
    MAX_FIELDS,
    SMALL_BYTES,
    receive,
    write_infer,
    write_stream_answer,
    write_stream_error,
)
from jaxserve.protocols.protobuf_wire import varint
from tests.protocols import strategies
from tests.protocols.comparable import comparable

X = np.arange(6, dtype=np.float32).reshape(2, 3)
LARGE = np.arange(2**15, dtype=np.float64)

ids = st.text(max_size=8)


def read(data: bytes, **limits: int) -> InferRequest:
    _, _, request = receive(data, **limits)
    return request


def their_input(name: str, value: np.ndarray | list[str]) -> triton.InferInput:
    array = np.array(value, np.object_) if isinstance(value, list) else value
    given = triton.InferInput(name, list(array.shape), datatype_of_value(value, what=name))
    return given.set_data_from_numpy(array)


def their_request(inputs: dict[str, Any], **options: Any) -> bytes:
    defaults = {
        "model_name": "m",
        "model_version": "",
        "request_id": "",
        "outputs": None,
        "sequence_id": 0,
        "sequence_start": False,
        "sequence_end": False,
        "priority": 0,
        "timeout": None,
        "parameters": None,
    }
    given = [their_input(name, value) for name, value in inputs.items()]
    return _get_inference_request(inputs=given, **(defaults | options)).SerializeToString()


def request(**changes: Any) -> service_pb2.ModelInferRequest:
    """A typed request, x = [1, 2], which `changes` to the input spoil."""
    entry = {"name": "x", "datatype": "INT32", "shape": [2], "contents": {"int_contents": [1, 2]}} | changes
    contents = service_pb2.InferTensorContents(**(entry.pop("contents") or {}))
    tensor = service_pb2.ModelInferRequest.InferInputTensor(**entry)
    if "contents" not in changes or changes["contents"] is not None:
        tensor.contents.CopyFrom(contents)
    return service_pb2.ModelInferRequest(model_name="m", inputs=[tensor])


def answered(value: InferRequest, outputs: dict[str, Any], **options: str) -> triton.InferResult:
    data = write_infer(value, outputs, **({"model": "m"} | options))
    return triton.InferResult(service_pb2.ModelInferResponse.FromString(data))


# Requests


@given(st.dictionaries(strategies.names, strategies.values, min_size=1, max_size=4), ids)
def test_what_a_client_sends_is_read(inputs, id):
    received = read(their_request(inputs, request_id=id))
    assert comparable(received.inputs) == comparable(inputs)
    assert (received.id, received.outputs) == (id, None)


def test_large_tensors_are_read_where_they_are():
    data = their_request({"a": LARGE, "text": ["ä", "b"], "c": LARGE[:0], "d": X}, request_id="7", priority=1)
    received = read(data)
    assert comparable(received.inputs) == comparable({"a": LARGE, "text": ["ä", "b"], "c": LARGE[:0], "d": X})
    assert (received.id, received.priority) == ("7", 10)
    assert np.shares_memory(received.inputs["a"], np.frombuffer(data, np.uint8))
    assert not received.inputs["a"].flags.writeable


def test_parameters_and_requested_outputs():
    outputs = [triton.InferRequestedOutput("y"), triton.InferRequestedOutput("k", class_count=3)]
    custom = {"a": 1, "b": True, "c": "x", "d": 0.5, "tenant": "t"}
    received = read(their_request({"x": X}, outputs=outputs, priority=12, timeout=2_000_000, parameters=custom))
    assert received.outputs == (RequestedOutput("y", True), RequestedOutput("k", True, 3))
    assert (received.timeout_s, received.priority, received.tenant) == (2.0, -1, "t")
    assert received.parameters == {"a": 1, "b": True, "c": "x", "d": 0.5}


def test_a_parameter_may_be_nothing():
    message = request()
    message.parameters["custom"].SetInParent()
    assert read(message.SerializeToString()).parameters == {"custom": None}
    message.parameters["timeout"].SetInParent()
    with pytest.raises(InvalidInput, match=r"timeout .* is None"):
        read(message.SerializeToString())


@pytest.mark.parametrize(
    ("datatype", "field", "elements"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-(2**15), 2**15 - 1]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 2**16 - 1]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.1, math.inf]),
        ("FP64", "fp64_contents", [0.1, math.nan]),
    ],
)
def test_typed_contents_are_read(datatype, field, elements):
    data = request(datatype=datatype, shape=[2, 1], contents={field: elements}).SerializeToString()
    expected = np.array(elements, DTYPES[datatype]).reshape(2, 1)
    assert comparable(read(data).inputs) == comparable({"x": expected})


def test_typed_strings_are_read():
    data = request(datatype="BYTES", contents={"bytes_contents": ["ä".encode(), b""]}).SerializeToString()
    assert read(data).inputs == {"x": ["ä", ""]}


@pytest.mark.parametrize("contents", [{}, None])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_nothing_is_in_no_contents(datatype, contents):
    value = read(request(datatype=datatype, shape=[0], contents=contents).SerializeToString()).inputs["x"]
    assert len(value) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, r"inputs\[0\] has no name"),
        ({"datatype": ""}, "input 'x' has datatype ''; there are BOOL"),
        ({"datatype": "FP8"}, "input 'x' has datatype 'FP8'"),
        ({"datatype": "FP16"}, "FP16 has no form in contents; send it in raw_input_contents"),
        ({"datatype": "BF16"}, "BF16 has no form in contents"),
        ({"datatype": "INT64"}, "input 'x' has int_contents; elements of INT64 belong in int64_contents"),
        ({"contents": {"int_contents": [1, 2], "fp32_contents": [1]}}, "elements of INT32 belong in int_contents"),
        ({"contents": {}}, r"shape \[2\] takes 2 elements, but contents has 0"),
        ({"contents": None}, r"shape \[2\] takes 2 elements, but contents has 0"),
        ({"shape": [3]}, r"shape \[3\] takes 3 elements, but contents has 2"),
        ({"shape": [-2]}, "negative dimension"),
        ({"shape": [-1, -2]}, "negative dimension"),
        ({"shape": [2**62, 2]}, "too large to exist"),
        ({"shape": [1] * 33}, "33 dimensions"),
        ({"datatype": "INT8", "contents": {"int_contents": [1, 128]}}, "out of the range of INT8"),
        ({"datatype": "UINT16", "contents": {"uint_contents": [1, 2**16]}}, "out of the range of UINT16"),
        ({"datatype": "BYTES", "contents": {"bytes_contents": [b"\xff", b""]}}, "string 0 is not UTF-8"),
        ({"datatype": "BYTES", "contents": {"bytes_contents": [b""]}}, r"1 strings of shape \[2\]"),
        ({"datatype": "BYTES", "shape": [2, 1], "contents": {"bytes_contents": [b"", b""]}}, r"of shape \[2, 1\]"),
        ({"name": "x" * 100, "shape": [3]}, "input 'x{79}: shape"),
    ],
)
def test_typed_contents_that_do_not_fit(changes, message):
    with pytest.raises(InvalidInput, match=message):
        read(request(**changes).SerializeToString())


def test_what_makes_no_request():
    def refused(message: Any, text: str, **limits: int) -> None:
        with pytest.raises(InvalidInput, match=text):
            read(message.SerializeToString(), **limits)

    two = request()
    two.inputs.append(two.inputs[0])
    refused(two, "input 'x' is there twice")
    refused(two, "2 inputs; at most 1 are allowed", max_tensors=1)
    refused(request(), "more than 1 elements; send large tensors in raw_input_contents", max_elements=1)
    both = request()
    both.raw_input_contents.append(bytes(8))
    refused(both, "input 'x' has contents, but the request has raw_input_contents")
    both.raw_input_contents.append(bytes(8))
    refused(both, "2 raw_input_contents for 1 inputs; there must be one for each, or none")
    wrong = request(contents=None)
    wrong.raw_input_contents.append(bytes(7))
    refused(wrong, "takes 8 bytes, but 7 were given")
    shared = request()
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    refused(shared, "input 'x' is to be in shared memory, which is not supported")
    shared = request()
    shared.outputs.add(name="y").parameters["shared_memory_region"].string_param = "r"
    refused(shared, "output 'y' is to be in shared memory")
    twice = request()
    twice.outputs.add(name="y")
    twice.outputs.add(name="y")
    refused(twice, "output 'y' is there twice")
    refused(twice, "2 outputs; at most 1", max_tensors=1)
    classes = request()
    classes.outputs.add(name="y").parameters["classification"].int64_param = -1
    refused(classes, "output 'y': classification is -1")
    late = request()
    late.parameters["timeout"].string_param = "1"
    refused(late, "timeout .* is '1'")
    named = request()
    named.id = "a" * 1025
    refused(named, "id is 'aaa.* at most 1024 characters")


@given(st.binary(max_size=64))
def test_garbage_is_read_or_refused(data):
    with contextlib.suppress(InvalidInput):
        read(data)


@given(st.data())
def test_a_request_that_was_changed_anywhere_is_read_or_refused(data):
    message = their_request({"x": X, "a": LARGE}, request_id="1")
    heads = [*range(200), *range(len(message) - 20, len(message))]
    at = data.draw(st.sampled_from(heads))
    changed = message[:at] + data.draw(st.binary(max_size=3)) + message[at + data.draw(st.integers(0, 3)) :]
    with contextlib.suppress(InvalidInput):
        received = read(changed)
        assert isinstance(received.id, str)


# What is remembered


@pytest.fixture
def nothing_known():
    grpc_recall._known.clear()
    grpc_recall._bars.clear()


def known() -> int:
    return len(grpc_recall._known)


def field(tag: int, value: bytes) -> bytes:
    return bytes([tag]) + varint(len(value)) + value


@given(st.dictionaries(strategies.names, strategies.tensors(), min_size=1, max_size=3), st.lists(ids, max_size=3))
def test_requests_that_are_alike_are_read_alike(inputs, others):
    for id in ("", *others, ""):
        changed = {
            name: value if value.dtype == np.bool_ else np.ndarray(value.shape, value.dtype, b"\x07" * value.nbytes)
            for name, value in inputs.items()
        }
        for sent in (inputs, changed):
            model, version, found = receive(their_request(sent, request_id=id, model_version="3", priority=2))
            assert (model, version, found.id) == ("m", "3", id)
            assert (found.priority, found.outputs) == (9, None)
            assert comparable(found.inputs) == comparable(sent)


def test_requests_that_differ_in_their_id_alone_are_remembered_as_one(nothing_known):
    for id in ("", "1", "ü", "a" * 127):
        assert read(their_request({"a": X, "b": X}, request_id=id)).id == id
    assert known() == 1
    assert read(their_request({"a": X, "b": X}, request_id="a" * 128)).id == "a" * 128
    assert known() == 1  # such a length takes two bytes


@pytest.mark.parametrize(
    "other",
    [
        {"model_name": "n"},
        {"model_version": "1"},
        {"priority": 1},
        {"timeout": 5},
        {"outputs": [triton.InferRequestedOutput("y")]},
        {"inputs": {"b": X}},
        {"inputs": {"a": X.reshape(3, 2)}},
        {"inputs": {"a": X.astype(np.int32)}},
    ],
)
def test_what_differs_in_more_is_not_mistaken(nothing_known, other):
    receive(their_request({"a": X}))
    data = their_request(other.get("inputs", {"a": X}), **{key: other[key] for key in other if key != "inputs"})
    assert grpc_recall.recall(data, 8) is None
    fresh = receive(data)
    assert known() == 2
    assert comparable(receive(data)) == comparable(fresh)


def test_lengths_between_tensors_must_be_as_they_were(nothing_known):
    """Two messages of equal length, whose tensors are of other lengths."""
    flat = np.zeros(4, np.int8)
    one = their_request({"a": flat[:3], "b": flat[:1]})
    other = their_request({"a": flat[:1], "b": flat[:3]})
    assert len(one) == len(other)
    for _ in range(2):
        assert [len(value) for value in read(one).inputs.values()] == [3, 1]
        assert [len(value) for value in read(other).inputs.values()] == [1, 3]
    spoilt = bytearray(one)
    spoilt[-2] = 2  # the length of the last tensor
    with pytest.raises(InvalidInput, match="not a ModelInferRequest"):
        receive(bytes(spoilt))


@pytest.mark.parametrize(
    "extra",
    [
        field(0x1A, b"other"),  # an id behind the tensors
        field(0x0A, b"other"),  # another name
        field(0x7A, b"unknown"),
    ],
)
def test_fields_in_another_order_are_read_and_not_remembered(nothing_known, extra):
    data = their_request({"a": X}, request_id="1") + extra
    plain = service_pb2.ModelInferRequest.FromString(data)
    for _ in range(2):
        model, _, found = receive(data)
        assert (model, found.id) == (plain.model_name, plain.id)
        assert known() == 0


def test_strings_and_typed_contents_are_not_remembered(nothing_known):
    receive(their_request({"a": X, "text": ["b"]}))
    receive(request().SerializeToString())
    assert known() == 0


def test_what_is_remembered_is_still_checked(nothing_known):
    data = their_request({"a": np.array([True, False])})
    receive(data)
    assert known() == 1
    with pytest.raises(InvalidInput, match="input 'a': a BOOL tensor holds a byte other than 0 and 1"):
        receive(data[:-1] + b"\x02")
    with pytest.raises(InvalidInput, match="1 inputs; at most 0 are allowed"):
        receive(data, max_tensors=0)
    with pytest.raises(InvalidInput, match="not a ModelInferRequest"):
        receive(data[:-1])


# Large messages


def large(piece: bytes, size_bytes: int = 2**22) -> bytes:
    return piece * (size_bytes // len(piece))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (large(b"\x2a\x00"), f"more than {MAX_FIELDS} fields"),  # inputs
        (large(b"\x32\x00"), f"more than {MAX_FIELDS} fields"),  # outputs
        (large(b"\x3a\x00"), f"more than {MAX_FIELDS} fields"),  # raw_input_contents
        (large(b"\x22\x00"), f"more than {MAX_FIELDS} fields"),  # parameters
        (field(0x2A, large(b"\x22\x00")), f"more than {MAX_FIELDS} fields"),  # an input's parameters
        (field(0x32, large(b"\x12\x00")), f"more than {MAX_FIELDS} fields"),  # an output's parameters
        (field(0x2A, large(b"\x18\x01")), f"more than {MAX_FIELDS} fields"),  # an input's shape
        (field(0x2A, field(0x2A, bytes(11 * 2**20))), "contents of more than 1048576 elements"),
        (field(0x2A, field(0x2A, bytes(6 * 2**20))) * 2, "contents of more than 1048576 elements"),
        (large(b"\x0b"), "not a ModelInferRequest"),  # a group
        (large(b"\xff"), "not a ModelInferRequest"),  # a varint without end
        (large(b"\x2a\xff\xff\xff\xff\x0f"), "not a ModelInferRequest"),  # longer than there is
        (field(0x2A, bytes(2**20))[:-1], "not a ModelInferRequest"),
        (field(0x2A, b"\x0a\x05" + bytes(2)) + bytes(2**20), "not a ModelInferRequest"),
    ],
)
def test_large_messages_that_are_not_made_of_tensors_are_refused_in_little_memory(data, message):
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput, match=message):
            receive(data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2**23


@pytest.mark.parametrize("tag", [b"\x38\x05", b"\x3d\x00\x00\x00\x00", b"\x39" + bytes(8)])
def test_only_bytes_are_raw_tensors(tag):
    """A field of that number and another type is no raw tensor, and is skipped like any that is unknown."""
    data = their_request({"a": LARGE})
    assert comparable(read(tag + data).inputs) == comparable({"a": LARGE})


def test_large_and_small_messages_are_read_alike():
    typed = request(datatype="FP64", shape=[len(LARGE)], contents={"fp64_contents": LARGE}).SerializeToString()
    assert len(typed) > SMALL_BYTES
    assert comparable(read(typed).inputs) == comparable({"x": LARGE})


# Answers


@given(st.dictionaries(strategies.names, strategies.values, min_size=1, max_size=3), ids)
def test_a_client_reads_what_is_answered(outputs, id):
    asked = tuple(RequestedOutput(name) for name in reversed(outputs))
    for value in (InferRequest(id, {}), InferRequest(id, {}), InferRequest(id, {}, asked), InferRequest(id, {}, asked)):
        result = answered(value, outputs)
        response = result.get_response()
        assert (response.id, response.model_name, response.model_version) == (id, "m", "1")
        assert [output.name for output in response.outputs] == [
            *(outputs if value.outputs is None else reversed(outputs))
        ]
        for name, output in outputs.items():
            got = result.as_numpy(name)
            if isinstance(output, list):
                assert [text.decode() for text in got] == output
            else:
                assert comparable(got) == comparable(output)


@given(ids, st.lists(strategies.tensors(), max_size=2))
def test_a_stream_wraps_answers(id, values):
    outputs = {f"y{index}": value for index, value in enumerate(values)}
    data = write_stream_answer(InferRequest(id, {}), outputs, model="m")
    response = service_pb2.ModelStreamInferResponse.FromString(data)
    assert response.error_message == ""
    parameters = response.infer_response.parameters
    assert {name: value.bool_param for name, value in parameters.items()} == {"triton_final_response": True}
    del parameters["triton_final_response"]
    plain = write_infer(InferRequest(id, {}), outputs, model="m")
    assert response.infer_response == service_pb2.ModelInferResponse.FromString(plain)


def test_a_stream_says_what_was_wrong_with_which_request():
    data = write_stream_error("too late", id="7", model="m", version="1")
    response = service_pb2.ModelStreamInferResponse.FromString(data)
    assert response.error_message == "too late"
    assert (response.infer_response.id, response.infer_response.model_name) == ("7", "m")
    assert response.infer_response.model_version == "1"
    assert response.infer_response.parameters["triton_final_response"].bool_param


def test_classification():
    value = InferRequest("", {}, (RequestedOutput("y", True, 2), RequestedOutput("z")))
    for y in (np.array([[0.1, 0.9, 0.5]]), np.array([[9.0, 1.0]] * 2)):
        result = answered(value, {"y": y, "z": X})
        assert result.get_output("y").datatype == "BYTES"
        got = [[text.decode() for text in row] for row in result.as_numpy("y")]
        assert got == ([["0.900000:1", "0.500000:2"]] if len(y) == 1 else [["9.000000:0", "1.000000:1"]] * 2)
        np.testing.assert_array_equal(result.as_numpy("z"), X)


def test_what_is_remembered_depends_on_all_that_is_not_data():
    value = InferRequest("", {})
    for _ in range(2):
        for y in (X, X.T, X.astype(np.int32), X.astype(">f4"), X.reshape(6), X.astype(ml_dtypes.bfloat16)):
            np.testing.assert_array_equal(answered(value, {"y": y}).as_numpy("y"), y)
        for options in ({"model": "a"}, {"model": "b"}, {"model": "b", "version": "2"}):
            response = answered(value, {"y": X}, **options).get_response()
            assert {"model": response.model_name, "version": response.model_version} == {"version": "1"} | options


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(remembered, "MOST", 3)
    for size in range(10):
        write_infer(InferRequest("", {}), {f"x{size}": X}, model="m")
        assert 0 < len(open_inference_grpc._forms) <= 3


def test_what_cannot_be_answered():
    asked = InferRequest("", {}, (RequestedOutput("w"),))
    with pytest.raises(InvalidInput, match="no output 'w'; the model has y"):
        write_infer(asked, {"y": X}, model="m")
    with pytest.raises(Unsupported, match="no datatype for complex64"):
        write_infer(InferRequest("", {}), {"y": X.astype(np.complex64)}, model="m")
