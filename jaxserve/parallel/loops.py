"""Rules of loops and branches: what can be split outside a body, without a word of communication inside it.

A body is a program. Where all its equations agree that two dimensions follow one factor, they are one dimension to the
loop as well: the batch of a recurrent layer is one of its carry, of the input of each step and of the output of each.
Such a dimension can be split if no equation sums over it or needs it whole. Dimensions that depend on what a body does
not show (the steps themselves, an index, what a nested body needs whole) stay whole, so at worst a loop is replicated.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from jax.extend import core

from jaxserve.model.modules import called_jaxpr, scan_counts
from jaxserve.parallel.atoms import shape
from jaxserve.parallel.rules import NONE, Dims, Rule, opaque, rule

Dim = tuple[Any, int]  # one dimension of a variable

LOOPS = frozenset({"cond", "scan", "while"})


def rule_of(eqn: core.JaxprEqn) -> Rule:
    """The rule of any equation: of its primitive, or of the loop or branch that it is."""
    if eqn.primitive.name in LOOPS and not eqn.effects:
        return _Body().rule(eqn)
    return rule(eqn)


class _Body:
    """Finds which dimensions of a loop's operands and results follow one factor, by union and find.

    A variable is known by the calls that lead to its program, as one program may be called in several places.
    """

    def __init__(self) -> None:
        self._parent: dict[Dim, Dim] = {}
        self._whole: set[Dim] = set()
        self._apart: list[list[Dim]] = []  # dimensions of one equation that follow different factors
        self._calls = 0

    def rule(self, eqn: core.JaxprEqn) -> Rule:
        """The rule of the loop; one that replicates it where nothing can be split."""
        operands = [(("in", place), shape(atom)) for place, atom in enumerate(eqn.invars)]
        results = [(("out", place), shape(atom)) for place, atom in enumerate(eqn.outvars)]
        self._enter(eqn, operands, results)
        for dims in self._apart:
            roots = [self._find(dim) for dim in dims]
            for dim, root in zip(dims, roots, strict=True):
                if roots.count(root) > 1:
                    self._keep_whole(dim)
        return self._result(eqn, operands, results)

    def _enter(self, eqn: core.JaxprEqn, operands: list[Any], results: list[Any]) -> None:
        """Ties a loop's operands and results, as variables with their shapes, to those of its bodies."""
        params = eqn.params
        if eqn.primitive.name == "scan":
            body = getattr(params["jaxpr"], "jaxpr", params["jaxpr"])  # open since jax 0.11
            consts, carried = scan_counts(eqn)
            both = consts + carried
            scope = self._walk(body)
            self._tie(operands[:both], scope, body.invars[:both])
            self._tie(operands[both:], scope, body.invars[both:], steps=1)
            self._tie(results[:carried], scope, body.outvars[:carried])
            self._tie(results[carried:], scope, body.outvars[carried:], steps=1)
            self._tie(operands[consts:both], scope, body.outvars[:carried])
        elif eqn.primitive.name == "while":
            condition, body = (getattr(params[name], "jaxpr", params[name]) for name in ("cond_jaxpr", "body_jaxpr"))
            first, both = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
            self._tie([*operands[:first], *operands[both:]], self._walk(condition), condition.invars)
            scope = self._walk(body)
            self._tie([*operands[first:both], *operands[both:]], scope, body.invars)
            self._tie(operands[both:], scope, body.outvars)
            self._tie(results, scope, body.outvars)
        else:
            for branch in (getattr(each, "jaxpr", each) for each in params["branches"]):
                scope = self._walk(branch)
                self._tie(operands[1:], scope, branch.invars)
                self._tie(results, scope, branch.outvars)

    def _walk(self, jaxpr: core.Jaxpr) -> int:
        """Ties the dimensions of a program's variables as its equations say; returns the number of this call of it."""
        self._calls += 1
        scope = self._calls
        for eqn in jaxpr.eqns:
            operands = [((scope, atom), shape(atom)) for atom in eqn.invars]
            results = [((scope, var), shape(var)) for var in eqn.outvars]
            called = called_jaxpr(eqn)
            if called is not None:
                inner = getattr(called, "jaxpr", called)
                within = self._walk(inner)
                self._tie(operands, within, inner.invars)
                self._tie(results, within, inner.outvars)
                continue
            its_rule = rule_of(eqn)
            first: dict[int, Dim] = {}
            sides = [*zip(eqn.invars, its_rule.operands, strict=True), *zip(eqn.outvars, its_rule.results, strict=True)]
            for atom, dims in sides:
                if isinstance(atom, core.Literal):
                    continue
                for place, (factor, size) in enumerate(zip(dims, shape(atom), strict=True)):
                    dim = ((scope, atom), place)
                    bound = factor == NONE or factor in its_rule.whole or factor in its_rule.summed
                    if bound or its_rule.sizes[factor] != size:
                        self._keep_whole(dim)
                    else:
                        self._join(first.setdefault(factor, dim), dim)
            self._apart.append(list(first.values()))
        return scope

    def _tie(self, outside: Iterable[tuple[Any, Any]], scope: int, inside: Sequence[Any], steps: int = 0) -> None:
        """Joins variables to those of a program; `steps` leading dimensions are the loop's own."""
        for (var, dims), atom in zip(outside, inside, strict=True):
            for dim in range(len(dims)):
                if dim < steps or isinstance(atom, core.Literal):
                    self._keep_whole((var, dim))
                else:
                    self._join((var, dim), ((scope, atom), dim - steps))

    def _find(self, dim: Dim) -> Dim:
        root = dim
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        while dim != root:
            self._parent[dim], dim = root, self._parent.get(dim, dim)
        return root

    def _join(self, one: Dim, other: Dim) -> None:
        one, other = self._find(one), self._find(other)
        if one != other:
            self._parent[one] = other
            if one in self._whole:
                self._whole.add(other)

    def _keep_whole(self, dim: Dim) -> None:
        self._whole.add(self._find(dim))

    def _result(self, eqn: core.JaxprEqn, operands: list[Any], results: list[Any]) -> Rule:
        sizes: list[int] = []
        factors: dict[Dim, int] = {}

        def follow(var: Any, dims: Sequence[int]) -> Dims:
            followed: list[int] = []
            roots = [self._find((var, dim)) for dim in range(len(dims))]
            for root, size in zip(roots, dims, strict=True):
                if root in self._whole or size == 1 or roots.count(root) > 1:
                    followed.append(NONE)
                    continue
                if root not in factors:
                    factors[root] = len(sizes)
                    sizes.append(size)
                followed.append(factors[root])
            return tuple(followed)

        taken = tuple(follow(*operand) for operand in operands)
        given = tuple(follow(*result) for result in results)
        passed = {factor for dims in taken for factor in dims} & {factor for dims in given for factor in dims} - {NONE}
        if not passed:
            return opaque(eqn)
        alone = frozenset(range(len(sizes))) - passed
        return Rule(sizes=tuple(sizes), operands=taken, results=given, whole=alone)
