"""Serve a plain function with parameters, and one that needs no device at all.

python examples/serve_function.py                      # serves both, asks them, ends
jaxserve serve examples.serve_function:models          # serves both until it is told to stop
"""

import asyncio
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

import jaxserve
from jaxserve.server import NativeServer

Params = Mapping[str, np.ndarray]


def nearest(params: Params, query: jax.Array) -> dict[str, jax.Array]:
    """The stored points that lie nearest to each row of `query`, float32 [batch, 16]."""
    distance = jnp.linalg.norm(query[:, None, :] - params["points"][None, :, :], axis=-1)
    best, index = jax.lax.top_k(-distance, 3)
    return {"index": index, "distance": -best}


def scale(values: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of numpy arrays scaled to length one: too little work to send it to a device."""
    return {"unit": values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)}


def models() -> list[jaxserve.Model]:
    """Both functions as models. A function is called with its params first, and its inputs by name."""
    points = np.random.default_rng(0).normal(size=(100_000, 16)).astype(np.float32)
    return [
        jaxserve.Model.from_function(
            "nearest",
            nearest,
            {"points": points},
            inputs={"query": jaxserve.TensorSpec(("batch", 16), "float32")},
            batch_sizes=(1, 8),
            deadline_s=5.0,
        ),
        jaxserve.Model.from_function(
            "scale",
            scale,
            inputs={"values": jaxserve.TensorSpec(("batch", 16), "float32")},
            batch_sizes=(1, 8),
            on_host=True,
        ),
    ]


async def main() -> None:
    """Serves on a free port of this machine; the answer of one model is the question to the other."""
    async with (
        jaxserve.Engine(models()) as engine,
        NativeServer(engine) as server,
        jaxserve.AsyncClient(server.addresses[0]) as client,
    ):
        scaled = await client.infer("scale", {"values": np.full((2, 16), 3.0, np.float32)})
        print(f"unit rows: length {np.linalg.norm(scaled['unit'], axis=-1).round(3).tolist()}")
        found = await client.infer("nearest", {"query": scaled["unit"]}, deadline_s=5.0)
        print(f"nearest points: {found['index'].tolist()}")


if __name__ == "__main__":
    asyncio.run(main())
