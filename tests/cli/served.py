"""Models for the tests of `jaxserve serve`."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxserve import Model, TensorSpec

SPEC = {"x": TensorSpec(("batch", 4), "float32")}
double = Model.from_function("double", lambda x: 2 * x, inputs=SPEC, batch_sizes=(1, 2), deadline_s=30.0)


def _waits_for_a_writer(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Takes a path in numbers, and blocks until somebody writes to the pipe there; zeros, as when profiled, do not."""
    path = bytes(np.asarray(x)[0].astype(np.uint8)).rstrip(b"\0").decode()
    if path:
        Path(path).read_bytes()
    return x


def blocking() -> list[Model]:
    """A model that a test can hold up, and one beside it."""

    def function(x: jax.Array) -> jax.Array:
        return jax.pure_callback(_waits_for_a_writer, jax.ShapeDtypeStruct(x.shape, jnp.float32), x)

    return [Model.from_function("waits", function, inputs={"x": TensorSpec(("batch", 256), "float32")}), double]


def raises() -> Model:
    """A factory that fails."""
    raise OSError("no such weights")


nothing = 3
