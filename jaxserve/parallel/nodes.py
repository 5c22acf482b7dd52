"""From a program to the nodes that the intra-op pass decides on.

Every *heavy* operation (products, convolutions, look-ups, and whatever has no rule) is the head of a node, as is every
value that enters the program. A light operation joins the node of its largest operand, the youngest where several are
as large, and follows the way in which that one is sharded (Alpa sec. 4.2, "we merge computationally-trivial
operators"). What a program computes from weights and constants alone belongs to no node: it may have any sharding.

Nodes of one kind that repeat with a period, as the layers of a transformer do, are *tied*: they get one class, and one
decision.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jax.extend import core

from jaxserve.model.flat import Atom
from jaxserve.parallel.atoms import nbytes, shape, variables
from jaxserve.parallel.loops import rule_of
from jaxserve.parallel.rules import Rule
from jaxserve.parallel.work import Work, work

SHORTEST_PERIOD = 4  # nodes

HEAVY = frozenset({"cond", "conv_general_dilated", "dot_general", "gather", "ragged_dot_general", "scan", "while"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """Where an operand of an operation comes from: exactly one field is set, none for a literal.

    Attributes:
        own: index of the value of the same node.
        node: index of another node; with `value`, the index of its value.
        value: see `node`.
        fixed: a variable that depends on weights and constants alone.
    """

    own: int | None = None
    node: int | None = None
    value: int | None = None
    fixed: core.Var | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operation:
    """One equation, as a member of a node.

    Attributes:
        place: index of the equation in the program.
        rule: how its dimensions belong together.
        work: what it costs unsharded.
        operands: where they come from.
        follows: position of the operand whose sharding it follows; None for the head of a node.
    """

    place: int
    rule: Rule
    work: Work
    operands: tuple[Operand, ...]
    follows: int | None


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Node:
    """A head and what follows it.

    Attributes:
        head: the heavy operation; None for a value that enters the program.
        members: the light operations, in program order.
        values: the results of all of these (or the value that enters), as variables.
        taken: index among the values that the program takes, where there is no head.
        signature: nodes of the same signature may share a decision.
    """

    head: Operation | None
    members: list[Operation]
    values: list[core.Var]
    taken: int | None
    signature: Any = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nodes:
    """A program as nodes.

    Attributes:
        eqns: the equations.
        nodes: in program order.
        maker: of every fixed variable that an equation makes: the place of the equation.
        rules: of the equations that make fixed variables, by place.
        weights: the variables of the weights.
        classes: for each node the number of its class; tied nodes have the same.
    """

    eqns: Sequence[core.JaxprEqn]
    nodes: tuple[Node, ...]
    maker: dict[core.Var, int]
    rules: dict[int, Rule]
    weights: dict[core.Var, int]
    classes: tuple[int, ...]

    def heavy_weights(self) -> set[int]:
        """The weights that heavy operations read, be it through other equations."""
        pending = [
            operand.fixed
            for node in self.nodes
            if node.head is not None
            for operand in node.head.operands
            if operand.fixed is not None
        ]
        found: set[int] = set()
        seen: set[core.Var] = set()
        while pending:
            var = pending.pop()
            if var in seen:
                continue
            seen.add(var)
            if var in self.weights:
                found.add(self.weights[var])
            elif var in self.maker:
                invars = self.eqns[self.maker[var]].invars
                pending += variables(invars)
        return found


def divide(jaxpr: core.Jaxpr, *, weights: Sequence[core.Var], constants: Sequence[core.Var]) -> Nodes:
    """The nodes of a program that takes weights, constants and values."""
    return _Divider(jaxpr, weights, constants).nodes()


class _Divider:
    def __init__(self, jaxpr: core.Jaxpr, weights: Sequence[core.Var], constants: Sequence[core.Var]) -> None:
        self._jaxpr = jaxpr
        self._weights = {var: index for index, var in enumerate(weights)}
        self._fixed: set[core.Var] = {*weights, *constants}
        self._nodes: list[Node] = []
        self._home: dict[core.Var, tuple[int, int]] = {}
        self._maker: dict[core.Var, int] = {}
        self._rules: dict[int, Rule] = {}

    def nodes(self) -> Nodes:
        entering = [var for var in self._jaxpr.invars if var not in self._fixed]
        for index, var in enumerate(entering):
            self._add(Node(head=None, members=[], values=[], taken=index), [var])
            self._nodes[-1].signature = ("takes", index)
        moving: list[int] = []
        for place, eqn in enumerate(self._jaxpr.eqns):
            if not eqn.effects and all(var in self._fixed for var in variables(eqn.invars)):
                self._fixed.update(eqn.outvars)
                self._maker.update((var, place) for var in eqn.outvars)
                self._rules[place] = rule_of(eqn)
            else:
                moving.append(place)
        works = work(self._jaxpr.eqns, outputs=self._jaxpr.outvars, free=self._fixed)
        for place in moving:
            self._place(place, works[place])
        for node in self._nodes:
            if node.taken is None:
                node.signature = self._signature(node)
        return Nodes(
            eqns=self._jaxpr.eqns,
            nodes=tuple(self._nodes),
            maker=self._maker,
            rules=self._rules,
            weights=self._weights,
            classes=_classes([node.signature for node in self._nodes]),
        )

    def _add(self, node: Node, results: Iterable[core.Var]) -> None:
        self._nodes.append(node)
        self._keep(len(self._nodes) - 1, results)

    def _keep(self, number: int, results: Iterable[core.Var]) -> None:
        values = self._nodes[number].values
        for var in results:
            self._home[var] = (number, len(values))
            values.append(var)

    def _place(self, place: int, cost: Work) -> None:
        eqn = self._jaxpr.eqns[place]
        its_rule = rule_of(eqn)
        homes = [None if isinstance(atom, core.Literal) else self._home.get(atom) for atom in eqn.invars]
        follows = None
        if eqn.primitive.name not in HEAVY and its_rule.known:
            candidates = [position for position, home in enumerate(homes) if home is not None]
            follows = max(candidates, key=lambda position: (nbytes(eqn.invars[position]), homes[position]))
        number = len(self._nodes) if follows is None else homes[follows][0]  # type: ignore[index]
        operation = Operation(
            place=place,
            rule=its_rule,
            work=cost,
            operands=tuple(self._operand(atom, home, number) for atom, home in zip(eqn.invars, homes, strict=True)),
            follows=follows,
        )
        if follows is None:
            self._add(Node(head=operation, members=[], values=[], taken=None), eqn.outvars)
        else:
            self._nodes[number].members.append(operation)
            self._keep(number, eqn.outvars)

    def _operand(self, atom: Atom, home: tuple[int, int] | None, number: int) -> Operand:
        if isinstance(atom, core.Literal):
            return Operand()
        if home is None:
            return Operand(fixed=atom)
        return Operand(own=home[1]) if home[0] == number else Operand(node=home[0], value=home[1])

    def _signature(self, node: Node) -> Any:
        """What makes two nodes alike: the same operations on the same shapes, joined in the same way."""
        assert node.head is not None
        return tuple(
            (
                self._jaxpr.eqns[each.place].primitive.name,
                each.rule,
                each.work,
                each.follows,
                tuple(
                    (operand.own, operand.node is not None, self._fixed_signature(operand.fixed))
                    for operand in each.operands
                ),
            )
            for each in (node.head, *node.members)
        )

    def _fixed_signature(self, var: core.Var | None) -> Any:
        """A weight used here, through how many equations; what is small is not told apart."""
        steps = 0
        while var is not None and var in self._maker:
            fixed = [atom for atom in variables(self._jaxpr.eqns[self._maker[var]].invars) if atom in self._fixed]
            var = max(fixed, key=nbytes, default=None)
            steps += 1
        return None if var is None else (steps, var in self._weights, shape(var))


def _classes(signatures: Sequence[Any]) -> tuple[int, ...]:
    """Numbers for tied nodes: runs in which signatures repeat with a period, the longest first.

    A short period is taken several times, as neighbours that look alike may want different decisions: of equal dense
    layers every second is best split by its columns, and every other by its rows.
    """
    numbers: dict[Any, int] = {}
    codes = np.array([numbers.setdefault(each, len(numbers)) for each in signatures], dtype=np.int64)
    classes = np.full(len(codes), -1, dtype=np.int64)
    count = 0
    pending = [(0, len(codes))]
    while pending:
        start, end = pending.pop()
        offset, length, period = _longest_run(codes[start:end])
        period *= -(-SHORTEST_PERIOD // period)
        if length < 2 * period:
            classes[start:end] = np.arange(count, count + end - start)
            count += end - start
            continue
        first = start + offset
        classes[first : first + length] = count + np.arange(length) % period
        count += period
        pending += [(start, first), (first + length, end)]
    return tuple(classes.tolist())


def _longest_run(codes: np.ndarray[Any, Any]) -> tuple[int, int, int]:
    """Where a sequence repeats itself longest: offset, length (0 where nowhere) and the shortest such period."""
    best = (0, 0, 1)
    for period in range(1, len(codes) // 2 + 1):
        same = np.concatenate(([False], codes[period:] == codes[:-period], [False]))
        edges = np.flatnonzero(same[1:] != same[:-1])
        starts, ends = edges[::2], edges[1::2]
        if not len(starts):
            continue
        longest = int(np.argmax(ends - starts))
        length = int(ends[longest] - starts[longest])
        if length >= period and length + period > best[1]:
            best = (int(starts[longest]), length + period, period)
    return best
