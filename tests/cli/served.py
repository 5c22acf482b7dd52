"""Models for the tests of `jaxserve serve`."""

import asyncio
import contextlib
import os
import signal
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


def interrupts() -> Model:
    """A factory during which somebody types Ctrl-C."""
    raise KeyboardInterrupt


def stopped_while_loading() -> list[Model]:
    """A model during whose loading somebody asks once to stop, and one beside it."""
    signals = [signal.SIGTERM]

    def asks(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with contextlib.suppress(RuntimeError):  # there is no loop when the model is made
            asyncio.get_running_loop()
            if signals:
                os.kill(os.getpid(), signals.pop())
        return x

    return [Model.from_function("stops", asks, inputs=SPEC, on_host=True), double]


on_host = Model.from_function("on_host", lambda x: x, inputs=SPEC, on_host=True)
mixed = [on_host, double]
nothing = 3
