"""What is recalled of JSON requests is what would be read of them: known or not makes no difference."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxserve.errors import InvalidInput
from jaxserve.protocols import json_recall
from jaxserve.protocols.infer_request import InferRequest
from jaxserve.protocols.open_inference import read_infer, write_infer

NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(width=32), st.floats(), st.booleans(), st.none(), st.text(max_size=2)
)
DATA = st.one_of(
    st.lists(st.floats(-1e6, 1e6), max_size=4),
    st.lists(st.integers(-200, 300), max_size=4),
    st.lists(NUMBERS, max_size=4),
    st.lists(st.lists(st.integers(0, 3), max_size=2), max_size=2),
)
TENSOR_NAMES = st.sampled_from(["x", "data", 'a"data":[', "]", "\\", "ü", "id"])
EXTRAS = st.dictionaries(
    st.sampled_from(["data", "id", "parameters", "name", "shape", "more"]),
    st.one_of(st.integers(0, 3), st.lists(st.integers(0, 3), max_size=2), st.just({"data": [1]}), st.just("data")),
    max_size=2,
)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    tensor: dict[str, Any] = {
        "name": draw(TENSOR_NAMES),
        "datatype": draw(st.sampled_from(["FP32", "FP64", "INT8", "UINT16", "BOOL", "BYTES", "BF16", "FP16"])),
        "shape": draw(st.sampled_from([[2], [1, 2], [4], [0], [], [-1]])),
        "data": None,
    } | draw(EXTRAS)
    document: dict[str, Any] = {"inputs": [tensor] * draw(st.sampled_from([1, 1, 1, 2]))} | draw(EXTRAS)
    if draw(st.booleans()):
        document["outputs"] = [{"name": "y", "parameters": {"binary_data": draw(st.booleans())}}]
    keys = draw(st.permutations(list(document)))
    order = draw(st.permutations(list(tensor)))
    document["inputs"] = [{key: tensor[key] for key in order}] * len(document["inputs"])
    return {key: document[key] for key in keys}


def text(document: dict[str, Any], data: Any, id: str | None, *, spaced: bool) -> bytes:
    inputs = [{**tensor, "data": data} if tensor.get("data") is None else tensor for tensor in document["inputs"]]
    head = {} if id is None else {"id": id}
    separators = (", ", ": ") if spaced else (",", ":")
    return json.dumps({**head, **document, "inputs": inputs}, separators=separators).encode()


def read(body: bytes) -> Any:
    try:
        request = read_infer(body, None)
    except InvalidInput as error:
        return type(error)
    inputs = {
        name: value if isinstance(value, list) else (value.dtype, value.shape, value.tobytes())
        for name, value in request.inputs.items()
    }
    return request.id, inputs, request.outputs, request.binary_output, request.timeout_s, dict(request.parameters)


@given(documents(), DATA, DATA, st.one_of(st.none(), st.text(max_size=3)), st.booleans())
@example({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": None}]}, [1, 2], [3, 4.5], "i", False)
def test_known_is_as_unknown(document: dict[str, Any], first: Any, second: Any, id: str | None, spaced: bool):
    body = text(document, second, id, spaced=spaced)
    json_recall._known.clear()
    unknown = read(body)
    json_recall._known.clear()
    read(text(document, first, "other" if id else id, spaced=spaced))
    known = read(body)
    assert known == unknown
    assert read(body) == unknown  # and once more


BODY = b'{"id":"a","inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[1,2]}]}'


@pytest.mark.parametrize(
    "other",
    [
        BODY.replace(b"[1,2]", b"[1,2],3]"),
        BODY.replace(b"[1,2]", b"[1]"),
        BODY.replace(b"[1,2]", b"[1,2,3]"),
        BODY.replace(b"[1,2]", b"[[1,2]]"),
        BODY.replace(b"[1,2]", b"[NaN,2]"),
        BODY.replace(b"[1,2]", b"[1,2"),
        BODY.replace(b"[1,2]", b'["a",2]'),
        BODY.replace(b"[1,2]", b"[1e39,2]"),
        BODY.replace(b"[1,2]", b'[1,2],"data":[3,4]'),
        BODY.replace(b'"a"', b'"b"'),
        BODY + b"x",
    ],
)
def test_what_looks_like_a_known_one(other: bytes):
    json_recall._known.clear()
    unknown = read(other)
    json_recall._known.clear()
    read(BODY)
    assert json_recall.split_numbers(BODY) is not None
    assert json_recall.recall(json_recall.split_numbers(BODY)) is not None  # type: ignore[arg-type]  # it is known
    assert read(other) == unknown


@given(
    st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), min_size=1, max_size=3),
    st.text(max_size=3),
    st.sampled_from(["y", 'a"', "["]),
)
def test_answers_that_are_recalled_are_the_same(rows: list[list[float]], id: str, name: str):
    value = np.array(rows, np.float32)
    request = InferRequest(id, {})

    def written() -> Any:
        parts, json_bytes = write_infer(request, {name: value}, model="m")
        assert json_bytes is None
        return b"".join(bytes(part) for part in parts)

    json_recall._answers.clear()
    unknown = written()
    assert written() == unknown
    assert written() == unknown
