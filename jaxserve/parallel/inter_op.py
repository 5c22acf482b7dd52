"""The inter-op pass: which clusters make up which stage.

Alpa (OSDI'22, section 5.2) cuts a program into stages by dynamic programming and minimises the time of a whole batch of
training. For serving, AlpaServe (OSDI'23, section 4.1) minimises the slowest stage instead, since a pipeline answers as
many requests in a second as its slowest stage does. With t(i, j) the seconds of clusters i ... j - 1 in one stage, and
F(s, j) the slowest of s stages that run the clusters before j:

    F(s, j) = min over i < j of max(F(s - 1, i), t(i, j)),        F(0, 0) = 0

t is the sum of the clusters' seconds and of the transfer over the place where the stage begins. Devices hold the
weights of many models, and a placement pays for each stage as much memory as the heaviest needs. So there are two
objectives, t and the bytes w(i, j) of the weights that the clusters read (one that several of them read counts once;
one that two stages read counts in both), and the answer is every trade-off between them. The epsilon-constraint method
walks along it: the slowest stage T is minimised over what is lighter than the trade-off before, then the heaviest W
over what is no slower than T. Both are the recurrence above, over the slices that the other leaves (`_Slices.least`).

Among cuttings with the same T and W, the one of the least transfers in all is taken (the latency of one request), and
of those the one of the least sum of squared stage seconds (`_Slices.evenest`).

Seconds are rounded to 2^-40 of their sum and added as integers: sums of floats would make trade-offs out of the last
bit of equal layers. With K clusters a recurrence takes s K^2 steps, in numpy.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jaxserve.errors import PlacementError
from jaxserve.parallel.clusters import Clusters

Array = np.ndarray[Any, np.dtype[Any]]
Objective = Literal["balance", "latency", "memory"]

_NEVER = np.iinfo(np.int64).max // 2  # so that two of them can be added
_PRECISION = 40  # bits


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cutting:
    """One way to cut a program into stages.

    Attributes:
        places: indices of the equations before which it is cut, ascending.
        slowest_s: seconds of the slowest stage.
        heaviest_bytes: weights of the heaviest stage.
        stage_s: seconds of each stage: its clusters, and the transfer of what it takes.
        stage_weight_bytes: weights of each stage.
        total_s: seconds of all stages.
    """

    places: tuple[int, ...]
    slowest_s: float
    heaviest_bytes: int
    stage_s: tuple[float, ...]
    stage_weight_bytes: tuple[int, ...]
    total_s: float


def pareto(
    clusters: Clusters, *, stages: int, transfer_s: Sequence[float], budget_bytes: float = math.inf
) -> tuple[Cutting, ...]:
    """Every trade-off between the slowest and the heaviest stage, the fastest and heaviest first.

    Args:
        clusters: what is cut; `seconds` and `weight_bytes` are those of one device of a stage, so replace them where
            stages have several.
        stages: their number; each computes something.
        transfer_s: for each place of `clusters`, how long the values that cross it take to the next stage.
        budget_bytes: of weights that one stage may have.

    Raises:
        PlacementError: fewer stages are possible, or all cuttings are above the budget.
    """
    slices = _Slices(clusters, transfer_s)
    most = max(slices.computing, 1)
    if not 1 <= stages <= most:
        raise PlacementError(
            f"{stages} stages were asked for, but each must compute something, and the program can be cut into "
            f"{most} that do; use at most {most}, or where cuts are named, name more"
        )
    found: list[Cutting] = []
    heaviest = min(budget_bytes, _NEVER - 1)
    while (slowest := slices.least(slices.seconds, stages, where=slices.weights <= heaviest)) < _NEVER:
        fast = slices.seconds <= slowest
        heaviest = slices.least(slices.weights, stages, where=fast)
        cutting = slices.cutting(slices.evenest(stages, where=fast & (slices.weights <= heaviest)))
        while found and found[-1].slowest_s >= cutting.slowest_s:
            found.pop()  # it was faster by less than what seconds are rounded to
        found.append(cutting)
        heaviest -= 1
    if not found:
        least = slices.least(slices.weights, stages, where=slices.weights < _NEVER)
        raise _over_budget(least, budget_bytes, stages)
    return tuple(found)


def choose(
    cuttings: Sequence[Cutting],
    *,
    objective: Objective = "balance",
    budget_bytes: float = math.inf,
    tolerance: float = 0.05,
) -> Cutting:
    """The cutting to use.

    Args:
        cuttings: trade-offs for one number of stages.
        objective: "latency": the least slowest stage. "memory": the least heaviest stage. "balance": of those whose
            slowest stage is at most `tolerance` above the least, the one of the least heaviest stage; one heavy stage
            can keep a whole model off a group, a few percent of time do not. The other of the two breaks ties.
        budget_bytes: of weights that one stage may have; no cutting above it is looked at.
        tolerance: of "balance".

    Raises:
        PlacementError: all cuttings are above the budget, or there are none.
    """
    if not cuttings:
        raise PlacementError("there is no cutting to choose from; ask pareto() for some")
    within = [cutting for cutting in cuttings if cutting.heaviest_bytes <= budget_bytes]
    if not within:
        lightest = min(cuttings, key=lambda cutting: cutting.heaviest_bytes)
        raise _over_budget(lightest.heaviest_bytes, budget_bytes, len(lightest.stage_s))
    limit_s = min(cutting.slowest_s for cutting in within)
    if objective == "memory":
        limit_s = math.inf
    elif objective == "balance":
        limit_s *= 1 + tolerance
    within = [cutting for cutting in within if cutting.slowest_s <= limit_s]
    return min(within, key=lambda cutting: (cutting.heaviest_bytes, cutting.slowest_s, cutting.total_s))


def _over_budget(least_bytes: int, budget_bytes: float, stages: int) -> PlacementError:
    return PlacementError(
        f"in {stages} stages the heaviest holds at least {least_bytes} bytes of weights on each device, "
        f"{math.ceil(least_bytes - budget_bytes)} more than the {math.floor(budget_bytes)} there are; "
        f"use more stages, or more devices in each"
    )


class _Slices:
    """All slices of neighbouring clusters: arrays [K + 1, K + 1] by their first cluster and the one behind their last.

    Attributes:
        computing: number of clusters that take any time.
        seconds: of each slice, with the transfer to it, in units of `_PRECISION`; `_NEVER` where it computes nothing.
        weights: bytes of each slice.
    """

    def __init__(self, clusters: Clusters, transfer_s: Sequence[float]) -> None:
        self._clusters = clusters
        self._transfer_s = (0.0, *transfer_s)
        if len(self._transfer_s) != len(clusters.seconds):
            raise PlacementError(
                f"{len(transfer_s)} transfers were given, but {len(clusters.seconds)} clusters have "
                f"{len(clusters.places)} places between them: give one for each"
            )
        seconds, transfers = _as_integers(clusters.seconds, self._transfer_s)
        self._transfers = transfers
        computes = np.array(clusters.seconds) > 0
        self.computing = int(computes.sum())
        # Where nothing takes time, the one stage that there may be is the whole.
        empty = _between(computes) <= 0 if self.computing else _between(np.ones_like(seconds)) < len(seconds)
        self.seconds = np.where(empty, _NEVER, _between(seconds) + np.append(transfers, 0)[:, None])
        self.weights = np.where(empty, _NEVER, _bytes_between(clusters))
        # Squares of shares do not overflow, and only their order counts.
        self._squares = (self.seconds / max(int(seconds.sum() + transfers.sum()), 1)) ** 2

    def least(self, values: Array, stages: int, *, where: Array) -> int:
        """The least largest value over cuttings whose slices are all in `where`; `_NEVER` where there is none."""
        values = np.where(where, values, _NEVER)
        largest = values[0]
        for _ in range(stages - 1):
            largest = np.maximum(largest[:, None], values).min(axis=0)
        return int(largest[-1])

    def evenest(self, stages: int, *, where: Array) -> list[int]:
        """The clusters at which the stages begin: least transfers, then least squares, over slices in `where`."""
        transfers = np.where(where, np.append(self._transfers, 0)[:, None], _NEVER)
        squares = np.where(where, self._squares, np.inf)
        sent, uneven = transfers[0], squares[0]
        came_from: list[Array] = []
        for _ in range(stages - 1):
            all_sent = np.minimum(sent[:, None] + transfers, _NEVER)
            sent = all_sent.min(axis=0)
            all_uneven = np.where(all_sent == sent, uneven[:, None] + squares, np.inf)
            came_from.append(all_uneven.argmin(axis=0))
            uneven = all_uneven.min(axis=0)
        begins = [len(self._clusters.seconds)]
        for each in reversed(came_from):
            begins.append(int(each[begins[-1]]))
        return [0, *begins[:0:-1]]

    def cutting(self, begins: Sequence[int]) -> Cutting:
        """The cutting whose stages begin at these clusters."""
        bounds = list(itertools.pairwise([*begins, len(self._clusters.seconds)]))
        stage_s = [math.fsum((self._transfer_s[start], *self._clusters.seconds[start:end])) for start, end in bounds]
        weights = [int(self.weights[start, end]) for start, end in bounds]
        return Cutting(
            places=tuple(self._clusters.places[begin - 1] for begin in begins[1:]),
            slowest_s=max(stage_s),
            heaviest_bytes=max(weights),
            stage_s=tuple(stage_s),
            stage_weight_bytes=tuple(weights),
            total_s=math.fsum(stage_s),
        )


def _as_integers(*values: Sequence[float]) -> list[Array]:
    """In a unit that is the same for all, a power of two: at most 2^-40 of their sum."""
    _, exponent = math.frexp(math.fsum(itertools.chain(*values)))
    return [np.array([round(math.ldexp(value, _PRECISION - exponent)) for value in each]) for each in values]


def _between(values: Array) -> Array:
    """[i, j]: the sum of the values from i until before j."""
    before = np.concatenate([[0], np.cumsum(values)])
    return before[None, :] - before[:, None]


def _bytes_between(clusters: Clusters) -> Array:
    """[i, j]: bytes of all weights that clusters i until before j read.

    A weight that cluster c reads, and before it c' was the last to, is met first at c by the slices with
    c' < i <= c < j: a rectangle, which is added at its corners.
    """
    count = len(clusters.seconds)
    corners = np.zeros((count + 2, count + 2), dtype=np.int64)
    last: dict[int, int] = {}
    for place, weights in enumerate(clusters.weights):
        for weight in weights:
            corners[last.get(weight, -1) + 1, place + 1] += clusters.weight_bytes[weight]
            corners[place + 1, place + 1] -= clusters.weight_bytes[weight]
            last[weight] = place
    return corners.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
