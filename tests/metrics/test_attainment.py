"""Attainment over windows, against a list of all that ended."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.metrics import WINDOWS
from jaxserve.metrics.attainment import Attainment

SLOT_S = 10.0
STEPS_S = st.one_of(
    st.just(0.0),
    st.floats(0.0, 30.0),
    st.sampled_from((10.0, 60.0, 300.0, 3590.0, 3600.0, 3610.0)),
    st.floats(0.0, 1e5),
)
EVENTS = st.lists(st.tuples(STEPS_S, st.sampled_from((True, False, None))), max_size=60)  # None: somebody looks


def expected(ended: list[tuple[float, bool]], window_s: float, now_s: float) -> float | None:
    """The share of those that ended since the begin of the ten seconds in which the window begins."""
    since_s = (math.floor(now_s / SLOT_S) - window_s / SLOT_S) * SLOT_S
    inside = [in_time for at_s, in_time in ended if at_s >= since_s]
    return sum(inside) / len(inside) if inside else None


@given(st.floats(0.0, 1e9), EVENTS)
def test_a_window_holds_what_ended_in_it(begin_s: float, events: list[tuple[float, bool | None]]) -> None:
    attainment, ended, now_s = Attainment(), list[tuple[float, bool]](), begin_s
    for step_s, in_time in events:
        now_s += step_s
        if in_time is None:
            for window_s in WINDOWS.values():
                assert attainment.over(window_s, now_s) == expected(ended, window_s, now_s)
        else:
            attainment.note(now_s, in_time=in_time)
            ended.append((math.floor(now_s / SLOT_S) * SLOT_S, in_time))
    for window_s in WINDOWS.values():
        assert attainment.over(window_s, now_s) == expected(ended, window_s, now_s)


@pytest.mark.parametrize(
    ("window", "last_s", "gone_s"), [("1m", 69.5, 70.0), ("5m", 309.5, 310.0), ("1h", 3609.5, 3610.0)]
)
def test_what_ended_leaves_a_window_within_ten_seconds(window: str, last_s: float, gone_s: float) -> None:
    attainment = Attainment()
    attainment.note(5.0, in_time=True)
    attainment.note(6.0, in_time=False)
    assert attainment.over(WINDOWS[window], last_s) == 0.5
    assert attainment.over(WINDOWS[window], gone_s) is None


def test_what_ended_a_moment_ago_does_not_undo_what_was_counted_since() -> None:
    attainment = Attainment()
    attainment.note(20.001, in_time=False)  # a deadline passes, and then
    attainment.note(19.999, in_time=True)  # an answer is reported that was there before
    attainment.note(20.002, in_time=True)
    assert attainment.over(60.0, 20.002) == 2 / 3
    attainment.note(20.002 - 2 * 3600.0, in_time=True)
    assert attainment.over(3600.0, 20.002) == 2 / 3
