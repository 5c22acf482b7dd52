"""The native server and clients on the real engine: answers, refusals, and nothing left when a client disappears."""

import asyncio

import numpy as np
import pytest

from jaxserve import AsyncClient, Engine, Model, TensorSpec
from jaxserve.errors import InvalidInput, ModelFailed, ModelNotFound
from jaxserve.server import NativeServer
from tests.server.live import connect, on_every_loop, until


def models() -> list[Model]:
    def picky(x: np.ndarray) -> np.ndarray:
        if (x < 0).any():
            raise ValueError("no negative numbers")
        return x

    inputs = {"x": TensorSpec(("batch", 2), "float32")}
    return [
        Model.from_function("host", lambda x: 2 * x, inputs=inputs, on_host=True, batch_sizes=(1, 4)),
        Model.from_function("picky", picky, inputs=inputs, on_host=True),
        Model.from_function("device", lambda x: x + 1, inputs=inputs, batch_sizes=(1, 4), deadline_s=10.0),
    ]


@on_every_loop
async def test_answers_and_refusals():
    async with (
        Engine(models()) as engine,
        NativeServer(engine, linger_s=0.05) as server,
        AsyncClient(server.addresses[0]) as client,
    ):
        x = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
        np.testing.assert_array_equal((await client.infer("host", {"x": x}, deadline_s=5.0))["output"], 2 * x)
        np.testing.assert_array_equal((await client.infer("device", {"x": x}, deadline_s=5.0))["output"], x + 1)
        np.testing.assert_array_equal((await client.infer("device", {"x": [[0, 1]]}))["output"], [[1.0, 2.0]])
        np.testing.assert_array_equal((await client.infer("device", {"x": x}, priority=3, tenant="a"))["output"], x + 1)
        for inputs, says in (
            ({}, "x"),
            ({"y": x}, "y"),
            ({"x": x, "y": x}, "y"),
            ({"x": x.astype(np.float64)}, "float64"),
            ({"x": x[0]}, "x"),
            ({"x": np.zeros((1, 3), np.float32)}, "x"),
            ({"x": np.zeros((5, 2), np.float32)}, "5"),
        ):
            with pytest.raises(InvalidInput, match=says):
                await client.infer("device", inputs)
        with pytest.raises(ModelNotFound, match="no model 'nobody'"):
            await client.infer("nobody", {"x": x})
        with pytest.raises(ModelFailed, match="no negative numbers"):
            await client.infer("picky", {"x": -x[:1]})
        np.testing.assert_array_equal((await client.infer("picky", {"x": x[:1]}))["output"], x[:1])
        assert {model["name"] for model in await client.models()} == {"host", "picky", "device"}
        assert (await client.status())["in_flight"] == 0


@on_every_loop
async def test_a_client_that_disappears_with_a_hundred_requests_in_flight():
    async with Engine(models()) as engine, NativeServer(engine, linger_s=0.05) as server:
        x = np.ones((1, 2), np.float32)
        peer = await connect(server)
        await peer.greet()
        for id in range(1, 101):
            await peer.infer(id, "device", x=x)
        peer.reset()
        await until(lambda: server.connections == 0 and engine.status()["in_flight"] == 0)
        async with AsyncClient(server.addresses[0]) as client:
            calls = [client.infer("device", {"x": x}) for _ in range(10)]
            for outputs in await asyncio.gather(*calls):
                np.testing.assert_array_equal(outputs["output"], x + 1)
        groups = engine.status()["groups"]
        assert all(group["queue"] == 0 for group in groups)
        await peer.close()
