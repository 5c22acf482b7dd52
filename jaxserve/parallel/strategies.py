"""The ways in which single operations run on a mesh: which factors are split, what that wants, gives and costs.

A heavy operation may be split by any assignment of its factors to the axes of the mesh; where a factor that it sums
over is split, its result is all-reduced, or reduce-scattered onto a dimension. A light operation is split as the
operand that it follows lies, which is gathered first where the operation cannot be split so.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

from jax.extend import core

from jaxserve.parallel.atoms import nbytes, shape
from jaxserve.parallel.layout import LogicalMesh, Spec, Transfer, fits
from jaxserve.parallel.nodes import Nodes, Operation
from jaxserve.parallel.rules import NONE, Dims, Rule
from jaxserve.parallel.work import seconds


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Way:
    """An operation under one assignment of factors to axes.

    Attributes:
        factors: for each axis the factor, or NONE.
        operands: the specs that it wants.
        results: the specs that it gives, once `after` is done.
        after: collectives on the results.
        seconds: of the operation alone.
    """

    factors: tuple[int, ...]
    operands: tuple[Spec, ...]
    results: tuple[Spec, ...]
    after: tuple[Transfer, ...]
    seconds: float


def spec_of(dims: Dims, factors: Sequence[int]) -> Spec:
    """For each axis the dimension that follows its factor, of those of an array."""
    return tuple(dims.index(factor) if factor != NONE and factor in dims else NONE for factor in factors)


class Sharder:
    """How single operations behave on a mesh."""

    def __init__(self, nodes: Nodes, mesh: LogicalMesh) -> None:
        self._nodes = nodes
        self._mesh = mesh
        self._light: dict[tuple[int, Spec], tuple[Spec, Way]] = {}
        self._behind: dict[core.Var, tuple[int, ...]] = {}

    def divides(self, rule: Rule, factors: Sequence[int]) -> bool:
        """Whether all factors that are split are split evenly."""
        parts: dict[int, int] = {}
        for size, factor in zip(self._mesh.shape, factors, strict=True):
            if factor != NONE:
                parts[factor] = parts.get(factor, 1) * size
        return all(rule.sizes[factor] and rule.sizes[factor] % count == 0 for factor, count in parts.items())

    def way(self, operation: Operation, factors: tuple[int, ...], scatter: Sequence[int] = ()) -> Way:
        """The operation with these factors split; `scatter` has for each axis a dimension of the result or NONE."""
        rule, eqn = operation.rule, self._nodes.eqns[operation.place]
        operands = tuple(spec_of(dims, factors) for dims in rule.operands)
        results = [spec_of(dims, factors) for dims in rule.results]
        cost = seconds(operation.work, self._mesh.device, self._mesh.shards(factors))
        after: list[Transfer] = []
        summed = [axis for axis, factor in enumerate(factors) if factor != NONE and factor in rule.summed]
        kept = [axis for axis in summed if not scatter or scatter[axis] == NONE]
        for number, var in enumerate(eqn.outvars if summed else ()):
            for axis in summed:
                if axis not in kept:
                    local = nbytes(var) / self._mesh.shards(results[number])
                    after.append(Transfer(kind="reduce_scatter", nbytes=local, devices=self._mesh.shape[axis]))
                    results[number] = (*results[number][:axis], scatter[axis], *results[number][axis + 1 :])
            if kept:  # over all these axes at once
                local = nbytes(var) / self._mesh.shards(results[number])
                devices = math.prod(self._mesh.shape[axis] for axis in kept)
                after.append(Transfer(kind="all_reduce", nbytes=local, devices=devices))
        return Way(factors=factors, operands=operands, results=tuple(results), after=tuple(after), seconds=cost)

    def strategies(self, operation: Operation) -> Iterator[Way]:
        """Every way to split a heavy operation."""
        rule = operation.rule
        candidates = [NONE]
        if self._mesh.size > 1:
            candidates += [f for f, size in enumerate(rule.sizes) if f not in rule.whole and size > 1]
        for factors in itertools.product(candidates, repeat=len(self._mesh.shape)):
            if not self.divides(rule, factors):
                continue
            plain = self.way(operation, factors)
            yield plain
            if not plain.after or len(rule.results) != 1:
                continue
            result = shape(self._nodes.eqns[operation.place].outvars[0])
            options = [
                (NONE, *range(len(result))) if factor != NONE and factor in rule.summed else (NONE,)
                for factor in factors
            ]
            for scatter in itertools.product(*options):
                if all(dim == NONE for dim in scatter):
                    continue
                way = self.way(operation, factors, scatter)
                if fits(self._mesh, result, way.results[0]):
                    yield way

    def light(self, operation: Operation, spec: Spec) -> tuple[Spec, Way]:
        """How a light operation behaves behind this spec of the operand it follows: what it makes of that, its way."""
        assert operation.follows is not None
        key = (operation.place, spec)
        known = self._light.get(key)
        if known is None:
            known = self._light[key] = self._follow(operation, operation.follows, spec)
        return known

    def _follow(self, operation: Operation, follows: int, spec: Spec) -> tuple[Spec, Way]:
        rule = operation.rule
        dims = rule.operands[follows]
        factors = [dims[dim] if dim != NONE else NONE for dim in spec]
        factors = [NONE if factor in rule.whole else factor for factor in factors]
        while not self.divides(rule, factors):  # a merged dimension may divide where its major factor does not
            factors[max(axis for axis, factor in enumerate(factors) if factor != NONE)] = NONE
        way = self.way(operation, tuple(factors))
        return tuple(dim if factor != NONE else NONE for dim, factor in zip(spec, factors, strict=True)), way

    def weights_behind(self, var: core.Var) -> tuple[int, ...]:
        """The weights that a fixed variable is made of."""
        known = self._behind.get(var)
        if known is None:
            known = self._behind[var] = tuple(self.wants_of_weights(var, self._mesh.replicated))
        return known

    def wants_of_weights(self, var: core.Var, spec: Spec) -> dict[int, Spec]:
        """The specs of weights that give a fixed variable this spec with no collective."""
        index = self._nodes.weights.get(var)
        if index is not None:
            return {index: spec}
        place = self._nodes.maker.get(var)
        if place is None:  # a constant
            return {}
        eqn, rule = self._nodes.eqns[place], self._nodes.rules[place]
        dims = rule.results[eqn.outvars.index(var)]
        factors = [dims[dim] if dim != NONE else NONE for dim in spec]
        factors = [NONE if factor in rule.whole or factor in rule.summed else factor for factor in factors]
        found: dict[int, Spec] = {}
        for atom, operand in zip(eqn.invars, rule.operands, strict=True):
            if isinstance(atom, core.Literal):
                continue
            wanted = spec_of(operand, factors)
            if not fits(self._mesh, shape(atom), wanted):
                wanted = self._mesh.replicated
            for weight, wants in self.wants_of_weights(atom, wanted).items():
                found[weight] = wants if found.get(weight, wants) == wants else self._mesh.replicated
        return found
