"""The models that the clients of other projects are tried on: small, and one for each thing that can happen."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxserve import Model, TensorSpec
from jaxserve.protocols.datatypes import DTYPES

PATIENCE_S = 30.0
LETTERS = 26
WIDTH = 4
ODD_NAME = "größe: 2 %41?#"
X = {"x": TensorSpec(("batch", WIDTH), "float32")}


class Gate:
    """Where requests to a model wait while a test has closed it."""

    def __init__(self) -> None:
        self._is_open = threading.Event()
        self._is_open.set()

    def pass_through(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """A preprocess that changes nothing."""
        if not self._is_open.wait(PATIENCE_S):
            raise TimeoutError("a test has left the gate closed")
        return inputs

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Nobody passes in here."""
        self._is_open.clear()
        try:
            yield
        finally:
            self._is_open.set()


def make_models(gate: Gate) -> list[Model]:
    """All of them."""
    return [
        Model.from_function(
            "identity",
            lambda x: x,
            inputs={"x": TensorSpec(("batch", 128), "float32")},
            batch_sizes=(1, 8),
            on_host=True,
        ),
        Model.from_function("affine", lambda x: 2 * x + 1, inputs=X, batch_sizes=(1, 2, 4), deadline_s=PATIENCE_S),
        Model.from_function(
            "mixed",
            lambda flags, counts, halves, brains: {
                "negated": ~flags,
                "counted": counts + 1,
                "doubled": halves * 2,
                "tripled": brains * 3,
            },
            inputs={
                "flags": TensorSpec(("batch", 3), "bool"),
                "counts": TensorSpec(("batch", 2, 2), "int32"),
                "halves": TensorSpec(("batch", 3), "float16"),
                "brains": TensorSpec(("batch", 3), "bfloat16"),
            },
            batch_sizes=(1, 2),
        ),
        Model.from_function(
            "every",
            lambda **inputs: inputs,
            inputs={name: TensorSpec(("batch", 3), dtype.name) for name, dtype in DTYPES.items()},
            batch_sizes=(1, 2),
            on_host=True,
        ),
        Model.from_function(
            "letters",
            lambda counts: {"embedding": counts / 2},
            inputs={"counts": TensorSpec(("batch", LETTERS), "float32")},
            accepts={"text": TensorSpec(("batch",), "string")},
            preprocess=lambda inputs: {"counts": count_letters(inputs["text"])},
            batch_sizes=(1, 4),
            embedder=True,
            count_tokens=lambda texts: sum(len(text.split()) for text in texts),
        ),
        Model.from_function("fails", _fail_below_zero, inputs=X, on_host=True),
        Model.from_function("gated", lambda x: x + 1, inputs=X, batch_sizes=(1, 4), preprocess=gate.pass_through),
        Model.from_function(
            ODD_NAME, lambda x: {"sum": x.sum(-1), "deep": x[:, None, None]}, inputs=X, batch_sizes=(1, 2), on_host=True
        ),
        Model.from_function("spare", lambda x: x - 1, inputs=X),
    ]


def count_letters(texts: Any) -> np.ndarray:
    """How often each letter of the alphabet occurs in each text."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    return np.array([[text.lower().count(letter) for letter in alphabet] for text in texts], np.float32)


def _fail_below_zero(x: np.ndarray) -> np.ndarray:
    if (x < 0).any():
        raise RuntimeError("there is no root of what is less than zero")
    return np.sqrt(x)
