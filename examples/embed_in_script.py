"""Serve a model inside a program: no network, no second process.

    python examples/embed_in_script.py

The engine uses the devices that jax has. It compiles and times the model while it starts; after that every call is
either answered within its deadline or refused at once.
"""

import asyncio

import jax
import numpy as np
from flax import linen as nn

import jaxserve


class Classifier(nn.Module):
    """Two dense layers."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Scores and the best class of every row of `x`, float32 [batch, 128]."""
        scores = nn.Dense(self.classes)(nn.relu(nn.Dense(256)(x)))
        return {"scores": scores, "best": scores.argmax(axis=-1)}


def make_model() -> jaxserve.Model:
    """The classifier with random weights, compiled for four batch sizes."""
    module = Classifier(classes=10)
    variables = module.init(jax.random.key(0), np.zeros((1, 128), np.float32))
    return jaxserve.Model.from_linen(
        "classifier",
        module,
        variables,
        inputs={"x": jaxserve.TensorSpec(("batch", 128), "float32")},
        batch_sizes=(1, 2, 4, 8),
        deadline_s=5.0,
    )


async def main() -> None:
    """Asks once, many times at once, and for the impossible."""
    rng = np.random.default_rng(0)
    async with jaxserve.Engine([make_model()]) as engine:
        outputs = await engine.infer("classifier", {"x": rng.normal(size=(3, 128)).astype(np.float32)})
        print(f"3 rows: best classes {outputs['best'].tolist()}, scores {outputs['scores'].shape}")

        rows = [rng.normal(size=(1, 128)).astype(np.float32) for _ in range(200)]
        await asyncio.gather(*(engine.infer("classifier", {"x": row}) for row in rows))
        counters = engine.status()["models"]["classifier"]
        print(f"served {counters['served']} requests, median latency {counters['latency_p50_s'] * 1e3:.1f} ms")

        try:
            await engine.infer("classifier", {"x": rows[0]}, deadline_s=1e-9)
        except jaxserve.errors.DeadlineRefused as error:
            print(f"refused at once: {error}")


if __name__ == "__main__":
    asyncio.run(main())
