"""Plans: what is said of them, why models are on no group, how many devices it takes, what if things were different."""

import dataclasses
import json
import math
import re
from typing import Any

import numpy as np
import pytest

import jaxserve
from jaxserve.errors import ConfigError, JaxserveError, PlacementError
from jaxserve.placement import (
    Bound,
    Effort,
    Plan,
    PlanResult,
    Problem,
    Progress,
    devices_for,
    plan,
    policy_named,
    sweep,
)
from jaxserve.plans import Fleet, FleetModel, Group, ParallelConfig, Placement, Profile, Profiles
from jaxserve.simulator import simulate
from jaxserve.workload import Workload, synthetic

GB = 1e9


def row(intra_op: int, inter_op: int, *, latency_s: float, weight_gb: float) -> Profile:
    """A row of even stages; the weights are those of the whole model."""
    return Profile(
        intra_op=intra_op,
        inter_op=inter_op,
        batch_size=1,
        stage_latency_s=(latency_s / inter_op,) * inter_op,
        stage_weight_bytes=(weight_gb * GB / intra_op / inter_op,) * inter_op,
        stage_activation_bytes=(0.0,) * inter_op,
        source="estimated",
    )


SMALL = (row(1, 1, latency_s=0.1, weight_gb=4), row(1, 2, latency_s=0.104, weight_gb=4))
LARGE = (row(1, 2, latency_s=0.3, weight_gb=16), row(2, 2, latency_s=0.2, weight_gb=16))
PROFILES = Profiles(device_kind="made up", memory_bytes=16 * GB, models={"small": SMALL, "large": LARGE, "none": ()})


def fleet_of(*models: FleetModel, devices: int = 4, per_host: int = 4, memory_gb: float = 10) -> Fleet:
    return Fleet(devices=devices, devices_per_host=per_host, memory_bytes=memory_gb * GB, models=models)


def small(name: str, slo_s: float = 0.5, min_attainment: float | None = None) -> FleetModel:
    return FleetModel(name=name, profile="small", slo_s=slo_s, min_attainment=min_attainment)


def large(name: str, slo_s: float = 0.9, min_attainment: float | None = None) -> FleetModel:
    return FleetModel(name=name, profile="large", slo_s=slo_s, min_attainment=min_attainment)


FLEET = fleet_of(small("a"), small("b"), small("c"), large("x"), large("y"))


def traffic(fleet: Fleet = FLEET, *, rate: float = 12, duration_s: float = 20) -> Workload:
    return synthetic(
        model_names=[model.name for model in fleet.models],
        slo_s=[model.slo_s for model in fleet.models],
        rate=rate,
        cv=2,
        duration_s=duration_s,
        rng=np.random.default_rng(0),
    )


def once(*names: str, slo_s: float | tuple[float, ...] = 0.5) -> Workload:
    """One request for each of these models, ten seconds apart."""
    count = len(names)
    return Workload(
        arrival_s=np.arange(count) * 10.0,
        model=np.arange(count, dtype=np.int32),
        model_names=names,
        slo_s=np.full(count, slo_s),
    )


def planned(**changed: Any) -> PlanResult:
    given: dict[str, Any] = {"profiles": PROFILES, "fleet": FLEET, "workload": traffic(), "simulations": 200}
    return plan(**{**given, **changed})


def fixed(*groups: Group) -> Any:
    """A policy that always answers these groups."""
    return lambda problem, effort: Plan(placement=Placement(groups=groups), simulations=0)


@pytest.mark.parametrize("policy", ["search", "alpaserve", "selective-replication", "round-robin", "greedy-2"])
def test_a_plan_says_what_the_simulator_says(policy: str) -> None:
    result = planned(policy=policy)
    said = simulate(profiles=PROFILES, fleet=FLEET, placement=result.placement, workload=traffic()).to_json()
    assert result.slo_attainment == said["slo_attainment"]
    assert result.policy == policy
    per_model: Any = said["per_model"]
    for name, report in result.per_model.items():
        assert report.requests == per_model[name]["requests"]
        assert report.slo_attainment == pytest.approx(per_model[name]["slo_attainment"])
        holding = [index for index, group in enumerate(result.placement.groups) if name in group.models]
        assert list(report.groups) == holding
    per_group: Any = said["per_group"]
    for report, group in zip(result.per_group, per_group, strict=True):
        assert (report.requests, report.utilization) == (group["requests"], group["utilization"])
        assert sum(report.load.values()) == pytest.approx(report.utilization)
    assert {each.model for each in result.unplaced} == {
        name for name, report in result.per_model.items() if not report.groups
    }


def test_json_begins_with_the_plan_result_of_the_design() -> None:
    result = planned().to_json()
    first = ["slo_attainment", "policy", "search_s", "simulations", "groups", "placement"]
    assert list(result)[: len(first)] == first
    read = json.loads(json.dumps(result, allow_nan=False))
    assert read["groups"] == len(read["placement"]["groups"])
    assert read["placement"]["format"] == "jaxserve-placement/1"
    assert 0 < read["slo_attainment"] <= read["bound"]["slo_attainment"] <= 1


def test_a_seed_and_a_number_of_simulations_decide_the_plan() -> None:
    first, again = planned(seed=3), planned(seed=3)
    assert first.placement == again.placement
    assert first.simulations == again.simulations


def test_the_bound_may_be_left_out() -> None:
    assert isinstance(planned().bound, Bound)
    assert planned(bound=False).bound is None


def test_progress_is_reported_and_a_search_is_stopped() -> None:
    reports: list[Progress] = []
    result = planned(seconds=1e6, simulations=None, report=reports.append, stop=lambda: len(reports) > 2)
    assert result.placement.groups
    assert all(0 <= each.done <= 1 and 0 <= each.slo_attainment <= 1 for each in reports)


def test_segments_are_numbered_as_the_simulator_does() -> None:
    fleet = fleet_of(small("a"), small("b"), devices=1, memory_gb=5)
    names = ["a"] * 30 + ["b"] * 30
    workload = Workload(
        arrival_s=np.arange(60) * 4.0,
        model=np.array([name == "b" for name in names], np.int32),
        model_names=("a", "b"),
        slo_s=np.full(60, 0.5),
    )
    result = planned(fleet=fleet, workload=workload, policy="clockwork++")
    assert len(result.placement.segments) == 4
    assert result.groups == 1
    assert len(result.per_group) == 4
    assert result.per_model["a"].groups + result.per_model["b"].groups == (0, 1, 2, 3)
    assert not result.unplaced


ONE_OF_A = Group(devices=(0,), models=("a",))
BOTH = fleet_of(small("a"), small("b"))


@pytest.mark.parametrize(
    ("fleet", "workload", "groups", "cause", "why"),
    [
        (
            fleet_of(small("a"), FleetModel(name="b", profile="none", slo_s=1)),
            once("a", "b"),
            [ONE_OF_A],
            "no-profile",
            "its profile 'none' has no row at batch size 1",
        ),
        (
            fleet_of(small("a"), large("b"), devices=1),
            once("a", "b"),
            [ONE_OF_A],
            "too-few-devices",
            r"its smallest config, \(1, 2\), needs 2 devices, 1 of them on one host, but the cluster has 1",
        ),
        (
            fleet_of(small("a"), large("b"), memory_gb=5, per_host=1),
            once("a", "b"),
            [ONE_OF_A],
            "memory",
            r"at its lightest, as \(1, 2\), it needs 8 GB on each device of a stage, but a device may hold 5 GB: 3 GB",
        ),
        (
            fleet_of(small("a"), small("b", slo_s=0.05)),
            once("a", "b", slo_s=(0.5, 0.09)),
            [ONE_OF_A],
            "too-slow",
            r"as \(1, 1\), a request takes 0.1 s on an idle group, but its SLO is 0.09 s",
        ),
        (BOTH, once("a"), [ONE_OF_A], "no-requests", "no request of the workload is for it"),
        (BOTH, once("a", "b"), [ONE_OF_A], "left-out", "group 0 has room for it"),
        (
            fleet_of(small("a"), small("b"), memory_gb=5),
            once("a", "b"),
            [ONE_OF_A],
            "crowded-out",
            r"no group has room left for it: as \(1, 1\) it needs 4 of the 5 GB",
        ),
        (
            fleet_of(small("a"), large("b")),
            once("a", "b"),
            [ONE_OF_A],
            "crowded-out",
            r"it fits \(1, 2\), \(2, 2\), but the policy made no group of such a shape",
        ),
        (fleet_of(small("a")), once("a", "b"), [ONE_OF_A], "not-in-fleet", "it is not in the fleet, so its 1 requests"),
    ],
)
def test_why_a_model_is_on_no_group(
    fleet: Fleet, workload: Workload, groups: list[Group], cause: str, why: str
) -> None:
    result = planned(fleet=fleet, workload=workload, policy=fixed(*groups))
    (found,) = result.unplaced
    assert (found.model, found.cause) == ("b", cause)
    assert re.search(why, found.why)
    assert result.per_model["b"].groups == ()


def test_a_model_that_no_group_can_serve_in_time_is_told_of_where_it_is_placed() -> None:
    workload = once("a", "b", slo_s=(0.5, 0.09))
    result = planned(fleet=BOTH, workload=workload, policy=fixed(Group(devices=(0,), models=("a", "b"))))
    assert [(each.model, each.cause) for each in result.unplaced] == [("b", "too-slow")]
    assert result.per_model["b"].groups == (0,)


@pytest.mark.parametrize(
    ("fleet", "workload", "problem"),
    [
        (
            fleet_of(large("x"), large("y"), memory_gb=3),
            once("x", "y", slo_s=1),
            r"no model of the fleet can be served on this cluster; x: .* 1 GB are missing; .* \(nor can y\)",
        ),
        (fleet_of(small("a"), devices=4), once("a", slo_s=0.01), "its SLO is 0.01 s"),
        (fleet_of(large("x"), devices=1), once("x"), r"its smallest config, \(1, 2\), needs 2 devices"),
        (FLEET, once("p", "q"), "requests are for p, q, but the fleet's models are a, b, c, x, y"),
        (fleet_of(), once("a"), "the fleet has no models"),
    ],
)
def test_a_fleet_that_cannot_be_served_at_all(fleet: Fleet, workload: Workload, problem: str) -> None:
    with pytest.raises(PlacementError, match=problem):
        planned(fleet=fleet, workload=workload)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"policy": "best"}, "policy is 'best', but must be one of search, alpaserve"),
        ({"policy": "greedy-0"}, "greedy-0 was asked for, but a pipeline has at least 1 stage"),
        ({"policy": "greedy-x"}, "policy is 'greedy-x'"),
        ({"policy": "greedy--1"}, "policy is 'greedy--1'"),
        ({"policy": "round-robin", "fairness": True}, "the policy round-robin only maximises the total; choose search"),
        (
            {"policy": lambda problem, effort: None},
            "returned a NoneType, but a policy returns a jaxserve.placement.Plan",
        ),
        ({"dispatch": "best"}, "dispatch is 'best'"),
        ({"overhead_s": -1.0}, "overhead_s is -1.0"),
        ({"overhead_s": math.nan}, "overhead_s is nan"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"seconds": -1.0}, "seconds is -1, but a search needs a finite time greater than 0"),
        ({"seconds": math.nan}, "seconds is nan"),
        ({"seconds": math.inf}, "seconds is inf"),
        ({"simulations": 0}, "simulations is 0, but must be at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"min_attainment": 1.5}, "min_attainment is 1.5, but must be a share"),
        ({"min_attainment": math.nan}, "min_attainment is nan"),
        ({"fleet": fleet_of(small("a", min_attainment=2.0))}, "min_attainment is 2"),
        ({"fleet": fleet_of(FleetModel(name="a", profile="lost", slo_s=1))}, "the profile 'lost', which the profiles"),
        ({"workload": once()}, "the workload has no requests"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        planned(**options)


def test_floors_of_the_fleet_go_before_the_one_for_all() -> None:
    fleet = fleet_of(small("a"), small("b", min_attainment=0.0), small("c", min_attainment=0.5))
    result = planned(fleet=fleet, workload=once("a", "b", "c"), policy=fixed(ONE_OF_A), min_attainment=0.9)
    (short,) = result.shortfalls
    assert (short.model, short.min_attainment, short.slo_attainment) == ("c", 0.5, 0.0)
    assert result.to_json()["shortfalls"] == [{"model": "c", "min_attainment": 0.5, "slo_attainment": 0.0}]


def test_the_model_farthest_below_its_floor_comes_first() -> None:
    fleet = fleet_of(small("a", min_attainment=0.2), small("b"), small("c", min_attainment=1.0))
    result = planned(fleet=fleet, workload=once("a", "b", "c"), policy=fixed(Group(devices=(0,), models=("b",))))
    assert [each.model for each in result.shortfalls] == ["c", "a"]


def test_a_floor_brings_a_model_onto_a_group() -> None:
    """One device has room for one model: the one with the fewer requests gets it where its floor demands it."""
    fleet = fleet_of(small("a"), small("b"), devices=1, memory_gb=5)
    workload = Workload(
        arrival_s=np.arange(20) * 1.0,
        model=np.array([0] * 15 + [1] * 5, np.int32),
        model_names=("a", "b"),
        slo_s=np.full(20, 0.5),
    )
    assert planned(fleet=fleet, workload=workload).placement.groups[0].models == ("a",)
    floored = fleet_of(small("a"), small("b", min_attainment=1.0), devices=1, memory_gb=5)
    result = planned(fleet=floored, workload=workload)
    assert result.placement.groups[0].models == ("b",)
    assert not result.shortfalls


def test_a_policy_of_ones_own() -> None:
    def mine(problem: Problem, effort: Effort) -> Plan:
        effort.report(Progress(done=1.0, simulations=7, slo_attainment=0.5))
        single = problem.tables.configs.index(ParallelConfig(1, 1))
        shape = problem.empty([single])
        shape.held[0, 1] = 1
        return Plan(placement=problem.placement(shape), simulations=7)

    result = planned(policy=mine)
    assert [group.models for group in result.placement.groups] == [("b",)]
    assert result.simulations == 7
    assert result.policy == f"{__name__}:test_a_policy_of_ones_own.<locals>.mine"


def test_a_policy_whose_placement_does_not_fit() -> None:
    with pytest.raises(PlacementError, match=r"a device may hold 1e\+10"):
        planned(policy=fixed(Group(devices=(0,), models=("a", "b", "c"))))


def test_every_named_policy_is_there() -> None:
    for name in ("search", "alpaserve", "selective-replication", "round-robin", "clockwork++", "greedy-4"):
        assert callable(policy_named(name))
    assert jaxserve.plan is plan


def sized(target: float, **changed: Any) -> Any:
    given: dict[str, Any] = {"profiles": PROFILES, "fleet": FLEET, "workload": traffic(), "policy": "round-robin"}
    return devices_for(target, **{**given, **changed})


@pytest.mark.parametrize("bound", [True, False])
def test_the_smallest_number_of_devices(bound: bool) -> None:
    sizing = sized(0.9, bound=bound)
    tried = {each.devices: each for each in sizing.tried}
    assert tried[sizing.devices].reached
    assert tried[sizing.devices].slo_attainment >= 0.9
    assert not tried[sizing.devices - 1].reached
    assert all(count >= sizing.devices for count, each in tried.items() if each.reached)
    assert sizing.plan.slo_attainment == tried[sizing.devices].slo_attainment
    assert max(max(group.devices) for group in sizing.plan.placement.groups) < sizing.devices
    assert json.loads(json.dumps(sizing.to_json()))["devices"] == sizing.devices
    assert (tried[min(tried)].slo_attainment is None) == bound  # known to be too few by the bound alone


def test_numbers_that_hold_no_model_are_too_few() -> None:
    fleet = fleet_of(large("x"))
    sizing = sized(0.5, fleet=fleet, workload=traffic(fleet, rate=1), bound=False)
    first, *_ = sizing.tried
    assert (first.devices, first.slo_attainment, first.reached) == (1, None, False)
    assert "needs 2 devices" in first.why
    assert sizing.devices >= 2


def test_no_number_is_enough() -> None:
    sizing = sized(1.0, workload=traffic(rate=400, duration_s=5), most_devices=6, bound=False)
    assert sizing.devices is None
    assert sizing.plan is None
    assert [each.devices for each in sizing.tried] == [1, 2, 4, 6]


def test_the_bound_says_at_once_that_no_number_is_enough() -> None:
    hopeless = dataclasses.replace(traffic(), slo_s=np.full(len(traffic()), 0.11))  # the large models take longer
    (only,) = sized(0.99, workload=hopeless, most_devices=6).tried
    assert only.devices == 6
    assert only.slo_attainment is None
    assert only.bound < 0.99


def test_floors_count_when_devices_do() -> None:
    fleet = fleet_of(small("a"), large("x", min_attainment=1.0))
    workload = Workload(
        arrival_s=np.arange(40) * 1.0,
        model=np.array([0] * 39 + [1], np.int32),
        model_names=("a", "x"),
        slo_s=np.full(40, 0.9),
    )
    sizing = sized(0.5, fleet=fleet, workload=workload, policy="search", simulations=100, bound=False)
    assert sizing.tried[0].why == "below their floors: x"
    assert sizing.devices == 2


def test_sizing_is_stopped() -> None:
    sizing = sized(0.9, stop=lambda: True)
    assert sizing.devices is None
    assert len([each for each in sizing.tried if each.slo_attainment is not None]) <= 1


@pytest.mark.parametrize(
    ("target", "options", "problem"),
    [
        (0.0, {}, "an attainment of 0 was asked for"),
        (1.01, {}, "an attainment of 1.01 was asked for"),
        (math.nan, {}, "an attainment of nan was asked for"),
        (0.9, {"most_devices": 0}, "most_devices is 0"),
    ],
)
def test_sizing_refuses(target: float, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        sized(target, **options)


def swept(axis: str, values: list[float], **changed: Any) -> Any:
    given: dict[str, Any] = {"profiles": PROFILES, "fleet": FLEET, "workload": traffic()}
    return sweep(axis, values, **{"policies": ["round-robin", "greedy-2"], **given, **changed})


@pytest.mark.parametrize(
    ("axis", "values", "grows"), [("devices", [2, 8], True), ("rate", [0.3, 3], False), ("slo", [0.8, 2], True)]
)
def test_a_sweep(axis: str, values: list[float], grows: bool) -> None:
    said: list[str] = []
    points = swept(axis, values, begin=said.append).points
    assert [(point.value, point.policy) for point in points] == [
        (value, policy) for value in values for policy in ("round-robin", "greedy-2")
    ]
    assert said[0] == f"{axis} {values[0]:g}, round-robin"
    for before, after in zip(points[:2], points[2:], strict=True):
        assert (after.slo_attainment > before.slo_attainment) == grows
        assert after.slo_attainment <= after.bound


def test_a_sweep_at_the_value_that_is_there_is_the_plan() -> None:
    for axis, value in (("devices", 4), ("rate", 1), ("slo", 1)):
        (point,) = swept(axis, [value], policies=["round-robin"]).points
        assert point.slo_attainment == planned(policy="round-robin").slo_attainment


def test_a_sweep_of_cv_draws_by_the_seed() -> None:
    first = swept("cv", [0.5, 2], seed=1)
    again = swept("cv", [0.5, 2], seed=1)
    assert [point.slo_attainment for point in first.points] == [point.slo_attainment for point in again.points]
    assert first.points[0].slo_attainment > first.points[2].slo_attainment


def test_a_policy_without_a_plan_has_a_point_without_an_attainment() -> None:
    by_greedy, by_round_robin = swept("devices", [1], policies=["greedy-2", "round-robin"]).points
    assert by_greedy.slo_attainment is None
    assert "greedy-2 needs pipelines of 2 devices" in by_greedy.why
    assert by_round_robin.slo_attainment is not None
    assert by_round_robin.bound is not None


@pytest.mark.parametrize(
    ("axis", "values", "options", "problem"),
    [
        ("size", [1.0], {}, "a sweep of 'size' was asked for, but it must be of one of devices, rate, cv, slo"),
        ("rate", [], {}, "a sweep of rate needs values"),
        ("rate", [0.0], {}, "a sweep of rate has the value 0"),
        ("slo", [math.inf], {}, "a sweep of slo has the value inf"),
        ("devices", [1.5], {}, "a sweep of devices has the value 1.5, but it must be a whole number"),
        ("devices", [math.inf], {}, "a sweep of devices has the value inf"),
        ("rate", [1.0], {"policies": []}, "name at least one"),
        ("rate", [1.0], {"policies": ["best"]}, "policy is 'best'"),
    ],
)
def test_sweeps_refuse(axis: str, values: list[float], options: dict[str, Any], problem: str) -> None:
    with pytest.raises(JaxserveError, match=problem):
        swept(axis, values, **options)
