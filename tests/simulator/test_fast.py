"""The compiled simulator against the reference: every decision and every finish time, to the last bit."""

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.plans import Fleet, FleetModel, Group, ParallelConfig, Placement, Profiles
from jaxserve.scheduling import DISPATCHES, alpaserve
from jaxserve.scheduling.batch import MOST_PASSED
from jaxserve.simulator import FleetTables, Scorer, Shape, SimulationResult, Traffic, loop, simulate
from jaxserve.simulator.simulate import SERVED
from jaxserve.workload import Workload
from tests.simulator.cases import Case, cases, row


def run(case: Case, engine: str, dispatch: str = "alpaserve") -> SimulationResult:
    options = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
    return simulate(**options, engine=engine, dispatch=dispatch)


@settings(deadline=None, max_examples=600)
@given(cases(), st.sampled_from(sorted(DISPATCHES)))
def test_equals_the_reference(case: Case, dispatch: str) -> None:
    fast, reference = run(case, "fast", dispatch), run(case, "reference", dispatch)
    np.testing.assert_array_equal(fast.outcome, reference.outcome)
    np.testing.assert_array_equal(fast.finish_s, reference.finish_s)
    np.testing.assert_array_equal(fast.group, reference.group)
    np.testing.assert_allclose(fast.busy, reference.busy, rtol=1e-9)


@settings(deadline=None, max_examples=200)
@given(cases())
def test_scores_count_what_is_simulated(case: Case) -> None:
    tables = FleetTables.of(case.fleet, case.profiles, max_batch=case.max_batch)
    groups = case.placement.groups
    config = [tables.configs.index(group.config) if group.config in tables.configs else -1 for group in groups]
    held = [[model.name in group.models for model in case.fleet.models] for group in groups]
    shape = Shape(config=np.array(config, np.int32), held=np.array(held, np.uint8))
    score = Scorer(tables, Traffic.of(case.workload, case.fleet), overhead_s=case.overhead_s).score(shape)
    result = run(dataclasses.replace(case, placement=Placement(groups=groups)), "reference")
    assert score.slo_attainment == result.slo_attainment
    served = result.outcome == SERVED
    for index, model in enumerate(case.fleet.models):
        assert score.served[index] == (served & (case.workload.model == name_index(case.workload, model.name))).sum()
    for group in range(len(groups)):
        assert score.chosen[group] >= (result.group == group).sum()
    assert score.latency_s == pytest.approx(float((result.finish_s - case.workload.arrival_s)[served].sum()))


def name_index(workload: Workload, name: str) -> int:
    return workload.model_names.index(name)


def one_group(*rows: tuple[float, ...], arrival_s: list[float], slo_s: float = np.inf, max_batch: int = 1) -> Case:
    """A model with a row for each batch size from 1 on."""
    config = ParallelConfig(1, len(rows[0]))
    profile = tuple(row(config, size, latency_s) for size, latency_s in enumerate(rows, start=1))
    group = Group(intra_op=1, inter_op=config.inter_op, devices=tuple(range(config.inter_op)), models=("m",))
    return Case(
        profiles=Profiles(device_kind="test", memory_bytes=1.0, models={"p": profile}),
        fleet=Fleet(
            devices=8,
            devices_per_host=8,
            memory_bytes=1.0,
            models=(FleetModel(name="m", profile="p", slo_s=1.0),),
        ),
        placement=Placement(groups=(group,)),
        workload=Workload(
            arrival_s=np.array(arrival_s),
            model=np.zeros(len(arrival_s), np.int32),
            model_names=("m",),
            slo_s=np.full(len(arrival_s), slo_s),
        ),
        overhead_s=0.0,
        max_batch=max_batch,
    )


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_many_wait(engine: str) -> None:
    """Places of batches that have begun are used again, in a queue that grows and shrinks."""
    arrivals = [*np.repeat(0.0, 20), *np.repeat(30.0, 30), *np.repeat(31.0, 10)]
    result = run(one_group((1.0, 0.5), (1.25, 0.5), arrival_s=arrivals, max_batch=2), engine)
    np.testing.assert_array_equal(result.finish_s[:4], [1.5, 2.75, 2.75, 4.0])
    np.testing.assert_array_equal(result.finish_s, np.sort(result.finish_s))
    assert result.to_json()["per_group"][0]["requests"] == 60


def test_a_queue_of_more_batches_than_a_join_may_pass() -> None:
    generator = np.random.default_rng(0)
    case = one_group((1.0, 0.5), (1.25, 0.5), (1.5, 0.75), (1.5, 1.0), arrival_s=[], max_batch=4)
    names = tuple("mnopq")
    requests = 600
    (group,) = case.placement.groups
    case = dataclasses.replace(
        case,
        fleet=dataclasses.replace(
            case.fleet, models=tuple(FleetModel(name=name, profile="p", slo_s=1.0) for name in names)
        ),
        placement=Placement(groups=(dataclasses.replace(group, models=names),)),
        workload=Workload(
            arrival_s=np.sort(generator.choice(np.arange(0.0, 100.0, 0.25), requests)),
            model=generator.integers(0, 5, requests).astype(np.int32),
            model_names=names,
            slo_s=generator.choice([70.0, 100.0, np.inf], requests),
        ),
    )
    fast, reference = run(case, "fast"), run(case, "reference")
    np.testing.assert_array_equal(fast.finish_s, reference.finish_s)
    waited_s = np.nanmax(fast.finish_s - case.workload.arrival_s)
    assert waited_s > MOST_PASSED * 1.5, "no queue was ever so long"


@pytest.mark.parametrize("load", [1.0, 2.0, 10.0])
def test_overload_does_not_undo_batching(load: float) -> None:
    capacity_hz = 4 / 0.3  # four at once on the slower stage; one by one it is four a second
    arrivals = np.random.default_rng(0).exponential(1 / (load * capacity_hz), int(500 * load * capacity_hz)).cumsum()
    rows = [(0.25, 0.1), (0.3, 0.15), (0.3, 0.2), (0.3, 0.25)]
    case = one_group(*rows, arrival_s=list(arrivals), slo_s=3.0, max_batch=4)
    served = (run(case, "fast").outcome == SERVED).sum()
    assert served > 0.9 * 500 * capacity_hz


def test_a_dispatch_that_only_the_reference_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    case = one_group((1.0,), arrival_s=[0.0])
    monkeypatch.setitem(DISPATCHES, "mine", alpaserve)
    options = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
    assert simulate(**options, dispatch="mine").finish_s == [1.0]


def test_compiles_where_there_is_no_place_to_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(*, cache: bool = False, **options: Any) -> Callable[..., Any]:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(**options)

    monkeypatch.setattr(loop, "numba", types.SimpleNamespace(njit=njit))
    assert loop.compiled(lambda x: x + 1)(1) == 2
