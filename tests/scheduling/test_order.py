"""Priorities and shares: who takes whose seat, who does not, and what tenants get of a group that cannot serve all."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.errors import ConfigError
from jaxserve.request import Done, Failed, FailReason, RefuseReason, Rejected, Request
from jaxserve.scheduling import ALONE, Admitted, Grid, Latencies, Policy, Scheduler
from jaxserve.scheduling.order import ALONE_ROOM
from jaxserve.simulator import Reference

inf = math.inf
SIZES = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class Call:
    """One who arrives."""

    arrival_s: float = 0.0
    priority: int = 0
    tenant: str = ""
    slo_s: float = inf
    model: str = "m"
    bucket: int = 0


def busy(*, model: str = "m") -> Call:
    """One that runs from 0 to 1, and counts for no tenant who is looked at."""
    return Call(model=model, tenant="busy")


def drive(
    calls: Sequence[Call],
    policy: Policy,
    *,
    latency_s: Latencies = ((1.0,),),
    grid: Grid = ALONE,
    max_queue: int = 10**9,
    cancels: Mapping[int, float] | None = None,
) -> Reference:
    """Runs calls on one group that holds "m", and "n" which takes a second on each stage."""
    made = Scheduler(policy=policy, max_queue=max_queue)
    group = made.add_group(len(latency_s[0]))
    latencies = {"m": latency_s, "n": ((1.0,) * len(latency_s[0]),)}
    made.place(group, "m", latency_s, grid)
    made.place(group, "n", latencies["n"])
    driver = Reference(made)
    events = [(call.arrival_s, 1, number) for number, call in enumerate(calls)]
    events += [(at_s, 0, number) for number, at_s in (cancels or {}).items()]
    for at_s, kind, number in sorted(events):
        if kind == 0:
            driver.cancel(number, at_s)
            continue
        call = calls[number]
        driver.arrive(Request(id=number, rows=SIZES[call.bucket], **dataclasses.asdict(call)))
    driver.drain()
    assert made.in_flight == ()
    assert made.groups[0].is_idle
    return driver


def finishes(driver: Reference) -> list[float | None]:
    outcomes = [driver.answers[number].outcome for number in sorted(driver.answers)]
    return [outcome.finish_s if isinstance(outcome, Done) else None for outcome in outcomes]


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        pytest.param([Call(), Call(), Call(priority=1)], [3.0, 4.0, 2.0], id="goes ahead of all that wait"),
        pytest.param([Call(), Call(), Call()], [2.0, 3.0, 4.0], id="equals keep their order"),
        pytest.param([Call(priority=1), Call(), Call(priority=1)], [2.0, 4.0, 3.0], id="not ahead of an equal"),
        pytest.param([Call(), Call(priority=-1)], [2.0, 3.0], id="a lower one stays behind"),
        pytest.param([Call(priority=-1), Call()], [3.0, 2.0], id="an ordinary one passes a lower one"),
        pytest.param([Call(slo_s=2.5), Call(), Call(priority=1)], [2.0, 4.0, 3.0], id="nobody is made late"),
        pytest.param(
            [Call(slo_s=3.0), Call(), Call(priority=1)], [3.0, 4.0, 2.0], id="one that just is not late moves"
        ),
        pytest.param([Call(), Call(slo_s=3.5), Call(priority=1)], [4.0, 3.0, 2.0], id="it moves past one that may not"),
        pytest.param([Call(), Call(), Call(priority=1, slo_s=2.0)], [3.0, 4.0, 2.0], id="at the end it would be late"),
        pytest.param([Call(slo_s=2.0), Call(), Call(priority=1, slo_s=2.0)], [2.0, 3.0, None], id="late all the same"),
        pytest.param([Call(), Call(model="n"), Call(priority=1)], [4.0, 3.0, 2.0], id="other models notice nothing"),
        pytest.param([Call(model="n"), Call(priority=1)], [2.0, 3.0], id="nor are they passed"),
        pytest.param(
            [Call(), Call(priority=1), Call(priority=2), Call(priority=3)],
            [4.0, 5.0, 3.0, 2.0],
            id="one that was overtaken twice stays where it is",
        ),
    ],
)
def test_priorities(calls: Sequence[Call], expected: list[float | None]) -> None:
    driver = drive([busy(), *calls], Policy(max_overtakings=2))
    assert finishes(driver)[1:] == expected
    for number, call in enumerate(calls, start=1):
        admitted = driver.answers[number].admitted
        if call.priority == max(each.priority for each in calls) and admitted is not None:
            assert admitted.predicted_finish_s == expected[number - 1]


def test_without_overtakings_priorities_count_for_nothing() -> None:
    calls = [busy(), Call(), Call(priority=10)]
    assert finishes(drive(calls, Policy())) == [1.0, 2.0, 3.0]
    assert finishes(drive(calls, Policy(shares={}))) == [1.0, 2.0, 3.0]


def test_what_begins_at_this_instant_is_not_overtaken() -> None:
    calls = [busy(), Call(), Call(), Call(arrival_s=1.0, priority=1)]
    assert finishes(drive(calls, Policy(max_overtakings=1))) == [1.0, 2.0, 4.0, 3.0]


def test_seats_of_a_batch_are_taken() -> None:
    grid = Grid(SIZES[:2], max_batch=2)
    latency_s = ((1.0,), (1.5,))
    calls = [busy(), Call(), Call(), Call(), Call(), Call(priority=1)]
    without = [1.0, 2.5, 2.5, 4.0, 4.0, 5.0]
    assert finishes(drive(calls, Policy(), latency_s=latency_s, grid=grid)) == without
    found = finishes(drive(calls, Policy(max_overtakings=1), latency_s=latency_s, grid=grid))
    assert found == [1.0, 2.5, 4.0, 4.0, 5.0, 2.5]  # the last of each batch moves to the next one


def test_only_seats_of_the_same_size_are_taken() -> None:
    grid = Grid(SIZES[:2], max_batch=2)
    latency_s = ((1.0,), (1.5,))
    calls = [busy(), Call(bucket=1), Call(bucket=1), Call(priority=1)]
    found = finishes(drive(calls, Policy(max_overtakings=9), latency_s=latency_s, grid=grid))
    assert found == [1.0, 2.5, 4.0, 5.0]


def test_tenants_take_turns() -> None:
    calls = [busy(), *(Call(tenant="a") for _ in range(4)), *(Call(tenant="b") for _ in range(2))]
    assert finishes(drive(calls, Policy()))[1:] == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert finishes(drive(calls, Policy(shares={})))[1:] == [2.0, 4.0, 6.0, 7.0, 3.0, 5.0]
    assert finishes(drive(calls, Policy(shares={"a": 2.0})))[1:] == [2.0, 4.0, 5.0, 7.0, 3.0, 6.0]


def test_priority_goes_before_the_share() -> None:
    calls = [busy(), Call(tenant="a", priority=1), Call(tenant="a", priority=1), Call(tenant="b")]
    assert finishes(drive(calls, Policy(max_overtakings=5, shares={})))[1:] == [2.0, 3.0, 4.0]


def test_one_who_was_away_gets_nothing_for_it() -> None:
    calls = [Call(arrival_s=float(second), tenant="a") for second in range(50)]
    calls += [Call(arrival_s=50.0, tenant=tenant) for tenant in "aabb"]
    found = finishes(drive(calls, Policy(shares={})))
    assert found[50:] == [51.0, 53.0, 52.0, 54.0]


def served(calls: Sequence[Call], policy: Policy, **options: Any) -> dict[str, float]:
    """The share of each tenant's requests that is served."""
    driver = drive(calls, policy, **options)
    tenants = {call.tenant for call in calls}
    done = {tenant: [False] * 0 for tenant in tenants}
    for number, call in enumerate(calls):
        done[call.tenant].append(isinstance(driver.answers[number].outcome, Done))
    return {tenant: sum(each) / len(each) for tenant, each in done.items()}


def stream(tenant: str, every_s: float, *, slo_s: float = 20.0, until_s: float = 2000.0) -> list[Call]:
    return [Call(arrival_s=at * every_s, tenant=tenant, slo_s=slo_s) for at in range(round(until_s / every_s))]


def by_arrival(*streams: list[Call]) -> list[Call]:
    return sorted((call for each in streams for call in each), key=lambda call: call.arrival_s)


def test_what_one_tenant_asks_for_too_much_is_not_at_the_cost_of_another() -> None:
    calls = by_arrival(stream("greedy", 0.1), stream("modest", 2.5))  # 10 and 0.4 of what is served
    without, shared = served(calls, Policy()), served(calls, Policy(shares={}))
    assert without["modest"] < 0.2
    assert shared["modest"] == 1.0
    assert shared["greedy"] == pytest.approx(0.06, abs=0.003)  # the rest, so that nothing stands idle


@pytest.mark.parametrize("slo_s", [20.0, 200.0, inf])
@pytest.mark.parametrize("model", ["m", "n"])
def test_nor_where_it_allows_more_time_or_asks_for_another_model(slo_s: float, model: str) -> None:
    modest = [dataclasses.replace(call, model=model) for call in stream("modest", 5.0, slo_s=10.0)]
    shared = served(by_arrival(stream("greedy", 0.5, slo_s=slo_s), modest), Policy(shares={}), max_queue=1000)
    assert shared["modest"] >= 0.99  # the first may come when the queue is long already
    assert shared["greedy"] == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize(("modest", "least"), [(0.1, 0.97), (0.3, 0.9)])
def test_nor_where_deadlines_leave_room_for_few_batches(modest: float, least: float) -> None:
    random = np.random.default_rng(0)
    latency_s = ((12.0, 9.0), (16.0, 12.0), (24.0, 18.0), (38.0, 29.0))  # a batch of eight takes 67 of 145 seconds
    capacity = 8 / 38

    def poisson(tenant: str, rate: float) -> list[Call]:
        gaps_s = random.exponential(1 / rate, round(20_000 * rate))
        return [Call(arrival_s=at_s, tenant=tenant, slo_s=145.0) for at_s in np.cumsum(gaps_s).tolist()]

    calls = by_arrival(poisson("greedy", 10 * capacity), poisson("modest", modest * capacity))
    grid = Grid((1, 2, 4, 8), max_batch=8)
    without = served(calls, Policy(), latency_s=latency_s, grid=grid)
    shared = served(calls, Policy(shares={}), latency_s=latency_s, grid=grid)
    assert without["modest"] < 0.2
    assert shared["modest"] >= least
    assert modest * shared["modest"] + 10 * shared["greedy"] == pytest.approx(1.0, abs=0.05)  # of what can be served


def test_tenants_that_have_gone_are_forgotten() -> None:
    made = Scheduler(policy=Policy(shares={}))
    made.add_group(1)
    made.place(0, "m", ((1.0,),))
    order = made.groups[0].order
    assert order is not None
    for number in range(1000):
        now_s = 1.5 * number
        made.submit(Request(id=number, model="m", arrival_s=now_s, tenant=f"t{number}"), now_s=now_s)
        made.stage_done(0, 0, number, now_s=now_s + 1.0)
        assert len(order._next_tags) <= 1
    for number in range(1000, 3000):
        made.submit(Request(id=number, model="m", arrival_s=2000.0, tenant=f"t{number}"), now_s=2000.0)
    for number in range(1000, 2999):
        made.stage_done(0, 0, number, now_s=number + 1001.0)
        if number % 10 == 0:
            late = Request(id=number + 10_000, model="m", arrival_s=number + 1001.0, tenant="x", slo_s=1.0)
            assert isinstance(made.submit(late, now_s=number + 1001.0), Rejected)
    assert len(order._standings) == 0


@pytest.mark.parametrize("weight", [1.0, 3.0, 0.25])
def test_tenants_that_always_want_more_get_parts_by_weight(weight: float) -> None:
    calls = by_arrival(stream("a", 0.25), stream("b", 0.2))
    shares = served(calls, Policy(shares={"a": weight}))
    rates = {"a": shares["a"] / 0.25, "b": shares["b"] / 0.2}
    assert rates["a"] + rates["b"] == pytest.approx(1.0, abs=0.02)
    assert rates["a"] / rates["b"] == pytest.approx(weight, rel=0.15)


def test_the_places_of_a_queue_are_shared_too() -> None:
    calls = by_arrival(stream("greedy", 0.1, slo_s=inf), stream("modest", 2.5, slo_s=inf))
    without, shared = served(calls, Policy(), max_queue=30), served(calls, Policy(shares={}), max_queue=30)
    assert without["modest"] < 0.3
    assert shared["modest"] == 1.0


def test_a_tenant_alone_leaves_a_part_of_the_time_free_and_is_told_when_to_come_back() -> None:
    slo_s = 101.0
    driver = drive([Call(slo_s=slo_s, tenant="a") for _ in range(120)], Policy(shares={}))
    taken = sum(isinstance(driver.answers[number].outcome, Done) for number in range(120))
    assert taken - 1 == pytest.approx((slo_s - 1) * ALONE_ROOM / (ALONE_ROOM + 1), abs=2)
    refused = driver.answers[119].outcome
    assert isinstance(refused, Rejected)
    assert refused.reason is RefuseReason.SHARE
    again = Call(arrival_s=refused.retry_after_s * 1.01, slo_s=slo_s, tenant="a")
    calls = [*(Call(slo_s=slo_s, tenant="a") for _ in range(120)), again]
    assert isinstance(drive(calls, Policy(shares={})).answers[120].outcome, Done)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_overtakings": -1}, "max_overtakings is -1, but must be a whole number of at least 0"),
        ({"max_overtakings": 1.5}, "max_overtakings is 1.5"),
        ({"max_overtakings": True}, "max_overtakings is True"),
        ({"shares": {"a": 0.0}}, "the share of tenant 'a' is 0.0, but must be a number from 0.001 to 1000"),
        ({"shares": {"a": inf}}, "the share of tenant 'a' is inf"),
        ({"shares": {"a": 1e-300}}, "the share of tenant 'a' is 1e-300"),
        ({"shares": {"a": math.nan}}, "the share of tenant 'a' is nan"),
        ({"shares": {"a": "3"}}, "the share of tenant 'a' is '3'"),
        ({"shares": {3: 1.0}}, "shares: tenant is 3, but must be text"),
        ({"shares": {"a" * 200: 1.0}}, "of at most 128 characters"),
        ({"shares": "equal"}, "shares is 'equal', but must be"),
    ],
)
def test_policies_that_make_no_sense(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        Policy(**options)  # type: ignore[arg-type]


CALLS = st.lists(
    st.builds(
        Call,
        arrival_s=st.integers(0, 40).map(lambda tick: tick / 4),
        priority=st.sampled_from((0, 0, 1, 2, -1)),
        tenant=st.sampled_from("ab"),
        slo_s=st.sampled_from((inf, inf, 3.0, 6.0, 1.5, 12.0)),
        model=st.sampled_from("mmn"),
    ),
    min_size=5,
    max_size=30,
).map(lambda calls: sorted(calls, key=lambda call: call.arrival_s))
POLICIES = st.builds(
    Policy, max_overtakings=st.integers(0, 3), shares=st.sampled_from((None, {}, {"a": 3.0}, {"b": 0.2}))
)
CANCELS = st.dictionaries(st.integers(0, 4), st.sampled_from((0.25, 1.0, 3.3)), max_size=3)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(CALLS, POLICIES, st.sampled_from((((1.0,),), ((0.5, 1.0),), ((1 / 3, 0.1, 0.7),))), CANCELS)
def test_promises_are_kept_and_nobody_is_overtaken_more_often_than_allowed(
    calls: Sequence[Call], policy: Policy, latency_s: Latencies, patience: dict[int, float]
) -> None:
    cancels = {number: calls[number].arrival_s + waits_s for number, waits_s in patience.items()}
    driver = drive(calls, policy, latency_s=latency_s, cancels=cancels)
    finish_s: dict[int, float] = {}
    for number, call in enumerate(calls):
        outcome = driver.answers[number].outcome
        if isinstance(outcome, Done):
            finish_s[number] = outcome.finish_s
            assert outcome.finish_s - call.arrival_s <= call.slo_s
        elif isinstance(outcome, Failed):
            assert outcome.reason is FailReason.CANCELLED
    for number, done_s in finish_s.items():
        call = calls[number]
        overtook = [
            calls[other]
            for other, other_s in finish_s.items()
            if other > number and other_s < done_s and calls[other].model == call.model
        ]
        if policy.shares is None:
            assert sum(other.priority > call.priority for other in overtook) <= policy.max_overtakings
        if policy.max_overtakings == 0 and all(each.slo_s == inf for each in calls):
            assert all(policy.shares is not None and other.tenant != call.tenant for other in overtook)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(CALLS, POLICIES, st.sampled_from((2, 4)))
def test_batches_keep_promises_too(calls: Sequence[Call], policy: Policy, max_batch: int) -> None:
    latency_s = ((1.0, 0.5), (1.25, 0.75), (1.5, 1.0))
    driver = drive(calls, policy, latency_s=latency_s, grid=Grid(SIZES, max_batch=max_batch))
    for number, call in enumerate(calls):
        outcome = driver.answers[number].outcome
        assert isinstance(outcome, Done | Rejected)
        if isinstance(outcome, Done):
            assert outcome.finish_s - call.arrival_s <= call.slo_s


def test_admission_says_what_begins() -> None:
    made = Scheduler(policy=Policy(max_overtakings=1))
    made.add_group(1)
    made.place(0, "m", ((1.0,),))
    assert made.submit(Request(id=0, model="m", arrival_s=0.0), now_s=0.0) == Admitted(0, 1.0, 0)
    assert made.submit(Request(id=1, model="m", arrival_s=0.0), now_s=0.0) == Admitted(0, 2.0, None)
    urgent = Request(id=2, model="m", arrival_s=0.0, priority=1)
    assert made.submit(urgent, now_s=0.0) == Admitted(0, 2.0, None)
    step = made.stage_done(0, 0, 0, now_s=1.0)
    assert [member.id for member in made.groups[0].batch(step.begins[0][1]).members] == [2]


def test_a_batch_that_fails_after_an_exchange_loses_nobody() -> None:
    def stage_time(requests: Sequence[Request], group: int, stage: int, profiled_s: float) -> tuple[float, bool]:
        return profiled_s, any(request.id == 1 for request in requests)

    made = Scheduler(policy=Policy(max_overtakings=1))
    made.add_group(2)
    made.place(0, "m", ((1.0, 1.0), (1.5, 1.5)), Grid(SIZES[:2], max_batch=2))
    driver = Reference(made, stage_time=stage_time)
    for number in range(3):
        driver.arrive(Request(id=number, model="m", arrival_s=0.0))
    driver.arrive(Request(id=3, model="m", arrival_s=0.0, priority=1))  # takes the seat of 2, which gets its batch
    driver.drain()
    outcomes = {number: type(answer.outcome) for number, answer in driver.answers.items()}
    assert outcomes == {0: Done, 1: Failed, 2: Done, 3: Done}
    assert (made.in_flight, made.groups[0].is_idle, made.groups[0].queue_length) == ((), True, 0)


@pytest.mark.parametrize("policy", [Policy(max_overtakings=1), Policy(shares={})])
def test_no_seat_is_taken_in_a_batch_that_a_newcomer_releases(policy: Policy) -> None:
    made = Scheduler(policy=policy)
    made.add_group(1)
    made.place(0, "m", ((1.0,), (1.5,)), Grid((2, 3), max_batch=3), max_wait_s=1.0)
    first = Request(id=0, model="m", arrival_s=0.0, rows=2, tenant="a")
    assert made.submit(first, now_s=0.0) == Admitted(0, 2.0, None)
    second = Request(id=1, model="m", arrival_s=0.5, rows=2, priority=1, tenant="b")
    assert made.submit(second, now_s=0.5) == Admitted(0, 2.5, 0)
    assert made.stage_done(0, 0, 0, now_s=1.5).outcomes == [Done(id=0, group=0, finish_s=1.5)]
    assert made.stage_done(0, 0, 1, now_s=2.5).outcomes == [Done(id=1, group=0, finish_s=2.5)]
    assert made.in_flight == ()
