"""The choice of options is the best there is, and one without a solver is allowed at least."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.errors import PlacementError
from jaxserve.parallel.selection import Pair, Selection, select

CLOSE = 1 + 1e-5  # the solver stops at a gap of 1e-6


@st.composite
def selections(draw):
    """Few variables of few options, and pairs among them, some of them several times, some with itself."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    counts = [int(count) for count in random.integers(1, 4, random.integers(1, 6))]
    stages = int(random.integers(1, 4))
    pairs = []
    for _ in range(random.integers(0, 8)):
        first, second = random.integers(0, len(counts), 2)
        shape = random.integers(1, 4, 2)
        pairs.append(
            Pair(
                first=int(first),
                second=int(second),
                rows=random.integers(0, shape[0], counts[first]),
                columns=random.integers(0, shape[1], counts[second]),
                cost=random.choice([0.0, 1e-6, 3e-6, 1e-5], shape),
            )
        )
    return Selection(
        costs=[random.choice([0.0, 1e-6, 2e-6, 5e-6], count) for count in counts],
        memory=[random.integers(0, 10, (stages, count)).astype(float) for count in counts],
        pairs=pairs,
    )


def choices(selection, budget_bytes=math.inf):
    """All that are within the budget."""
    everything = itertools.product(*(range(len(cost)) for cost in selection.costs))
    return [each for each in everything if selection.bytes(each).max() <= budget_bytes]


@settings(max_examples=150, deadline=None)
@given(selection=selections())
def test_the_best_without_a_budget(selection):
    best = min(map(selection.cost, choices(selection)))
    found = select(selection)
    assert found.status == "optimal"
    assert selection.cost(found.options) <= best * CLOSE + 1e-15
    quick = select(selection, time_limit_s=0)
    assert quick.status == "descent"
    assert selection.cost(quick.options) >= best / CLOSE


@settings(max_examples=150, deadline=None)
@given(selection=selections(), share=st.floats(0, 1))
def test_the_best_within_a_budget(selection, share):
    every = [selection.bytes(each).max() for each in choices(selection)]
    budget = round(min(every) + share * (max(every) - min(every)))
    best = min(map(selection.cost, choices(selection, budget)))
    found = select(selection, budget_bytes=budget)
    assert found.status == "optimal"
    assert selection.bytes(found.options).max() <= budget
    assert selection.cost(found.options) <= best * CLOSE + 1e-15


@st.composite
def shaped(draw):
    """As the intra-op pass makes them: an option takes the same share of all of a variable's weights."""
    selection = draw(selections())
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    memory = [
        random.integers(0, 10, (len(each), 1)) * random.choice([1.0, 0.5, 0.25], each.shape[1])
        for each in selection.memory
    ]
    return Selection(costs=selection.costs, memory=memory, pairs=selection.pairs)


@settings(max_examples=150, deadline=None)
@given(selection=shaped(), share=st.floats(0, 1))
def test_descent_keeps_the_budget(selection, share):
    most = max(selection.bytes(each).max() for each in choices(selection))
    budget = selection.least_bytes + share * (most - selection.least_bytes)
    best = min(map(selection.cost, choices(selection, budget)))
    found = select(selection, budget_bytes=budget, time_limit_s=0)
    assert found.status == "descent"
    assert selection.bytes(found.options).max() <= budget * (1 + 1e-12)
    assert selection.cost(found.options) >= best / CLOSE


def selection_of(costs, pairs=(), memory=None):
    arrays = [np.array(cost, float) for cost in costs]
    memory = memory or [[[0.0] * len(cost)] for cost in costs]
    return Selection(costs=arrays, memory=[np.array(each, float) for each in memory], pairs=list(pairs))


def pair(first, second, cost, *, rows=(0, 1), columns=(0, 1)):
    return Pair(first=first, second=second, rows=np.array(rows), columns=np.array(columns), cost=np.array(cost, float))


def test_two_pairs_of_the_same_variables_add_up():
    differ = pair(0, 1, [[0, 2], [2, 0]])
    selection = selection_of([[0, 3], [3, 0]], [differ, differ])
    assert selection.cost((0, 1)) == 4
    found = select(selection)
    assert selection.cost(found.options) == 3
    assert found.options in {(0, 0), (1, 1)}


def test_a_pair_of_a_variable_with_itself():
    """Tied neighbours: what one gives as option a the next takes as option a."""
    selection = selection_of([[0, 1]], [pair(0, 0, [[5, 0], [0, 0]])])
    assert select(selection).options == (1,)
    assert select(selection, time_limit_s=0).options == (1,)


def test_pairs_with_one_layout_on_a_side():
    to_one = pair(0, 1, [[4], [0]], columns=(0, 0))
    from_one = pair(0, 1, [[0, 4]], rows=(0, 0))
    selection = selection_of([[0, 1], [1, 0]], [to_one, from_one])
    assert select(selection).options == (1, 0)


def test_every_stage_has_the_budget_for_itself():
    """Both together take 12 bytes, but each stage only 6."""
    memory = [[[6, 1], [0, 0]], [[0, 0], [6, 1]]]
    selection = selection_of([[0, 1], [0, 1]], memory=memory)
    assert selection.least_bytes == 1
    assert select(selection, budget_bytes=6).options == (0, 0)
    assert select(selection, budget_bytes=5).options == (1, 1)


@pytest.mark.parametrize("time_limit_s", [0, 10])
def test_descent_starts_where_the_budget_holds(time_limit_s):
    """The cheapest option is above the budget, and it is the lightest by the sum over stages, too."""
    selection = selection_of([[0, 1]], memory=[[[5, 3], [0, 3]]])
    assert select(selection, budget_bytes=4, time_limit_s=time_limit_s).options == (1,)


@pytest.mark.parametrize("time_limit_s", [0, 10])
def test_where_no_choice_fits_it_is_said(time_limit_s):
    """Each stage for itself could keep the budget, both at once cannot."""
    selection = selection_of([[0, 1]], memory=[[[3, 0], [0, 3]]])
    assert selection.least_bytes == 0
    with pytest.raises(PlacementError, match=r"within 2 bytes"):
        select(selection, budget_bytes=2, time_limit_s=time_limit_s)
