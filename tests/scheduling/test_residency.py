"""Spares: when they are brought, at whose cost, and that everyone is answered whatever happens meanwhile."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.errors import PlacementError
from jaxserve.request import Done, Failed, FailReason, RefuseReason, Rejected, Request
from jaxserve.scheduling import Admitted, Batch, Grid, Scheduler, Spare
from jaxserve.scheduling.dispatch import earliest_finish
from jaxserve.simulator import Reference

inf = math.inf


def scheduler(
    *spares: str, memory_bytes: float = 2.0, restore_s: Sequence[float] = (4.0,), resident: Sequence[str] = ()
) -> Scheduler:
    """One group with room for two of these spares of a byte each; everything takes a second on each stage."""
    made = Scheduler(dispatch=earliest_finish)
    stages = len(restore_s)
    made.add_group(stages, spare_bytes=[memory_bytes] * stages)
    for name in spares:
        spare = Spare.of([1.0] * stages, restore_s)
        made.place(0, name, (((1.0,) * stages), ((1.5,) * stages)), Grid((1, 2), max_batch=2), spare=spare)
    for name in resident:
        made.place(0, name, ((1.0,) * stages,))
    return made


def submit(made: Scheduler, number: int, model: str, arrival_s: float = 0.0, slo_s: float = inf) -> object:
    return made.submit(Request(id=number, model=model, arrival_s=arrival_s, slo_s=slo_s), now_s=arrival_s)


def drive(made: Scheduler, calls: Sequence[tuple[str, float] | tuple[str, float, float]]) -> list[float | None]:
    """When (model, arrival[, SLO]) are done; None where they are not."""
    driver = Reference(made)
    for number, (model, arrival_s, *slo_s) in enumerate(calls):
        driver.arrive(Request(id=number, model=model, arrival_s=arrival_s, slo_s=slo_s[0] if slo_s else inf))
    driver.drain()
    for state in made.groups:
        assert (state.in_flight, state.queue_length, state.is_idle) == (0, 0, True)
    outcomes = [driver.answers[number].outcome for number in range(len(calls))]
    return [outcome.finish_s if isinstance(outcome, Done) else None for outcome in outcomes]


def test_the_first_request_waits_for_the_weights_and_the_next_does_not() -> None:
    assert drive(scheduler("a"), [("a", 0.0), ("a", 10.0), ("a", 10.0)]) == [5.0, 11.0, 12.0]
    assert drive(scheduler("a", restore_s=(4.0, 2.0)), [("a", 0.0)]) == [7.0]


def test_the_swap_is_in_the_predicted_finish() -> None:
    made = scheduler("a", resident=("r",))
    assert drive(made, [("r", 0.0), ("a", 0.0), ("r", 0.0)]) == [1.0, 6.0, 7.0]
    made = scheduler("a")
    rejected = submit(made, 0, "a", slo_s=4.5)
    assert rejected == Rejected(id=0, predicted_finish_s=5.0, retry_after_s=4.0, reason=RefuseReason.COLD)
    rejected = submit(made, 1, "a", slo_s=0.5)
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.retry_after_s) == (RefuseReason.LATE, inf)


def test_those_who_come_meanwhile_share_its_batch() -> None:
    assert drive(scheduler("a"), [("a", 0.0), ("a", 1.0), ("a", 5.0)]) == [5.5, 5.5, 6.5]


def test_what_is_needed_last_leaves() -> None:
    # "a" comes each 20 s, "b" each 100 s; at 225 "b" leaves for "c", though "a" has come longer ago
    calls = [("b", 0.0), *(("a", 20.0 * turn) for turn in range(1, 11)), ("b", 100.0), ("b", 201.0), ("c", 225.0)]
    calls.sort(key=lambda call: call[1])
    finishes = drive(scheduler("a", "b", "c"), [*calls, ("a", 240.0), ("b", 260.0)])
    assert finishes[-3:] == [230.0, 241.0, 265.0]


def test_a_model_that_has_stopped_coming_leaves() -> None:
    calls = [*(("a", 10.0 * turn) for turn in range(10)), ("b", 100.0), ("b", 150.0), ("c", 200.0), ("b", 210.0)]
    assert drive(scheduler("a", "b", "c"), [*calls, ("a", 220.0)])[-3:] == [205.0, 211.0, 225.0]


def test_one_that_is_late_only_as_it_is_cold_has_its_model_brought() -> None:
    made = scheduler("a")
    assert drive(made, [("a", 0.0, 2.0), ("a", 3.0, 2.0), ("a", 5.0, 2.0)]) == [None, 5.0, 6.0]


def test_it_is_not_brought_at_the_cost_of_what_is_needed_sooner() -> None:
    made = scheduler("a", "b", memory_bytes=1.0)
    calls: list[tuple[str, float] | tuple[str, float, float]] = [("a", 0.0), ("b", 1.0, 2.0)]
    calls += [("a", 10.0 * turn) for turn in range(1, 10)]
    calls += [("b", 99.0, 2.0), ("a", 100.0), ("b", 300.0, 2.0), ("b", 310.0, 2.0)]
    finishes = drive(made, calls)
    assert finishes[-4:] == [None, 101.0, None, 311.0]


def test_a_group_where_it_is_there_is_chosen() -> None:
    made = scheduler("a")
    made.add_group(1)
    made.place(1, "a", ((3.0,),))
    assert drive(made, [("a", 0.0), ("a", 0.0), ("a", 10.0)]) == [3.0, 5.0, 11.0]


def test_one_that_never_fits_is_refused() -> None:
    with pytest.raises(
        PlacementError, match=r"spare .a. takes 1 bytes on each device of stage 0, but spares may take 0\.5"
    ):
        scheduler("a", memory_bytes=0.5)


def test_a_load_that_fails_is_tried_again() -> None:
    made = scheduler("a")
    submit(made, 0, "a")
    step = made.stage_done(0, 0, -1, now_s=4.0, failed=True)
    assert (step.outcomes, step.begins) == ([], [(0, 0)])
    step = made.stage_done(0, 0, 0, now_s=5.0, failed=True)
    assert step.outcomes == [Failed(id=0, group=0, reason=FailReason.MODEL)]
    assert drive(made, []) == []
    assert submit(made, 1, "a", 10.0) == Admitted(0, 15.0, -2)


def test_what_a_load_that_fails_has_left_on_some_stages_leaves_with_the_next() -> None:
    made = scheduler("a", "b", "c", restore_s=(4.0, 4.0))
    submit(made, 0, "a")
    made.stage_done(0, 0, -1, now_s=4.0)
    made.stage_done(0, 1, -1, now_s=8.0, failed=True)
    submit(made, 1, "b", 20.0)
    assert made.groups[0].batch(-2).leaving == ("a",)
    submit(made, 2, "c", 20.0)
    assert made.groups[0].batch(-3).leaving == ()


CALLS = st.lists(
    st.tuples(
        st.sampled_from("abcr"),
        st.integers(0, 80).map(lambda tick: tick / 2),
        st.sampled_from((inf, inf, 2.0, 5.0, 8.0, 20.0)),
    ),
    min_size=3,
    max_size=30,
).map(lambda calls: sorted(calls, key=lambda call: call[1]))


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(
    CALLS,
    st.sampled_from((1.0, 2.0)),
    st.sampled_from(((0.5,), (4.0,), (0.5, 2.0), (3.0, 1.0, 0.25))),
    st.dictionaries(st.integers(0, 29), st.sampled_from((0.0, 0.5, 2.0)), max_size=5),
    st.frozensets(st.tuples(st.integers(0, 29), st.integers(0, 2)), max_size=3),
)
def test_stages_only_run_what_is_there(
    calls: Sequence[tuple[str, float, float]],
    memory_bytes: float,
    restore_s: Sequence[float],
    cancels: dict[int, float],
    raises: frozenset[tuple[int, int]],
) -> None:
    made = scheduler("a", "b", "c", memory_bytes=memory_bytes, restore_s=restore_s, resident=("r",))
    there: list[set[str]] = [set() for _ in restore_s]
    begin = made.groups[0]._begin

    def watched(batch: Batch, stage: int, now_s: float) -> None:
        if batch.leaving is not None:
            there[stage] -= set(batch.leaving)
            there[stage].add(batch.model)
            assert len(there[stage]) <= memory_bytes
        else:
            assert batch.model == "r" or batch.model in there[stage]
        begin(batch, stage, now_s)

    made.groups[0]._begin = watched  # type: ignore[method-assign, assignment]

    def stage_time(requests: Sequence[Request], group: int, stage: int, profiled_s: float) -> tuple[float, bool]:
        return profiled_s, any((request.id, stage) in raises for request in requests)

    driver = Reference(made, stage_time=stage_time)
    events = [(arrival_s, 1, number) for number, (_, arrival_s, _) in enumerate(calls)]
    events += [(calls[number][1] + later_s, 0, number) for number, later_s in cancels.items() if number < len(calls)]
    for at_s, kind, number in sorted(events):
        if kind == 0:
            driver.cancel(number, at_s)
        else:
            model, _, slo_s = calls[number]
            driver.arrive(Request(id=number, model=model, arrival_s=at_s, slo_s=slo_s))
    driver.drain()
    assert driver.answers.keys() == set(range(len(calls)))
    assert made.in_flight == ()
    assert (made.groups[0].in_flight, made.groups[0].queue_length) == (0, 0)
    if not raises:
        for number, (_, arrival_s, slo_s) in enumerate(calls):
            outcome = driver.answers[number].outcome
            assert not isinstance(outcome, Done) or outcome.finish_s - arrival_s <= slo_s
            assert not isinstance(outcome, Failed) or outcome.reason is FailReason.CANCELLED
