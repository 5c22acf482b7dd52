"""What a way to split an operation is called: the names of Megatron-LM, where it has one.

    column        a free dimension of a weight: each device makes its part of the output
                  (Shoeybi et al. 2019, arXiv 1909.08053, section 3)
    row           the dimension that is contracted with a weight: parts of a sum, which are all-reduced
    vocabulary    rows of a table that is looked up in: parts of a sum likewise
    sequence      tokens, or pixels (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2)
    expert        a dimension of both a weight and the values that it multiplies
                  (Lepikhin et al. 2020, arXiv 2006.16668, section 3)
    heads         such a dimension of two values, as in attention: Megatron splits it with the columns
    batch         data parallelism
    features      a free dimension of two values that is none of these; of a loop or a branch, of any value
    contracted    a dimension that two values are multiplied and summed along
    replicated    no dimension: every device does the same

Which dimension is the batch is not told by its size or place, which many share: dimensions that an equation's rule puts
under one factor are the same dimension, and so their names travel through the program, from the inputs that have them.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from jax.extend import core

from jaxserve.model.signature import BATCH
from jaxserve.parallel.atoms import shape
from jaxserve.parallel.intra_op import Step
from jaxserve.parallel.loops import LOOPS, rule_of
from jaxserve.parallel.rules import NONE, Rule

REPLICATED = "replicated"

_Dim = tuple[Any, int]  # a variable and one of its dimensions


class Dimensions:
    """Which dimensions of the values of a program are the batch, the sequence or the experts."""

    def __init__(
        self,
        eqns: Iterable[core.JaxprEqn],
        inputs: Mapping[core.Var, Sequence[int | str]],
        fixed: Collection[core.Var],
        *,
        batch_size: int,
    ) -> None:
        """Follows the names through the program.

        Args:
            eqns: the equations of all stages.
            inputs: what enters the program, with the names of its dimensions, or numbers where they have none.
            fixed: the variables that depend on weights alone.
            batch_size: of the bucket; where an operation without a rule ended the way of the names, a first dimension
                of this size is the batch.
        """
        self._fixed = fixed
        self._batch_size = batch_size
        self._parents: dict[_Dim, _Dim] = {}
        self._names: dict[_Dim, str] = {}
        experts: list[_Dim] = []
        for eqn in eqns:
            its_rule = rule_of(eqn)
            self._join(eqn, its_rule)
            experts += self._experts(eqn, its_rule)
        for dim in experts:
            self._names[self._find(dim)] = "expert"
        named = [((var, place), name) for var, dims in inputs.items() for place, name in enumerate(dims)]
        for dim, name in named:
            if isinstance(name, str) and name != BATCH:
                self._names[self._find(dim)] = "sequence"
        for dim, name in named:
            if name == BATCH:
                self._names[self._find(dim)] = "batch"

    def is_fixed(self, atom: Any) -> bool:
        """Whether an atom depends on weights alone, or on nothing."""
        return isinstance(atom, core.Literal) or atom in self._fixed

    def name(self, atom: Any, dim: int) -> str | None:
        """What a dimension is, where it is known: "batch", "sequence" or "expert"."""
        name = self._names.get(self._find((atom, dim)))
        if name is None and dim == 0 and shape(atom)[0] == self._batch_size > 1:
            return "batch"
        return name

    def _find(self, dim: _Dim) -> _Dim:
        while (parent := self._parents.get(dim, dim)) != dim:
            self._parents[dim] = self._parents.get(parent, parent)
            dim = parent
        return dim

    def _join(self, eqn: core.JaxprEqn, its_rule: Rule) -> None:
        first: dict[int, _Dim] = {}
        sides = (*zip(eqn.invars, its_rule.operands, strict=True), *zip(eqn.outvars, its_rule.results, strict=True))
        for atom, dims in sides:
            if self.is_fixed(atom):
                continue  # weights that layers share do not make their values one
            for place, factor in enumerate(dims):
                if factor != NONE:
                    root = self._find((atom, place))
                    self._parents[root] = self._find(first.setdefault(factor, root))

    def _experts(self, eqn: core.JaxprEqn, its_rule: Rule) -> Iterable[_Dim]:
        if eqn.primitive.name != "dot_general":
            return
        for atom, dims, other, others in (
            (*side, *opposite) for side, opposite in _both(list(zip(eqn.invars, its_rule.operands, strict=True)))
        ):
            if self.is_fixed(other) and not self.is_fixed(atom):
                shared = {factor for factor in dims if factor in others and factor not in its_rule.summed}
                yield from ((atom, place) for place, factor in enumerate(dims) if factor in shared)


def _both(sides: Sequence[tuple[Any, Any]]) -> Sequence[tuple[tuple[Any, Any], tuple[Any, Any]]]:
    return ((sides[0], sides[1]), (sides[1], sides[0]))


def strategy(eqn: core.JaxprEqn, step: Step, dimensions: Dimensions) -> tuple[str, ...]:
    """For each axis of the mesh what a heavy operation does on it, such as "column" or "row + reduce-scatter".

    Args:
        eqn: the operation.
        step: what it was decided to do.
        dimensions: of the program that it stands in.
    """
    its_rule = rule_of(eqn)
    names: list[str] = []
    for axis, factor in enumerate(step.factors):
        if factor == NONE:
            names.append(REPLICATED)
            continue
        name = _factor_name(eqn, its_rule, factor, dimensions)
        scattered = factor in its_rule.summed and any(result[axis] != NONE for result in step.results)
        names.append(f"{name} + reduce-scatter" if scattered else name)
    return tuple(names)


def _factor_name(eqn: core.JaxprEqn, its_rule: Rule, factor: int, dimensions: Dimensions) -> str:
    places = [(position, dims.index(factor)) for position, dims in enumerate(its_rule.operands) if factor in dims]
    weights = [position for position, atom in enumerate(eqn.invars) if dimensions.is_fixed(atom)]
    of_weight = any(position in weights for position, _ in places)
    of_values = [(eqn.invars[position], dim) for position, dim in places if position not in weights]
    if eqn.primitive.name == "gather" and of_weight:
        return "vocabulary" if factor in its_rule.summed else "column"
    if factor in its_rule.summed:
        return "row" if of_weight else "contracted"
    known = next(filter(None, (dimensions.name(atom, dim) for atom, dim in of_values)), None)
    if eqn.primitive.name in LOOPS and of_values:  # what is fixed may be the zeros that it begins with
        return known or "features"
    if of_weight:  # groups of a convolution are channels in and out
        return "expert" if of_values and eqn.primitive.name == "dot_general" else "column"
    if known is not None:
        return known
    if weights:
        return "sequence"
    return "heads" if len(of_values) > 1 else "features"
