"""Serve your own flax.nnx module, with inputs of variable length.

    python examples/serve_nnx.py                           # serves it, asks it, ends
    jaxserve serve examples.serve_nnx:model                # serves it until it is told to stop

A dimension with a name is variable. Each size under `buckets` is compiled; a request is padded with zeros up to the
next of them, so the module must know padding when it sees it. What is padded is cut off again from outputs that have
the dimension.
"""

import asyncio

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxserve
from jaxserve.server import NativeServer

PADDING = 0
VOCABULARY = 1000


class Tagger(nnx.Module):
    """Tags every token, with the mean of the whole sequence as its context."""

    def __init__(self, *, width: int, tags: int, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCABULARY, width, rngs=rngs)
        self.hidden = nnx.Linear(2 * width, width, rngs=rngs)
        self.head = nnx.Linear(width, tags, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> dict[str, jax.Array]:
        """Scores [batch, length, tags] of `tokens`, int32 [batch, length]."""
        x = self.embed(tokens)
        present = (tokens != PADDING)[..., None].astype(x.dtype)
        count = jnp.maximum(present.sum(axis=1, keepdims=True), 1)
        context = (x * present).sum(axis=1, keepdims=True) / count
        x = jnp.concatenate([x, jnp.broadcast_to(context, x.shape)], axis=-1)
        return {"scores": self.head(nnx.relu(self.hidden(x)))}


def model() -> jaxserve.Model:
    """The module with random weights, compiled for two batch sizes and three lengths."""
    return jaxserve.Model.from_nnx(
        "tagger",
        Tagger(width=64, tags=5, rngs=nnx.Rngs(0)),
        inputs={"tokens": jaxserve.TensorSpec(("batch", "length"), "int32")},
        batch_sizes=(1, 4),
        buckets={"length": (16, 64, 256)},
        deadline_s=5.0,
    )


async def main() -> None:
    """Serves on a free port of this machine and asks with three lengths at once."""
    rng = np.random.default_rng(0)
    async with (
        jaxserve.Engine([model()]) as engine,
        NativeServer(engine) as server,
        jaxserve.AsyncClient(server.addresses[0]) as client,
    ):
        texts = [rng.integers(1, VOCABULARY, size=(1, length), dtype=np.int32) for length in (9, 40, 200)]
        answers = await asyncio.gather(*(client.infer("tagger", {"tokens": text}) for text in texts))
        for text, answer in zip(texts, answers, strict=True):
            print(f"{text.shape[1]} tokens: scores {answer['scores'].shape}")
        try:
            await client.infer("tagger", {"tokens": np.ones((1, 1000), np.int32)})
        except jaxserve.errors.InvalidInput as error:
            print(f"too long: {error}")


if __name__ == "__main__":
    asyncio.run(main())
