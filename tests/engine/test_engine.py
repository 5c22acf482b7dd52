"""The engine's promises: every request is settled, once, on every exit. On emulated groups and a jumping clock."""

import asyncio
import dataclasses
import functools
import gc
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from jaxserve.cluster import EmulatedCluster, emulated_outputs
from jaxserve.engine import Engine
from jaxserve.errors import (
    ConfigError,
    DeadlineExceeded,
    DeadlineRefused,
    EngineStopped,
    GroupFailed,
    InferenceError,
    InvalidInput,
    ModelError,
    ModelFailed,
    ModelNotFound,
    PlacementError,
    QueueFull,
    RequestCancelled,
)
from jaxserve.model import Model, TensorSpec
from jaxserve.plans import Group, Placement, Profile, Profiles, Segment
from jaxserve.simulator import StageTime
from tests.jumping_loop import run, until

X = np.arange(4, dtype=np.float32).reshape(1, 4)


def model(name: str = "m", **options: Any) -> Model:
    return Model.from_function(
        name,
        lambda x: {"double": 2 * x, "sum": x.sum(-1)},
        inputs={"x": TensorSpec(("batch", 4), "float32")},
        batch_sizes=(1, 2),
        **options,
    )


def profiles(*stage_latency_s: float, names: tuple[str, ...] = ("m", "n")) -> Profiles:
    nothing = (0.0,) * len(stage_latency_s)
    rows = tuple(
        Profile(
            intra_op=1,
            inter_op=len(stage_latency_s),
            batch_size=batch_size,
            stage_latency_s=stage_latency_s,
            stage_weight_bytes=nothing,
            stage_activation_bytes=nothing,
        )
        for batch_size in (1, 2)
    )
    return Profiles(device_kind="test", memory_bytes=0.0, models=dict.fromkeys(names, rows))


@asynccontextmanager
async def serving(
    *models: Model,
    stages: tuple[float, ...] = (1.0,),
    groups: int = 1,
    stage_time: StageTime | None = None,
    max_batch: int | None = None,
    max_queue: int = 100,
    **policy: Any,
) -> AsyncIterator[tuple[Engine, EmulatedCluster]]:
    """An engine on emulated groups that all hold all models; at the end nothing may be left inside."""
    names = tuple(each.name for each in models)
    placed = tuple(
        Group(inter_op=len(stages), devices=tuple(range(index * 10, index * 10 + len(stages))), models=names)
        for index in range(groups)
    )
    options = {} if stage_time is None else {"stage_time": stage_time}
    cluster = EmulatedCluster(placed, profiles(*stages), **options)
    clock = asyncio.get_running_loop().time
    engine = Engine(
        models,
        placement=Placement(groups=placed),
        cluster=cluster,
        clock=clock,
        max_batch=max_batch,
        max_queue=max_queue,
        **policy,
    )
    async with engine:
        yield engine, cluster
    status = engine.status()
    assert status["in_flight"] == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_an_answer_is_named_and_belongs_to_its_request() -> None:
    async def main() -> None:
        served = model()
        async with serving(served) as (engine, _):
            first, second = await asyncio.gather(engine.infer("m", {"x": X}), engine.infer("m", {"x": X + 1}))
            assert asyncio.get_running_loop().time() == 2.0
            for outputs, inputs in ((first, X), (second, X + 1)):
                expected = emulated_outputs(served, {"x": inputs}, {"batch": 1})
                np.testing.assert_array_equal(outputs["double"], expected["double"])
                assert outputs["double"].shape == (1, 4)
                assert outputs["sum"].shape == (1,)
            assert not np.array_equal(first["double"], second["double"])
            counted = engine.status()["models"]["m"]
            assert counted["served"] == counted["requests"] == 2
            assert counted["slo_attainment"] == 1.0
            assert counted["latency_p50_s"] == pytest.approx(1.5)

    run(main())


def test_what_cannot_be_in_time_is_refused_at_once_with_the_predicted_finish() -> None:
    async def main() -> None:
        async with serving(model(deadline_s=1.5)) as (engine, _):
            running = asyncio.ensure_future(engine.infer("m", {"x": X}))
            await asyncio.sleep(0)
            with pytest.raises(DeadlineRefused, match=r"after 2 s, but its deadline is 1.5 s") as refused:
                await engine.infer("m", {"x": X})
            assert asyncio.get_running_loop().time() == 0.0
            assert (refused.value.predicted_finish_s, refused.value.deadline_s) == (2.0, 1.5)
            assert (await engine.infer("m", {"x": X}, deadline_s=2.0))["sum"].shape == (1,)
            await running

    run(main())


def test_a_deadline_that_passes_while_the_group_is_busy_is_answered_when_it_passes() -> None:
    async def main() -> None:
        slow: StageTime = lambda requests, group, stage, profiled_s: (100.0, False)  # noqa: E731
        async with serving(model(), stage_time=slow) as (engine, _):
            loop = asyncio.get_running_loop()
            running = asyncio.ensure_future(engine.infer("m", {"x": X}, deadline_s=3.0))
            await asyncio.sleep(0)
            with pytest.raises(DeadlineExceeded, match="deadline of 2 s"):
                await engine.infer("m", {"x": X}, deadline_s=2.0)
            assert loop.time() == pytest.approx(2.0)
            with pytest.raises(DeadlineExceeded, match="deadline of 3 s"):
                await running
            assert loop.time() == pytest.approx(3.0)
            await engine.infer("m", {"x": X})
            assert loop.time() == pytest.approx(200.0)
            assert engine.status()["models"]["m"]["slo_attainment"] == pytest.approx(1 / 3)

    run(main())


def test_a_cancelled_call_leaves_its_queue() -> None:
    async def main() -> None:
        async with serving(model()) as (engine, _):
            calls = [asyncio.ensure_future(engine.infer("m", {"x": X})) for _ in range(3)]
            await asyncio.sleep(0)
            calls[1].cancel()
            await asyncio.wait(calls)
            assert calls[1].cancelled()
            assert asyncio.get_running_loop().time() == 2.0
            assert engine.status()["models"]["m"]["cancelled"] == 1

    run(main())


def test_a_model_that_raises_fails_its_request_alone() -> None:
    async def main() -> None:
        first_raises: StageTime = lambda requests, group, stage, profiled_s: (profiled_s, requests[0].id == 0)  # noqa: E731
        async with serving(model(), stages=(1.0, 1.0), stage_time=first_raises) as (engine, _):
            with pytest.raises(ModelFailed, match="model 'm' raised RuntimeError on this request: emulated failure"):
                await engine.infer("m", {"x": X})
            await engine.infer("m", {"x": X})
            assert engine.status()["models"]["m"]["failed"] == 1

    run(main())


def test_a_lost_group_fails_its_requests_and_the_other_goes_on() -> None:
    async def main() -> None:
        async with serving(model(), groups=2) as (engine, cluster):
            calls = [asyncio.ensure_future(engine.infer("m", {"x": X})) for _ in range(4)]
            await until(0.5)
            cluster.fail_group(0, 0.5)
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(result) for result in results] == [GroupFailed, dict, GroupFailed, dict]
            assert engine.status()["groups"][0]["healthy"] is False
            cluster.fail_group(1, 2.0)
            with pytest.raises(GroupFailed, match="no healthy group holds model 'm'"):
                await engine.infer("m", {"x": X})

    run(main())


def test_leaving_settles_everything() -> None:
    async def main() -> None:
        settled: list[Any] = []
        async with serving(model(), stages=(1.0, 1.0)) as (engine, _):
            for _ in range(5):
                engine.submit("m", {"x": X}, deadline_s=None, on_settled=settled.append)
            await until(1.5)
        assert [type(result) for result in settled] == [EngineStopped] * 5
        engine.submit("m", {"x": X}, deadline_s=None, on_settled=settled.append)
        assert isinstance(settled[-1], EngineStopped)
        with pytest.raises(EngineStopped, match="was started before"):
            await engine.__aenter__()

    run(main())


def test_an_exception_in_the_block_settles_everything_too() -> None:
    async def main() -> None:
        settled: list[Any] = []

        async def fail() -> None:
            async with serving(model()) as (engine, _):
                engine.submit("m", {"x": X}, deadline_s=None, on_settled=settled.append)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert len(settled) == 1

    run(main())


def test_a_full_queue_is_told_with_when_to_try_again() -> None:
    async def main() -> None:
        async with serving(model(), max_batch=1, max_queue=1) as (engine, _):
            calls = [asyncio.ensure_future(engine.infer("m", {"x": X})) for _ in range(3)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(result) for result in results] == [dict, dict, QueueFull]
            assert isinstance(results[2], QueueFull)
            assert results[2].retry_after_s == 1.0
            assert engine.status()["models"]["m"]["refused"] == 1

    run(main())


async def finished_s(engine: Engine, **options: Any) -> float:
    """When a call is answered."""
    await engine.infer("m", {"x": X}, **options)
    return asyncio.get_running_loop().time()


def test_one_of_higher_priority_goes_first_where_priorities_count() -> None:
    async def main(max_overtakings: int) -> list[float]:
        async with serving(model(), max_batch=1, max_overtakings=max_overtakings) as (engine, _):
            calls = [finished_s(engine, priority=priority) for priority in (0, 0, 0, 5)]
            return await asyncio.gather(*calls)

    assert run(main(0)) == [1.0, 2.0, 3.0, 4.0]
    assert run(main(1)) == [1.0, 3.0, 4.0, 2.0]


def test_a_tenant_with_its_share_is_told_when_to_try_again() -> None:
    async def main() -> None:
        async with serving(model(), max_batch=1, shares={"a": 1.0}) as (engine, _):
            tasks = [asyncio.ensure_future(finished_s(engine, tenant="a", deadline_s=10.0)) for _ in range(20)]
            other = asyncio.ensure_future(finished_s(engine, tenant="b", deadline_s=10.0))
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert await other == 2.0  # before all that "a" has waiting
            refused = [each for each in results if isinstance(each, QueueFull)]
            assert len(refused) == 12
            assert "tenant 'a' has as much waiting as its share allows; try again in" in str(refused[0])
            assert refused[0].details["tenant"] == "a"
            assert 0 < refused[0].retry_after_s < 10
            assert engine.status()["models"]["m"]["refused"] == 12

    run(main())


def test_a_model_may_wait_for_company() -> None:
    async def main() -> None:
        async with serving(model(max_wait_s=0.5)) as (engine, _):
            first = asyncio.ensure_future(finished_s(engine))
            await until(0.25)
            assert await finished_s(engine) == await first == 1.25  # both at once, as the largest batch is full
            assert await finished_s(engine) == 1.25 + 0.5 + 1.0
            assert engine.status()["models"]["m"]["batches"] == 2

    run(main())


def test_a_clock_that_goes_back_stands_still_and_one_that_jumps_makes_late() -> None:
    async def main() -> None:
        now = [100.0]
        jumped = model()
        placement = Placement(groups=(Group(devices=(0,), models=("m",)),))
        cluster = EmulatedCluster(placement.groups, profiles(1.0))
        async with Engine([jumped], placement=placement, cluster=cluster, clock=lambda: now[0]) as engine:
            answers: list[Any] = []

            def submit(deadline_s: float | None) -> None:
                engine.submit("m", {"x": X}, deadline_s=deadline_s, on_settled=answers.append)

            submit(5.0)
            now[0] = 0.0
            submit(5.0)  # arrives at 100 all the same, so its deadline is 105
            assert engine.status()["uptime_s"] <= 1e-9
            engine.advance(100.5)
            assert answers == []
            now[0] = 101.0
            engine.advance(now[0])
            assert [type(each) for each in answers] == [dict]
            submit(50.0)
            now[0] = 1e6
            submit(2.0)  # what was in time is answered, as the cluster has ended it long ago
            assert [type(each) for each in answers] == [dict, dict, dict]
            now[0] = 1e6 + 1
            engine.advance(now[0])
            assert [type(each) for each in answers] == [dict, dict, dict, dict]
            assert engine.status()["in_flight"] == 0

    run(main())


def test_the_clock_is_monotonic_whatever_the_time_of_day_does(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Engine([model()]) as engine:
            monkeypatch.setattr(time, "time", lambda: -1e9)
            outputs = await engine.infer("m", {"x": X}, deadline_s=60.0)
            np.testing.assert_array_equal(outputs["double"], 2 * X)
            monkeypatch.setattr(time, "time", lambda: 1e12)
            await engine.infer("m", {"x": X}, deadline_s=60.0)
            assert 0 <= engine.status()["uptime_s"] < 3600

    asyncio.run(main())


def test_a_stuck_stage_stops_admission_until_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    slow: StageTime = lambda requests, group, stage, profiled_s: (100.0 if requests[0].id == 0 else 1.0, False)  # noqa: E731

    async def main() -> None:
        async with serving(model(), stage_time=slow, max_batch=1) as (engine, _):
            calls = [asyncio.ensure_future(engine.infer("m", {"x": X})) for _ in range(2)]
            await until(19.0)
            assert engine.status()["groups"][0]["healthy"]
            await until(23.0)
            assert not engine.status()["groups"][0]["healthy"]
            with pytest.raises(GroupFailed, match="no healthy group"):
                await engine.infer("m", {"x": X})
            results = await asyncio.gather(*calls)
            assert [type(result) for result in results] == [dict, dict]
            assert asyncio.get_running_loop().time() == 101.0
            assert engine.status()["groups"][0]["healthy"]
            await engine.infer("m", {"x": X})

    run(main())
    assert caplog.messages == ["stage 0 of group 0 is stuck: the group takes nobody in until it ends"]


def test_draining_finishes_what_is_inside_and_takes_nothing_more() -> None:
    async def main() -> None:
        async with serving(model(), max_batch=1) as (engine, _):
            calls = [asyncio.ensure_future(engine.infer("m", {"x": X})) for _ in range(3)]
            await asyncio.sleep(0)
            draining = asyncio.ensure_future(engine.drain(2.5))
            await asyncio.sleep(0)
            with pytest.raises(EngineStopped, match="is stopping"):
                await engine.infer("m", {"x": X})
            await draining
            assert asyncio.get_running_loop().time() == pytest.approx(2.5)
            assert [call.done() for call in calls] == [True, True, False]
        with pytest.raises(EngineStopped):
            await calls[2]

    run(main())


def test_models_come_and_go_while_others_are_served() -> None:
    async def main() -> None:
        async with serving(model()) as (engine, _):
            running = asyncio.ensure_future(engine.infer("m", {"x": X}))
            await asyncio.sleep(0)
            await engine.load(model("n"))
            with pytest.raises(ModelError, match="a model named 'n' is loaded"):
                await engine.load(model("n"))
            assert [each["name"] for each in engine.describe()] == ["m", "n"]
            await engine.infer("n", {"x": X})
            unloading = asyncio.ensure_future(engine.unload("m"))
            await until(asyncio.get_running_loop().time() + 0.1)
            with pytest.raises(ModelNotFound, match="no model 'm' is served; there are n"):
                await engine.infer("m", {"x": X})
            await unloading
            assert running.done()
            with pytest.raises(ModelNotFound):
                await engine.unload("m")
            assert list(engine.status()["models"]) == ["n"]

    run(main())


def test_unloading_waits_for_the_requests_inside() -> None:
    async def main() -> None:
        async with serving(model(), stages=(1.0, 1.0), max_batch=1) as (engine, _):
            calls = [asyncio.ensure_future(engine.infer("m", {"x": X})) for _ in range(3)]
            await asyncio.sleep(0)
            calls[0].cancel()
            await engine.unload("m")
            assert asyncio.get_running_loop().time() == 4.0
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(result) for result in results] == [asyncio.CancelledError, dict, dict]
            assert asyncio.get_running_loop().time() == 4.0

    run(main())


class Unreadable:
    """Like a jax array that was deleted."""

    def __array__(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("deleted")


BAD_CALLS: list[tuple[str, Any, Any, type[InferenceError], str]] = [
    ("nobody", {"x": X}, None, ModelNotFound, "no model 'nobody' is served; there are m"),
    ("m", {}, None, InvalidInput, "lack 'x'"),
    ("m", {"x": X, "y": X}, None, InvalidInput, "have 'y', which it does not take"),
    ("m", {"z": X}, None, InvalidInput, "lack 'x' and have 'z'"),
    ("m", {"x": X.astype(np.float64)}, None, InvalidInput, "array of float64, but must be of float32"),
    ("m", {"x": X[0]}, None, InvalidInput, "rank 1, but must have rank 2"),
    ("m", {"x": X[:, :3]}, None, InvalidInput, "dimension 1 must be 4"),
    ("m", {"x": np.zeros((3, 4), np.float32)}, None, InvalidInput, "batch is 3, but the largest bucket holds 2"),
    ("m", {"x": np.zeros((0, 4), np.float32)}, None, InvalidInput, "'batch' must be at least 1"),
    ("m", {"x": "text"}, None, InvalidInput, "is a str"),
    ("m", {"x": [["a", "b", "c", "d"]]}, None, InvalidInput, "must hold float32"),
    ("m", {"x": [[1.0, 2.0], [3.0]]}, None, InvalidInput, "a list that is no array"),
    ("m", {"x": X}, math.nan, InvalidInput, "deadline_s is nan"),
    ("m", {"x": X}, 0, InvalidInput, "deadline_s is 0, but must be a finite number of seconds from now, greater than"),
    ("m", {"x": X}, 10**400, InvalidInput, r"deadline_s is 1000"),
    ("m", {"x": X}, math.inf, InvalidInput, "deadline_s is inf"),
    (["m"], {"x": X}, None, ModelNotFound, r"no model \['m'\] is served"),
    ("m", {"x": Unreadable()}, None, InvalidInput, "an input cannot be read as an array: RuntimeError: deleted"),
    ("m", 3, None, InvalidInput, "the inputs are a int, but must be a dict of arrays"),
    ("m", {"x": X}, -1.0, InvalidInput, "deadline_s is -1.0"),
    ("m", {"x": X}, "1", InvalidInput, "deadline_s is '1'"),
    ("m", {"x": X}, True, InvalidInput, "deadline_s is True"),
    ("m", {"x": X}, 1e-9, DeadlineRefused, "would be answered after 1 s"),
]


@pytest.mark.parametrize(("name", "inputs", "deadline_s", "kind", "problem"), BAD_CALLS)
def test_bad_calls_harm_nobody(
    name: str, inputs: Any, deadline_s: Any, kind: type[InferenceError], problem: str
) -> None:
    async def main() -> None:
        async with serving(model()) as (engine, _):
            with pytest.raises(kind, match=problem):
                await engine.infer(name, inputs, deadline_s=deadline_s)
            assert engine.status()["in_flight"] == 0
            await engine.infer("m", {"x": X})

    run(main())


def test_a_caller_that_raises_costs_the_others_nothing() -> None:
    async def main() -> None:
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        slow: StageTime = lambda requests, group, stage, profiled_s: (100.0, False)  # noqa: E731

        def raises(result: Any) -> None:
            raise ZeroDivisionError

        async with serving(model(), stage_time=slow) as (engine, _):
            settled: list[Any] = []
            for on_settled in (raises, settled.append, raises, settled.append):
                engine.submit("m", {"x": X}, deadline_s=5.0, on_settled=on_settled)
            await until(6.0)
            assert [type(result) for result in settled] == [DeadlineExceeded] * 2
        assert [type(context["exception"]) for context in reported] == [ZeroDivisionError] * 2

    run(main())


@pytest.mark.parametrize("ends", ["answered", "expired", "lost", "stopped"])
def test_the_answer_of_one_may_cancel_another(ends: str) -> None:
    async def main() -> None:
        answers: dict[str, Any] = {}
        loop = asyncio.get_running_loop()
        longer = 3.0 if ends == "expired" else 1.0
        stages = {"stage_time": lambda requests, group, stage, profiled_s: (longer * profiled_s, False)}
        async with serving(model(max_wait_s=0.1), **stages) as (engine, cluster):
            tickets: dict[str, int] = {}

            def settled(name: str, result: Any) -> None:
                answers[name] = result
                if name == "first" and "second" not in answers:
                    engine.cancel(tickets["second"])

            for name in ("first", "second"):
                tickets[name] = engine.submit(
                    "m",
                    {"x": X},
                    deadline_s=1.5,
                    on_settled=functools.partial(settled, name),
                )
            if ends == "lost":
                await until(0.5)
                cluster.fail_group(0, 0.5)
            elif ends != "stopped":
                await until(1.6)
                assert (await engine.infer("m", {"x": X}))["double"].shape == (1, 4)
                assert loop.time() < 10.0
        assert isinstance(answers["second"], RequestCancelled)
        expected = {"answered": dict, "expired": DeadlineExceeded, "lost": GroupFailed, "stopped": EngineStopped}
        assert isinstance(answers["first"], expected[ends])

    run(main())


def test_leaving_ends_an_unload_that_waits() -> None:
    async def main() -> None:
        async with serving(model()) as (engine, _):
            call = asyncio.ensure_future(engine.infer("m", {"x": X}))
            await asyncio.sleep(0)
            unloading = asyncio.ensure_future(engine.unload("m"))
            await asyncio.sleep(0)
        with pytest.raises(EngineStopped):
            await call
        await unloading

    run(main())


def test_another_loop_is_refused() -> None:
    async def main() -> None:
        async with serving(model()) as (engine, _):
            with pytest.raises(EngineStopped, match="runs on another event loop"):
                await asyncio.to_thread(asyncio.run, engine.infer("m", {"x": X}))

    asyncio.run(main())


def test_numbers_of_numpy_are_deadlines() -> None:
    async def main() -> None:
        async with serving(model()) as (engine, _):
            await engine.infer("m", {"x": X}, deadline_s=np.float32(1.5))
            await engine.infer("m", {"x": X}, deadline_s=np.int64(2))

    run(main())


def test_inputs_may_be_filled_anew_once_infer_was_called() -> None:
    async def main() -> None:
        served = model()
        async with serving(served) as (engine, _):
            x = X.copy()
            call = asyncio.ensure_future(engine.infer("m", {"x": x}))
            await asyncio.sleep(0)
            x[:] = 7
            expected = emulated_outputs(served, {"x": X}, {"batch": 1})
            np.testing.assert_array_equal((await call)["sum"], expected["sum"])

    run(main())


def test_a_refused_call_keeps_nothing_alive() -> None:
    async def main() -> None:
        async with serving(model()) as (engine, _):

            def alive() -> int:
                return sum(type(each) is DeadlineRefused for each in gc.get_objects())

            gc.collect()
            gc.disable()
            try:
                before = alive()  # tables of cases in other tests hold some
                with pytest.raises(DeadlineRefused):
                    await engine.infer("m", {"x": X}, deadline_s=0.1)
                assert alive() == before
            finally:
                gc.enable()

    run(main())


def test_an_unload_goes_on_where_its_caller_is_cancelled() -> None:
    async def main() -> None:
        async with serving(model()) as (engine, _):
            call = asyncio.ensure_future(engine.infer("m", {"x": X}))
            await asyncio.sleep(0)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(engine.unload("m"), 0.5)
            await call
            await engine.load(model())
            await engine.infer("m", {"x": X})

    run(main())


def test_a_lost_group_does_not_hold_up_an_unload() -> None:
    async def main() -> None:
        async with serving(model()) as (engine, cluster):
            call = asyncio.ensure_future(engine.infer("m", {"x": X}))
            await asyncio.sleep(0)
            call.cancel()
            unloading = asyncio.ensure_future(engine.unload("m"))
            await until(0.5)
            cluster.fail_group(0, 0.5)
            await unloading
            assert asyncio.get_running_loop().time() == 0.5

    run(main())


def test_loading_needs_a_running_engine() -> None:
    async def main() -> None:
        placed = (Group(devices=(0,), models=("m",)),)
        engine = Engine([model()], placement=Placement(groups=placed), cluster=EmulatedCluster(placed, profiles(1.0)))
        with pytest.raises(EngineStopped, match="is not running"):
            await engine.load(model("n"))
        async with engine:
            pass
        with pytest.raises(EngineStopped, match="is not running"):
            await engine.load(model("n"))

    run(main())


def test_lists_are_taken_for_arrays() -> None:
    async def main() -> None:
        async with serving(model()) as (engine, _):
            outputs = await engine.infer("m", {"x": X.tolist()})
            np.testing.assert_array_equal(outputs["sum"], (await engine.infer("m", {"x": X}))["sum"])

    run(main())


def test_a_host_model_needs_no_group() -> None:
    async def main() -> None:
        def fails_on_negative(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            if (x < 0).any():
                raise ValueError("negative")
            return x

        spec = {"x": TensorSpec(("batch", 4), "float32")}
        host = Model.from_function("host", fails_on_negative, inputs=spec, batch_sizes=(1, 8), on_host=True)
        async with serving() as (engine, _):
            await engine.load(host)
            np.testing.assert_array_equal((await engine.infer("host", {"x": X}))["output"], X)
            with pytest.raises(ModelFailed, match="'host' raised ValueError: negative"):
                await engine.infer("host", {"x": X - 1}, deadline_s=1.0)
            np.testing.assert_array_equal((await engine.infer("host", {"x": X}))["output"], X)

    run(main())


@pytest.mark.parametrize(
    ("placement", "problem"),
    [
        (Placement(groups=()), "model 'm' is on no group"),
        (Placement(groups=(Group(devices=(0,), models=("m", "z")),)), "has a model 'z', but the models are m"),
        (Placement(groups=(), segments=(Segment(start_s=0.0, groups=()),)), "has segments"),
        (Placement(groups=(Group(devices=(99,), models=("m",)),)), "uses device 99, but there are"),
    ],
)
def test_placements_that_do_not_fit(placement: Placement, problem: str) -> None:
    with pytest.raises(PlacementError, match=problem):
        Engine([model()], placement=placement)


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(ModelError, match="two models are named 'm'"):
        Engine([model(), model()])
    for wrong in (model(), [3]):
        with pytest.raises(ConfigError, match="models"):
            Engine(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="overhead_s is -1"):
        Engine([model()], overhead_s=-1)
    with pytest.raises(PlacementError, match="there are no devices"):
        Engine([model()], devices=[])
    with pytest.raises(ConfigError, match="dispatch is 'best'"):
        Engine([model()], dispatch="best")
    with pytest.raises(ConfigError, match="max_overtakings is -1"):
        Engine([model()], max_overtakings=-1)
    with pytest.raises(ConfigError, match="the share of tenant 'a' is 0"):
        Engine([model()], shares={"a": 0})
    with pytest.raises(ConfigError, match=r"spare_bytes is 1\.0, but the placement has no spares"):
        Engine([model()], spare_bytes=1.0)
    with pytest.raises(ConfigError, match=r"max_wait_s is 0\.5, but with max_batch=1 nobody can join"):
        Engine([model(max_wait_s=0.5)], max_batch=1)
    spare = Placement(groups=(Group(devices=(0,), models=(), spares=("m",)),))
    with pytest.raises(ConfigError, match="spare_bytes is None, but the placement has spares; give spare_bytes"):
        Engine([model()], placement=spare)
    with pytest.raises(ConfigError, match="spare_bytes is -1"):
        Engine([model()], placement=spare, spare_bytes=-1)
    one = Placement(groups=(Group(devices=(0,), models=("m",)),))
    with pytest.raises(PlacementError, match="the cluster has 0 groups, but the placement has 1"):
        Engine([model()], placement=one, cluster=EmulatedCluster((), profiles(1.0)))


def test_spares_come_and_go() -> None:
    async def main() -> None:
        placed = (Group(devices=(0,), models=(), spares=("m", "n")),)
        rows = profiles(1.0).models["m"]
        rows = tuple(dataclasses.replace(row, stage_weight_bytes=(8.0,)) for row in rows)
        known = Profiles(device_kind="test", memory_bytes=0.0, models={"m": rows, "n": rows})
        cluster = EmulatedCluster(placed, known, restore_bytes_per_s=2.0)
        loop = asyncio.get_running_loop()
        engine = Engine(
            [model("m"), model("n")],
            placement=Placement(groups=placed),
            cluster=cluster,
            clock=loop.time,
            spare_bytes=8.0,
        )
        async with engine:
            assert engine.status()["groups"][0]["resident_spares"] == []
            await engine.infer("m", {"x": X})
            assert (loop.time(), engine.status()["groups"][0]["resident_spares"]) == (5.0, ["m"])
            with pytest.raises(DeadlineRefused, match="would be answered after 5 s") as refused:
                await engine.infer("n", {"x": X}, deadline_s=2.0)
            assert refused.value.retry_after_s == 4.0
            await until(11.0)  # "m" has not come for longer than "n" by then
            with pytest.raises(DeadlineRefused):
                await engine.infer("n", {"x": X}, deadline_s=2.0)
            assert engine.status()["groups"][0]["resident_spares"] == ["n"]
            await until(15.0)
            await engine.infer("n", {"x": X}, deadline_s=2.0)
            assert loop.time() == 16.0
            cold = asyncio.ensure_future(engine.infer("m", {"x": X}))
            await asyncio.sleep(0)
            cold.cancel()
            await engine.unload("m")  # not before it has come in vain
            assert (loop.time(), engine.status()["groups"][0]["resident_spares"]) == (20.0, [])
            assert engine.status()["groups"][0]["in_flight"] == 0

    run(main())


def test_a_profile_without_a_bucket_is_refused_as_the_engine_starts() -> None:
    async def main() -> None:
        with pytest.raises(PlacementError, match=r"profile 'z' has no row for batch 1"):
            async with serving(model("z")):
                pass

    run(main())
