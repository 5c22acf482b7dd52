"""BERT in linen: post-norm encoder layers over learned positions (Devlin et al. 2018, arXiv 1810.04805).

Modules, by the names that a cut may use:

    embeddings          word, position, token_type, norm
    layers_0 ...        attention (query, key, value, output), attention_norm, feed_forward (up, down), norm
    head                after `BertConfig.head`: class scores (pool, classes) or an embedding (no params)

Padding: `attention_mask` is 1 for a token and 0 for padding; no output of a real token depends on padding.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxserve.models.layers import ClassHead, FeedForward, SelfAttention, TokenEmbeddings, layer_norm


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig:
    """Sizes of a BERT.

    Attributes:
        layers: number of encoder layers.
        hidden_size: of a token's vector.
        heads: of attention; divides `hidden_size`.
        feed_forward_size: of the hidden layer between two dense ones.
        vocabulary: number of words.
        max_length: number of positions.
        token_types: number of token types; all tokens are of type 0.
        head: "classes" (scores from the first token) or "embedding" (mean of the tokens, of length 1).
        classes: number of classes of the "classes" head.
        epsilon: of the layer norms.
        dtype: of params and of what is computed.
    """

    layers: int
    hidden_size: int
    heads: int
    feed_forward_size: int
    vocabulary: int
    max_length: int
    token_types: int = 2
    head: Literal["classes", "embedding"] = "classes"
    classes: int = 5
    epsilon: float = 1e-12
    dtype: str = "float32"


def _planned(layers: int, hidden_size: int, heads: int) -> BertConfig:
    """One of the BERTs that AlpaServe serves: the sizes behind its table 1, in float16."""
    return BertConfig(
        layers=layers,
        hidden_size=hidden_size,
        heads=heads,
        feed_forward_size=4 * hidden_size,
        vocabulary=51200,
        max_length=2048,
        dtype="float16",
    )


TINY = BertConfig(layers=2, hidden_size=32, heads=2, feed_forward_size=64, vocabulary=64, max_length=64)
SMALL = BertConfig(layers=4, hidden_size=128, heads=4, feed_forward_size=512, vocabulary=1024, max_length=128)
MINILM = BertConfig(
    layers=6,
    hidden_size=384,
    heads=12,
    feed_forward_size=1536,
    vocabulary=30522,
    max_length=512,
    head="embedding",
)
PLANNED = {
    "bert-1.3b": _planned(24, 2048, 32),
    "bert-2.7b": _planned(32, 2560, 32),
    "bert-6.7b": _planned(32, 4096, 32),
    "bert-104b": _planned(128, 8192, 64),
}


class BertLayer(nn.Module):
    """One encoder layer, normalised after each of its two halves."""

    config: BertConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        """[batch, length, hidden_size] to the same; bool mask [batch, length]."""
        config = self.config
        hidden = hidden + SelfAttention(config.heads, config.dtype, name="attention")(hidden, mask)
        hidden = layer_norm(config.epsilon, config.dtype, "attention_norm")(hidden)
        hidden = hidden + FeedForward(config.feed_forward_size, config.dtype, name="feed_forward")(hidden)
        return layer_norm(config.epsilon, config.dtype, "norm")(hidden)


class EmbeddingHead(nn.Module):
    """The mean of the real tokens, scaled to length 1."""

    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        """[batch, length, hidden_size] to float32 [batch, hidden_size]; zeros for a row without tokens."""
        weights = mask[:, :, None].astype(jnp.float32)
        # The tokens' number cancels: the sum has the direction of the mean.
        total = jnp.sum(hidden.astype(jnp.float32) * weights, axis=1)
        return total / jnp.maximum(jnp.linalg.norm(total, axis=-1, keepdims=True), 1e-12)


class Bert(nn.Module):
    """The encoder and its head; see `BertConfig.head`."""

    config: BertConfig

    def setup(self) -> None:
        """Makes the submodules."""
        config = self.config
        self.embeddings = TokenEmbeddings(
            config.vocabulary,
            config.max_length,
            config.token_types,
            config.hidden_size,
            config.epsilon,
            config.dtype,
        )
        self.layers = [BertLayer(config) for _ in range(config.layers)]
        self.head = EmbeddingHead() if config.head == "embedding" else ClassHead(config.classes, config.dtype)

    def __call__(self, *, input_ids: jax.Array, attention_mask: jax.Array) -> dict[str, jax.Array]:
        """int32 [batch, length] both; returns {"logits": [batch, classes]} or {"embedding": [batch, size]}, float32."""
        mask = attention_mask > 0
        hidden = self.embeddings(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        if isinstance(self.head, EmbeddingHead):
            return {"embedding": self.head(hidden, mask)}
        return {"logits": self.head(hidden)}
