"""Both passes, one after the other: from the programs of a model's buckets to a plan of stages.

1. The intra-op pass shards the whole program over the devices of one stage, on every logical mesh; the fastest counts.
   Layers that repeat are decided once, so that this takes as long as for one of them.
2. The inter-op pass cuts the program into stages by what its equations then take.
3. Each stage takes its part of the sharding. A value that passes between stages lies on both submeshes alike, so moving
   it changes no spec. Where a stage's weights do not fit on its devices, pass 1 runs again, with a budget for each.

All buckets share the weights, so one bucket, which is tried with the least batch and with the largest, decides how the
weights lie, and the others shard the rest as is best with such weights.
"""

import collections
import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from jax.extend import core

from jaxserve.config import plans_directory
from jaxserve.errors import PlacementError
from jaxserve.model import Model
from jaxserve.parallel.atoms import nbytes, shape
from jaxserve.parallel.clusters import cluster, cluster_at
from jaxserve.parallel.collectives import collective_s
from jaxserve.parallel.cut import Stage, StageGraph, cut_before, position
from jaxserve.parallel.devices import Device
from jaxserve.parallel.hoist import Derived, hoist
from jaxserve.parallel.inter_op import Cutting, Objective, choose, pareto
from jaxserve.parallel.intra_op import IntraOp, Step, megabytes, shard
from jaxserve.parallel.layout import LogicalMesh, Spec, Transfer, mesh_shapes
from jaxserve.parallel.nodes import Nodes, divide
from jaxserve.parallel.solutions import Solutions
from jaxserve.parallel.trace import Graph, trace
from jaxserve.plans import ParallelConfig

# A weight budget that nobody gave is this much above an even share of what heavy operations read.
EVEN_SLACK = 1.1

SOLVER_S = 10.0
"""Seconds after which a solver stops where nobody says when."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a plan has to keep to.

    Attributes:
        weight_budget_bytes: of weights on one device; "even" for an even share, so that a model on twice the devices
            takes half the memory of each, or as near to it as its shapes allow; infinite for the least latency.
        memory_bytes: of one device; no plan holds more weights. Unless given, what the device has; CPU devices share
            the host's memory, so nothing is known of theirs.
        objective: of the cutting: see `inter_op.choose`.
        solver_s: seconds after which a solver stops with the best that it has found.
    """

    weight_budget_bytes: float | Literal["even"] = "even"
    memory_bytes: float | None = None
    objective: Objective = "balance"
    solver_s: float = SOLVER_S

    def __post_init__(self) -> None:
        if self.weight_budget_bytes != "even" and not self.weight_budget_bytes > 0:
            raise PlacementError(
                f"the weight budget is {self.weight_budget_bytes!r} bytes for each device, but must be above 0; "
                f'give "even" for an even share, or math.inf for the least latency'
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StagePlan:
    """One stage at one bucket.

    Attributes:
        stage: its program.
        mesh_shape: of its devices.
        weights: the spec of each weight that it uses, in the order of `stage.params`.
        takes: of each value that it takes.
        gives: of each value that it gives.
        steps: what its operations do, by their place in the stage's program.
        heavy: places of the heavy operations, which decided how those that follow them are split.
        seconds: what it is estimated to take, the way of its values to it included.
        weight_bytes: on each of its devices.
    """

    stage: Stage
    mesh_shape: tuple[int, ...]
    weights: tuple[Spec, ...]
    takes: tuple[Spec, ...]
    gives: tuple[Spec, ...]
    steps: Mapping[int, Step]
    heavy: frozenset[int]
    seconds: float
    weight_bytes: float

    @property
    def transfers(self) -> collections.Counter[Transfer]:
        """The collectives that it is planned to run, with how often."""
        return collections.Counter(each for step in self.steps.values() for each in (*step.before, *step.after))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A model in stages, sharded.

    Attributes:
        config: devices per stage, and stages.
        device: what it was made for.
        weights: how each weight is made of leaves of the model's params.
        graphs: the stages of each bucket.
        stages: for each bucket, the plan of each stage.
        cutting: the cutting that was chosen.
        cuttings: all trade-offs between the slowest and the heaviest stage.
        replicated: primitives without a sharding rule, with how often they occur at the largest bucket.
        statuses: how the solver ended for each bucket: see `selection.Choice`.
    """

    config: ParallelConfig
    device: Device
    weights: tuple[Derived, ...]
    graphs: tuple[StageGraph, ...]
    stages: tuple[tuple[StagePlan, ...], ...]
    cutting: Cutting
    cuttings: tuple[Cutting, ...]
    replicated: Mapping[str, int]
    statuses: tuple[str, ...]

    @property
    def mesh_shape(self) -> tuple[int, ...]:
        """Of the devices of each stage."""
        return self.stages[0][0].mesh_shape


Measure = Callable[[Sequence[StagePlan]], Sequence[float]]


def plan_model(
    model: Model,
    config: ParallelConfig,
    device: Device,
    *,
    limits: Limits | None = None,
    solutions: Solutions | None = None,
    measure: Measure | None = None,
) -> Plan:
    """A plan for a model at all its buckets.

    Args:
        model: the model; where it names `cuts`, it is cut nowhere else.
        config: devices per stage, and stages.
        device: what they are.
        limits: what to keep to.
        solutions: of plans that were made before; unless given, those in `config.plans_directory()`.
        measure: returns the seconds that each of some slices of the program takes; unless given, the pass that cuts
            the program goes by the cost model.

    Raises:
        PlacementError: it cannot be cut into so many stages, its weights do not fit, or it runs on the host.
    """
    if model.on_host:
        raise PlacementError(f"model {model.name!r} runs on the host and takes no devices; call it, do not load it")
    if solutions is None and (directory := plans_directory()) is not None:
        solutions = Solutions(directory)
    if config.intra_op > device.devices_per_host:
        raise PlacementError(
            f"model {model.name!r} as ({config.intra_op}, {config.inter_op}): the devices of a stage must be of one "
            f"host, but hosts of {device.kind} have {device.devices_per_host}; use more stages of fewer devices"
        )
    graphs, weights = hoist([trace(model, bucket) for bucket in model.buckets])
    try:
        return _Planner(graphs, weights, config, device, model.cuts, limits or Limits(), solutions, measure).plan()
    except PlacementError as error:
        raise PlacementError(f"model {model.name!r}: {error}") from None


@dataclasses.dataclass(slots=True, eq=False)
class _Program:
    """One bucket's whole program."""

    graph: Graph
    stage: Stage
    nodes: Nodes
    places: list[int]  # of the equations of `stage`, in the graph


def _program(graph: Graph) -> _Program:
    stage = cut_before(graph, ()).stages[0]
    place_of = {id(eqn): place for place, eqn in enumerate(graph.eqns)}
    places = [place_of[id(eqn)] for eqn in stage.program.jaxpr.eqns]
    params, constants, _ = stage.arguments
    return _Program(graph, stage, divide(stage.program.jaxpr, weights=params, constants=constants), places)


class _ShardedProgram:
    """One bucket's whole program with its sharding, of which each stage takes its part."""

    def __init__(self, program: _Program, sharding: IntraOp, mesh: LogicalMesh) -> None:
        self.program = program
        self.sharding = sharding
        self.mesh = mesh
        self._weights = dict(zip(program.stage.params, sharding.weights, strict=True))
        self._values: dict[Any, Spec] = dict(zip(program.stage.arguments.takes, sharding.takes, strict=True))
        eqns = program.stage.program.jaxpr.eqns
        # A stage has the very equations of the whole, elsewhere.
        self._steps = {id(eqns[step.place]): step for step in sharding.steps}
        self._heavy = {id(eqns[place]) for place in sharding.heavy}
        for step in sharding.steps:
            self._values.update(zip(eqns[step.place].outvars, step.results, strict=True))

    def equation_seconds(self) -> list[float]:
        """Of each equation of the graph."""
        seconds = [0.0] * len(self.program.graph.eqns)
        for step in self.sharding.steps:
            seconds[self.program.places[step.place]] = step.seconds
        return seconds

    def weight_bytes(self, weight: int) -> float:
        """What a weight takes on each of its devices."""
        return nbytes(self.program.graph.params[weight]) / self.mesh.shards(self._weights[weight])

    def stage_bytes(self, stage: Stage) -> float:
        """What a stage's weights take on each of its devices."""
        return sum(map(self.weight_bytes, stage.params))

    def stage_plan(self, stage: Stage) -> StagePlan:
        """The stage's part."""
        eqns, outputs = stage.program.jaxpr.eqns, stage.program.jaxpr.outvars
        taken = stage.arguments.takes
        steps = {place: self._steps[id(eqn)] for place, eqn in enumerate(eqns) if id(eqn) in self._steps}
        arriving = sum(
            nbytes(var) / self.mesh.shards(self._values[var])
            for var, value in zip(taken, stage.takes, strict=True)
            if value >= len(self.program.graph.inputs)
        )
        return StagePlan(
            stage=stage,
            mesh_shape=self.mesh.shape,
            weights=tuple(self._weights[weight] for weight in stage.params),
            takes=tuple(self._values[var] for var in taken),
            gives=tuple(
                self.mesh.replicated if isinstance(atom, core.Literal) else self._values.get(atom, self.mesh.replicated)
                for atom in outputs
            ),
            steps=steps,
            heavy=frozenset(place for place, eqn in enumerate(eqns) if id(eqn) in self._heavy),
            seconds=sum(step.seconds for step in steps.values()) + _passing_s(self.mesh.device, arriving),
            weight_bytes=self.stage_bytes(stage),
        )


def _passing_s(device: Device, size: float) -> float:
    """For values on their way from one stage to the next."""
    return collective_s(device, "collective_permute", size, 2) if size else 0.0


class _Planner:
    def __init__(
        self,
        graphs: Sequence[Graph],
        weights: tuple[Derived, ...],
        config: ParallelConfig,
        device: Device,
        cuts: Sequence[str],
        limits: Limits,
        solutions: Solutions | None,
        measure: Measure | None,
    ) -> None:
        self._measure = measure
        self._weights = weights
        self._solutions = solutions
        self._config = config
        self._device = device
        self._cuts = cuts
        self._limits = limits
        self._programs = [_program(graph) for graph in graphs]

    def plan(self) -> Plan:
        self._check_memory()
        sharded = self._shard(None, self._budget())
        cuttings, cutting = self._cut(sharded[-1])
        stage_graphs = self._stage_graphs(cutting)
        most = self._most_bytes()
        if any(sharded[-1].stage_bytes(stage) > most for stage in stage_graphs[-1].stages):
            used = [stage.params for stage in stage_graphs[-1].stages]
            sharded = self._shard(used, most)
        stages = tuple(
            tuple(map(each.stage_plan, stage_graph.stages))
            for stage_graph, each in zip(stage_graphs, sharded, strict=True)
        )
        return Plan(
            config=self._config,
            device=self._device,
            weights=self._weights,
            graphs=tuple(stage_graphs),
            stages=stages,
            cutting=cutting,
            cuttings=cuttings,
            replicated=sharded[-1].sharding.replicated,
            statuses=tuple(each.sharding.status for each in sharded),
        )

    # memory

    def _weight_bytes(self) -> float:
        """Of all weights of the largest bucket, once."""
        return sum(nbytes(var) for var in self._programs[-1].nodes.weights)

    def _most_bytes(self) -> float:
        """What the weights of one stage may take on each of its devices."""
        wanted = self._limits.weight_budget_bytes
        memory = self._limits.memory_bytes
        if memory is None:
            memory = math.inf if self._device.backend == "cpu" else self._device.memory_bytes
        return min(memory, math.inf if wanted == "even" else wanted)

    def _check_memory(self) -> None:
        most, total = self._most_bytes(), self._weight_bytes()
        least = total / self._config.devices
        if least > most:
            raise PlacementError(
                f"({self._config.intra_op}, {self._config.inter_op}) needs at least {megabytes(least)} of weights on "
                f"each of {self._config.devices} devices, but {megabytes(most)} fit: {megabytes(least - most)} are "
                f"missing; {self._suggestion(most)}"
            )

    def _suggestion(self, most: float) -> str:
        """The smallest config by whose memory the weights would fit, as far as their shapes and the layers allow."""
        nodes = self._programs[-1].nodes
        parts = sum(node.head is not None for node in nodes.nodes)
        for devices in (1 << power for power in range(parts.bit_length() + self._device.devices_per_host.bit_length())):
            for intra_op in (1 << power for power in reversed(range(devices.bit_length()))):
                inter_op = devices // intra_op
                if intra_op > self._device.devices_per_host or inter_op > parts:
                    continue
                split = [nbytes(var) / _most_shards(shape(var), intra_op) for var in nodes.weights]
                if max(split, default=0) <= most and EVEN_SLACK * sum(split) <= most * inter_op:
                    return f"({intra_op}, {inter_op}) would do"
        return "no config would do: allow more memory"

    def _budget(self) -> float:
        """For the whole program: of all stages together."""
        wanted = self._limits.weight_budget_bytes
        if wanted != "even":
            return wanted * self._config.inter_op
        nodes = self._programs[-1].nodes
        heavy = nodes.heavy_weights()
        total = sum(
            nbytes(var) * (EVEN_SLACK / self._config.intra_op if index in heavy else 1)
            for var, index in nodes.weights.items()
        )
        return total

    # pass 1

    def _shard(self, used: Sequence[Sequence[int]] | None, budget: float) -> list[_ShardedProgram]:
        """The fastest sharding of every bucket over all meshes; `used` are the weights of each stage."""
        ends = sorted({0, len(self._programs) - 1})
        best: tuple[float, LogicalMesh, dict[int, Spec], dict[int, IntraOp]] | None = None
        for mesh_shape in mesh_shapes(self._config.intra_op):
            mesh = LogicalMesh(shape=mesh_shape, device=self._device)
            for first in ends:
                pins: dict[int, Spec] = {}
                order = sorted(ends, key=lambda index: index != first)
                found = {index: self._shard_one(index, mesh, pins, used, budget) for index in order}
                score = math.prod(found[index].seconds for index in ends)
                if best is None or score < best[0] * (1 - 1e-9):
                    best = (score, mesh, pins, found)
        assert best is not None
        _, mesh, pins, found = best
        for index in range(len(self._programs)):
            if index not in found:
                found[index] = self._shard_one(index, mesh, pins, used, budget)
        return [_ShardedProgram(program, found[index], mesh) for index, program in enumerate(self._programs)]

    def _shard_one(
        self,
        index: int,
        mesh: LogicalMesh,
        pins: dict[int, Spec],
        used: Sequence[Sequence[int]] | None,
        budget: float,
    ) -> IntraOp:
        """One bucket, its weights as far as they are pinned already; pins the others."""
        program = self._programs[index]
        params = program.stage.params
        own = {place: pins[weight] for place, weight in enumerate(params) if weight in pins}
        place_of = {weight: place for place, weight in enumerate(params)}
        stages = used and [[place_of[weight] for weight in stage if weight in place_of] for stage in used]
        sharding = shard(
            program.nodes,
            mesh,
            weights=own,
            stages=stages,
            budget_bytes=budget if not own else math.inf,
            soft=used is None and self._limits.weight_budget_bytes == "even",
            time_limit_s=self._limits.solver_s,
            solutions=self._solutions,
        )
        for weight, spec in zip(params, sharding.weights, strict=True):
            pins.setdefault(weight, spec)
        return sharding

    # pass 2

    def _cut(self, sharded: _ShardedProgram) -> tuple[tuple[Cutting, ...], Cutting]:
        graph, seconds = sharded.program.graph, sharded.equation_seconds()
        if self._cuts:
            clusters = cluster_at(graph, seconds, [position(graph, name) for name in self._cuts], fixed=graph.fixed)
        else:
            clusters = cluster(graph, seconds, fixed=graph.fixed, at_least=max(16, 3 * self._config.inter_op))
        lies = {weight: math.ceil(sharded.weight_bytes(weight)) for weight in sharded.program.stage.params}
        here = tuple(lies.get(weight, size) for weight, size in enumerate(clusters.weight_bytes))
        clusters = dataclasses.replace(clusters, weight_bytes=here)
        if self._measure is not None and self._config.inter_op > 1:
            slices = cut_before(graph, clusters.places).stages
            measured = self._measure([sharded.stage_plan(each) for each in slices])
            clusters = dataclasses.replace(clusters, seconds=tuple(measured))
        transfer_s = [_passing_s(self._device, size) for size in clusters.live_bytes]
        cuttings = pareto(clusters, stages=self._config.inter_op, transfer_s=transfer_s)
        # a cutting above the budget may still fit once its stages are sharded for it
        return cuttings, choose(cuttings, objective=self._limits.objective)

    def _stage_graphs(self, cutting: Cutting) -> list[StageGraph]:
        largest = self._programs[-1].graph
        return [
            cut_before(program.graph, corresponding(largest, program.graph, cutting.places))
            for program in self._programs
        ]


def _most_shards(dims: Sequence[int], devices: int) -> int:
    """Into how many parts an array can be split evenly by at most this many devices, a power of two."""
    return max((math.gcd(size, devices) for size in dims if size), default=1)


def corresponding(graph: Graph, other: Graph, places: Sequence[int]) -> list[int]:
    """The places in the program of another bucket before which the same equations stand.

    Programs of two buckets are mostly alike, equation by equation; where a size of 1 made one of them shorter, the
    equations are matched by primitive and module path.
    """
    ours = [(eqn.primitive.name, path) for eqn, path in zip(graph.eqns, graph.paths, strict=True)]
    theirs = [(eqn.primitive.name, path) for eqn, path in zip(other.eqns, other.paths, strict=True)]
    if ours == theirs:
        return list(places)
    match = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    found: list[int] = []
    blocks = [block for block in match.get_matching_blocks() if block.size]
    for place in places:
        after = next((block for block in blocks if block.a + block.size > place), None)
        found.append(len(theirs) if after is None else after.b + max(0, place - after.a))
    return found
