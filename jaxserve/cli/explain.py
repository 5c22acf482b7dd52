"""`jaxserve explain`: what a parallel config makes of a model: its stages, and how its operations are sharded."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import jax
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from jaxserve.cli.devices import use_cpu_devices
from jaxserve.cli.factory import load_models
from jaxserve.cli.show import Telling, print_json, print_table, table_of
from jaxserve.config import cache_directory
from jaxserve.errors import ConfigError
from jaxserve.model import Bucket, Model
from jaxserve.parallel import Device, Limits, Objective, device_kind, plan_model
from jaxserve.parallel.check import Comparison
from jaxserve.parallel.explain import ExplainedStage, Explanation, HeavyOperation, explain
from jaxserve.parallel.names import REPLICATED
from jaxserve.parallel.plan import SOLVER_S
from jaxserve.parallel.svg import draw
from jaxserve.plans import ParallelConfig, write_bytes
from jaxserve.runtime import calibrate, enable_compilation_cache
from jaxserve.runtime.checking import check
from jaxserve.runtime.loading import described

_SHORT = {"conv_general_dilated": "conv", "dot_general": "dot", "ragged_dot_general": "ragged dot"}


@click.command("explain")
@click.argument("models", metavar="MODULE:ATTRIBUTE")
@click.option("--intra-op", default=1, show_default=True, metavar="N", help="Devices for each stage.")
@click.option("--inter-op", default=1, show_default=True, metavar="N", help="Number of stages.")
@click.option(
    "--device-kind", metavar="KIND", help="What the devices are, such as H100; those that jax has by default."
)
@click.option("--weight-budget-gb", type=float, metavar="X", help="Weights that a device may hold, in 10^9 bytes.")
@click.option(
    "--objective",
    type=click.Choice(["balance", "latency", "memory"]),
    default="balance",
    show_default=True,
    help="Of the cuts.",
)
@click.option("--solver-s", default=SOLVER_S, show_default=True, metavar="X", help="Seconds for each solver.")
@click.option("--batch-size", type=int, metavar="N", help="Which bucket to explain; the largest by default.")
@click.option("--length", type=int, metavar="N", help="Which bucket to explain; the longest by default.")
@click.option("--model", "name", metavar="NAME", help="Which model, where MODULE:ATTRIBUTE holds several.")
@click.option("--svg", type=Path, metavar="FILE", help="Where to draw the pipeline.")
@click.option("--check", "checked", is_flag=True, help="Compile the stages and compare their collectives.")
@click.option("--cpu-devices", type=int, metavar="N", help="Have N fake CPU devices, to compile for.")
@click.option("--calibrate", "calibrated", is_flag=True, help="Measure the attached devices first, for some seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    models: str,
    intra_op: int,
    inter_op: int,
    device_kind: str | None,
    weight_budget_gb: float | None,
    objective: Objective,
    solver_s: float,
    batch_size: int | None,
    length: int | None,
    name: str | None,
    svg: Path | None,
    checked: bool,
    cpu_devices: int | None,
    calibrated: bool,
    as_json: bool,
) -> None:
    """Explain what a parallel config makes of the model at MODULE:ATTRIBUTE.

    It needs no weights, and with --device-kind no devices; --check needs as many as the config has.
    """
    config = parallel_config(intra_op, inter_op)
    if calibrated and device_kind is not None:
        raise ConfigError("--calibrate measures what is attached, and --device-kind names another; give one of them")
    budget = budget_bytes(weight_budget_gb)
    if svg is not None and not svg.parent.is_dir():
        raise ConfigError(f"--svg {svg}: there is no directory {svg.parent}; make it first")
    if svg is not None and svg.is_dir():
        raise ConfigError(f"--svg {svg} is a directory; name a file, such as {svg / 'pipeline.svg'}")
    use_cpu_devices(cpu_devices)
    if checked and config.devices > len(jax.devices()):
        raise ConfigError(
            f"--check compiles for {config.devices} devices, but there are {len(jax.devices())}; "
            f"try --cpu-devices {config.devices}"
        )
    limits = Limits(weight_budget_bytes="even" if budget is None else budget, objective=objective, solver_s=solver_s)
    model = _one(load_models(models), name)
    bucket = _bucket(model, batch_size, length)
    compared: tuple[Comparison, ...] = ()
    with Telling("planning") as tell:
        if calibrated:
            tell("measuring the devices")
        device = kind_or_attached(device_kind, calibrated=calibrated)
        plan = plan_model(model, config, device, limits=limits)
        explanation = explain(plan, model, bucket)
        if checked:
            tell("compiling, to compare")
            enable_compilation_cache(cache_directory() / "programs")
            compared = check(plan, model, jax.devices(), bucket=bucket)
    if svg is not None:
        try:
            write_bytes(svg, draw(explanation).encode())
        except OSError as error:
            raise ConfigError(f"--svg {svg} cannot be written: {error}") from error
    if as_json:
        more = {"check": [each.to_json() for each in compared]} if checked else {}
        print_json(explanation.to_json() | more)
    else:
        print_table(_text(explanation, compared))


def parallel_config(intra_op: int, inter_op: int) -> ParallelConfig:
    """The config of two options.

    Raises:
        ConfigError: one is not positive.
    """
    try:
        return ParallelConfig(intra_op, inter_op)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def budget_bytes(gigabytes: float | None) -> float | None:
    """Bytes of `--weight-budget-gb`.

    Raises:
        ConfigError: it is not positive.
    """
    if gigabytes is None:
        return None
    if not gigabytes > 0:
        raise ConfigError(f"--weight-budget-gb is {gigabytes:g}, but must be positive; inf is for no limit")
    return 1e9 * gigabytes


def kind_or_attached(name: str | None, *, calibrated: bool = False) -> Device:
    """The described device of this name, or what jax has, as described or as measured."""
    if name is not None:
        return device_kind(name)
    return calibrate(jax.devices()) if calibrated else described(jax.devices()[0])


def _one(models: Sequence[Model], name: str | None) -> Model:
    named = {model.name: model for model in models}
    if name is None and len(models) == 1:
        return models[0]
    if name not in named:
        given = "several models are given" if name is None else f"there is no model {name!r}"
        raise ConfigError(f"{given}: choose one by --model, of {', '.join(named)}")
    return named[name]


def _bucket(model: Model, batch_size: int | None, length: int | None) -> int:
    """Index of the largest bucket of these sizes."""

    def fits(bucket: Bucket) -> bool:
        return batch_size in (None, bucket.batch_size) and length in (None, bucket.length)

    found = [index for index, bucket in enumerate(model.buckets) if fits(bucket)]
    if not found:
        raise ConfigError(
            f"model {model.name!r} has no such bucket; choose --batch-size and --length among "
            f"{'; '.join(map(str, model.buckets))}"
        )
    return found[-1]


# text


def _text(explanation: Explanation, compared: Sequence[Comparison]) -> Group:
    bucket = ", ".join(f"{name} {size}" for name, size in explanation.bucket.items())
    mesh = " x ".join(f"{axis}={size}" for axis, size in explanation.mesh.items())
    lines = [
        f"{explanation.model} as ({explanation.intra_op}, {explanation.inter_op}) on {explanation.device_kind}, "
        f"{bucket}: {_ms(explanation.seconds)} ms, estimated",
        f"each stage is a mesh {mesh}; a full pipeline ends a batch every {_ms(explanation.slowest_s)} ms",
    ]
    if explanation.status != "optimal":
        lines.append(f"the solver ended with {explanation.status!r}: there may be a faster sharding")
    parts: list[Any] = [*map(escape, lines), "", _stages(explanation.stages), ""]
    parts += [_sent(explanation.stages), ""] if any(stage.sent for stage in explanation.stages) else []
    parts += [_trade_offs(explanation), ""] if len(explanation.trade_offs) > 1 else []
    for stages, operations in _alike(explanation.stages):
        parts += [f"operations of {stages}", _operations(operations, explanation.mesh), ""]
    if explanation.without_rule:
        names = ", ".join(f"{name} x{count}" for name, count in explanation.without_rule.items())
        parts += [escape(f"replicated, no rule: {names}"), ""]
    parts += [escape(line) for each in compared for line in each.lines()]
    return Group(*(parts[:-1] if parts[-1] == "" else parts))


def _stages(stages: Sequence[ExplainedStage]) -> Table:
    table = table_of(["stage", "layers"], ["GFLOPs", "weights MB", "out MB", "ms", "sending ms"])
    for number, stage in enumerate(stages):
        table.add_row(
            str(number),
            escape(", ".join(stage.layers)),
            short(stage.flops / 1e9),
            short(stage.weight_bytes / 1e6),
            short(stage.out_bytes / 1e6),
            _ms(stage.seconds),
            _ms(stage.sending_seconds),
        )
    return table


def _sent(stages: Sequence[ExplainedStage]) -> Table:
    table = table_of(["stage", "collective"], ["count", "MB", "ms"])
    for number, stage in enumerate(stages):
        for kind, sent in stage.sent.items():
            table.add_row(str(number), kind, str(sent.count), short(sent.nbytes / 1e6), _ms(sent.seconds))
    return table


def _trade_offs(explanation: Explanation) -> Table:
    table = table_of(["cuttings"], ["slowest stage ms", "heaviest stage MB"])
    for each in explanation.trade_offs:
        table.add_row("chosen" if each.chosen else "", _ms(each.slowest_s), short(each.heaviest_bytes / 1e6))
    return table


def _alike(stages: Sequence[ExplainedStage]) -> list[tuple[str, tuple[HeavyOperation, ...]]]:
    """The operations of each stage; of neighbours that differ in numbers of layers only, once."""
    runs: list[tuple[int, int, tuple[HeavyOperation, ...]]] = []
    for number, stage in enumerate(stages):
        if runs and _kinds(runs[-1][2]) == _kinds(stage.operations):
            runs[-1] = (runs[-1][0], number, runs[-1][2])
        else:
            runs.append((number, number, stage.operations))
    return [
        (f"stage {first}" if first == last else f"stage {first}, and alike of those to {last}", operations)
        for first, last, operations in runs
    ]


def _kinds(operations: Sequence[HeavyOperation]) -> list[HeavyOperation]:
    return [dataclasses.replace(each, module=each.module.split("/", 1)[-1], seconds=0.0) for each in operations]


def _operations(operations: Sequence[HeavyOperation], mesh: Mapping[str, int]) -> Table:
    """A row for each, under its layer."""
    table = table_of(
        ["operation", f"split over {', '.join(mesh)}", "shapes, and what splits them"], ["count", "us each"]
    )
    table.columns[0].overflow = "fold"
    layer = ""
    for each in operations:
        first, slash, rest = each.module.partition("/")
        if slash and first != layer:
            table.add_row(escape(first))
        layer = first
        name = f"  {rest}" if slash else first
        times = " * " if each.primitive in _SHORT else ", "
        table.add_row(
            escape(f"{name} {_SHORT.get(each.primitive, each.primitive)}"),
            REPLICATED if set(each.strategy) == {REPLICATED} else ", ".join(each.strategy),
            escape(f"{times.join(each.operands)} -> {each.result}"),
            str(each.count),
            short(1e6 * each.seconds),
        )
    return table


def short(number: float) -> str:
    """To read: three digits, or all before the point."""
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    digits = 2 - math.floor(math.log10(abs(number)))
    return f"{number:.0e}" if digits > 5 else f"{number:,.{max(0, digits)}f}"


def _ms(seconds: float) -> str:
    return short(1000 * seconds)
