"""V2 over HTTP: requests as real clients write them, answers as they read them, and what is wrong with others."""

import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.errors import InvalidInput, Unsupported
from jaxserve.protocols import open_inference, remembered
from jaxserve.protocols.classification import MAX_CLASSES
from jaxserve.protocols.datatypes import datatype_of_value
from jaxserve.protocols.open_inference import InferRequest, RequestedOutput, check_outputs, read_infer, write_infer
from tests.protocols import strategies
from tests.protocols.comparable import comparable

X = np.arange(6, dtype=np.float32).reshape(2, 3)
ENTRY = {"name": "x", "shape": [2, 3], "datatype": "FP32"}
RAW = ENTRY | {"parameters": {"binary_data_size": 24}}
FLAT = ENTRY | {"data": [0, 1, 2, 3, 4, 5]}
STRINGS = {"name": "text", "shape": [2], "datatype": "BYTES"}

# What tritonclient can say of a tensor: it takes no list of strings, and no NaN in bfloat16 that numpy would change.
tritons = strategies.tensors()
ids = st.text(max_size=8)


def body_of(document: object, *data: bytes) -> tuple[bytes, int | None]:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return b"".join((text, *data)), len(text) if data else None


def read(document: object, *data: bytes, **limits: int) -> InferRequest:
    return read_infer(*body_of(document, *data), **limits)


def their_input(name: str, value: np.ndarray | list[str], *, binary: bool = True) -> triton.InferInput:
    array = np.array(value, np.object_) if isinstance(value, list) else value
    given = triton.InferInput(name, list(array.shape), datatype_of_value(value, what=name))
    return given.set_data_from_numpy(array, binary_data=binary)


def their_request(inputs: dict[str, Any], *, binary: bool = True, **options: Any) -> tuple[bytes, int | None]:
    given = [their_input(name, value, binary=binary) for name, value in inputs.items()]
    return triton.InferenceServerClient.generate_request_body(given, **options)


def answer(request: InferRequest, outputs: dict[str, Any], **options: str) -> tuple[bytes, int | None]:
    parts, json_bytes = write_infer(request, outputs, **({"model": "m"} | options))
    return b"".join(parts), json_bytes


def their_result(request: InferRequest, outputs: dict[str, Any]) -> triton.InferResult:
    body, json_bytes = answer(request, outputs)
    return triton.InferenceServerClient.parse_response_body(body, header_length=json_bytes)


def asking(*outputs: RequestedOutput, id: str = "") -> InferRequest:
    return InferRequest(id, {}, outputs)


# Requests


@given(st.dictionaries(strategies.names, strategies.values, min_size=1, max_size=4), ids)
def test_what_a_client_sends_raw_is_read(inputs, id):
    body, json_bytes = their_request(inputs, request_id=id)
    for received in (body, body, bytearray(body), memoryview(body)):  # the second time with what was remembered
        request = read_infer(received, json_bytes)
        assert comparable(request.inputs) == comparable(inputs)
        assert (request.id, request.outputs, request.binary_output) == (id, None, True)
        assert not any(isinstance(value, np.ndarray) and value.flags.writeable for value in request.inputs.values())


@given(st.dictionaries(strategies.names, strategies.values, min_size=1, max_size=4), ids)
def test_what_a_client_sends_as_json_is_read(inputs, id):
    inputs = {
        name: value for name, value in inputs.items() if isinstance(value, list) or value.dtype != ml_dtypes.bfloat16
    }
    body, json_bytes = their_request(inputs, binary=False, request_id=id)
    assert json_bytes is None
    request = read_infer(body, None)
    assert request.id == id
    assert set(request.inputs) == set(inputs)
    for name, value in inputs.items():
        np.testing.assert_array_equal(request.inputs[name], value)


def test_a_client_may_mix_both_and_say_what_it_wants():
    given = [their_input("a", X), their_input("b", ["ä", ""]), their_input("c", X, binary=False)]
    outputs = [
        triton.InferRequestedOutput("y", binary_data=True),
        triton.InferRequestedOutput("z", binary_data=False),
        triton.InferRequestedOutput("k", binary_data=True, class_count=3),
    ]
    body, json_bytes = triton.InferenceServerClient.generate_request_body(
        given, outputs=outputs, request_id="7", priority=2, timeout=1_500_000, parameters={"custom": 1}
    )
    request = read_infer(body, json_bytes)
    assert comparable(request.inputs) == comparable({"a": X, "b": ["ä", ""], "c": X})
    assert request.outputs == (
        RequestedOutput("y", True),
        RequestedOutput("z", False),
        RequestedOutput("k", True, 3),
    )
    assert (request.id, request.timeout_s, request.priority) == ("7", 1.5, 9)
    assert request.parameters == {"custom": 1}


@pytest.mark.parametrize(
    ("theirs", "ours"), [(0, 0), (1, 10), (2, 9), (11, 0), (12, -1), (21, -10), (22, -10), (2**64 - 1, -10)]
)
def test_priorities_are_turned_round(theirs, ours):
    assert read({"inputs": [FLAT], "parameters": {"priority": theirs}}).priority == ours


def test_parameters():
    parameters = {"timeout": 0, "tenant": "a", "binary_data_output": True, "x": [1]}
    request = read({"inputs": [FLAT], "parameters": parameters})
    assert (request.timeout_s, request.tenant, request.binary_output) == (None, "a", True)
    assert request.parameters == {"x": [1]}


def test_outputs_are_raw_where_the_request_says_so_of_all():
    outputs = [{"name": "y"}, {"name": "z", "parameters": {"binary_data": False}}]
    document = {"inputs": [FLAT], "outputs": outputs}
    assert read(document).outputs == (RequestedOutput("y", False), RequestedOutput("z", False))
    document["parameters"] = {"binary_data_output": True}
    assert read(document).outputs == (RequestedOutput("y", True), RequestedOutput("z", False))
    assert read({"inputs": [FLAT], "outputs": []}).outputs is None


@pytest.mark.parametrize(
    "text",
    [
        b'{"id":"a","inputs":[%b]}',
        b'{"inputs":[%b],"id":"a"}',
        b'{"id":"\\u0061","inputs":[%b]}',
        b'{ "id": "a", "inputs":[%b]}',
        b'{"id":"a" ,"inputs":[%b]}',
    ],
)
def test_the_id_may_stand_anywhere(text):
    for _ in range(3):
        for entry, data in ((RAW, X.tobytes()), (FLAT, b"")):
            request = read(text % orjson.dumps(entry), *([data] if data else []))
            assert request.id == "a"
            np.testing.assert_array_equal(request.inputs["x"], X)


@pytest.mark.parametrize("text", [b'{"id":"b","inputs":[%b],"id":"a"}', b'{"id":"b","inputs":[%b],"\\u0069d":"a"}'])
def test_there_is_one_id(text):
    assert read(b'{"id":"b","inputs":[%b]}' % orjson.dumps(FLAT)).id == "b"
    for _ in range(3):
        with pytest.raises(InvalidInput, match="the name 'id' twice"):
            read(text % orjson.dumps(FLAT))


def test_requests_that_differ_in_their_id_alone_are_remembered_as_one():
    open_inference._seen.clear()
    for id in ("", "1", "a b"):
        assert read_infer(*their_request({"x": X}, request_id=id)).id == id
    assert len(open_inference._seen) == 1
    for id in ('"\\', "ü"):  # an id that is escaped stays where it is, and they escape all that is not ASCII
        assert read_infer(*their_request({"x": X}, request_id=id)).id == id
    assert len(open_inference._seen) == 1
    assert read('{"id":"ü","inputs":[%b]}'.encode() % orjson.dumps(RAW), X.tobytes()).id == "ü"


@pytest.mark.parametrize(
    "text",
    [b'{"id":"a\x01","inputs":[%b]}', b'{"id":"\xff","inputs":[%b]}', b'{"id":"a",,"inputs":[%b]}', b'x"inputs":[%b]}'],
)
def test_what_is_no_json_is_not_read_for_what_is_remembered(text):
    read(b'{"inputs":[%b]}' % orjson.dumps(RAW), X.tobytes())
    with pytest.raises(InvalidInput, match="the JSON of the body is not JSON"):
        read(text % orjson.dumps(RAW), X.tobytes())


def test_what_is_remembered_still_needs_all_its_data():
    text = b'{"inputs":[%b]}' % orjson.dumps(RAW)
    read(text, X.tobytes())
    with pytest.raises(InvalidInput, match="binary_data_size is 24, but 23 bytes are left"):
        read(text, X.tobytes()[:-1])
    with pytest.raises(InvalidInput, match="1 bytes are left over"):
        read(text, X.tobytes() + b"-")
    bools = {"inputs": [{"name": "b", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}]}
    for _ in range(2):
        assert read(bools, b"\x00\x01").inputs["b"].tolist() == [False, True]
        with pytest.raises(InvalidInput, match="input 'b': a BOOL tensor holds a byte other than 0 and 1"):
            read(bools, b"\x00\x02")


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(remembered, "MOST", 3)
    for size in range(10):
        entry = {"name": f"x{size}", "shape": [1], "datatype": "INT8", "parameters": {"binary_data_size": 1}}
        request = read({"inputs": [entry]}, b"1")
        y = {f"x{size}": request.inputs[f"x{size}"]}
        write_infer(InferRequest("", {}, None, True), y, model="m")
        assert 0 < len(open_inference._seen) <= 3
        assert 0 < len(open_inference._forms) <= 3


def inputs_with(**changes: object) -> dict[str, object]:
    return {"inputs": [FLAT | changes]}


def with_(key: str, value: object) -> dict[str, object]:
    return {"inputs": [FLAT], key: value}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "the body .* is not JSON"),
        (b"[]", "the body must be a JSON object"),
        (b"null", "the body must be a JSON object"),
        ({}, "inputs must be a list"),
        ({"inputs": {}}, "inputs must be a list"),
        ({"inputs": [1]}, r"inputs\[0\] must be an object with a name"),
        ({"inputs": [{}]}, r"inputs\[0\] must be an object with a name"),
        ({"inputs": [FLAT, FLAT]}, "input 'x' is there twice; say it once"),
        (with_("id", 1), "id is 1, but must be a string"),
        (with_("id", None), "id is None, but must be a string"),
        (with_("id", "a" * 1025), "id is 'aaa.*, but must be a string of at most 1024 characters"),
        (with_("parameters", []), "parameters of the request must be an object"),
        (with_("parameters", {"timeout": -1}), r"timeout \(microseconds\) is -1, but must be a whole number"),
        (with_("parameters", {"timeout": 1.5}), "timeout .* is 1.5, but must be a whole number"),
        (with_("parameters", {"timeout": True}), "timeout .* is True"),
        (with_("parameters", {"priority": "1"}), "priority is '1'"),
        (with_("parameters", {"priority": -1}), "priority is -1"),
        (with_("parameters", {"tenant": 1}), "tenant is 1"),
        (with_("parameters", {"tenant": "a" * 129}), "at most 128 characters"),
        (with_("parameters", {"binary_data_output": 1}), "binary_data_output is 1, but must be true or false"),
        (with_("outputs", None), "outputs must be a list"),
        (with_("outputs", ["y"]), r"outputs\[0\] must be an object with a name"),
        (with_("outputs", [{"name": "y"}] * 2), "output 'y' is there twice"),
        (with_("outputs", [{"name": "y", "parameters": 1}]), "parameters of output 'y' must be an object"),
        (with_("outputs", [{"name": "y", "parameters": {"binary_data": 1}}]), "output 'y': binary_data is 1"),
        (with_("outputs", [{"name": "y", "parameters": {"classification": -1}}]), "output 'y': classification is -1"),
        (
            with_("outputs", [{"name": "y", "parameters": {"shared_memory_region": "r"}}]),
            "output 'y' is to be in shared memory, which is not supported",
        ),
        (inputs_with(parameters={"shared_memory_region": "r"}), "input 'x' is to be in shared memory"),
        (inputs_with(parameters=[]), "parameters of input 'x' must be an object"),
        (inputs_with(parameters={"binary_data_size": 24}), "input 'x' has data and binary_data_size"),
        ({"inputs": [ENTRY]}, "input 'x' has neither data nor the parameter binary_data_size"),
        ({"inputs": [RAW]}, "0 bytes are left; the header Inference-Header-Content-Length is missing"),
        (inputs_with(datatype=None), "input 'x' has no datatype; there are BOOL"),
        (inputs_with(datatype="FP8"), "input 'x' has datatype 'FP8'; there are BOOL"),
        (inputs_with(datatype=["FP32"]), "input 'x' has no datatype"),
        (inputs_with(shape=None), "input 'x' has no shape"),
        (inputs_with(shape=[-2, -3]), r"input 'x': shape \[-2, -3\] has a negative dimension"),
        (inputs_with(shape=[2**33, 2**33]), "input 'x': a float32 tensor of shape .* is too large to exist"),
        (inputs_with(shape=[2**64]), "every dimension must be a whole number"),
        (inputs_with(shape=[3, 3]), "takes 9 elements, but data has 6"),
        (inputs_with(data=[[0, 1, 2], [3, 4]]), "must have 3 elements each"),
        (inputs_with(data=[0, 1, 2, 3, 4, None]), "element 5 is null"),
        (inputs_with(name=""), r"inputs\[0\] must be an object with a name"),
        (inputs_with(name="n" * 200, shape=5), r"input 'n{76}\.\.\. has no shape"),
        ({"inputs": [FLAT | {"name": f"x{index}"} for index in range(257)]}, "257 inputs; at most 256 are allowed"),
        (with_("outputs", [{"name": f"y{index}"} for index in range(257)]), "257 outputs; at most 256 are allowed"),
        (with_("x", [[]] * 2**17), "more than 131072 lists and objects"),
        (with_("x", [1] * 2**20), "more than 1048576 elements"),
        (b'{"inputs":' + b"[" * 64 + b"]" * 64 + b"}", "more than 64 lists and objects inside one another"),
    ],
)
def test_json_that_is_no_request(document, message):
    with pytest.raises(InvalidInput, match=message):
        read(document)


@pytest.mark.parametrize(
    ("entries", "data", "message"),
    [
        ([RAW], bytes(23), "input 'x': binary_data_size is 24, but 23 bytes are left"),
        ([RAW], bytes(25), "1 bytes are left over"),
        ([FLAT], bytes(1), "1 bytes are left over"),
        ([RAW | {"shape": [2, 2]}], bytes(24), r"tensor of shape \[2, 2\] takes 16 bytes, but 24 were given"),
        ([ENTRY | {"parameters": {"binary_data_size": 2**70}}], b"-", "binary_data_size is 1.18.*but must be a whole"),
        ([ENTRY | {"parameters": {"binary_data_size": -1}}], b"-", "binary_data_size is -1"),
        ([ENTRY | {"parameters": {"binary_data_size": 1.5}}], b"-", "binary_data_size is 1.5"),
        ([STRINGS | {"parameters": {"binary_data_size": 4}}], bytes(4), r"shape is \[2\], but its 4 bytes end after 1"),
        (
            [STRINGS | {"parameters": {"binary_data_size": 8}, "shape": [2, 1]}],
            bytes(8),
            r"BYTES of shape \[2, 1\]: models take|models take a list of strings, which is shape \[2\]",
        ),
    ],
)
def test_raw_data_that_does_not_fit(entries, data, message):
    with pytest.raises(InvalidInput, match=message):
        read({"inputs": entries}, data)


@pytest.mark.parametrize("json_bytes", [-1, 0, 10_000, 2**70])
def test_a_length_of_the_json_that_cannot_be(json_bytes):
    body, _ = body_of({"inputs": [RAW]}, X.tobytes())
    with pytest.raises(InvalidInput, match=f"Content-Length is {json_bytes}, but the body has .* bytes"):
        read_infer(body, json_bytes)


def test_limits_may_be_others():
    with pytest.raises(InvalidInput, match="2 inputs; at most 1 are allowed"):
        read({"inputs": [FLAT, FLAT | {"name": "z"}]}, max_tensors=1)
    with pytest.raises(InvalidInput, match="more than 4 elements"):
        read({"inputs": [FLAT]}, max_json_elements=4)
    with pytest.raises(InvalidInput, match="more than 2 lists and objects inside"):
        read({"inputs": [FLAT]}, max_json_depth=2)


@given(st.binary(max_size=200), st.none() | st.integers(-1, 220))
def test_garbage_is_refused(body, json_bytes):
    with pytest.raises(InvalidInput):
        read_infer(body, json_bytes)


@given(st.data())
def test_a_request_that_was_changed_anywhere_is_read_or_refused(data):
    body, json_bytes = their_request({"x": X, "text": ["a", "bc"]}, request_id="1")
    at = data.draw(st.integers(0, len(body) - 1))
    changed = body[:at] + data.draw(st.binary(max_size=3)) + body[at + data.draw(st.integers(0, 3)) :]
    try:
        request = read_infer(changed, json_bytes)
    except InvalidInput:
        return
    assert isinstance(request.id, str)


# Answers


@given(st.dictionaries(strategies.names, strategies.values, min_size=1, max_size=3), ids, st.data())
def test_a_client_reads_what_is_answered(outputs, id, data):
    def is_binary(name: str) -> bool:
        value = outputs[name]
        needs_to_be = isinstance(value, np.ndarray) and value.dtype == ml_dtypes.bfloat16
        return needs_to_be or data.draw(st.booleans())

    asked = tuple(RequestedOutput(name, is_binary(name)) for name in outputs)
    every = InferRequest(id, {}, None, binary_output=True)
    for request in (every, every, asking(*asked, id=id), asking(*asked, id=id)):
        result = their_result(request, outputs)
        response = result.get_response()
        assert response.get("id", "") == id
        assert (response["model_name"], response["model_version"]) == ("m", "1")
        for name, value in outputs.items():
            entry = result.get_output(name)
            assert entry["datatype"] == datatype_of_value(value, what=name)
            if isinstance(value, list):
                is_raw = "parameters" in entry
                got = [text.decode() if is_raw else text for text in result.as_numpy(name).tolist()]
                assert got == value
            elif "parameters" in entry:
                assert comparable(result.as_numpy(name)) == comparable(value)
            else:  # a NaN loses its bits
                np.testing.assert_array_equal(result.as_numpy(name), value)


def test_an_answer_as_it_is_written():
    body, json_bytes = answer(InferRequest("a", {}), {"y": X, "t": ["ü"]}, model="mlp")
    assert json_bytes is None
    assert json.loads(body) == {
        "id": "a",
        "model_name": "mlp",
        "model_version": "1",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [2, 3], "data": [0, 1, 2, 3, 4, 5]},
            {"name": "t", "datatype": "BYTES", "shape": [1], "data": ["ü"]},
        ],
    }
    for _ in range(2):
        body, json_bytes = answer(asking(RequestedOutput("y", True)), {"t": ["ü"], "y": X}, version="3")
        assert json.loads(body[:json_bytes]) == {
            "model_name": "m",
            "model_version": "3",
            "outputs": [
                {"name": "y", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}},
            ],
        }
        assert body[json_bytes:] == X.tobytes()


def test_large_arrays_are_not_copied_and_small_answers_are_one_piece():
    large = np.arange(2**20, dtype=np.float32)
    request = InferRequest("", {}, None, binary_output=True)
    for _ in range(2):
        parts, _ = write_infer(request, {"y": large}, model="m")
        assert np.shares_memory(np.frombuffer(parts[1], np.float32), large)
        parts, _ = write_infer(request, {"y": X}, model="m")
        assert len(parts) == 1


def test_what_is_remembered_depends_on_all_that_the_json_says():
    request = InferRequest("", {}, None, binary_output=True)
    variants = [X, X.T, X.astype(np.int32), X.astype(">f4"), X.reshape(6)]
    for _ in range(2):
        for value in variants:
            result = their_result(request, {"y": value})
            np.testing.assert_array_equal(result.as_numpy("y"), value)
            assert result.get_output("y")["shape"] == list(value.shape)
        for options in ({"model": "a"}, {"model": "b"}, {"model": "b", "version": "2"}):
            body, json_bytes = answer(request, {"y": X}, **options)
            document = json.loads(body[:json_bytes])
            assert {"model": document["model_name"], "version": document["model_version"]} == {"version": "1"} | options


def test_what_is_not_finite_reaches_the_client():
    y = np.array([math.nan, math.inf, -math.inf, 1.0], np.float32)
    np.testing.assert_array_equal(their_result(asking(RequestedOutput("y")), {"y": y}).as_numpy("y"), y)


@pytest.mark.parametrize(
    ("outputs", "request_", "error", "message"),
    [
        ({"y": X, "z": X}, asking(RequestedOutput("w")), InvalidInput, "no output 'w'; the model has y, z"),
        ({"y": X}, asking(RequestedOutput("w", True)), InvalidInput, "no output 'w'; the model has y"),
        ({"y": X.astype(ml_dtypes.bfloat16)}, InferRequest("", {}), InvalidInput, "output 'y' is BF16"),
        ({"y": X.astype(np.complex64)}, InferRequest("", {}, None, True), Unsupported, "datatype for complex64"),
        ({"y": X > 1}, asking(RequestedOutput("y", True, 1)), InvalidInput, "output 'y' has no numbers"),
        ({"y": ["a"]}, asking(RequestedOutput("y", True, 1)), InvalidInput, "output 'y' has no numbers"),
        (
            {"y": np.zeros((2, MAX_CLASSES))},
            asking(RequestedOutput("y", True, MAX_CLASSES)),
            InvalidInput,
            "at most 65536 classes are answered at a time",
        ),
    ],
)
def test_what_cannot_be_answered(outputs, request_, error, message):
    with pytest.raises(error, match=message):
        write_infer(request_, outputs, model="m")


def test_outputs_can_be_checked_beforehand():
    check_outputs(InferRequest("", {}), ["y"])
    check_outputs(asking(RequestedOutput("y")), ["y", "z"])
    with pytest.raises(InvalidInput, match="no output 'w'; the model has y, z"):
        check_outputs(asking(RequestedOutput("w")), iter(["y", "z"]))


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    ("value", "count", "expected"),
    [
        (np.array([[0.1, 0.9, 0.5]], np.float32), 2, [["0.900000:1", "0.500000:2"]]),
        (np.array([[0.1, 0.9], [0.8, 0.2]]), 1, [["0.900000:1"], ["0.800000:0"]]),
        (np.array([[1, 3, 2]], np.uint8), 9, [["3:1", "2:2", "1:0"]]),
        (np.array([[-(2**63), 2**63 - 1]]), 2, [["9223372036854775807:1", "-9223372036854775808:0"]]),
        (np.array([[5, 7, 7, 5]]), 3, [["7:1", "7:2", "5:0"]]),
        (np.array([[math.nan, -1.0]]), 2, [["-1.000000:1", "nan:0"]]),
        (np.array([[0.5, 2.0]], ml_dtypes.bfloat16), 1, [["2.000000:1"]]),
        (np.arange(4.0).reshape(1, 2, 2), 1, [["3.000000:3"]]),
        (np.array([3.0, 4.0]), 2, [["3.000000:0"], ["4.000000:0"]]),
        (np.zeros((0, 3)), 2, np.zeros((0, 2)).tolist()),
        (np.zeros((2, 0)), 2, [[], []]),
    ],
)
def test_classification(value, count, expected, binary):
    result = their_result(asking(RequestedOutput("y", binary, count)), {"y": value})
    assert result.get_output("y")["datatype"] == "BYTES"
    got = result.as_numpy("y").tolist()
    assert [[text.decode() if binary else text for text in row] for row in got] == expected
