"""What the engine counts, against what a script says must come out of it; on emulated groups and a jumping clock."""

import asyncio
import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.errors import (
    DeadlineExceeded,
    DeadlineRefused,
    GroupFailed,
    InferenceError,
    InvalidInput,
    ModelFailed,
    QueueFull,
    RequestCancelled,
)
from jaxserve.metrics import WINDOWS, Histogram, ModelMetrics, Observation, Timeline
from jaxserve.model import Model, TensorSpec
from jaxserve.request import RefuseReason, Request
from jaxserve.simulator import StageTime
from tests.emulated_engine import STAGES_S, Caller, model, serving
from tests.jumping_loop import run, until


def filled(histogram: Histogram) -> dict[float, int]:
    """Of the bounds that have any, how many."""
    bounds = [*histogram.bounds, math.inf]
    return {bound: count for bound, count in zip(bounds, histogram.counts, strict=True) if count}


def outcomes(metrics: ModelMetrics) -> dict[str, int]:
    names = ("requests", "served", "refused", "expired", "failed", "cancelled", "invalid", "late")
    return {name: count for name in names if (count := getattr(metrics, name))}


def attainment(observed: Observation, name: str = "m") -> list[float | None]:
    return [observed.models[name].metrics.attainment.over(window_s, observed.now_s) for window_s in WINDOWS.values()]


def test_queue_stages_batches_padding_and_errors_are_what_the_script_says() -> None:
    slower: StageTime = lambda requests, group, stage, profiled_s: (  # noqa: E731
        1.25 if requests[0].id == 1 and stage == 0 else profiled_s,
        False,
    )

    async def main() -> None:
        async with serving(model(), stage_time=slower) as (engine, _):
            caller = Caller(engine)
            caller.call(rows=1, length=2)  # alone: stage 0 from 0 to 1, stage 1 to 1.5
            await until(0.25)
            caller.call(rows=1, length=3)  # waits; stage 0 from 1 to 2.25, a quarter longer than predicted, 1 to 2.75
            await until(0.5)
            caller.call(rows=2, length=2)  # joins it
            observed = engine.observe()
            assert (observed.in_flight, observed.groups[0].queue, observed.groups[0].in_flight) == (3, 2, 3)
            assert observed.groups[0].metrics.busy_until(observed.now_s) == [0.5, 0.0]
            await until(2.5)
            observed = engine.observe()
            assert (observed.in_flight, observed.groups[0].queue, observed.groups[0].in_flight) == (2, 0, 2)
            assert [stage.running for stage in observed.groups[0].metrics.stages] == [None, "m"]
            assert observed.groups[0].metrics.busy_until(observed.now_s) == [2.25, 0.75]
            await until(3.0)
            observed = engine.observe()
            counted, group = observed.models["m"].metrics, observed.groups[0].metrics
        assert outcomes(counted) == {"requests": 3, "served": 3}
        assert counted.last_served_s == 2.75
        assert (filled(counted.latency), counted.latency.sum) == ({2.5: 3}, 1.5 + 2.5 + 2.25)
        assert (filled(counted.preparation), counted.preparation.sum) == ({0.001: 3}, 0.0)
        assert (filled(counted.queue), counted.queue.sum) == ({0.001: 1, 0.5: 1, 1.0: 1}, 0.5 + 0.75)
        assert (filled(counted.error), counted.error.sum) == ({0.0: 1, 0.25: 2}, 0.25 + 0.25)
        assert (counted.batches, filled(counted.rows), counted.rows.sum) == (2, {1.0: 1, 4.0: 1}, 4)
        assert (counted.volume, counted.padding) == (1 * 2 + 4 * 4, 4 * 4 - (1 * 3 + 2 * 2))
        assert (counted.computed, counted.compute_s, counted.output_s) == (3, 1.5 + 1.75 + 1.75, 0.0)
        assert group.requests == 2
        assert (filled(group.stages[0].duration), group.stages[0].duration.sum) == ({1.0: 1, 2.5: 1}, 2.25)
        assert (filled(group.stages[1].duration), group.stages[1].duration.sum) == ({0.5: 2}, 1.0)
        assert attainment(observed) == [1.0, 1.0, 1.0]
        assert caller.timelines == [
            Timeline(0.0, 0.0, 0, 1.5, 1, 0.0, [(0.0, 1.0), (1.0, 1.5)], 1.5),
            Timeline(0.25, 0.25, 0, 2.5, 3, 1.0, [(1.0, 2.25), (2.25, 2.75)], 2.75),
            Timeline(0.5, 0.5, 0, 2.5, 3, 1.0, [(1.0, 2.25), (2.25, 2.75)], 2.75),
        ]

    run(main())


def test_every_outcome_is_counted_as_what_it_is_and_attainment_forgets() -> None:
    def stage_time(requests: Sequence[Request], group: int, stage: int, profiled_s: float) -> tuple[float, bool]:
        ids = {request.id for request in requests}
        return (10.0 if 2 in ids else profiled_s), 3 in ids

    async def main() -> None:
        async with serving(model(), stage_time=stage_time, stuck_after_s=math.inf) as (engine, cluster):
            caller = Caller(engine)
            caller.call()  # 0: served at 1.5
            caller.call(deadline_s=1.0)  # 1: refused, as it takes 1.5 s
            await until(2.0)
            caller.call(deadline_s=2.0)  # 2: expires at 4, while stage 0 is at it until 12
            await until(5.0)
            assert engine.observe().groups[0].metrics.busy_until(5.0) == [1.0 + 3.0, 0.5]
            await until(20.0)
            caller.call()  # 3: raises at 21
            ticket = caller.call()  # 4: waits
            engine.cancel(ticket)
            caller.call(length=5)  # no bucket is that long
            await until(40.0)
            caller.call()  # 5: is lost at 40.5 with its group
            await until(40.5)
            cluster.fail_group(0, 40.5)
            caller.call()  # 6: refused, as no group is left
            observed = engine.observe()
            counted, group = observed.models["m"].metrics, observed.groups[0]
            assert [type(result) for result in caller.results] == [
                dict,
                DeadlineRefused,
                DeadlineExceeded,
                ModelFailed,
                RequestCancelled,
                InvalidInput,
                GroupFailed,
                GroupFailed,
            ]
            assert outcomes(counted) == {
                "requests": 7,
                "served": 1,
                "refused": 2,
                "expired": 1,
                "failed": 2,
                "cancelled": 1,
                "invalid": 1,
            }
            assert counted.refusals == {RefuseReason.LATE: 1, RefuseReason.DOWN: 1}
            assert (counted.latency.count, counted.error.count, counted.queue.count) == (1, 1, 4)
            assert (counted.batches, counted.computed) == (4, 1)
            assert counted.unserved_s == pytest.approx(2.0 + 1.0 + 0.5)  # expired, raised, lost
            assert (group.healthy, group.queue, group.in_flight, observed.in_flight) == (False, 0, 0, 0)
            assert group.metrics.busy_until(observed.now_s) == [1.0 + 10.0 + 1.0 + 0.5, 0.5]
            assert attainment(observed) == [1 / 6, 1 / 6, 1 / 6]
            await until(100.0)  # a minute ago two failed and one was refused
            assert attainment(engine.observe()) == [0.0, 1 / 6, 1 / 6]
            await until(110.0)
            assert attainment(engine.observe()) == [None, 1 / 6, 1 / 6]
            await until(310.0)
            assert attainment(engine.observe()) == [None, 0.0, 1 / 6]
            await until(3660.0)
            assert attainment(engine.observe()) == [None, None, None]
            assert engine.status()["models"]["m"]["slo_attainment"] == 1 / 6
        waits, lost, refused, invalid = (caller.timelines[index] for index in (2, 6, 1, 5))
        assert (waits.stages, waits.rows, waits.settled_s) == ([], 1, math.nextafter(4.0, 5.0))  # 4.0 is in time
        assert (lost.stages, lost.rows, lost.settled_s) == ([], 1, 40.5)
        assert (refused.group, refused.rows, refused.decided_s, refused.settled_s) == (-1, 0, 0.0, 0.0)
        assert math.isnan(invalid.arrival_s)

    run(main())


def test_a_full_queue_is_a_reason() -> None:
    async def main() -> None:
        async with serving(model(), max_queue=1, max_batch=1) as (engine, _):
            caller = Caller(engine)
            for _ in range(4):
                caller.call()
            assert engine.observe().models["m"].metrics.refusals == {RefuseReason.FULL: 2}
            assert [type(result) for result in caller.results[2:]] == [QueueFull, QueueFull]

    run(main())


def test_what_is_admitted_counts_with_its_preprocessing() -> None:
    now = [10.0]

    def preprocess(inputs: dict[str, Any]) -> dict[str, Any]:
        now[0] += 0.5
        return inputs

    async def main() -> None:
        slow = model(preprocess=preprocess, accepts={"x": TensorSpec(("batch", "length"), "float32")})
        async with serving(slow, clock=lambda: now[0]) as (engine, _):
            caller = Caller(engine)
            caller.call()
            async with asyncio.timeout(10.0):
                while not engine.observe().groups[0].in_flight:  # noqa: ASYNC110  # what is looked at sets no event
                    await asyncio.sleep(0)
            now[0] = 12.0
            engine.advance(now[0])
            counted = engine.observe().models["m"].metrics
            assert (filled(counted.preparation), counted.preparation.sum) == ({0.5: 1}, 0.5)
            assert (filled(counted.queue), counted.queue.sum) == ({0.001: 1}, 0.0)
            assert (filled(counted.latency), counted.latency.sum) == ({2.5: 1}, 2.0)
            assert caller.timelines == [
                Timeline(10.0, 10.5, 0, 12.0, 1, 10.5, [(10.5, 11.5), (11.5, 12.0)], 12.0),
            ]

    asyncio.run(main())


def test_models_on_the_host_have_a_group_of_their_own_there() -> None:
    now = [0.0]

    def double(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        now[0] += 0.25
        return 2 * x

    async def main() -> None:
        on_host = Model.from_function(
            "host",
            double,
            inputs={"x": TensorSpec(("batch", 2), "float32")},
            batch_sizes=(4,),
            deadline_s=0.125,
            on_host=True,
        )
        async with serving(model(), on_host, clock=lambda: now[0]) as (engine, _):
            opened_s = now[0]
            caller = Caller(engine)
            caller.call(rows=3, name="host")
            caller.call(rows=3, name="host", deadline_s=1.0)
            observed = engine.observe()
            counted, group = observed.models["host"].metrics, observed.host
            assert [type(result) for result in caller.results] == [dict, dict]
            assert outcomes(counted) == {"requests": 2, "served": 2, "late": 1}
            assert (counted.latency.sum, counted.queue.sum, counted.preparation.count) == (0.5, 0.0, 0)
            assert (counted.batches, counted.rows.sum, counted.padding) == (2, 6, 0)
            assert group.metrics.busy_until(observed.now_s) == [0.5]
            assert list(group.models) == ["host"]
            assert caller.timelines[0].stages == [(opened_s, opened_s + 0.25)]
            assert caller.timelines[0].rows == 3

    asyncio.run(main())


def test_probes_move_only_the_time_of_the_last_answer() -> None:
    slow: StageTime = lambda requests, group, stage, profiled_s: (  # noqa: E731
        100.0 if requests[0].id == 3 else profiled_s,
        requests[0].id == 2,
    )

    async def main() -> None:
        async with serving(model(), stage_time=slow, stuck_after_s=math.inf) as (engine, _):
            caller = Caller(engine)
            caller.call()
            await until(2.0)
            before = engine.status()["models"]["m"]
            metrics = engine.observe().models["m"].metrics
            histograms = ("latency", "preparation", "queue", "error", "rows")
            counts = {name: list(getattr(metrics, name).counts) for name in histograms}
            assert metrics.last_served_s == 1.5
            caller.call(is_probe=True)
            await until(4.0)
            assert metrics.last_served_s == 3.5
            caller.call(is_probe=True)  # raises
            caller.call(is_probe=True, deadline_s=4.0)  # expires
            caller.call(is_probe=True, deadline_s=0.5)  # is refused
            caller.call(is_probe=True, length=5)  # is invalid
            engine.cancel(caller.call(is_probe=True))
            await until(200.0)
            probes = [type(result) for result in caller.results[1:]]
            assert probes == [dict, ModelFailed, DeadlineExceeded, DeadlineRefused, InvalidInput, RequestCancelled]
            after = engine.status()["models"]["m"]
            for name in ("recent_attainment", "drift"):  # these move with time, and with whatever runs
                del before[name], after[name]
            assert after == before
            assert {name: list(getattr(metrics, name).counts) for name in histograms} == counts
            assert metrics.last_served_s == 3.5
            assert (metrics.volume, metrics.computed, metrics.rows_served) == (2, 1, 1)
            assert engine.observe().models["m"].metrics.attainment.over(3600.0, 200.0) == 1.0

    run(main())


def test_a_model_that_comes_back_is_counted_anew_beside_others_that_stayed() -> None:
    async def main() -> None:
        async with serving(model(), model("n")) as (engine, _):
            caller = Caller(engine)
            caller.call()
            caller.call(name="n")
            await until(5.0)
            await engine.unload("m")
            assert engine.observe().models.keys() == {"n"}
            await engine.load(model())
            counted = engine.observe().models
            assert outcomes(counted["m"].metrics) == {}
            assert outcomes(counted["n"].metrics) == {"requests": 1, "served": 1}
            assert engine.observe().groups[0].metrics.busy_until(5.0) == [2.0, 1.0]

    run(main())


@dataclasses.dataclass(frozen=True)
class Script:
    """Calls, and what goes wrong."""

    calls: tuple[tuple[float, int, int, float | None, float | None], ...]  # time, rows, length, deadline, patience
    stretch: tuple[float, ...]
    raises: frozenset[int]
    lost_s: float | None
    max_queue: int


TICKS = st.integers(0, 32).map(lambda tick: tick / 4)
CALLS = st.tuples(
    TICKS,
    st.sampled_from((1, 1, 2, 4)),
    st.sampled_from((2, 3, 4, 5)),
    st.sampled_from((None, None, 1.0, 1.5, 2.0, 4.0)),
    st.one_of(st.none(), st.none(), TICKS),
)
SCRIPTS = st.builds(
    Script,
    calls=st.lists(CALLS, max_size=20).map(lambda calls: tuple(sorted(calls, key=lambda call: call[0]))),
    stretch=st.sampled_from(((1.0,), (1.0, 1.5), (0.5, 3.0, 1.0))),
    raises=st.frozensets(st.integers(0, 20), max_size=3),
    lost_s=st.one_of(st.none(), TICKS),
    max_queue=st.sampled_from((1, 3, 100)),
)
OUTCOME_OF = {
    dict: "served",
    DeadlineRefused: "refused",
    QueueFull: "refused",
    DeadlineExceeded: "expired",
    ModelFailed: "failed",
    RequestCancelled: "cancelled",
    InvalidInput: "invalid",
}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(SCRIPTS)
def test_outcomes_add_up_to_requests_and_histograms_to_outcomes(script: Script) -> None:
    def stage_time(requests: Sequence[Request], group: int, stage: int, profiled_s: float) -> tuple[float, bool]:
        stretch = script.stretch[(requests[0].id + stage) % len(script.stretch)]
        return profiled_s * stretch, any(request.id in script.raises for request in requests)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serving(model(), groups=2, stage_time=stage_time, max_queue=script.max_queue) as (engine, cluster):
            caller = Caller(engine)
            if script.lost_s is not None:
                loop.call_at(script.lost_s, cluster.fail_group, 0, script.lost_s)
            for at_s, rows, length, deadline_s, patience_s in script.calls:
                await until(at_s)
                ticket = caller.call(rows, length, deadline_s=deadline_s)
                if patience_s is not None:
                    loop.call_at(at_s + patience_s, engine.cancel, ticket)
            await until(1000.0)
            observed = engine.observe()
            metrics = observed.models["m"].metrics
        assert observed.in_flight == 0
        found = Counter(
            _outcome(result, timeline) for result, timeline in zip(caller.results, caller.timelines, strict=True)
        )
        counted = outcomes(metrics)
        assert counted.pop("requests", 0) == found.total() - found["invalid"]
        assert counted == found
        assert metrics.refusals.total() == metrics.refused
        served = [
            timeline
            for result, timeline in zip(caller.results, caller.timelines, strict=True)
            if isinstance(result, dict)
        ]
        assert metrics.latency.count == metrics.error.count == metrics.served == len(served)
        assert metrics.latency.sum == pytest.approx(sum(each.settled_s - each.arrival_s for each in served))
        assert metrics.error.sum == pytest.approx(sum(each.settled_s - each.predicted_finish_s for each in served))
        began = [timeline for timeline in caller.timelines if timeline.rows]
        assert metrics.queue.count == metrics.preparation.count == len(began)
        assert metrics.rows.count == metrics.batches
        assert 0 <= metrics.padding <= metrics.volume
        for timeline in served:
            times = [timeline.arrival_s, timeline.decided_s, *sum(timeline.stages, ()), timeline.settled_s]
            assert times == sorted(times)
            assert len(timeline.stages) == len(STAGES_S)
        for group in observed.groups:
            busy_s = group.metrics.busy_until(observed.now_s)
            assert busy_s == [pytest.approx(stage.duration.sum) for stage in group.metrics.stages]
            assert max(busy_s) <= observed.now_s

    run(main())


def _outcome(result: Any, timeline: Timeline) -> str:
    assert isinstance(result, dict | InferenceError)
    if type(result) is GroupFailed:
        return "refused" if timeline.group < 0 else "failed"
    return OUTCOME_OF[type(result)]
