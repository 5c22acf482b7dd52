"""Linen layers that the zoo's transformers share. Their submodules' names are part of every params tree here."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxserve_kernels.attention import attention


class SelfAttention(nn.Module):
    """Multi-head self-attention: `query`, `key`, `value`, `output`.

    Attributes:
        heads: must divide the hidden size.
        dtype: of params and of what is computed.
    """

    heads: int
    dtype: str

    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
        """[batch, length, hidden_size] to the same; bool mask [batch, length] of the keys that may be seen."""
        batch, length, size = hidden.shape

        def dense(name: str) -> nn.Dense:
            return nn.Dense(size, dtype=self.dtype, param_dtype=self.dtype, name=name)

        def by_head(x: jax.Array) -> jax.Array:
            return x.reshape(batch, length, self.heads, size // self.heads)

        query, key, value = (by_head(dense(name)(hidden)) for name in ("query", "key", "value"))
        return dense("output")(attention(query, key, value, mask).reshape(hidden.shape))


class FeedForward(nn.Module):
    """Two dense layers with a gelu (of erf, not its tanh approximation) between them: `up`, `down`.

    Attributes:
        size: of the hidden layer.
        dtype: of params and of what is computed.
    """

    size: int
    dtype: str

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[..., hidden_size] to the same."""
        up = nn.Dense(self.size, dtype=self.dtype, param_dtype=self.dtype, name="up")(hidden)
        down = nn.Dense(hidden.shape[-1], dtype=self.dtype, param_dtype=self.dtype, name="down")
        return down(nn.gelu(up, approximate=False))


class TokenEmbeddings(nn.Module):
    """Word plus position plus, where there are types, type 0, normalised: `word`, `position`, `token_type`, `norm`.

    Attributes:
        vocabulary: number of words.
        max_length: number of positions.
        token_types: 0 or the number of types; every token is of type 0.
        size: of an embedding.
        epsilon: of the layer norm.
        dtype: of params and of what is computed.
    """

    vocabulary: int
    max_length: int
    token_types: int
    size: int
    epsilon: float
    dtype: str

    @nn.compact
    def __call__(self, input_ids: jax.Array) -> jax.Array:
        """int32 [batch, length] to [batch, length, size].

        Raises:
            ValueError: more tokens than positions.
        """
        length = input_ids.shape[1]
        if length > self.max_length:
            raise ValueError(f"{length} tokens, but the model has {self.max_length} positions: use shorter buckets")

        def embed(count: int, name: str) -> nn.Embed:
            return nn.Embed(count, self.size, dtype=self.dtype, param_dtype=self.dtype, name=name)

        hidden = embed(self.vocabulary, "word")(input_ids)
        hidden = hidden + embed(self.max_length, "position")(jnp.arange(length))
        if self.token_types:
            hidden = hidden + embed(self.token_types, "token_type")(jnp.zeros((1, 1), jnp.int32))
        return layer_norm(self.epsilon, self.dtype, "norm")(hidden)


class ClassHead(nn.Module):
    """Class scores from the first token: `pool` (with a tanh), `classes`.

    Attributes:
        classes: number of classes.
        dtype: of params and of what is computed.
    """

    classes: int
    dtype: str

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[batch, length, hidden_size] to float32 [batch, classes]."""
        first = hidden[:, 0]
        pooled = nn.Dense(first.shape[-1], dtype=self.dtype, param_dtype=self.dtype, name="pool")(first)
        scores = nn.Dense(self.classes, dtype=self.dtype, param_dtype=self.dtype, name="classes")(jnp.tanh(pooled))
        return scores.astype(jnp.float32)


def layer_norm(epsilon: float, dtype: str, name: str) -> nn.LayerNorm:
    """A layer norm whose params have the dtype of what it computes; its statistics are float32."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, param_dtype=dtype, name=name)
