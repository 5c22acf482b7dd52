"""Models that need no device run where they are asked for, and are predicted to take what they took when measured."""

import asyncio
import math
from typing import Any

import numpy as np
import pytest

from jaxserve import Engine, Model, TensorSpec
from jaxserve.errors import DeadlineRefused, InferenceError, ModelFailed

X = np.arange(4, dtype=np.float32).reshape(2, 2)


def host_model(name: str, function: Any, **options: Any) -> Model:
    return Model.from_function(
        name, function, inputs={"x": TensorSpec(("batch", 2), "float32")}, batch_sizes=(2,), on_host=True, **options
    )


def test_one_may_run_another() -> None:
    inside: list[Any] = []

    def through(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if not x[0, 0]:
            return x  # as it is made, and measured
        ticket = engine.submit("double", {"x": x}, deadline_s=1.0, on_settled=inside.append)
        assert ticket == -1, "it was settled before `submit` returned"
        return inside.pop()["output"] + 1

    engine = Engine([host_model("double", lambda x: 2 * x), host_model("through", through)])

    async def main() -> None:
        async with engine:
            outputs = await engine.infer("through", {"x": X + 1})
            np.testing.assert_array_equal(outputs["output"], 2 * (X + 1) + 1)
            served = {name: counted["served"] for name, counted in engine.status()["models"].items()}
            assert served == {"double": 1, "through": 1}
            assert engine.status()["host"]["requests"] == 2
            assert engine.status()["in_flight"] == 0

    asyncio.run(main())


def test_what_takes_longer_than_its_deadline_is_refused_for_good() -> None:
    now_s = [0.0]
    ran: list[int] = []

    def slow(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        ran.append(len(x))
        return x

    async def main() -> None:
        async with Engine([host_model("slow", slow)], overhead_s=0.5, clock=lambda: now_s[0]) as engine:
            ran.clear()
            with pytest.raises(DeadlineRefused) as refused:
                await engine.infer("slow", {"x": X}, deadline_s=0.25)
            assert refused.value.retry_after_s == math.inf
            assert not ran
            await engine.infer("slow", {"x": X}, deadline_s=1.0)
            assert ran == [2]
            counted = engine.status()["models"]["slow"]
            assert (counted["refusals"]["late"], counted["served"]) == (1, 1)

    asyncio.run(main())


def test_one_that_raises_fails_its_request_alone_with_and_without_processing() -> None:
    def picky(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if x[0, 0] > 8:
            raise ValueError("too large")
        return x

    spec = TensorSpec(("batch", 2), "float32")
    processing: dict[str, Any] = {
        "accepts": {"x": spec},
        "returns": {"output": spec},
        "preprocess": lambda inputs: {"x": inputs["x"] + 1},
        "postprocess": lambda outputs: {"output": outputs["output"] * 10},
    }
    models = [host_model("bare", picky), host_model("processed", picky, **processing)]

    async def main() -> None:
        async with Engine(models) as engine:
            for name, answer in (("bare", X), ("processed", 10 * (X + 1))):
                with pytest.raises(ModelFailed, match="too large"):
                    await engine.infer(name, {"x": X + 9})
                np.testing.assert_array_equal((await engine.infer(name, {"x": X}))["output"], answer)
                counted = engine.status()["models"][name]
                assert (counted["failed"], counted["served"], counted["requests"]) == (1, 1, 2)

    asyncio.run(main())


def test_unloading_waits_for_what_is_postprocessed() -> None:
    results: list[Any] = []
    held = asyncio.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def postprocess(outputs: Any) -> Any:
            asyncio.run_coroutine_threadsafe(held.wait(), loop).result()
            return outputs

        returns = {"output": TensorSpec(("batch", 2), "float32")}
        model = host_model("m", lambda x: x, returns=returns, postprocess=postprocess)
        async with Engine([model]) as engine:
            engine.submit("m", {"x": X}, deadline_s=None, on_settled=results.append)
            unloading = asyncio.ensure_future(engine.unload("m"))
            for _ in range(4):  # its task begins another one
                await asyncio.sleep(0)
            assert "m" not in engine.models
            assert not unloading.done()
            held.set()
            await unloading
            assert not isinstance(results[0], InferenceError)
            assert engine.status()["host"]["models"] == []

    asyncio.run(main())
