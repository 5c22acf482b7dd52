"""Models for the tests of `jaxserve explain` and `jaxserve profile`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxserve import Model, TensorSpec, models
from jaxserve.models.bert import TINY

tiny = models.bert(TINY, name="tiny", batch_sizes=(1, 2), lengths=(16,))
on_host = Model.from_function("on_host", lambda x: x, inputs={"x": TensorSpec(("batch", 4), "float32")}, on_host=True)
several = [tiny, on_host]


def planned() -> Model:
    """A model that has only the shapes of its params."""
    return models.planning_model("bert-1.3b", lengths=(512,))


def huge() -> Model:
    """One of 16 layers of 10 GB, of which one device cannot hold all."""

    def layers(params: Sequence[jax.Array], x: jax.Array) -> jax.Array:
        for weight in params:
            x = jax.nn.relu(x @ weight)
        return x

    weights = [jax.ShapeDtypeStruct((50_000, 50_000), jnp.float32)] * 16
    return Model.from_function("huge", layers, weights, inputs={"x": TensorSpec(("batch", 50_000), "float32")})
