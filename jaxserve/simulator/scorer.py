"""Scores many placements of one fleet under one workload: set up once, then a compiled run for each.

A search that changes one placement step by step asks `Scorer.start` for a `Current`, which scores a change by what
differs (trajectory.py) where that is expected to be faster than a full run, and by a full run elsewhere. Both give the
same numbers, so which one it was is nobody's concern; with batches it is always a full run.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from jaxserve.simulator import batches, loop
from jaxserve.simulator.follower import Follower
from jaxserve.simulator.tables import FleetTables, Traffic

Ints = npt.NDArray[np.int64]
UNKNOWN = -1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shape:
    """A placement without names and device numbers (G groups, M models).

    Attributes:
        config: int32 [G], index of each group's config in the tables; -1 where there is no such group.
        held: uint8 [G, M], 1 where the group holds the model. It counts only where there is a profile for that.
    """

    config: npt.NDArray[np.int32]
    held: npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Score:
    """What a placement does to a workload.

    Attributes:
        requests: in all.
        served: int64 [M], requests of each model that were served in time.
        chosen: int64 [G], requests for which each group was chosen, the refused ones included.
        latency_s: sum of the latencies of all that was served.
    """

    requests: int
    served: Ints
    chosen: Ints
    latency_s: float

    @property
    def slo_attainment(self) -> float:
        """Requests served within their deadline over all requests; 1 where there are none."""
        return int(self.served.sum()) / self.requests if self.requests else 1.0


class Scorer:
    """Runs placements of one fleet under one workload.

    Threads may use scorers of their own side by side: the compiled code holds no lock.

    Args:
        tables: of the fleet.
        traffic: the workload.
        overhead_s: added to every finish.

    Attributes:
        runs: how many placements were scored.
    """

    def __init__(self, tables: FleetTables, traffic: Traffic, *, overhead_s: float = 0.0) -> None:
        self.tables = tables
        self.traffic = traffic
        self.overhead_s = float(overhead_s)
        self.runs = 0
        self._traffic = (traffic.arrival_s, traffic.slo_s, traffic.model)
        self._tables = tables.with_batches if tables.has_batches else tables.without_batches

    def score(self, shape: Shape) -> Score:
        """Runs the whole workload.

        Raises:
            ValueError: the shape is of another fleet.
        """
        self.check(shape)
        self.runs += 1
        served, chosen = np.zeros(shape.held.shape[1], np.int64), np.zeros(len(shape.config), np.int64)
        placed = (shape.config, shape.held)
        if self.tables.has_batches:
            no_finish, no_group, busy_s = np.empty(0), np.empty(0, np.int32), np.zeros(len(chosen))
            latency_s = batches.run(
                self._traffic, self._tables, placed, batches.ALPASERVE, self.overhead_s, served, chosen,
                no_finish, no_group, busy_s,
            )  # fmt: skip
        else:
            latency_s = loop.score(*self._traffic, *self._tables, *placed, self.overhead_s, served, chosen)
        return Score(requests=self.traffic.requests, served=served, chosen=chosen, latency_s=latency_s)

    def start(self, shape: Shape) -> "Current":
        """Runs the whole workload and remembers what happened, so that changes of `shape` are scored fast."""
        return Current(self, shape)

    def check(self, shape: Shape) -> None:
        """Refuses a shape of another fleet: compiled code does not ask.

        Raises:
            ValueError: its arrays do not fit each other or the fleet.
        """
        needed = (len(shape.config), len(self.traffic.per_model))
        if shape.held.shape != needed:
            raise ValueError(
                f"held is {list(shape.held.shape)}, but must be {list(needed)}: a row for each group, a column "
                f"for each model of the fleet"
            )


class Current:
    """A placement whose run is remembered, so that what a change of it would do is found by what differs.

    Made by `Scorer.start`.

    Attributes:
        shape: the placement.
        score: its score.
    """

    def __init__(self, scorer: Scorer, shape: Shape) -> None:
        self._scorer = scorer
        self._follower: Follower | None = None
        self._changed: tuple[Shape, Score, int] | None = None
        self.shape = shape
        if scorer.tables.has_batches:
            self.score = scorer.score(shape)
        else:
            scorer.check(shape)
            scorer.runs += 1
            groups = len(shape.config)
            self._follower = Follower(scorer.traffic, scorer.tables, overhead_s=scorer.overhead_s, groups=groups)
            served, chosen, latency_s = self._follower.record(shape.config, shape.held)
            self.score = Score(requests=scorer.traffic.requests, served=served, chosen=chosen, latency_s=latency_s)

    def change(self, shape: Shape) -> Score:
        """The score of another placement with as many groups (config -1 where one is none).

        Raises:
            ValueError: it has more groups or fewer, or is of another fleet.
        """
        self._scorer.check(shape)
        if len(shape.config) != len(self.shape.config):
            raise ValueError(
                f"the change has {len(shape.config)} groups, but the current placement has {len(self.shape.config)}; "
                f"let a group that is none have config -1, or start() anew"
            )
        self._changed = self._follow(shape) or (shape, self._scorer.score(shape), UNKNOWN)
        return self._changed[1]

    def accept(self) -> None:
        """Makes the placement of the last `change` the current one.

        Raises:
            RuntimeError: there was none since the last `accept`.
        """
        if self._changed is None:
            raise RuntimeError("nothing to accept: call change() first")
        shape, score, edits = self._changed
        if self._follower is not None and edits == UNKNOWN:
            self._follower.record(shape.config, shape.held)
        elif self._follower is not None:
            self._follower.commit(edits)
        self.shape, self.score, self._changed = shape, score, None

    def _follow(self, shape: Shape) -> tuple[Shape, Score, int] | None:
        """The change by what differs; None where that does not pay."""
        if self._follower is None:
            return None
        before = self.score
        followed = self._follower.follow(shape.config, shape.held, before.served, before.chosen)
        if followed is None:
            return None
        self._scorer.runs += 1
        served, chosen, moved_s, edits = followed
        latency_s = before.latency_s + moved_s
        return shape, Score(requests=before.requests, served=served, chosen=chosen, latency_s=latency_s), edits
