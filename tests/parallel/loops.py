"""Models written as training code writes them: layers in loops, rematerialised, in another precision than params."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from jaxserve.model import Model, TensorSpec
from tests.model.toys import WIDTH, X

LAYERS = 4
STEPS = {"x": TensorSpec(("batch", 5, WIDTH), "float32")}


def drawn(shapes: Any, *, seed: int = 0) -> Any:
    """Normal numbers, small enough for many layers."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (generator.normal(size=leaf.shape) / WIDTH).astype(leaf.dtype), shapes)


def rows(count: int = 2, *, seed: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs of `X`."""
    return {"x": np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)}


class LinenLayer(nn.Module):
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, _):
        y = nn.Dense(WIDTH, name="dense", dtype=self.dtype)(nn.LayerNorm(name="norm", dtype=self.dtype)(x))
        return x + nn.tanh(y), None


class LinenStack(nn.Module):
    """Dense layers before and after a stack of `LAYERS` in one `nn.scan`."""

    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        layer = nn.remat(LinenLayer, prevent_cse=False) if self.remat else LinenLayer
        stack = nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
        x, _ = stack(self.dtype, name="stack")(nn.Dense(WIDTH, name="before", dtype=self.dtype)(x), None)
        return nn.Dense(2, name="after", dtype=self.dtype)(x)


def of_linen(module: nn.Module, inputs=X, **options: Any) -> Model:
    shapes = {name: jax.ShapeDtypeStruct((1, *spec.shape[1:]), spec.dtype) for name, spec in inputs.items()}
    params = drawn(jax.eval_shape(lambda given: module.init(jax.random.key(0), **given), shapes))
    return Model.from_linen("linen", module, params, inputs=inputs, **({"batch_sizes": (1, 2)} | options))


class NnxLayer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm, self.dense = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        return x + nnx.tanh(self.dense(self.norm(x)))


class NnxStack(nnx.Module):
    """A stack of `LAYERS` in one `nnx.scan`, inside another module."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.split_rngs(splits=LAYERS)(nnx.vmap(NnxLayer))(rngs)

    def run(self, x, remat):
        layer = nnx.remat(lambda layer, x: layer(x)) if remat else lambda layer, x: layer(x)
        return nnx.scan(layer, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.layers, x)


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, remat: bool = False):
        self.trunk, self.head, self.remat = NnxStack(rngs), nnx.Linear(WIDTH, 2, rngs=rngs), remat

    def __call__(self, x):
        return self.head(self.trunk.run(x, self.remat))


def of_nnx(*, remat: bool = False, **options: Any) -> Model:
    module = nnx.eval_shape(lambda: NnxNet(nnx.Rngs(0), remat))
    params = drawn(nnx.to_pure_dict(nnx.state(module)))
    return Model.from_nnx("nnx", module, params, inputs=X, **({"batch_sizes": (1, 2)} | options))


def of_function(function: Any, params: Any, inputs=X, **options: Any) -> Model:
    return Model.from_function("f", function, params, inputs=inputs, **({"batch_sizes": (1, 2)} | options))


def stacked(*lead: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Square matrices."""
    return drawn(jax.ShapeDtypeStruct((*lead, WIDTH, WIDTH), np.float32), seed=seed) * 3


def backwards(**options: Any) -> Model:
    """A reversed scan that returns a row of each layer, in the order of the layers, and one that nobody wants."""

    def function(params, x):
        def layer(x, weight):
            with jax.named_scope("layer"):
                y = jnp.tanh(x @ weight)
            return x + y, (jnp.sum(y, axis=1), y * 2)

        x, (sums, _) = jax.lax.scan(layer, x, params["weights"], reverse=True)
        return {"x": x, "sums": sums.T}

    return of_function(function, {"weights": stacked(LAYERS)}, **options)


def nested(**options: Any) -> Model:
    """Three layers in each of two blocks: a scan inside a scan; a table that all of them read."""
    table = np.arange(WIDTH, dtype=np.float32)

    def function(params, x):
        def layer(x, weight):
            with jax.named_scope("layer"):
                return jnp.tanh(x @ weight) + table, None

        def block(x, weights):
            with jax.named_scope("block"):
                return jax.lax.scan(layer, x, weights["layers"])[0] + weights["bias"], jnp.sum(x)

        return jax.lax.scan(block, x, params)[0]

    params = {"layers": stacked(2, 3), "bias": np.ones((2, WIDTH), np.float32)}
    return of_function(function, params, **options)


def stacked_in_the_program(**options: Any) -> Model:
    """Layers that lie apart, stacked and cast for the loop only."""

    def function(params, x):
        stack = jax.tree.map(lambda *leaves: jnp.stack(leaves).astype(jnp.bfloat16), *params)

        def layer(x, weights):
            return jnp.tanh(x @ weights["kernel"] + weights["bias"]), None

        return jax.lax.scan(layer, x.astype(jnp.bfloat16), stack)[0].astype(jnp.float32)

    params = [{"kernel": stacked(seed=seed), "bias": np.ones(WIDTH, np.float32)} for seed in range(3)]
    return of_function(function, params, **options)


def joined_in_the_program(**options: Any) -> Model:
    """Two stacks, one after the other, as one."""

    def function(params, x):
        stack = jnp.concatenate([params["first"], params["one"][None], params["second"]])
        return jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, stack)[0]

    params = {"first": stacked(2), "one": stacked(seed=1), "second": stacked(2, seed=2)}
    return of_function(function, params, **options)


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="after")(nn.RNN(nn.LSTMCell(WIDTH), name="rnn")(x)[:, -1])


def recurrent(**options: Any) -> Model:
    return of_linen(Recurrent(), STEPS, **options)


def looping(**options: Any) -> Model:
    """A `while` and a `cond` that read params."""

    def function(params, x):
        with jax.named_scope("loop"):
            turns, x = jax.lax.while_loop(
                lambda state: state[0] < 3, lambda state: (state[0] + 1, jnp.tanh(state[1] @ params["turn"])), (0, x)
            )
        with jax.named_scope("branch"):
            return jax.lax.cond(jnp.sum(x) > 0, lambda x: x @ params["yes"], lambda x: x @ params["no"] + turns, x)

    params = {name: stacked(seed=seed) for seed, name in enumerate(("turn", "yes", "no"))}
    return of_function(function, params, **options)


class Tied(nn.Module):
    """A float32 table that is read by row and multiplied with, both in another precision."""

    dtype: Any

    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(16, WIDTH, dtype=self.dtype, name="embed")
        x = nn.Dense(WIDTH, dtype=self.dtype, name="dense")(embed(ids))
        return embed.attend(x).astype(jnp.float32)


def tied(dtype: Any = jnp.bfloat16, **options: Any) -> Model:
    return of_linen(Tied(dtype), {"ids": TensorSpec(("batch", 4), "int32")}, **options)


def of_length(**options: Any) -> Model:
    """A position table of which each bucket reads as many rows as it has tokens, in bfloat16."""

    def function(params, x):
        table = params["table"].astype(jnp.bfloat16)
        return x.astype(jnp.bfloat16) @ params["kernel"].astype(jnp.bfloat16) + table[: x.shape[1]] * 2

    params = {"table": drawn(jax.ShapeDtypeStruct((16, WIDTH), np.float32)), "kernel": stacked()}
    inputs = {"x": TensorSpec(("batch", "length", WIDTH), "float32")}
    return of_function(function, params, inputs, **({"buckets": {"length": (2, 4, 8)}} | options))
