"""A mixture of experts in linen, as GShard's: every second feed-forward layer is a choice among experts.

Lepikhin et al. 2020, arXiv 2006.16668, section 2.2 and algorithm 1. Modules, by the names that a cut may use:

    embeddings          word, position, norm
    layers_0 ...        attention_norm, attention (query, key, value, output), norm; then in layers 0, 2, ...
                        feed_forward (up, down), in layers 1, 3, ... moe (router; up and down of all experts)
    head                pool, classes

Routing. The router gives each token a probability for each expert; the token goes to the two most probable, weighted by
their two probabilities made to sum to one. Each expert takes at most C tokens of a *group*, first choices before second
ones and earlier tokens before later ones; what exceeds C is dropped there, and the token keeps its residual alone.

A group is one row of the batch, so that what else is in the batch, padding rows included, changes no row's result.
Padded tokens are routed nowhere. C = ceil(2 * capacity_factor * tokens / experts) follows the number of real tokens and
not the padded length, so the bucket changes no result either; only the buffers have the size that the bucket needs.

Dispatch and combination are einsums over one-hot tensors, with g for groups, s for tokens, e for experts, c for places:

    to_experts[e, g, c, :] = dispatch[g, s, e, c] hidden[g, s, :]
    out[g, s, :]           = combine[g, s, e, c] from_experts[e, g, c, :]
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxserve.models.layers import ClassHead, FeedForward, SelfAttention, TokenEmbeddings, layer_norm


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MoeConfig:
    """Sizes of a mixture of experts.

    Attributes:
        layers: number of encoder layers; every second one has experts.
        hidden_size: of a token's vector.
        heads: of attention; divides `hidden_size`.
        feed_forward_size: of the hidden layer between two dense ones, and of each expert.
        experts: in each layer that has some; at least 2.
        capacity_factor: of each expert's share of the tokens; 1.0 is room for just all of them, if spread evenly.
        vocabulary: number of words.
        max_length: number of positions.
        classes: number of classes that are scored from the first token.
        epsilon: of the layer norms.
        dtype: of params and of what is computed; the router computes in float32.
    """

    layers: int
    hidden_size: int
    heads: int
    feed_forward_size: int
    experts: int
    vocabulary: int
    max_length: int
    capacity_factor: float = 1.0
    classes: int = 5
    epsilon: float = 1e-6
    dtype: str = "float32"

    def capacity(self, tokens: int) -> int:
        """Places of each expert for a group of this many real tokens."""
        return math.ceil(2 * self.capacity_factor * tokens / self.experts)


def _planned(hidden_size: int) -> MoeConfig:
    """One of the MoEs that AlpaServe serves: the sizes behind its table 1, in float16."""
    return MoeConfig(
        layers=16,
        hidden_size=hidden_size,
        heads=16,
        feed_forward_size=8 * hidden_size,
        experts=16,
        vocabulary=32000,
        max_length=1024,
        dtype="float16",
    )


TINY = MoeConfig(layers=2, hidden_size=32, heads=2, feed_forward_size=64, experts=4, vocabulary=64, max_length=64)
SMALL = MoeConfig(layers=4, hidden_size=128, heads=4, feed_forward_size=256, experts=8, vocabulary=1024, max_length=128)
PLANNED = {
    "moe-1.3b": _planned(768),
    "moe-2.4b": _planned(1024),
    "moe-5.3b": _planned(1536),
}


def route(
    probabilities: jax.Array, valid: jax.Array, limit: jax.Array, *, capacity: int
) -> tuple[jax.Array, jax.Array]:
    """GShard's top-2 gating of each group on its own.

    Args:
        probabilities: float32 [groups, tokens, experts], summing to one over the experts.
        valid: bool [groups, tokens], False for padding.
        limit: int32 [groups], places of each expert that a group may fill; at most `capacity`.
        capacity: places of each expert in what is returned.

    Returns:
        dispatch, bool [groups, tokens, experts, capacity]: whether a token has this place; and combine, float32 of the
        same shape: the weight of the expert's answer at that place, 0 elsewhere.
    """
    experts = probabilities.shape[-1]
    first = jnp.argmax(probabilities, axis=-1)
    second = jnp.argmax(jnp.where(jax.nn.one_hot(first, experts, dtype=jnp.bool_), -1.0, probabilities), axis=-1)
    # [choice, groups, tokens, experts]: who chose which expert
    chosen = jnp.stack([jax.nn.one_hot(choice, experts, dtype=jnp.int32) for choice in (first, second)])
    weights = chosen * probabilities
    weights = weights / jnp.sum(weights, axis=(0, 3), keepdims=True)
    chosen = chosen * valid[:, :, None]
    before = jnp.cumsum(chosen, axis=2) - chosen
    # Second choices stand behind all first choices of their group.
    firsts = jnp.sum(chosen[0], axis=1, keepdims=True)
    place = before + jnp.stack([jnp.zeros_like(firsts), firsts])
    kept = (chosen > 0) & (place < limit[:, None, None])
    placed = kept[..., None] & jax.nn.one_hot(place, capacity, dtype=jnp.bool_)
    return jnp.any(placed, axis=0), jnp.sum(placed * weights[..., None], axis=0)


class MixtureOfExperts(nn.Module):
    """Experts in place of a feed-forward layer: `router` (kernel), `up` and `down`, both [experts, in, out]."""

    config: MoeConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        """[batch, length, hidden_size] to the same; bool mask [batch, length]. A dropped token gets zeros."""
        config, length = self.config, hidden.shape[1]
        router = nn.Dense(config.experts, use_bias=False, dtype=jnp.float32, param_dtype=config.dtype, name="router")
        limits = jnp.asarray([config.capacity(tokens) for tokens in range(length + 1)], jnp.int32)
        dispatch, combine = route(
            jax.nn.softmax(router(hidden)), mask, limits[jnp.sum(mask, axis=1)], capacity=config.capacity(length)
        )
        initial = nn.initializers.lecun_normal(batch_axis=0)
        up = self.param("up", initial, (config.experts, config.hidden_size, config.feed_forward_size), config.dtype)
        down = self.param("down", initial, (config.experts, config.feed_forward_size, config.hidden_size), config.dtype)
        to_experts = jnp.einsum("gsec,gsm->egcm", dispatch.astype(config.dtype), hidden)
        within = nn.gelu(jnp.einsum("egcm,emh->egch", to_experts, up), approximate=False)
        from_experts = jnp.einsum("egch,ehm->egcm", within, down)
        return jnp.einsum("gsec,egcm->gsm", combine.astype(config.dtype), from_experts)


class MoeLayer(nn.Module):
    """One encoder layer, normalised before each of its two halves."""

    config: MoeConfig
    has_experts: bool

    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        """[batch, length, hidden_size] to the same; bool mask [batch, length]."""
        config = self.config
        normed = layer_norm(config.epsilon, config.dtype, "attention_norm")(hidden)
        hidden = hidden + SelfAttention(config.heads, config.dtype, name="attention")(normed, mask)
        normed = layer_norm(config.epsilon, config.dtype, "norm")(hidden)
        if self.has_experts:
            return hidden + MixtureOfExperts(config, name="moe")(normed, mask)
        return hidden + FeedForward(config.feed_forward_size, config.dtype, name="feed_forward")(normed)


class Moe(nn.Module):
    """The encoder and its class scores."""

    config: MoeConfig

    def setup(self) -> None:
        """Makes the submodules."""
        config = self.config
        self.embeddings = TokenEmbeddings(
            config.vocabulary, config.max_length, 0, config.hidden_size, config.epsilon, config.dtype
        )
        self.layers = [MoeLayer(config, has_experts=index % 2 == 1) for index in range(config.layers)]
        self.head = ClassHead(config.classes, config.dtype)

    def __call__(self, *, input_ids: jax.Array, attention_mask: jax.Array) -> dict[str, jax.Array]:
        """int32 [batch, length] both; returns {"logits": float32 [batch, classes]}."""
        mask = attention_mask > 0
        hidden = self.embeddings(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return {"logits": self.head(hidden)}
