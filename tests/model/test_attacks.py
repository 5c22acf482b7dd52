"""Models that were once made wrongly, or not made though they are right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxserve.errors import ModelError, ModelFailed
from jaxserve.model import Model, TensorSpec
from jaxserve.runtime import parallelize

ROWS = {"x": TensorSpec(("batch", 8), "float32")}
LINES = {"x": TensorSpec(("batch", "length"), "float32")}


def test_arrays_of_a_params_callable_are_not_deleted():
    mine = {"w": jnp.ones((8, 8))}
    model = Model.from_function("m", lambda params, x: x @ params["w"], lambda: mine, inputs=ROWS)
    for _ in range(2):
        pipeline = parallelize(model)
        assert pipeline({"x": np.ones((1, 8), np.float32)})[0, 0] == 8
        pipeline.close()
    assert not mine["w"].is_deleted()


def test_a_dimension_that_may_be_fixed_or_variable_is_asked_about():
    positions = np.ones((16, 4), np.float32)

    def function(x):
        summed = (x[..., None] + positions[: x.shape[1]]).sum((1, 2))
        return jnp.broadcast_to(summed[:, None], (x.shape[0], 16))

    model = Model.from_function("m", function, inputs=LINES, buckets={"length": (16,)})
    assert model.outputs["output"].shape == ("batch", 16)  # shorter lengths can be traced, so it is known

    def exact(x):
        assert x.shape[1] == 16
        return function(x)

    with pytest.raises(ModelError, match="may follow 'length' or may be fixed at 16"):
        Model.from_function("m", exact, inputs=LINES, buckets={"length": (16,)})


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda x: x + jnp.ones((64,))[: x.shape[1]], r"cannot be traced at batch 1, length 128: .*take that size out"),
        (lambda x: x[:, :64] * 2, r"output 'output' at batch 1, length 128 is float32 of \(1, 64\), but .* \(1, 128\)"),
        (lambda x: x if x.shape != (4, 128) else 1 / 0, r"cannot be traced at batch 4, length 128"),
        (
            lambda x: x if x.shape[0] < 4 else x.astype(jnp.bfloat16),
            "output 'output' at batch 4, length 16 is bfloat16",
        ),
    ],
)
def test_every_size_is_traced(function, problem):
    with pytest.raises(ModelError, match=problem):
        Model.from_function("m", function, inputs=LINES, batch_sizes=(1, 2, 4), buckets={"length": (16, 32, 128)})


def test_a_param_may_be_called_value():
    class Attention(nnx.Module):
        def __init__(self):
            self.key = nnx.Param(jnp.ones((8, 8)))
            self.value = nnx.Param(2 * jnp.ones((8, 8)))

        def __call__(self, x):
            return x @ self.key[...] + x @ self.value[...]

    class Outer(nnx.Module):
        def __init__(self):
            self.h = Attention()

        def __call__(self, x):
            return self.h(x)

    pipeline = parallelize(Model.from_nnx("m", Outer(), inputs=ROWS))
    assert pipeline({"x": np.ones((1, 8), np.float32)})[0, 0] == 24


def test_weights_of_another_sort_are_refused():
    import flax.linen as nn

    module = nn.Dense(4)
    params = module.init(jax.random.key(0), jnp.zeros((1, 8)))
    whole = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.int32), params)
    with pytest.raises(ModelError, match=r"leaf '.*' is of int32, but the module's is of float32"):
        Model.from_linen("m", module, whole, inputs={"inputs": ROWS["x"]})
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert Model.from_linen("m", module, half, inputs={"inputs": ROWS["x"]}).name == "m"


def test_a_postprocess_must_return_what_was_declared():
    model = Model.from_function(
        "m", lambda x: x, inputs=ROWS, postprocess=lambda out: {"z": out["output"]}, returns={"y": ROWS["x"]}
    )
    with pytest.raises(ModelFailed, match=r"the postprocess of 'm' returned \['z'\], but .* \['y'\]"):
        model.finish({"output": np.ones((1, 8), np.float32)}, {"batch": 1})


def test_a_host_function_must_return_what_it_did_when_it_was_made():
    returned = [{"a": 1}]

    def function(x):
        return dict.fromkeys(returned[0], x)

    model = Model.from_function("m", function, inputs=ROWS, on_host=True)
    returned[0] = {"b": 1}
    with pytest.raises(ModelFailed, match="when the model was made"):
        model.call_on_host({"x": np.ones((1, 8), np.float32)})
