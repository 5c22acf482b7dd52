"""The reference simulator: an event heap that drives the scheduler.

It is one of the scheduler's two drivers; the engine is the other. Both owe the scheduler the same calls in the same
order, so this one is written for reading: one heap of stage ends, one clock, no shortcuts.
"""

import dataclasses
import heapq
import math
from collections.abc import Callable, Sequence

from jaxserve.request import Done, Failed, Outcome, RefuseReason, Request
from jaxserve.scheduling import Admitted, Scheduler

StageTime = Callable[[Sequence[Request], int, int, float], tuple[float, bool]]
"""(those in the batch, group, stage, profiled seconds) -> (seconds that it takes, whether the model raises at its end).
"""


def as_profiled(requests: Sequence[Request], group: int, stage: int, profiled_s: float) -> tuple[float, bool]:
    """Every stage takes what its profile says and nothing raises."""
    return profiled_s, False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a request and when.

    Attributes:
        outcome: done, rejected or failed.
        at_s: when the caller would know.
        admitted: the scheduler's word on arrival, where it was taken in.
    """

    outcome: Outcome
    at_s: float
    admitted: Admitted | None


class Reference:
    """Drives a scheduler through events that are told in order of time.

    Args:
        scheduler: with its groups and models placed.
        stage_time: what stages take in truth; bringing a spare takes what is profiled.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        stage_time: StageTime = as_profiled,
    ) -> None:
        self.answers: dict[int, Answer] = {}
        self.busy_s: dict[int, float] = {}
        self._scheduler = scheduler
        self._stage_time = stage_time
        self._admitted: dict[int, Admitted] = {}
        self._ends: list[tuple[float, int, int, int, bool]] = []  # (time, group, batch id, stage, raises)
        self._lives: dict[int, int] = {}  # group -> how often it died; an end of an earlier life counts no more
        self._life_of: dict[tuple[int, int], int] = {}

    def arrive(self, request: Request) -> None:
        """A request arrives."""
        self.advance(request.arrival_s)
        decision = self._scheduler.submit(request, now_s=request.arrival_s)
        if not isinstance(decision, Admitted):
            self.answers[request.id] = Answer(outcome=decision, at_s=request.arrival_s, admitted=None)
            if decision.reason is RefuseReason.COLD:
                for group, batch_id in self._scheduler.preload(request.model, now_s=request.arrival_s):
                    self._begin(group, 0, batch_id, request.arrival_s)
            return
        self._admitted[request.id] = decision
        if decision.begins is not None:
            self._begin(decision.group, 0, decision.begins, request.arrival_s)

    def cancel(self, request_id: int, at_s: float) -> None:
        """A caller gives up."""
        self.advance(at_s)
        failed = self._scheduler.cancel(request_id)
        if failed is not None:
            self._settle(failed, at_s)

    def fail_group(self, group: int, at_s: float) -> None:
        """A group dies with everything inside."""
        self.advance(at_s)
        self._lives[group] = self._lives.get(group, 0) + 1
        for failed in self._scheduler.fail_group(group, now_s=at_s):
            self._settle(failed, at_s)

    def advance(self, to_s: float) -> None:
        """Lets time pass up to and including `to_s`: at each instant completions, then releases, then expiries."""
        while True:
            end_s = self._ends[0][0] if self._ends else math.inf
            release_s = self._scheduler.next_release_s
            deadline_s = self._scheduler.next_deadline_s
            next_s = min(end_s, release_s, deadline_s)
            if next_s > to_s or next_s == math.inf:
                return
            if end_s == next_s:
                self._end()
            elif release_s == next_s:
                for group, batch_id in self._scheduler.release(now_s=release_s):
                    self._begin(group, 0, batch_id, release_s)
            else:
                for failed in self._scheduler.expire(now_s=deadline_s):
                    self._settle(failed, deadline_s)

    def drain(self) -> None:
        """Lets time pass until nothing is left to happen."""
        self.advance(math.inf)

    def _begin(self, group: int, stage: int, batch_id: int, now_s: float) -> None:
        batch = self._scheduler.groups[group].batch(batch_id)
        takes_s, raises = batch.latencies.profiled[batch.bucket][stage], False
        if batch.requests:
            takes_s, raises = self._stage_time(batch.requests, group, stage, takes_s)
        self.busy_s[group] = self.busy_s.get(group, 0.0) + takes_s
        self._life_of[batch_id, stage] = self._lives.get(group, 0)
        heapq.heappush(self._ends, (now_s + takes_s, group, batch_id, stage, raises))

    def _end(self) -> None:
        now_s, group, batch_id, stage, raises = heapq.heappop(self._ends)
        if self._life_of.pop((batch_id, stage)) != self._lives.get(group, 0):
            return
        step = self._scheduler.stage_done(group, stage, batch_id, now_s=now_s, failed=raises)
        for outcome in step.outcomes:
            self._settle(outcome, now_s)
        for next_stage, next_id in step.begins:
            self._begin(group, next_stage, next_id, now_s)

    def _settle(self, outcome: Done | Failed, at_s: float) -> None:
        admitted = self._admitted.pop(outcome.id)
        self.answers[outcome.id] = Answer(outcome=outcome, at_s=at_s, admitted=admitted)
