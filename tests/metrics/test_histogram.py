"""Histograms count each value once, under the first bound that is not below it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.metrics.histogram import ERROR_BOUNDS_S, LATENCY_BOUNDS_S, ROWS_BOUNDS, Histogram

BOUNDS = st.sampled_from((LATENCY_BOUNDS_S, ERROR_BOUNDS_S, ROWS_BOUNDS))


@st.composite
def values_near(draw: st.DrawFn) -> tuple[tuple[float, ...], list[float]]:
    bounds = draw(BOUNDS)
    beside = st.tuples(st.sampled_from(bounds), st.sampled_from((-math.inf, math.inf))).map(
        lambda pair: math.nextafter(*pair)
    )
    anything = st.floats(-1e6, 1e6)
    return bounds, draw(st.lists(st.one_of(st.sampled_from(bounds), beside, anything)))


@given(values_near())
def test_as_many_are_at_most_a_bound_as_a_scrape_is_told(case: tuple[tuple[float, ...], list[float]]) -> None:
    bounds, values = case
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    for index, bound in enumerate(bounds):
        assert sum(histogram.counts[: index + 1]) == sum(value <= bound for value in values)
    assert histogram.count == sum(histogram.counts) == len(values)
    assert histogram.sum == pytest.approx(math.fsum(values), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("bounds", [LATENCY_BOUNDS_S, ERROR_BOUNDS_S, ROWS_BOUNDS])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))
