"""The cuttings are all trade-offs between the slowest and the heaviest stage, against every cutting there is."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.errors import PlacementError
from jaxserve.parallel.clusters import Clusters
from jaxserve.parallel.inter_op import Cutting, choose, pareto


def clusters(seconds, weights=None, weight_bytes=None):
    """Clusters of 10 equations each; each with a weight of 100 bytes of its own, unless weights are given."""
    count = len(seconds)
    return Clusters(
        places=tuple(range(10, 10 * count, 10)),
        seconds=tuple(map(float, seconds)),
        live_bytes=(1,) * (count - 1),
        weights=tuple(map(frozenset, weights or ({index} for index in range(count)))),
        weight_bytes=tuple(weight_bytes or (100,) * count),
    )


def cuttings_of(clusters, stages, transfer_s):
    """Every cutting without an empty stage, by its definition."""
    count = len(clusters.seconds)
    for places in itertools.combinations(range(1, count), stages - 1):
        slices = list(itertools.pairwise([0, *places, count]))
        if not all(any(clusters.seconds[start:end]) for start, end in slices):
            continue
        stage_s = tuple(sum(clusters.seconds[start:end]) + (0.0, *transfer_s)[start] for start, end in slices)
        read = [frozenset().union(*clusters.weights[start:end]) for start, end in slices]
        stage_bytes = tuple(sum(clusters.weight_bytes[weight] for weight in each) for each in read)
        yield Cutting(
            places=tuple(clusters.places[place - 1] for place in places),
            slowest_s=max(stage_s),
            heaviest_bytes=max(stage_bytes),
            stage_s=stage_s,
            stage_weight_bytes=stage_bytes,
            total_s=sum(stage_s),
        )


def trade_off(cutting):
    return cutting.slowest_s, cutting.heaviest_bytes


@st.composite
def problems(draw):
    count = draw(st.integers(1, 8))
    seconds = draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    weights = draw(st.lists(st.sets(st.integers(0, 4), max_size=3), min_size=count, max_size=count))
    weight_bytes = draw(st.lists(st.integers(0, 9), min_size=5, max_size=5))
    transfer_s = draw(st.lists(st.integers(0, 3).map(float), min_size=count - 1, max_size=count - 1))
    return clusters(seconds, weights, weight_bytes), draw(st.integers(1, 5)), transfer_s


@given(problem=problems(), budget_bytes=st.integers(0, 40))
def test_every_trade_off_and_nothing_else(problem, budget_bytes):
    given_clusters, stages, transfer_s = problem
    possible = list(cuttings_of(given_clusters, stages, transfer_s))
    if not possible:
        if stages > 1:
            with pytest.raises(PlacementError, match=f"{stages} stages were asked for"):
                pareto(given_clusters, stages=stages, transfer_s=transfer_s)
        return
    best = {
        trade_off(one)
        for one in possible
        if not any(
            other.slowest_s <= one.slowest_s
            and other.heaviest_bytes <= one.heaviest_bytes
            and trade_off(other) != trade_off(one)
            for other in possible
        )
    }
    found = pareto(given_clusters, stages=stages, transfer_s=transfer_s)
    assert [trade_off(one) for one in found] == sorted(best)
    for one in found:
        assert one in possible
        alike = [other for other in possible if trade_off(other) == trade_off(one)]
        least = min((other.total_s, sum(each**2 for each in other.stage_s)) for other in alike)
        assert (one.total_s, sum(each**2 for each in one.stage_s)) == least
    within = tuple(one for one in found if one.heaviest_bytes <= budget_bytes)
    if within:
        assert pareto(given_clusters, stages=stages, transfer_s=transfer_s, budget_bytes=budget_bytes) == within
        return
    for refused in (
        lambda: pareto(given_clusters, stages=stages, transfer_s=transfer_s, budget_bytes=budget_bytes),
        lambda: choose(found, budget_bytes=budget_bytes),
    ):
        least_bytes = min(one.heaviest_bytes for one in possible)
        with pytest.raises(PlacementError, match=f"{least_bytes} bytes.* {least_bytes - budget_bytes} more than the"):
            refused()


@given(
    layer=st.floats(1e-6, 1e3),
    layers_in_each=st.integers(1, 8),
    stages=st.integers(1, 12),
    transfer=st.floats(0, 0.01),
)
def test_equal_layers_give_equal_stages(layer, layers_in_each, stages, transfer):
    """Whatever their sums round to: no trade-off and no tie is made out of the last bit."""
    count = layers_in_each * stages
    (found,) = pareto(clusters([layer] * count), stages=stages, transfer_s=[transfer * layer] * (count - 1))
    assert found.places == tuple(10 * layers_in_each * stage for stage in range(1, stages))
    assert found.stage_weight_bytes == (100 * layers_in_each,) * stages


def test_layers_between_embeddings_and_a_head():
    """24 layers of 1 s and 100 bytes, embeddings and a head of little time that share a large weight."""
    layers = [{index} for index in range(24)]
    transformer = clusters([0.01, *[1.0] * 24, 0.1], [{24}, *layers, {24}], [100] * 24 + [450])
    cuttings = pareto(transformer, stages=4, transfer_s=[0.001] * 25)
    fastest, lightest = (choose(cuttings, objective=objective) for objective in ("latency", "memory"))
    assert fastest.places == (70, 130, 190)
    assert fastest.slowest_s <= 1.1 * fastest.total_s / 4
    assert fastest.stage_weight_bytes == (1050, 600, 600, 1050)
    assert lightest.stage_weight_bytes == (850, 800, 800, 850)  # a tied weight is in both of its stages
    assert lightest.slowest_s > fastest.slowest_s


def test_least_transfers_then_evenness_break_ties():
    (found,) = pareto(clusters([6, 1, 1, 1]), stages=3, transfer_s=[0.0, 0.5, 0.25], budget_bytes=200)
    assert found.stage_s == (6.0, 2.0, 1.25)
    (found, *_) = pareto(clusters([6, 1, 1, 1, 1, 0]), stages=3, transfer_s=[0.0] * 5)
    assert found.stage_s == (6.0, 2.0, 2.0)


def test_no_stage_computes_nothing():
    found = pareto(clusters([0, 1, 0, 0, 1, 0]), stages=2, transfer_s=[9.0, 9.0, 1.0, 9.0, 9.0])
    assert [one.places for one in found] == [(30,)]
    with pytest.raises(
        PlacementError,
        match="3 stages were asked for, but each must compute something, and the program can be cut into 2 "
        "that do; use at most 2, or where cuts are named, name more",
    ):
        pareto(clusters([0, 1, 0, 0, 1, 0]), stages=3, transfer_s=[0.0] * 5)
    with pytest.raises(PlacementError, match="0 stages were asked for"):
        pareto(clusters([1]), stages=0, transfer_s=())


def test_one_transfer_for_each_place():
    with pytest.raises(PlacementError, match="2 transfers were given, but 2 clusters have 1 places between them"):
        pareto(clusters([1, 1]), stages=1, transfer_s=[0.0, 0.0])


def cutting(slowest_s, heaviest_bytes):
    return Cutting(
        places=(1,),
        slowest_s=slowest_s,
        heaviest_bytes=heaviest_bytes,
        stage_s=(slowest_s, slowest_s / 2),
        stage_weight_bytes=(heaviest_bytes, 1),
        total_s=1.5 * slowest_s,
    )


CUTTINGS = [cutting(1.0, 900), cutting(1.04, 700), cutting(1.2, 500), cutting(2.0, 400)]


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, 1),
        ({"objective": "balance", "tolerance": 0.0}, 0),
        ({"objective": "balance", "tolerance": 0.25}, 2),
        ({"objective": "balance", "budget_bytes": 600}, 2),
        ({"objective": "balance", "budget_bytes": 600, "tolerance": 1.0}, 3),
        ({"objective": "latency"}, 0),
        ({"objective": "latency", "budget_bytes": 899}, 1),
        ({"objective": "memory"}, 3),
        ({"objective": "memory", "budget_bytes": 400}, 3),
    ],
)
def test_what_is_chosen(options, chosen):
    assert choose(CUTTINGS, **options) is CUTTINGS[chosen]


def test_nothing_to_choose():
    with pytest.raises(PlacementError, match=r"the heaviest holds at least 400 bytes.* 1 more than the 399"):
        choose(CUTTINGS, budget_bytes=399.5)
    with pytest.raises(PlacementError, match="there is no cutting to choose from"):
        choose([])
