"""Alpa's intra-op pass: how every operation of a stage is sharded over the stage's devices (OSDI'22 sec. 4).

The devices are seen as a logical mesh of one or two axes (sec. 4.1). A *strategy* of a heavy operation gives each axis
one of the operation's factors (`rules`), or none; results that are sums over a split factor are all-reduced, or
reduce-scattered onto another dimension. Light operations follow (`nodes`). One strategy is chosen for each class of
nodes so that the sum is least of

- what the operations take, by the roofline of the device (`work`), with the work that is split divided;
- what the collectives inside a node take: the all-reduce of its head, gathers that its light operations need;
- what it takes to lay out a value of one node as another wants it (`layout.resharding`): Alpa's R_ij, eq. 1.

Unlike training, serving minimises latency at one batch size, so what weights cost is their memory: a weight lies as
its only user wants it; one with several users is a variable of its own, as is a value that several nodes read, so that
what is gathered for q, k and v is paid for once.

    strategies of a head            strategies.Sharder
    c_i                             _Builder._options
    R_ij                            _Builder._join
    memory                          _Builder._weigh
    the integer program             selection.select
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxserve.errors import PlacementError
from jaxserve.parallel.atoms import nbytes, shape
from jaxserve.parallel.layout import LogicalMesh, Spec, Transfer, fits, resharding, resharding_s
from jaxserve.parallel.nodes import Node, Nodes, Operation
from jaxserve.parallel.rules import NONE
from jaxserve.parallel.selection import Choice, Pair, Selection, select
from jaxserve.parallel.solutions import Solutions
from jaxserve.parallel.strategies import Sharder, Way

# Weights with several readers are replicated below this size: whole tables of them cost less than one decision.
SMALL_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one operation does on the mesh.

    Attributes:
        place: index of its equation.
        factors: for each axis of the mesh the factor that it splits, or NONE.
        before: collectives on its operands.
        after: collectives on its results.
        seconds: of the operation and its collectives.
        operands: the spec that it wants of each operand.
        results: the spec of each result.
    """

    place: int
    factors: tuple[int, ...]
    before: tuple[Transfer, ...]
    after: tuple[Transfer, ...]
    seconds: float
    operands: tuple[Spec, ...]
    results: tuple[Spec, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IntraOp:
    """The sharding of one stage.

    Attributes:
        mesh_shape: devices along each axis.
        seconds: what the stage is estimated to take.
        weights: the spec of each weight.
        takes: of each value that enters.
        steps: what every operation does, heavy ones first in each node.
        heavy: places of the heads of nodes.
        replicated: names of primitives without a rule, with how often they were met.
        weight_bytes: on each device.
        status: see `selection.Choice`.
    """

    mesh_shape: tuple[int, ...]
    seconds: float
    weights: tuple[Spec, ...]
    takes: tuple[Spec, ...]
    steps: tuple[Step, ...]
    heavy: frozenset[int]
    replicated: Mapping[str, int]
    weight_bytes: float
    status: str

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        """All collectives."""
        return tuple(each for step in self.steps for each in (*step.before, *step.after))


def shard(
    nodes: Nodes,
    mesh: LogicalMesh,
    *,
    weights: Mapping[int, Spec] | None = None,
    stages: Sequence[Sequence[int]] | None = None,
    budget_bytes: float = math.inf,
    soft: bool = False,
    time_limit_s: float = 10.0,
    solutions: Solutions | None = None,
) -> IntraOp:
    """The fastest sharding of a program on a mesh.

    Args:
        nodes: the program.
        mesh: its devices.
        weights: specs of weights that are given already, by index.
        stages: for each stage that the program will be cut into, the weights that it uses; unless given, there is one.
        budget_bytes: of weights that fit on one device of each stage.
        soft: take a little more than the weights need at least where the budget is less.
        time_limit_s: for the solver; then the best that is known is taken.
        solutions: where to look for a known one first.

    Raises:
        PlacementError: the weights fit in no way.
    """
    builder = _Builder(nodes, mesh, weights or {}, stages=stages)
    selection = builder.selection()
    if soft:
        budget_bytes = max(budget_bytes, 1.05 * selection.least_bytes)
    if selection.least_bytes > budget_bytes:
        raise PlacementError(
            f"the weights take at least {megabytes(selection.least_bytes)} on each of {mesh.size} devices, but "
            f"{megabytes(budget_bytes)} fit: {megabytes(selection.least_bytes - budget_bytes)} are missing; "
            f"use more devices, or more stages"
        )

    def solve(problem: Selection, budget: float) -> Choice:
        return select(problem, budget_bytes=budget, time_limit_s=time_limit_s)

    choice = solutions.choice(selection, budget_bytes, solve) if solutions else solve(selection, budget_bytes)
    return builder.extract(choice)


def megabytes(nbytes: float) -> str:
    """For messages."""
    return f"{nbytes / 1e6:,.3f} MB"


def price(nodes: Nodes, mesh: LogicalMesh, prefer: Mapping[int, Sequence[Spec]]) -> IntraOp:
    """The cheapest sharding in which certain equations give results of these specs: to compare with a plan by hand."""
    builder = _Builder(nodes, mesh, {}, prefer=prefer)
    selection = builder.selection()
    return builder.extract(select(selection))


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class _Options:
    """The options of a class of nodes, or of a weight, or of a value that several nodes read.

    Attributes:
        seconds: of each option.
        specs: for each value the spec under each option.
        wants: for each operand from elsewhere, by operation and position, the spec under each option.
        memory: bytes of weights of each stage under each option.
        ways: of each option the head's way, for nodes that have one.
    """

    seconds: list[float]
    specs: list[list[Spec]]
    wants: dict[tuple[int, int], list[Spec]]
    memory: np.ndarray[Any, Any]
    ways: list[Way]


Reader = tuple[int, tuple[int, int]]  # a node (or its class), and which operand of which of its operations
_HEAD = 0  # the number of the head among the operations of a node; members count from 1


def _operations(node: Node) -> Iterator[tuple[int, Operation]]:
    """The operations of a node with their numbers."""
    if node.head is not None:
        yield _HEAD, node.head
    yield from enumerate(node.members, 1)


class _Builder:
    """Makes the selection problem of a program, and reads its solution."""

    def __init__(
        self,
        nodes: Nodes,
        mesh: LogicalMesh,
        weights: Mapping[int, Spec],
        *,
        prefer: Mapping[int, Sequence[Spec]] | None = None,
        stages: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self._nodes = nodes
        self._mesh = mesh
        self._pins = weights
        self._prefer = prefer or {}
        self._sharder = Sharder(nodes, mesh)
        self._stages = stages or [range(len(nodes.weights))]
        self._stages_of: dict[int, list[int]] = collections.defaultdict(list)
        for stage, used in enumerate(self._stages):
            for weight in used:
                self._stages_of[weight].append(stage)
        self._shapes = {index: (shape(var), nbytes(var)) for var, index in nodes.weights.items()}
        self._variables: list[_Options] = []
        self._class_variable: dict[int, int] = {}
        self._weight_variable: dict[int, int] = {}
        self._weight_reader: dict[int, Reader] = {}  # of the weights that have one reader
        self._fan_variable: dict[Any, int] = {}
        self._weight_wants: dict[tuple[int, tuple[int, int]], dict[int, list[Spec]]] = {}
        self._pairs: list[Pair] = []

    def selection(self) -> Selection:
        """The problem."""
        counts = collections.Counter(self._nodes.classes)
        costs: list[np.ndarray[Any, Any]] = []
        for number, group in enumerate(self._nodes.classes):
            if group not in self._class_variable:
                options = self._options(self._nodes.nodes[number])
                self._class_variable[group] = self._variable(options)
                costs.append(np.array(options.seconds) * counts[group])
        self._weigh(costs)
        self._join()
        costs += [np.array(options.seconds) for options in self._variables[len(costs) :]]
        return Selection(costs=costs, memory=[options.memory for options in self._variables], pairs=self._pairs)

    def _variable(self, options: _Options) -> int:
        self._variables.append(options)
        return len(self._variables) - 1

    def _of(self, number: int) -> int:
        """The variable of a node."""
        return self._class_variable[self._nodes.classes[number]]

    def _entering_specs(self, dims: Sequence[int]) -> list[Spec]:
        choices = itertools.product((NONE, *range(len(dims))), repeat=len(self._mesh.shape))
        return [spec for spec in choices if fits(self._mesh, dims, spec)] if self._mesh.size > 1 else [(NONE,)]

    # what a node may do

    def _options(self, node: Node) -> _Options:
        ways: list[Way] = []
        if node.head is None:
            assert node.taken is not None
            starts: list[Sequence[Spec]] = [[spec] for spec in self._entering_specs(shape(node.values[0]))]
        else:
            ways = self._ways(node.head)
            starts = [way.results for way in ways]
        options = _Options(seconds=[], specs=[], wants={}, memory=self._memory(len(starts)), ways=ways)
        columns: list[list[Spec]] = []
        for option, start in enumerate(starts):
            steps, specs, wants = self._walk(node, ways[option] if ways else None, start)
            options.seconds.append(sum(step.seconds for step in steps))
            columns.append(specs)
            for key, spec in wants.items():
                options.wants.setdefault(key, []).append(spec)
        options.specs = [list(column) for column in zip(*columns, strict=True)]
        return options

    def _ways(self, head: Operation) -> list[Way]:
        ways = list(self._sharder.strategies(head))
        wanted = self._prefer.get(head.place)
        if wanted is None:
            return ways
        preferred = [way for way in ways if way.results[0] in wanted]
        if not preferred:
            raise ValueError(f"equation {head.place} has no strategy that gives any of {wanted}")
        return preferred

    def _walk(
        self, node: Node, way: Way | None, start: Sequence[Spec]
    ) -> tuple[list[Step], list[Spec], dict[tuple[int, int], Spec]]:
        """One option of a node: its steps, the specs of its values, and what it wants from elsewhere."""
        specs = list(start)
        steps: list[Step] = []
        wants: dict[tuple[int, int], Spec] = {}
        for number, operation in _operations(node):
            followed: Spec = self._mesh.replicated
            if operation.follows is not None:
                source = operation.operands[operation.follows].own
                assert source is not None
                followed, way = self._sharder.light(operation, specs[source])
                specs += way.results
            assert way is not None
            before: list[Transfer] = []
            wanted = tuple(
                followed if position == operation.follows else spec for position, spec in enumerate(way.operands)
            )
            for position, operand in enumerate(operation.operands):
                if operand.own is not None:
                    size = nbytes(node.values[operand.own])
                    before += resharding(self._mesh, size, specs[operand.own], wanted[position])
                elif operand.node is not None or operand.fixed is not None:
                    wants[number, position] = way.operands[position]
            steps.append(
                Step(
                    place=operation.place,
                    factors=way.factors,
                    before=tuple(before),
                    after=way.after,
                    seconds=way.seconds + self._mesh.seconds((*before, *way.after)),
                    operands=wanted,
                    results=way.results,
                )
            )
        return steps, specs, wants

    # weights

    def _weigh(self, costs: list[np.ndarray[Any, Any]]) -> None:
        """Memory of weights; what it costs where a weight does not lie as it is wanted."""
        for weight, readers in self._weight_readers().items():
            dims, size = self._shapes[weight]
            pin = self._pins.get(weight)
            if len(readers) == 1:
                self._weight_reader[weight] = readers[0]
                variable = self._of(readers[0][0])
                wants = self._wants_of_weight(weight, readers[0])
                lies = wants if pin is None else [pin] * len(wants)
                options = self._variables[variable]
                options.memory = options.memory + self._memory(len(lies), weight, size, lies)
                costs[variable] = costs[variable] + [
                    resharding_s(self._mesh, size, spec, want) for spec, want in zip(lies, wants, strict=True)
                ]
                continue
            if pin is not None:
                specs = [pin]
            elif size < SMALL_BYTES:
                specs = [self._mesh.replicated]
            else:
                specs = self._entering_specs(dims)
            variable = self._free_variable(specs, self._memory(len(specs), weight, size, specs))
            self._weight_variable[weight] = variable
            alike = collections.Counter((self._nodes.classes[number], key) for number, key in readers)
            for number, key in readers:
                count = alike.pop((self._nodes.classes[number], key), 0)
                if count:
                    wants = self._wants_of_weight(weight, (number, key))
                    self._pair(variable, specs, self._of(number), wants, size, count)

    def _memory(
        self, options: int, weight: int | None = None, size: float = 0.0, specs: Sequence[Spec] = ()
    ) -> np.ndarray[Any, Any]:
        """What a weight takes on the devices of each stage under each option; zeros for none."""
        memory = np.zeros((len(self._stages), options))
        if weight is not None:
            memory[self._stages_of[weight]] = [size / self._mesh.shards(spec) for spec in specs]
        return memory

    def _free_variable(self, specs: list[Spec], memory: np.ndarray[Any, Any]) -> int:
        """A variable that costs nothing by itself: a weight, or a value that is read in several places."""
        return self._variable(_Options(seconds=[0.0] * len(specs), specs=[specs], wants={}, memory=memory, ways=[]))

    def _weight_readers(self) -> dict[int, list[Reader]]:
        readers: dict[int, list[Reader]] = collections.defaultdict(list)
        for number, node in enumerate(self._nodes.nodes):
            for which, operation in _operations(node):
                for position, operand in enumerate(operation.operands):
                    if operand.fixed is not None:
                        for weight in self._sharder.weights_behind(operand.fixed):
                            readers[weight].append((number, (which, position)))
        return readers

    def _wants_of_weight(self, weight: int, reader: Reader) -> list[Spec]:
        """How a reader wants a weight to lie, under each of its options; tied readers want the same."""
        number, key = reader
        cached = self._weight_wants.setdefault((self._nodes.classes[number], key), {})
        operation = dict(_operations(self._nodes.nodes[number]))[key[0]]
        var = operation.operands[key[1]].fixed
        assert var is not None
        order = self._sharder.weights_behind(var).index(weight)
        if order not in cached:
            wants = self._variables[self._of(number)].wants[key]
            each = {spec: self._sharder.wants_of_weights(var, spec)[weight] for spec in dict.fromkeys(wants)}
            cached[order] = [each[spec] for spec in wants]
        return cached[order]

    # values that nodes read of others

    def _readers(self) -> dict[tuple[int, int], list[Reader]]:
        readers: dict[tuple[int, int], list[Reader]] = collections.defaultdict(list)
        for number, node in enumerate(self._nodes.nodes):
            for which, operation in _operations(node):
                for position, operand in enumerate(operation.operands):
                    if operand.node is not None and operand.value is not None:
                        readers[operand.node, operand.value].append((number, (which, position)))
        return readers

    def _fan_key(self, source: int, value: int, readers: Sequence[Reader]) -> Any:
        """What is the same for all values that are read alike: the class that makes them, and those that read them."""
        alike = collections.Counter((self._nodes.classes[number], key) for number, key in readers)
        return self._nodes.classes[source], value, tuple(sorted(alike.items()))

    def _join(self) -> None:
        """The costs of values on their way to other nodes, once for each kind of place with its number."""
        readers = self._readers()
        keys = {made: self._fan_key(*made, reading) for made, reading in readers.items()}
        counts = collections.Counter(keys.values())
        for (source, value), reading in readers.items():
            key = keys[source, value]
            count = counts.pop(key, 0)
            if not count:
                continue
            first = self._of(source)
            specs = self._variables[first].specs[value]
            size = nbytes(self._nodes.nodes[source].values[value])
            alike = dict(key[2])
            if len(reading) > 1:
                wanted = [spec for group, operand in alike for spec in self._wants(group, operand)]
                candidates = list(dict.fromkeys([self._mesh.replicated, *specs, *wanted]))
                fan = self._free_variable(candidates, self._memory(len(candidates)))
                self._fan_variable[key] = fan
                self._pair(first, specs, fan, candidates, size, count)
                first, specs = fan, candidates
            for (group, operand), times in alike.items():
                second = self._class_variable[group]
                self._pair(first, specs, second, self._wants(group, operand), size, count * times)

    def _wants(self, group: int, operand: tuple[int, int]) -> list[Spec]:
        return self._variables[self._class_variable[group]].wants[operand]

    def _pair(
        self, first: int, sources: Sequence[Spec], second: int, targets: Sequence[Spec], size: float, count: int
    ) -> None:
        before, after = list(dict.fromkeys(sources)), list(dict.fromkeys(targets))
        cost = np.array([[resharding_s(self._mesh, size, a, b) for b in after] for a in before])
        if cost.any():
            rows = np.array([before.index(spec) for spec in sources])
            columns = np.array([after.index(spec) for spec in targets])
            self._pairs.append(Pair(first=first, second=second, rows=rows, columns=columns, cost=cost * count))

    # the solution

    def extract(self, choice: Choice) -> IntraOp:
        """What the chosen options mean for each operation, weight and value."""
        steps: list[Step] = []
        specs: list[list[Spec]] = []
        fanned: dict[tuple[int, int], Spec] = {}
        for made, reading in self._readers().items():
            if len(reading) > 1:
                fan = self._fan_variable[self._fan_key(*made, reading)]
                fanned[made] = self._variables[fan].specs[0][choice.options[fan]]
        paid: set[tuple[int, int]] = set()
        weights = self._weight_specs(choice)
        walks: list[tuple[list[Step], dict[tuple[int, int], Spec]]] = []
        for number, node in enumerate(self._nodes.nodes):
            options = self._variables[self._of(number)]
            option = choice.options[self._of(number)]
            way = options.ways[option] if options.ways else None
            own, values, wants = self._walk(node, way, way.results if way else [options.specs[0][option]])
            walks.append((own, wants))
            specs.append(values)
        for node, (own, wants) in zip(self._nodes.nodes, walks, strict=True):
            for step, (which, operation) in zip(own, _operations(node), strict=True):
                arriving = tuple(self._arriving(which, operation, wants, specs, fanned, paid, weights))
                late = self._mesh.seconds(arriving)
                steps.append(dataclasses.replace(step, before=arriving + step.before, seconds=step.seconds + late))
        heads = [node.head for node in self._nodes.nodes if node.head is not None]
        unknown = collections.Counter(
            self._nodes.eqns[head.place].primitive.name for head in heads if not head.rule.known
        )
        taken = {node.taken: specs[number][0] for number, node in enumerate(self._nodes.nodes) if node.head is None}
        return IntraOp(
            mesh_shape=self._mesh.shape,
            seconds=sum(step.seconds for step in steps),
            weights=tuple(weights.get(index, self._mesh.replicated) for index in range(len(self._shapes))),
            takes=tuple(taken[index] for index in range(len(taken))),
            steps=tuple(steps),
            heavy=frozenset(head.place for head in heads),
            replicated=dict(unknown),
            weight_bytes=sum(
                size / self._mesh.shards(weights.get(index, self._mesh.replicated))
                for index, (_, size) in self._shapes.items()
            ),
            status=choice.status,
        )

    def _weight_specs(self, choice: Choice) -> dict[int, Spec]:
        weights = dict(self._pins)
        for weight, reader in self._weight_reader.items():
            wants = self._wants_of_weight(weight, reader)
            weights.setdefault(weight, wants[choice.options[self._of(reader[0])]])
        for weight, variable in self._weight_variable.items():
            weights.setdefault(weight, self._variables[variable].specs[0][choice.options[variable]])
        return weights

    def _arriving(
        self,
        which: int,
        operation: Operation,
        wants: Mapping[tuple[int, int], Spec],
        specs: Sequence[Sequence[Spec]],
        fanned: Mapping[tuple[int, int], Spec],
        paid: set[tuple[int, int]],
        weights: Mapping[int, Spec],
    ) -> Iterator[Transfer]:
        """The collectives that bring operands from other nodes, and weights that do not lie as they are wanted."""
        for position, operand in enumerate(operation.operands):
            wanted = wants.get((which, position))
            if wanted is None:
                continue
            if operand.fixed is not None:
                for weight, want in self._sharder.wants_of_weights(operand.fixed, wanted).items():
                    yield from resharding(self._mesh, self._shapes[weight][1], weights[weight], want)
            else:
                assert operand.node is not None
                assert operand.value is not None
                made = (operand.node, operand.value)
                size = nbytes(self._nodes.nodes[operand.node].values[operand.value])
                lies = specs[operand.node][operand.value]
                if made in fanned:
                    if made not in paid:
                        paid.add(made)
                        yield from resharding(self._mesh, size, lies, fanned[made])
                    lies = fanned[made]
                yield from resharding(self._mesh, size, lies, wanted)
