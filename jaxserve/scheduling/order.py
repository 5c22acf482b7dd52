"""Who goes first among those who wait on one group: priorities, and fair shares of tenants.

Both are off unless asked for. Batches begin first come, first served. What is reordered is who sits in them: a batch is
a number of *seats* of a model, and a request may take the seat of another one of its model, rows and lengths that waits
further ahead. Nobody's bucket changes thereby, so neither do the clocks, and other models notice nothing.

A request *outranks* another of lower priority; among equals, where tenants share, one with a larger tag. The tags are
those of start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM'96, section 2): a request of tenant i that costs c is
tagged S = max(V, F_i), and then F_i = S + c / weight_i; V is the largest tag of those that have begun. The cost is its
part of what the slowest stage takes for a full batch, or for the largest one that its deadline allows.

A newcomer is first given a place as batch.py says, at the end of a batch or of the queue: a *vacancy*. From there the
batches of its model are looked at, last one first, `MOST_LOOKED` at most. In each, of those whom it outranks and who
would still be in time if they were done with the vacancy, the one of lowest rank moves there, and leaves a vacancy
behind; the newcomer takes the last one. So each of those who move goes back by one batch in which somebody moves, they
keep their order, and every promise is kept. Where the first place would be late for the newcomer itself, it is taken in
if the last one is not.

By priority, nobody has to move more than `max_overtakings` times. By tags no bound is needed: a tag, once given, stays,
while those of newcomers rise. Who may not move stays, and others move past it; so does who runs again because a batch
failed.

Order alone does not share where demand exceeds capacity: a queue that one tenant has filled up to the deadline has no
room for others. So a tenant that has requests waiting may have one more only as long as

    its own part of the wait <= ROOM * weight * what is left of the slack

(the dynamic threshold of Choudhury and Hahne, IEEE/ACM Trans. Networking 6(2), 1998, for buffers of switches). Slack is
for how long a request could wait. It is the newcomer's own or, where that is less, the average of another tenant that
has sent requests to the group within `MEMORY_S`, though at least `LEAST_SLACK` times what the newcomer takes. The wait
is until what runs has ended, and what those who wait cost, each its part of a full batch: by the clocks a batch of one
takes as long as one of eight, and the seats that are free in it would count for nothing, just where deadlines leave
room for few batches.

Several who always want more get parts by weight, though always one place. With ROOM of 1, one leaves half of the slack
to others, for these come in bursts: two batches deep, one who asks for a tenth of what is served has at least 98 % of
it, and one who asks for a third 91 to 97 %, beside one who asks for ten times what is served. Who is alone fills
ALONE_ROOM / (ALONE_ROOM + 1) of it, so there is room for the first of another tenant. The parts of the queue are the
parts of the throughput. Of the places in a queue (`max_queue`), the same holds.
"""

import dataclasses
import itertools
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from jaxserve.errors import ConfigError, InvalidInput
from jaxserve.request import Request, check_tenant
from jaxserve.scheduling.batch import Batch, in_time
from jaxserve.scheduling.latencies import StageLatencies

ROOM, ALONE_ROOM = 1.0, 4.0
MEMORY_S, WEIGHT, LEAST_SLACK = 60.0, 0.25, 4.0
MOST_LOOKED = 2000
LEAST_WEIGHT, MOST_WEIGHT = 0.001, 1000.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is heeded.

    Attributes:
        max_overtakings: by how many of higher priority a request may be overtaken; at 0 priorities count for nothing.
        shares: weights of tenants, 1 for those who are not named; None where tenants count for nothing.
    """

    max_overtakings: int = 0
    shares: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.max_overtakings, bool) or not isinstance(self.max_overtakings, numbers.Integral):
            raise ConfigError(f"max_overtakings is {self.max_overtakings!r}, but must be a whole number of at least 0")
        if self.max_overtakings < 0:
            raise ConfigError(
                f"max_overtakings is {self.max_overtakings}, but must be a whole number of at least 0; at 0, "
                f"priorities count for nothing"
            )
        if self.shares is None:
            return
        if not hasattr(self.shares, "items"):
            raise ConfigError(f"shares is {self.shares!r}, but must be weights by tenant; {{}} for all alike")
        for tenant, weight in self.shares.items():
            try:
                check_tenant(tenant)
            except InvalidInput as error:
                raise ConfigError(f"shares: {error}") from error
            if not _is_weight(weight):
                raise ConfigError(
                    f"the share of tenant {tenant!r} is {weight!r}, but must be a number from {LEAST_WEIGHT:g} to "
                    f"{MOST_WEIGHT:g}; who is not named has 1"
                )
        object.__setattr__(self, "shares", dict(self.shares))


def _is_weight(value: Any) -> bool:
    try:
        return not isinstance(value, bool | str) and LEAST_WEIGHT <= float(value) <= MOST_WEIGHT
    except (TypeError, ValueError):
        return False


FIRST_COME = Policy()
"""Neither priorities nor tenants count."""


@dataclasses.dataclass(slots=True, eq=False)
class _Standing:
    """One who waits: its tag, what it costs, and by how many of higher priority it was overtaken."""

    tag: float
    cost_s: float
    overtaken: int = 0


@dataclasses.dataclass(slots=True, eq=False)
class _Waiting:
    """How many wait, and what they cost together; without any, exactly nothing."""

    requests: int = 0
    cost_s: float = 0.0

    def add(self, cost_s: float) -> None:
        self.requests += 1
        self.cost_s += cost_s

    def remove(self, cost_s: float) -> None:
        self.requests -= 1
        self.cost_s = self.cost_s - cost_s if self.requests else 0.0


Move = tuple[Batch, Request]
"""A batch, and who leaves its seat in it."""


class Order:
    """The ranks of those who wait on one group, and what its tenants have waiting.

    Args:
        policy: what is heeded.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._standings: dict[int, _Standing] = {}
        self._all = _Waiting()
        self._of_tenant: dict[str, _Waiting] = {}
        self._of_priority: dict[int, int] = {}
        self._tightest: list[tuple[float, str, float]] = []  # (slack, tenant, when) of two tenants at most
        self._begun_tag = 0.0
        self._next_tags: dict[str, float] = {}
        self._largest_tag = 0.0  # that was ever given, or is next
        self._prune_at = 64

    def enter(self, request: Request, cost_s: float, *, waits: bool) -> None:
        """A request is taken in, and waits or begins at once; it costs so many seconds of the slowest stage."""
        shares = self._policy.shares
        if shares is not None and not waits:  # nobody waits: all begin anew
            self._begun_tag = self._largest_tag
            self._next_tags.clear()
        tag = self._tag(request)
        if shares is not None:
            if len(self._next_tags) >= self._prune_at:  # those in the past are as good as none
                self._next_tags = {name: each for name, each in self._next_tags.items() if each > self._begun_tag}
                self._prune_at = 64 + 2 * len(self._next_tags)
            next_tag = self._next_tags[request.tenant] = tag + cost_s / shares.get(request.tenant, 1.0)
            self._largest_tag = max(self._largest_tag, next_tag)
        if waits:
            self._stand(request, _Standing(tag, cost_s))
        else:
            self._begun_tag = max(self._begun_tag, tag)

    def enter_again(self, request: Request, cost_s: float) -> None:
        """One who has begun has to wait again, ahead of all others: it was counted, and nobody may overtake it."""
        self._stand(request, _Standing(-math.inf, cost_s, overtaken=self._policy.max_overtakings))

    def _stand(self, request: Request, standing: _Standing) -> None:
        self._standings[request.id] = standing
        self._all.add(standing.cost_s)
        self._of_tenant.setdefault(request.tenant, _Waiting()).add(standing.cost_s)
        self._of_priority[request.priority] = self._of_priority.get(request.priority, 0) + 1

    def leave(self, request: Request, *, begins: bool) -> None:
        """One who waited begins, or has given up."""
        standing = self._standings.pop(request.id)
        self._all.remove(standing.cost_s)
        waiting = self._of_tenant[request.tenant]
        waiting.remove(standing.cost_s)
        if not waiting.requests:
            del self._of_tenant[request.tenant]
        self._of_priority[request.priority] -= 1
        if not self._of_priority[request.priority]:
            del self._of_priority[request.priority]
        if begins:
            self._begun_tag = max(self._begun_tag, standing.tag)

    def clear(self) -> None:
        """Nobody waits any more."""
        self._standings.clear()
        self._of_tenant.clear()
        self._of_priority.clear()
        self._all = _Waiting()

    def retry_after_s(
        self,
        request: Request,
        cost_s: float,
        *,
        slack_s: float,
        takes_s: float,
        begins_s: float,
        places_left: float,
        now_s: float,
    ) -> float:
        """Seconds until the tenant of a newcomer has room for it if nothing else arrives; 0 where it has room.

        Args:
            request: the newcomer.
            cost_s: what it costs.
            slack_s: for how long it could wait.
            takes_s: what it takes once it has begun.
            begins_s: until those who wait begin.
            places_left: how many more requests may wait.
            now_s: the time of its arrival.
        """
        shares = self._policy.shares
        if shares is None:
            return 0.0
        others_s = self._others_slack_s(request.tenant, slack_s, now_s)
        slack_s = min(slack_s, max(others_s, LEAST_SLACK * takes_s))
        waiting = self._of_tenant.get(request.tenant)
        if waiting is None or not self._all.cost_s:
            return 0.0
        room = (ALONE_ROOM if others_s == math.inf else ROOM) * shares.get(request.tenant, 1.0)
        part = (waiting.cost_s + cost_s) / (self._all.cost_s + cost_s)
        wait_s = begins_s + self._all.cost_s
        excess_s = part * wait_s - room * (slack_s - wait_s)  # falls by part + room a second
        excess_places = waiting.requests - room * places_left
        if excess_places > 0.0:
            excess_s = max(excess_s, wait_s * excess_places / waiting.requests * (part + room))
        return max(0.0, excess_s / (part + room))

    def _others_slack_s(self, tenant: str, slack_s: float, now_s: float) -> float:
        """The least slack that another tenant has on average; notes that of a newcomer."""
        others = [each for each in self._tightest if each[1] != tenant and now_s - each[2] < MEMORY_S]
        for known_s, name, when_s in self._tightest:
            if name == tenant and now_s - when_s < MEMORY_S and slack_s < math.inf:
                slack_s = known_s + WEIGHT * (slack_s - known_s)
        self._tightest = sorted([(slack_s, tenant, now_s), *others])[:2]
        return min((each[0] for each in others), default=math.inf)

    def may_outrank(self, request: Request) -> bool:
        """Whether there may be anybody waiting whom a newcomer outranks."""
        if self._policy.max_overtakings and min(self._of_priority, default=request.priority) < request.priority:
            return True
        return self._policy.shares is not None and self._tag(request) < self._largest_tag

    def moves(
        self,
        request: Request,
        batches: Iterable[Batch],
        latencies: StageLatencies,
        *,
        finish_s: float,
        overhead_s: float,
    ) -> tuple[list[Move], float]:
        """Who makes room for a newcomer, from last to first, and when its own batch is then done.

        Args:
            request: the newcomer.
            batches: those that wait ahead of the place that it was given, last one first.
            latencies: of its model.
            finish_s: when the batch of that place is done.
            overhead_s: what an answer costs beyond its stages.
        """
        moves: list[Move] = []
        newcomer = _Standing(self._tag(request), 0.0)
        for batch in itertools.islice(batches, MOST_LOOKED):
            if batch.latencies is not latencies:
                continue
            lowest: tuple[int, float, int, Request] | None = None
            for member in batch.members:
                if member.bucket != request.bucket or member.rows != request.rows:
                    continue
                standing = self._standings[member.id]
                if self._outranks(request, newcomer, member, standing) and in_time((member,), finish_s + overhead_s):
                    rank = (self._priority(member), -standing.tag, -member.id, member)
                    if lowest is None or rank[:3] < lowest[:3]:
                        lowest = rank
            if lowest is not None:
                moves.append((batch, lowest[3]))
                finish_s = batch.clocks[-1]
        return moves, finish_s

    def overtake(self, request: Request, moves: Iterable[Move]) -> None:
        """Counts that a newcomer has overtaken those who made room for it."""
        for _, member in moves:
            if self._priority(request) > self._priority(member):
                self._standings[member.id].overtaken += 1

    def _outranks(self, request: Request, standing: _Standing, other: Request, others: _Standing) -> bool:
        priority, others_priority = self._priority(request), self._priority(other)
        if priority == others_priority:
            return standing.tag < others.tag
        return priority > others_priority and others.overtaken < self._policy.max_overtakings

    def _priority(self, request: Request) -> int:
        return request.priority if self._policy.max_overtakings else 0

    def _tag(self, request: Request) -> float:
        if self._policy.shares is None:
            return 0.0
        return max(self._begun_tag, self._next_tags.get(request.tenant, 0.0))
