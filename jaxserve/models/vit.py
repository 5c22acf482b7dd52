"""A vision transformer in linen: patches as tokens, pre-norm layers, mean of the tokens (arXiv 2010.11929, 2205.01580).

Modules, by the names that a cut may use:

    embeddings          patch (a convolution), position
    layers_0 ...        attention_norm, attention (query, key, value, output), norm, feed_forward (up, down)
    head                norm, classes
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxserve.models.layers import FeedForward, SelfAttention, layer_norm


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VitConfig:
    """Sizes of a vision transformer.

    Attributes:
        layers: number of encoder layers.
        hidden_size: of a patch's vector.
        heads: of attention; divides `hidden_size`.
        feed_forward_size: of the hidden layer between two dense ones.
        image_size: pixels of either side.
        patch_size: pixels of either side of a patch; divides `image_size`.
        classes: number of classes.
        epsilon: of the layer norms.
        dtype: of params and of what is computed.
    """

    layers: int
    hidden_size: int
    heads: int
    feed_forward_size: int
    image_size: int = 32
    patch_size: int = 4
    classes: int = 10
    epsilon: float = 1e-6
    dtype: str = "float32"


TINY = VitConfig(layers=2, hidden_size=32, heads=2, feed_forward_size=64, patch_size=8)
SMALL = VitConfig(layers=4, hidden_size=128, heads=4, feed_forward_size=512)


class VitEmbeddings(nn.Module):
    """Patches and their positions: `patch`, `position`."""

    config: VitConfig

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """[batch, image_size, image_size, channels] to [batch, patches, hidden_size]."""
        config = self.config
        sides = (config.patch_size, config.patch_size)
        convolution = nn.Conv(
            config.hidden_size,
            sides,
            strides=sides,
            padding="VALID",
            dtype=config.dtype,
            param_dtype=config.dtype,
            name="patch",
        )
        patches = convolution(image).reshape(image.shape[0], -1, config.hidden_size)
        return patches + self.param("position", nn.initializers.normal(0.02), (1, *patches.shape[1:]), config.dtype)


class VitLayer(nn.Module):
    """One encoder layer, normalised before each of its two halves."""

    config: VitConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[batch, patches, hidden_size] to the same."""
        config = self.config
        normed = layer_norm(config.epsilon, config.dtype, "attention_norm")(hidden)
        hidden = hidden + SelfAttention(config.heads, config.dtype, name="attention")(normed, None)
        normed = layer_norm(config.epsilon, config.dtype, "norm")(hidden)
        return hidden + FeedForward(config.feed_forward_size, config.dtype, name="feed_forward")(normed)


class VitHead(nn.Module):
    """Class scores of the mean of the patches: `norm`, `classes`."""

    config: VitConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[batch, patches, hidden_size] to float32 [batch, classes]."""
        config = self.config
        mean = jnp.mean(layer_norm(config.epsilon, config.dtype, "norm")(hidden), axis=1)
        scores = nn.Dense(config.classes, dtype=config.dtype, param_dtype=config.dtype, name="classes")(mean)
        return scores.astype(jnp.float32)


class Vit(nn.Module):
    """The encoder and its head."""

    config: VitConfig

    def setup(self) -> None:
        """Makes the submodules."""
        self.embeddings = VitEmbeddings(self.config)
        self.layers = [VitLayer(self.config) for _ in range(self.config.layers)]
        self.head = VitHead(self.config)

    def __call__(self, *, image: jax.Array) -> dict[str, jax.Array]:
        """float32 [batch, image_size, image_size, channels]; returns {"logits": float32 [batch, classes]}."""
        hidden = self.embeddings(image)
        for layer in self.layers:
            hidden = layer(hidden)
        return {"logits": self.head(hidden)}
