"""`jaxserve simulate`: what would become of a workload under a placement."""

import io
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Group
from rich.markup import escape

from jaxserve.cli.policies import parse_shares, policy_options
from jaxserve.cli.show import milliseconds, percent, print_json, print_table, table_of
from jaxserve.errors import ConfigError
from jaxserve.plans import Fleet, Placement, Profiles, write_bytes
from jaxserve.scheduling import DISPATCHES
from jaxserve.simulator import ENGINES, SimulationResult, simulate
from jaxserve.workload import Workload


@click.command("simulate")
@click.option("--profiles", type=Path, required=True, metavar="FILE", help="A jaxserve-profiles/1 file.")
@click.option("--fleet", type=Path, required=True, metavar="FILE", help="A jaxserve-fleet/1 file.")
@click.option("--placement", type=Path, required=True, metavar="FILE", help="A jaxserve-placement/1 file.")
@click.option("--workload", type=Path, required=True, metavar="FILE", help="An .npz or .csv workload.")
@click.option("--dispatch", default="alpaserve", help=f"How a group is chosen: {', '.join(DISPATCHES)}.")
@click.option("--overhead-s", default=0.0, help="Seconds that an answer costs beyond its stages.")
@click.option("--max-batch", default=1, help="How many requests are merged into a batch at most.")
@policy_options
@click.option("--engine", type=click.Choice(ENGINES), default="fast", help="Which simulator; both decide alike.")
@click.option("--per-request", type=Path, metavar="OUT.npz", help="Where to write what became of each request.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    profiles: Path,
    fleet: Path,
    placement: Path,
    workload: Path,
    dispatch: str,
    overhead_s: float,
    max_batch: int,
    max_overtakings: int,
    shares: str | None,
    engine: str,
    per_request: Path | None,
    as_json: bool,
) -> None:
    """Say what would become of a workload under a placement."""
    result = simulate(
        profiles=Profiles.load(profiles),
        fleet=Fleet.load(fleet),
        placement=Placement.load(placement),
        workload=Workload.load(workload),
        dispatch=dispatch,
        overhead_s=overhead_s,
        max_batch=max_batch,
        max_overtakings=max_overtakings,
        shares=None if shares is None else parse_shares(shares),
        engine=engine,
    )
    if per_request is not None:
        data = io.BytesIO()
        np.savez(data, finish_s=result.finish_s, group=result.group, outcome=result.outcome)
        try:
            write_bytes(per_request, data.getvalue())
        except OSError as error:
            raise ConfigError(f"--per-request {per_request} cannot be written: {error}") from error
    if as_json:
        print_json(result.to_json())
    else:
        _print(result)


def _print(result: SimulationResult) -> None:
    summary: dict[str, Any] = result.to_json()
    click.echo(f"{summary['requests']} requests, SLO attainment {percent(result.slo_attainment)} %")
    click.echo(", ".join(f"{key} {summary[key]}" for key in ("served", "rejected", "late")))
    p50, p99 = (milliseconds(summary[f"latency_{which}_s"]) for which in ("p50", "p99"))
    click.echo(f"latency p50 {p50} ms, p99 {p99} ms\n")
    models = table_of(["model"], ["requests", "SLO %"])
    for name, counted in summary["per_model"].items():
        models.add_row(escape(name), str(counted["requests"]), percent(counted["slo_attainment"]))
    classes = [(what, summary[f"per_{what}"]) for what in ("priority", "tenant") if f"per_{what}" in summary]
    tables = [models]
    for what, counted in classes:
        table = table_of([what], ["requests", "SLO %", "p50 ms"])
        for name, each in counted.items():
            p50 = milliseconds(each["latency_p50_s"])
            table.add_row(escape(name) or "(none)", str(each["requests"]), percent(each["slo_attainment"]), p50)
        tables.append(table)
    groups = table_of(["group"], ["requests", "busy %"])
    for index, group in enumerate(summary["per_group"]):
        groups.add_row(str(index), str(group["requests"]), percent(group["utilization"]))
    print_table(Group(*(part for table in (*tables, groups) for part in (table, ""))))
