"""What the commands print: results on standard output, progress on standard error."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Self

import click
from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.status import Status
from rich.table import Table

stderr = Console(stderr=True, highlight=False)


def print_json(value: object) -> None:
    """Prints exactly one JSON object."""
    click.echo(json.dumps(value))


def print_table(table: RenderableType) -> None:
    """Prints a table, as wide as the terminal, or wide enough for everything where there is none."""
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=120)
    console.print(table)


def say(text: str) -> None:
    """Prints a line on standard error. A long one is the terminal's to break, so that paths in it stay whole."""
    stderr.print(text, markup=False, soft_wrap=True)


class Telling:
    """Shows, while it is entered, what is being done: a spinner on a terminal, else one line on standard error.

    Calling it says more; before and after, that says nothing. It may be called from any thread.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if stderr.is_terminal:
            self._status = status = stderr.status(self._what)
            status.start()
        else:
            say(f"{self._what} ...")
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, text: str) -> None:
        """Says in a few words which part of it is being done."""
        if self._status is not None:
            self._status.update(f"{self._what}: {escape(text)}")


class Bar:
    """A progress bar on standard error while it is entered; None where that is no terminal.

    Args:
        columns: of the bar.
    """

    def __init__(self, *columns: ProgressColumn) -> None:
        self._bar = Progress(*columns, console=stderr, transient=True) if stderr.is_terminal else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


class Searching(Bar):
    """Shows, while it is entered, how far a search is and its best so far: a bar on a terminal, else a few lines."""

    _QUARTERS = 4  # lines for one search, where there is no terminal

    def __init__(self) -> None:
        what, best = TextColumn("{task.description}"), TextColumn("{task.fields[best]}")
        super().__init__(what, BarColumn(), best, TimeElapsedColumn())
        self._task = None
        self._what = ""
        self._said = 0

    def begin(self, what: str) -> None:
        """A search begins, for `what`."""
        self._what, self._said = what, 0
        if self._bar is None:
            say(f"{what} ...")
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(escape(what), total=1.0, best="")

    def report(self, done: float, best: float) -> None:
        """So much of it is done, 0 to 1, and this is the best SLO attainment so far."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, best=f"best {percent(best)} %")
        elif (quarter := int(done * self._QUARTERS)) > self._said:
            self._said = quarter
            say(f"{self._what}: {percent(done)} % done, best {percent(best)} %")


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds, to read."""
    return "-" if seconds is None else f"{1000 * seconds:.1f}"


def percent(share: float | None) -> str:
    """A share in percent, to read; the unit stands in the header."""
    return "-" if share is None else f"{100 * share:.1f}"


def table_of(text: Sequence[str], numbers: Sequence[str]) -> Table:
    """A table without frames, for 80 columns: first columns of text, then of numbers, which are never broken."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in text:
        table.add_column(column)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def status_tables(status: Mapping[str, Any], *, rates: Mapping[str, float] | None = None) -> RenderableType:
    """What an engine's `status()` says, as two tables.

    Args:
        status: the engine's.
        rates: requests per second by model; by default the mean since the engine started.
    """
    counts = ("served", "refused", "expired", "failed")
    models = table_of(["model"], ["rate/s", *counts, "p50 ms", "p99 ms", "SLO %"])
    for name, counted in status["models"].items():
        rate = counted["requests"] / status["uptime_s"] if rates is None else rates.get(name, 0.0)
        models.add_row(
            escape(name),
            f"{rate:.1f}",
            *(str(counted[key]) for key in counts),
            milliseconds(counted["latency_p50_s"]),
            milliseconds(counted["latency_p99_s"]),
            percent(counted["slo_attainment"]),
        )
    groups = table_of(["group", "models"], ["stages", "requests", "queue", "in flight", "busy %"])
    for index, group in enumerate(status["groups"]):
        groups.add_row(
            f"{index}" if group["healthy"] else f"{index} (down)",
            escape(", ".join(group["models"])),
            *(str(group[key]) for key in ("stages", "requests", "queue", "in_flight")),
            percent(group["utilization"]),
        )
    return Group(models, "", groups)
