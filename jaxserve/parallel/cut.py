"""Cutting a flat program into stages, before the modules that the user named.

What depends on the inputs belongs to the stage in whose slice it stands. What depends on params alone (a transposed
kernel, a position table) belongs to every stage that uses it, and is computed there. A value that several later stages
use is sent on past those that do not; so is an output of an early stage.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jax.extend import core

from jaxserve.model.flat import Atom
from jaxserve.model.modules import Path, match_module
from jaxserve.parallel.atoms import fixed_vars, variables
from jaxserve.parallel.trace import Graph
from jaxserve.parallel.work import flops

_RESHAPING = frozenset({"broadcast_in_dim", "convert_element_type", "expand_dims", "reshape", "squeeze", "copy"})
_ELEMENTWISE = frozenset(
    {"add", "sub", "mul", "div", "max", "min", "rsqrt", "sqrt", "neg", "exp", "log", "tanh", "logistic"}
)


class Arguments(NamedTuple):
    """The variables that the program of a stage takes, in this order.

    Attributes:
        params: of its params.
        constants: of what the model closed over.
        takes: of the values that it takes.
    """

    params: Sequence[core.Var]
    constants: Sequence[core.Var]
    takes: Sequence[core.Var]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """One slice of a model's program.

    Attributes:
        program: takes params, constants and values: see `arguments`; returns values.
        paths: for each equation, the path of its module.
        params: indices of the params of the graph, which are leaves or, once it is hoisted, weights, that it uses.
        constants: arrays that the model closed over.
        takes: indices of the values that it takes: an input, or what an earlier stage gives.
        gives: indices of the values that it makes for later stages or as outputs.
        flops: floating-point operations.
        added: of the params, those that are only added, multiplied and the like: XLA reads them out of a larger array
            for nothing, where the operand of a matrix product would be copied out of it first.
    """

    program: core.ClosedJaxpr
    paths: tuple[Path, ...]
    params: tuple[int, ...]
    added: frozenset[int]
    constants: tuple[Any, ...]
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    flops: float

    @property
    def arguments(self) -> Arguments:
        """What the program takes, by what it is."""
        invars, params = self.program.jaxpr.invars, len(self.params)
        fixed = params + len(self.constants)
        return Arguments(invars[:params], invars[params:fixed], invars[fixed:])

    @property
    def fixed(self) -> set[core.Var]:
        """The variables that depend on no value that it takes and on no effect: as `Graph.fixed`."""
        params, constants, _ = self.arguments
        return fixed_vars((*params, *constants), self.program.jaxpr.eqns)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageGraph:
    """A model at one bucket, in stages.

    Attributes:
        stages: in the order in which they run.
        outputs: for each output of the model, the index of the value that it is.
        batch_size: the bucket's batch size.
    """

    stages: tuple[Stage, ...]
    outputs: tuple[int, ...]
    batch_size: int


def position(graph: Graph, name: str) -> int:
    """Index of the first equation of the module of this name, or of what follows it where it has none left.

    Raises:
        ModelError: no module has it, or several do.
    """
    modules = dict.fromkeys(path[:depth] for path in graph.paths for depth in range(1, len(path) + 1))
    module = match_module(name, {**modules, **graph.emptied})
    if module in graph.emptied:
        return graph.emptied[module]
    return next(place for place, path in enumerate(graph.paths) if path[: len(module)] == module)


def cut(graph: Graph, names: Sequence[str]) -> StageGraph:
    """The program in stages, cut before the modules of these names.

    Raises:
        ModelError: a name is no module's.
    """
    return cut_before(graph, [position(graph, name) for name in names])


def cut_before(graph: Graph, places: Iterable[int]) -> StageGraph:
    """The program in stages, cut before the equations of these indices."""
    return _Cutter(graph, sorted(places)).stage_graph()


class _Cutter:
    """Assigns equations to stages and numbers the values that pass between them."""

    def __init__(self, graph: Graph, places: Sequence[int]) -> None:
        self._graph = graph
        self._bounds = (0, *places, len(graph.eqns))
        self._fixed = graph.fixed
        self._maker = {var: place for place, eqn in enumerate(graph.eqns) for var in eqn.outvars}
        self._values: dict[core.Var, int] = {var: index for index, var in enumerate(graph.inputs)}

    def stage_graph(self) -> StageGraph:
        """The whole."""
        live = self.live()
        slices = [[place for place in live if start <= place < end] for start, end in itertools.pairwise(self._bounds)]
        # Outputs that no stage makes on its way (literals, params, what is made of them) are made by the last.
        fixed_outputs = [atom for atom in self._graph.outputs if not self._moves(atom)]
        ends = [*([[]] * (len(slices) - 1)), fixed_outputs]
        eqns = [self._with_fixed(*part) for part in zip(slices, ends, strict=True)]
        takes = [self._takes(part) for part in eqns]
        wanted = {*(var for part in takes for var in part), *variables(self._graph.outputs)}
        stages: list[Stage] = []
        for part, taken, fixed in zip(eqns, takes, ends, strict=True):
            made = [var for place in part for var in self._graph.eqns[place].outvars]
            given = [var for var in made if var in wanted and self._moves(var)]
            for var in given:
                self._values[var] = len(self._values)
            gives = [self._values[var] for var in given]
            gives += [self._fixed_value(place) for place in range(len(fixed))]
            stages.append(self._stage(part, taken, [*given, *fixed], gives))
        return StageGraph(stages=tuple(stages), outputs=self._outputs(), batch_size=self._graph.batch_size)

    def _outputs(self) -> tuple[int, ...]:
        fixed = itertools.count()
        return tuple(
            self._values[atom] if self._moves(atom) else self._fixed_value(next(fixed)) for atom in self._graph.outputs
        )

    def _fixed_value(self, place: int) -> int:
        """The value of an output that moves through no stage: they have negative numbers."""
        return -1 - place

    def _moves(self, atom: Atom) -> bool:
        """Whether the atom depends on the inputs, so that it is made in one stage only."""
        return not isinstance(atom, core.Literal) and atom not in self._fixed

    def live(self) -> list[int]:
        """Places of the equations that stages must run: what moves, and is needed in the end or has an effect."""
        needed = set(variables(self._graph.outputs))
        live: list[int] = []
        for place in reversed(range(len(self._graph.eqns))):
            eqn = self._graph.eqns[place]
            if eqn.effects or any(var in needed for var in eqn.outvars):
                needed.update(variables(eqn.invars))
                if eqn.effects or any(self._moves(var) for var in eqn.outvars):
                    live.append(place)
        return live[::-1]

    def _with_fixed(self, places: Sequence[int], outputs: Sequence[Atom]) -> list[int]:
        """The places, and those of all equations on params that they or the outputs need, in order."""
        found = set(places)
        pending = [
            *variables(outputs),
            *(var for place in places for var in variables(self._graph.eqns[place].invars)),
        ]
        while pending:
            var = pending.pop()
            place = self._maker.get(var)
            if place is not None and place not in found and var in self._fixed:
                found.add(place)
                pending.extend(variables(self._graph.eqns[place].invars))
        return sorted(found)

    def _takes(self, places: Sequence[int]) -> list[core.Var]:
        """The variables that these equations read and others, or the caller, make."""
        made = {var for place in places for var in self._graph.eqns[place].outvars}
        read = dict.fromkeys(var for place in places for var in variables(self._graph.eqns[place].invars))
        return [var for var in read if var not in made and self._moves(var)]

    def _only_added(self, eqns: Sequence[core.JaxprEqn], gives: Sequence[Atom]) -> frozenset[int]:
        """The params that these equations use elementwise only, whatever their shape is made to be first."""
        same = {var: index for index, var in enumerate(self._graph.params)}  # what is a param but for shape or dtype
        added = set(same.values()) - {same[var] for var in variables(gives) if var in same}
        for eqn in eqns:
            used = {same[var] for var in variables(eqn.invars) if var in same}
            if used and eqn.primitive.name in _RESHAPING:
                same.update((var, index) for index in used for var in eqn.outvars)
            elif eqn.primitive.name not in _ELEMENTWISE:
                added -= used
        return frozenset(added)

    def _stage(self, places: Sequence[int], takes: list[core.Var], gives: list[Atom], numbers: list[int]) -> Stage:
        eqns = [self._graph.eqns[place] for place in places]
        read = {var for eqn in eqns for var in variables(eqn.invars)} | set(variables(gives))
        params = [index for index, var in enumerate(self._graph.params) if var in read]
        constants = [var for var in self._graph.constants if var in read]
        program = self._graph.jaxpr.replace(
            constvars=[],
            invars=[*(self._graph.params[index] for index in params), *constants, *takes],
            outvars=gives,
            eqns=eqns,
            effects=frozenset().union(*(eqn.effects for eqn in eqns)),
        )
        return Stage(
            program=core.ClosedJaxpr(program, []),
            paths=tuple(self._graph.paths[place] for place in places),
            params=tuple(params),
            added=self._only_added(eqns, gives) & frozenset(params),
            constants=tuple(self._graph.constants[var] for var in constants),
            takes=tuple(self._values[var] for var in takes),
            gives=tuple(numbers),
            flops=sum(flops(eqn) for eqn in eqns),
        )
