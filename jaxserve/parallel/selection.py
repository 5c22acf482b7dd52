"""Choosing one option for each of many variables, where pairs of choices cost: the integer program behind `intra_op`.

    minimise    sum_i c_i . x_i  +  sum_(i,j) x_i' R_ij x_j          Alpa (OSDI'22) eq. 1
    subject to  x_i is one-hot                                       one option each
                sum_i m_ik . x_i <= budget                           bytes on each device of stage k

The products are made linear as in Alpa, but a variable e[u, w] stands for a pair of *layouts* rather than of options:
options that lay the value out in the same way share a row. e is continuous: where the x are whole, its row and column
sums leave it one value.

    sum_w e[u, w] = sum of the x_i[s] that lay the value out as u
    sum_u e[u, w] = sum of the x_j[s] that want it as w

HiGHS solves it (Huangfu & Hall 2018, through scipy). Where it finds nothing in time, descent from several starts does:
its answer is feasible, but not proven to be best.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize, sparse

from jaxserve.errors import PlacementError

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """What two choices cost together.

    Attributes:
        first: a variable.
        second: another one, or the same.
        rows: for each option of `first`, its row.
        columns: for each option of `second`, its column.
        cost: [rows, columns], in seconds.
    """

    first: int
    second: int
    rows: Array
    columns: Array
    cost: Array


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """The problem.

    Attributes:
        costs: for each variable the cost of each option, in seconds.
        memory: for each variable the bytes of each option on a device of each stage, as [stages, options].
        pairs: costs of pairs.
    """

    costs: Sequence[Array]
    memory: Sequence[Array]
    pairs: Sequence[Pair]

    def cost(self, chosen: Sequence[int]) -> float:
        """Seconds that a choice costs."""
        total = sum(float(cost[option]) for cost, option in zip(self.costs, chosen, strict=True))
        for pair in self.pairs:
            total += float(pair.cost[pair.rows[chosen[pair.first]], pair.columns[chosen[pair.second]]])
        return total

    def bytes(self, chosen: Sequence[int]) -> Array:
        """Bytes that a choice takes on each device, by stage."""
        return np.sum([memory[:, option] for memory, option in zip(self.memory, chosen, strict=True)], axis=0)

    @property
    def least_bytes(self) -> float:
        """Bytes that any choice takes at least on a device of the heaviest stage."""
        return float(np.sum([memory.min(axis=1) for memory in self.memory], axis=0).max())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A solution.

    Attributes:
        options: for each variable the option.
        status: "optimal", "time limit" (the best that the solver had found) or "descent".
    """

    options: tuple[int, ...]
    status: str


def select(selection: Selection, *, budget_bytes: float = math.inf, time_limit_s: float = 10.0) -> Choice:
    """The cheapest choice within the budget.

    Raises:
        PlacementError: none was found. Below `least_bytes` there is none.
    """
    if not selection.costs:
        return Choice(options=(), status="optimal")
    if time_limit_s > 0:
        found = _Program(selection, budget_bytes).solve(time_limit_s)
        if found is not None:
            return found
    return Choice(options=_descend(selection, budget_bytes), status="descent")


class _Program:
    """The linear form: columns are the options of all variables, then the e of all pairs."""

    def __init__(self, selection: Selection, budget_bytes: float) -> None:
        self._selection = selection
        self._offsets = np.concatenate(([0], np.cumsum([len(cost) for cost in selection.costs]))).astype(int)
        self._objective: list[Array] = [np.array(cost, dtype=float) for cost in selection.costs]
        self._entries: list[tuple[Array, Array, Array]] = []  # rows, columns, values of the constraints
        self._equal: list[float] = []
        self._one_each()
        for pair in selection.pairs:
            self._add(pair)
        self._within(budget_bytes)

    def _one_each(self) -> None:
        for variable, cost in enumerate(self._selection.costs):
            columns = self._offsets[variable] + np.arange(len(cost))
            self._constrain(columns, np.ones(len(cost)), 1.0)

    def _constrain(self, columns: Array, values: Array, equal: float) -> None:
        self._entries.append((np.full(len(columns), len(self._equal)), columns, values))
        self._equal.append(equal)

    def _add(self, pair: Pair) -> None:
        if pair.first == pair.second:
            self._objective[pair.first] += pair.cost[pair.rows, pair.columns]
        elif pair.cost.shape[0] == 1:
            self._objective[pair.second] += pair.cost[0, pair.columns]
        elif pair.cost.shape[1] == 1:
            self._objective[pair.first] += pair.cost[pair.rows, 0]
        else:
            start = sum(map(len, self._objective))
            self._objective.append(pair.cost.ravel())
            grid = start + np.arange(pair.cost.size).reshape(pair.cost.shape)
            for row in range(grid.shape[0]):
                options = self._offsets[pair.first] + np.flatnonzero(pair.rows == row)
                self._tie(grid[row], options)
            for column in range(grid.shape[1]):
                options = self._offsets[pair.second] + np.flatnonzero(pair.columns == column)
                self._tie(grid[:, column], options)

    def _tie(self, edges: Array, options: Array) -> None:
        values = np.concatenate((np.ones(len(edges)), -np.ones(len(options))))
        self._constrain(np.concatenate((edges, options)), values, 0.0)

    def _within(self, budget_bytes: float) -> None:
        """In units of the budget, so that the solver's tolerances mean something."""
        self._budget: tuple[Array, float] | None = None
        worst = np.sum([memory.max(axis=1) for memory in self._selection.memory], axis=0)
        if worst.max() > budget_bytes:
            unit = max(budget_bytes, 1.0)
            self._budget = np.concatenate(self._selection.memory, axis=1) / unit, budget_bytes / unit

    def solve(self, time_limit_s: float) -> Choice | None:
        objective = np.concatenate(self._objective)
        count = len(objective)
        rows, columns, values = (np.concatenate(part) for part in zip(*self._entries, strict=True))
        equal = np.array(self._equal)
        matrix = sparse.csr_array((values, (rows, columns)), shape=(len(equal), count))
        constraints = [optimize.LinearConstraint(matrix, equal, equal)]  # type: ignore[arg-type]
        if self._budget is not None:
            memory, most = self._budget
            edges = np.zeros((len(memory), count - memory.shape[1]))
            rows_of_stages = sparse.csr_array(np.concatenate((memory, edges), axis=1))
            constraints.append(optimize.LinearConstraint(rows_of_stages, -np.inf, most))  # type: ignore[arg-type]
        whole = np.zeros(count)
        whole[: self._offsets[-1]] = 1
        scale = max(float(np.abs(objective).max()), 1e-30)
        result = optimize.milp(
            objective / scale,
            integrality=whole,
            bounds=optimize.Bounds(0, 1),
            constraints=constraints,
            options={"time_limit": time_limit_s, "mip_rel_gap": 1e-6},
        )
        if result.x is None:
            return None
        options = tuple(
            int(np.argmax(result.x[start:end]))
            for start, end in zip(self._offsets[:-1], self._offsets[1:], strict=True)
        )
        return Choice(options=options, status="optimal" if result.status == 0 else "time limit")


def _descend(selection: Selection, budget_bytes: float) -> tuple[int, ...]:
    """From the choice that takes least memory and from that which is cheapest by itself, one better step at a time."""
    starts = [
        [
            int(np.lexsort((cost, memory.sum(axis=0)))[0])
            for cost, memory in zip(selection.costs, selection.memory, strict=True)
        ],
        [int(np.argmin(cost)) for cost in selection.costs],
    ]
    touching: list[list[Pair]] = [[] for _ in selection.costs]
    for pair in selection.pairs:
        for variable in {pair.first, pair.second}:
            touching[variable].append(pair)
    ends = [
        _descend_from(selection, touching, start, budget_bytes)
        for start in starts
        if _lighten(selection, start, budget_bytes)
    ]
    if not ends:
        raise PlacementError(
            f"no sharding was found that keeps the weights of every stage within {math.floor(budget_bytes)} bytes on a "
            f"device; allow more memory, or use more devices"
        )
    return min(ends, key=selection.cost)


def _lighten(selection: Selection, chosen: list[int], budget_bytes: float) -> bool:
    """Changes a choice until it is within the budget, one lighter option at a time; False where that is the end."""
    used = selection.bytes(chosen)
    while used.max() > budget_bytes:
        before = np.maximum(used - budget_bytes, 0).sum()
        for variable, memory in enumerate(selection.memory):
            rest = used - memory[:, chosen[variable]]
            chosen[variable] = int(np.maximum(rest[:, None] + memory - budget_bytes, 0).sum(axis=0).argmin())
            used = rest + memory[:, chosen[variable]]
        if np.maximum(used - budget_bytes, 0).sum() >= before:
            return False
    return True


def _descend_from(
    selection: Selection, touching: Sequence[Sequence[Pair]], start: list[int], budget_bytes: float
) -> tuple[int, ...]:
    chosen = list(start)
    used = selection.bytes(chosen)
    improved = True
    while improved:
        improved = False
        for variable, memory in enumerate(selection.memory):
            cost = selection.costs[variable].astype(float)
            for pair in touching[variable]:
                if pair.first == pair.second:
                    cost = cost + pair.cost[pair.rows, pair.columns]
                elif pair.first == variable:
                    cost = cost + pair.cost[pair.rows, pair.columns[chosen[pair.second]]]
                else:
                    cost = cost + pair.cost[pair.rows[chosen[pair.first]], pair.columns]
            rest = used - memory[:, chosen[variable]]
            cost = np.where((rest[:, None] + memory <= budget_bytes).all(axis=0), cost, np.inf)
            best = int(np.argmin(cost))
            if cost[best] < cost[chosen[variable]] * (1 - 1e-9) - 1e-15:
                used = rest + memory[:, best]
                chosen[variable] = best
                improved = True
    return tuple(chosen)
