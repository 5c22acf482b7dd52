"""Requests that run as one, and when a request may join others.

Requests of one model that wait on one group can be merged. A batch runs on the smallest bucket that holds the rows of
all its members, in a cell that holds each of them (grid.py); what it does not fill is padding. A batch *waits* until it
begins on stage 0. As long as it waits, requests may join it or leave it; then its bucket is settled.

A request r arrives and the dispatch has chosen its group, whose clocks[k] says when stage k will have finished every
batch admitted so far. The group may take r in one of two ways:

append  r becomes a batch of its own behind all others, done at the end of `clocks_after`. Nobody else's finish changes.
join    r joins a waiting batch of its model that has room for it, among the last `MOST_PASSED` of those that wait. That
        batch moves to the bucket for one more; it and every batch behind it go through the same recurrence anew.

Either is *feasible* where everyone whose finish it sets is in time, finish + overhead - arrival <= SLO: r, and for a
join also the other members of the batch and those of every batch behind it.

Of the joins that are feasible, that one is taken which leaves the last stage free earliest, the oldest batch on a tie:
the one that adds least work, so least padding. But where appending is feasible and leaves it free no later, or where no
join is feasible, r is appended; where that is not feasible either, it is rejected.

If batches were planned for those who are in them and no more, overload would undo batching. Whenever the queue is one
request's latency short of the deadline the next one would be appended, alone, done just in time; nobody could join it,
nor any batch ahead of it, without making it late; and so on for ever. So a batch that is appended and has to wait is
planned for those who are *expected* to join it (`Replica.rows_to_reserve`): as many as came of late in as long as it
waits, up to a size that leaves time to wait for the batch ahead. Its latency is that of the bucket for them all. When
it begins with fewer, it runs on a smaller bucket, and those behind it are done sooner than planned.

So no batch is held back to wait for company: it gathers those who arrive while the stages are busy. And every promise
is kept as long as stages take what is expected and a smaller bucket takes no longer than a larger one: a join keeps
those that it touches, an append touches none, and one who leaves delays nobody. A request overtakes those in the
batches that its join passes, fewer than `MOST_PASSED`.

At one instant a driver reports ends of stages before arrivals, so a batch that begins as somebody arrives cannot be
joined any more.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jaxserve.request import Request
from jaxserve.scheduling.latencies import StageLatencies

MOST_PASSED = 32


@dataclasses.dataclass(slots=True, eq=False)
class Batch:
    """One or more requests of a model that go through a group together.

    Attributes:
        id: of the request that was admitted with it, which may since have left, or sit in another batch (order.py);
            negative where there was none.
        model: name of its model.
        members: those whom somebody waits for, in order of admission. A batch that runs without any goes no further
            than the stage that it is on.
        latencies: what the model's stages take on this group.
        bucket: the bucket that it runs on.
        latency_s: seconds that each stage is expected to take for it.
        clocks: while it waits, when each stage of its group will have finished it and everything ahead of it.
        rows: of its members together.
        reserved_rows: for how many it is planned at least as long as it waits.
        begun: how many members it had when it began on stage 0.
        stage: the stage that it runs on or waits for.
        running: whether it runs on that stage.
        leaving: where it brings its model's weights to the devices and is no batch of requests, the models that leave
            for it (residency.py); None otherwise.
        carries: what the driver keeps with it.
    """

    id: int
    model: str
    members: list[Request]
    latencies: StageLatencies
    bucket: int
    latency_s: Sequence[float]
    clocks: Sequence[float]
    rows: int
    reserved_rows: int = 0
    begun: int = 0
    stage: int = 0
    running: bool = False
    leaving: tuple[str, ...] | None = None
    carries: Any = None

    @classmethod
    def of(cls, id: int, members: list[Request], latencies: StageLatencies) -> "Batch":
        """A batch of these requests of one model, that waits, and whose clocks are not known yet."""
        bucket = smallest_bucket(members, latencies)
        rows = sum(member.rows for member in members)
        return cls(id, members[0].model, members, latencies, bucket, latencies.estimated[bucket], (), rows)

    def halves(self, ids: Iterator[int]) -> list["Batch"]:
        """Two batches of its members, or one of a single member, that wait, and whose clocks are not known yet.

        They get the next of these ids.
        """
        middle = len(self.members) // 2
        parts = (self.members[:middle], self.members[middle:])
        return [Batch.of(next(ids), members, self.latencies) for members in parts if members]

    @property
    def requests(self) -> Sequence[Request]:
        """The members, of a batch of requests."""
        return self.members if self.leaving is None else ()

    @property
    def waits(self) -> bool:
        """Whether it has not yet begun on stage 0."""
        return self.stage == 0 and not self.running

    def cost_s(self, member: Request) -> float:
        """What a member takes of the slowest stage (`StageLatencies.share_and_total_s`)."""
        return self.latencies.share_and_total_s(member)[0]

    def bucket_with(self, request: Request) -> int | None:
        """The bucket that it would run on if a request of its model joined it; None where there is no room."""
        grid = self.latencies.grid
        rows = self.rows + request.rows
        if rows > grid.most_rows:
            return None
        return grid.holding(
            max(rows, self.reserved_rows), grid.united(grid.cell(self.bucket), grid.cell(request.bucket))
        )

    def take(self, request: Request, bucket: int) -> None:
        """Takes a request in, and thereby moves to the bucket that `bucket_with` has said."""
        self.members.append(request)
        self.rows += request.rows
        self._move_to(bucket)

    def let_go(self, request_id: int) -> None:
        """Takes a member out; a batch that waits then needs a bucket for those who stay and are expected."""
        self.members = [member for member in self.members if member.id != request_id]
        self.rows = sum(member.rows for member in self.members)
        if self.members and self.waits:
            self._move_to(smallest_bucket(self.members, self.latencies, self.reserved_rows))

    def settle(self) -> bool:
        """As it begins: it runs on the smallest bucket that holds it; whether it was planned for a larger one."""
        planned = self.bucket
        self.reserved_rows = 0
        self._move_to(smallest_bucket(self.members, self.latencies))
        return self.bucket != planned

    def estimate_anew(self) -> None:
        """Expects of its stages what has been learnt since it was admitted."""
        self.latency_s = self.latencies.estimated[self.bucket]

    def _move_to(self, bucket: int) -> None:
        self.bucket = bucket
        self.latency_s = self.latencies.estimated[bucket]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """What a request's joining a batch comes to.

    Attributes:
        batch: the batch.
        bucket: the bucket that it moves to.
        finish_s: when it will be done.
        clocks: when each stage of the group will have finished it, and each batch behind it; empty where the join
            changes none.
    """

    batch: Batch
    bucket: int
    finish_s: float
    clocks: list[list[float]]


def smallest_bucket(members: Sequence[Request], latencies: StageLatencies, reserved_rows: int = 0) -> int:
    """The smallest bucket that holds these requests of one model together, and so many rows."""
    if len(members) == 1 and not reserved_rows:
        return members[0].bucket
    grid = latencies.grid
    cell = 0
    for member in members:
        cell = grid.united(cell, grid.cell(member.bucket))
    return grid.holding(max(reserved_rows, sum(member.rows for member in members)), cell)


def clocks_after(clocks: Sequence[float], latency_s: Sequence[float], now_s: float) -> list[float]:
    """The clocks as they are with one more batch behind the others; the last is when it is done.

    A batch that waits begins when stage 0 is free, which is never before now; one that arrives begins now at best.
    """
    finish_s = now_s
    ahead: list[float] = []
    for clock, latency in zip(clocks, latency_s):  # noqa: B905  of one length; asking costs a fifth more
        finish_s = (clock if clock > finish_s else finish_s) + latency
        ahead.append(finish_s)
    return ahead


def best_join(
    request: Request,
    latencies: StageLatencies,
    waiting: Sequence[Batch],
    ahead: Sequence[float],
    *,
    sooner_than_s: float,
    overhead_s: float,
    now_s: float,
) -> Join | None:
    """The feasible join that leaves the last stage free earliest, and sooner than a given time.

    Args:
        request: who arrives.
        latencies: what its model's stages take on the group.
        waiting: batches of the group that wait, in order of admission, up to the last one.
        ahead: the clocks as they will be when the first of these begins.
        sooner_than_s: the time.
        overhead_s: what an answer costs beyond its stages.
        now_s: the time of the arrival.
    """
    best: Join | None = None
    for index, batch in enumerate(waiting):
        bucket = batch.bucket_with(request) if batch.latencies is latencies else None
        if bucket is None:
            pass
        elif bucket == batch.bucket:  # nothing is moved
            finish_s, last_s = batch.clocks[-1], waiting[-1].clocks[-1]
            if last_s < sooner_than_s and finish_s + overhead_s - request.arrival_s <= request.slo_s:
                sooner_than_s = last_s
                best = Join(batch=batch, bucket=bucket, finish_s=finish_s, clocks=[])
        else:
            done = clocks_after(ahead, latencies.estimated[bucket], now_s)
            if done[-1] < sooner_than_s and in_time((*batch.members, request), done[-1] + overhead_s):
                clocks = [done]
                if _follow(waiting[index + 1 :], clocks, sooner_than_s, overhead_s=overhead_s, now_s=now_s):
                    sooner_than_s = clocks[-1][-1]
                    best = Join(batch=batch, bucket=bucket, finish_s=done[-1], clocks=clocks)
        ahead = batch.clocks
    return best


def in_time(requests: Iterable[Request], finish_s: float) -> bool:
    """Whether an answer at `finish_s` is in time for all of them."""
    for request in requests:  # noqa: SIM110  three times as fast as all()
        if finish_s - request.arrival_s > request.slo_s:
            return False
    return True


def _follow(
    batches: Sequence[Batch], clocks: list[list[float]], sooner_than_s: float, *, overhead_s: float, now_s: float
) -> bool:
    """Adds the clocks after each of these batches; False where it ends late for anyone, or no sooner than that."""
    for batch in batches:
        after = clocks_after(clocks[-1], batch.latency_s, now_s)
        if after[-1] >= sooner_than_s or not in_time(batch.members, after[-1] + overhead_s):
            return False
        clocks.append(after)
    return True
