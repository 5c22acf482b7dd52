"""Memory of values, counted by hand."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve import Model, ParallelConfig, TensorSpec
from jaxserve.parallel import StagePlan, device_kind, plan_model
from jaxserve.parallel.activations import peak_bytes

WIDE = np.zeros((8, 16), np.float32)
ROW = 4 * 4  # bytes of a feature of the batch of 4


def stage_of(function: Callable[..., Any]) -> StagePlan:
    params = {"up": WIDE, "down": WIDE.T.copy()}
    inputs = {"x": TensorSpec(("batch", 8), "float32")}
    model = Model.from_function("counted", function, params, inputs=inputs, batch_sizes=(4,))
    return plan_model(model, ParallelConfig(), device_kind("cpu")).stages[0][0]


@pytest.mark.parametrize(
    ("function", "features"),
    [
        (lambda params, x: x @ params["up"], 8 + 16),
        (lambda params, x: x @ params["up"] @ params["down"], 8 + 16 + 8),
        # what is elementwise lies in memory once, as the operand of the second product, beside what it is made of
        (lambda params, x: jnp.tanh(x @ params["up"] + 1) @ params["down"], 8 + 16 + 16),
        (lambda params, x: (x @ params["up"]).reshape(-1, 4, 4).transpose(0, 2, 1), 8 + 16),
        (lambda params, x: x @ params["up"] @ params["down"] @ params["up"], 8 + 16 + 8),
        (lambda params, x: [x @ params["up"], x], 8 + 16),
    ],
)
def test_what_lies_in_memory_at_once(function: Callable[..., Any], features: int) -> None:
    assert peak_bytes(stage_of(function)) == features * ROW


def test_what_is_split_takes_its_part() -> None:
    stage = stage_of(lambda params, x: x @ params["up"])
    (place,) = stage.steps
    steps = {place: dataclasses.replace(stage.steps[place], results=((0,),))}
    split = dataclasses.replace(stage, mesh_shape=(2,), takes=((-1,),), steps=steps)
    assert peak_bytes(split) == (8 + 16 / 2) * ROW
