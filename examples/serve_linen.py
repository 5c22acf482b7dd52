"""Serve your own flax.linen module over the network.

    python examples/serve_linen.py                         # serves it, asks it once, ends
    jaxserve serve examples.serve_linen:model              # serves it until it is told to stop

`model` is what `jaxserve serve` calls: a function without arguments that returns the model (or several).
"""

import asyncio

import jax
import numpy as np
from flax import linen as nn

import jaxserve
from jaxserve.server import NativeServer

IMAGE = (28, 28, 1)


class SmallResidual(nn.Module):
    """A convolution, two residual blocks with batch normalization, and a head: 28x28 images to ten classes."""

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """Probabilities [batch, 10] of `image`, float32 [batch, 28, 28, 1]."""
        x = nn.Conv(16, (3, 3), strides=2)(image)
        for _ in range(2):
            y = nn.BatchNorm(use_running_average=not train)(nn.Conv(16, (3, 3))(x))
            x = x + nn.relu(y)
        return nn.softmax(nn.Dense(10)(x.mean(axis=(1, 2))))


def top_class(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What clients get: the best class and how probable it is. A module that returns one array calls it `output`."""
    probabilities = outputs["output"]
    return {
        "class": probabilities.argmax(axis=-1).astype(np.int32),
        "probability": probabilities.max(axis=-1),
    }


def model() -> jaxserve.Model:
    """The module with random weights; replace `variables` by yours, or by the path of a checkpoint."""
    module = SmallResidual()
    variables = module.init(jax.random.key(0), np.zeros((1, *IMAGE), np.float32), train=False)
    return jaxserve.Model.from_linen(
        "images",
        module,
        variables,
        inputs={"image": jaxserve.TensorSpec(("batch", *IMAGE), "float32")},
        apply_kwargs={"train": False},
        batch_sizes=(1, 4),
        deadline_s=5.0,
        postprocess=top_class,
        returns={
            "class": jaxserve.TensorSpec(("batch",), "int32"),
            "probability": jaxserve.TensorSpec(("batch",), "float32"),
        },
    )


async def main() -> None:
    """Serves on a free port of this machine and asks once."""
    images = np.random.default_rng(0).random((3, *IMAGE), dtype=np.float32)
    async with (
        jaxserve.Engine([model()]) as engine,
        NativeServer(engine) as server,
        jaxserve.AsyncClient(server.addresses[0]) as client,
    ):
        answer = await client.infer("images", {"image": images}, deadline_s=5.0)
        for number, probability in zip(answer["class"], answer["probability"], strict=True):
            print(f"class {number} with probability {probability:.3f}")


if __name__ == "__main__":
    asyncio.run(main())
