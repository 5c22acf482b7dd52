"""Which requests are merged, case by case and against a schedule that is worked out anew for each decision."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.request import Done, Failed, FailReason, Rejected, Request
from jaxserve.scheduling import ALONE, Admitted, Grid, Latencies, Scheduler
from jaxserve.scheduling.batch import MOST_PASSED
from jaxserve.scheduling.latencies import total_s
from jaxserve.simulator import Reference, StageTime, as_profiled

SIZES = (1, 2, 4)
SAVES = ((1.0,), (1.25,), (1.5,))  # of buckets for 1, 2 and 4
inf = math.inf


def scheduler(
    latency_s: Latencies = SAVES, *, max_batch: int = 4, overhead_s: float = 0.0, sizes: Sequence[int] | None = SIZES
) -> Scheduler:
    """One group that holds "m" with these buckets, and "n" which takes a second on each stage and is never merged."""
    made = Scheduler(overhead_s=overhead_s)
    group = made.add_group(len(latency_s[0]))
    grid = ALONE if sizes is None else Grid(sizes[: len(latency_s)], max_batch=max_batch)
    made.place(group, "m", latency_s, grid)
    made.place(group, "n", ((1.0,) * len(latency_s[0]),))
    return made


def submit(made: Scheduler, number: int, arrival_s: float, slo_s: float = inf, model: str = "m") -> Admitted | Rejected:
    return made.submit(Request(id=number, model=model, arrival_s=arrival_s, slo_s=slo_s), now_s=arrival_s)


def finishes(made: Scheduler, calls: Iterable[tuple[str, float, float]]) -> list[float | None]:
    """When (model, arrival, SLO) are done on stages that take what is profiled; None where rejected."""
    driver = Reference(made)
    for number, (model, arrival_s, slo_s) in enumerate(calls):
        driver.arrive(Request(id=number, model=model, arrival_s=arrival_s, slo_s=slo_s))
    driver.drain()
    outcomes = [driver.answers[number].outcome for number in sorted(driver.answers)]
    return [outcome.finish_s if isinstance(outcome, Done) else None for outcome in outcomes]


BUSY = ("m", 0.0, inf)  # runs from 0 to 1


@pytest.mark.parametrize(
    ("latency_s", "calls", "expected"),
    [
        pytest.param(SAVES, [("m", 0.25, inf), ("m", 0.5, inf)], [2.25, 2.25], id="a join saves time"),
        pytest.param(
            # two at once take longer than one after the other, appended 3.0, joined 3.5
            ((1.0,), (2.5,)),
            [("m", 0.25, inf), ("m", 0.5, inf)],
            [2.0, 3.0],
            id="a join saves no time",
        ),
        pytest.param(((1.0,), (2.0,)), [("m", 0.25, inf), ("m", 0.5, inf)], [2.0, 3.0], id="nor does one that ties"),
        pytest.param(SAVES, [("m", 0.25, 1.75), ("m", 0.5, inf)], [2.0, 3.0], id="an earlier member would miss"),
        pytest.param(SAVES, [("m", 0.25, 2.0), ("m", 0.5, inf)], [2.25, 2.25], id="an earlier member just does not"),
        pytest.param(
            SAVES,
            [("m", 0.25, inf), ("n", 0.25, 2.75), ("m", 0.5, inf)],
            [2.0, 3.0, 4.0],
            id="a later batch would miss",
        ),
        pytest.param(
            SAVES,
            [("m", 0.25, inf), ("n", 0.25, 3.0), ("m", 0.5, inf)],
            [2.25, 3.25, 2.25],
            id="a later batch just does not",
        ),
        pytest.param(SAVES, [("m", 0.25, inf), ("m", 0.5, 1.75)], [2.25, 2.25], id="appended it would be late"),
        pytest.param(
            # appended 4.0, which is late; joined 3.5, though everything then ends at 4.5
            ((1.0,), (2.5,)),
            [("m", 0.25, inf), ("n", 0.25, inf), ("m", 0.5, 3.25)],
            [3.5, 4.5, 3.5],
            id="appended it would be late, so a join need not save time",
        ),
        pytest.param(SAVES, [("m", 0.25, inf), ("m", 0.5, 1.5)], [2.0, None], id="late both ways"),
        pytest.param(
            SAVES, [("m", 0.25, inf), ("m", 1.0, inf)], [2.0, 3.0], id="what begins at this instant is closed"
        ),
        pytest.param(SAVES, [("m", 0.25, inf)] * 3, [2.5] * 3, id="three are padded to four"),
        pytest.param(SAVES, [("m", 0.25, inf)] * 6, [2.5] * 4 + [3.75] * 2, id="a fifth begins another batch"),
        pytest.param(
            SAVES,
            [("m", 0.25, inf), ("n", 0.25, inf), ("m", 0.25, inf), ("m", 0.25, inf)],
            [2.5, 3.5, 2.5, 2.5],
            id="a batch in which there is room is joined",
        ),
        pytest.param(
            # the second is appended because of the first; the third can join only the second
            SAVES,
            [("m", 0.25, 1.75), ("m", 0.25, inf), ("m", 0.5, inf)],
            [2.0, 3.25, 3.25],
            id="one that may be",
        ),
        pytest.param(
            # 1 on stage 0 from 1 to 2.5, on stage 1 from 3 to 5.5; appended the second would end at 7
            ((1.0, 2.0), (1.5, 2.5)),
            [("m", 0.5, inf), ("m", 0.5, inf)],
            [5.5, 5.5],
            id="two stages",
        ),
    ],
)
def test_merging(latency_s: Latencies, calls: list[tuple[str, float, float]], expected: list[float | None]) -> None:
    assert finishes(scheduler(latency_s), [BUSY, *calls])[1:] == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_batch": 1}, [2.0, 3.0, 4.0, 5.0]),
        ({"sizes": None}, [2.0, 3.0, 4.0, 5.0]),
        ({"max_batch": 3}, [2.25, 2.25, 3.5, 3.5]),  # the bucket for four is not used
        ({"max_batch": 100}, [2.5, 2.5, 2.5, 2.5]),
        ({"overhead_s": 0.25}, [2.75, 2.75, 2.75, 2.75]),
    ],
)
def test_options(options: dict[str, int | float | None], expected: list[float]) -> None:
    made = scheduler(**options)  # type: ignore[arg-type]
    calls = [("m", 0.25, inf)] * 4
    assert finishes(made, [BUSY, *calls])[1:] == expected


def test_overhead_counts_against_the_deadlines_of_others() -> None:
    calls = [BUSY, ("m", 0.25, 2.0), ("m", 0.5, inf)]
    assert finishes(scheduler(overhead_s=0.0), calls)[1:] == [2.25, 2.25]
    assert finishes(scheduler(overhead_s=0.25), calls)[1:] == [2.25, 3.25]
    calls = [BUSY, ("m", 0.25, inf), ("n", 0.25, 3.0), ("m", 0.5, inf)]
    assert finishes(scheduler(overhead_s=0.0), calls)[1:] == [2.25, 3.25, 2.25]
    assert finishes(scheduler(overhead_s=0.25), calls)[1:] == [2.25, 3.25, 4.25]


@pytest.mark.parametrize(
    ("sizes", "max_batch", "buckets"),
    [
        ((1, 2, 4), 4, [0, 1, 2, 2]),
        ((1, 2, 4), 3, [0, 1]),
        ((1, 2, 4), 1, [0]),
        ((1, 8), 8, [0, 1, 1, 1, 1, 1, 1, 1]),
        ((2, 4), 1, []),
    ],
)
def test_the_smallest_bucket_that_holds_them(sizes: tuple[int, ...], max_batch: int, buckets: list[int]) -> None:
    grid = Grid(sizes, max_batch=max_batch)
    assert [grid.holding(rows, 0) for rows in range(1, grid.most_rows + 1)] == buckets


def test_a_bucket_holds_the_largest_of_each_dimension() -> None:
    grid = Grid((1, 2), (3, 2), max_batch=2)
    assert [grid.cell(bucket) for bucket in (0, 5, 6, 11)] == [0, 5, 0, 5]
    assert grid.united(1, 4) == 5  # of (0, 1) and (2, 0): (2, 1)
    assert grid.holding(2, 5) == 11


def four_with_three_merged(latency_s: Latencies = SAVES) -> Scheduler:
    """Request 0 runs from 0 to 1; 1, 2 and 3 wait as batch 1."""
    made = scheduler(latency_s)
    for number in range(4):
        submit(made, number, 0.0)
    assert [member.id for member in made.groups[0].batch(1).members] == [1, 2, 3]
    return made


def test_a_join_begins_nothing_and_is_promised_the_end_of_its_batch() -> None:
    made = scheduler()
    assert submit(made, 0, 0.0) == Admitted(0, 1.0, 0)
    assert submit(made, 1, 0.0) == Admitted(0, 2.0, None)
    assert submit(made, 2, 0.0) == Admitted(0, 2.25, None)
    assert submit(made, 3, 0.0, slo_s=2.0) == Rejected(
        id=3, predicted_finish_s=3.25, retry_after_s=1.25
    )  # as if it were appended
    assert (made.groups[0].queue_length, made.groups[0].in_flight) == (2, 3)


def test_one_who_leaves_a_waiting_batch_takes_it_to_a_smaller_bucket() -> None:
    made = four_with_three_merged()
    assert made.cancel(1) == Failed(id=1, group=0, reason=FailReason.CANCELLED)
    assert made.groups[0].batch(1).bucket == 1
    assert submit(made, 4, 0.0, model="n") == Admitted(0, 3.25, None)
    assert made.stage_done(0, 0, 0, now_s=1.0).begins == [(0, 1)]  # it goes by the name of the one who has left
    step = made.stage_done(0, 0, 1, now_s=2.25)
    assert step.outcomes == [Done(id=number, group=0, finish_s=2.25) for number in (2, 3)]
    assert made.in_flight == (4,)


def test_a_batch_that_all_have_left_is_gone() -> None:
    made = four_with_three_merged()
    for number in (2, 1, 3):
        made.cancel(number)
    assert made.groups[0].in_flight == 1
    assert submit(made, 4, 0.0) == Admitted(0, 2.0, None)
    assert made.stage_done(0, 0, 0, now_s=1.0).begins == [(0, 4)]


def test_one_who_leaves_a_batch_that_has_begun_changes_nothing_for_the_others() -> None:
    made = four_with_three_merged(((1.0, 1.0), (1.25, 1.25), (1.5, 1.5)))
    made.stage_done(0, 0, 0, now_s=1.0)
    made.stage_done(0, 1, 0, now_s=2.0)
    made.cancel(2)
    assert made.stage_done(0, 0, 1, now_s=2.5).begins == [(1, 1)]
    made.cancel(3)
    assert made.groups[0].batch(1).bucket == 2
    assert made.stage_done(0, 1, 1, now_s=4.0).outcomes == [Done(id=1, group=0, finish_s=4.0)]


def test_a_running_batch_is_abandoned_only_by_all() -> None:
    made = four_with_three_merged(((1.0, 1.0), (1.25, 1.25), (1.5, 1.5)))
    made.stage_done(0, 0, 0, now_s=1.0)
    for number in (1, 2, 3):
        made.cancel(number)
    assert submit(made, 4, 2.0) == Admitted(0, 4.5, None)  # after the stage that it is on, and no other
    step = made.stage_done(0, 0, 1, now_s=2.5)
    assert (step.outcomes, step.begins) == ([], [(0, 4)])


def test_members_expire_each_at_its_own_deadline() -> None:
    made = scheduler()
    submit(made, 0, 0.0)
    submit(made, 1, 0.0, slo_s=3.0)
    submit(made, 2, 0.0, slo_s=4.0)
    after_s = math.nextafter(3.0, inf)
    assert [failed.id for failed in made.expire(now_s=after_s)] == [1]
    assert made.groups[0].batch(1).bucket == 0
    assert made.next_deadline_s == 4.0


def test_a_batch_that_fails_is_split_until_one_fails_alone() -> None:
    made = four_with_three_merged(((1.0, 1.0), (1.25, 1.25), (1.5, 1.5)))
    submit(made, 4, 0.0, model="n")
    made.stage_done(0, 0, 0, now_s=1.0)
    made.stage_done(0, 1, 0, now_s=2.0)
    assert made.stage_done(0, 0, 1, now_s=2.5).begins == [(1, 1), (0, 4)]
    step = made.stage_done(0, 1, 1, now_s=4.0, failed=True)
    assert (step.outcomes, step.begins) == ([], [])  # stage 0 is not free
    assert [member.id for member in made.groups[0].batch(-2).members] == [2, 3]
    assert made.stage_done(0, 0, 4, now_s=4.0).begins == [(1, 4), (0, -1)]
    assert made.groups[0].queue_length == 2
    assert made.stage_done(0, 1, 4, now_s=5.0).outcomes == [Done(id=4, group=0, finish_s=5.0)]
    assert made.stage_done(0, 0, -1, now_s=5.0).begins == [(1, -1), (0, -2)]
    made.stage_done(0, 1, -1, now_s=6.0)
    assert made.stage_done(0, 0, -2, now_s=6.25, failed=True).begins == [(0, -3)]
    step = made.stage_done(0, 0, -3, now_s=7.25, failed=True)
    assert step.outcomes == [Failed(id=2, group=0, reason=FailReason.MODEL)]
    assert step.begins == [(0, -4)]
    made.stage_done(0, 0, -4, now_s=8.25)
    assert made.stage_done(0, 1, -4, now_s=9.25).outcomes == [Done(id=3, group=0, finish_s=9.25)]
    assert (made.in_flight, made.groups[0].queue_length, made.groups[0].is_idle) == ((), 0, True)


@pytest.mark.parametrize("leaves", ["cancelled", "expired"])
def test_one_whose_batch_failed_because_of_another_is_run_again_though_that_one_has_left(leaves: str) -> None:
    made = scheduler()
    submit(made, 0, 0.0)
    submit(made, 1, 0.0)
    submit(made, 2, 0.0, slo_s=2.25)
    made.stage_done(0, 0, 0, now_s=1.0)
    if leaves == "cancelled":
        made.cancel(2)
    else:
        assert len(made.expire(now_s=2.5)) == 1
    step = made.stage_done(0, 0, 1, now_s=2.5, failed=True)
    assert (step.outcomes, step.begins) == ([], [(0, -1)])
    assert made.stage_done(0, 0, -1, now_s=3.5).outcomes == [Done(id=1, group=0, finish_s=3.5)]


def test_a_lost_group_fails_all_members() -> None:
    assert [failed.id for failed in four_with_three_merged().fail_group(0, now_s=0.5)] == [0, 1, 2, 3]


def test_estimates_are_of_the_bucket_that_ran() -> None:
    made = scheduler()
    for number in range(3):
        submit(made, number, 0.0)
    made.stage_done(0, 0, 0, now_s=1.0)
    made.stage_done(0, 0, 1, now_s=3.5)  # twice 1.25
    assert made.drift("m") == 1.25
    assert submit(made, 3, 10.0) == Admitted(0, 11.0, 3)
    assert submit(made, 4, 10.0) == Admitted(0, 12.0, None)
    assert submit(made, 5, 10.0) == Admitted(0, 11.0 + 1.25 * 1.25, None)


def test_requests_of_several_rows_are_merged_too() -> None:
    made = scheduler()
    submit(made, 0, 0.0)
    pairs = [Request(id=number, model="m", arrival_s=0.0, bucket=1, rows=2) for number in (1, 2, 3)]
    promised = [made.submit(request, now_s=0.0) for request in pairs]
    assert promised == [Admitted(0, 2.25, None), Admitted(0, 2.5, None), Admitted(0, 3.75, None)]
    assert submit(made, 4, 0.0) == Admitted(0, 4.0, None)
    made.cancel(3)
    assert made.groups[0].batch(3).bucket == 0


def test_one_that_is_larger_than_a_batch_may_be_runs_by_itself() -> None:
    made = scheduler(max_batch=2)
    submit(made, 0, 0.0)
    assert made.submit(Request(id=1, model="m", arrival_s=0.0, bucket=2, rows=3), now_s=0.0) == Admitted(0, 2.5, None)
    assert submit(made, 2, 0.0) == Admitted(0, 3.5, None)


def lengths(*seconds: float) -> Scheduler:
    """A group that is busy until 1 and holds "m" with batches of 1 and 2 in these seconds, at two lengths each."""
    made = Scheduler()
    group = made.add_group(1)
    made.place(group, "busy", ((1.0,),))
    made.place(group, "m", tuple((latency_s,) for latency_s in seconds), Grid((1, 2), (2,), max_batch=2))
    submit(made, 0, 0.0, model="busy")
    return made


def of_length(made: Scheduler, number: int, cell: int, slo_s: float = inf) -> Admitted | Rejected:
    return made.submit(Request(id=number, model="m", arrival_s=0.0, bucket=cell, slo_s=slo_s), now_s=0.0)


def test_a_long_request_joins_the_batch_that_wastes_least() -> None:
    made = lengths(1.0, 2.0, 1.25, 2.25)
    assert of_length(made, 1, 0) == Admitted(0, 2.0, None)
    assert submit(made, 2, 0.0, model="busy") == Admitted(0, 3.0, None)
    assert of_length(made, 3, 1, slo_s=3.0) == Rejected(id=3, predicted_finish_s=5.0, retry_after_s=2.0)
    assert of_length(made, 4, 1) == Admitted(0, 3.25, None)  # padding request 1 to its length costs 1.25, not 2
    made = lengths(1.0, 2.0, 1.25, 3.5)
    of_length(made, 1, 0)
    assert of_length(made, 2, 1) == Admitted(0, 4.0, None)  # padding it would cost 2.5
    assert of_length(made, 3, 0) == Admitted(0, 2.25, None)
    assert [made.groups[0].batch(number).bucket for number in (1, 2)] == [2, 1]


def test_the_cell_shrinks_when_the_longest_leaves() -> None:
    made = lengths(1.0, 2.0, 1.25, 2.25)
    of_length(made, 1, 0)
    of_length(made, 2, 1)
    made.cancel(2)
    assert made.groups[0].batch(1).bucket == 0


def test_a_join_passes_no_more_batches_than_are_allowed() -> None:
    latency_s = ((1.0,), (1.0,), (1.0,))
    made = scheduler(latency_s)
    submit(made, 0, 0.0)
    submit(made, 1, 0.0)
    for number in range(2, MOST_PASSED + 1):
        submit(made, number, 0.0, model="n")
    assert submit(made, 100, 0.0) == Admitted(0, 2.0, None)  # it is the last of these
    submit(made, 101, 0.0, model="n")
    assert submit(made, 102, 0.0) == Admitted(0, MOST_PASSED + 3.0, None)


def test_a_model_placed_anew_is_not_merged_with_what_it_was() -> None:
    made = scheduler()
    submit(made, 0, 0.0)
    submit(made, 1, 0.0)
    made.place(0, "m", ((1.0,), (1.0,)), Grid((1, 2), max_batch=4))
    assert submit(made, 2, 0.0) == Admitted(0, 3.0, None)
    assert submit(made, 3, 0.0) == Admitted(0, 3.0, None)


# ----------------------------------------------------------------------------------------------------------- properties


@dataclasses.dataclass(frozen=True)
class Case:
    """Groups of so many stages, what each model's buckets take there, and who arrives."""

    stages: tuple[int, ...]
    latencies: dict[tuple[int, str], Latencies]
    requests: tuple[Request, ...]
    max_batch: int
    overhead_s: float

    def scheduler(self) -> Scheduler:
        made = Scheduler(overhead_s=self.overhead_s)
        for stages in self.stages:
            made.add_group(stages)
        for (group, model), latency_s in self.latencies.items():
            made.place(group, model, latency_s, Grid(SIZES, max_batch=self.max_batch))
        return made

    def driver(self, made: Scheduler, stage_time: StageTime = as_profiled) -> Reference:
        return Reference(made, stage_time=stage_time)


# Grids make ties; fractions that are no sums of powers of two make rounding.
TIMES = st.one_of(st.integers(0, 12).map(lambda tick: tick / 4), st.integers(0, 30).map(lambda tick: tick / 9.7))
LATENCIES = st.sampled_from((1 / 3, 0.25, 0.5, 1.0, 0.7, 0.1, 0.0))
GROWTH = st.sampled_from((1.1, 1.25, 4 / 3, 1.0, 2.0))  # from one bucket to the next


@st.composite
def cases(draw: st.DrawFn) -> Case:
    stages = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    latencies: dict[tuple[int, str], Latencies] = {}
    for group, count in enumerate(stages):
        for model in draw(st.sets(st.sampled_from("mn"), min_size=1)):
            rows = [tuple(draw(st.lists(LATENCIES, min_size=count, max_size=count)))]
            for _ in SIZES[1:]:
                growth = draw(GROWTH)
                rows.append(tuple(latency * growth for latency in rows[-1]))
            latencies[group, model] = tuple(rows)
    arrivals = sorted(draw(st.lists(TIMES, min_size=10, max_size=25)))
    return Case(
        stages=stages,
        latencies=latencies,
        requests=tuple(
            Request(
                id=number,
                model=draw(st.sampled_from("mn")),
                arrival_s=arrival_s,
                slo_s=draw(st.sampled_from((4.0, 3.0, 2.0, 1.1, 0.5, 7.3, inf))),
            )
            for number, arrival_s in enumerate(arrivals)
        ),
        max_batch=draw(st.sampled_from((4, 2, 3, 1, 5))),
        overhead_s=draw(st.sampled_from((0.0, 0.011, 0.25))),
    )


@dataclasses.dataclass
class Planned:
    """A batch of a plan: who is in it, and for how many it is planned at least."""

    members: list[Request]
    latencies: Latencies
    reserved: int

    def latency_s(self, *, begun: bool) -> tuple[float, ...]:
        places = len(self.members) if begun else max(len(self.members), self.reserved)
        return self.latencies[next(bucket for bucket, size in enumerate(SIZES) if size >= places)]


@dataclasses.dataclass
class Plan:
    """The rule from the top of batch.py by brute force: a group's schedule is worked out from its first batch on."""

    stages: int
    batches: list[Planned] = dataclasses.field(default_factory=list)
    recent: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def work_out(self, batches: Sequence[Planned], now_s: float) -> list[tuple[float, list[float]]]:
        """When each batch begins on stage 0, and the clocks after it, as is known at a time."""
        clocks = [0.0] * self.stages
        found: list[tuple[float, list[float]]] = []
        for batch in batches:
            begins_s = done_s = max(batch.members[0].arrival_s, clocks[0])
            for stage, latency in enumerate(batch.latency_s(begun=begins_s <= now_s)):
                done_s = max(done_s, clocks[stage]) + latency
                clocks[stage] = done_s
            found.append((begins_s, list(clocks)))
        return found

    def clocks(self, now_s: float) -> list[float]:
        return self.work_out(self.batches, now_s)[-1][1] if self.batches else [0.0] * self.stages

    def places(self, request: Request, latencies: Latencies, case: Case) -> int:
        """For how many a batch is planned that the request begins."""
        if case.max_batch == 1:
            return 1
        now_s = request.arrival_s
        window_s = 8.0 * total_s(latencies[0])
        expected = 1.0
        if window_s > 0:
            rows, when_s = self.recent.get(request.model, (0.0, 0.0))
            rows /= 1.0 + (now_s - when_s) / window_s
            self.recent[request.model] = (rows + 1.0, now_s)
            expected += rows * max(0.0, self.clocks(now_s)[0] - now_s) / window_s
        places, slowest_s = 1, max(latencies[0])
        for size, latency_s in zip(SIZES[1:], latencies[1:], strict=True):
            twice_s = total_s(latency_s) + max(latency_s)
            if size > case.max_batch or size > expected or twice_s > request.slo_s - case.overhead_s:
                break
            if size * slowest_s >= 1.25 * (places * max(latency_s)):
                places, slowest_s = size, max(latency_s)
        return places

    def decide(self, request: Request, latencies: Latencies, case: Case) -> bool:
        """Takes a request in; False where it is rejected."""
        now_s = request.arrival_s
        usable = [size for size in SIZES if size <= case.max_batch]
        appended = [*self.batches, Planned([request], latencies, self.places(request, latencies, case))]
        times = self.work_out(appended[:-1], now_s)
        clocks = times[-1][1] if times else [0.0] * self.stages
        append_s = now_s
        for clock, latency in zip(clocks, appended[-1].latency_s(begun=False), strict=True):
            append_s = max(append_s, clock) + latency
        can_append = append_s + case.overhead_s - now_s <= request.slo_s
        found: list[tuple[float, int]] = [(append_s, -1)] if can_append else []
        for index, batch in enumerate(self.batches):
            together = len(batch.members) + 1
            if times[index][0] <= now_s or batch.members[0].model != request.model or together > usable[-1]:
                continue
            joined = self.joined(index, request)
            joined_times = self.work_out(joined, now_s)
            if self.all_in_time(joined[index:], joined_times[index:], case):
                found.append((joined_times[-1][1][-1], index))
        if found:
            _, best = min(found)
            self.batches = appended if best < 0 else self.joined(best, request)
        return bool(found)

    def joined(self, index: int, request: Request) -> list[Planned]:
        batch = self.batches[index]
        grown = dataclasses.replace(batch, members=[*batch.members, request])
        return [*self.batches[:index], grown, *self.batches[index + 1 :]]

    @staticmethod
    def all_in_time(batches: Sequence[Planned], times: Sequence[tuple[float, list[float]]], case: Case) -> bool:
        return all(
            clocks[-1] + case.overhead_s - member.arrival_s <= member.slo_s
            for batch, (_, clocks) in zip(batches, times, strict=True)
            for member in batch.members
        )

    def finish_s(self, case: Case) -> dict[int, float]:
        return {
            member.id: clocks[-1] + case.overhead_s
            for batch, (_, clocks) in zip(self.batches, self.work_out(self.batches, inf), strict=True)
            for member in batch.members
        }


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(cases())
def test_decisions_and_finishes_are_those_of_the_rule_to_the_last_bit(case: Case) -> None:
    plans = [Plan(stages) for stages in case.stages]
    made = case.scheduler()
    driver = case.driver(made)
    for request in case.requests:
        driver.arrive(request)
        holders = [group for group in range(len(plans)) if (group, request.model) in case.latencies]
        if holders:
            group = min(holders, key=lambda group: plans[group].clocks(request.arrival_s)[-1])
            taken = plans[group].decide(request, case.latencies[group, request.model], case)
            assert taken == (request.id not in driver.answers)
        for state in made.groups:
            clocks = list(state.clocks(request.arrival_s))
            state._error_s = inf
            assert state.clocks(request.arrival_s) == clocks
    driver.drain()
    expected = {number: finish_s for plan in plans for number, finish_s in plan.finish_s(case).items()}
    found = {
        number: answer.outcome.finish_s for number, answer in driver.answers.items() if isinstance(answer.outcome, Done)
    }
    assert found == expected
    assert all(found[each.id] - each.arrival_s <= each.slo_s for each in case.requests if each.id in found)


Cancels = dict[int, float]
"""How long after its arrival a request is cancelled."""
CANCELS = st.dictionaries(st.integers(0, 24), st.integers(0, 8).map(lambda tick: tick / 4), max_size=8)


def drive(driver: Reference, case: Case, cancels: Cancels, lost: Sequence[tuple[float, int]] = ()) -> None:
    events: list[tuple[float, int, int]] = [(at_s, 0, group) for at_s, group in lost]
    events += [(each.arrival_s + cancels[each.id], 1, each.id) for each in case.requests if each.id in cancels]
    events += [(each.arrival_s, 2, each.id) for each in case.requests]
    for at_s, kind, index in sorted(events):
        if kind == 0:
            driver.fail_group(index, at_s)
        elif kind == 1:
            driver.cancel(index, at_s)
        else:
            driver.arrive(case.requests[index])
    driver.drain()


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(cases(), CANCELS)
def test_promises_are_kept_whoever_leaves(case: Case, cancels: Cancels) -> None:
    driver = case.driver(case.scheduler())
    drive(driver, case, cancels)
    for request in case.requests:
        answer = driver.answers[request.id]
        if isinstance(answer.outcome, Done):
            assert answer.outcome.finish_s - request.arrival_s <= request.slo_s
        elif isinstance(answer.outcome, Failed):
            assert request.id in cancels
            assert answer.outcome.reason is FailReason.CANCELLED


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(
    cases(),
    CANCELS,
    st.sampled_from(((1.0,), (0.5, 1.0), (1.0, 1.5, 0.1), (2.0, 1.0, 1.0, 3.0))),
    st.frozensets(st.tuples(st.integers(0, 24), st.integers(0, 2)), max_size=4),
    st.lists(st.tuples(TIMES, st.integers(0, 1)), max_size=1),
)
def test_everyone_is_answered_once_whatever_happens(
    case: Case,
    cancels: Cancels,
    stretch: tuple[float, ...],
    raises: frozenset[tuple[int, int]],
    lost: list[tuple[float, int]],
) -> None:
    def stage_time(requests: Sequence[Request], group: int, stage: int, profiled_s: float) -> tuple[float, bool]:
        takes_s = profiled_s * stretch[(requests[0].id + stage) % len(stretch)]
        return takes_s, any((request.id, stage) in raises for request in requests)

    made = case.scheduler()
    driver = case.driver(made, stage_time)
    drive(driver, case, cancels, [(at_s, group) for at_s, group in lost if group < len(case.stages)])
    assert driver.answers.keys() == {request.id for request in case.requests}
    assert made.in_flight == ()
    for state in made.groups:
        assert (state.in_flight, state.queue_length, state.is_idle) == (0, 0, True)
