"""Every decision about every request, with no I/O and no clock.

A driver (the engine, the simulator) tells the scheduler what happened and when: a request arrived, a stage is done, a
caller gave up, time passed, a group died. The scheduler answers what is to be done: begin a request on a stage, or
settle one. The same calls at the same times give the same answers, to the last bit.

What begins and ends on stages are batches, of one request or of several that were merged (batch.py). A batch goes by
the id of the request that it began with; `groups[group].batch(id)` says who is in it and which bucket it runs on.

A model may raise because of one of those whom a batch holds. So a batch of several that fails is run again as two
halves, at once, and these likewise, until the request that it fails on fails alone.

At one instant a driver reports completions first, then lets requests expire, then reports cancellations, then arrivals;
completions in order of group, then of request.
"""

import dataclasses
import heapq
import math
import sys
from collections.abc import Sequence

from jaxserve.request import Done, Failed, FailReason, Rejected, Request
from jaxserve.scheduling.batch import Batch, clocks_after
from jaxserve.scheduling.dispatch import Dispatch, alpaserve
from jaxserve.scheduling.grid import ALONE, Grid
from jaxserve.scheduling.group import GroupState
from jaxserve.scheduling.latencies import Latencies, StageLatencies
from jaxserve.scheduling.replica import Replica


@dataclasses.dataclass(slots=True)
class Admitted:
    """A request was taken in by `group`; `begins` where stage 0 is to begin it now, as a batch of one.

    Attributes:
        predicted_finish_s: when it is expected to be answered, unless others join its batch or one ahead of it.
    """

    group: int
    predicted_finish_s: float
    begins: bool


@dataclasses.dataclass(slots=True)
class Step:
    """What follows from the end of a stage.

    Attributes:
        outcomes: of the requests of the batch whose stage ended, where it thereby left with somebody waiting for them.
        begins: (stage, batch id) of what begins now in the same group.
    """

    outcomes: list[Done | Failed]
    begins: list[tuple[int, int]]


class Scheduler:
    """Queues, clocks and admission of all groups.

    Args:
        dispatch: chooses among the groups that hold a model.
        overhead_s: added to every predicted finish: what an answer costs beyond its stages.
        max_queue: how many requests may wait for the first stage of a group; one more is rejected.
    """

    def __init__(
        self, *, dispatch: Dispatch = alpaserve, overhead_s: float = 0.0, max_queue: int = sys.maxsize
    ) -> None:
        self.groups: list[GroupState] = []
        self._dispatch = dispatch
        self._overhead_s = overhead_s
        self._max_queue = max_queue
        self._holders: dict[str, list[Replica]] = {}
        self._open: dict[str, list[Replica]] = {}  # of the holders, the healthy ones
        self._inside: dict[int, tuple[int, Batch]] = {}  # who is waited for, by id
        self._deadlines: list[tuple[float, int, Request]] = []  # a heap; holds settled requests until it is pruned

    def add_group(self, stages: int) -> int:
        """Adds an idle group; returns its index."""
        self.groups.append(GroupState(stages))
        return len(self.groups) - 1

    def place(self, group: int, model: str, latency_s: Latencies, grid: Grid = ALONE) -> None:
        """Lets `group` serve `model`, whose requests merge as `grid` says.

        `latency_s[bucket][stage]` is what each stage takes.
        """
        latencies = StageLatencies(latency_s, list(latency_s), grid)
        holders = [replica for replica in self._holders.get(model, []) if replica.group != group]
        holders.append(Replica(group, self.groups[group], latencies))
        self._holders[model] = sorted(holders, key=lambda replica: replica.group)
        self._find_open()

    def withdraw(self, group: int, model: str) -> None:
        """Sends no further request of `model` to `group`; what is inside goes on."""
        self._holders[model] = [replica for replica in self._holders[model] if replica.group != group]
        self._find_open()

    def drift(self, model: str) -> float:
        """How much longer a model's stages take than profiled, by what was observed: the largest ratio."""
        return max((replica.latencies.drift for replica in self._holders.get(model, [])), default=1.0)

    def submit(self, request: Request, *, now_s: float, expires: bool = True) -> Admitted | Rejected:
        """Admits or rejects a request that arrived at `request.arrival_s` and is decided at `now_s`.

        Where the driver ends it before anything else can happen, `expires` may be False: its deadline is not watched.
        """
        holders = self._open.get(request.model)
        if not holders:
            return Rejected(id=request.id, predicted_finish_s=math.inf)
        replica = holders[0] if len(holders) == 1 else self._dispatch(holders, request, now_s)
        group, latencies = replica.state, replica.latencies
        latency_s = replica.latency_s(request.bucket)
        clocks = group.clocks(now_s)
        reserved_rows, bucket = 0, request.bucket
        if latencies.grid.most_rows > request.rows:
            reserved_rows = replica.rows_to_reserve(
                request,
                now_s=now_s,
                wait_s=max(0.0, clocks[0] - now_s),
                spare_s=request.slo_s - self._overhead_s,
            )
            if reserved_rows:
                bucket = latencies.grid.holding(reserved_rows, latencies.grid.cell(request.bucket))
                latency_s = latencies.estimated[bucket]
        ahead = clocks_after(clocks, latency_s, now_s)
        finish_s = ahead[-1] + self._overhead_s
        if group.queue_length >= self._max_queue:
            retry_after_s = max(0.0, group.next_begin_s - now_s)
            return Rejected(id=request.id, predicted_finish_s=finish_s, retry_after_s=retry_after_s, full=True)
        late = finish_s - request.arrival_s > request.slo_s
        join = group.best_join(
            request,
            latencies,
            sooner_than_s=math.inf if late else ahead[-1],
            overhead_s=self._overhead_s,
            now_s=now_s,
        )
        begins = False
        if join is not None:
            batch = join.batch
            group.join(request, join)
            finish_s = join.finish_s + self._overhead_s
        elif late:
            alone_s = sum(latencies.profiled[request.bucket]) + self._overhead_s
            late_s = finish_s - request.arrival_s - request.slo_s
            retry_after_s = late_s if alone_s <= request.slo_s else math.inf
            return Rejected(id=request.id, predicted_finish_s=finish_s, retry_after_s=retry_after_s)
        else:
            batch = Batch(request, [request], latencies, bucket, latency_s, ahead, request.rows, reserved_rows)
            begins = group.append(batch, now_s)
        self._inside[request.id] = (replica.group, batch)
        if expires and request.slo_s != math.inf:
            self._watch(request)
        return Admitted(replica.group, finish_s, begins)

    def stage_done(self, group: int, stage: int, batch_id: int, *, now_s: float, failed: bool = False) -> Step:
        """Reports that a stage has ended a batch, or that the model raised on it there."""
        state = self.groups[group]
        left = state.stage_done(stage, batch_id, now_s, leave=failed)
        if state.stuck:
            state.stuck = False  # where another stage is stuck still, it will be found again
            self._find_open()
        outcomes: list[Done | Failed] = []
        begins: list[tuple[int, int]] = []
        if left is not None and failed and len(left.members) > 1:
            for half in state.split(left):
                for member in half.members:
                    self._inside[member.id] = (group, half)
            if stage > 0:
                self._begin_next(state, 0, now_s, begins)
        elif left is not None:
            for member in left.members:
                del self._inside[member.id]
                if failed:
                    outcomes.append(Failed(id=member.id, group=group, reason=FailReason.MODEL))
                else:
                    outcomes.append(Done(id=member.id, group=group, finish_s=now_s + self._overhead_s))
        elif stage + 1 < state.stages:
            self._begin_next(state, stage + 1, now_s, begins)
        self._begin_next(state, stage, now_s, begins)
        return Step(outcomes, begins)

    def cancel(self, request_id: int, *, reason: FailReason = FailReason.CANCELLED) -> Failed | None:
        """Lets go of a request; None where it is not inside (never admitted, or settled already)."""
        found = self._inside.pop(request_id, None)
        if found is None:
            return None
        group, batch = found
        self.groups[group].drop(batch, request_id)
        return Failed(id=request_id, group=group, reason=reason)

    def expire(self, *, now_s: float) -> list[Failed]:
        """Lets go of the requests whose deadline has passed, in order of deadline."""
        expired: list[Failed] = []
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now_s:
            deadline_s, request_id, request = deadlines[0]
            if request_id in self._inside and now_s - request.arrival_s <= request.slo_s:
                # arrival + slo was rounded down: a finish at this instant would still be in time
                heapq.heapreplace(deadlines, (math.nextafter(deadline_s, math.inf), request_id, request))
                continue
            heapq.heappop(deadlines)
            failed = self.cancel(request_id, reason=FailReason.EXPIRED)
            if failed is not None:
                expired.append(failed)
        return expired

    @property
    def next_deadline_s(self) -> float:
        """When `expire` next has something to do; infinite where it has not."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][1] not in self._inside:
            heapq.heappop(deadlines)
        return deadlines[0][0] if deadlines else math.inf

    def fail_group(self, group: int, *, now_s: float) -> list[Failed]:
        """Fails everything inside a group and sends nothing to it until `restore_group`."""
        state = self.groups[group]
        state.healthy = False
        self._find_open()
        lost = state.clear(now_s)
        for request_id in lost:
            del self._inside[request_id]
        return [Failed(id=request_id, group=group, reason=FailReason.GROUP) for request_id in lost]

    def find_stuck(self, *, now_s: float, stuck_after_s: float) -> list[tuple[int, int]]:
        """(group, stage) of what is found stuck that was not before (`GroupState.stuck_stage`).

        Such a group takes nobody in until that stage ends after all. Who is inside stays until then, or until it
        expires.
        """
        found: list[tuple[int, int]] = []
        for index, state in enumerate(self.groups):
            stage = None if state.stuck else state.stuck_stage(now_s, stuck_after_s)
            if stage is not None:
                state.stuck = True
                found.append((index, stage))
        if found:
            self._find_open()
        return found

    def restore_group(self, group: int) -> None:
        """Sends requests to a group again."""
        self.groups[group].healthy = True
        self._find_open()

    @property
    def in_flight(self) -> Sequence[int]:
        """Ids of the requests that somebody waits for, in no order."""
        return tuple(self._inside)

    @staticmethod
    def _begin_next(state: GroupState, stage: int, now_s: float, begins: list[tuple[int, int]]) -> None:
        begun = state.begin_next(stage, now_s)
        if begun is not None:
            begins.append((stage, begun))

    def _find_open(self) -> None:
        self._open = {
            model: [each for each in holders if each.state.healthy and not each.state.stuck]
            for model, holders in self._holders.items()
        }

    def _watch(self, request: Request) -> None:
        """Notes a deadline; settled requests are pruned once they are more than half of the heap."""
        if len(self._deadlines) > 64 + 2 * len(self._inside):
            self._deadlines = [item for item in self._deadlines if item[1] in self._inside]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (request.deadline_s, request.id, request))
