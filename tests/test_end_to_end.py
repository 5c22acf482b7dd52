"""Client, native server, engine and real models, over a real socket of this machine."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxserve import AsyncClient, Engine, Model, Placement, TensorSpec
from jaxserve.errors import (
    InvalidInput,
    ModelError,
    ModelFailed,
    ModelNotFound,
)
from jaxserve.models import minilm
from jaxserve.plans import Group
from jaxserve.protocols.loop import loop_factory
from jaxserve.server import NativeServer

GOLDEN = json.loads((Path(__file__).parent / "golden" / "minilm_golden.json").read_text(encoding="utf-8"))


@asynccontextmanager
async def served(*models: Model, placement: Placement | None = None) -> AsyncIterator[tuple[AsyncClient, Engine, str]]:
    """A client of a server of an engine; afterwards no task and no open file may be left."""
    files = len(os.listdir("/proc/self/fd"))
    engine = Engine(models, placement=placement, devices=jax.devices()[:4])
    async with engine, NativeServer(engine) as server:
        async with AsyncClient(server.addresses[0]) as client:
            yield client, engine, server.addresses[0]
        assert server.in_flight == 0
    assert engine.status()["in_flight"] == 0
    assert all(group["in_flight"] == 0 for group in engine.status()["groups"])
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert len(os.listdir("/proc/self/fd")) == files


async def listen_once() -> None:
    """Lets the loop open what it keeps for itself once it listens: libuv holds a file in reserve."""
    listener = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    listener.close()
    await listener.wait_closed()


def run(test: Any) -> None:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(listen_once())
        runner.run(test)


def test_golden_embeddings_over_the_network() -> None:
    try:
        model = minilm(batch_sizes=(1, 8), lengths=(16, 64))
    except ModelError as error:
        pytest.skip(f"no weights of MiniLM: {error}")
    group = Group(inter_op=2, devices=(0, 1), models=("minilm",))
    sentences, expected = GOLDEN["sentences"], np.array(GOLDEN["embeddings"])

    async def test() -> None:
        async with served(model, placement=Placement(groups=(group,))) as (client, *_):
            one_by_one = [client.infer("minilm", {"text": [text]}, deadline_s=60.0) for text in sentences]
            together = client.infer("minilm", {"text": sentences}, deadline_s=60.0)
            *singles, batch = await asyncio.gather(*one_by_one, together)
            for found in (np.concatenate([single["embedding"] for single in singles]), batch["embedding"]):
                assert found.dtype == np.float32
                assert np.abs(found - expected).max() < 1e-4
                assert (found * expected).sum(axis=1).min() > 0.99999

    run(test())


def _picky(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if np.asarray(x)[0, 0] < 0:
        raise ValueError("a negative number")
    return x


def picky() -> Model:
    """A model that raises on some inputs."""
    return Model.from_function(
        "picky",
        lambda x: jax.pure_callback(_picky, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
        inputs={"x": TensorSpec(("batch", 4), "float32")},
        batch_sizes=(1, 2),
    )


GOOD = np.ones((1, 4), np.float32)
BAD_CALLS: list[tuple[str, Any, Any, type[Exception], str]] = [
    ("nobody", {"x": GOOD}, None, ModelNotFound, "no model 'nobody' is served; there are picky"),
    ("picky", {}, None, InvalidInput, "lack 'x'"),
    ("picky", {"x": GOOD, "y": GOOD}, None, InvalidInput, "'y'"),
    ("picky", {"X": GOOD}, None, InvalidInput, "'X'"),
    ("picky", {"x": GOOD.astype(np.int32)}, None, InvalidInput, "int32"),
    ("picky", {"x": GOOD[0]}, None, InvalidInput, "rank"),
    ("picky", {"x": GOOD[:, :2]}, None, InvalidInput, "dimension 1 must be 4"),
    ("picky", {"x": np.ones((3, 4), np.float32)}, None, InvalidInput, "batch is 3"),
    ("picky", {"x": ["a"]}, None, InvalidInput, "x"),
    ("picky", {"x": GOOD}, float("nan"), InvalidInput, "nan"),
    ("picky", {"x": GOOD}, 0.0, InvalidInput, "0"),
    ("picky", {"x": GOOD}, -1.0, InvalidInput, "-1"),
    ("picky", {"x": GOOD}, 1e-7, TimeoutError, "deadline"),
    ("picky", {"x": -GOOD}, None, ModelFailed, "a negative number"),
]


def test_bad_calls_harm_nobody() -> None:
    async def test() -> None:
        async with served(picky()) as (client, *_):
            for name, inputs, deadline_s, kind, problem in BAD_CALLS:
                good = asyncio.ensure_future(client.infer("picky", {"x": GOOD}, deadline_s=30.0))
                with pytest.raises(kind, match=problem):
                    await client.infer(name, inputs, deadline_s=deadline_s)
                np.testing.assert_array_equal((await good)["output"], GOOD)

    run(test())


def test_a_client_that_goes_with_requests_in_flight_leaves_nothing() -> None:
    async def test() -> None:
        async with served(picky()) as (client, engine, address):
            async with AsyncClient(address) as other:
                calls = [asyncio.ensure_future(other.infer("picky", {"x": GOOD})) for _ in range(100)]
                await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert any(isinstance(outcome, dict) for outcome in outcomes)
            np.testing.assert_array_equal((await client.infer("picky", {"x": GOOD}))["output"], GOOD)
            counted = engine.status()["models"]["picky"]
            assert counted["served"] + counted["cancelled"] == counted["requests"]
            assert counted["cancelled"] > 0

    run(test())
