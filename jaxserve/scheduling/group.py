"""One mesh group as the scheduler sees it: what waits, what runs, and when each stage will be free.

A group is a pipeline of stages. Each stage runs one batch at a time and takes the next in order of admission, so the
batches of a group never overtake each other. `clocks[k]` is when stage k will have finished everything that was
admitted; from it the finish of one more batch follows in O(stages) (`clocks_after`):

    t = now;  for each stage k:  t = max(t, clocks[k]) + latency[k]      (AlpaServe's simulator, rule in DESIGN.md)

As long as stages take exactly what their profile says, these sums are never wrong; they are done again only for a batch
that a request joins as it waits, and for those behind it (batch.py). When the group is told of anything else (a stage
ends early or late, a request is cancelled, expires or fails), they may be. By how much? A clock is the length of the
longest path through the table of (batch, stage), along the batches on a stage and from stage to stage. On a path the
differences of a stage are added up over batches that follow each other, so what they come to is a difference of two of
that stage's running sums, and at most their range; the clocks are wrong by no more than the ranges of all stages
together. Jitter that goes either way widens them but slowly. Once they are more than `TOLERANCE` of the time until the
last clock, the next prediction replays what is left, batch by batch, with the same sums, from what is known now. So the
longer the queue, the rarer the replays, and a prediction costs as much whether ten wait or ten thousand. A replay that
was not needed changes no bit.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice

from jaxserve.request import Request
from jaxserve.scheduling.batch import MOST_PASSED, Batch, Join, best_join, clocks_after
from jaxserve.scheduling.latencies import StageLatencies
from jaxserve.scheduling.order import Move, Order
from jaxserve.scheduling.residency import Residency

TOLERANCE = 0.02
STUCK_FACTOR = 10.0


class GroupState:
    """The queues and the clocks of one group.

    Args:
        stages: how many it has.
        order: the ranks of those who wait, where there are any.
        spare_bytes: what spares may take of a device of each stage; nothing by default.

    Attributes:
        stages: how many it has.
        order: the ranks of those who wait, where there are any.
        residency: the spares that it has.
        healthy: False once it was lost.
        stuck: a stage that has run for far longer than expected, and still does.
        queue_length: requests that wait for stage 0.
        held: the one batch that waits though stage 0 is free, for company.
        held_until_s: until when; infinite where there is none.
    """

    def __init__(self, stages: int, order: Order | None = None, spare_bytes: Sequence[float] | None = None) -> None:
        self.stages = stages
        self.order = order
        self.residency = Residency(spare_bytes or [0.0] * stages)
        self.healthy = True
        self.stuck: int | None = None
        self.queue_length = 0
        self.held: Batch | None = None
        self.held_until_s = math.inf
        self._batches: dict[int, Batch] = {}  # by id, in order of admission
        self._waiting: list[OrderedDict[int, Batch]] = [OrderedDict() for _ in range(stages)]
        self._running: list[Batch | None] = [None] * stages
        self._begun: list[float] = [0.0] * stages  # when what runs on a stage began
        self._ends: list[float] = [math.inf] * stages  # when what runs on a stage is expected to end
        self._freed: list[float] = [0.0] * stages  # when a stage last ended something
        self._clocks: Sequence[float] = [0.0] * stages
        self._ahead: Sequence[float] = [0.0] * stages  # the clocks as they are without what waits for stage 0
        self._error_s = 0.0  # how far the clocks may be wrong by what has ended and left: the ranges of these sums
        self._nothing = (0.0,) * stages
        self._sums = [0.0] * stages  # by how much longer than expected each stage took since they were right
        self._highest = [0.0] * stages
        self._lowest = [0.0] * stages
        self._overdue_s = math.inf  # when the first of what runs will have run longer than expected
        self._replayed_s = 0.0

    def clocks(self, now_s: float, tolerance: float = TOLERANCE) -> Sequence[float]:
        """When each stage will have finished everything admitted, to such a part of the wait; a copy is not made."""
        error_s = self._error_s if self.held is None else math.inf  # it has not begun when it was expected to
        if self._overdue_s < now_s:
            error_s += now_s - max(self._overdue_s, self._replayed_s)
        if error_s > 0.0 and error_s > tolerance * (self._clocks[-1] - now_s):
            self._replay(now_s)
        return self._clocks

    def append(self, batch: Batch, now_s: float) -> int | None:
        """Takes a batch in, with the clocks after it; returns the id of the one that stage 0 begins at once.

        One that is held is not held any longer.
        """
        self._clocks = batch.clocks
        self._batches[batch.id] = batch
        if self._running[0] is None and self.held is None:
            if self.order is not None:
                self._enter(batch, waits=False)
            batch.begun = len(batch.members)
            self._begin(batch, 0, now_s)
            return batch.id
        self._wait(batch)
        return None if self.held is None else self.release(now_s)

    def hold(self, batch: Batch, until_s: float) -> None:
        """Takes in a batch that waits for company, though nothing is ahead of it."""
        self._batches[batch.id] = batch
        self._wait(batch)
        self.held = batch
        self.held_until_s = until_s

    def release(self, now_s: float) -> int | None:
        """Begins the batch that was held; returns its id."""
        self.held = None
        self.held_until_s = math.inf
        self._replay(now_s)  # the clocks say that it began when it came
        return self.begin_next(0, now_s)

    def best_join(
        self, request: Request, latencies: StageLatencies, *, sooner_than_s: float, overhead_s: float, now_s: float
    ) -> Join | None:
        """The waiting batch that a request of these latencies had best join (batch.py); ask for the clocks first."""
        if not latencies.waiting or not latencies.grid.most_rows:
            return None
        waiting = self._waiting[0]
        last = list(islice(reversed(waiting.values()), MOST_PASSED + 1))
        ahead = last.pop().clocks if len(last) > MOST_PASSED else self._ahead
        last.reverse()
        return best_join(
            request, latencies, last, ahead, sooner_than_s=sooner_than_s, overhead_s=overhead_s, now_s=now_s
        )

    def join(self, request: Request, join: Join) -> None:
        """Takes a request into a batch, as `best_join` has just said."""
        join.batch.take(request, join.bucket)
        self.queue_length += 1
        if self.order is not None:
            self.order.enter(request, join.batch.cost_s(request), waits=True)
        if not join.clocks:
            return
        behind = list(islice(reversed(self._waiting[0].values()), len(join.clocks)))
        for batch, clocks in zip(reversed(behind), join.clocks, strict=True):
            batch.clocks = clocks
        self._clocks = join.clocks[-1]

    def moves(
        self, request: Request, latencies: StageLatencies, join: Join | None, *, finish_s: float, overhead_s: float
    ) -> tuple[list[Move], float]:
        """Who makes room for a request that may join or, without a join, be appended; see `Order.moves`."""
        if self.order is None:
            return [], finish_s
        waiting = reversed(self._waiting[0].values())
        if join is not None:
            for batch in waiting:
                if batch is join.batch:
                    break
        return self.order.moves(request, waiting, latencies, finish_s=finish_s, overhead_s=overhead_s)

    def exchange(self, request: Request, moves: Sequence[Move], vacancy: Batch) -> list[tuple[Batch, Request]]:
        """Makes room for a request that was taken into a batch; returns who has come into which batch instead."""
        assert self.order is not None
        self.order.overtake(request, moves)
        vacant = request
        moved: list[tuple[Batch, Request]] = []
        for batch, member in moves:
            vacancy.members[vacancy.members.index(vacant)] = member
            moved.append((vacancy, member))
            vacancy, vacant = batch, member
        vacancy.members[vacancy.members.index(vacant)] = request
        return [*moved, (vacancy, request)]

    def stage_done(self, stage: int, batch_id: int, now_s: float, *, leave: bool = False) -> Batch | None:
        """Ends a batch's turn on a stage; returns it where it thereby leaves the group.

        It leaves after the last stage, when nobody waits for it, or when the caller says so because it failed. Call
        `begin_next` for this stage and the one after it next. A report on a batch that is not known to run there is
        ignored: threads of a pipeline may begin a request in the instant in which it is cancelled.
        """
        batch = self._running[stage]
        if batch is None or batch.id != batch_id:
            self._error_s = math.inf
            return None
        self._running[stage] = None
        self._freed[stage] = now_s
        batch.running = False
        abandoned = not batch.members
        if not leave and not abandoned:
            batch.latencies.observe(batch.bucket, stage, now_s - self._begun[stage])
        difference_s = now_s - self._ends[stage]
        if difference_s:
            self._differ(stage, difference_s)
        self._ends[stage] = math.inf
        last = stage + 1 == len(self._running)
        if not (last or leave or abandoned):
            self._overdue_s = min(self._ends)
            batch.stage = stage + 1
            self._waiting[stage + 1][batch_id] = batch
            return None
        del self._batches[batch_id]
        if self._batches:
            self._overdue_s = min(self._ends)
            if not last:
                self._error_s = math.inf
        else:  # what comes next finds the group idle: no need to replay anything
            self._clocks = self._ahead = self._freed.copy()
            self._error_s = 0.0
            self._sums[:] = self._highest[:] = self._lowest[:] = self._nothing
            self._overdue_s = math.inf
        return batch

    def begin_next(self, stage: int, now_s: float) -> int | None:
        """Begins what waits longest for a stage, where the stage is free; returns the batch's id."""
        if self._running[stage] is not None or not self._waiting[stage]:
            return None
        batch_id, batch = self._waiting[stage].popitem(last=False)
        smaller = False
        if stage == 0:
            self.queue_length -= len(batch.requests)
            batch.latencies.waiting -= 1
            batch.begun = len(batch.members)
            if self.order is not None:
                for member in batch.requests:
                    self.order.leave(member, begins=True)
            planned_s = batch.latency_s
            batch.estimate_anew()
            if batch.latency_s is not planned_s:
                self._differ_by(batch.latency_s, planned_s)
            smaller = batch.reserved_rows > 0 and batch.settle()
        self._begin(batch, stage, now_s)
        if smaller:
            self._replay(now_s)
        return batch_id

    def drop(self, batch: Batch, request_id: int) -> None:
        """Lets go of a member that nobody waits for.

        Its batch, where nobody is left in it, goes at once where it waits for a stage, else when its stage ends.
        """
        before_s = batch.latency_s
        if batch.waits and self.order is not None:
            self.order.leave(next(member for member in batch.members if member.id == request_id), begins=False)
        batch.let_go(request_id)
        if not batch.waits:
            self._error_s = math.inf
        else:
            self.queue_length -= 1
            self._differ_by(batch.latency_s if batch.members else self._nothing, before_s)
        if not batch.members and not batch.running:
            if batch is self.held:
                self.held, self.held_until_s = None, math.inf
            if batch.waits:
                batch.latencies.waiting -= 1
            del self._waiting[batch.stage][batch.id]
            del self._batches[batch.id]

    def split(self, batch: Batch, ids: Iterator[int]) -> list[Batch]:
        """Takes a batch that failed and has left in again, in parts ahead of all that wait; call `begin_next` next."""
        halves = batch.halves(ids)
        first = OrderedDict((half.id, half) for half in halves)
        for batch_id in self._waiting[0]:
            first[batch_id] = self._batches.pop(batch_id)
        self._batches.update(first)
        self._waiting[0] = first
        self.queue_length += len(batch.members)
        batch.latencies.waiting += len(halves)
        self.held, self.held_until_s = None, math.inf  # it waits behind these two
        if self.order is not None:
            for member in batch.members:
                self.order.enter_again(member, batch.cost_s(member))
        self._error_s = math.inf
        return halves

    def clear(self, now_s: float) -> list[int]:
        """Empties the group, as when it failed; returns the ids of those who were waited for, oldest batch first."""
        lost = [member.id for batch in self._batches.values() for member in batch.requests]
        for batch in self._waiting[0].values():
            batch.latencies.waiting -= 1
        self._batches.clear()
        self.queue_length = 0
        self.stuck = None
        self.held, self.held_until_s = None, math.inf
        if self.order is not None:
            self.order.clear()
        self.residency.forget()
        for stage, waiting in enumerate(self._waiting):
            waiting.clear()
            if self._running[stage] is not None:
                self._running[stage] = None
                self._ends[stage] = math.inf
                self._freed[stage] = now_s
        self._error_s = math.inf
        self._overdue_s = math.inf
        return lost

    def stuck_stage(self, now_s: float, stuck_after_s: float) -> int | None:
        """A stage that has run for longer than given, and than `STUCK_FACTOR` times what it keeps 99 of 100 times."""
        for stage, batch in enumerate(self._running):
            if batch is not None:
                longest_s = batch.latencies.tail * (self._ends[stage] - self._begun[stage])
                patience_s = max(stuck_after_s, STUCK_FACTOR * longest_s)
                if now_s - self._begun[stage] > patience_s:
                    return stage
        return None

    def batch(self, batch_id: int) -> Batch:
        """A batch that is inside."""
        return self._batches[batch_id]

    def holds(self, model: str) -> bool:
        """Whether a request of a model is inside, or a batch of it that nobody waits for."""
        return any(batch.model == model for batch in self._batches.values())

    @property
    def is_idle(self) -> bool:
        """Whether nothing is inside."""
        return not self._batches

    @property
    def is_free(self) -> bool:
        """Whether stage 0 would begin what arrives."""
        return self._running[0] is None and self.held is None

    def finish_if_begun_s(self, batch: Batch, at_s: float) -> float:
        """When the batch that stage 0 begins next is done if it begins it at a time; ask for the clocks first."""
        return clocks_after(self._ahead, batch.latency_s, at_s)[-1]

    @property
    def next_begin_s(self) -> float:
        """When stage 0 is expected to begin what waits for it longest; ask for the clocks first."""
        return self._ahead[0]

    @property
    def next_finish_s(self) -> float:
        """When what waits for stage 0 longest is expected to leave the last one; infinite where nothing waits."""
        return next((batch.clocks[-1] for batch in self._waiting[0].values()), math.inf)

    @property
    def in_flight(self) -> int:
        """Requests inside; a batch that runs though nobody waits for it counts as one."""
        return sum(len(batch.members) or 1 for batch in self._batches.values())

    def _wait(self, batch: Batch) -> None:
        self._waiting[0][batch.id] = batch
        self.queue_length += len(batch.requests)
        batch.latencies.waiting += 1
        if self.order is not None:
            self._enter(batch, waits=True)

    def _enter(self, batch: Batch, *, waits: bool) -> None:
        assert self.order is not None
        for member in batch.requests:
            self.order.enter(member, batch.cost_s(member), waits=waits)

    def _begin(self, batch: Batch, stage: int, now_s: float) -> None:
        batch.running = True
        self._running[stage] = batch
        self._begun[stage] = now_s
        self._ends[stage] = end_s = now_s + batch.latency_s[stage]
        if stage == 0:
            self._ahead = batch.clocks
        if end_s < self._overdue_s:
            self._overdue_s = end_s

    def _differ(self, stage: int, difference_s: float) -> None:
        """Notes that a batch takes so much longer on a stage than the clocks say."""
        total_s = self._sums[stage] + difference_s
        self._sums[stage] = total_s
        if total_s > self._highest[stage]:
            self._error_s += total_s - self._highest[stage]
            self._highest[stage] = total_s
        elif total_s < self._lowest[stage]:
            self._error_s += self._lowest[stage] - total_s
            self._lowest[stage] = total_s

    def _differ_by(self, latency_s: Sequence[float], planned_s: Sequence[float]) -> None:
        for stage, (takes_s, expected_s) in enumerate(zip(latency_s, planned_s, strict=True)):
            if takes_s != expected_s:
                self._differ(stage, takes_s - expected_s)

    def _replay(self, now_s: float) -> None:
        """Works the clocks out anew, from what runs and waits now and from what stages are expected to take now."""
        clocks = list(self._freed)
        for stage, running in enumerate(self._running):
            if running is not None:
                clocks[stage] = max(self._ends[stage], now_s)
        batches = iter(self._batches.values())  # those that wait for stage 0 come last
        for batch in islice(batches, len(self._batches) - len(self._waiting[0])):
            if not batch.members:
                continue
            finish_s = clocks[batch.stage] if batch.running else now_s
            for stage in range(batch.stage + batch.running, len(clocks)):
                clock = clocks[stage]
                finish_s = (clock if clock > finish_s else finish_s) + batch.latency_s[stage]
                clocks[stage] = finish_s
        self._ahead = clocks
        for batch in batches:
            batch.estimate_anew()
            clocks = batch.clocks = clocks_after(clocks, batch.latency_s, now_s)
        self._clocks = clocks
        self._error_s = 0.0
        self._sums[:] = self._highest[:] = self._lowest[:] = self._nothing
        self._replayed_s = now_s
