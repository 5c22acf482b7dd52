"""The engine on real devices of this process."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.cluster.default import default_placement
from jaxserve.engine import Engine
from jaxserve.errors import DeadlineExceeded, EngineStopped, InvalidInput, ModelFailed, PlacementError
from jaxserve.model import Model, TensorSpec
from jaxserve.plans import Group, Placement

X = np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 16)
SPEC = {"x": TensorSpec(("batch", 16), "float32")}


class MLP(nn.Module):
    """Two layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(4, name="head")(nn.relu(nn.Dense(32, name="body")(x)))


def mlp(name: str = "mlp") -> tuple[Model, Callable[[Any], Any]]:
    module = MLP()
    params = jax.tree.map(np.asarray, module.init(jax.random.key(0), jnp.zeros((1, 16))))
    made = Model.from_linen(name, module, params, inputs=SPEC, batch_sizes=(1, 4), deadline_s=30.0, cuts=("head",))
    return made, lambda x: np.asarray(module.apply(params, x))


def serve(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a test and looks for threads that outlive it."""
    before = threading.active_count()
    asyncio.run(test())
    assert threading.active_count() == before


@pytest.mark.parametrize("stages", [1, 2])
def test_answers_equal_the_modules(stages: int) -> None:
    model, expected = mlp()
    placement = Placement(groups=(Group(inter_op=stages, devices=tuple(range(stages)), models=("mlp",)),))

    async def test() -> None:
        async with Engine([model], placement=placement) as engine:
            batches = [X[:1], X[1:], X, np.concatenate([X, X[:1]])]
            answers = await asyncio.gather(*(engine.infer("mlp", {"x": batch}) for batch in batches))
            for batch, answer in zip(batches, answers, strict=True):
                assert answer["output"].shape == (len(batch), 4)
                np.testing.assert_allclose(answer["output"], expected(batch), rtol=1e-5, atol=1e-6)

    serve(test)


def _callback_model(
    stages: int, call: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], batch_sizes: tuple[int, ...] = (1,)
) -> Model:
    def function(x: jax.Array) -> jax.Array:
        for stage in range(stages):
            with jax.named_scope(f"stage_{stage}"):
                x = jax.pure_callback(call, jax.ShapeDtypeStruct(x.shape, x.dtype), x) + 1
        return x

    cuts = tuple(f"stage_{stage}" for stage in range(1, stages))
    return Model.from_function("callback", function, inputs=SPEC, batch_sizes=batch_sizes, cuts=cuts)


def test_a_model_that_raises_for_one_input_fails_that_request_alone() -> None:
    def refuses_negative(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if (np.asarray(x) < 0).any():
            raise ValueError("a negative number")
        return x

    async def test() -> None:
        async with Engine([_callback_model(1, refuses_negative)], devices=jax.devices()[:1]) as engine:
            good, bad = np.ones((1, 16), np.float32), -np.ones((1, 16), np.float32)
            results = await asyncio.gather(
                *(engine.infer("callback", {"x": x}) for x in (good, bad, good, bad, good)), return_exceptions=True
            )
            assert [type(result) for result in results] == [dict, ModelFailed, dict, ModelFailed, dict]
            with pytest.raises(ModelFailed, match="a negative number"):
                raise next(result for result in results if isinstance(result, ModelFailed))
            assert engine.status()["groups"][0]["in_flight"] == 0

    serve(test)


@pytest.mark.parametrize("stages", [1, 2])
def test_what_waits_runs_as_one_and_only_whom_the_batch_fails_on_fails(stages: int) -> None:
    gate = threading.Event()
    gate.set()

    def waits_and_refuses_negative(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        assert gate.wait(timeout=30)
        if (np.asarray(x) < 0).any():
            raise ValueError("a negative number")
        return x

    async def test() -> None:
        model = _callback_model(stages, waits_and_refuses_negative, batch_sizes=(1, 2, 8))
        placement = Placement(groups=(Group(inter_op=stages, devices=tuple(range(stages)), models=("callback",)),))
        async with Engine([model], placement=placement) as engine:
            gate.clear()
            inputs = [np.full((rows, 16), number, np.float32) for number, rows in enumerate((1, 1, 2, 1, 3))]
            inputs[3] *= -1
            calls = [asyncio.ensure_future(engine.infer("callback", {"x": x})) for x in inputs]
            await asyncio.sleep(0)
            gate.set()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(answers.pop(3), ModelFailed)
            for x, answer in zip((*inputs[:3], inputs[4]), answers, strict=True):
                assert isinstance(answer, dict)
                np.testing.assert_array_equal(answer["output"], x + stages)
            status = engine.status()
            assert status["models"]["callback"]["batches"] == 6  # 0; 1 to 4; 1 and 2; 3 and 4; 3; 4
            assert status["groups"][0]["queue"] == status["in_flight"] == 0

    serve(test)


def test_lengths_are_merged_and_cut_apart_again() -> None:
    def double(x: jax.Array) -> dict[str, jax.Array]:
        return {"twice": 2 * x, "sum": x.sum(1)}

    async def test() -> None:
        spec = {"x": TensorSpec(("batch", "length"), "float32")}
        model = Model.from_function("double", double, inputs=spec, batch_sizes=(1, 4), buckets={"length": (4, 8)})
        async with Engine([model], devices=jax.devices()[:1]) as engine:
            shapes = [(1, 3), (1, 8), (2, 4), (1, 5), (1, 1)]
            inputs = [np.full(shape, number + 1, np.float32) for number, shape in enumerate(shapes)]
            answers = await asyncio.gather(*(engine.infer("double", {"x": x}) for x in inputs))
            for x, answer in zip(inputs, answers, strict=True):
                np.testing.assert_array_equal(answer["twice"], 2 * x)
                np.testing.assert_array_equal(answer["sum"], x.sum(1))

    serve(test)


def test_stages_overlap_and_each_has_a_thread() -> None:
    """Request r is on stage k in slot r + k; in slot 2 three stages are at work, and they wait for each other."""
    threads: set[str] = set()
    meeting = threading.Barrier(3, timeout=30)

    def meets(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        request, stage = divmod(int(np.asarray(x)[0, 0]), 10)
        if request and request - 1 + stage == 2:
            meeting.wait()
        return x

    async def test() -> None:
        model = _callback_model(3, meets)
        placement = Placement(groups=(Group(inter_op=3, devices=(0, 1, 2), models=("callback",)),))
        async with Engine([model], placement=placement) as engine:
            threads.update(thread.name for thread in threading.enumerate())
            calls = [engine.infer("callback", {"x": np.full((1, 16), 10.0 * r, np.float32)}) for r in (1, 2, 3)]
            answers = await asyncio.gather(*calls)
            assert [answer["output"][0, 0] for answer in answers] == [13.0, 23.0, 33.0]

    serve(test)
    assert {f"jaxserve-group0-stage{stage}" for stage in range(3)} <= threads


def test_a_busy_device_neither_blocks_the_loop_nor_holds_an_expired_request() -> None:
    go_on = threading.Event()
    warm = threading.Event()

    def waits(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if warm.is_set():
            go_on.wait(30)
        return x

    async def test() -> None:
        x = np.zeros((1, 16), np.float32)
        async with Engine([_callback_model(1, waits)], devices=jax.devices()[:1]) as engine:
            warm.set()
            running = asyncio.ensure_future(engine.infer("callback", {"x": x}))
            with pytest.raises(DeadlineExceeded):
                await engine.infer("callback", {"x": x}, deadline_s=0.5)
            go_on.set()
            await running
            stopped = asyncio.ensure_future(engine.infer("callback", {"x": x}))
            go_on.clear()
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(0.01, go_on.set)
        with pytest.raises(EngineStopped):
            await stopped

    serve(test)


def test_unloading_gives_the_memory_back() -> None:
    def live_bytes() -> int:
        gc.collect()
        return sum(array.nbytes for array in jax.live_arrays())

    async def test() -> None:
        async with Engine([mlp("stays")[0]], devices=jax.devices()[:2]) as engine:
            before = live_bytes()
            for _ in range(2):
                model, expected = mlp("goes")
                await engine.load(model)
                answer = await engine.infer("goes", {"x": X})
                np.testing.assert_allclose(answer["output"], expected(X), rtol=1e-5, atol=1e-6)
                assert live_bytes() > before
                await engine.unload("goes")
                del model, expected, answer
                assert live_bytes() == before
            assert (await engine.infer("stays", {"x": X}))["output"].shape == (2, 4)

    serve(test)


def test_pre_and_postprocessing_run_off_the_loop() -> None:
    names: list[str] = []

    def count_letters(inputs: dict[str, Any]) -> dict[str, Any]:
        names.append(threading.current_thread().name)
        if "" in inputs["text"]:
            raise InvalidInput("a text is empty; send at least one letter")
        if "?" in inputs["text"]:
            raise KeyError("question")
        return {"x": np.array([[len(text)] * 16 for text in inputs["text"]], np.float32)}

    def as_words(outputs: dict[str, Any]) -> dict[str, Any]:
        names.append(threading.current_thread().name)
        if (outputs["output"] == 13).any():
            raise ZeroDivisionError("unlucky")
        return {"half": outputs["output"][:, 0] / 2}

    model = Model.from_function(
        "letters",
        lambda x: x,
        inputs=SPEC,
        batch_sizes=(1, 4),
        accepts={"text": TensorSpec(("batch",), "string")},
        preprocess=count_letters,
        postprocess=as_words,
        returns={"half": TensorSpec(("batch",), "float32")},
    )

    async def test() -> None:
        async with Engine([model], devices=jax.devices()[:1]) as engine:
            answer = await engine.infer("letters", {"text": ["abc", "de"]}, deadline_s=10.0)
            np.testing.assert_array_equal(answer["half"], [1.5, 1.0])
            with pytest.raises(InvalidInput, match="a text is empty"):
                await engine.infer("letters", {"text": [""]})
            with pytest.raises(InvalidInput, match="batch is 5, but the largest bucket holds 4"):
                await engine.infer("letters", {"text": ["a"] * 5})
            with pytest.raises(ModelFailed, match="the preprocess of 'letters' raised KeyError"):
                await engine.infer("letters", {"text": ["?"]})
            with pytest.raises(ModelFailed, match="the postprocess of 'letters' raised ZeroDivisionError"):
                await engine.infer("letters", {"text": ["a" * 13]})
            call = asyncio.ensure_future(engine.infer("letters", {"text": ["abc"]}))
            await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            counted = engine.status()["models"]["letters"]
            assert (counted["served"], counted["invalid"], counted["failed"], counted["cancelled"]) == (1, 2, 2, 1)
            assert (await engine.infer("letters", {"text": ["abc"]}))["half"] == [1.5]
        assert all(name.startswith("jaxserve-host") for name in names)

    serve(test)


def test_a_load_that_fails_leaves_nothing_behind() -> None:
    fails = Model.from_function(
        "fails", lambda params, x: x * params, lambda: 1 / 0 if LOADING.is_set() else jnp.ones(()), inputs=SPEC
    )
    gc.collect()
    before = len(jax.live_arrays())

    async def test() -> None:
        async with Engine([mlp()[0]], devices=jax.devices()[:2]) as engine:
            LOADING.set()
            with pytest.raises(ZeroDivisionError):
                await engine.load(fails)
            assert [each["name"] for each in engine.describe()] == ["mlp"]
            assert (await engine.infer("mlp", {"x": X}))["output"].shape == (2, 4)
        with pytest.raises(ZeroDivisionError):
            async with Engine([fails], devices=jax.devices()[:1]):
                pass

    serve(test)
    gc.collect()
    assert len(jax.live_arrays()) == before


def test_a_load_that_is_cancelled_leaves_nothing_behind() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def params() -> jax.Array:
        if LOADING.is_set():
            begun.set()
            go_on.wait(30)
        return jnp.ones((16,))

    LOADING.clear()
    slow = Model.from_function("slow", lambda params, x: x * params, params, inputs=SPEC)
    gc.collect()
    before = len(jax.live_arrays())

    async def test() -> None:
        async with Engine([mlp()[0]], devices=jax.devices()[:1]) as engine:
            LOADING.set()
            loading = asyncio.ensure_future(engine.load(slow))
            await asyncio.to_thread(begun.wait)
            loading.cancel()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await loading
            LOADING.clear()
            await engine.load(slow)
            assert (await engine.infer("slow", {"x": X[:1]}))["output"].shape == (1, 16)

    serve(test)
    gc.collect()
    assert len(jax.live_arrays()) == before


LOADING = threading.Event()


class _Device:
    """A device that says how much memory it has."""

    def __init__(self, memory_bytes: float) -> None:
        self._memory_bytes = memory_bytes

    def memory_stats(self) -> dict[str, float]:
        return {"bytes_limit": self._memory_bytes}


def test_default_placement() -> None:
    small, other = mlp("small")[0], mlp("other")[0]
    weight_bytes = small.weight_bytes
    roomy, tight, full = (_Device(scale * weight_bytes / 0.9) for scale in (2.1, 1.1, 0.5))
    everywhere = default_placement([small, other], [roomy, roomy])
    assert [group.models for group in everywhere.groups] == [("small", "other")] * 2
    apart = default_placement([small, other], [tight, tight])
    assert [group.models for group in apart.groups] == [("small",), ("other",)]
    with pytest.raises(PlacementError, match=r"model 'small' has .* bytes of weights, but no device has more than"):
        default_placement([small], [full])


@pytest.mark.parametrize("stages", [1, 2])
def test_spares_share_memory_that_holds_one_of_them(stages: int) -> None:
    (one, expected), (other, _) = mlp("one"), mlp("other")
    group = Group(inter_op=stages, devices=tuple(range(1, 1 + stages)), models=(), spares=("one", "other"))

    def weight_bytes() -> int:
        """On its devices, where activations of so few rows are smaller; on CPU, host copies are on device 0."""
        arrays = [array for array in jax.live_arrays() if jax.devices()[0] not in array.devices()]
        return sum(array.nbytes for array in arrays if array.nbytes > 256)

    async def test() -> None:
        before = weight_bytes()
        async with Engine([one, other], placement=Placement(groups=(group,)), spare_bytes=3000) as engine:
            assert weight_bytes() == before
            for name in ("one", "other", "other", "one"):
                answer = await engine.infer(name, {"x": X})
                np.testing.assert_allclose(answer["output"], expected(X), rtol=1e-5, atol=1e-6)
                assert engine.status()["groups"][0]["resident_spares"] == [name]
                assert 2000 < weight_bytes() - before <= 3000
            calls = [engine.infer(name, {"x": X}) for name in ("one", "other") * 20]
            for answer in await asyncio.gather(*calls):
                np.testing.assert_allclose(answer["output"], expected(X), rtol=1e-5, atol=1e-6)
            assert 2000 < weight_bytes() - before <= 3000
        assert weight_bytes() == before

    serve(test)


def test_a_spare_that_never_fits_is_refused_as_it_is_loaded() -> None:
    model, _ = mlp()
    placement = Placement(groups=(Group(devices=(0,), models=(), spares=("mlp",)),))

    async def test() -> None:
        with pytest.raises(PlacementError, match="on each device of stage 0, but spares may take 100; allow them more"):
            async with Engine([model], placement=placement, spare_bytes=100):
                pass

    serve(test)


def test_two_engines_at_once() -> None:
    async def test() -> None:
        began_s = time.monotonic()
        async with (
            Engine([mlp()[0]], devices=jax.devices()[:1]) as one,
            Engine([mlp()[0]], devices=jax.devices()[1:2]) as two,
        ):
            answers = await asyncio.gather(one.infer("mlp", {"x": X}), two.infer("mlp", {"x": X}))
            np.testing.assert_array_equal(answers[0]["output"], answers[1]["output"])
        assert one.status()["uptime_s"] <= time.monotonic() - began_s

    serve(test)
