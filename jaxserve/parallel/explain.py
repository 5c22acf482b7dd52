"""What a plan does, as a value that text, JSON and a drawing are made of."""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jax.extend import core

from jaxserve.model import Model
from jaxserve.model.modules import Path
from jaxserve.parallel.atoms import nbytes, shape
from jaxserve.parallel.intra_op import Step
from jaxserve.parallel.layout import AXES, LogicalMesh, Spec, Transfer
from jaxserve.parallel.loops import rule_of
from jaxserve.parallel.names import REPLICATED, Dimensions, strategy
from jaxserve.parallel.plan import Plan, StagePlan
from jaxserve.parallel.rules import NONE
from jaxserve.parallel.strategies import spec_of

NO_MODULE = "(no module)"

_NUMBERED = re.compile(r"(.*?)_?(\d+)$")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The collectives of one kind.

    Attributes:
        count: how many.
        nbytes: of their arrays on one device, as `layout.Transfer` counts them.
        seconds: that they take.
    """

    count: int
    nbytes: float
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HeavyOperation:
    """A heavy operation; those of layers that repeat, and are sharded alike, are one.

    Attributes:
        module: path of its module, such as "layers_0 ... layers_11/attention/query".
        primitive: its name in jax.
        count: in how many layers.
        operands: their shapes with what splits them: "[8,64/x,128]".
        result: likewise, of the first.
        spec: for each axis of the mesh the dimension of the first result that it splits, or -1.
        strategy: for each axis of the mesh: see `names`.
        seconds: that each takes, its collectives included.
    """

    module: str
    primitive: str
    count: int
    operands: tuple[str, ...]
    result: str
    spec: tuple[int, ...]
    strategy: tuple[str, ...]
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedStage:
    """One stage.

    Attributes:
        devices: their numbers within the group.
        layers: modules that it runs, rows of them in short; "(part)" where another stage runs the rest.
        flops: of all its operations, on all its devices together.
        weight_bytes: on each device.
        out_bytes: of all values that go to later stages when it ends, or of the outputs; on all devices together.
        seconds: that it is estimated to take.
        sent: collectives by kind.
        operations: the heavy ones.
        light_seconds: what the others take.
    """

    devices: tuple[int, ...]
    layers: tuple[str, ...]
    flops: float
    weight_bytes: float
    out_bytes: float
    seconds: float
    sent: Mapping[str, Sent]
    operations: tuple[HeavyOperation, ...]
    light_seconds: float

    @property
    def sending_seconds(self) -> float:
        """What the collectives take."""
        return math.fsum(each.seconds for each in self.sent.values())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TradeOff:
    """One way to cut the model.

    Attributes:
        slowest_s: seconds of its slowest stage.
        heaviest_bytes: weights on each device of its heaviest stage.
        chosen: whether it is the plan's.
    """

    slowest_s: float
    heaviest_bytes: int
    chosen: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A plan at one bucket.

    Attributes:
        model: its name.
        device_kind: what the plan is for.
        intra_op: devices of each stage.
        inter_op: number of stages.
        mesh: sizes of the axes of each stage's mesh, by name.
        bucket: sizes of the dimensions, by name.
        stages: in order.
        trade_offs: of the cutting, before weights were fitted to a budget.
        without_rule: primitives that are replicated as no rule tells how to split them, with how many there are.
        status: how the solver ended for this bucket: see `selection.Choice`.
    """

    model: str
    device_kind: str
    intra_op: int
    inter_op: int
    mesh: Mapping[str, int]
    bucket: Mapping[str, int]
    stages: tuple[ExplainedStage, ...]
    trade_offs: tuple[TradeOff, ...]
    without_rule: Mapping[str, int]
    status: str

    @property
    def seconds(self) -> float:
        """Through all stages."""
        return math.fsum(stage.seconds for stage in self.stages)

    @property
    def slowest_s(self) -> float:
        """Of the slowest stage: a full pipeline answers one batch in this time."""
        return max(stage.seconds for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """For `jaxserve explain --json`."""
        return {"seconds": self.seconds, "slowest_s": self.slowest_s, **dataclasses.asdict(self)}


def explain(plan: Plan, model: Model, bucket: int = -1) -> Explanation:
    """What a plan does at one bucket.

    Args:
        plan: made by `plan_model`.
        model: for which it was made.
        bucket: index among the model's buckets; the largest unless given.
    """
    row = plan.stages[bucket]
    mesh = LogicalMesh(shape=plan.mesh_shape, device=plan.device)
    dimensions = Dimensions(
        [eqn for stage in row for eqn in stage.stage.program.jaxpr.eqns],
        _named_inputs(row, model),
        set[core.Var]().union(*(stage.stage.fixed for stage in row)),
        batch_size=model.buckets[bucket].batch_size,
    )
    root = _root(row)
    layers = _layers(row, root)
    return Explanation(
        model=model.name,
        device_kind=plan.device.kind,
        intra_op=plan.config.intra_op,
        inter_op=plan.config.inter_op,
        mesh=mesh.axes,
        bucket=model.buckets[bucket].sizes,
        stages=tuple(
            ExplainedStage(
                devices=tuple(range(number * plan.config.intra_op, (number + 1) * plan.config.intra_op)),
                layers=layers[number],
                flops=stage.stage.flops,
                weight_bytes=stage.weight_bytes,
                out_bytes=_crossing_bytes(row, number, plan.graphs[bucket].outputs),
                seconds=stage.seconds,
                sent=_sent(stage.transfers, mesh),
                operations=_operations(stage, root, dimensions),
                light_seconds=math.fsum(
                    step.seconds for place, step in stage.steps.items() if place not in stage.heavy
                ),
            )
            for number, stage in enumerate(row)
        ),
        trade_offs=tuple(
            TradeOff(slowest_s=each.slowest_s, heaviest_bytes=each.heaviest_bytes, chosen=each == plan.cutting)
            for each in plan.cuttings
        ),
        without_rule=dict(plan.replicated),
        status=plan.statuses[bucket],
    )


def laid_out(dims: Sequence[int], spec: Spec) -> str:
    """A shape with the axes that split it: "[8,64/x,128/y]"."""
    parts = [str(size) for size in dims]
    for axis, dim in zip(AXES, spec, strict=False):
        if dim != NONE:
            parts[dim] += f"/{axis}"
    return f"[{','.join(parts)}]"


def compact(names: Iterable[str]) -> tuple[str, ...]:
    """Names in order, with runs of numbered ones in short: "layers_0 ... layers_5"."""
    runs: list[list[str]] = []
    for name in dict.fromkeys(names):
        if runs and _follows(runs[-1][-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    found: list[str] = []
    for run in runs:
        found += run if len(run) < 3 else [f"{run[0]} ... {run[-1]}"]
    return tuple(found)


def _follows(first: str, second: str) -> bool:
    before, after = _NUMBERED.match(first), _NUMBERED.match(second)
    return bool(before and after and before[1] == after[1] and int(before[2]) + 1 == int(after[2]))


def _named_inputs(row: Sequence[StagePlan], model: Model) -> dict[core.Var, Sequence[int | str]]:
    """What enters the program, with the names of its dimensions."""
    specs = list(model.inputs.values())
    return {
        var: specs[value].shape
        for stage in row
        for var, value in zip(stage.stage.arguments.takes, stage.stage.takes, strict=True)
        if 0 <= value < len(specs)
    }


# layers


def _root(row: Sequence[StagePlan]) -> int:
    """How many names all paths begin with: the model's own module."""
    paths = {path for stage in row for path in stage.stage.paths if path}
    return 1 if len({path[0] for path in paths}) == 1 and any(len(path) > 1 for path in paths) else 0


def _layer(path: Path) -> str:
    """The layer that a module belongs to: up to the first name with a number, or else its first name."""
    numbered = next((depth for depth, name in enumerate(path, 1) if _NUMBERED.match(name)), 1)
    return "/".join(path[:numbered])


def _layers(row: Sequence[StagePlan], root: int) -> list[tuple[str, ...]]:
    """The layers of each stage, by where their heavy operations are; those that have none, by where any is."""
    every: list[dict[str, bool]] = []
    for stage in row:
        here: dict[str, bool] = {}
        for place in sorted(stage.steps):
            path = stage.stage.paths[place][root:]
            if path:
                here[_layer(path)] = here.get(_layer(path), False) or place in stage.heavy
        every.append(here)
    heavy = {layer for here in every for layer, is_heavy in here.items() if is_heavy}
    kept = [[layer for layer, is_heavy in here.items() if is_heavy or layer not in heavy] for here in every]
    times = collections.Counter(layer for layers in kept for layer in layers)
    return [
        compact(f"{layer} (part)" if times[layer] > 1 else layer for layer in layers) or (NO_MODULE,) for layers in kept
    ]


# what is sent


def _sent(transfers: Mapping[Transfer, int], mesh: LogicalMesh) -> dict[str, Sent]:
    found: dict[str, Sent] = {}
    for each, count in sorted(transfers.items(), key=lambda item: item[0].kind):
        known = found.get(each.kind, Sent(count=0, nbytes=0.0, seconds=0.0))
        found[each.kind] = Sent(
            count=known.count + count,
            nbytes=known.nbytes + count * each.nbytes,
            seconds=known.seconds + count * mesh.seconds([each]),
        )
    return found


def _crossing_bytes(row: Sequence[StagePlan], number: int, outputs: Sequence[int]) -> float:
    """Of what the stages up to this one give and later ones take; behind the last one, of the outputs."""
    made = {
        value: nbytes(atom)
        for stage in row[: number + 1]
        for value, atom in zip(stage.stage.gives, stage.stage.program.jaxpr.outvars, strict=True)
    }
    wanted = {value for stage in row[number + 1 :] for value in stage.stage.takes}
    if number == len(row) - 1:
        wanted = set(outputs)
    return math.fsum(size for value, size in made.items() if value in wanted)


# operations


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Alike:
    """What operations have in common that are shown as one."""

    module: tuple[str, ...]
    primitive: str
    operands: tuple[str, ...]
    result: str
    spec: Spec
    strategy: tuple[str, ...]


def _operations(stage: StagePlan, root: int, dimensions: Dimensions) -> tuple[HeavyOperation, ...]:
    eqns = stage.stage.program.jaxpr.eqns
    found: dict[_Alike, list[tuple[Path, float]]] = collections.defaultdict(list)
    for place in sorted(stage.heavy):
        eqn, step = eqns[place], stage.steps[place]
        path = stage.stage.paths[place][root:]
        found[_alike(eqn, path, step, dimensions)].append((path, step.seconds))
    return tuple(
        HeavyOperation(
            module=_folded([path for path, _ in each]),
            primitive=alike.primitive,
            count=len(each),
            operands=alike.operands,
            result=alike.result,
            spec=alike.spec,
            strategy=alike.strategy,
            seconds=math.fsum(seconds for _, seconds in each) / len(each),
        )
        for alike, each in found.items()
    )


def _alike(eqn: core.JaxprEqn, path: Path, step: Step, dimensions: Dimensions) -> _Alike:
    its_rule = rule_of(eqn)
    operands = [
        laid_out(shape(atom), spec_of(dims, step.factors))
        for atom, dims in zip(eqn.invars, its_rule.operands, strict=True)
        if shape(atom)
    ]
    result = step.results[0] if step.results else (NONE,) * len(step.factors)
    named = strategy(eqn, step, dimensions) if its_rule.known else (REPLICATED,) * len(step.factors)
    return _Alike(
        module=tuple(_NUMBERED.sub(r"\1_*", name) for name in path),
        primitive=eqn.primitive.name,
        operands=tuple(operands),
        result=laid_out(shape(eqn.outvars[0]), result) if eqn.outvars else "",
        spec=result,
        strategy=named,
    )


def _folded(paths: Sequence[Path]) -> str:
    """Paths that differ in numbers only, as one."""
    return "/".join(_row(list(dict.fromkeys(names))) for names in zip(*paths, strict=True)) or NO_MODULE


def _row(names: Sequence[str]) -> str:
    """Names that differ in numbers only: "layers_0 ... layers_5", or "layers_0, layers_2 ... layers_10"."""
    if len(names) < 3:
        return ", ".join(names)
    found = [_NUMBERED.match(name) for name in names]
    steps = {int(after[2]) - int(before[2]) for before, after in itertools.pairwise(found) if before and after}
    if steps == {1}:
        return f"{names[0]} ... {names[-1]}"
    return f"{names[0]}, {names[1]} ... {names[-1]}" if len(steps) == 1 else ", ".join(names)
