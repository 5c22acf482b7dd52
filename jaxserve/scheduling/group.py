"""One mesh group as the scheduler sees it: what waits, what runs, and when each stage will be free.

A group is a pipeline of stages. Each stage runs one batch at a time and takes the next in order of admission, so the
batches of a group never overtake each other. `clocks[k]` is when stage k will have finished everything that was
admitted; from it the finish of one more batch follows in O(stages) (`clocks_after`):

    t = now;  for each stage k:  t = max(t, clocks[k]) + latency[k]      (AlpaServe's simulator, rule in DESIGN.md)

As long as stages take exactly what their profile says, these sums are never wrong; they are done again only for a batch
that a request joins as it waits, and for those behind it (batch.py). When the group is told of anything else (a stage
ends early or late, a request is cancelled, expires or fails), the clocks are *stale*: the next prediction replays what
is left, batch by batch, with the same sums, from what is known now. A replay that was not needed changes no bit.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from jaxserve.request import Request
from jaxserve.scheduling.batch import Batch, Join, feasible_joins
from jaxserve.scheduling.latencies import StageLatencies


class GroupState:
    """The queues and the clocks of one group.

    Attributes:
        stages: how many it has.
        healthy: whether it takes new requests.
    """

    def __init__(self, stages: int) -> None:
        self.stages = stages
        self.healthy = True
        self._batches: dict[int, Batch] = {}  # by id, in order of admission
        self._waiting: list[OrderedDict[int, Batch]] = [OrderedDict() for _ in range(stages)]
        self._running: list[Batch | None] = [None] * stages
        self._begun: list[float] = [0.0] * stages  # when what runs on a stage began
        self._ends: list[float] = [0.0] * stages  # when what runs on a stage is expected to end
        self._freed: list[float] = [0.0] * stages  # when a stage last ended something
        self._clocks: list[float] = [0.0] * stages
        self._stale = False
        self._overdue_s = math.inf  # when the first of what runs will have run longer than expected

    def clocks(self, now_s: float) -> list[float]:
        """When each stage will have finished everything admitted; a copy is not made."""
        if self._stale or self._overdue_s < now_s:
            self._clocks = self._replay(self._batches.values(), now_s)
            self._stale = False
        return self._clocks

    def append(self, batch: Batch, ahead: list[float], now_s: float) -> bool:
        """Takes a batch in, `ahead` being the clocks after it; True where stage 0 begins it at once."""
        self._clocks = ahead
        self._batches[batch.first.id] = batch
        if self._running[0] is None:
            self._begin(batch, 0, now_s)
            return True
        self._waiting[0][batch.first.id] = batch
        return False

    def joins(self, request: Request, latencies: StageLatencies, *, overhead_s: float, now_s: float) -> Iterator[Join]:
        """The waiting batches that a request of these latencies may join, oldest first."""
        if self._waiting[0] and len(latencies.bucket_of) > 1:
            waiting = tuple(self._waiting[0].values())
            clocks = self._replay((batch for batch in self._batches.values() if not batch.waits), now_s)
            yield from feasible_joins(request, latencies, waiting, clocks, overhead_s=overhead_s, now_s=now_s)

    def join(self, request: Request, join: Join) -> None:
        """Takes a request into a batch, as one of `joins` has just said."""
        join.batch.members.append(request)
        join.batch.move_to(join.bucket)
        self._clocks = join.clocks

    def stage_done(self, stage: int, batch_id: int, now_s: float, *, leave: bool = False) -> Batch | None:
        """Ends a batch's turn on a stage; returns it where it thereby leaves the group.

        It leaves after the last stage, when nobody waits for it, or when the caller says so because it failed. Call
        `begin_next` for this stage and the one after it next. A report on a batch that is not known to run there is
        ignored: threads of a pipeline may begin a request in the instant in which it is cancelled.
        """
        batch = self._running[stage]
        if batch is None or batch.first.id != batch_id:
            self._stale = True
            return None
        self._running[stage] = None
        self._freed[stage] = now_s
        batch.running = False
        abandoned = not batch.members
        if not leave and not abandoned:
            batch.latencies.observe(batch.bucket, stage, now_s - self._begun[stage])
        if self._ends[stage] != now_s:
            self._stale = True
        last = stage + 1 == len(self._running)
        if not (last or leave or abandoned):
            self._find_overdue()
            batch.stage = stage + 1
            self._waiting[stage + 1][batch_id] = batch
            return None
        del self._batches[batch_id]
        if self._batches:
            self._find_overdue()
            if not last:
                self._stale = True
        else:  # what comes next finds the group idle: no need to replay anything
            self._clocks = self._freed.copy()
            self._stale = False
            self._overdue_s = math.inf
        return batch

    def begin_next(self, stage: int, now_s: float) -> int | None:
        """Begins what waits longest for a stage, where the stage is free; returns the batch's id."""
        if self._running[stage] is not None or not self._waiting[stage]:
            return None
        batch_id, batch = self._waiting[stage].popitem(last=False)
        self._begin(batch, stage, now_s)
        return batch_id

    def drop(self, request_id: int) -> None:
        """Lets go of a request that nobody waits for.

        Its batch, where nobody is left in it, goes at once where it waits for a stage, else when its stage ends.
        """
        batch = self._batch_of(request_id)
        batch.let_go(request_id)
        self._stale = True
        if not batch.members and not batch.running:
            del self._waiting[batch.stage][batch.first.id]
            del self._batches[batch.first.id]

    def clear(self, now_s: float) -> list[int]:
        """Empties the group, as when it failed; returns the ids of those who were waited for, oldest batch first."""
        lost = [member.id for batch in self._batches.values() for member in batch.members]
        self._batches.clear()
        for stage, waiting in enumerate(self._waiting):
            waiting.clear()
            if self._running[stage] is not None:
                self._running[stage] = None
                self._freed[stage] = now_s
        self._stale = True
        self._overdue_s = math.inf
        return lost

    def batch(self, batch_id: int) -> Batch:
        """A batch that is inside."""
        return self._batches[batch_id]

    def holds(self, model: str) -> bool:
        """Whether a request of a model is inside, or a batch of it that nobody waits for."""
        return any(batch.first.model == model for batch in self._batches.values())

    @property
    def is_idle(self) -> bool:
        """Whether nothing is inside."""
        return not self._batches

    @property
    def queue_length(self) -> int:
        """Requests that wait for stage 0."""
        return sum(len(batch.members) for batch in self._waiting[0].values())

    @property
    def in_flight(self) -> int:
        """Requests inside; a batch that runs though nobody waits for it counts as one."""
        return sum(len(batch.members) or 1 for batch in self._batches.values())

    def _batch_of(self, request_id: int) -> Batch:
        batch = self._batches.get(request_id)
        if batch is not None:
            return batch
        return next(each for each in self._batches.values() if any(one.id == request_id for one in each.members))

    def _begin(self, batch: Batch, stage: int, now_s: float) -> None:
        batch.running = True
        self._running[stage] = batch
        self._begun[stage] = now_s
        self._ends[stage] = end_s = now_s + batch.latency_s[stage]
        if end_s < self._overdue_s:
            self._overdue_s = end_s

    def _find_overdue(self) -> None:
        self._overdue_s = math.inf
        for batch, end_s in zip(self._running, self._ends, strict=True):
            if batch is not None and end_s < self._overdue_s:
                self._overdue_s = end_s

    def _replay(self, batches: Iterable[Batch], now_s: float) -> list[float]:
        """When each stage will have finished these batches of the group, the oldest ones without a gap."""
        clocks = list(self._freed)
        for stage, running in enumerate(self._running):
            if running is not None:
                clocks[stage] = max(self._ends[stage], now_s)
        for batch in batches:
            if not batch.members:
                continue
            finish_s = clocks[batch.stage] if batch.running else now_s
            for stage in range(batch.stage + batch.running, len(clocks)):
                clock = clocks[stage]
                finish_s = (clock if clock > finish_s else finish_s) + batch.latency_s[stage]
                clocks[stage] = finish_s
        return clocks
