"""GPT in nnx: pre-norm decoder layers, causal (Radford et al. 2019), for the prefill of one sequence: no cache.

Modules, by the names that a cut may use (`layers[3]` is "layers_3" there):

    embeddings          word, position
    layers_0 ...        attention_norm, attention (query, key, value, output), norm, up, down
    head                norm, scores

With `scan` the layers are one module, "layers", whose params have a leading dimension of the layers, and run as one
loop; an iteration of it has the name of its layer. With `remat` each layer is what training would recompute. Neither
changes an answer.

Padding goes at the end: `attention_mask` is 1 for a token and 0 for padding. The scores are those of the last token: of
the next word or, with `GptConfig.classes`, of the sequence's class.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxserve_kernels.attention import attention


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GptConfig:
    """Sizes of a GPT.

    Attributes:
        layers: number of decoder layers.
        hidden_size: of a token's vector.
        heads: of attention; divides `hidden_size`.
        feed_forward_size: of the hidden layer between two dense ones.
        vocabulary: number of words.
        max_length: number of positions.
        classes: number of classes; None to score the next word.
        epsilon: of the layer norms.
        dtype: of params and of what is computed.
    """

    layers: int
    hidden_size: int
    heads: int
    feed_forward_size: int
    vocabulary: int
    max_length: int
    classes: int | None = None
    epsilon: float = 1e-5
    dtype: str = "float32"


TINY = GptConfig(layers=2, hidden_size=32, heads=2, feed_forward_size=64, vocabulary=64, max_length=64)
SMALL = GptConfig(layers=4, hidden_size=128, heads=4, feed_forward_size=512, vocabulary=1024, max_length=128)


def _dense(inputs: int, outputs: int, config: GptConfig, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, dtype=config.dtype, param_dtype=config.dtype, rngs=rngs)


def _norm(config: GptConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.hidden_size, epsilon=config.epsilon, dtype=config.dtype, param_dtype=config.dtype, rngs=rngs
    )


def _embed(count: int, config: GptConfig, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(count, config.hidden_size, dtype=config.dtype, param_dtype=config.dtype, rngs=rngs)


class GptEmbeddings(nnx.Module):
    """Sum of word and position."""

    def __init__(self, config: GptConfig, *, rngs: nnx.Rngs) -> None:
        self.word = _embed(config.vocabulary, config, rngs)
        self.position = _embed(config.max_length, config, rngs)

    def __call__(self, input_ids: jax.Array) -> jax.Array:
        """int32 [batch, length] to [batch, length, hidden_size].

        Raises:
            ValueError: more tokens than positions.
        """
        length, positions = input_ids.shape[1], self.position.num_embeddings
        if length > positions:
            raise ValueError(f"{length} tokens, but the model has {positions} positions: use shorter buckets")
        return self.word(input_ids) + self.position(jnp.arange(length))


class CausalSelfAttention(nnx.Module):
    """Multi-head attention to the tokens up to one's own position."""

    def __init__(self, config: GptConfig, *, rngs: nnx.Rngs) -> None:
        size = config.hidden_size
        self.heads = config.heads
        self.query = _dense(size, size, config, rngs)
        self.key = _dense(size, size, config, rngs)
        self.value = _dense(size, size, config, rngs)
        self.output = _dense(size, size, config, rngs)

    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        """[batch, length, hidden_size] to the same; bool mask [batch, length]."""
        batch, length, size = hidden.shape
        query, key, value = (
            projection(hidden).reshape(batch, length, self.heads, size // self.heads)
            for projection in (self.query, self.key, self.value)
        )
        return self.output(attention(query, key, value, mask, causal=True).reshape(hidden.shape))


class GptLayer(nnx.Module):
    """One decoder layer, normalised before each of its two halves."""

    def __init__(self, config: GptConfig, *, rngs: nnx.Rngs) -> None:
        self.attention_norm = _norm(config, rngs)
        self.attention = CausalSelfAttention(config, rngs=rngs)
        self.norm = _norm(config, rngs)
        self.up = _dense(config.hidden_size, config.feed_forward_size, config, rngs)
        self.down = _dense(config.feed_forward_size, config.hidden_size, config, rngs)

    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        """[batch, length, hidden_size] to the same; bool mask [batch, length]."""
        hidden = hidden + self.attention(self.attention_norm(hidden), mask)
        return hidden + self.down(nnx.gelu(self.up(self.norm(hidden))))


class GptHead(nnx.Module):
    """Scores of the last token of each row."""

    def __init__(self, config: GptConfig, *, rngs: nnx.Rngs) -> None:
        self.norm = _norm(config, rngs)
        self.scores = _dense(config.hidden_size, config.classes or config.vocabulary, config, rngs)

    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        """[batch, length, hidden_size] to float32 [batch, classes or vocabulary]."""
        last = jnp.maximum(jnp.sum(mask, axis=1) - 1, 0)
        token = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
        return self.scores(self.norm(token)).astype(jnp.float32)


class Gpt(nnx.Module):
    """The decoder and its head."""

    def __init__(self, config: GptConfig, *, rngs: nnx.Rngs, scan: bool = False, remat: bool = False) -> None:
        """Makes the submodules.

        Args:
            config: sizes.
            rngs: for the params.
            scan: whether the layers are stacked and run by `nnx.scan`; `stack_layers` makes the params.
            remat: whether each layer runs under `nnx.remat`.
        """
        self.embeddings = GptEmbeddings(config, rngs=rngs)
        if scan:
            stacked = nnx.vmap(lambda rngs: GptLayer(config, rngs=rngs))
            self.layers = nnx.split_rngs(splits=config.layers)(stacked)(rngs)
        else:
            self.layers = nnx.List([GptLayer(config, rngs=rngs) for _ in range(config.layers)])
        self.head = GptHead(config, rngs=rngs)
        self.remat = remat

    def __call__(self, *, input_ids: jax.Array, attention_mask: jax.Array) -> dict[str, jax.Array]:
        """int32 [batch, length] both; returns {"logits": float32 [batch, classes or vocabulary]}."""
        mask = attention_mask > 0
        hidden = self.embeddings(input_ids)
        run = nnx.remat(_run_layer) if self.remat else _run_layer
        if isinstance(self.layers, GptLayer):
            every = nnx.scan(run, in_axes=(0, nnx.Carry, None), out_axes=nnx.Carry)
            hidden = every(self.layers, hidden, mask)
        else:
            for layer in self.layers:
                hidden = run(layer, hidden, mask)
        return {"logits": self.head(hidden, mask)}


def _run_layer(layer: GptLayer, hidden: jax.Array, mask: jax.Array) -> jax.Array:
    return layer(hidden, mask)


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The params (nested dicts) of a `Gpt` as those of one made with `scan`."""
    layers = params["layers"]
    in_order = [layers[index] for index in sorted(layers, key=int)]
    return {**params, "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *in_order)}
