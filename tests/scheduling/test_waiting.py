"""Models that wait for company: who is held, for how long, and who ends it."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.request import Done, Failed, FailReason, Rejected, Request
from jaxserve.scheduling import DISPATCHES, Admitted, Dispatch, Grid, Scheduler
from jaxserve.simulator import Reference

inf = math.inf
LATENCIES = {"m": ((1.0,), (1.25,), (1.5,)), "n": ((1.0,),)}


def scheduler(max_wait_s: float = 0.5) -> Scheduler:
    """One group with "m", that waits for company up to four, and "n", that does not."""
    made = Scheduler()
    made.add_group(1)
    made.place(0, "m", LATENCIES["m"], Grid((1, 2, 4), max_batch=4), max_wait_s=max_wait_s)
    made.place(0, "n", LATENCIES["n"])
    return made


def drive(
    calls: Sequence[tuple[str, float, float]], *, cancels: Sequence[tuple[int, float]] = (), max_wait_s: float = 0.5
) -> list[float | None]:
    """When (model, arrival, SLO) are done; None where they are not."""
    made = scheduler(max_wait_s)
    driver = Reference(made)
    events = [(arrival_s, 1, number) for number, (_, arrival_s, _) in enumerate(calls)]
    events += [(at_s, 0, number) for number, at_s in cancels]
    for at_s, kind, number in sorted(events):
        if kind == 0:
            driver.cancel(number, at_s)
        else:
            model, arrival_s, slo_s = calls[number]
            driver.arrive(Request(id=number, model=model, arrival_s=arrival_s, slo_s=slo_s))
    driver.drain()
    assert (made.in_flight, made.groups[0].is_idle, made.groups[0].queue_length) == ((), True, 0)
    assert made.next_release_s == inf
    given_up = {number for number, _ in cancels}
    for number, answer in driver.answers.items():
        assert answer.admitted is None or number in given_up or isinstance(answer.outcome, Done)
    outcomes = [driver.answers[number].outcome for number in range(len(calls))]
    return [outcome.finish_s if isinstance(outcome, Done) else None for outcome in outcomes]


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        pytest.param([("m", 0.0, inf)], [1.5], id="nobody comes"),
        pytest.param([("m", 0.0, inf), ("m", 0.25, inf)], [1.75, 1.75], id="somebody does"),
        pytest.param([("m", 0.0, inf), ("m", 0.5, inf)], [1.5, 2.5], id="as it begins"),
        pytest.param([("m", 0.0, inf)] * 3 + [("m", 0.25, inf)], [1.75] * 4, id="a full batch begins"),
        pytest.param([("m", 0.0, inf), ("n", 0.25, inf)], [1.25, 2.25], id="another model ends it"),
        pytest.param([("n", 0.0, inf)], [1.0], id="which does not wait itself"),
        pytest.param([("m", 0.0, 1.5)], [1.25], id="half of what is left until the deadline"),
        pytest.param([("m", 0.0, 1.0)], [1.0], id="nothing is left"),
        pytest.param(
            # with two of them 0.5 is left at 0.25, so it begins at 0.5 all the same; the second has 0.25 left
            [("m", 0.0, inf), ("m", 0.25, 1.5)],
            [1.625, 1.625],
            id="half of what the one who joins has left",
        ),
        pytest.param(
            # two together would be late for the first, which is told to begin instead
            [("m", 0.0, 1.4), ("m", 0.1875, inf)],
            [1.1875, 2.1875],
            id="one that does not fit in",
        ),
        pytest.param([("m", 0.0, inf), ("m", 0.625, 1.0)], [1.5, None], id="what waited has begun later than it came"),
        pytest.param([("m", 0.0, inf), ("m", 1.0, inf), ("m", 1.0, inf)], [1.5, 2.75, 2.75], id="behind one that runs"),
    ],
)
def test_holding(calls: Sequence[tuple[str, float, float]], expected: Sequence[float]) -> None:
    assert drive(calls) == pytest.approx(expected, abs=1e-12)


def test_those_who_give_up_while_they_are_held() -> None:
    assert drive([("m", 0.0, inf), ("m", 0.25, inf)], cancels=[(0, 0.375)]) == [None, 1.5]
    assert drive([("m", 0.0, inf), ("m", 1.0, inf)], cancels=[(0, 0.25)]) == [None, 2.5]


def test_what_is_promised_is_the_end_of_the_wait() -> None:
    made = scheduler()
    assert made.submit(Request(id=0, model="m", arrival_s=0.0), now_s=0.0) == Admitted(0, 1.5, None)
    assert made.next_release_s == 0.5
    assert made.submit(Request(id=1, model="m", arrival_s=0.25), now_s=0.25) == Admitted(0, 1.75, None)
    late = made.submit(Request(id=2, model="n", arrival_s=0.25, slo_s=0.5), now_s=0.25)
    assert isinstance(late, Rejected)
    assert late.predicted_finish_s == 2.5  # as if the others began now
    assert made.release(now_s=0.375) == []
    assert made.release(now_s=0.5) == [(0, 0)]
    assert made.next_release_s == inf


@pytest.mark.parametrize("dispatch", DISPATCHES.values())
def test_company_is_sought_where_it_is_waited_for(dispatch: Dispatch) -> None:
    made = Scheduler(dispatch=dispatch)
    for group in range(3):
        made.add_group(1)
        made.place(group, "m", LATENCIES["m"], Grid((1, 2, 4), max_batch=4), max_wait_s=0.5)
    admitted = [made.submit(Request(id=number, model="m", arrival_s=0.0), now_s=0.0) for number in range(5)]
    assert [each.group for each in admitted if isinstance(each, Admitted)] == [0, 0, 0, 0, 1]


def test_a_lost_group_holds_nobody() -> None:
    made = scheduler()
    made.submit(Request(id=0, model="m", arrival_s=0.0), now_s=0.0)
    assert made.fail_group(0, now_s=0.25) == [Failed(id=0, group=0, reason=FailReason.GROUP)]
    assert made.next_release_s == inf
    assert made.release(now_s=0.5) == []


CALLS = st.lists(
    st.tuples(
        st.sampled_from("mmmn"),
        st.integers(0, 60).map(lambda tick: tick / 8),
        st.sampled_from((inf, 1.0, 1.1, 1.5, 2.0, 3.0, 6.0)),
    ),
    min_size=2,
    max_size=25,
).map(lambda calls: sorted(calls, key=lambda call: call[1]))
CANCELS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 60).map(lambda tick: tick / 8)), max_size=2)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(CALLS, CANCELS, st.sampled_from((0.1, 0.5, 2.0)))
def test_promises_are_kept(
    calls: Sequence[tuple[str, float, float]], cancels: Sequence[tuple[int, float]], max_wait_s: float
) -> None:
    cancels = [(number, max(at_s, calls[number][1])) for number, at_s in cancels]
    for (_, arrival_s, slo_s), finish_s in zip(
        calls, drive(calls, cancels=cancels, max_wait_s=max_wait_s), strict=True
    ):
        assert finish_s is None or finish_s - arrival_s <= slo_s
