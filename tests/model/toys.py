"""Small real models that the tests of parallel/ and runtime/ share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from jaxserve.model import Model, TensorSpec

WIDTH = 8
IDS = {"ids": TensorSpec(("batch", "length"), "int32")}
X = {"x": TensorSpec(("batch", WIDTH), "float32")}


class Block(nn.Module):
    """A residual block with a norm, attention and a bias of every kind."""

    @nn.compact
    def __call__(self, x, mask):
        attended = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(
            nn.LayerNorm(name="norm")(x), mask=mask[:, None, None, :]
        )
        x = x + attended
        return x + nn.Dense(x.shape[-1], name="down")(jax.nn.relu(nn.Dense(16, name="up")(x)))


class Encoder(nn.Module):
    """Tied embeddings, a mask and a skip connection that reach over all layers, outputs that come early."""

    layers: int = 4

    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(16, WIDTH, name="embed")
        mask = ids > 0
        x = first = embed(ids)
        for layer in range(self.layers):
            block = nn.remat(Block) if layer % 2 else Block
            x = block(name=f"layers_{layer}")(x, mask)
        x = jax.nn.relu(x + first)
        return {"logits": embed.attend(x), "early": (first, ids), "features": x}


class NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 16, rngs=rngs)
        self.down = nnx.Linear(16, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(self.down(jax.nn.gelu(self.up(self.norm(x)))))


class NnxNet(nnx.Module):
    """BatchNorm and Dropout, a list of blocks in a child, a tied head by another method than `__call__`."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(16, WIDTH, rngs=rngs)
        self.trunk = NnxTrunk(rngs)

    def __call__(self, ids):
        return self.embed.attend(self.trunk(self.embed(ids)))


class NnxTrunk(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([NnxBlock(rngs) for _ in range(3)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def ids_of(batch: int, length: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 16, (batch, length)).astype(np.int32)


@functools.cache
def encoder_variables(layers: int = 4):
    return jax.jit(Encoder(layers).init)(jax.random.key(0), jnp.ones((1, 4), jnp.int32))


def encoder(**options):
    """The linen model, its module, and its variables."""
    module, variables = Encoder(), encoder_variables()
    options = {"batch_sizes": (1, 2, 4), "buckets": {"length": (4, 8)}} | options
    return Model.from_linen("encoder", module, variables, inputs=IDS, **options), module, variables


@nnx.jit
def make_nnx_net() -> NnxNet:
    return NnxNet(nnx.Rngs(0))


def nnx_net(**options) -> tuple[Model, NnxNet]:
    """The nnx model and its module."""
    module = make_nnx_net()
    options = {"batch_sizes": (2, 4), "buckets": {"length": (4, 8)}} | options
    return Model.from_nnx("net", module, inputs=IDS, **options), module


def perceptron_params(layers: int, *, seed: int = 0) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [
        {"kernel": generator.normal(size=(WIDTH, WIDTH)).astype(np.float32) / WIDTH, "bias": np.ones(WIDTH, np.float32)}
        for _ in range(layers)
    ]


def perceptron(params, x):
    """A plain function with a `named_scope` for each layer."""
    for number, layer in enumerate(params):
        with jax.named_scope(f"layer_{number}"):
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x
