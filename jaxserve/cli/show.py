"""What the commands print: results on standard output, progress on standard error."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table

stderr = Console(stderr=True, highlight=False)


class Tell(Protocol):
    """Says in a few words what is being done; may be called from any thread."""

    def __call__(self, text: str) -> None:
        """See the class."""


def print_json(value: object) -> None:
    """Prints exactly one JSON object."""
    click.echo(json.dumps(value))


def print_table(table: RenderableType) -> None:
    """Prints a table, as wide as the terminal, or wide enough for everything where there is none."""
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=120)
    console.print(table)


@contextmanager
def telling(what: str) -> Iterator[Tell]:
    """Shows what is being done on standard error: a spinner on a terminal, else one line for each new thing."""
    if stderr.is_terminal:
        with stderr.status(what) as status:
            yield lambda text: status.update(f"{what}: {text}")
        return
    stderr.print(f"{what} ...", markup=False)
    yield lambda text: None


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds, to read."""
    return "-" if seconds is None else f"{1000 * seconds:.1f}"


def percent(share: float | None) -> str:
    """A share as percent, to read."""
    return "-" if share is None else f"{100 * share:.1f} %"


def status_tables(status: Mapping[str, Any], *, rates: Mapping[str, float] | None = None) -> RenderableType:
    """What an engine's `status()` says, as two tables.

    Args:
        status: the engine's.
        rates: requests per second by model; by default the mean since the engine started.
    """
    models = Table(title="models", title_justify="left")
    for column in ("model", "rate 1/s", "served", "refused", "expired", "failed", "p50 ms", "p99 ms", "SLO attainment"):
        models.add_column(column, justify="left" if column == "model" else "right")
    for name, counted in status["models"].items():
        rate = counted["requests"] / status["uptime_s"] if rates is None else rates.get(name, 0.0)
        models.add_row(
            name,
            f"{rate:.1f}",
            *(str(counted[key]) for key in ("served", "refused", "expired", "failed")),
            milliseconds(counted["latency_p50_s"]),
            milliseconds(counted["latency_p99_s"]),
            percent(counted["slo_attainment"]),
        )
    groups = Table(title="groups", title_justify="left")
    for column in ("group", "stages", "models", "requests", "queue", "in flight", "busy"):
        groups.add_column(column, justify="left" if column in ("group", "models") else "right")
    for index, group in enumerate(status["groups"]):
        groups.add_row(
            f"{index}" if group["healthy"] else f"{index} (lost)",
            str(group["stages"]),
            ", ".join(group["models"]),
            *(str(group[key]) for key in ("requests", "queue", "in_flight")),
            percent(group["utilization"]),
        )
    return Group(models, groups)
