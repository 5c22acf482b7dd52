"""Simulated annealing over placements, judged by several traces.

A step is judged trace by trace, and given up as soon as it is plain that it would be refused: the differences to the
current placement on the traces so far, continued at their mean plus `_DOUBT` times its standard error, do not reach
what is needed to accept it. Most steps are bad, and are known to be after two or three traces. The threshold is drawn
beforehand, so that this is Metropolis' rule but for those few steps that the later traces would have saved.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from jaxserve.placement.moves import Moves
from jaxserve.placement.objective import Objective
from jaxserve.simulator import Current, Scorer, Shape

_DOUBT = 1.5
_MANY = 16  # groups from which on most of a placement is left as it was by a step
_CAUTION = 1.3  # standard deviations that a gain is taken for less, where it must be reliable
_HOT, _COLD = 0.015, 0.0005  # temperatures: shares of the requests of an average group
_QUICK = 1e-4  # what a latency as long as its SLO weighs against a request served
Ints = npt.NDArray[np.int64]


class Judge:
    """Scores placements by several traces.

    Args:
        scorers: one for each trace; not shared with another thread.
        objective: what counts.
        rival: the verdict on a placement that is to be beaten reliably: what the gain over it differs from trace to
            trace counts against a placement.
    """

    def __init__(
        self, scorers: Sequence[Scorer], objective: Objective, *, rival: npt.NDArray[np.float64] | None = None
    ) -> None:
        self.scorers = scorers
        self.objective = objective
        self._rival = rival
        self._followed: list[Current] = []
        self.requests = np.array([scorer.traffic.per_model for scorer in scorers])
        self._missed = [scorer.traffic.requests - len(scorer.traffic.model) for scorer in scorers]
        self._slo_s = [float(scorer.traffic.slo_s[np.isfinite(scorer.traffic.slo_s)].sum()) for scorer in scorers]

    @property
    def simulations(self) -> int:
        """Runs of a trace so far."""
        return sum(scorer.runs for scorer in self.scorers)

    def follow(self, shape: Shape) -> None:
        """Remembers the runs of a placement; from now on, placements of as many groups are judged by what differs."""
        self._followed = [scorer.start(shape) for scorer in self.scorers]

    def accept(self) -> None:
        """Follows the placement that was judged last, on all traces, from now on."""
        for current in self._followed:
            current.accept()

    def forget(self) -> None:
        """Ends `follow`."""
        self._followed = []

    def verdict(self, shape: Shape) -> "Verdict":
        """The verdict on a placement."""
        verdict = self.compare(shape, None, -math.inf)
        assert verdict is not None
        return verdict

    def compare(self, shape: Shape, current: "Verdict | None", needed: float) -> "Verdict | None":
        """The verdict on a placement; None where it is plain that its value stays below `needed`.

        Args:
            shape: the placement.
            current: what it is to be compared with, where it is to be given up early.
            needed: the least value of interest.
        """
        traces = len(self.scorers)
        early = current is not None and self.objective.is_total
        served = np.zeros_like(self.requests)
        chosen = np.zeros(len(shape.config), np.int64)
        values = np.zeros(traces)
        latency = 0.0
        for index, scorer in enumerate(self.scorers):
            score = self._followed[index].change(shape) if self._followed else scorer.score(shape)
            served[index] = score.served
            chosen += score.chosen
            latency += score.latency_s / max(self._slo_s[index], 1e-9)
            values[index] = self.objective.value(score.served, self.requests[index], self._missed[index])
            if early and 2 <= index + 1 < traces and current is not None:
                gained = values[: index + 1] - current.values[: index + 1]
                hope = gained.mean() + _DOUBT * gained.std(ddof=1) / math.sqrt(index + 1)
                if current.value + hope < needed:
                    return None
        value = float(values.mean()) if self.objective.is_total else self._of_all(served)
        if self._rival is not None:
            value -= _CAUTION * float((values - self._rival).std())
        return Verdict(
            shape=shape, value=value - _QUICK * latency / traces, values=values, served=served, chosen=chosen
        )

    def _of_all(self, served: Ints) -> float:
        return self.objective.value(served.sum(axis=0), self.requests.sum(axis=0), sum(self._missed))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verdict:
    """What a judge says of a placement.

    Attributes:
        shape: the placement.
        value: by the objective, over all traces; more is better.
        values: float64 [traces], by the objective on each.
        served: int64 [traces, models].
        chosen: int64 [groups], requests of all traces for which the group was chosen.
    """

    shape: Shape
    value: float
    values: npt.NDArray[np.float64]
    served: Ints
    chosen: Ints


class Chain:
    """One run of annealing.

    Attributes:
        best: the best verdict so far.
    """

    def __init__(self, judge: Judge, moves: Moves, start: Verdict, rng: np.random.Generator) -> None:
        self.judge = judge
        self.best = start
        self._moves = moves
        self._current = start
        self._rng = rng

    def run(self, done: Callable[[], float]) -> "Verdict":
        """Anneals until `done`, how much of it is over, comes to 1; returns the best."""
        if (self._current.shape.config >= 0).sum() >= _MANY:
            self.judge.follow(self._current.shape)
        while (part := done()) < 1:
            self.step(part)
        self.judge.forget()
        return self.best

    def step(self, done: float) -> None:
        """One step of annealing, `done` being how much of it is over, 0 to 1."""
        current = self._current
        temperature = _HOT * (_COLD / _HOT) ** done / max(1, int((current.shape.config >= 0).sum()))
        wanted = (self.judge.requests - current.served).sum(axis=0).astype(np.float64)
        shape = self._moves.step(current.shape, wanted, self._rng)
        if shape is None:
            return
        needed = current.value + temperature * math.log(1.0 - self._rng.random())
        verdict = self.judge.compare(shape, current, needed)
        if verdict is not None and verdict.value >= needed:
            self._current = verdict
            self.judge.accept()
            if verdict.value > self.best.value:
                self.best = verdict
