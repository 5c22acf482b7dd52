"""The scheduler, decision by decision."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from jaxserve.request import Done, Failed, FailReason, RefuseReason, Rejected, Request
from jaxserve.scheduling import ALONE, Admitted, Scheduler
from jaxserve.scheduling.latencies import StageLatencies
from jaxserve.simulator import Reference


def scheduler(*groups: tuple[float, ...], overhead_s: float = 0.0) -> Scheduler:
    """One group for each tuple of stage latencies; all hold model "m"."""
    made = Scheduler(overhead_s=overhead_s)
    for latency_s in groups:
        made.place(made.add_group(len(latency_s)), "m", (latency_s,))
    return made


def request(number: int, arrival_s: float = 0.0, slo_s: float = math.inf) -> Request:
    return Request(id=number, model="m", arrival_s=arrival_s, slo_s=slo_s)


def submit(made: Scheduler, number: int, arrival_s: float = 0.0, slo_s: float = math.inf) -> Admitted | Rejected:
    return made.submit(request(number, arrival_s, slo_s), now_s=arrival_s)


def test_a_pipeline_begins_the_next_request_as_its_first_stage_frees() -> None:
    made = scheduler((1.0, 2.0))
    assert submit(made, 0) == Admitted(0, 3.0, 0)
    assert submit(made, 1) == Admitted(0, 5.0, None)
    step = made.stage_done(0, 0, 0, now_s=1.0)
    assert step.outcomes == []
    assert step.begins == [(1, 0), (0, 1)]
    assert made.stage_done(0, 0, 1, now_s=2.0).begins == []
    step = made.stage_done(0, 1, 0, now_s=3.0)
    assert step.outcomes == [Done(id=0, group=0, finish_s=3.0)]
    assert step.begins == [(1, 1)]
    assert made.stage_done(0, 1, 1, now_s=5.0).outcomes == [Done(id=1, group=0, finish_s=5.0)]
    assert made.in_flight == ()


def test_a_request_that_would_be_late_is_rejected_and_leaves_no_trace() -> None:
    made = scheduler((1.0,), overhead_s=0.25)
    assert submit(made, 0, slo_s=1.25) == Admitted(0, 1.25, 0)
    assert submit(made, 1, slo_s=2.0) == Rejected(id=1, predicted_finish_s=2.25, retry_after_s=0.25)
    assert submit(made, 2, slo_s=2.25) == Admitted(0, 2.25, None)


def test_a_model_on_no_group_is_rejected() -> None:
    assert submit(Scheduler(), 0) == Rejected(id=0, predicted_finish_s=math.inf, reason=RefuseReason.DOWN)


def test_the_group_whose_last_stage_frees_first_gets_the_request_and_the_lowest_on_a_tie() -> None:
    made = scheduler((1.0,), (0.5,), (0.5,))
    groups = [submit(made, number) for number in range(5)]
    assert [decision.group for decision in groups if isinstance(decision, Admitted)] == [0, 1, 2, 1, 2]


def test_time_that_a_cancelled_request_would_have_taken_is_given_back() -> None:
    made = scheduler((1.0,))
    for number in range(3):
        submit(made, number)
    assert made.cancel(1) == Failed(id=1, group=0, reason=FailReason.CANCELLED)
    assert made.cancel(1) is None
    assert submit(made, 3) == Admitted(0, 3.0, None)
    assert made.stage_done(0, 0, 0, now_s=1.0).begins == [(0, 2)]


def test_a_request_cancelled_on_a_stage_goes_no_further() -> None:
    made = scheduler((1.0, 1.0))
    submit(made, 0)
    made.cancel(0)
    assert submit(made, 1) == Admitted(0, 3.0, None)
    step = made.stage_done(0, 0, 0, now_s=1.0)
    assert step.outcomes == []
    assert step.begins == [(0, 1)]
    assert made.groups[0].in_flight == 1


def test_when_to_try_again() -> None:
    made = scheduler((1.0,))
    submit(made, 0)
    rejected = submit(made, 1, slo_s=1.5)
    assert isinstance(rejected, Rejected)
    assert rejected.retry_after_s == 0.5
    assert submit(made, 2, arrival_s=0.5, slo_s=1.5) == Admitted(0, 2.0, None)
    assert submit(made, 3, slo_s=0.75) == Rejected(id=3, predicted_finish_s=3.0, retry_after_s=math.inf)


def test_a_full_queue_takes_nobody_in_until_there_is_room() -> None:
    made = Scheduler(max_queue=2)
    made.place(made.add_group(1), "m", ((1.0,),))
    for number in range(3):
        submit(made, number)
    rejected = submit(made, 3, arrival_s=0.25)
    assert rejected == Rejected(id=3, predicted_finish_s=4.0, retry_after_s=0.75, reason=RefuseReason.FULL)
    made.cancel(2)
    assert submit(made, 4, arrival_s=0.5) == Admitted(0, 3.0, None)
    assert isinstance(submit(made, 5, arrival_s=0.5), Rejected)
    made.stage_done(0, 0, 0, now_s=1.0)
    assert submit(made, 6, arrival_s=1.0) == Admitted(0, 4.0, None)


def test_a_late_stage_moves_the_predictions_behind_it() -> None:
    made = scheduler((1.0,))
    submit(made, 0)
    submit(made, 1)
    assert submit(made, 2, arrival_s=1.5) == Admitted(0, 3.5, None)  # 0 is overdue: it may end now, no sooner
    made.stage_done(0, 0, 0, now_s=2.0)
    # 1, 2 and 3 are expected to take a quarter more than when they arrived, by what 0 has shown
    assert submit(made, 3, arrival_s=2.0) == Admitted(0, 5.75, None)


def test_an_early_stage_too() -> None:
    made = scheduler((1.0,))
    submit(made, 0)
    made.stage_done(0, 0, 0, now_s=0.5)
    assert submit(made, 1, arrival_s=0.5) == Admitted(0, 1.5, 1)


def test_a_request_expires_after_its_deadline_and_not_at_it() -> None:
    made = scheduler((1.0,))
    submit(made, 0, slo_s=1.0)
    assert made.next_deadline_s == 1.0
    assert made.expire(now_s=1.0) == []
    assert made.next_deadline_s == math.nextafter(1.0, 2.0)
    assert made.expire(now_s=made.next_deadline_s) == [Failed(id=0, group=0, reason=FailReason.EXPIRED)]
    assert made.next_deadline_s == math.inf
    assert made.stage_done(0, 0, 0, now_s=2.0).outcomes == []


def test_a_model_that_raises_fails_its_request_alone() -> None:
    made = scheduler((1.0, 1.0))
    submit(made, 0)
    submit(made, 1)
    step = made.stage_done(0, 0, 0, now_s=1.0, failed=True)
    assert step.outcomes == [Failed(id=0, group=0, reason=FailReason.MODEL)]
    assert step.begins == [(0, 1)]


def test_a_lost_group_fails_what_is_inside_and_gets_nothing_until_it_is_restored() -> None:
    made = scheduler((1.0,), (1.0,))
    for number in range(4):
        submit(made, number)
    assert [failed.id for failed in made.fail_group(0, now_s=0.5)] == [0, 2]
    assert submit(made, 4, arrival_s=0.5) == Admitted(1, 3.0, None)
    made.fail_group(1, now_s=0.5)
    assert submit(made, 5, arrival_s=0.5) == Rejected(id=5, predicted_finish_s=math.inf, reason=RefuseReason.DOWN)
    made.restore_group(0)
    assert submit(made, 6, arrival_s=0.75) == Admitted(0, 1.75, 6)


def test_a_report_on_a_request_that_is_gone_is_ignored() -> None:
    made = scheduler((1.0, 1.0))
    submit(made, 0)
    made.fail_group(0, now_s=0.5)
    made.restore_group(0)
    submit(made, 1, arrival_s=0.5)
    assert made.stage_done(0, 0, 0, now_s=1.0).outcomes == []
    assert made.stage_done(0, 0, 1, now_s=1.5).begins == [(1, 1)]


def test_a_withdrawn_model_gets_no_more_requests_but_what_is_inside_goes_on() -> None:
    made = scheduler((1.0,))
    submit(made, 0)
    made.withdraw(0, "m")
    assert isinstance(submit(made, 1), Rejected)
    assert made.groups[0].holds("m")
    assert made.stage_done(0, 0, 0, now_s=1.0).outcomes == [Done(id=0, group=0, finish_s=1.0)]
    assert not made.groups[0].holds("m")


def test_settled_deadlines_do_not_pile_up() -> None:
    made = scheduler((1e-6,))
    for number in range(10_000):
        submit(made, number, arrival_s=float(number), slo_s=1e9)
        made.stage_done(0, 0, number, now_s=number + 1e-6)
    assert len(made._deadlines) < 200


def run_one(made: Scheduler, number: int, arrival_s: float, takes_s: float) -> None:
    submit(made, number, arrival_s)
    made.stage_done(0, 0, number, now_s=arrival_s + takes_s)


def test_estimates_follow_what_is_observed_and_come_back() -> None:
    made = scheduler((1.0,))
    for number in range(40):
        run_one(made, number, 10.0 * number, 3.0)
    assert made.drift("m") == pytest.approx(3.0, rel=0.011)
    submit(made, 100, 1000.0)
    late = submit(made, 101, 1000.0, slo_s=3.9)
    assert isinstance(late, Rejected)
    assert late.predicted_finish_s == pytest.approx(1004.0, abs=0.03)  # the first by its profile, as it found it idle
    made.stage_done(0, 0, 100, now_s=1001.0)
    for number in range(200, 240):
        run_one(made, number, 10.0 * number, 1.0)
    assert made.drift("m") == pytest.approx(1.0, rel=0.011)


def test_one_stall_counts_for_no_more_than_a_doubling() -> None:
    made = scheduler((1.0,))
    run_one(made, 0, 0.0, 1000.0)
    assert made.drift("m") == 1.25


def test_an_idle_group_takes_what_its_profile_allows_whatever_was_observed() -> None:
    made = scheduler((1.0,))
    for number in range(40):
        run_one(made, number, 10.0 * number, 5.0)
    assert submit(made, 100, 1000.0, slo_s=1.0) == Admitted(0, 1001.0, 100)


def test_rounding_and_what_nobody_waits_for_correct_nothing() -> None:
    made = scheduler((0.1,), (0.1,))
    for number in range(20):
        run_one(made, number, number / 3, 0.1)
    submit(made, 50, 100.0)
    made.cancel(50)
    made.stage_done(0, 0, 50, now_s=100.0)
    submit(made, 51, 200.0)
    made.stage_done(1, 0, 51, now_s=200.0, failed=True)
    assert made.drift("m") == 1.0


@pytest.mark.parametrize("replicas", [1, 3])
def test_placing_again_replaces_the_latencies(replicas: int) -> None:
    made = scheduler(*[(1.0,)] * replicas)
    made.place(0, "m", ((0.25,),))
    assert submit(made, 0) == Admitted(0, 0.25, 0)


def test_the_tail_is_what_99_of_100_keep() -> None:
    generator = np.random.default_rng(0)
    latencies = StageLatencies(((1.0,),), ALONE)
    below = 0
    for turn in range(20_000):
        ratio = float(generator.lognormal(0.0, 0.2))
        below += turn >= 10_000 and ratio <= latencies.tail
        latencies._followed[0][0] = 1.0  # so that the ratio is to what it is drawn by
        latencies.observe(0, 0, ratio)
    assert below / 10_000 == pytest.approx(0.99, abs=0.004)


def test_a_stage_that_is_slow_at_times_is_not_stuck_as_soon() -> None:
    def stuck_at(seconds: list[float]) -> float:
        made = Scheduler()
        made.add_group(1)
        made.place(0, "m", ((1.0,),))
        now_s = 0.0
        for number, takes_s in enumerate(seconds):
            submit(made, number, now_s)
            now_s += takes_s
            made.stage_done(0, 0, number, now_s=now_s)
        submit(made, len(seconds), now_s)
        return next(
            float(later_s) for later_s in range(1000) if made.find_stuck(now_s=now_s + later_s, stuck_after_s=5.0)
        )

    steady = stuck_at([0.99, 1.01] * 1000)
    assert 10 <= steady <= 12
    assert stuck_at([0.99, 1.01] * 750 + [1.0, 1.0, 1.0, 1.0, 8.0] * 100) > 2 * steady


def test_jitter_either_way_is_no_reason_to_work_clocks_out_anew() -> None:
    """The error of the clocks is bounded by the range of a sum, not by the sum of what was off."""
    made = scheduler((1.0,))
    state = made.groups[0]
    for number in range(200):
        submit(made, number, 0.0)
    state.clocks(0.0)
    now_s = 0.0
    for number in range(100):
        now_s += 1.0 + 0.004 * (-1) ** number
        made.stage_done(0, 0, number, now_s=now_s)
        assert state._error_s <= 0.05


def late_share() -> float:
    """Of those who are admitted to a group that is asked for twice what it can, on stages that jitter, who is late."""
    generator = np.random.default_rng(0)

    def stage_time(requests: Sequence[Request], group: int, stage: int, profiled_s: float) -> tuple[float, bool]:
        return profiled_s * float(generator.lognormal(0.0, 0.5)), False

    made = scheduler((1.0,))
    driver = Reference(made, stage_time=stage_time)
    for number in range(20_000):
        driver.arrive(request(number, arrival_s=number / 2, slo_s=6.0))
    driver.drain()
    admitted = [answer.outcome for answer in list(driver.answers.values())[2000:] if answer.admitted is not None]
    return sum(isinstance(outcome, Failed) for outcome in admitted) / len(admitted)


def test_one_in_a_hundred_of_those_admitted_is_late_where_stages_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert late_share() == pytest.approx(0.01, abs=0.004)
    monkeypatch.setattr(StageLatencies, "note_late", lambda self, arrival_s, now_s: None)
    assert late_share() > 0.1


def test_a_single_stall_adds_little_margin_however_many_it_makes_late() -> None:
    made = scheduler((1.0,))
    for number in range(50):
        submit(made, number, 0.0, slo_s=100.0)
    assert len(made.expire(now_s=200.0)) == 50
    made.stage_done(0, 0, 0, now_s=200.0)
    submit(made, 50, 200.0)
    rejected = submit(made, 51, 200.0, slo_s=1.0)
    assert isinstance(rejected, Rejected)
    assert 202.0 < rejected.predicted_finish_s < 202.0 + 2.0  # of which the estimate has its part


def test_an_idle_group_asks_for_no_margin() -> None:
    made = scheduler((1.0,))
    for number in range(100):
        submit(made, number, 10.0 * number, slo_s=1.0)
        (failed,) = made.expire(now_s=10.0 * number + 1.5)
        made.stage_done(0, 0, number, now_s=10.0 * number + 1.6)
        assert failed.id == number
    assert submit(made, 100, 2000.0, slo_s=1.0) == Admitted(0, 2001.0, 100)
    assert isinstance(submit(made, 101, 2000.0, slo_s=3.0), Rejected)


def test_a_group_is_closed_until_the_stage_that_is_stuck_ends() -> None:
    made = scheduler((1.0, 1.0))
    for number in range(4):
        submit(made, number, 0.0)
    made.stage_done(0, 0, 0, now_s=1.0)
    assert made.find_stuck(now_s=100.0, stuck_after_s=5.0) == [(0, 0)]
    made.stage_done(0, 1, 0, now_s=100.0)
    assert submit(made, 10, 100.0) == Rejected(id=10, predicted_finish_s=math.inf, reason=RefuseReason.DOWN)
    made.stage_done(0, 0, 1, now_s=101.0)
    assert isinstance(submit(made, 11, 101.0), Admitted)


def test_buckets_that_do_not_run_follow_those_that_do() -> None:
    latencies = StageLatencies(((1.0, 2.0), (1.5, 3.0), (2.0, 4.0)), ALONE)
    for _ in range(500):
        latencies.observe(0, 0, 3.0)
        latencies.observe(0, 1, 2.0)
    assert latencies.estimated == [pytest.approx(row, rel=0.01) for row in ((3.0, 2.0), (4.5, 3.0), (6.0, 4.0))]
    for _ in range(500):
        latencies.observe(0, 0, 1.0)
    assert latencies.drift == pytest.approx(1.0, rel=0.01)


def test_a_bucket_that_runs_keeps_an_estimate_of_its_own() -> None:
    latencies = StageLatencies(((1.0,), (1.5,)), ALONE)
    for _ in range(500):
        latencies.observe(0, 0, 1.0)
        latencies.observe(1, 0, 3.0)
    assert latencies.estimated[0][0] == pytest.approx(1.0, rel=0.25)
    assert latencies.estimated[1][0] == pytest.approx(3.0, rel=0.25)
