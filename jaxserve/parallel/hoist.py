"""What programs compute of params alone is computed once, when the weights are loaded.

A *weight* is what a program takes in place of params: a leaf of the model's params, or an array derived from leaves.
The buckets of a model share one list of weights.

An expression is a leaf, or an operation on expressions and constants; equal ones are one, whichever bucket they stand
in. Those that what depends on the inputs reads, less the views that XLA reads for nothing, are the weights (a
transposed table is the table), with these exceptions, where the operation stays in the program and its operands are
looked at in its place:

- a bucket that uses the same leaves does not use the expression: the rows of a position table that a length needs;
- the weights would take more memory than the leaves that they replace: a sum of a row and a column, or the cast of a
  leaf that is needed as it is, too.
"""

import bisect
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxserve.model.flat import Atom
from jaxserve.model.modules import Path
from jaxserve.model.params import Shape
from jaxserve.parallel.atoms import nbytes, variables
from jaxserve.parallel.trace import Graph

_VIEWS = frozenset({"transpose", "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "copy", "copy_p"})
_SLICES = frozenset({"slice", "dynamic_slice"})
# These belong to the devices that the program is for, or to the process: the host must not run them in their place.
_BOUND = frozenset(
    {"pallas_call", "ffi_call", "custom_call", "shard_map", "sharding_constraint", "custom_partitioning", "device_put"}
)
_COMPARE_UP_TO_BYTES = 64 * 1024  # constants of up to this size are compared by their content, larger ones by identity


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Derived:
    """How one weight is made of leaves of the model's params.

    Attributes:
        leaves: indices of the leaves that it needs, ascending.
        program: takes these leaves, returns the weight; None where the weight is its one leaf.
        shape: shape and dtype of the weight.
    """

    leaves: tuple[int, ...]
    program: core.ClosedJaxpr | None
    shape: Shape


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Expression:
    """One array that is made of params and constants alone.

    Attributes:
        leaves: indices of the leaves in it; none where it is made of constants.
        operands: the expressions that it is made of.
        viewed: the expression that it is a view of, if it is one.
        nbytes: its size.
        graph: index of the graph in which it was met first.
        var: its variable there.
    """

    leaves: frozenset[int]
    operands: tuple[int, ...]
    viewed: int | None
    nbytes: int
    graph: int
    var: Any

    @property
    def is_leaf(self) -> bool:
        """Whether it is a leaf itself."""
        return not self.operands and bool(self.leaves)


def hoist(graphs: Sequence[Graph]) -> tuple[tuple[Graph, ...], tuple[Derived, ...]]:
    """The graphs of a model's buckets on weights in place of leaves, and how the weights are made.

    In the graphs returned, `params[k]` is weight k. Leaves that no bucket uses are no weights, and equations whose
    results nobody uses are gone.
    """
    expressions = _Expressions()
    readings = [_Reading(graph, index, expressions) for index, graph in enumerate(graphs)]
    weights = _choose(expressions, [reading.read for reading in readings])
    derived = tuple(_derive(expressions[weight], readings) for weight in weights)
    return tuple(reading.rewritten(weights) for reading in readings), derived


class _Expressions:
    """All expressions of all buckets, each once, by number. Leaf i is expression i."""

    def __init__(self) -> None:
        self._all: list[_Expression] = []
        self._numbers: dict[Any, int] = {}

    def __getitem__(self, number: int) -> _Expression:
        return self._all[number]

    def number(self, key: Any, **attributes: Any) -> int:
        """The number of the expression of this key; it is made with these attributes where it is new."""
        number = self._numbers.setdefault(key, len(self._all))
        if number == len(self._all):
            self._all.append(_Expression(**attributes))
        return number

    def seen(self, number: int) -> int:
        """What an expression is a view of, or itself."""
        while (viewed := self._all[number].viewed) is not None:
            number = viewed
        return number


class _Reading:
    """One graph, with the expressions that its variables are.

    Attributes:
        graph: the graph.
        live: places of the equations whose results are used or that have an effect.
        read: the expressions of leaves that other equations, or the outputs, read.
    """

    def __init__(self, graph: Graph, index: int, expressions: _Expressions) -> None:
        self.graph = graph
        self._index = index
        self._expressions = expressions
        self._number: dict[core.Var, int] = {}
        self._maker = {var: place for place, eqn in enumerate(graph.eqns) for var in eqn.outvars}
        self.live = _live(graph)
        for leaf, var in enumerate(graph.params):
            self._note(var, ("leaf", leaf), leaves=frozenset([leaf]))
        for var, value in graph.constants.items():
            self._note(var, ("constant", _content(value)))
        read: dict[int, None] = {}
        for place in self.live:
            eqn = graph.eqns[place]
            if not self._note_results(eqn):
                read.update(self._of_leaves(eqn.invars))
        read.update(self._of_leaves(graph.outputs))
        self.read = tuple(read)

    def _note(self, var: Any, key: Any, **attributes: Any) -> None:
        attributes = {"leaves": frozenset(), "operands": (), "viewed": None} | attributes
        self._number[var] = self._expressions.number(key, nbytes=nbytes(var), graph=self._index, var=var, **attributes)

    def _note_results(self, eqn: core.JaxprEqn) -> bool:
        """Makes an equation's results expressions; whether they are any."""
        if eqn.effects or not all(self._is_expression(atom) for atom in eqn.invars) or not _runs_on_host(eqn):
            return False
        operands = tuple(self._operand(atom) for atom in eqn.invars)
        numbers = tuple(operand for operand in operands if isinstance(operand, int))
        leaves = frozenset[int]().union(*(self._expressions[number].leaves for number in numbers))
        key = (eqn.primitive, _static(eqn.params), operands)
        viewed = numbers[0] if self._is_view(eqn) else None
        for result, var in enumerate(eqn.outvars):
            self._note(var, (key, result), leaves=leaves, operands=numbers, viewed=viewed)
        return True

    def _is_expression(self, atom: Atom) -> bool:
        return isinstance(atom, core.Literal) or atom in self._number

    def _operand(self, atom: Atom) -> Any:
        return _literal(atom) if isinstance(atom, core.Literal) else self._number[atom]

    def _is_view(self, eqn: core.JaxprEqn) -> bool:
        name, operand = eqn.primitive.name, eqn.invars[0] if eqn.invars else None
        if not isinstance(operand, core.Var):
            return False
        if name == "squeeze" and operand in self._maker:  # of a slice, it is the end of taking a row
            return self.graph.eqns[self._maker[operand]].primitive.name not in _SLICES
        if name == "convert_element_type":
            return _dtype(operand) == _dtype(eqn.outvars[0])
        return name in _VIEWS

    def _of_leaves(self, atoms: Iterable[Atom]) -> dict[int, None]:
        numbers = [self._number[var] for var in variables(atoms) if var in self._number]
        return {number: None for number in numbers if self._expressions[number].leaves}

    def program(self, expression: _Expression) -> core.ClosedJaxpr:
        """What makes an expression, which was met first here, of its leaves."""
        places: set[int] = set()
        pending: list[Atom] = [expression.var]
        while pending:
            place = self._maker.get(pending.pop())
            if place is not None and place not in places:
                places.add(place)
                pending.extend(variables(self.graph.eqns[place].invars))
        eqns = [self.graph.eqns[place] for place in sorted(places)]
        read = {var for eqn in eqns for var in variables(eqn.invars)}
        constants = [var for var in self.graph.constants if var in read]
        jaxpr = self.graph.jaxpr.replace(
            constvars=constants,
            invars=[self.graph.params[leaf] for leaf in sorted(expression.leaves)],
            outvars=[expression.var],
            eqns=eqns,
            effects=frozenset(),
        )
        return core.ClosedJaxpr(jaxpr, [self.graph.constants[var] for var in constants])

    def rewritten(self, weights: Sequence[int]) -> Graph:
        """The graph with these expressions as its params."""
        graph, known = self.graph, set(weights)
        here: dict[int, core.Var] = {}
        for var, number in self._number.items():
            if number in known:
                here.setdefault(number, var)

        def renamed(atom: Atom) -> Atom:
            return atom if isinstance(atom, core.Literal) else here.get(self._number.get(atom, -1), atom)

        given = set(here.values())
        outputs = [renamed(atom) for atom in graph.outputs]
        needed = set(variables(outputs)) - given
        eqns: dict[int, core.JaxprEqn] = {}
        for place in reversed(self.live):
            eqn = graph.eqns[place]
            if eqn.effects or not needed.isdisjoint(eqn.outvars):
                invars = [renamed(atom) for atom in eqn.invars]
                if invars != eqn.invars or not given.isdisjoint(eqn.outvars):
                    # of several results some may be weights: then the equation makes them, too, for nobody
                    results = [core.Var(var.aval) if var in given else var for var in eqn.outvars]
                    eqn = eqn.replace(invars=invars, outvars=results)
                eqns[place] = eqn
                needed.update(var for var in variables(invars) if var not in given)
        kept = sorted(eqns)
        params = tuple(here.get(weight) or core.Var(self._expressions[weight].var.aval) for weight in weights)
        jaxpr = graph.jaxpr.replace(
            invars=[*params, *graph.inputs], outvars=outputs, eqns=[eqns[place] for place in kept]
        )
        paths = tuple(graph.paths[place] for place in kept)
        return dataclasses.replace(graph, jaxpr=jaxpr, paths=paths, params=params, emptied=_emptied(graph, kept))


def _choose(expressions: _Expressions, read: Sequence[Sequence[int]]) -> list[int]:
    """The weights, by their first leaf; of one leaf, in the order in which they are met."""
    inside: set[int] = set()  # what stays in the programs
    while True:
        used = [_reach(expressions, numbers, inside) for numbers in read]
        refused = _of_some_buckets(expressions, used) or _too_large(expressions, set().union(*used))
        if not refused:
            weights = set[int]().union(*used)
            return sorted(weights, key=lambda number: (min(expressions[number].leaves), number))
        inside |= refused


def _reach(expressions: _Expressions, read: Iterable[int], inside: set[int]) -> set[int]:
    """The leaves and derived weights that a bucket needs, where these expressions stay in its program."""
    found: set[int] = set()
    met: set[int] = set()
    pending = list(read)
    while pending:
        number = expressions.seen(pending.pop())
        if number in met:
            continue
        met.add(number)
        if number in inside:
            pending.extend(each for each in expressions[number].operands if expressions[each].leaves)
        else:
            found.add(number)
    return found


def _of_some_buckets(expressions: _Expressions, used: Sequence[set[int]]) -> set[int]:
    """Those derived weights that a bucket does not use, although it uses their leaves."""
    refused: set[int] = set()
    leaves = [frozenset[int]().union(*(expressions[number].leaves for number in numbers)) for numbers in used]
    for number in set[int]().union(*used):
        expression = expressions[number]
        for numbers, there in zip(used, leaves, strict=True):
            if not expression.is_leaf and number not in numbers and not there.isdisjoint(expression.leaves):
                refused.add(number)
    return refused


def _too_large(expressions: _Expressions, used: set[int]) -> set[int]:
    """Those derived weights that must go for the others to need no more memory than the leaves that they replace."""
    needed = {number for number in used if expressions[number].is_leaf}
    refused: set[int] = set()
    for group in _sharing_leaves(expressions, sorted(used - needed)):
        nbytes = {number: expressions[number].nbytes for number in group}
        replaced = frozenset[int]().union(*(expressions[number].leaves for number in group)) - needed
        if sum(nbytes.values()) <= sum(expressions[leaf].nbytes for leaf in replaced):
            continue
        replace_nothing = {number for number in group if expressions[number].leaves <= needed}
        grow = {number for number in group if nbytes[number] > _leaf_bytes(expressions, expressions[number])}
        largest = {number for number in group if nbytes[number] == max(nbytes.values())}
        refused |= replace_nothing or grow or largest
    return refused


def _leaf_bytes(expressions: _Expressions, expression: _Expression) -> int:
    return sum(expressions[leaf].nbytes for leaf in expression.leaves)


def _sharing_leaves(expressions: _Expressions, numbers: Iterable[int]) -> Iterable[list[int]]:
    """The derived weights in groups, of which no two use a leaf in common."""
    above: dict[int, int] = {}  # a leaf's forest: leaves of one tree belong to one group

    def root(leaf: int) -> int:
        while leaf in above:
            leaf = above[leaf]
        return leaf

    roots: dict[int, int] = {}
    for number in numbers:
        first, *others = sorted({root(leaf) for leaf in expressions[number].leaves})
        above.update((other, first) for other in others)
        roots[number] = first
    groups: dict[int, list[int]] = {}
    for number, leaf in roots.items():
        groups.setdefault(root(leaf), []).append(number)
    return groups.values()


def _derive(expression: _Expression, readings: Sequence[_Reading]) -> Derived:
    aval = expression.var.aval
    return Derived(
        leaves=tuple(sorted(expression.leaves)),
        program=None if expression.is_leaf else readings[expression.graph].program(expression),
        shape=Shape(aval.shape, aval.dtype),
    )


def _emptied(graph: Graph, kept: Sequence[int]) -> dict[Path, int]:
    """The modules that have no equation among those kept, and the place among them where their first one stood."""
    left = {graph.paths[place][:depth] for place in kept for depth in range(1, len(graph.paths[place]) + 1)}
    stood = dict(graph.emptied)
    for place, path in enumerate(graph.paths):
        for depth in range(1, len(path) + 1):
            stood.setdefault(path[:depth], place)
    return {path: bisect.bisect_left(kept, place) for path, place in stood.items() if path not in left}


def _live(graph: Graph) -> list[int]:
    """Places of the equations whose results are used, or that have an effect."""
    needed = set(variables(graph.outputs))
    live: list[int] = []
    for place in reversed(range(len(graph.eqns))):
        eqn = graph.eqns[place]
        if eqn.effects or not needed.isdisjoint(eqn.outvars):
            needed.update(variables(eqn.invars))
            live.append(place)
    return live[::-1]


def _dtype(var: Any) -> Any:
    return var.aval.dtype


def _runs_on_host(eqn: core.JaxprEqn) -> bool:
    """Whether the host may compute this at load time as well as the devices in every run."""
    name = eqn.primitive.name
    if name in _BOUND or "callback" in name:
        return False
    if any(jnp.issubdtype(_dtype(var), jax.dtypes.extended) for var in eqn.outvars):
        return False  # what is no array of numbers cannot be kept as a weight
    return all(_runs_on_host(inner) for body in core.jaxprs_in_params(eqn.params) for inner in body.eqns)


def _static(value: Any) -> Any:
    """A parameter of an equation as a key: equal only for equal ones."""
    if isinstance(value, core.ClosedJaxpr):
        return (str(value.jaxpr), *map(_content, value.consts))
    if isinstance(value, core.Jaxpr):
        return str(value)
    if isinstance(value, Mapping):
        return tuple((key, _static(value[key])) for key in sorted(value))
    if isinstance(value, tuple | list):
        return tuple(map(_static, value))
    try:
        hash(value)
    except TypeError:
        return _content(value)
    return value


def _literal(literal: core.Literal) -> Any:
    return (str(literal.aval), np.asarray(literal.val).tobytes())


def _content(value: Any) -> Any:
    """A constant as a key."""
    if getattr(value, "nbytes", math.inf) > _COMPARE_UP_TO_BYTES or not isinstance(value, np.ndarray | jax.Array):
        return id(value)
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return id(value)
    return (value.shape, str(value.dtype), np.asarray(value).tobytes())
