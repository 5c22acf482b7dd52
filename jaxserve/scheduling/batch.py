"""Requests that run as one, and when a request may join others.

Requests of one model that wait on one group can be merged. A batch of n of them runs on the smallest bucket that holds
n, padded where that bucket holds more; buckets that hold more than `max_batch` are not used. A batch *waits* until it
begins on stage 0. As long as it waits, requests may join it or leave it; then its bucket is settled.

A request r arrives and the dispatch has chosen its group, whose clocks[k] says when stage k will have finished every
batch admitted so far. The group may take r in one of two ways:

append  r becomes a batch of its own behind all others, done at the end of `clocks_after`. Nobody else's finish changes.
join    r joins a waiting batch of its model that has room for one more. That batch moves to the bucket for one more;
        it and every batch behind it go through the same recurrence anew (`feasible_joins`).

Either is *feasible* where everyone whose finish it sets is in time, finish + overhead - arrival <= SLO: r, and for a
join also the other members of the batch and those of every batch behind it.

Joins are looked at oldest batch first. The first one is taken that is feasible and leaves the last stage free earlier
than appending would or, where appending is not feasible, the first one that is feasible. If there is none, r is
appended where that is feasible, else rejected.

So no batch is held back to wait for company: it gathers those who arrive while the stages are busy. And every promise
is kept as long as stages take what is expected and a smaller bucket takes no longer than a larger one: a join keeps
those that it touches, an append touches none, and one who leaves delays nobody.

At one instant a driver reports ends of stages before arrivals, so a batch that begins as somebody arrives cannot be
joined any more. Only requests of bucket 0 are merged: one of a larger bucket fills it by itself.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from jaxserve.request import Request
from jaxserve.scheduling.latencies import StageLatencies


@dataclasses.dataclass(slots=True, eq=False)
class Batch:
    """One or more requests of a model that go through a group together.

    Attributes:
        first: the request that it began with; its id is the batch's, even after it has left.
        members: those whom somebody waits for, in order of admission. A batch that runs without any goes no further
            than the stage that it is on.
        latencies: what the model's stages take on this group.
        bucket: the bucket that it runs on.
        latency_s: seconds that each stage is expected to take for it.
        stage: the stage that it runs on or waits for.
        running: whether it runs on that stage.
    """

    first: Request
    members: list[Request]
    latencies: StageLatencies
    bucket: int
    latency_s: Sequence[float]
    stage: int = 0
    running: bool = False

    @property
    def waits(self) -> bool:
        """Whether it has not yet begun on stage 0."""
        return self.stage == 0 and not self.running

    def bucket_with(self, request: Request, latencies: StageLatencies) -> int | None:
        """The bucket that it would run on if a request of these latencies joined it; None where that cannot be."""
        together = len(self.members) + 1
        if self.latencies is not latencies or together > len(latencies.bucket_of):
            return None
        return None if self.first.bucket or request.bucket else latencies.bucket_of[together - 1]

    def move_to(self, bucket: int) -> None:
        """Changes the bucket of a batch that waits."""
        self.bucket = bucket
        self.latency_s = self.latencies.estimated[bucket]

    def let_go(self, request_id: int) -> None:
        """Takes a member out; a batch that waits then needs no larger bucket than for those who stay."""
        self.members = [member for member in self.members if member.id != request_id]
        if self.members and self.waits:
            self.move_to(self.latencies.bucket_of[len(self.members) - 1])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """What a request's joining a batch comes to.

    Attributes:
        batch: the batch.
        bucket: the bucket that it moves to.
        finish_s: when it will be done.
        clocks: when each stage of the group will have finished everything.
    """

    batch: Batch
    bucket: int
    finish_s: float
    clocks: list[float]


def clocks_after(clocks: Sequence[float], latency_s: Sequence[float], now_s: float) -> list[float]:
    """The clocks as they are with one more batch behind the others; the last is when it is done.

    A batch that waits begins when stage 0 is free, which is never before now; one that arrives begins now at best.
    """
    finish_s = now_s
    ahead: list[float] = []
    for clock, latency in zip(clocks, latency_s, strict=True):
        finish_s = (clock if clock > finish_s else finish_s) + latency
        ahead.append(finish_s)
    return ahead


def feasible_joins(
    request: Request,
    latencies: StageLatencies,
    waiting: Sequence[Batch],
    clocks: Sequence[float],
    *,
    overhead_s: float,
    now_s: float,
) -> Iterator[Join]:
    """The joins that are feasible, oldest batch first.

    Args:
        request: who arrives.
        latencies: what its model's stages take on the group.
        waiting: the group's batches that wait, in order of admission.
        clocks: when each stage will have finished the batches that wait no more.
        overhead_s: what an answer costs beyond its stages.
        now_s: the time.
    """
    for index, batch in enumerate(waiting):
        bucket = batch.bucket_with(request, latencies)
        if bucket is not None:
            done = clocks_after(clocks, latencies.estimated[bucket], now_s)
            if in_time((*batch.members, request), done[-1] + overhead_s):
                behind = _followed_by(waiting[index + 1 :], done, overhead_s=overhead_s, now_s=now_s)
                if behind is not None:
                    yield Join(batch=batch, bucket=bucket, finish_s=done[-1], clocks=behind)
        clocks = clocks_after(clocks, batch.latency_s, now_s)


def in_time(requests: Iterable[Request], finish_s: float) -> bool:
    """Whether an answer at `finish_s` is in time for all of them."""
    return all(finish_s - request.arrival_s <= request.slo_s for request in requests)


def _followed_by(
    batches: Sequence[Batch], clocks: list[float], *, overhead_s: float, now_s: float
) -> list[float] | None:
    """The clocks with these batches behind; None where anyone of theirs would be late."""
    for batch in batches:
        clocks = clocks_after(clocks, batch.latency_s, now_s)
        if not in_time(batch.members, clocks[-1] + overhead_s):
            return None
    return clocks
