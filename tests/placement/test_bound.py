"""The bound: never below what any placement serves (brute force on tiny fleets), and tight where it can be."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.errors import PlacementError
from jaxserve.placement import Effort, Problem
from jaxserve.placement.bound import upper_bound
from jaxserve.placement.search import reachable, search
from jaxserve.plans import Fleet, FleetModel, ParallelConfig, Profile, Profiles
from jaxserve.simulator import Traffic
from jaxserve.workload import Workload
from tests.placement.small import problem

CONFIGS = [ParallelConfig(1, 1), ParallelConfig(1, 2), ParallelConfig(2, 1)]


@st.composite
def tiny_problems(draw: st.DrawFn, max_batch: int = 1) -> Problem:
    """At most 3 devices, 3 models and 12 requests, with quarters of seconds so that ties are common."""
    quarters = st.integers(1, 8).map(lambda number: number / 4)
    models = {}
    for kind in ("p", "q"):
        rows = []
        for config, size in itertools.product(CONFIGS, range(1, max_batch + 1)):
            rows.append(
                Profile(
                    intra_op=config.intra_op,
                    inter_op=config.inter_op,
                    batch_size=size,
                    stage_latency_s=tuple(draw(quarters) for _ in range(config.inter_op)),
                    stage_weight_bytes=tuple(float(draw(st.integers(1, 4))) for _ in range(config.inter_op)),
                    stage_activation_bytes=(0.0,) * config.inter_op,
                )
            )
        models[kind] = tuple(rows)
    names = [f"m{index}" for index in range(draw(st.integers(1, 3)))]
    fleet = Fleet(
        devices=draw(st.integers(1, 3)),
        devices_per_host=4,
        memory_bytes=float(draw(st.integers(1, 6))),
        models=tuple(
            FleetModel(name=name, profile=draw(st.sampled_from(["p", "q"])), slo_s=draw(quarters)) for name in names
        ),
    )
    count = draw(st.integers(1, 12))
    arrivals = sorted(draw(st.lists(st.integers(0, 16), min_size=count, max_size=count)))
    workload = Workload(
        arrival_s=np.array(arrivals) / 4,
        model=np.array([draw(st.integers(0, len(names) - 1)) for _ in range(count)]),
        model_names=tuple(names),
        slo_s=np.array([draw(st.integers(1, 16)) / 4 for _ in range(count)]),
    )
    profiles = Profiles(device_kind="test", memory_bytes=8.0, models=models)
    return Problem.of(fleet=fleet, profiles=profiles, workload=workload, max_batch=max_batch)


def best_of_all(of: Problem) -> float:
    """The attainment of the best placement: all groups, all sets of models that fit them."""
    tables, fleet, scorer = of.tables, of.fleet, of.scorer()
    sets = list(itertools.product((0, 1), repeat=len(fleet.models)))
    best = 0.0
    for groups in range(1, fleet.devices + 1):
        for configs in itertools.combinations_with_replacement(range(len(tables.configs)), groups):
            if tables.devices[list(configs)].sum() > fleet.devices:
                continue
            fitting = [[own for own in sets if not any(own) or _fits(of, config, own)] for config in configs]
            for held in itertools.product(*fitting):
                shape = of.empty(configs)
                shape.held[:] = held
                best = max(best, scorer.score(shape).slo_attainment)
    return best


def _fits(of: Problem, config: int, own: tuple[int, ...]) -> bool:
    used = of.tables.weight_bytes[config][np.array(own, bool)].sum(axis=0)
    return bool((used <= of.fleet.memory_bytes).all())


@settings(max_examples=60, deadline=None)
@given(tiny_problems())
def test_no_placement_exceeds_it(of: Problem) -> None:
    assert upper_bound(of).slo_attainment >= best_of_all(of) - 1e-12


@settings(max_examples=30, deadline=None)
@given(tiny_problems(max_batch=2))
def test_nor_one_that_merges_requests(of: Problem) -> None:
    assert upper_bound(of).slo_attainment >= best_of_all(of) - 1e-12


@settings(max_examples=30, deadline=None)
@given(tiny_problems())
def test_more_devices_never_lower_it(of: Problem) -> None:
    more = dataclasses.replace(of.fleet, devices=of.fleet.devices + 1)
    wider = Problem.of(fleet=more, profiles=of.profiles, workload=of.workload)
    assert upper_bound(wider).slo_attainment >= upper_bound(of).slo_attainment - 1e-5


def test_what_binds() -> None:
    assert upper_bound(problem(models=2, rate=0.5, slo_scale=20.0)).binding == "nothing"
    busy = upper_bound(problem(models=6, rate=60.0))
    assert busy.binding == "capacity"
    assert busy.slo_attainment < 0.75
    crowded = upper_bound(problem(models=30, rate=12.0))
    assert crowded.binding == "memory"
    late = upper_bound(problem(models=3, rate=1.0, slo_scale=0.1))
    assert late.binding == "latency"
    assert late.slo_attainment == 0.0
    assert set(late.reachable.values()) == {0.0}


def test_overload_is_bounded_by_the_work() -> None:
    """One device, one model, twice what it can do in time: what is served is at most the time over the latency."""
    row = Profile(
        intra_op=1,
        inter_op=1,
        batch_size=1,
        stage_latency_s=(1.0,),
        stage_weight_bytes=(1.0,),
        stage_activation_bytes=(0.0,),
    )
    of = Problem.of(
        fleet=Fleet(
            devices=1, devices_per_host=1, memory_bytes=1.0, models=(FleetModel(name="m", profile="p", slo_s=2.0),)
        ),
        profiles=Profiles(device_kind="test", memory_bytes=1.0, models={"p": (row,)}),
        workload=Workload(
            arrival_s=np.arange(200) / 2, model=np.zeros(200, np.int32), model_names=("m",), slo_s=np.full(200, 2.0)
        ),
    )
    found = upper_bound(of)
    assert 0.5 <= found.slo_attainment <= 0.53
    served = search(of, Effort(simulations=50)).placement
    assert of.scorer().score(of.shape(served)).slo_attainment == pytest.approx(0.505, abs=0.01)


def test_no_model_fits() -> None:
    of = problem()
    nothing = dataclasses.replace(of.fleet, memory_bytes=1.0)
    hopeless = Problem.of(fleet=nothing, profiles=of.profiles, workload=of.workload)
    assert upper_bound(hopeless).slo_attainment == 0.0
    with pytest.raises(PlacementError, match="no model of the fleet fits any group"):
        search(hopeless, Effort(simulations=5))


def alone(*, arrival_s: list[float], slo_s: list[float], weight_bytes: tuple[float, ...] = (1.0,)) -> Problem:
    """One device of one byte; a request of each model takes 0.1 s, and the models weigh so much."""
    names = tuple(f"m{index}" for index in range(len(weight_bytes)))
    rows = {
        name: (
            Profile(
                intra_op=1,
                inter_op=1,
                batch_size=1,
                stage_latency_s=(0.1,),
                stage_weight_bytes=(weight,),
                stage_activation_bytes=(0.0,),
            ),
        )
        for name, weight in zip(names, weight_bytes, strict=True)
    }
    return Problem.of(
        fleet=Fleet(
            devices=1,
            devices_per_host=1,
            memory_bytes=1.0,
            models=tuple(FleetModel(name=name, profile=name, slo_s=1.0) for name in names),
        ),
        profiles=Profiles(device_kind="test", memory_bytes=1.0, models=rows),
        workload=Workload(
            arrival_s=np.array(arrival_s),
            model=np.arange(len(arrival_s)) % len(names),
            model_names=names,
            slo_s=np.array(slo_s),
        ),
    )


@pytest.mark.parametrize("start_s", [0.0, 1.7e9])
@pytest.mark.parametrize("short_s", [0.0, 5e-8])
def test_rounded_clocks_do_not_exceed_it(start_s: float, short_s: float) -> None:
    """Doubles are 2.4e-7 s apart at 1.7e9 s: there the simulator may answer within less than the latency."""
    arrival_s = [start_s + 0.1 * index for index in range(20)]
    of = alone(arrival_s=arrival_s, slo_s=[0.1 - short_s] * 20)
    shape = of.empty([0])
    shape.held[:] = 1
    attained = of.scorer().score(shape).slo_attainment
    assert attained > 0 or (start_s == 0 and short_s > 0)
    assert upper_bound(of).slo_attainment >= attained
    assert reachable(of, [Traffic.of(of.workload, of.fleet)]) >= attained * 20


def test_late_arrivals_have_the_bound_of_early_ones() -> None:
    """Twice what one device can do: bins that began in 1970 would be too wide to show it."""
    arrival_s = np.arange(200) / 20
    early, late = (
        upper_bound(alone(arrival_s=(start_s + arrival_s).tolist(), slo_s=[0.2] * 200)).slo_attainment
        for start_s in (0.0, 1.7e9)
    )
    assert early < 0.53
    assert late == pytest.approx(early, abs=1e-3)


def test_what_fits_nowhere_is_not_reachable_even_with_endless_time() -> None:
    of = alone(arrival_s=[0.5, 1.0], slo_s=[1.0, np.inf], weight_bytes=(1.0, 2.0))
    found = upper_bound(of)
    assert found.slo_attainment == pytest.approx(0.5, abs=1e-5)
    assert found.reachable == {"m0": 1.0, "m1": 0.0}
    assert reachable(of, [Traffic.of(of.workload, of.fleet)]) == 1
