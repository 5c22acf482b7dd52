"""`jaxserve plan`: decides which groups there are and which models each holds."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, cast

import click

from jaxserve.cli.named import find
from jaxserve.cli.output import check_output
from jaxserve.cli.plan_tables import counted, plan_tables, sizing_table, sweep_tables
from jaxserve.cli.plots import check_plot, draw_placement, draw_sweep
from jaxserve.cli.show import Searching, percent, print_json, print_table
from jaxserve.cli.signals import FirstInterrupt
from jaxserve.errors import ConfigError, JaxserveError
from jaxserve.placement import (
    AXES,
    POLICY_NAMES,
    PlanOptions,
    PlanResult,
    Policy,
    Progress,
    Sizing,
    check_values,
    devices_for,
    plan,
    policy_named,
    sweep,
)
from jaxserve.plans import Fleet, Profiles
from jaxserve.scheduling import DISPATCHES
from jaxserve.workload import Workload

_EXAMPLE = "examples.plan_policy:most_requested_first"
_NAMED = 3  # of the models below their floors, in the line that says so


class _Inputs(TypedDict):
    """What is to be planned for."""

    profiles: Profiles
    fleet: Fleet
    workload: Workload


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Outputs:
    """Where results go."""

    placement: Path | None
    plot: Path | None
    as_json: bool


@click.command("plan")
@click.option("--profiles", type=Path, required=True, metavar="FILE", help="A jaxserve-profiles/1 file.")
@click.option("--fleet", type=Path, required=True, metavar="FILE", help="A jaxserve-fleet/1 file.")
@click.option("--workload", type=Path, required=True, metavar="FILE", help="The traffic to plan for: .npz or .csv.")
@click.option("--policy", default="search", help=f"{', '.join(POLICY_NAMES)}, or MODULE:FUNCTION.")
@click.option("--dispatch", default="alpaserve", help=f"How a group is chosen: {', '.join(DISPATCHES)}.")
@click.option("--overhead-s", default=0.0, help="Seconds that an answer costs beyond its stages.")
@click.option("--max-batch", default=1, help="How many requests are merged into a batch at most.")
@click.option("--seconds", default=20.0, help="How long to search, for each plan.")
@click.option("--simulations", type=int, metavar="N", help="Search by so many runs of a workload instead, repeatably.")
@click.option("--seed", default=0, help="Of every random draw.")
@click.option("--fairness", is_flag=True, help="Maximise the attainment of the worst model first.")
@click.option("--min-attainment", default=0.0, help="Attainment that each model must reach, 0 to 1.")
@click.option("--no-bound", is_flag=True, help="Do not compute what no placement exceeds.")
@click.option("--devices-for", "target", type=float, metavar="X", help="Find how many devices attain X, such as 0.99.")
@click.option("--most-devices", type=int, metavar="N", help="Where --devices-for gives up.")
@click.option("--sweep", "axis", metavar="AXIS", help=f"Plan for several values of {', '.join(AXES)}.")
@click.option("--values", metavar="A,B,C", help="Of the sweep: numbers of devices, or factors.")
@click.option("--policies", metavar="A,B,C", help="Of the sweep; by default --policy.")
@click.option("--plot", type=Path, metavar="FILE", help="Draw the placement, or the sweep, as .png or .svg.")
@click.option("-o", "--output", type=Path, metavar="FILE", help="Where to write the jaxserve-placement/1 file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    profiles: Path,
    fleet: Path,
    workload: Path,
    policy: str,
    dispatch: str,
    overhead_s: float,
    max_batch: int,
    seconds: float,
    simulations: int | None,
    seed: int,
    fairness: bool,
    min_attainment: float,
    no_bound: bool,
    target: float | None,
    most_devices: int | None,
    axis: str | None,
    values: str | None,
    policies: str | None,
    plot: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Decide which groups there are and which models each holds, for a fleet and its traffic.

    Ctrl-C ends the search with the best placement so far. See docs/placement.md.
    """
    if axis is None and (values is not None or policies is not None):
        raise ConfigError("--values and --policies are of a sweep; give --sweep AXIS as well")
    if axis is not None and (output is not None or target is not None):
        raise ConfigError("--sweep makes many plans; it goes with neither -o nor --devices-for")
    if most_devices is not None and target is None:
        raise ConfigError("--most-devices is of --devices-for; give it as well")
    check_output("-o", output, example="placement.json")
    check_plot(plot)
    swept = None if axis is None else (axis, _values(axis, values))
    compared = [_policy(each) for each in (policies or policy).split(",")]
    if axis is None and len(compared) > 1:
        raise ConfigError(
            f"--policy is {policy!r}, but a plan is by one policy; name one, or give --sweep AXIS as well"
        )
    outputs = _Outputs(placement=output, plot=plot, as_json=as_json)
    inputs: _Inputs = {
        "profiles": Profiles.load(profiles),
        "fleet": Fleet.load(fleet),
        "workload": Workload.load(workload),
    }
    options: PlanOptions = {
        "policy": compared[0],
        "dispatch": dispatch,
        "overhead_s": overhead_s,
        "max_batch": max_batch,
        "seconds": seconds,
        "simulations": simulations,
        "seed": seed,
        "fairness": fairness,
        "min_attainment": min_attainment,
        "bound": not no_bound,
    }
    if swept is not None:
        _sweep(*swept, compared, inputs, options, outputs)
    elif target is not None:
        _devices_for(target, most_devices, inputs, options, outputs)
    else:
        _plan(inputs, options, outputs)


def _plan(inputs: _Inputs, options: PlanOptions, outputs: _Outputs) -> None:
    with FirstInterrupt("stopping with the best so far ...") as stop, Searching() as searching:
        searching.begin(_searching(options))
        options = {**options, "stop": stop, "report": functools.partial(_report, searching)}
        result = plan(**inputs, **options)
    _show(result, inputs, outputs)


def _devices_for(target: float, most: int | None, inputs: _Inputs, options: PlanOptions, outputs: _Outputs) -> None:
    with FirstInterrupt("stopping with what was tried so far ...") as stop, Searching() as searching:
        options = {**options, "stop": stop, "report": functools.partial(_report, searching)}
        sizing = devices_for(target, most_devices=most, begin=searching.begin, **inputs, **options)
    if not outputs.as_json:
        print_table(sizing_table(sizing))
    if sizing.plan is None:
        if outputs.as_json:
            print_json({"devices_for": sizing.to_json()})
        raise JaxserveError(_not_reached(sizing))
    assert sizing.devices is not None
    inputs = {**inputs, "fleet": dataclasses.replace(inputs["fleet"], devices=sizing.devices)}
    _show(sizing.plan, inputs, outputs, {"devices_for": sizing.to_json()})


def _sweep(
    axis: str,
    values: Sequence[float],
    policies: Sequence[str | Policy],
    inputs: _Inputs,
    options: PlanOptions,
    outputs: _Outputs,
) -> None:
    with FirstInterrupt("stopping with what was planned so far ...") as stop, Searching() as searching:
        options = {**options, "stop": stop, "report": functools.partial(_report, searching)}
        found = sweep(axis, values, policies=policies, begin=searching.begin, **inputs, **options)
    if outputs.as_json:
        print_json({"sweep": found.to_json()})
    else:
        print_table(sweep_tables(found))
    if outputs.plot is not None:
        draw_sweep(found, outputs.plot)


def _show(result: PlanResult, inputs: _Inputs, outputs: _Outputs, more: dict[str, object] | None = None) -> None:
    """Prints a plan, writes its files, and fails where a model stays below its floor."""
    if outputs.as_json:
        print_json({**result.to_json(), **(more or {})})
    else:
        print_table(plan_tables(result, inputs["fleet"]))
    if outputs.plot is not None:
        draw_placement(result, inputs["fleet"], inputs["profiles"], outputs.plot)
    if result.shortfalls:
        raise JaxserveError(_below_floors(result, outputs.placement))
    if outputs.placement is not None:
        try:
            result.placement.save(outputs.placement)
        except OSError as error:
            raise ConfigError(f"-o {outputs.placement} cannot be written: {error}") from error


def _report(searching: Searching, progress: Progress) -> None:
    searching.report(progress.done, progress.slo_attainment)


def _searching(options: PlanOptions) -> str:
    simulations = options.get("simulations")
    limit = f"{options.get('seconds', 0.0):g} s" if simulations is None else f"{simulations} simulations"
    return f"planning, at most {limit}"


def _policy(given: str) -> str | Policy:
    """The policy that a name or MODULE:FUNCTION stands for; a name stays one, so that results tell it."""
    if ":" not in given:
        policy_named(given)
        return given
    value = find(given, example=_EXAMPLE, wanted="policy", is_wanted=lambda each: False)
    if not callable(value):
        raise ConfigError(
            f"{given!r} is a {type(value).__name__}, but a policy is a function of a problem and an effort; "
            f"see docs/placement.md"
        )
    return cast(Policy, value)


def _values(axis: str, given: str | None) -> list[float]:
    try:
        values = [float(each) for each in given.split(",")] if given else []
    except ValueError as error:
        raise ConfigError(f"--values is {given!r}, but must be numbers with commas between, such as 8,16,32") from error
    check_values(axis, values)
    return values


def _below_floors(result: PlanResult, output: Path | None) -> str:
    worst = ", ".join(
        f"{each.model} reaches {percent(each.slo_attainment)} of {percent(each.min_attainment)} %"
        for each in result.shortfalls[:_NAMED]
    )
    others = f" and {len(result.shortfalls) - _NAMED} more" if len(result.shortfalls) > _NAMED else ""
    unwritten = f"; {output} was not written" if output is not None else ""
    return (
        f"the best plan found leaves models below their min_attainment: {worst}{others}{unwritten}; "
        f"add devices, search longer, or lower the floor"
    )


def _not_reached(sizing: Sizing) -> str:
    last = max(sizing.tried, key=lambda each: each.devices)
    best = max((each.slo_attainment for each in sizing.tried if each.slo_attainment is not None), default=None)
    target, reason = percent(sizing.target), f": {last.why}" if last.why else ""
    if best is None and last.bound is not None:
        return (
            f"{target} % is out of reach: on {counted(last.devices)} no placement exceeds {percent(last.bound)} %; "
            f"lower the target, give --most-devices more than {sizing.most_devices}, or relax the SLOs"
        )
    return (
        f"no plan on up to {counted(last.devices)} attains {target} %, the best {percent(best)} %{reason}; "
        f"search longer, lower the target, or give --most-devices more than {sizing.most_devices}"
    )
