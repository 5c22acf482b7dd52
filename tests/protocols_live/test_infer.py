"""Inference by the four flavours of `tritonclient`: every form of tensor, and every option."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from jaxserve.protocols.datatypes import DTYPES
from tests.protocols_live.flavours import (
    INVALID,
    Caller,
    Flavour,
    response_of,
)
from tests.protocols_live.live import LiveServer
from tests.protocols_live.models import LETTERS, ODD_NAME, count_letters

BFLOAT16 = DTYPES["BF16"]
X = np.arange(8, dtype=np.float32).reshape(2, 4)
TEXTS = ["a banana", "", "größer, 大きい \x00"]
MIXED = {
    "flags": np.array([[True, False, True]]),
    "counts": np.array([[[1, -2], [2**31 - 2, -(2**31)]]], np.int32),
    "halves": np.array([[0.5, -1.25, 65504.0 / 2]], np.float16),
    "brains": np.array([[1.0, -2.5, 3e38]], BFLOAT16),
}
NO_BRAINS = [name for name in MIXED if name != "brains"]


def _mixed_outputs() -> Mapping[str, np.ndarray]:
    return {
        "negated": ~MIXED["flags"],
        "counted": MIXED["counts"] + np.int32(1),
        "doubled": MIXED["halves"] * np.float16(2),
        "tripled": np.array([[3.0, -7.5, np.inf]], BFLOAT16),
    }


def _texts(caller: Caller, texts: list[Any], *, binary: bool = True) -> Any:
    return caller.flavour.input("text", np.array(texts, np.object_), binary=binary)


# ------------------------------------------------------------------------------------------------------------- tensors


def test_a_batch_of_one_and_of_the_most(caller: Caller) -> None:
    for rows in (1, 8):
        x = np.random.default_rng(rows).standard_normal((rows, 128)).astype(np.float32)
        result = caller.infer("identity", {"x": x}, model_version="1")
        np.testing.assert_array_equal(result.as_numpy("output"), x)
        response = response_of(result)
        assert (response["model_name"], response["model_version"]) == ("identity", "1")
        assert response.get("id", "") == ""


def test_a_name_that_must_be_encoded(caller: Caller) -> None:
    result = caller.infer(ODD_NAME, {"x": X}, model_version="1")
    assert response_of(result)["model_name"] == ODD_NAME
    np.testing.assert_array_equal(result.as_numpy("sum"), X.sum(-1))
    np.testing.assert_array_equal(result.as_numpy("deep"), X[:, None, None])
    assert caller.call("is_model_ready", ODD_NAME, "1") is True
    assert caller.ask("get_model_metadata", ODD_NAME)["name"] == ODD_NAME


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_what_is_padded_comes_back_unpadded(caller: Caller, rows: int) -> None:
    x = np.arange(4 * rows, dtype=np.float32).reshape(rows, 4)
    np.testing.assert_array_equal(caller.infer("affine", {"x": x}).as_numpy("output"), 2 * x + 1)


def test_several_inputs_and_outputs_of_several_datatypes(caller: Caller) -> None:
    result = caller.infer("mixed", MIXED)
    for name, expected in _mixed_outputs().items():
        found = result.as_numpy(name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_every_datatype_keeps_its_extremes(caller: Caller) -> None:
    values = {name: _extremes(dtype) for name, dtype in DTYPES.items()}
    result = caller.infer("every", values)
    for name, value in values.items():
        found = result.as_numpy(name)
        assert found.dtype == value.dtype
        assert found.tobytes() == value.tobytes()
        assert {each["name"]: each["datatype"] for each in response_of(result)["outputs"]}[name] == name


def _extremes(dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "b":
        return np.array([[True, False, True]])
    if dtype.kind in "iu":
        return np.array([[np.iinfo(dtype).min, 7, np.iinfo(dtype).max]], dtype)
    return np.array([[-np.inf, 0.1, np.nan]], dtype)


def test_json_both_ways(live: LiveServer, http_flavour: Flavour) -> None:
    values = {name: _extremes(dtype) for name, dtype in DTYPES.items()}
    with Caller(http_flavour, live.public) as caller:
        result = caller.call(
            "infer",
            "every",
            [http_flavour.input(name, value, binary=name == "BF16") for name, value in values.items()],
            outputs=[http_flavour.output(name, binary=name == "BF16") for name in values],
        )
    for name, value in values.items():
        found = result.as_numpy(name)
        assert found.dtype == value.dtype
        assert np.array_equal(found.astype(np.float64), value.astype(np.float64), equal_nan=True)
        assert ("data" in result.get_output(name)) == (name != "BF16")


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
def test_json_one_way_and_binary_the_other(
    live: LiveServer, http_flavour: Flavour, binary_in: bool, binary_out: bool
) -> None:
    with Caller(http_flavour, live.public) as caller:
        given = http_flavour.input("x", X, binary=binary_in)
        result = caller.call("infer", "affine", [given], outputs=[http_flavour.output("output", binary=binary_out)])
    np.testing.assert_array_equal(result.as_numpy("output"), 2 * X + 1)
    assert ("data" in result.get_output("output")) != binary_out


def test_some_tensors_binary_and_others_json(live: LiveServer, http_flavour: Flavour) -> None:
    inputs = [
        http_flavour.input(name, value, binary=index % 2 == 1) for index, (name, value) in enumerate(MIXED.items())
    ]
    assert "BF16" in [given.datatype() for given in inputs[1::2]]
    expected = _mixed_outputs()
    outputs = [http_flavour.output(name, binary=index % 2 == 1) for index, name in enumerate(expected)]
    with Caller(http_flavour, live.public) as caller:
        result = caller.call("infer", "mixed", inputs, outputs=outputs)
    for name, value in expected.items():
        np.testing.assert_array_equal(result.as_numpy(name), value)


def test_bfloat16_has_no_form_in_json(live: LiveServer, http_flavour: Flavour) -> None:
    with Caller(http_flavour, live.public) as caller:
        inputs = [http_flavour.input(name, value) for name, value in MIXED.items()]
        outputs = [http_flavour.output("tripled", binary=False)]
        caller.refuses(INVALID, "tripled.*BF16.*binary", caller.call, "infer", "mixed", inputs, outputs=outputs)


def test_requested_outputs_come_alone_and_in_order(caller: Caller) -> None:
    result = caller.infer("mixed", MIXED, ["tripled", "negated"])
    assert [each["name"] for each in response_of(result)["outputs"]] == ["tripled", "negated"]
    assert result.as_numpy("counted") is None
    np.testing.assert_array_equal(result.as_numpy("negated"), _mixed_outputs()["negated"])
    np.testing.assert_array_equal(result.as_numpy("tripled"), _mixed_outputs()["tripled"])


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
def test_texts(caller: Caller, binary: bool) -> None:
    result = caller.call("infer", "letters", [_texts(caller, TEXTS, binary=binary)])
    found = result.as_numpy("embedding")
    assert found.shape == (3, LETTERS)
    np.testing.assert_array_equal(found, count_letters(TEXTS) / 2)


def test_texts_as_bytes(caller: Caller) -> None:
    given = _texts(caller, [text.encode() for text in TEXTS])
    found = caller.call("infer", "letters", [given]).as_numpy("embedding")
    np.testing.assert_array_equal(found, count_letters(TEXTS) / 2)


def test_classification(caller: Caller) -> None:
    x = np.array([[0.5, 4.0, -1.0, 4.0], [3.0, 2.0, 1.0, 0.0]], np.float32)
    expected = [[b"9.000000:1", b"9.000000:3"], [b"7.000000:0", b"5.000000:1"]]
    for binary in (True, False):
        outputs = [caller.flavour.output("output", binary=binary, classes=2)]
        result = caller.call("infer", "affine", [caller.flavour.input("x", x)], outputs=outputs)
        found = result.as_numpy("output")
        assert found.shape == (2, 2)
        assert [[_bytes(each) for each in row] for row in found] == expected
        [output] = response_of(result)["outputs"]
        assert output["datatype"] == "BYTES"


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


def test_more_classes_than_there_are_are_all(caller: Caller) -> None:
    outputs = [caller.flavour.output("output", classes=100)]
    result = caller.call("infer", "affine", [caller.flavour.input("x", X)], outputs=outputs)
    assert result.as_numpy("output").shape == (2, 4)


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("there", [None, "gzip", "deflate"])
@pytest.mark.parametrize("back", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
def test_compression_over_http(
    live: LiveServer, http_flavour: Flavour, there: str | None, back: str | None, binary: bool
) -> None:
    x = np.linspace(-1, 1, 8 * 128, dtype=np.float32).reshape(8, 128)
    with Caller(http_flavour, live.public) as caller:
        options = {"request_compression_algorithm": there, "response_compression_algorithm": back}
        given = http_flavour.input("x", x, binary=binary)
        outputs = [http_flavour.output("output", binary=binary)]
        result = caller.call("infer", "identity", [given], outputs=outputs, **options)
    np.testing.assert_array_equal(result.as_numpy("output"), x)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_over_grpc(live: LiveServer, grpc_flavour: Flavour, algorithm: str) -> None:
    x = np.zeros((8, 128), np.float32)
    with Caller(grpc_flavour, live.public) as caller:
        result = caller.infer("identity", {"x": x}, compression_algorithm=algorithm)
    np.testing.assert_array_equal(result.as_numpy("output"), x)


@pytest.mark.parametrize("id", ["7", 'with "quotes" and \\', "größer", "x" * 1024])
def test_the_id_comes_back(caller: Caller, id: str) -> None:
    for _ in range(2):  # what is alike is remembered
        assert response_of(caller.infer("affine", {"x": X}, request_id=id))["id"] == id


def test_priorities_parameters_and_sequences_change_nothing_in_the_answer(caller: Caller) -> None:
    choices: tuple[dict[str, Any], ...] = (
        {"priority": 1},
        {"priority": 100},
        {"timeout": 20_000_000},
        {"timeout": 2**63 - 1},
        {"parameters": {"text": "t", "flag": True, "whole": 7, "real": 0.5}},
        {"parameters": {"tenant": "somebody"}},
        {"sequence_id": 3, "sequence_start": True, "sequence_end": True},
    )
    for options in choices:
        result = caller.infer("affine", {"x": X}, **options)
        np.testing.assert_array_equal(result.as_numpy("output"), 2 * X + 1)


def test_headers_and_query_parameters(live: LiveServer, http_flavour: Flavour) -> None:
    with Caller(http_flavour, live.public) as caller:
        headers = {"X-Deadline-S": "20", "X-Tenant": "somebody"}
        result = caller.infer("affine", {"x": X}, headers=headers, query_params={"a": 1, "b": ["c", "d"]})
    np.testing.assert_array_equal(result.as_numpy("output"), 2 * X + 1)
