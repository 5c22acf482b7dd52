"""A residual network in linen, of basic blocks for small images (He et al. 2015, arXiv 1512.03385, section 4.2).

Modules, by the names that a cut may use:

    embeddings          convolution, norm
    layers_0 ...        first, first_norm, second, second_norm, and where the shape changes shortcut, shortcut_norm
    head                classes

Every `norm` is a batch norm, with running averages in the collection "batch_stats". To serve is to use those: a row's
result does not depend on the other rows of its batch.
"""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResnetConfig:
    """Sizes of a residual network.

    Attributes:
        blocks: number of blocks of each stage; every stage but the first begins by halving the image's sides.
        channels: of each stage.
        classes: number of classes.
        dtype: of params and of what is computed; batch statistics are float32.
    """

    blocks: tuple[int, ...]
    channels: tuple[int, ...]
    classes: int = 10
    dtype: str = "float32"


TINY = ResnetConfig(blocks=(1, 1), channels=(8, 16))
SMALL = ResnetConfig(blocks=(2, 2, 2), channels=(16, 32, 64))


def _convolution(channels: int, side: int, stride: int, dtype: str, name: str) -> nn.Conv:
    return nn.Conv(channels, (side, side), (stride, stride), use_bias=False, dtype=dtype, param_dtype=dtype, name=name)


def _batch_norm(dtype: str, *, train: bool, name: str) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=dtype, param_dtype=dtype, name=name)


class ResnetEmbeddings(nn.Module):
    """From colours to the first stage's channels: `convolution`, `norm`."""

    channels: int
    dtype: str

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, 3] to [batch, height, width, channels]."""
        hidden = _convolution(self.channels, 3, 1, self.dtype, "convolution")(image)
        return nn.relu(_batch_norm(self.dtype, train=train, name="norm")(hidden))


class ResnetBlock(nn.Module):
    """Two convolutions and a way around them: `first`, `second`, `shortcut` where the shape changes, their norms."""

    channels: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, hidden: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height / stride, width / stride, self.channels]."""
        straight = _convolution(self.channels, 3, self.stride, self.dtype, "first")(hidden)
        straight = nn.relu(_batch_norm(self.dtype, train=train, name="first_norm")(straight))
        straight = _convolution(self.channels, 3, 1, self.dtype, "second")(straight)
        straight = _batch_norm(self.dtype, train=train, name="second_norm")(straight)
        if hidden.shape != straight.shape:
            hidden = _convolution(self.channels, 1, self.stride, self.dtype, "shortcut")(hidden)
            hidden = _batch_norm(self.dtype, train=train, name="shortcut_norm")(hidden)
        return nn.relu(hidden + straight)


class ResnetHead(nn.Module):
    """Class scores of the mean over the image: `classes`."""

    classes: int
    dtype: str

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[batch, height, width, channels] to float32 [batch, classes]."""
        mean = jnp.mean(hidden, axis=(1, 2))
        scores = nn.Dense(self.classes, dtype=self.dtype, param_dtype=self.dtype, name="classes")(mean)
        return scores.astype(jnp.float32)


class Resnet(nn.Module):
    """The blocks of all stages, numbered through, and the head."""

    config: ResnetConfig

    def setup(self) -> None:
        """Makes the submodules."""
        config = self.config
        self.embeddings = ResnetEmbeddings(config.channels[0], config.dtype)
        stages = enumerate(zip(config.channels, config.blocks, strict=True))
        self.layers = list(
            itertools.chain.from_iterable(
                [ResnetBlock(channels, 2 if stage and not block else 1, config.dtype) for block in range(blocks)]
                for stage, (channels, blocks) in stages
            )
        )
        self.head = ResnetHead(config.classes, config.dtype)

    def __call__(self, *, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """float32 [batch, height, width, 3]; returns {"logits": float32 [batch, classes]}.

        With `train`, norms use and update (`mutable=["batch_stats"]`) the statistics of this batch.
        """
        hidden = self.embeddings(image, train=train)
        for layer in self.layers:
            hidden = layer(hidden, train=train)
        return {"logits": self.head(hidden)}
