"""Inference by the four flavours of `tritonclient`: every way to go wrong, and the status of each."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from jaxserve.protocols.datatypes import DTYPES
from tests.protocols_live.flavours import (
    FORBIDDEN,
    INVALID,
    MODEL_FAILED,
    NOT_FOUND,
    REFUSED,
    TOO_LATE,
    UNAUTHENTICATED,
    Caller,
    Flavour,
    Status,
)
from tests.protocols_live.live import LIMITS, LiveServer

X = np.arange(8, dtype=np.float32).reshape(2, 4)

# ----------------------------------------------------------------------------------------------------------- deadlines


def test_what_cannot_be_in_time_is_refused(caller: Caller) -> None:
    caller.refuses(REFUSED, "would be answered after", caller.infer, "affine", {"x": X}, timeout=1)


def test_what_was_not_in_time_has_expired(live: LiveServer, caller: Caller) -> None:
    with live.gate.closed():
        caller.refuses(TOO_LATE, "deadline", caller.infer, "gated", {"x": X}, timeout=50_000)
    np.testing.assert_array_equal(caller.infer("gated", {"x": X}).as_numpy("output"), X + 1)


def test_the_deadline_of_a_header_counts(live: LiveServer, http_flavour: Flavour) -> None:
    with Caller(http_flavour, live.public) as caller, live.gate.closed():
        headers = {"X-Deadline-S": "0.05"}
        caller.refuses(TOO_LATE, "deadline", caller.infer, "gated", {"x": X}, headers=headers, timeout=20_000_000)
        caller.refuses(INVALID, "X-Deadline-S", caller.infer, "gated", {"x": X}, headers={"X-Deadline-S": "soon"})


def test_the_deadline_of_grpc_counts(live: LiveServer, grpc_flavour: Flavour) -> None:
    with Caller(grpc_flavour, live.public) as caller, live.gate.closed():
        caller.refuses(TOO_LATE, "(?i)deadline", caller.infer, "gated", {"x": X}, client_timeout=0.05)


def test_who_has_too_many_in_flight_waits(live: LiveServer, flavour: Flavour) -> None:
    headers = live.authorization("user")
    with Caller(flavour, live.guarded) as caller:
        with live.occupied("user", LIMITS.max_in_flight_per_client):
            refused = "user has 4 requests unanswered"
            caller.refuses(REFUSED, refused, caller.infer, "affine", {"x": X}, headers=headers)
            others = live.authorization("operator")
            assert caller.infer("affine", {"x": X}, headers=others) is not None
        assert caller.infer("affine", {"x": X}, headers=headers) is not None


# -------------------------------------------------------------------------------------------------------------- wrong

WRONG: Mapping[str, tuple[Status, str, str, Mapping[str, np.ndarray], Mapping[str, Any]]] = {
    "model": (NOT_FOUND, "no model 'nothing' is served; there are .*affine", "nothing", {"x": X}, {}),
    "model-with-a-path": (NOT_FOUND, "no model|nothing at", "../affine", {"x": X}, {}),
    "version": (
        NOT_FOUND,
        "no version '7'; there is only '1'",
        "affine",
        {"x": X},
        {"model_version": "7"},
    ),
    "rank": (INVALID, "'x' has shape .*rank 3, but must have rank 2", "affine", {"x": X[None]}, {}),
    "shape": (INVALID, "'x' has shape .* dimension 1 must be 4", "affine", {"x": X[:, :3]}, {}),
    "no-rows": (INVALID, "'batch' must be at least 1", "affine", {"x": X[:0]}, {}),
    "rows": (INVALID, "batch", "affine", {"x": np.zeros((5, 4), np.float32)}, {}),
    "dtype": (INVALID, "'x' is an array of float64, but must be of float32", "affine", {"x": X.astype(float)}, {}),
    "name": (INVALID, "lack 'x' and have 'y'", "affine", {"y": X}, {}),
    "too-many": (INVALID, "have 'y', which it does not take", "affine", {"x": X, "y": X}, {}),
    "none": (INVALID, "lack 'x'", "affine", {}, {}),
    "output": (INVALID, "no output 'y'; the model has output", "affine", {"x": X}, {"outputs": ["y"]}),
    "texts": (INVALID, "'text'.*list of str", "letters", {"text": X}, {}),
    "text-for-numbers": (INVALID, "'x'", "affine", {"x": np.array(["1"], np.object_)}, {}),
    "table-of-texts": (INVALID, r"shape \[1, 1\].*list of strings", "letters", {"text": np.array([["a"]], object)}, {}),
    "not-utf-8": (INVALID, "not UTF-8", "letters", {"text": np.array([b"\xff"], object)}, {}),
    "raises": (MODEL_FAILED, "'fails' raised RuntimeError.*: there is no root", "fails", {"x": -X[1:]}, {}),
    "priority": (INVALID, "priority", "affine", {"x": X}, {"priority": -1}),
    "timeout": (INVALID, "timeout", "affine", {"x": X}, {"timeout": -1}),
    "tenant": (INVALID, "tenant", "affine", {"x": X}, {"parameters": {"tenant": "t" * 1000}}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_says_so(caller: Caller, wrong: str) -> None:
    status, match, model, inputs, options = WRONG[wrong]
    if caller.flavour.is_grpc and wrong == "priority":
        with pytest.raises(ValueError, match="range"):  # its message has no form for a negative priority
            caller.infer(model, inputs, **options)
        return
    message = caller.refuses(status, f"(?s){match}", caller.infer, model, inputs, **options)
    assert not re.search(r"Traceback|\.py\b|line \d+", message)
    np.testing.assert_array_equal(caller.infer("affine", {"x": X}).as_numpy("output"), 2 * X + 1)


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ([4, 2], "dimension 1 must be 4"),
        ([8], "rank 1"),
        ([1, 4], r"shape \[1, 4\] takes 16 bytes, but 32 were given"),
        ([3, 4], r"48 bytes|32 bytes are left"),
        ([-2, 4], "negative"),
        ([2**62, 2**62], "too large to exist"),
        ([1] * 100, "at most"),
    ],
    ids=str,
)
def test_a_shape_that_the_data_does_not_have(caller: Caller, shape: list[int], match: str) -> None:
    given = caller.flavour.input("x", X)
    given.set_shape(shape)
    caller.refuses(INVALID, match, caller.call, "infer", "affine", [given])


def test_a_tensor_without_data(caller: Caller) -> None:
    for datatype in ("FP32", "BYTES", "FP31"):
        given = caller.flavour.module.InferInput("x", [2, 4], datatype)
        caller.refuses(INVALID, "'x'", caller.call, "infer", "affine", [given])


def test_a_name_may_be_there_once(caller: Caller) -> None:
    given = caller.flavour.input("x", X)
    caller.refuses(INVALID, "'x' is there twice", caller.call, "infer", "affine", [given, given])
    caller.refuses(INVALID, "'output' is there twice", caller.infer, "affine", {"x": X}, ["output", "output"])


def test_shared_memory_is_refused(caller: Caller) -> None:
    given = caller.flavour.module.InferInput("x", [2, 4], "FP32")
    given.set_shared_memory("region", X.nbytes)
    caller.refuses(INVALID, "shared memory, which is not supported", caller.call, "infer", "affine", [given])
    output = caller.flavour.output("output")
    output.set_shared_memory("region", X.nbytes)
    inputs = [caller.flavour.input("x", X)]
    caller.refuses(INVALID, "shared memory", caller.call, "infer", "affine", inputs, outputs=[output])


def test_no_classes_of_bools(caller: Caller) -> None:
    flags, x = np.ones((1, 3), np.bool_), np.ones((1, 3))
    values = {name: (flags if name == "BOOL" else x.astype(dtype)) for name, dtype in DTYPES.items()}
    inputs = [caller.flavour.input(name, value) for name, value in values.items()]
    outputs = [caller.flavour.output("BOOL", classes=1)]
    caller.refuses(INVALID, "'BOOL' has no numbers", caller.call, "infer", "every", inputs, outputs=outputs)


def test_a_body_that_is_too_large_is_refused(live: LiveServer, http_flavour: Flavour) -> None:
    with Caller(http_flavour, live.public) as caller:
        x = np.zeros((LIMITS.max_body_bytes // 512 + 1, 128), np.float32)
        for algorithm in (None, "gzip"):
            with pytest.raises(InferenceServerException, match=r"more than|larger than 524288 bytes") as caught:
                caller.infer("identity", {"x": x}, request_compression_algorithm=algorithm)
            assert caught.value.status() == "413"


def test_a_message_that_is_too_large_is_refused(live: LiveServer, grpc_flavour: Flavour) -> None:
    with Caller(grpc_flavour, live.public) as caller:
        x = np.zeros((LIMITS.max_body_bytes // 512 + 1, 128), np.float32)
        caller.refuses(REFUSED, "(?i)larger than max", caller.infer, "identity", {"x": x})


# -------------------------------------------------------------------------------------------------------------- access


def test_tokens(live: LiveServer, flavour: Flavour) -> None:
    with Caller(flavour, live.guarded) as caller:
        user = live.authorization("user")
        caller.refuses(UNAUTHENTICATED, "wants a token", caller.infer, "affine", {"x": X})
        none = {"authorization": "Bearer none-of-these"}
        caller.refuses(UNAUTHENTICATED, "does not know the token", caller.infer, "affine", {"x": X}, headers=none)
        may_not = "'user' may not use model 'fails'"
        caller.refuses(FORBIDDEN, may_not, caller.infer, "fails", {"x": X}, headers=user)
        result = caller.infer("affine", {"x": X}, headers=user)
        np.testing.assert_array_equal(result.as_numpy("output"), 2 * X + 1)


def test_tls(live: LiveServer, flavour: Flavour) -> None:
    with Caller(flavour, live.secure) as caller:
        assert caller.call("is_server_live") is True
        result = caller.infer("affine", {"x": X})
        np.testing.assert_array_equal(result.as_numpy("output"), 2 * X + 1)
        caller.refuses(NOT_FOUND, "no model 'nothing'", caller.infer, "nothing", {"x": X})
