"""What the simulator refuses, and its sums."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from jaxserve.errors import ConfigError, PlacementError
from jaxserve.plans import Fleet, FleetModel, Group, Placement, Profile, Profiles, Segment
from jaxserve.simulator import simulate
from jaxserve.workload import Workload

ROW = Profile(
    intra_op=1,
    inter_op=2,
    batch_size=1,
    stage_latency_s=(1.0, 2.0),
    stage_weight_bytes=(60.0, 40.0),
    stage_activation_bytes=(0.0, 0.0),
)
PROFILES = Profiles(device_kind="test", memory_bytes=100.0, models={"p": (ROW,)})
FLEET = Fleet(
    devices=2,
    devices_per_host=2,
    memory_bytes=100.0,
    models=(FleetModel(name="a", profile="p", slo_s=4.0), FleetModel(name="b", profile="p", slo_s=4.0)),
)
ONE = Placement(groups=(Group(inter_op=2, devices=(0, 1), models=("a",)),))


def workload(*arrival_s: float, slo_s: float = 4.0, model: int = 0) -> Workload:
    return Workload(
        arrival_s=np.array(arrival_s),
        model=np.full(len(arrival_s), model),
        model_names=("a", "b"),
        slo_s=np.full(len(arrival_s), slo_s),
    )


def test_sums() -> None:
    result = simulate(profiles=PROFILES, fleet=FLEET, placement=ONE, workload=workload(0.0, 0.5, 1.0))
    # the first ends at 3; the second would end at 5, after 4.5 s; the third at 5, after 4 s: just in time
    np.testing.assert_array_equal(result.finish_s, [3.0, np.nan, 5.0])
    np.testing.assert_array_equal(result.outcome, [0, 1, 0])
    np.testing.assert_array_equal(result.group, [0, -1, 0])
    summary = result.to_json()
    assert summary["latency_mean_s"] == 3.5
    assert summary["slo_attainment"] == pytest.approx(2 / 3)
    assert summary["per_model"] == {
        "a": {"requests": 3, "slo_attainment": pytest.approx(2 / 3)},
        "b": {"requests": 0, "slo_attainment": 1.0},
    }
    assert summary["per_group"] == [{"requests": 2, "utilization": pytest.approx(6 / 2 / 5)}]


def test_priorities_and_tenants() -> None:
    arrivals = Workload(
        arrival_s=np.zeros(4),
        model=np.zeros(4, np.int32),
        model_names=("a",),
        slo_s=np.full(4, np.inf),
        priority=np.array([0, 0, 0, 1]),
        tenant=np.array([0, 0, 0, 1]),
        tenant_names=("", "b"),
    )

    def finish_s(**policy: Any) -> list[float]:
        result = simulate(profiles=PROFILES, fleet=FLEET, placement=ONE, workload=arrivals, **policy)
        assert result.to_json()["served"] == 4
        return list(result.finish_s)

    assert finish_s() == [3.0, 5.0, 7.0, 9.0]
    assert finish_s(max_overtakings=1) == finish_s(shares={}) == [3.0, 7.0, 9.0, 5.0]
    result = simulate(profiles=PROFILES, fleet=FLEET, placement=ONE, workload=arrivals, max_overtakings=1)
    summary = result.to_json()
    assert summary["per_priority"] == {
        "0": {"requests": 3, "slo_attainment": 1.0, "latency_p50_s": 7.0},
        "1": {"requests": 1, "slo_attainment": 1.0, "latency_p50_s": 5.0},
    }
    assert set(summary["per_tenant"]) == {"", "b"}


def test_models_that_wait_for_company() -> None:
    rows = (ROW, dataclasses.replace(ROW, batch_size=2))
    profiles = dataclasses.replace(PROFILES, models={"p": rows})
    waits = tuple(dataclasses.replace(model, max_wait_s=0.5) for model in FLEET.models)
    fleet = dataclasses.replace(FLEET, models=waits)
    arrivals = workload(0.0, 0.25, 10.0)
    found = simulate(profiles=profiles, fleet=fleet, placement=ONE, workload=arrivals, max_batch=2)
    np.testing.assert_array_equal(found.finish_s, [3.25, 3.25, 13.5])
    alone = simulate(profiles=profiles, fleet=fleet, placement=ONE, workload=arrivals)
    np.testing.assert_array_equal(alone.finish_s, [3.0, np.nan, 13.0])


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"max_overtakings": -1}, "max_overtakings is -1"), ({"shares": {"a": 0.0}}, "share of tenant 'a' is 0.0")],
)
def test_policies_that_make_no_sense(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        simulate(profiles=PROFILES, fleet=FLEET, placement=ONE, workload=workload(0.0), **options)


def test_a_model_on_no_group_is_rejected() -> None:
    result = simulate(profiles=PROFILES, fleet=FLEET, placement=ONE, workload=workload(0.0, model=1))
    assert result.to_json()["rejected"] == 1


def test_an_empty_workload() -> None:
    summary = simulate(profiles=PROFILES, fleet=FLEET, placement=ONE, workload=workload()).to_json()
    assert summary["requests"] == 0
    assert summary["slo_attainment"] == 1.0
    assert summary["latency_p99_s"] is None


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize(
    "placement",
    [
        Placement(groups=()),
        Placement(groups=(), segments=(Segment(start_s=0.0, groups=()), Segment(start_s=0.5, groups=ONE.groups))),
    ],
)
def test_no_groups(placement: Placement, engine: str) -> None:
    arrivals = workload(0.0, 1.0)
    result = simulate(profiles=PROFILES, fleet=FLEET, placement=placement, workload=arrivals, engine=engine)
    np.testing.assert_array_equal(result.finish_s, [np.nan, 4.0 if placement.segments else np.nan])
    assert result.to_json()["rejected"] == 2 - len(result.busy)


def test_a_config_with_rows_of_larger_batches_only() -> None:
    for rows, problem in (
        ((2,), r"has no such row at batch size 1; run `jaxserve profile` for one$"),
        ((1, 2), r"at batch size 1; run `jaxserve profile` for one, or choose one of \(2, 2\)$"),
    ):
        others = tuple(dataclasses.replace(ROW, intra_op=2, batch_size=size) for size in rows)
        profiles = dataclasses.replace(PROFILES, models={"p": (dataclasses.replace(ROW, batch_size=2), *others)})
        with pytest.raises(PlacementError, match=problem):
            simulate(profiles=profiles, fleet=FLEET, placement=ONE, workload=workload(0.0))


@pytest.mark.parametrize(
    ("group", "problem"),
    [
        (Group(inter_op=2, devices=(0, 2), models=("a",)), "group 0 uses device 2, but the fleet's cluster has 2"),
        (Group(inter_op=2, devices=(0, 1), models=("z",)), "group 0 holds 'z', which is not in the fleet"),
        (Group(devices=(0,), models=("a",)), r"holds 'a' as \(1, 1\), but its profile 'p' has no such row.*\(1, 2\)"),
        (Group(inter_op=2, devices=(0, 1), models=("a", "b")), "needs 120 bytes of weights on each device of stage 0"),
    ],
)
def test_placements_that_do_not_fit(group: Group, problem: str) -> None:
    with pytest.raises(PlacementError, match=problem):
        simulate(profiles=PROFILES, fleet=FLEET, placement=Placement(groups=(group,)), workload=workload(0.0))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"dispatch": "best"}, "dispatch is 'best'.*alpaserve"),
        ({"overhead_s": -1.0}, "overhead_s is -1.0"),
        ({"max_batch": 0}, "max_batch is 0, but must be at least 1"),
        ({"engine": "slow"}, "engine is 'slow', but must be one of fast, reference"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        simulate(profiles=PROFILES, fleet=FLEET, placement=ONE, workload=workload(0.0), **options)  # type: ignore[arg-type]


def test_the_longest_row_counts() -> None:
    longer = dataclasses.replace(ROW, length=512, stage_latency_s=(2.0, 2.0))
    shorter = dataclasses.replace(ROW, length=16)
    profiles = dataclasses.replace(PROFILES, models={"p": (shorter, longer)})
    result = simulate(profiles=profiles, fleet=FLEET, placement=ONE, workload=workload(0.0))
    assert result.finish_s[0] == 4.0


def test_batches() -> None:
    rows = (
        dataclasses.replace(ROW, batch_size=4, stage_latency_s=(0.0, 0.0)),  # larger than is asked for
        dataclasses.replace(ROW, batch_size=2, stage_latency_s=(1.0, 2.5)),
        ROW,
    )
    profiles = dataclasses.replace(PROFILES, models={"p": rows})
    arrivals = workload(0.0, 0.5, 0.5, slo_s=6.0)
    result = simulate(profiles=profiles, fleet=FLEET, placement=ONE, workload=arrivals, max_batch=2)
    # one by one the third would end at 7; with the second, on stage 1 from 3 on, at 5.5
    np.testing.assert_array_equal(result.finish_s, [3.0, 5.5, 5.5])
    np.testing.assert_array_equal(result.outcome, [0, 0, 0])
    assert result.to_json()["per_group"] == [{"requests": 3, "utilization": pytest.approx(6.5 / 2 / 5.5)}]


@pytest.mark.parametrize(
    "larger",
    [
        dataclasses.replace(ROW, batch_size=2, length=512),
        dataclasses.replace(ROW, batch_size=2, intra_op=2),
    ],
)
def test_rows_of_other_lengths_and_configs_make_no_batches(larger: Profile) -> None:
    profiles = dataclasses.replace(PROFILES, models={"p": (ROW, larger)})
    arrivals = workload(0.0, 0.5, 0.5, slo_s=9.0)
    result = simulate(profiles=profiles, fleet=FLEET, placement=ONE, workload=arrivals, max_batch=2)
    np.testing.assert_array_equal(result.finish_s, [3.0, 5.0, 7.0])
