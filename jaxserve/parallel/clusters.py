"""Where a program may be cut: its equations in clusters, between which few bytes are alive.

A model has thousands of equations, and of the places between them few are worth a cut. Alpa (OSDI'22, section 5.2,
"Operator clustering") groups o_1 ... o_K into L layers so that the most that any layer receives is least, under a bound
on each layer's work; of equals it takes the most even grouping:

    G(k, r) = min over i of { max(G(i - 1, r - 1), C(i, k)) | FLOP(o_i ... o_k) <= (1 + delta) FLOP_total / L }

C counts the bytes that o_i ... o_k receive. Here three things differ.

*What a cut costs.* A stage hands on what later stages need, so a cut costs all bytes that cross it: values made before
it and used behind it, or returned in the end. Then max(G, C) is a threshold: the least bytes w such that cutting
wherever at most w bytes are alive leaves no cluster above the bound. Bisection over the bytes that occur finds it.

*What is bounded.* A cluster's size is the larger of its share of the seconds and its share of the weight bytes (each
weight where it is first used), because stages are to be even in both. An equation that is larger than the bound by
itself (a loop over all layers, an embedding) counts for nothing beside its neighbours, but stands in one cluster with
no other such.

*How many clusters there are.* Inter-op planning wants every boundary between layers, however many there are, and places
inside a layer only where layers are few. Module paths show which is which. So of the places that are narrow enough,
those between outermost modules are taken; where one module is all but the whole program, those between its parts; and
inside a layer that is above the bound, as few more as keep it. What is too small to matter to the evenness of stages
joins its neighbours. Both choices are shortest paths: the fewest live bytes in all, then the outermost modules, then
the most even sizes.

    what                                              function
    C: bytes that cross a place                       _Program._bytes_alive
    the bound (1 + delta) / L, and what exceeds it    _Bound
    the least largest C                               _width
    ties between places                               _between_modules, _merge, _cheapest
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from jax.extend import core

from jaxserve.errors import PlacementError
from jaxserve.parallel.atoms import nbytes, variables
from jaxserve.parallel.trace import Graph

Array = np.ndarray[Any, np.dtype[Any]]

_NO_BOUNDARY = 1 << 20  # deeper than any module: both neighbours are in the same one
_ROUNDING = 1e-9  # so that equal layers are alike to a bound, whatever their sums were rounded to


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Clusters:
    """A program in slices, each of which runs in one stage.

    Attributes:
        places: indices of the equations before which the program may be cut, ascending; neither its start nor its end.
        seconds: of each cluster, one more than places.
        live_bytes: at each place, of the values that depend on inputs and cross it. A value that is passed on over
            several stages counts at each place that it crosses, and an output of the program until the end.
        weights: for each cluster, indices of the params that its equations read, be it through equations on params.
        weight_bytes: of each of the model's params.
    """

    places: tuple[int, ...]
    seconds: tuple[float, ...]
    live_bytes: tuple[int, ...]
    weights: tuple[frozenset[int], ...]
    weight_bytes: tuple[int, ...]


def cluster(
    graph: Graph,
    seconds: Sequence[float],
    *,
    fixed: AbstractSet[core.Var],
    at_least: int = 16,
    at_most: int = 144,
    slack: float = 0.5,
) -> Clusters:
    """The program in clusters between which few bytes are alive.

    Args:
        graph: the program.
        seconds: what each equation takes; of those that no stage runs on its way (on params alone, or useless) unread.
        fixed: the variables that depend on no input.
        at_least: no cluster is much larger than (1 + `slack`) / `at_least` of the whole, unless one equation is. The
            slowest of n stages is above the mean by no more than the largest cluster, so ask for some 3 n or more.
        at_most: there are no more clusters than this.
        slack: Alpa's delta.
    """
    program = _Program(graph, seconds, fixed)
    if program.count < 2:
        return program.clusters({})
    bound = _Bound(program.sizes, (1 + slack) / at_least)
    allowed = np.flatnonzero(program.alive <= _width(program.alive, bound))
    places = _between_modules(program, allowed[allowed > 0], bound)
    chosen, smallest = _merge(program, places, 2 / at_most), 2 / at_most
    while len(chosen) >= at_most:
        smallest *= 1.25
        chosen = _merge(program, places, smallest)
    return program.clusters({place: program.moving[place] for place in chosen})


def cluster_at(
    graph: Graph, seconds: Sequence[float], places: Iterable[int], *, fixed: AbstractSet[core.Var]
) -> Clusters:
    """The program in clusters between the equations before which a user allows cuts, and nowhere else.

    Places that leave nothing to run on one side, or between each other, are left out; of equals the first stays.

    Raises:
        PlacementError: a place is no equation's index.
    """
    program = _Program(graph, seconds, fixed)
    chosen: dict[int, int] = {}
    for place in sorted(places):
        if not 0 <= place <= len(graph.eqns):
            raise PlacementError(f"cut before equation {place}, but the program has {len(graph.eqns)}: 0 is its first")
        before = bisect.bisect_left(program.moving, place)
        if 0 < before < program.count:
            chosen.setdefault(before, place)
    return program.clusters(chosen)


class _Program:
    """What stages run: the equations that depend on inputs and are needed, numbered anew; `place` k is before the k-th.

    Attributes:
        moving: their indices in the graph.
        count: their number.
        sizes: [count, 2], their shares of the seconds and of the weight bytes; a weight counts where it is first read.
        before: [count + 1, 2], the shares before each place.
        alive: [count], the bytes that cross each place.
        depths: [count], how deep in the tree of modules the boundary at each place is: 0 between outermost modules.
    """

    def __init__(self, graph: Graph, seconds: Sequence[float], fixed: AbstractSet[core.Var]) -> None:
        self._graph = graph
        self._fixed = fixed
        self.moving = self._moving()
        self.count = len(self.moving)
        self._seconds = [seconds[index] for index in self.moving]
        self._weight_bytes = tuple(map(nbytes, graph.params))
        self._read, self._read_last = self._weights()
        self.sizes = self._sizes()
        self.before = np.concatenate([np.zeros((1, 2)), np.cumsum(self.sizes, axis=0)])
        self.alive = self._bytes_alive()
        self.depths = self._depths()

    def clusters(self, places: dict[int, int]) -> Clusters:
        """The clusters between these places, each given with the equation by which it is called."""
        bounds = (0, *places, self.count)
        weights = [frozenset().union(*self._read[start:end]) for start, end in itertools.pairwise(bounds)]
        weights[-1] |= self._read_last
        return Clusters(
            places=tuple(places.values()),
            seconds=tuple(math.fsum(self._seconds[start:end]) for start, end in itertools.pairwise(bounds)),
            live_bytes=tuple(int(self.alive[place]) for place in places),
            weights=tuple(weights),
            weight_bytes=self._weight_bytes,
        )

    def size(self, start: int, end: int) -> float:
        """The larger of the two shares of a slice."""
        return float((self.before[end] - self.before[start]).max())

    def _moved(self, atoms: Iterable[Any]) -> Iterable[core.Var]:
        """Those of the atoms that depend on inputs."""
        return (atom for atom in variables(atoms) if atom not in self._fixed)

    def _moving(self) -> list[int]:
        needed = set(self._moved(self._graph.outputs))
        found: list[int] = []
        for index in reversed(range(len(self._graph.eqns))):
            eqn = self._graph.eqns[index]
            if eqn.effects or any(var in needed for var in eqn.outvars):
                needed.update(self._moved(eqn.invars))
                found.append(index)
        return found[::-1]

    def _weights(self) -> tuple[list[frozenset[int]], frozenset[int]]:
        """The params that each equation reads, and those of outputs that are made of params: by the last stage."""
        sources: dict[core.Var, frozenset[int]] = {
            var: frozenset((index,)) for index, var in enumerate(self._graph.params)
        }

        def read(atoms: Iterable[Any]) -> frozenset[int]:
            return frozenset().union(*(sources[var] for var in variables(atoms) if var in sources))

        for eqn in self._graph.eqns:
            made = [var for var in eqn.outvars if var in self._fixed]
            if made:
                sources.update(dict.fromkeys(made, read(eqn.invars)))
        return [read(self._graph.eqns[index].invars) for index in self.moving], read(self._graph.outputs)

    def _sizes(self) -> Array:
        seen: set[int] = set()
        first_read: list[int] = []
        for weights in self._read:
            first_read.append(sum(self._weight_bytes[weight] for weight in weights - seen))
            seen |= weights
        sizes = np.array([self._seconds, first_read], dtype=float).reshape(2, self.count).T
        total = sizes.sum(axis=0)
        return sizes / np.where(total > 0, total, 1)

    def _bytes_alive(self) -> Array:
        """Bytes of the values that are there before each equation and used by it, by a later one, or as an output."""
        made = dict.fromkeys(self._graph.inputs, -1)
        last: dict[core.Var, int] = {}
        for place, index in enumerate(self.moving):
            eqn = self._graph.eqns[index]
            last.update(dict.fromkeys(self._moved(eqn.invars), place))
            made.update(dict.fromkeys(eqn.outvars, place))
        # Who calls the program has its inputs: where one is an output too, no stage need hand it on.
        last.update((var, self.count) for var in self._moved(self._graph.outputs) if made[var] >= 0)
        change = np.zeros(self.count + 2, dtype=np.int64)
        for var, place in last.items():
            change[made[var] + 1] += nbytes(var)
            change[place + 1] -= nbytes(var)
        return np.cumsum(change)[: self.count]

    def _depths(self) -> Array:
        depths = np.full(self.count, _NO_BOUNDARY)
        for place, (left, right) in enumerate(itertools.pairwise(self.moving), start=1):
            before, behind = self._graph.paths[left], self._graph.paths[right]
            if before != behind:
                same = itertools.takewhile(lambda names: names[0] == names[1], zip(before, behind, strict=False))
                depths[place] = sum(1 for _ in same)
        return depths


class _Bound:
    """Whether slices of these units are small enough: what is not above the bound by itself sums up to no more."""

    def __init__(self, sizes: Array, bound: float) -> None:
        bound *= 1 + _ROUNDING
        large = sizes.max(axis=1) > bound
        self.count = len(sizes)
        self._bound = bound
        self._large = np.concatenate([[0], np.cumsum(large)])
        self._small = np.concatenate([np.zeros((1, 2)), np.cumsum(np.where(large[:, None], 0, sizes), axis=0)])

    def holds(self, places: Array) -> Array:
        """For each slice between neighbours of these, whether it is small enough."""
        small = np.diff(self._small[places], axis=0)
        return np.all(small <= self._bound, axis=1) & (np.diff(self._large[places]) <= 1)

    def begins(self, places: Array) -> Array:
        """For each of these, the position among them of the first from which a slice to it is small enough."""
        small, large = self._small[places], self._large[places]
        positions = [np.searchsorted(column, column - self._bound) for column in small.T]
        return np.maximum.reduce([*positions, np.searchsorted(large, large - 1)])


def _width(alive: Array, bound: _Bound) -> int:
    """The fewest bytes such that cuts wherever no more are alive keep the bound."""

    def enough(width: int) -> bool:
        inner = np.flatnonzero(alive <= width)
        return bool(bound.holds(np.concatenate([[0], inner[inner > 0], [bound.count]])).all())

    widths = np.unique(alive[1:])
    return int(widths[bisect.bisect_left(widths, True, key=enough)])  # the widest is: single equations keep any bound


def _between_modules(program: _Program, allowed: Array, bound: _Bound) -> list[int]:
    """Of the allowed places those between outermost modules, and inside of what is above the bound some more."""
    chosen: set[int] = set()
    pending = [(0, program.count)]
    while pending:
        start, end = pending.pop()
        inner = allowed[np.searchsorted(allowed, start, "right") : np.searchsorted(allowed, end)]
        if not inner.size:
            continue
        bounds = np.concatenate([[start], inner[program.depths[inner] == program.depths[inner].min()], [end]])
        chosen.update(bounds[1:-1].tolist())
        whole, *parts = (program.size(*each) for each in [(start, end), *itertools.pairwise(bounds)])
        for (first, last), size, fits in zip(itertools.pairwise(bounds), parts, bound.holds(bounds), strict=True):
            if fits:
                continue
            if size > whole / 2:  # all but a head or so: the modules that the program consists of lie further in
                pending.append((first, last))
            else:
                inside = allowed[np.searchsorted(allowed, first, "right") : np.searchsorted(allowed, last)]
                chosen.update(_cheapest(program, np.concatenate([[first], inside, [last]]), bound))
    return sorted(chosen)


def _merge(program: _Program, places: Sequence[int], smallest: float) -> list[int]:
    """Joins clusters as long as what is not larger than `smallest` by itself sums up to no more."""
    bounds = np.array([0, *places, program.count])
    joined = _Bound(np.add.reduceat(program.sizes, bounds[:-1], axis=0), smallest)
    return _cheapest(program, bounds, joined, np.arange(len(bounds)))


def _cheapest(program: _Program, places: Array, bound: _Bound, units: Array | None = None) -> list[int]:
    """Between the first and the last of these, the places with the fewest live bytes in all that keep the bound.

    Of equals those between outermost modules, then those of the least sum of squared sizes. Neighbours among the places
    may always bound a slice. `units` are what the places are to `bound`, if not themselves.
    """
    begins = bound.begins(places if units is None else units)
    sizes = program.before[places]
    # One byte more each, so that a place over which nothing passes is not taken for that alone.
    costs = np.stack([program.alive[places[1:-1]] + 1, program.depths[places[1:-1]]])
    costs = np.concatenate([costs, [[0], [0]]], axis=1)  # the end costs nothing
    alive, depth = np.zeros((2, len(places)), dtype=np.int64)
    squares = np.zeros(len(places))
    came_from = [0]
    for end in range(1, len(places)):
        starts = np.arange(min(begins[end], end - 1), end)
        starts = starts[alive[starts] == alive[starts].min()]
        starts = starts[depth[starts] == depth[starts].min()]
        uneven = squares[starts] + (sizes[end] - sizes[starts]).max(axis=1) ** 2
        best = int(uneven.argmin())
        start = int(starts[best])
        came_from.append(start)
        squares[end] = uneven[best]
        alive[end], depth[end] = alive[start] + costs[0, end - 1], depth[start] + costs[1, end - 1]
    chosen: list[int] = []
    end = len(places) - 1
    while came_from[end] > 0:
        end = came_from[end]
        chosen.append(int(places[end]))
    return chosen[::-1]
