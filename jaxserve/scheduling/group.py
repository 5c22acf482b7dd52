"""One mesh group as the scheduler sees it: what waits, what runs, and when each stage will be free.

A group is a pipeline of stages. Each stage runs one request at a time and takes the next in order of admission, so the
requests of a group never overtake each other. `clocks[k]` is when stage k will have finished everything that was
admitted; from it the finish of one more request follows in O(stages):

    t = now;  for each stage k:  t = max(t, clocks[k]) + latency[k]      (AlpaServe's simulator, rule in DESIGN.md)

As long as stages take exactly what their profile says, these sums are never wrong and are never done again. When the
group is told of anything else (a stage ends early or late, a request is cancelled, expires or fails), the clocks are
*stale*: the next prediction replays what is left, request by request, with the same sums, from what is known now.
"""

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

from jaxserve.request import Request


@dataclasses.dataclass(slots=True, eq=False)
class Entry:
    """A request inside a group.

    Attributes:
        request: the request.
        latency_s: seconds that each stage is expected to take for it.
        stage: the stage that it runs on or waits for.
        observe: told (bucket, stage, seconds) of each stage that it was run on, to its end.
        running: whether it runs on that stage.
        abandoned: nobody waits for it any more; it leaves when its stage ends.
    """

    request: Request
    latency_s: Sequence[float]
    observe: Callable[[int, int, float], None]
    stage: int = 0
    running: bool = False
    abandoned: bool = False


class GroupState:
    """The queues and the clocks of one group.

    Attributes:
        stages: how many it has.
        healthy: whether it takes new requests.
    """

    def __init__(self, stages: int) -> None:
        self.stages = stages
        self.healthy = True
        self._waiting: list[OrderedDict[int, Entry]] = [OrderedDict() for _ in range(stages)]
        self._running: list[Entry | None] = [None] * stages
        self._begun: list[float] = [0.0] * stages  # when what runs on a stage began
        self._ends: list[float] = [0.0] * stages  # when what runs on a stage is expected to end
        self._freed: list[float] = [0.0] * stages  # when a stage last ended something
        self._entries: dict[int, Entry] = {}  # in order of admission
        self._clocks: list[float] = [0.0] * stages
        self._stale = False
        self._overdue_s = math.inf  # when the first of what runs will have run longer than expected

    def clocks(self, now_s: float) -> list[float]:
        """When each stage will have finished everything admitted; a copy is not made."""
        if self._stale or self._overdue_s < now_s:
            self._replay(now_s)
        return self._clocks

    def predict(self, latency_s: Sequence[float], now_s: float) -> list[float]:
        """The clocks as they would be with one more request that arrives now; the last is when it would be done."""
        finish_s = now_s
        ahead: list[float] = []
        for clock, latency in zip(self.clocks(now_s), latency_s, strict=True):
            finish_s = (clock if clock > finish_s else finish_s) + latency
            ahead.append(finish_s)
        return ahead

    def admit(
        self,
        request: Request,
        latency_s: Sequence[float],
        ahead: list[float],
        observe: Callable[[int, int, float], None],
        now_s: float,
    ) -> bool:
        """Takes a request in, `ahead` being what `predict` has just said; True where stage 0 begins it at once."""
        self._clocks = ahead
        entry = Entry(request, latency_s, observe)
        self._entries[request.id] = entry
        if self._running[0] is None:
            self._begin(entry, 0, now_s)
            return True
        self._waiting[0][request.id] = entry
        return False

    def stage_done(self, stage: int, request_id: int, now_s: float, *, leave: bool = False) -> Entry | None:
        """Ends a request's turn on a stage; returns its entry where it thereby leaves the group.

        It leaves after the last stage, when it was abandoned, or when the caller says so because it failed. Call
        `begin_next` for this stage and the one after it next. A report on a request that is not known to run there is
        ignored: threads of a pipeline may begin a request in the instant in which it is cancelled.
        """
        entry = self._running[stage]
        if entry is None or entry.request.id != request_id:
            self._stale = True
            return None
        self._running[stage] = None
        self._freed[stage] = now_s
        entry.running = False
        if not leave and not entry.abandoned:
            entry.observe(entry.request.bucket, stage, now_s - self._begun[stage])
        if self._ends[stage] != now_s:
            self._stale = True
        last = stage + 1 == len(self._running)
        if not (last or leave or entry.abandoned):
            self._find_overdue()
            entry.stage = stage + 1
            self._waiting[stage + 1][request_id] = entry
            return None
        del self._entries[request_id]
        if self._entries:
            self._find_overdue()
            if not last:
                self._stale = True
        else:  # what comes next finds the group idle: no need to replay anything
            self._clocks = self._freed.copy()
            self._stale = False
            self._overdue_s = math.inf
        return entry

    def begin_next(self, stage: int, now_s: float) -> int | None:
        """Begins what waits longest for a stage, where the stage is free; returns its request's id."""
        if self._running[stage] is not None or not self._waiting[stage]:
            return None
        request_id, entry = self._waiting[stage].popitem(last=False)
        self._begin(entry, stage, now_s)
        return request_id

    def drop(self, request_id: int) -> None:
        """Lets go of a request that nobody waits for: at once where it waits, else when its stage ends."""
        entry = self._entries[request_id]
        self._stale = True
        if entry.running:
            entry.abandoned = True
        else:
            del self._waiting[entry.stage][request_id]
            del self._entries[request_id]

    def clear(self, now_s: float) -> list[int]:
        """Empties the group, as when it failed; returns the ids of those who were waited for, oldest first."""
        lost = [request_id for request_id, entry in self._entries.items() if not entry.abandoned]
        self._entries.clear()
        for stage, waiting in enumerate(self._waiting):
            waiting.clear()
            if self._running[stage] is not None:
                self._running[stage] = None
                self._freed[stage] = now_s
        self._stale = True
        self._overdue_s = math.inf
        return lost

    def holds(self, model: str) -> bool:
        """Whether a request of a model is inside, abandoned ones included."""
        return any(entry.request.model == model for entry in self._entries.values())

    @property
    def queue_length(self) -> int:
        """Requests that wait for stage 0."""
        return len(self._waiting[0])

    @property
    def in_flight(self) -> int:
        """Requests inside, abandoned ones included."""
        return len(self._entries)

    def _begin(self, entry: Entry, stage: int, now_s: float) -> None:
        entry.running = True
        self._running[stage] = entry
        self._begun[stage] = now_s
        self._ends[stage] = end_s = now_s + entry.latency_s[stage]
        if end_s < self._overdue_s:
            self._overdue_s = end_s

    def _find_overdue(self) -> None:
        self._overdue_s = math.inf
        for entry, end_s in zip(self._running, self._ends, strict=True):
            if entry is not None and end_s < self._overdue_s:
                self._overdue_s = end_s

    def _replay(self, now_s: float) -> None:
        clocks = list(self._freed)
        for stage, entry in enumerate(self._running):
            if entry is not None:
                clocks[stage] = max(self._ends[stage], now_s)
        for entry in self._entries.values():
            if entry.abandoned:
                continue
            finish_s = clocks[entry.stage] if entry.running else now_s
            for stage in range(entry.stage + entry.running, len(clocks)):
                clock = clocks[stage]
                finish_s = (clock if clock > finish_s else finish_s) + entry.latency_s[stage]
                clocks[stage] = finish_s
        self._clocks = clocks
        self._stale = False
