"""What slices of a program take, as the inter-op pass is told where devices are attached."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve import Model, ParallelConfig, TensorSpec
from jaxserve.parallel import device_kind, plan_model
from jaxserve.runtime import load, slices

LAYERS = 6


def layers(params, x):
    for layer in range(LAYERS):
        with jax.named_scope(f"layer_{layer}"):
            x = jnp.tanh(x @ params[f"w{layer}"])
    return x


def stack():
    params = {f"w{layer}": np.eye(64, dtype=np.float32) for layer in range(LAYERS)}
    return Model.from_function(
        "layers", lambda params, x: layers(params, x), params, inputs={"x": TensorSpec(("batch", 64), "float32")}
    )


def measured(plans, clock):
    return slices.measure_slices(plans, devices=jax.devices()[:2], clock=clock)


def test_slices_that_are_alike_are_compiled_and_run_once():
    reads = itertools.count()
    found = []

    def measure(plans):
        found.append((len(plans), measured(plans, lambda: float(next(reads)))))
        return found[0][1]

    plan_model(stack(), ParallelConfig(2, 2), device_kind("H100"), measure=measure)
    ((count, seconds),) = found
    assert count == len(seconds) == LAYERS
    assert set(seconds) == {1.0}  # each run lies between two reads of the clock
    assert next(reads) <= 2 * 3 * slices.RUNS  # the first, the last and those between are sharded each in their way


@pytest.mark.parametrize("dear", [0, 5])
def test_the_cuts_go_by_what_slices_take(dear):
    def measure(plans):
        return [10.0 if place == dear else 1.0 for place in range(len(plans))]

    plan = plan_model(stack(), ParallelConfig(1, 2), device_kind("H100"), measure=measure)
    lengths = [len(stage.stage.params) for stage in plan.stages[0]]
    assert lengths == ([1, 5] if dear == 0 else [5, 1])
    assert plan.cutting.slowest_s == pytest.approx(10.0, rel=1e-3)


def test_a_model_loads_by_measured_costs():
    model = stack()
    pipeline = load(model, ParallelConfig(2, 3), jax.devices()[:6], repeats=1, stage_costs="measured")
    x = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    expected = np.asarray(model.apply(model.load_params(), {"x": x}))
    np.testing.assert_allclose(pipeline({"x": x}), expected, atol=1e-5)
