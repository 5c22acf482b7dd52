"""The engine on a jumping clock against the reference simulator: equal decisions, at equal times, in random cases."""

import asyncio
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.cluster import EmulatedCluster, emulated_outputs
from jaxserve.engine import Engine
from jaxserve.errors import (
    DeadlineExceeded,
    DeadlineRefused,
    GroupFailed,
    InferenceError,
    ModelFailed,
    QueueFull,
    RequestCancelled,
)
from jaxserve.model import Model, TensorSpec
from jaxserve.plans import Group, Placement, Profile, Profiles
from jaxserve.request import Done, FailReason, Outcome, RefuseReason, Rejected, Request
from jaxserve.scheduling import DISPATCHES, Grid, Policy, Scheduler, Spare
from jaxserve.simulator import Answer, Reference
from tests.jumping_loop import run, until

BATCH_SIZES = (1, 2, 4)
LENGTHS = (2, 3)
MODELS = [
    Model.from_function(
        f"m{index}",
        lambda x: x,
        inputs={"x": TensorSpec(("batch", "length"), "float32")},
        batch_sizes=BATCH_SIZES,
        buckets={"length": LENGTHS},
    )
    for index in range(3)
]
MAX_WAITS_S = (0.0, 0.5, 0.1)
SPARE_BYTES = 1.0  # what one model weighs
RESTORE_BYTES_PER_S = 1.6


@dataclasses.dataclass(frozen=True)
class Call:
    """One request of a case."""

    arrival_s: float
    model: int
    rows: int
    length: int
    slo_s: float
    cancel_s: float | None
    priority: int
    tenant: str


@dataclasses.dataclass(frozen=True)
class Case:
    """Groups, models on them, calls, and what goes wrong."""

    groups: tuple[Group, ...]
    profiles: Profiles
    calls: tuple[Call, ...]
    stretch: tuple[float, ...]  # of request i on stage k: entry (i + k) modulo its length
    raises: frozenset[tuple[int, int]]  # (request, stage)
    lost: tuple[tuple[float, int], ...]  # (time, group)
    overhead_s: float
    max_batch: int
    dispatch: str
    policy: Policy
    waits: bool

    def max_wait_s(self, model: int) -> float:
        """For how long a model waits for company."""
        return MAX_WAITS_S[model] if self.waits and self.max_batch > 1 else 0.0

    def stage_time(self, requests: Sequence[Request], group: int, stage: int, profiled_s: float) -> tuple[float, bool]:
        stretch = self.stretch[(requests[0].id + stage) % len(self.stretch)]
        return profiled_s * stretch, any((request.id, stage) in self.raises for request in requests)

    def events(self) -> list[tuple[float, int, int]]:
        """(time, kind, index) in the order in which a driver tells them: losses, cancellations, arrivals."""
        events = [(at_s, 0, index) for index, (at_s, _) in enumerate(self.lost)]
        events += [(call.cancel_s, 1, index) for index, call in enumerate(self.calls) if call.cancel_s is not None]
        events += [(call.arrival_s, 2, index) for index, call in enumerate(self.calls)]
        return sorted(events)


# Grids make ties; fractions that are no sums of powers of two make rounding.
TIMES = st.one_of(st.integers(0, 40).map(lambda tick: tick / 4), st.integers(0, 100).map(lambda tick: tick / 9.7))
GROWTHS = st.sampled_from(((1.1, 1.25), (1.0, 1.0), (1.5, 2.0), (2.0, 4.0)))  # of buckets for 2 and 4
LATENCIES = st.sampled_from((0.0, 0.25, 0.5, 1.0, 0.1, 1 / 3, 0.7))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups: list[Group] = []
    rows: dict[tuple[int, int, int, int], Profile] = {}
    for index in range(draw(st.integers(1, 3))):
        stages = draw(st.integers(1, 3))
        held = draw(st.sets(st.integers(0, len(MODELS) - 1), min_size=1))
        devices = tuple(range(index * 4, index * 4 + stages))
        names = [f"m{model}" for model in sorted(held)]
        spares = draw(st.sampled_from((0, 0, 0, 1, 2)))
        resident = tuple(names[: max(0, len(names) - spares)])
        spare = tuple(names[len(resident) :])
        groups.append(Group(inter_op=stages, devices=devices, models=resident, spares=spare))
        for model in held:
            base = draw(st.lists(LATENCIES, min_size=stages, max_size=stages))
            for growth, batch_size in zip((1.0, *draw(GROWTHS)), BATCH_SIZES, strict=True):
                for longer, length in zip((1.0, draw(st.sampled_from((1.0, 1.5, 2.0)))), LENGTHS, strict=True):
                    key = (model, stages, batch_size, length)
                    latency_s = [seconds * growth * longer for seconds in base]
                    rows[key] = rows.get(key) or _row(stages, batch_size, length, latency_s)
    models = {f"m{model}": tuple(row for key, row in rows.items() if key[0] == model) for model in range(len(MODELS))}
    calls = draw(st.lists(_calls(), min_size=1, max_size=25))
    calls.sort(key=lambda call: call.arrival_s)
    return Case(
        groups=tuple(groups),
        profiles=Profiles(device_kind="test", memory_bytes=1.0, models=models),
        calls=tuple(calls),
        stretch=draw(st.sampled_from(((1.0,), (1.0,), (0.5, 1.0), (1.0, 1.5, 0.1), (2.0, 1.0, 1.0, 3.0)))),
        raises=draw(st.frozensets(st.tuples(st.integers(0, 24), st.integers(0, 2)), max_size=4)),
        lost=tuple(draw(st.lists(st.tuples(TIMES, st.integers(0, len(groups) - 1)), max_size=1))),
        overhead_s=draw(st.sampled_from((0.0, 0.011))),
        max_batch=draw(st.sampled_from((4, 1, 2))),
        dispatch=draw(st.sampled_from(sorted(DISPATCHES))),
        policy=Policy(
            max_overtakings=draw(st.sampled_from((0, 0, 1, 3))),
            shares=draw(st.sampled_from((None, None, {}, {"a": 3.0, "b": 0.25}))),
        ),
        waits=draw(st.booleans()),
    )


def _row(stages: int, batch_size: int, length: int, latency_s: Sequence[float]) -> Profile:
    return Profile(
        intra_op=1,
        inter_op=stages,
        batch_size=batch_size,
        length=length,
        stage_latency_s=tuple(latency_s),
        stage_weight_bytes=(1.0,) * stages,
        stage_activation_bytes=(0.0,) * stages,
    )


@st.composite
def _calls(draw: st.DrawFn) -> Call:
    arrival_s = draw(TIMES)
    patience = draw(st.one_of(st.none(), st.none(), st.integers(0, 8).map(lambda tick: tick / 4)))
    return Call(
        arrival_s=arrival_s,
        model=draw(st.integers(0, len(MODELS) - 1)),
        rows=draw(st.sampled_from((1, 1, 2, 3))),
        length=draw(st.sampled_from(LENGTHS)),
        slo_s=draw(st.sampled_from((0.25, 0.5, 1.0, 1.1, 2.0, 4.0, math.inf))),
        cancel_s=None if patience is None else arrival_s + patience,
        priority=draw(st.sampled_from((0, 0, 1, -1, 10))),
        tenant=draw(st.sampled_from(("", "a", "b"))),
    )


def by_reference(case: Case) -> dict[int, Answer]:
    scheduler = Scheduler(dispatch=DISPATCHES[case.dispatch], overhead_s=case.overhead_s, policy=case.policy)
    latencies: dict[tuple[int, str], Any] = {}
    for group in case.groups:
        index = scheduler.add_group(group.inter_op, spare_bytes=[SPARE_BYTES] * group.inter_op)
        for name in (*group.models, *group.spares):
            rows = {
                (row.batch_size, row.length): row.stage_latency_s
                for row in case.profiles.models[name]
                if row.config == group.config
            }
            latencies[index, name] = tuple(rows[size, length] for size in BATCH_SIZES for length in LENGTHS)
            grid = Grid(BATCH_SIZES, [len(LENGTHS)], max_batch=case.max_batch)
            spare = Spare.of((1.0,) * group.inter_op, (1.0 / RESTORE_BYTES_PER_S,) * group.inter_op)
            scheduler.place(
                index,
                name,
                latencies[index, name],
                grid,
                max_wait_s=case.max_wait_s(int(name[1:])),
                spare=spare if name in group.spares else None,
            )
    driver = Reference(scheduler, stage_time=case.stage_time)
    for at_s, kind, index in case.events():
        if kind == 0:
            driver.fail_group(case.lost[index][1], at_s)
        elif kind == 1:
            driver.cancel(index, at_s)
        else:
            call = case.calls[index]
            bucket = MODELS[call.model].bucket_index({"batch": call.rows, "length": call.length})
            name = f"m{call.model}"
            request = Request(
                id=index,
                model=name,
                bucket=bucket,
                rows=call.rows,
                arrival_s=at_s,
                slo_s=call.slo_s,
                priority=call.priority,
                tenant=call.tenant,
            )
            driver.arrive(request)
    driver.drain()
    return driver.answers


async def by_engine(case: Case) -> dict[int, tuple[Any, float]]:
    loop = asyncio.get_running_loop()
    answers: dict[int, tuple[Any, float]] = {}
    tickets: dict[int, int] = {}
    cluster = EmulatedCluster(
        case.groups, case.profiles, stage_time=case.stage_time, restore_bytes_per_s=RESTORE_BYTES_PER_S
    )
    placed = {name for group in case.groups for name in (*group.models, *group.spares)}
    engine = Engine(
        [
            dataclasses.replace(model, max_wait_s=case.max_wait_s(index))
            for index, model in enumerate(MODELS)
            if model.name in placed
        ],
        placement=Placement(groups=case.groups),
        cluster=cluster,
        clock=loop.time,
        overhead_s=case.overhead_s,
        max_batch=case.max_batch,
        dispatch=case.dispatch,
        max_overtakings=case.policy.max_overtakings,
        shares=case.policy.shares,
        spare_bytes=SPARE_BYTES if any(group.spares for group in case.groups) else None,
    )
    async with engine:
        answered = asyncio.Event()
        for at_s, kind, index in case.events():
            await until(at_s)
            if kind == 0:
                cluster.fail_group(case.lost[index][1], at_s)
            elif kind == 1:
                engine.cancel(tickets.get(index, -1))  # -1 where it is to be cancelled as it arrives
            else:
                call = case.calls[index]

                def settle(result: Any, index: int = index) -> None:
                    assert index not in answers, "settled twice"
                    answers[index] = (result, loop.time())
                    answered.set()

                tickets[index] = engine.submit(
                    f"m{call.model}",
                    _inputs(index, call),
                    deadline_s=None if call.slo_s == math.inf else call.slo_s,
                    on_settled=settle,
                    priority=call.priority,
                    tenant=call.tenant,
                )
        while len(answers) < len(case.calls):
            answered.clear()
            await answered.wait()
        status = engine.status()
        assert status["in_flight"] == 0
    return answers


def _inputs(index: int, call: Call) -> dict[str, Any]:
    return {"x": np.full((call.rows, call.length), index, np.float32)}


def _inputs_and_sizes(index: int, case: Case) -> tuple[dict[str, Any], dict[str, int]]:
    call = case.calls[index]
    return _inputs(index, call), {"batch": call.rows, "length": call.length}


def _same(expected: Outcome, found: Any) -> bool:
    kinds: dict[FailReason, type[InferenceError]] = {
        FailReason.EXPIRED: DeadlineExceeded,
        FailReason.CANCELLED: RequestCancelled,
        FailReason.MODEL: ModelFailed,
        FailReason.GROUP: GroupFailed,
    }
    if isinstance(expected, Done):
        return isinstance(found, dict)
    if isinstance(expected, Rejected):
        # where no healthy group holds the model there is no prediction, and the error says so
        if expected.reason is RefuseReason.SHARE:
            return type(found) is QueueFull and found.retry_after_s == expected.retry_after_s
        return type(found) is (GroupFailed if expected.predicted_finish_s == math.inf else DeadlineRefused)
    return type(found) is kinds[expected.reason]


@settings(max_examples=2500, deadline=None, derandomize=True)
@given(cases())
def test_engine_decides_as_the_reference_does(case: Case) -> None:
    placed = {name for group in case.groups for name in (*group.models, *group.spares)}
    case = dataclasses.replace(case, calls=tuple(call for call in case.calls if f"m{call.model}" in placed))
    expected = by_reference(case)
    found = run(by_engine(case))
    assert found.keys() == expected.keys() == set(range(len(case.calls)))
    for index, answer in expected.items():
        result, at_s = found[index]
        assert _same(answer.outcome, result), (index, answer, result)
        if isinstance(answer.outcome, Done):
            expected_outputs = emulated_outputs(MODELS[case.calls[index].model], *_inputs_and_sizes(index, case))
            np.testing.assert_array_equal(result["output"], expected_outputs["output"])
        assert at_s == pytest.approx(answer.at_s, abs=1e-9), (index, answer)
        if isinstance(answer.outcome, Rejected) and isinstance(result, DeadlineRefused):
            assert result.predicted_finish_s == answer.outcome.predicted_finish_s - case.calls[index].arrival_s
