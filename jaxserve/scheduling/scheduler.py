"""Every decision about every request, with no I/O and no clock.

A driver (the engine, the simulator) tells the scheduler what happened and when: a request arrived, a stage is done, a
caller gave up, time passed, a group died. The scheduler answers what is to be done: begin a request on a stage, or
settle one. The same calls at the same times give the same answers, to the last bit.

What begins and ends on stages are batches, of one request or of several that were merged (batch.py). A batch goes by
the id of the request that it was admitted with; `groups[group].batch(id)` says who is in it, and its bucket.

A model may raise because of one of those whom a batch holds. So a batch that began with several and fails is run again
as two halves, at once, and these likewise, until the request that it fails on fails alone.

At one instant a driver reports completions first, then begins what was held for company, then lets requests expire,
then reports cancellations, then arrivals; completions in order of group, then of request.
"""

import dataclasses
import heapq
import itertools
import math
import sys
from collections.abc import Sequence

from jaxserve.request import Done, Failed, FailReason, RefuseReason, Rejected, Request
from jaxserve.scheduling.batch import Batch, Join, clocks_after, in_time
from jaxserve.scheduling.dispatch import Dispatch, alpaserve
from jaxserve.scheduling.grid import ALONE, Grid
from jaxserve.scheduling.group import GroupState
from jaxserve.scheduling.latencies import Latencies, StageLatencies
from jaxserve.scheduling.order import FIRST_COME, Move, Order, Policy
from jaxserve.scheduling.replica import Replica
from jaxserve.scheduling.residency import Spare


@dataclasses.dataclass(slots=True)
class Admitted:
    """A request was taken in by `group`.

    Attributes:
        group: its index.
        predicted_finish_s: when it is expected to be answered, unless others join its batch or one ahead of it.
        begins: id of the batch that stage 0 of the group is to begin now; None for none.
    """

    group: int
    predicted_finish_s: float
    begins: int | None


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
        policy: who goes first, where it is not who came first.
    """

    def __init__(
        self,
        *,
        dispatch: Dispatch = alpaserve,
        overhead_s: float = 0.0,
        max_queue: int = sys.maxsize,
        policy: Policy = FIRST_COME,
    ) -> None:
        self.groups: list[GroupState] = []
        self._dispatch = dispatch
        self._overhead_s = overhead_s
        self._max_queue = max_queue
        self._policy = policy
        self._holders: dict[str, list[Replica]] = {}
        self._open: dict[str, list[Replica]] = {}  # of the holders, the healthy ones
        self._inside: dict[int, tuple[int, Batch]] = {}  # who is waited for, by id
        self._ids = itertools.count(-1, -1)  # of batches that no request is admitted with
        self._holding: set[int] = set()  # groups that hold a batch for company, and some that held one
        self._deadlines: list[tuple[float, int, Request]] = []  # a heap; holds settled requests until it is pruned

    def add_group(self, stages: int, *, spare_bytes: Sequence[float] | None = None) -> int:
        """Adds an idle group, where spares may take so much of a device of each stage; returns its index."""
        order = None if self._policy == FIRST_COME else Order(self._policy)
        self.groups.append(GroupState(stages, order, spare_bytes))
        return len(self.groups) - 1

    def place(
        self,
        group: int,
        model: str,
        latency_s: Latencies,
        grid: Grid = ALONE,
        *,
        max_wait_s: float = 0.0,
        spare: Spare | None = None,
    ) -> None:
        """Lets `group` serve `model`, whose requests merge as `grid` says.

        Args:
            group: its index.
            model: its name.
            latency_s: what each stage takes, at `latency_s[bucket][stage]`.
            grid: which buckets merged requests run on.
            max_wait_s: for how long a request that finds stage 0 free may wait for company.
            spare: how it is brought to the devices, where it is not to be there always.

        Raises:
            PlacementError: it is a spare, and larger than all that spares may take.
        """
        if spare is not None:
            self.groups[group].residency.add(model, spare)
        latencies = StageLatencies(latency_s, grid)
        holders = [replica for replica in self._holders.get(model, []) if replica.group != group]
        holders.append(Replica(group, self.groups[group], latencies, max_wait_s, spare))
        self._holders[model] = sorted(holders, key=lambda replica: replica.group)
        self._find_open()

    def withdraw(self, group: int, model: str) -> None:
        """Sends no further request of `model` to `group`; what is inside goes on."""
        self.groups[group].residency.remove(model)
        self._holders[model] = [replica for replica in self._holders.get(model, []) if replica.group != group]
        self._find_open()

    def note_late(self, group: int, model: str, *, arrival_s: float, now_s: float) -> None:
        """Notes that a request was late though it left the group in time."""
        for replica in self._holders.get(model, []):
            if replica.group == group:
                replica.latencies.note_late(arrival_s, now_s)

    def drift(self, model: str) -> float:
        """How much longer a model's stages take than profiled, by what was observed: the largest ratio."""
        return max((replica.latencies.drift for replica in self._holders.get(model, [])), default=1.0)

    def submit(self, request: Request, *, now_s: float) -> Admitted | Rejected:
        """Admits or rejects a request that arrived at `request.arrival_s` and is decided at `now_s`."""
        holders = self._open.get(request.model)
        if not holders:
            return Rejected(id=request.id, predicted_finish_s=math.inf, reason=RefuseReason.DOWN)
        replica = holders[0] if len(holders) == 1 else self._choose(holders, request, now_s)
        group, latencies = replica.state, replica.latencies
        latency_s = replica.latency_s(request.bucket)
        if replica.spare is not None:
            replica.spare.ask(now_s)
        clocks = replica.clocks(now_s)
        overhead_s = self._overhead_s if group.is_idle else self._overhead_s + latencies.margin_s
        reserved_rows, bucket = 0, request.bucket
        if latencies.grid.most_rows > request.rows:
            reserved_rows = replica.rows_to_reserve(
                request,
                now_s=now_s,
                wait_s=max(0.0, clocks[0] - now_s),
                spare_s=request.slo_s - overhead_s,
            )
            if reserved_rows:
                bucket = latencies.grid.holding(reserved_rows, latencies.grid.cell(request.bucket))
                latency_s = latencies.estimated[bucket]
        ahead = clocks_after(clocks, latency_s, now_s)
        finish_s = ahead[-1] + overhead_s
        left_s = request.slo_s - (finish_s - request.arrival_s)
        late = left_s < 0.0
        if late and sum(latencies.profiled[request.bucket]) + self._overhead_s > request.slo_s:
            return _refused(request, finish_s, math.inf, RefuseReason.LATE)
        if group.queue_length >= self._max_queue:
            retry_after_s = max(0.0, group.next_begin_s - now_s)
            return _refused(request, finish_s, retry_after_s, RefuseReason.FULL)
        if group.order is not None:
            cost_s, takes_s = latencies.share_and_total_s(request)
            retry_after_s = group.order.retry_after_s(
                request,
                cost_s,
                slack_s=request.slo_s - (now_s - request.arrival_s) - overhead_s - takes_s,
                takes_s=takes_s,
                begins_s=max(0.0, group.next_begin_s - now_s),
                places_left=self._max_queue - group.queue_length,
                now_s=now_s,
            )
            if retry_after_s > 0.0:
                return _refused(request, finish_s, max(retry_after_s, -left_s), RefuseReason.SHARE)
        join = group.best_join(
            request,
            latencies,
            sooner_than_s=math.inf if late else ahead[-1],
            overhead_s=overhead_s,
            now_s=now_s,
        )
        moves: list[Move] = []
        if join is not None:
            late = False
        if group.order is not None and group.queue_length and group.held is None:
            join, moves, late = self._find_seat(
                request, replica, join, ahead, late=late, overhead_s=overhead_s, now_s=now_s
            )
        if late:
            if replica.is_cold:
                warm_s = clocks_after(group.clocks(now_s), latency_s, now_s)[-1] + overhead_s
                if in_time((request,), warm_s):
                    return _refused(request, finish_s, clocks[-1] - now_s, RefuseReason.COLD)
            return _refused(request, finish_s, -left_s, RefuseReason.LATE)
        begins: int | None = None
        if join is not None:
            batch = join.batch
            group.join(request, join)
            finish_s = join.finish_s + self._overhead_s
        else:
            finish_s = ahead[-1] + self._overhead_s
            batch = Batch(
                request.id, request.model, [request], latencies, bucket, latency_s, ahead, request.rows, reserved_rows
            )
            if replica.is_cold:
                begins = self._bring(replica, request.model, now_s)
                group.append(batch, now_s)
            elif replica.max_wait_s > 0.0 and group.is_free and request.rows < latencies.grid.most_rows:
                group.hold(batch, now_s + replica.max_wait_s)
                self._holding.add(replica.group)
            else:
                begins = group.append(batch, now_s)
        self._inside[request.id] = (replica.group, batch)
        if group.held is not None:
            begins, finish_s = self._hold_on(group, now_s)
        elif moves:
            for into, member in group.exchange(request, moves, batch):
                self._inside[member.id] = (replica.group, into)
            finish_s = self._inside[request.id][1].clocks[-1] + self._overhead_s
        if request.slo_s != math.inf:
            self._watch(request)
        return Admitted(replica.group, finish_s, begins)

    def _choose(self, replicas: Sequence[Replica], request: Request, now_s: float) -> Replica:
        """Where company is waited for, there; else as dispatched."""
        if self._holding:
            for replica in replicas:
                held = replica.state.held
                if held is not None and held.latencies is replica.latencies and held.bucket_with(request) is not None:
                    return replica
        return self._dispatch(replicas, request, now_s)

    def _find_seat(
        self,
        request: Request,
        replica: Replica,
        join: Join | None,
        ahead: Sequence[float],
        *,
        late: bool,
        overhead_s: float,
        now_s: float,
    ) -> tuple[Join | None, list[Move], bool]:
        """The place for a request, who makes room for it, and whether it is late all the same (order.py).

        Args:
            request: who arrives.
            replica: where.
            join: the batch that it had best join, if any.
            ahead: the clocks with it behind all others.
            late: whether it would be late there.
            overhead_s: what an answer costs beyond its stages, and the margin.
            now_s: the time of its arrival.
        """
        group, latencies = replica.state, replica.latencies
        assert group.order is not None
        is_hopeless = late and not in_time((request,), group.next_finish_s + overhead_s)
        if is_hopeless or not group.order.may_outrank(request):
            return join, [], late
        if late:  # a place that is late for this one may do for another
            anybody = dataclasses.replace(request, slo_s=math.inf)
            join = group.best_join(anybody, latencies, sooner_than_s=ahead[-1], overhead_s=overhead_s, now_s=now_s)
        place_s = ahead[-1] if join is None else join.finish_s
        moves, seat_s = group.moves(request, latencies, join, finish_s=place_s, overhead_s=overhead_s)
        return join, moves, late and not in_time((request,), seat_s + overhead_s)

    def preload(self, model: str, *, now_s: float) -> list[tuple[int, int]]:
        """Brings a spare to the devices of a group, where that is worth it (residency.py).

        Returns (group, batch id) of what stage 0 is to begin now, if anything.
        """
        replicas = self._open.get(model, [])
        if not replicas or not all(replica.is_cold for replica in replicas):
            return []
        replica = min(replicas, key=lambda replica: replica.clocks(now_s)[-1])
        if not replica.state.residency.is_worth_it(model, now_s):
            return []
        begun = self._bring(replica, model, now_s)
        return [] if begun is None else [(replica.group, begun)]

    def _append(self, replica: Replica, batch: Batch, now_s: float, begins: list[tuple[int, int]]) -> None:
        """Appends a batch whose clocks are not known yet, and ahead of it what brings its model, if it is not there."""
        begun: list[int | None] = []
        if replica.is_cold:
            begun.append(self._bring(replica, batch.model, now_s))
        batch.clocks = clocks_after(replica.clocks(now_s), batch.latency_s, now_s)
        begun.append(replica.state.append(batch, now_s))
        begins += [(0, batch_id) for batch_id in begun if batch_id is not None]

    def _bring(self, replica: Replica, model: str, now_s: float) -> int | None:
        """Has a spare brought behind all else; returns the id of the batch that stage 0 begins now."""
        assert replica.spare is not None
        number = next(self._ids)
        batch = Batch.of(number, [Request(id=number, model=model, arrival_s=now_s)], replica.spare.latencies)
        batch.clocks = replica.clocks(now_s)
        batch.leaving = replica.state.residency.bring(model, now_s)
        return replica.state.append(batch, now_s)

    def _hold_on(self, group: GroupState, now_s: float) -> tuple[int | None, float]:
        """Holds a batch that somebody has just come into, for half of what its members have left at most.

        Returns its id where it is to begin now, and when it will be done.
        """
        batch = group.held
        assert batch is not None
        finish_s = batch.clocks[-1] + self._overhead_s
        left_s = min(member.slo_s - (finish_s - member.arrival_s) for member in batch.members)
        until_s = min(group.held_until_s, now_s + left_s / 2)
        if until_s <= now_s or batch.rows >= batch.latencies.grid.most_rows:
            return group.release(now_s), finish_s
        group.held_until_s = until_s
        return None, group.finish_if_begun_s(batch, until_s) + self._overhead_s

    def stage_done(self, group: int, stage: int, batch_id: int, *, now_s: float, failed: bool = False) -> Step:
        """Reports that a stage has ended a batch, or that the model raised on it there."""
        state = self.groups[group]
        left = state.stage_done(stage, batch_id, now_s, leave=failed)
        if state.stuck == stage:
            state.stuck = None  # where another stage is stuck, too, it will be found again
            self._find_open()
        outcomes: list[Done | Failed] = []
        begins: list[tuple[int, int]] = []
        if left is not None and failed and left.begun > 1 and left.members:
            self._run_again(group, left, now_s, begins)
            if stage > 0 and (begun := state.begin_next(0, now_s)) is not None:
                begins.append((0, begun))
        elif left is not None and left.leaving is not None:
            if failed:
                state.residency.failed(left.model)
        elif left is not None:
            for member in left.members:
                del self._inside[member.id]
                if left.latencies.margin_s > 0.0 and not failed:
                    left.latencies.note_in_time()
                if failed:
                    outcomes.append(Failed(id=member.id, group=group, reason=FailReason.MODEL))
                else:
                    outcomes.append(Done(id=member.id, group=group, finish_s=now_s + self._overhead_s))
        elif stage + 1 < state.stages and (begun := state.begin_next(stage + 1, now_s)) is not None:
            begins.append((stage + 1, begun))
        if (begun := state.begin_next(stage, now_s)) is not None:
            begins.append((stage, begun))
        return Step(outcomes, begins)

    def _run_again(self, group: int, batch: Batch, now_s: float, begins: list[tuple[int, int]]) -> None:
        """Takes a batch that failed in again as two, ahead of all that wait.

        Those of a spare are taken in behind all others: for what is ahead it may have to leave.
        """
        state, model = self.groups[group], batch.model
        if state.residency.has(model):
            if (begun := state.begin_next(0, now_s)) is not None:
                begins.append((0, begun))
            replica = next(each for each in self._holders[model] if each.group == group)
            halves = batch.halves(self._ids)
            for half in halves:
                self._append(replica, half, now_s, begins)
        else:
            halves = state.split(batch, self._ids)
        for half in halves:
            for member in half.members:
                self._inside[member.id] = (group, half)

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
            if request_id in self._inside:
                self._inside[request_id][1].latencies.note_late(request.arrival_s, now_s)
            failed = self.cancel(request_id, reason=FailReason.EXPIRED)
            if failed is not None:
                expired.append(failed)
        return expired

    @property
    def next_release_s(self) -> float:
        """When `release` next has something to do; infinite where it has not."""
        if not self._holding:  # almost always
            return math.inf
        return min(self.groups[group].held_until_s for group in self._holding)

    def release(self, *, now_s: float) -> list[tuple[int, int]]:
        """(group, batch id) of what stage 0 is to begin now, as it has waited for company long enough."""
        begins: list[tuple[int, int]] = []
        for group in sorted(self._holding):
            state = self.groups[group]
            if state.held_until_s <= now_s:
                batch_id = state.release(now_s)
                assert batch_id is not None
                begins.append((group, batch_id))
            if state.held is None:
                self._holding.discard(group)
        return begins

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
            stage = None if state.stuck is not None else state.stuck_stage(now_s, stuck_after_s)
            if stage is not None:
                state.stuck = stage
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

    def _find_open(self) -> None:
        self._open = {
            model: [each for each in holders if each.state.healthy and each.state.stuck is None]
            for model, holders in self._holders.items()
        }

    def _watch(self, request: Request) -> None:
        """Notes a deadline; settled requests are pruned once they are more than half of the heap."""
        if len(self._deadlines) > 64 + 2 * len(self._inside):
            self._deadlines = [item for item in self._deadlines if item[1] in self._inside]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (request.deadline_s, request.id, request))


def _refused(request: Request, finish_s: float, retry_after_s: float, reason: RefuseReason) -> Rejected:
    return Rejected(id=request.id, predicted_finish_s=finish_s, retry_after_s=retry_after_s, reason=reason)
