"""Ten thousand requests under overload, with callers that give up and connections that end: nothing may be left behind.

Encoded frames go through the server's connections into the engine, on a jumping clock and emulated groups, and what the
peers hear is decoded. The reference simulator is told the same events in the same order; both must agree on who was
served, and when, and on what became of everybody else. Half of all times lie on a grid, so that ends of stages,
deadlines, cancellations, arrivals and disconnects often meet in one instant.
"""

import asyncio
import dataclasses
import enum
import functools
import itertools
import math
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from jaxserve.cluster import EmulatedCluster, emulated_outputs
from jaxserve.engine import Engine
from jaxserve.errors import (
    DeadlineExceeded,
    DeadlineRefused,
    GroupFailed,
    InferenceError,
    ModelFailed,
    QueueFull,
    RequestCancelled,
)
from jaxserve.model import Model, TensorSpec
from jaxserve.plans import Group, Placement, Profile, Profiles
from jaxserve.protocols import messages, native
from jaxserve.request import Done, FailReason, Outcome, RefuseReason, Rejected, Request
from jaxserve.scheduling import DISPATCHES, Grid, Policy, Scheduler
from jaxserve.server.access import Access
from jaxserve.server.connection import Connection, Flusher, Limits
from jaxserve.simulator import Answer, Reference
from tests.jumping_loop import JumpingLoop, run, until

REQUESTS = 10_000
CONNECTIONS = 300
BURSTS = 80
OVERLOAD = 1.2  # rows that come over rows that full batches would serve: about twice what is served in truth
TICKS = 1024  # of the grid, in a second
PATIENCE_S = 60.0  # by the jumping clock

BATCH_SIZES = (1, 2, 4, 8)
LENGTHS = (4, 8)
GROWTH = (1.0, 1.25, 1.75, 2.75)  # of the latency with the batch size
LONGER = (1.0, 1.5)  # and with the length
BASE_S = (12 / TICKS, 0.0137, 20 / TICKS, 0.0119, 8 / TICKS, 14 / TICKS)  # of the slowest stage, by model
POPULARITY = (5, 4, 4, 4, 3, 1)
UNEVEN = (1.0, 0.75, 1.0, 0.5)  # stages, against the slowest

DISPATCH = "earliest-finish"
OVERHEAD_S = 0.002
MAX_QUEUE = 32
POLICIES = {  # by seed; with shares a queue hardly ever gets full
    0: Policy(max_overtakings=3, shares={"a": 3.0, "b": 0.25}),
    1: Policy(max_overtakings=1, shares={}),
    2: Policy(max_overtakings=3),
}
LOST_GROUP = 2  # the only one that holds m4
LEAST = {"served": 2500, "refused": 2500, "cancelled": 700, "expired": 200, "failed": 50}  # else the test tells little
STRETCH = (1.0, 1.0, 0.5, 1.0, 1.5, 1.0, 3.0)  # what stages take in truth, over their profile

MODELS = [
    Model.from_function(
        f"m{index}",
        lambda x: x,
        inputs={"x": TensorSpec(("batch", "length"), "float32")},
        batch_sizes=BATCH_SIZES,
        buckets={"length": LENGTHS},
        deadline_s=0.75 if index == 3 else None,
        max_wait_s=0.03 if index == 5 else 0.0,
    )
    for index in range(6)
]
HELD = (("m0", "m1", "m2"), ("m0", "m1"), ("m2", "m3", "m4"), ("m3",), ("m5",))
GROUPS = tuple(
    Group(inter_op=stages, devices=tuple(range(index * 4, index * 4 + stages)), models=held)
    for index, (stages, held) in enumerate(zip((3, 2, 4, 1, 2), HELD, strict=True))
)


def _latency_s(model: int, stages: int) -> dict[tuple[int, int], tuple[float, ...]]:
    """What each stage takes, by batch size and length."""
    return {
        (size, length): tuple(BASE_S[model] * growth * longer * part for part in UNEVEN[:stages])
        for size, growth in zip(BATCH_SIZES, GROWTH, strict=True)
        for length, longer in zip(LENGTHS, LONGER, strict=True)
    }


def _profiles() -> Profiles:
    def row(stages: int, size: int, length: int, latency_s: tuple[float, ...]) -> Profile:
        nothing = (0.0,) * stages
        return Profile(
            intra_op=1,
            inter_op=stages,
            batch_size=size,
            length=length,
            stage_latency_s=latency_s,
            stage_weight_bytes=nothing,
            stage_activation_bytes=nothing,
        )

    models = {
        f"m{model}": tuple(
            row(stages, size, length, latency_s)
            for stages in {group.inter_op for group in GROUPS}
            for (size, length), latency_s in _latency_s(model, stages).items()
        )
        for model in range(len(MODELS))
    }
    return Profiles(device_kind="test", memory_bytes=1.0, models=models)


class Ending(enum.Enum):
    """How a connection ends before the server does."""

    LOST = enum.auto()
    HALF_CLOSED = enum.auto()
    GARBAGE = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request: when and on which connection it comes, and when its caller gives it up."""

    at_s: float
    connection: int
    model: int
    rows: int
    length: int
    deadline_s: float | None
    priority: int
    tenant: str
    cancel_s: float | None

    @property
    def slo_s(self) -> float:
        deadline_s = MODELS[self.model].deadline_s if self.deadline_s is None else self.deadline_s
        return math.inf if deadline_s is None else deadline_s

    @property
    def sizes(self) -> dict[str, int]:
        return {"batch": self.rows, "length": self.length}


class What(enum.IntEnum):
    """What happens; several things in one instant happen in this order."""

    GROUP_LOST = enum.auto()
    CANCEL = enum.auto()
    ARRIVE = enum.auto()
    END = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All that happens. Requests go by their index in `calls`, which is in order of arrival."""

    seed: int
    calls: tuple[Call, ...]
    endings: Mapping[int, tuple[float, Ending]]  # by connection
    group_lost_s: float
    raises: frozenset[tuple[int, int]]  # (request, stage)

    @property
    def policy(self) -> Policy:
        return POLICIES[self.seed]

    def events(self) -> Iterator[tuple[float, What, int, list[int]]]:
        """(time, what, connection, requests), in order; a request that is given up as it comes is so by its arrival."""
        single = [(self.group_lost_s, What.GROUP_LOST, -1, -1)]
        for index, call in enumerate(self.calls):
            single.append((call.at_s, What.ARRIVE, call.connection, index))
            if call.cancel_s is not None and call.at_s < call.cancel_s <= self.end_s(call):
                single.append((call.cancel_s, What.CANCEL, call.connection, index))
        single += [(at_s, What.END, connection, -1) for connection, (at_s, _) in self.endings.items()]
        single.sort()
        for (at_s, what, connection), same in itertools.groupby(single, key=lambda event: event[:3]):
            yield at_s, what, connection, [index for *_, index in same]

    def end_s(self, call: Call) -> float:
        """When the connection of a call ends before the server does."""
        return self.endings[call.connection][0] if call.connection in self.endings else math.inf

    def stage_time(self, requests: Sequence[Request], group: int, stage: int, profiled_s: float) -> tuple[float, bool]:
        stretch = STRETCH[(requests[0].id + 3 * stage + group) % len(STRETCH)]
        return profiled_s * stretch, any((request.id, stage) in self.raises for request in requests)


def _draw_case(seed: int) -> Case:
    rng = random.Random(seed)
    wanted = [
        (rng.choices(range(len(MODELS)), POPULARITY)[0], rng.choice((1, 1, 2, 3)), rng.choice((2, 4, 5, 8)))
        for _ in range(REQUESTS)
    ]
    longer_of = {length: LONGER[length > LENGTHS[0]] for _, _, length in wanted}
    work_s = sum(BASE_S[model] * rows / BATCH_SIZES[-1] * GROWTH[-1] * longer_of[n] for model, rows, n in wanted)
    span_s = work_s * statistics.mean(STRETCH) / len(GROUPS) / OVERLOAD
    bursts_s = [_on_grid(rng.uniform(0, span_s)) for _ in range(BURSTS)]

    def time_s() -> float:
        if rng.random() < 0.3:
            return rng.choice(bursts_s)
        at_s = rng.uniform(0, span_s)
        while rng.random() < 0.9 and at_s / span_s * 8 % 1 < 0.25:  # quiet times
            at_s = rng.uniform(0, span_s)
        return at_s if rng.random() < 0.5 else _on_grid(at_s)

    kinds = rng.choices((None, *Ending), (82, 10, 5, 3), k=CONNECTIONS)
    endings = {connection: (time_s(), kind) for connection, kind in enumerate(kinds) if kind is not None}
    forever = [connection for connection in range(CONNECTIONS) if connection not in endings]
    in_order = sorted(endings, key=lambda connection: endings[connection][0])

    def connection_at(at_s: float) -> int:
        if rng.random() < 0.15:  # those that end soon have much in flight
            return next((each for each in in_order if endings[each][0] >= at_s), rng.choice(forever))
        connection = rng.randrange(CONNECTIONS)
        while connection in endings and endings[connection][0] < at_s:
            connection = rng.randrange(CONNECTIONS)
        return connection

    calls = [_draw_call(rng, (at_s := time_s()), connection_at(at_s), *each) for each in wanted]
    return Case(
        seed=seed,
        calls=tuple(sorted(calls, key=lambda call: (call.at_s, call.connection))),
        endings=endings,
        group_lost_s=_on_grid(span_s * 0.6),
        raises=frozenset((index, rng.randrange(3)) for index in rng.sample(range(REQUESTS), REQUESTS // 30)),
    )


def _draw_call(rng: random.Random, at_s: float, connection: int, model: int, rows: int, length: int) -> Call:
    deadline_s = rng.choice((None, 0.125, 0.25, 0.5, *(rng.uniform(0.03, 0.8) for _ in range(8))))
    cancel_s = None
    if rng.random() < 0.2:
        later_s = at_s + rng.expovariate(1 / rng.choice((0.03, 0.1, 1.0)))
        moments = (at_s, later_s, later_s, max(at_s, _on_grid(later_s)), at_s + (deadline_s or 0.0))
        cancel_s = rng.choice(moments)
    return Call(
        at_s=at_s,
        connection=connection,
        model=model,
        rows=rows,
        length=length,
        deadline_s=deadline_s,
        priority=rng.choice((0, 0, 1, -1, 10)),
        tenant=rng.choice(("", "a", "a", "b", "c")),
        cancel_s=cancel_s,
    )


def _on_grid(at_s: float) -> float:
    return round(at_s * TICKS) / TICKS


def _by_reference(case: Case) -> Reference:
    scheduler = Scheduler(dispatch=DISPATCHES[DISPATCH], overhead_s=OVERHEAD_S, max_queue=MAX_QUEUE, policy=case.policy)
    grid = Grid(BATCH_SIZES, [len(LENGTHS)], max_batch=BATCH_SIZES[-1])
    for group in GROUPS:
        at = scheduler.add_group(group.inter_op)
        for name in group.models:
            model = int(name[1:])
            latency_s = tuple(_latency_s(model, group.inter_op).values())
            scheduler.place(at, name, latency_s, grid, max_wait_s=MODELS[model].max_wait_s)
    driver = Reference(scheduler, stage_time=case.stage_time)
    on_connection: dict[int, list[int]] = defaultdict(list)
    for at_s, what, connection, indices in case.events():
        match what:
            case What.GROUP_LOST:
                driver.fail_group(LOST_GROUP, at_s)
            case What.CANCEL:
                for index in indices:
                    driver.cancel(index, at_s)
            case What.ARRIVE:
                on_connection[connection] += indices
                for index in indices:
                    driver.arrive(_request(index, case.calls[index]))
                    if case.calls[index].cancel_s == at_s:
                        driver.cancel(index, at_s)
            case What.END:
                for index in on_connection[connection]:
                    driver.cancel(index, at_s)
    driver.drain()
    return driver


def _request(index: int, call: Call) -> Request:
    model = MODELS[call.model]
    return Request(
        id=index,
        model=model.name,
        bucket=model.bucket_index(call.sizes),
        rows=call.rows,
        arrival_s=call.at_s,
        slo_s=call.slo_s,
        priority=call.priority,
        tenant=call.tenant,
    )


class Wire(asyncio.Transport):
    """The server's transport and the peer at its other end, which keeps what it hears, and when."""

    def __init__(self, protocol: Connection) -> None:
        super().__init__()
        self.heard: list[tuple[float, Any]] = []
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._decoder = native.Decoder(end="client")
        self._closing = self._lost = False
        protocol.connection_made(self)

    # What the server does

    def write(self, data: Any) -> None:
        assert not self._closing, "written to a transport that is closed"
        self.heard += [(self._loop.time(), message) for message in self._decoder.feed(bytes(data))]

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        assert not self._closing

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._lose)

    abort = close

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever waiting here."""

    # What the peer does

    def say(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def hang_up(self) -> None:
        """Ends without a word, in the middle of a frame."""
        frame = b"".join(native.encode_infer(2**40, "m0", None, {}))
        self.say(frame[: len(frame) // 2])
        self._closing = True
        self._lose(ConnectionResetError("reset by peer"))

    def half_close(self) -> None:
        if not self._protocol.eof_received():
            self.close()

    def _lose(self, error: Exception | None = None) -> None:
        assert not self._lost
        self._lost = True
        self._protocol.connection_lost(error)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What the peers heard, and what the engine counted."""

    wires: Sequence[Wire]
    status: dict[str, Any]


async def _by_engine(case: Case) -> Observed:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, JumpingLoop)
    complaints: list[Any] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    cluster = EmulatedCluster(GROUPS, _profiles(), stage_time=case.stage_time)
    engine = Engine(
        MODELS,
        placement=Placement(groups=GROUPS),
        cluster=cluster,
        clock=loop.time,
        dispatch=DISPATCH,
        overhead_s=OVERHEAD_S,
        max_queue=MAX_QUEUE,
        max_overtakings=case.policy.max_overtakings,
        shares=case.policy.shares,
    )
    async with engine:
        made, stand = _connections(engine)
        wires = [Wire(connection) for connection in made]
        for wire in wires:
            wire.say(_HELLO)
        await _tell(case, cluster, wires)
        await engine.drain(PATIENCE_S)
        await until(loop.time() + PATIENCE_S)  # what nobody waits for ends as well, and so does the watchdog
        assert complaints == []
        assert stand == {each for connection, each in enumerate(made) if connection not in case.endings}
        assert not loop.timers
        _check_that_nothing_is_left(engine, cluster, made)
        for connection in list(stand):
            connection.close()
        await asyncio.sleep(0)
        assert not stand
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return Observed(wires=wires, status=engine.status())


_HELLO = native.PREAMBLE + b"".join(native.encode(messages.Hello(native.VERSIONS, 2**26, "test")))


def _connections(engine: Engine) -> tuple[list[Connection], set[Connection]]:
    """Connections to be made, and a set of those that stand."""
    stand: set[Connection] = set()
    flusher = Flusher()
    limits = Limits(
        max_frame_bytes=2**20,
        max_in_flight=REQUESTS,
        max_in_flight_bytes=2**30,
        write_high_water_bytes=2**20,
        handshake_timeout_s=10.0,
        linger_s=1.0,
    )
    on_settled: Callable[[], None] = lambda: None  # noqa: E731
    options = {"agent": "test", "on_open": stand.add, "on_close": stand.discard, "on_settled": on_settled}
    return [Connection(engine, limits, flusher, access=Access(), **options) for _ in range(CONNECTIONS)], stand


async def _tell(case: Case, cluster: EmulatedCluster, wires: Sequence[Wire]) -> None:
    rng = random.Random(case.seed)
    for at_s, what, connection, indices in case.events():
        match what:
            case What.GROUP_LOST:
                happens = functools.partial(cluster.fail_group, LOST_GROUP, at_s)
            case What.CANCEL | What.ARRIVE:
                data = b"".join(_frames(what, at_s, index, case.calls[index]) for index in indices)
                happens = functools.partial(_say_in_two, wires[connection], data, rng.randrange(len(data)))
            case What.END:
                happens = functools.partial(_end, wires[connection], case.endings[connection][1])
        await _at(at_s, happens)


async def _at(when_s: float, happens: Callable[[], None]) -> None:
    """Lets something happen in a timer: before or after the engine's, where that is due at the same time."""
    loop = asyncio.get_running_loop()
    happened: asyncio.Future[None] = loop.create_future()

    def due() -> None:
        try:
            happens()
        except BaseException as error:  # the test's, and not the loop's to log
            happened.set_exception(error)
        else:
            happened.set_result(None)

    loop.call_at(when_s, due)
    await happened


def _say_in_two(wire: Wire, data: bytes, cut: int) -> None:
    wire.say(data[:cut])
    wire.say(data[cut:])


def _end(wire: Wire, ending: Ending) -> None:
    match ending:
        case Ending.LOST:
            wire.hang_up()
        case Ending.HALF_CLOSED:
            wire.half_close()
        case Ending.GARBAGE:
            wire.say(b"\xff" * 16)


def _frames(what: What, at_s: float, index: int, call: Call) -> bytes:
    """An arrival, a cancellation, or both. Requests are numbered from 1, as 0 is no id."""
    cancel = b"".join(native.encode(messages.Cancel(index + 1)))
    if what is What.CANCEL:
        return cancel
    name, inputs = MODELS[call.model].name, _inputs(index, call)
    infer = native.encode_infer(index + 1, name, call.deadline_s, inputs, priority=call.priority, tenant=call.tenant)
    return b"".join(infer) + (cancel if call.cancel_s == at_s else b"")


def _inputs(index: int, call: Call) -> dict[str, Any]:
    values = np.arange(call.rows * call.length, dtype=np.float32) + 64.0 * index
    return {"x": values.reshape(call.rows, call.length)}


def _check_that_nothing_is_left(engine: Engine, cluster: EmulatedCluster, made: Sequence[Connection]) -> None:
    status = engine.status()
    assert status["in_flight"] == 0
    for group in status["groups"]:
        assert (group["queue"], group["in_flight"]) == (0, 0)
    assert [connection.in_flight for connection in made] == [0] * len(made)
    assert cluster.next_end_s == math.inf
    scheduler = engine._scheduler
    assert scheduler.in_flight == ()
    assert scheduler.next_release_s == math.inf
    assert scheduler.next_deadline_s == math.inf
    assert not scheduler._deadlines  # `next_deadline_s` takes out those who are not inside
    for state in scheduler.groups:
        assert state.is_idle
        assert state.held is None
        assert not any(state._waiting)
        assert not any(state._running)
        order = state.order
        assert order is not None
        assert not order._standings
        assert not order._of_tenant
        assert (order._all.requests, order._all.cost_s) == (0, 0.0)
        assert len(order._next_tags) <= 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What became of a request: the counter that it is in; the code and details of the failure if it was not served."""

    counter: str
    code: str = ""
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])


def _fate(outcome: Outcome, call: Call) -> Fate:
    if isinstance(outcome, Done):
        return Fate(counter="served")
    if isinstance(outcome, Rejected):
        code, details = _refusal(outcome, call)
        return Fate(counter="refused", code=code, details=details)
    kinds: dict[FailReason, tuple[str, type[InferenceError], dict[str, Any]]] = {
        FailReason.EXPIRED: ("expired", DeadlineExceeded, {"deadline_s": call.slo_s}),
        FailReason.CANCELLED: ("cancelled", RequestCancelled, {}),
        FailReason.MODEL: ("failed", ModelFailed, {"model": f"m{call.model}"}),
        FailReason.GROUP: ("failed", GroupFailed, {"group": LOST_GROUP}),
    }
    counter, error, details = kinds[outcome.reason]
    return Fate(counter=counter, code=error.code, details=details)


def _refusal(rejected: Rejected, call: Call) -> tuple[str, dict[str, Any]]:
    retry = {} if rejected.retry_after_s == math.inf else {"retry_after_s": rejected.retry_after_s}
    if rejected.reason in (RefuseReason.FULL, RefuseReason.SHARE):
        return QueueFull.code, retry | ({"tenant": call.tenant} if rejected.reason is RefuseReason.SHARE else {})
    if rejected.predicted_finish_s == math.inf:  # no healthy group holds the model
        return GroupFailed.code, {}
    finish_s = rejected.predicted_finish_s - call.at_s
    return DeadlineRefused.code, {"predicted_finish_s": finish_s, "deadline_s": call.slo_s} | retry


def _check_message(message: Any, index: int, call: Call, fate: Fate) -> None:
    if fate.counter == "served":
        assert isinstance(message, messages.Result), (index, call, fate, message)
        expected = emulated_outputs(MODELS[call.model], _inputs(index, call), call.sizes)
        np.testing.assert_array_equal(message.outputs["output"], expected["output"])
    else:
        assert isinstance(message, messages.Failure), (index, call, fate, message)
        assert (message.code, message.details) == (fate.code, fate.details), (index, call)


def _check_wires(case: Case, observed: Observed, answers: Mapping[int, Answer], fates: Sequence[Fate]) -> None:
    """Every message is what the simulator says, and only connections that ended may have missed one."""
    heard: dict[int, tuple[float, int, Any]] = {}
    for connection, wire in enumerate(observed.wires):
        (_, welcome), *rest = wire.heard
        assert isinstance(welcome, messages.Welcome)
        if connection in case.endings and case.endings[connection][1] is Ending.GARBAGE:
            at_s, last = rest.pop()
            assert (at_s, last.id, last.code) == (case.endings[connection][0], 0, "frame_too_large")
        for at_s, message in rest:
            assert message.id - 1 not in heard, f"answered twice: {message}"
            heard[message.id - 1] = (at_s, connection, message)
    for index, call in enumerate(case.calls):
        answer = answers[index]
        if index not in heard:  # settled as the connection ended, or in that instant
            assert answer.at_s == case.end_s(call), (index, call, answer)
            continue
        at_s, connection, message = heard.pop(index)
        assert connection == call.connection
        assert at_s == pytest.approx(answer.at_s, abs=1e-9)
        _check_message(message, index, call, fates[index])
    assert not heard


def _check_counters(case: Case, status: Mapping[str, Any], simulated: Reference, fates: Sequence[Fate]) -> None:
    for model, counted in enumerate(status["models"].values()):
        expected = Counter(fate.counter for fate, call in zip(fates, case.calls, strict=True) if call.model == model)
        assert {name: counted[name] for name in expected} == expected
        assert counted["requests"] == expected.total()
        assert counted["invalid"] == 0
    for index, group in enumerate(status["groups"]):
        if index != LOST_GROUP:  # the simulator counts to its end what was cut short there
            assert group["busy_s"] == pytest.approx(simulated.busy_s[index])
        assert group["healthy"] == (index != LOST_GROUP)


@pytest.mark.parametrize("seed", POLICIES)
def test_after_cancellations_and_disconnects_nothing_is_left_and_the_simulator_agrees(seed: int) -> None:
    case = _draw_case(seed)
    simulated = _by_reference(case)
    answers = simulated.answers
    assert answers.keys() == set(range(REQUESTS))
    fates = [_fate(answers[index].outcome, call) for index, call in enumerate(case.calls)]
    counted = Counter(fate.counter for fate in fates)
    assert all(counted[counter] >= least for counter, least in LEAST.items()), counted
    observed = run(_by_engine(case))
    _check_wires(case, observed, answers, fates)
    _check_counters(case, observed.status, simulated, fates)
