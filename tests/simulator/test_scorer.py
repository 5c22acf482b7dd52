"""Scores of changes against scores from the beginning, the record behind them, and what is refused."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.plans import Fleet, FleetModel, ParallelConfig, Profiles
from jaxserve.simulator import Current, FleetTables, Score, Scorer, Shape, Traffic, follower
from jaxserve.simulator.follower import Follower
from jaxserve.workload import Workload
from tests.simulator.cases import fleets, row, workloads


@st.composite
def scorers(draw: st.DrawFn, *, max_batches: tuple[int, ...] = (1,)) -> Scorer:
    unit_s = draw(st.sampled_from((0.25, 0.1)))
    max_batch = draw(st.sampled_from(max_batches))
    fleet, profiles = draw(fleets(unit_s=unit_s, max_batch=max_batch))
    traffic = Traffic.of(draw(workloads(fleet, unit_s=unit_s, most=150)), fleet)
    tables = FleetTables.of(fleet, profiles, max_batch=max_batch)
    return Scorer(tables, traffic, overhead_s=draw(st.sampled_from((0.0, 0.011))))


@st.composite
def shapes(draw: st.DrawFn, scorer: Scorer, *, groups: int) -> Shape:
    """Groups hold models without a profile there, which are then not served; groups that are none hold some, too."""
    configs, models = len(scorer.tables.configs), len(scorer.tables.fleet.models)
    config = draw(st.lists(st.integers(-1, configs - 1), min_size=groups, max_size=groups))
    held = draw(st.lists(st.booleans(), min_size=groups * models, max_size=groups * models))
    return Shape(config=np.array(config, np.int32), held=np.array(held, np.uint8).reshape(groups, models))


@st.composite
def changes(draw: st.DrawFn, scorer: Scorer, shape: Shape) -> Shape:
    """Up to three models moved, dropped or replicated, and groups reshaped, emptied or made."""
    config, held = shape.config.copy(), shape.held.copy()
    groups, models = held.shape
    for kind in draw(st.lists(st.sampled_from(("hold", "drop", "move", "reshape", "empty")), max_size=3)):
        group, other = draw(st.integers(0, groups - 1)), draw(st.integers(0, groups - 1))
        model = draw(st.integers(0, models - 1))
        if kind == "move":
            held[group, model], held[other, model] = 0, held[group, model] | held[other, model]
        elif kind in ("hold", "drop"):
            held[group, model] = kind == "hold"
        else:
            config[group] = -1 if kind == "empty" else draw(st.integers(0, len(scorer.tables.configs) - 1))
            held[group] *= draw(st.integers(0, 1))
    return Shape(config=config, held=held)


def assert_equal(score: Score, expected: Score) -> None:
    np.testing.assert_array_equal(score.served, expected.served)
    np.testing.assert_array_equal(score.chosen, expected.chosen)
    assert score.requests == expected.requests
    assert score.latency_s == pytest.approx(expected.latency_s, abs=1e-9)


def record_of(current: Current) -> Iterator[np.ndarray]:
    """What is remembered, without what is not meant to be read."""
    recorded = current._follower
    assert recorded is not None
    requests, last_s, inner_s, *bitmaps = recorded._recorded
    yield requests
    served = requests["choice"] >= 0
    yield last_s[: len(requests)][served]
    depth = recorded._tables[1][current.shape.config[requests["choice"][served]]]
    inner = np.arange(inner_s.shape[1]) < depth[:, None] - 1
    yield inner_s[: len(requests)][served][inner]
    yield from bitmaps


@pytest.mark.parametrize("affordable", [0.0, 0.3, 1.0])
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_changes(affordable: float, data: st.DataObject) -> None:
    """`affordable` decides how many of the changes are followed: none, some, all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follower, "AFFORDABLE_LOOKS", affordable)
        scorer = data.draw(scorers())
        current = scorer.start(data.draw(shapes(scorer, groups=data.draw(st.integers(1, 5)))))
        assert_equal(current.score, scorer.score(current.shape))
        for _ in range(data.draw(st.integers(1, 6))):
            shape = data.draw(changes(scorer, current.shape))
            if affordable == 1.0:
                assert current._follower is not None
                current._follower._spread = 0.0
            score = current.change(shape)
            assert_equal(score, scorer.score(shape))
            if data.draw(st.booleans()):
                current.accept()
                assert current.shape is shape
                assert current.score is score
                for own, fresh in zip(record_of(current), record_of(scorer.start(shape)), strict=True):
                    np.testing.assert_array_equal(own, fresh)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_changes_with_batches(data: st.DataObject) -> None:
    scorer = data.draw(scorers(max_batches=(2, 4)))
    current = scorer.start(data.draw(shapes(scorer, groups=2)))
    shape = data.draw(changes(scorer, current.shape))
    assert_equal(current.change(shape), scorer.score(shape))
    current.accept()
    assert_equal(current.score, scorer.score(shape))


def fleet_of(models: int, stages: int = 1, latency_s: float = 0.1) -> FleetTables:
    """So many models of one profile."""
    fleet = Fleet(
        devices=64,
        devices_per_host=64,
        memory_bytes=1.0,
        models=tuple(FleetModel(name=f"m{index}", profile="p", slo_s=1.0) for index in range(models)),
    )
    profile = (row(ParallelConfig(1, stages), 1, (latency_s / stages,) * stages),)
    return FleetTables.of(fleet, Profiles(device_kind="test", memory_bytes=1.0, models={"p": profile}))


def traffic_of(tables: FleetTables, *, requests: int, rate_hz: float, slo_s: float = 0.5, seed: int = 0) -> Traffic:
    generator = np.random.default_rng(seed)
    workload = Workload(
        arrival_s=np.cumsum(generator.exponential(1 / rate_hz, requests)),
        model=generator.integers(0, len(tables.fleet.models), requests),
        model_names=tuple(model.name for model in tables.fleet.models),
        slo_s=np.full(requests, slo_s),
    )
    return Traffic.of(workload, tables.fleet)


def ring(models: int, *, offset: int = 0) -> Shape:
    """As many groups as models, each with three of them."""
    held = np.zeros((models, models), np.uint8)
    for group in range(models):
        held[group, (group + offset + np.arange(3)) % models] = 1
    return Shape(config=np.zeros(models, np.int32), held=held)


def test_what_spreads_far_is_run_in_full_and_tried_again() -> None:
    tables = fleet_of(8)
    scorer = Scorer(tables, traffic_of(tables, requests=2000, rate_hz=75.0))
    current = scorer.start(ring(8))
    followed: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        follow = Follower.follow

        def noted(*arguments, **options):
            found = follow(*arguments, **options)
            followed.append(found is not None)
            return found

        patch.setattr(Follower, "follow", noted)
        moved = dataclasses.replace(ring(8), held=ring(8).held.copy())
        moved.held[0, 0], moved.held[4, 0] = 0, 1
        for _ in range(40):
            assert_equal(current.change(moved), scorer.score(moved))
    assert not any(followed)
    assert current._follower is not None
    assert current._follower._spread < 8  # it falls while nothing is tried


def test_the_same_calls_do_the_same() -> None:
    tables = fleet_of(8, stages=2)
    expectations: list[list[float]] = []
    for _ in range(2):
        scorer = Scorer(tables, traffic_of(tables, requests=500, rate_hz=40.0))
        current, generator = scorer.start(ring(8)), np.random.default_rng(1)
        spread: list[float] = []
        for _ in range(30):
            held = current.shape.held.copy()
            held[generator.integers(8), generator.integers(8)] ^= 1
            current.change(dataclasses.replace(current.shape, held=held))
            if generator.integers(2):
                current.accept()
            assert current._follower is not None
            spread.append(current._follower._spread)
        expectations.append(spread)
    assert expectations[0] == expectations[1]


def test_shapes_that_do_not_fit() -> None:
    tables = fleet_of(3)
    scorer = Scorer(tables, traffic_of(tables, requests=10, rate_hz=1.0))
    with pytest.raises(ValueError, match=r"held is \[4, 4\], but must be \[4, 3\]"):
        scorer.score(ring(4))
    with pytest.raises(ValueError, match=r"held is \[4, 4\], but must be \[4, 3\]"):
        scorer.start(ring(4))
    current = scorer.start(ring(3))
    unknown = dataclasses.replace(ring(3), config=np.array([0, 1, 0], np.int32))
    for call in (scorer.score, scorer.start, current.change):
        with pytest.raises(ValueError, match="a config is no index into the fleet's tables"):
            call(unknown)
    with pytest.raises(ValueError, match=r"the change has 2 groups, but the current placement has 3"):
        current.change(Shape(config=np.zeros(2, np.int32), held=np.ones((2, 3), np.uint8)))
    with pytest.raises(ValueError, match=r"held is \[3, 2\], but must be \[3, 3\]"):
        current.change(Shape(config=np.zeros(3, np.int32), held=np.ones((3, 2), np.uint8)))
    with pytest.raises(RuntimeError, match=r"call change\(\) first"):
        current.accept()


def test_it_does_not_matter_what_becomes_of_a_shape() -> None:
    tables = fleet_of(4)
    scorer = Scorer(tables, traffic_of(tables, requests=300, rate_hz=30.0))
    start, change = ring(4), ring(4, offset=1)
    current = scorer.start(start)
    start.held[:] = 0
    assert_equal(current.change(change), scorer.score(change))
    current.accept()
    change.held[:] = 0
    assert_equal(current.change(ring(4, offset=2)), scorer.score(ring(4, offset=2)))


def test_runs_are_counted() -> None:
    tables = fleet_of(4)
    scorer = Scorer(tables, traffic_of(tables, requests=300, rate_hz=30.0))
    current = scorer.start(ring(4))
    for offset in range(1, 4):
        current.change(ring(4, offset=offset))
        current.accept()
    assert scorer.runs == 4


def test_no_requests() -> None:
    tables = fleet_of(2)
    scorer = Scorer(tables, traffic_of(tables, requests=0, rate_hz=1.0))
    current = scorer.start(ring(2))
    assert current.score.slo_attainment == 1.0
    assert current.change(ring(2, offset=1)).slo_attainment == 1.0
    current.accept()


def test_memory() -> None:
    """A million requests of eight stages on 32 groups: below 250 MB."""
    tables = fleet_of(32, stages=8)
    traffic = traffic_of(tables, requests=1_000_000, rate_hz=100.0)
    held = Follower(traffic, tables, overhead_s=0.0, groups=32)
    arrays = (*held._recorded, *held._edits)
    assert sum(array.nbytes for array in arrays) < 250e6
