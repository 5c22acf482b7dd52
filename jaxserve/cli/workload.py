"""`jaxserve workload`: makes, converts and shows workload files."""

import contextlib
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args

import click
import numpy as np
from rich.markup import escape

from jaxserve.cli.output import check_output
from jaxserve.cli.show import Telling, print_json, print_table, say, table_of
from jaxserve.errors import ConfigError, FileFormatError
from jaxserve.plans import Fleet
from jaxserve.request import HIGHEST_PRIORITY, LOWEST_PRIORITY
from jaxserve.workload import (
    Fitted,
    Skipped,
    Workload,
    between,
    combine,
    fit,
    only,
    read_azure_2019,
    read_azure_2021,
    read_azure_llm,
    scale_rate,
    scale_slo,
    synthetic,
    with_priority,
    with_tenant,
)
from jaxserve.workload.checks import MOST_CV, check_tenant_name
from jaxserve.workload.dealing import Deal

_SUFFIXES = (".npz", ".csv")
_MANY_REQUESTS = 200_000  # what is done to so many takes about a second
_REQUEST_BYTES = 50  # in a file, about
_LONGEST = 300  # characters about a broken row, which may hold much of the row

_Command = Callable[..., None]


class _Trace(Protocol):
    @property
    def skipped(self) -> Skipped: ...


_AnyTrace = TypeVar("_AnyTrace", bound=_Trace)


class _Number(click.ParamType):
    """A finite number in a range; greater than 0 where no range is given."""

    name = "NUMBER"

    def __init__(self, least: float | None = None, most: float = math.inf, *, hint: str = "") -> None:
        low = "greater than 0" if least is None else f"from {least:g}"
        self._needed = low + (f" to {most:g}" if most < math.inf else "") + hint
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        enough = number > 0 if self._least is None else number >= self._least
        if not (enough and number <= self._most and math.isfinite(number)):
            self.fail(f"{value} is given, but it must be a number {self._needed}", param, ctx)
        return number


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Models:
    """Whose requests there are, and the SLO of each."""

    names: tuple[str, ...]
    slo_s: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Redraw:
    """How other requests are drawn in place of those that came; all but the seed is None where they are not."""

    window_s: float | None
    rate_scale: float | None
    cv_scale: float | None
    seed: int

    @property
    def wanted(self) -> bool:
        return any(each is not None for each in (self.window_s, self.rate_scale, self.cv_scale))

    def of(self, workload: Workload, *, posterior: bool = False) -> Workload:
        """Fits the requests in windows, and draws others from the fit."""
        with _telling("fitting the traffic", requests=len(workload)):
            fitted = fit(workload, window_s=self.window_s)
        rate_scale, cv_scale = self.rate_scale or 1.0, self.cv_scale or 1.0
        return _sample(fitted, rate_scale=rate_scale, cv_scale=cv_scale, seed=self.seed, posterior=posterior)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """Where the workload goes, how that is told, and what its requests are to be; None where they stay as they are."""

    output: Path
    priority: int | None
    tenant: str | None
    as_json: bool

    def __post_init__(self) -> None:
        check_tenant_name(self.tenant or "")
        if self.output.suffix not in _SUFFIXES:
            raise ConfigError(f"-o {self.output} ends in neither .npz nor .csv, which say its format; add one of them")
        check_output("-o", self.output, example="workload.npz")

    def check_apart(self, traces: Collection[Path]) -> None:
        """A trace is not written over: it took long to get."""
        if self.output.exists() and any(each.exists() and self.output.samefile(each) for each in traces):
            raise ConfigError(f"-o {self.output} is the trace itself, which would be lost; choose another name")

    def write(self, workload: Workload, *, skipped: Skipped | None = None) -> None:
        """Writes it, and prints what it holds."""
        if not len(workload):
            raise ConfigError(f"no requests came of it, so {self.output} was not written; ask for more time or rate")
        if self.priority is not None:
            workload = with_priority(workload, self.priority)
        if self.tenant is not None:
            workload = with_tenant(workload, self.tenant)
        try:
            with _telling(f"writing {self.output.name}", requests=len(workload)):
                workload.save(self.output)
        except OSError as error:
            raise ConfigError(f"-o {self.output} cannot be written: {error}") from error
        described = _described(workload)
        if self.as_json:
            rows = {} if skipped is None else {"skipped_rows": skipped.count}
            print_json({"output": str(self.output), **described, **rows})
        else:
            click.echo(f"{self.output}: {_in_short(described)}")


def _models(fleet: Path | None, models: str | None, slo: str | None) -> _Models:
    """The models of a fleet file, or those that are named."""
    if fleet is None:
        if models is None or slo is None:
            raise ConfigError("which models there are is not said; give --fleet FILE, or --models A,B and --slo-s X")
        names = _names(models)
        return _Models(names=names, slo_s=_slos(slo, models=len(names)))
    if models is not None or slo is not None:
        raise ConfigError("--fleet has the names and SLOs; leave out --models and --slo-s, or leave out --fleet")
    found = Fleet.load(fleet).models
    if not found:
        raise FileFormatError(f"{fleet}: models is empty; add the models that are to get requests")
    return _Models(names=tuple(each.name for each in found), slo_s=tuple(each.slo_s for each in found))


def _gathered(name: str, make: Callable[..., object], *options: Callable[[_Command], _Command]) -> Any:
    """A decorator: several options that reach the command as one value, made of them by `make`."""
    parts = inspect.signature(make).parameters

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def gathering(**given: Any) -> None:
            value = make(**{part: given.pop(part) for part in parts})
            command(**given, **{name: value})

        return functools.reduce(lambda decorated, option: option(decorated), reversed(options), gathering)

    return decorate


_CV = _Number(0.001, MOST_CV, hint="; 1 is Poisson traffic, 4 is bursty, 0.01 is nearly regular")
_FACTOR = _Number(1e-6, 1e6, hint="; 1 leaves it as it is")
_CV_FACTOR = _Number(0.001, 1000, hint="; 1 leaves it as it is")
_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
_DRAW_ANEW = "Draw the requests anew, with so many times the "

_fleet = click.option("--fleet", type=Path, metavar="FILE", help="A jaxserve-fleet/1 file: names and SLOs.")
_slo = click.option("--slo-s", "slo", metavar="X", help="In place of --fleet: the SLO of all, or X,Y of each.")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_seed = click.option("--seed", type=click.IntRange(min=0), default=0, help="Of every random draw.")
_start = click.option("--start-s", type=_Number(0), default=0.0, help="Where the range begins; it becomes 0.")
_end = click.option("--end-s", type=_Number(), help="Where the range ends.")
_deal_help = "How functions are dealt to models: in turn, or in blocks."
_deal = click.option("--deal", type=click.Choice(get_args(Deal)), default="stripe", help=_deal_help)
_strict = click.option("--strict", is_flag=True, help="Refuse broken rows instead of leaving them out.")
_rate_scale = click.option("--rate-scale", type=_FACTOR, help=_DRAW_ANEW + "rate.")
_cv_scale = click.option("--cv-scale", type=_CV_FACTOR, help=_DRAW_ANEW + "CV.")
_windows_help = "Draw the requests anew, fitted in windows of this length."
_windows = click.option("--refit-window-s", "window_s", type=_Number(), help=_windows_help)
_priorities = click.IntRange(LOWEST_PRIORITY, HIGHEST_PRIORITY)
_priority = click.option("--priority", type=_priorities, help="Of all these requests; the higher goes first.")
_tenant = click.option("--tenant", metavar="NAME", help="Whose all these requests are.")
_output = click.option("-o", "--output", type=Path, required=True, metavar="FILE", help="Write .npz or .csv here.")

_for_models = _gathered(
    "models", _models, _fleet, click.option("--models", metavar="A,B", help="In place of --fleet: names."), _slo
)
_redrawn = _gathered("redraw", _Redraw, _windows, _rate_scale, _cv_scale, _seed)
_written = _gathered("result", _Result, _priority, _tenant, _output, _json)


@click.group("workload", no_args_is_help=False)
def command() -> None:
    """Make, convert and show the workload files that plan and simulate read.

    See docs/workloads.md.
    """


@command.command("synthetic")
@_for_models
@click.option("--rate", type=_Number(), required=True, help="Requests per second, all models together.")
@click.option("--cv", type=_CV, required=True, help="Coefficient of variation of each model's gaps.")
@click.option("--duration-s", type=_Number(), required=True, help="How long requests arrive.")
@click.option("--split", default="uniform", help="How the rate is divided: uniform or power-law:EXPONENT.")
@click.option("--shift-s", type=_Number(), help="Deal the models' rates anew, each time after so long.")
@_seed
@_written
def _synthetic(
    models: _Models,
    rate: float,
    cv: float,
    duration_s: float,
    split: str,
    shift_s: float | None,
    seed: int,
    result: _Result,
) -> None:
    """Make up Gamma arrivals at the models.

    Split by a power law, the first model is the most popular.
    """
    with _telling("drawing requests", requests=rate * duration_s):
        made = synthetic(
            model_names=models.names,
            slo_s=models.slo_s,
            rate=rate,
            cv=cv,
            duration_s=duration_s,
            split=split,
            shift_s=shift_s,
            rng=np.random.default_rng(seed),
        )
    result.write(made)


@command.command("azure-2019")
@click.argument("files", type=_FILE, nargs=-1, required=True, metavar="FILE...")
@_for_models
@click.option("--window-s", type=_Number(), default=60.0, help="Windows of one rate each: a multiple of 60.")
@click.option("--rate-scale", type=_FACTOR, default=1.0, help="Factor on the rates.")
@click.option("--cv", type=_CV, default=1.0, help="Coefficient of variation of the gaps within a window.")
@_start
@_end
@_deal
@_seed
@_strict
@_written
def _azure_2019(
    files: Sequence[Path],
    models: _Models,
    window_s: float,
    rate_scale: float,
    cv: float,
    start_s: float,
    end_s: float | None,
    deal: Deal,
    seed: int,
    strict: bool,
    result: _Result,
) -> None:
    """Draw requests as Azure Functions 2019 counted them.

    The files say how often each function was called in each minute of a day; give one for each day, in their order.
    """
    result.check_apart(files)
    if window_s % 60:
        raise ConfigError(f"--window-s is {window_s:g}, but calls are counted per minute; give a multiple of 60")
    trace = _read(lambda: read_azure_2019(files, start_s=start_s, end_s=end_s), files, strict=strict)
    _check_any(trace.count, files, start_s, end_s)
    fitted = trace.fitted(model_names=models.names, slo_s=models.slo_s, window_s=window_s, deal=deal)
    drawn = _sample(fitted, rate_scale=rate_scale, cv_scale=cv, seed=seed)
    result.write(drawn, skipped=trace.skipped)


@command.command("azure-2021")
@click.argument("file", type=_FILE, metavar="FILE")
@_for_models
@_redrawn
@_start
@_end
@_deal
@_strict
@_written
def _azure_2021(
    file: Path,
    models: _Models,
    redraw: _Redraw,
    start_s: float,
    end_s: float | None,
    deal: Deal,
    strict: bool,
    result: _Result,
) -> None:
    """Take the calls of Azure Functions 2021.

    They are taken as they came, or drawn anew from a fit to them.
    """
    result.check_apart([file])
    trace = _read(lambda: read_azure_2021(file, start_s=start_s, end_s=_or_inf(end_s)), [file], strict=strict)
    _check_any(trace.arrival_s, [file], start_s, end_s)
    came = trace.workload(model_names=models.names, slo_s=models.slo_s, deal=deal)
    result.write(redraw.of(came) if redraw.wanted else came, skipped=trace.skipped)


@command.command("azure-llm")
@click.argument("files", nargs=-1, required=True, metavar="MODEL=FILE...")
@_fleet
@_slo
@_redrawn
@_start
@_end
@_strict
@_written
def _azure_llm(
    files: Sequence[str],
    fleet: Path | None,
    slo: str | None,
    redraw: _Redraw,
    start_s: float,
    end_s: float | None,
    strict: bool,
    result: _Result,
) -> None:
    """Take the requests of Azure LLM inference 2023 or 2024.

    They are taken as they came, or drawn anew from a fit to them. Each file becomes the requests of one model. The
    lengths of prompts and answers are left out.
    """
    paths = _model_files(files)
    slos = _slos_of(tuple(paths), fleet, slo)
    result.check_apart(paths.values())
    trace = _read(lambda: read_azure_llm(paths, start_s=start_s, end_s=_or_inf(end_s)), paths.values(), strict=strict)
    _check_any(trace.arrival_s, paths.values(), start_s, end_s)
    came = trace.workload(slo_s=slos)
    result.write(redraw.of(came) if redraw.wanted else came, skipped=trace.skipped)


@command.command("resample")
@click.argument("workload", type=_FILE)
@_gathered(
    "redraw",
    _Redraw,
    click.option("--window-s", type=_Number(), help="Length of the fitted windows; by default what fits best."),
    click.option("--rate-scale", type=_FACTOR, help="Factor on the rates."),
    click.option("--cv-scale", type=_CV_FACTOR, help="Factor on the CVs."),
    _seed,
)
@click.option("--posterior", is_flag=True, help="Draw the rates, too, as far as the traffic leaves them open.")
@_written
def _resample(workload: Path, redraw: _Redraw, posterior: bool, result: _Result) -> None:
    """Draw new requests like those of a workload.

    A Gamma process is fitted to each window of each model, and drawn from.
    """
    given = _load(workload)
    if not len(given):
        raise FileFormatError(f"{workload}: has no requests to fit; give a workload that has some")
    result.write(redraw.of(given, posterior=posterior))


@command.command("scale")
@click.argument("workload", type=_FILE)
@click.option("--rate-scale", type=_FACTOR, default=1.0, help="Factor on the rate: time is compressed.")
@click.option("--slo-scale", type=_FACTOR, default=1.0, help="Factor on the SLOs.")
@_written
def _scale(workload: Path, rate_scale: float, slo_scale: float, result: _Result) -> None:
    """Change the rate or the SLOs of the same requests."""
    result.write(scale_slo(scale_rate(_load(workload), rate_scale), slo_scale))


@command.command("cut")
@click.argument("workload", type=_FILE)
@_start
@_end
@click.option("--models", metavar="A,B", help="Only these models, in this order.")
@_written
def _cut(workload: Path, start_s: float, end_s: float | None, models: str | None, result: _Result) -> None:
    """Take a range of time, or some of the models.

    Without options it converts .npz to .csv, or back.
    """
    names = None if models is None else _names(models)
    kept = between(_load(workload), start_s, _or_inf(end_s))
    result.write(kept if names is None else only(kept, names))


@command.command("merge")
@click.argument("workloads", type=_FILE, nargs=-1, required=True, metavar="WORKLOAD...")
@_written
def _merge(workloads: Sequence[Path], result: _Result) -> None:
    """Put the requests of several workloads together.

    Models of one name become one model, and tenants one tenant. Other commands give all requests that they write a
    --priority or --tenant: what they wrote can be merged to mixed traffic.
    """
    result.write(combine([_load(each) for each in workloads]))


@command.command("show")
@click.argument("workload", type=_FILE)
@_json
def _show(workload: Path, as_json: bool) -> None:
    """Show the requests, rate and CV of each model, and how many requests each priority and tenant has."""
    described = _described(_load(workload))
    if as_json:
        print_json(described)
        return
    click.echo(f"{workload}: {_in_short(described)}\n")
    table = table_of(["model"], ["requests", "rate/s", "CV", "SLO s"])
    for name, model in described["per_model"].items():
        slos = " to ".join(dict.fromkeys(_figure(each) for each in model["slo_s"]))
        table.add_row(escape(name), str(model["requests"]), _figure(model["rate"]), _figure(model["cv"]), slos)
    print_table(table)
    for what in ("priority", "tenant"):
        if f"per_{what}" in described:
            counts = table_of([what], ["requests"])
            for name, counted in described[f"per_{what}"].items():
                counts.add_row(escape(name) or "-", str(counted["requests"]))
            click.echo()
            print_table(counts)


def _names(given: str) -> tuple[str, ...]:
    names = tuple(given.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"--models is {given!r}, but must be names with commas between, each once, such as a,b")
    return names


def _slos(given: str, *, models: int) -> tuple[float, ...]:
    try:
        each = [float(text) for text in given.split(",")]
    except ValueError:
        each = [math.nan]
    if not all(0 < value < math.inf for value in each):
        raise ConfigError(f"--slo-s is {given!r}, but must be seconds greater than 0, one value or one for each model")
    if len(each) not in (1, models):
        raise ConfigError(f"--slo-s has {len(each)} values, but there are {models} models; give one, or one for each")
    return tuple(each * models if len(each) == 1 else each)


def _slos_of(names: Sequence[str], fleet: Path | None, slo: str | None) -> tuple[float, ...]:
    """SLOs of models whose names are known: from the fleet file, or given."""
    if slo is not None and fleet is None:
        return _slos(slo, models=len(names))
    if slo is not None or fleet is None:
        raise ConfigError("the SLOs must come from one place; give either --fleet FILE or --slo-s X")
    slos = {each.name: each.slo_s for each in Fleet.load(fleet).models}
    for name in names:
        if name not in slos:
            raise ConfigError(f"{fleet} has no model {name!r}; name one of {', '.join(slos)}, or give --slo-s X")
    return tuple(slos[name] for name in names)


def _model_files(given: Sequence[str]) -> Mapping[str, Path]:
    files: dict[str, Path] = {}
    for each in given:
        name, _, path = each.partition("=")
        if not (name and path):
            raise ConfigError(f"{each!r} is not MODEL=FILE; write it as in chat=AzureLLMInferenceTrace_conv.csv")
        if name in files:
            raise ConfigError(f"{name!r} has two files, {files[name]} and {path}; give each file a model of its own")
        files[name] = Path(path)
    return files


def _load(path: Path) -> Workload:
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"{path} ends in neither .npz nor .csv, as workloads do; give one that does")
    with _telling("reading the workload", requests=_requests_in([path])):
        return Workload.load(path)


def _telling(what: str, *, requests: float) -> contextlib.AbstractContextManager[object]:
    """Says what is being done, where there are so many requests that it takes a while."""
    return Telling(what) if requests >= _MANY_REQUESTS else contextlib.nullcontext()


def _requests_in(files: Collection[Path]) -> float:
    """About how many, from what the files take."""
    return sum(each.stat().st_size for each in files if each.is_file()) / _REQUEST_BYTES


def _read(read: Callable[[], _AnyTrace], files: Collection[Path], *, strict: bool) -> _AnyTrace:
    """Reads a trace, and says which of its rows are broken, or refuses it for them."""
    with _telling("reading the trace", requests=_requests_in(files)):
        trace = read()
    count = trace.skipped.count
    first = [each if len(each) <= _LONGEST else f"{each[:_LONGEST]}..." for each in trace.skipped.first]
    if count and strict:
        rows = "this row" if count == 1 else f"the {count} broken rows"
        raise FileFormatError(f"{first[0]}; mend {rows}, or leave out --strict to go on without")
    if count:
        say(f"{count} broken {'row was' if count == 1 else 'rows were'} left out:")
        for each in [*first, *([f"and {count - len(first)} more"] if count > len(first) else [])]:
            say(f"  {each}")
    return trace


def _sample(fitted: Fitted, *, rate_scale: float, cv_scale: float, seed: int, posterior: bool = False) -> Workload:
    with _telling("drawing requests", requests=rate_scale * fitted.requests):
        rng = np.random.default_rng(seed)
        return fitted.sample(rng, rate_scale=rate_scale, cv_scale=cv_scale, posterior=posterior)


def _check_any(requests: Collection[Any], files: Collection[Path], start_s: float, end_s: float | None) -> None:
    if not len(requests):
        until = "the end" if end_s is None else f"{end_s:g} s"
        which = ", ".join(map(str, files))
        raise ConfigError(f"{which}: no requests from {start_s:g} s to {until}; give a range of time that has some")


def _or_inf(end_s: float | None) -> float:
    return math.inf if end_s is None else end_s


def _described(workload: Workload) -> dict[str, Any]:
    """What a workload holds, as JSON; null is what too few requests tell, and an SLO that is none.

    Priorities and tenants are among it where some request has one.
    """
    last_s = float(workload.arrival_s[-1]) if len(workload) else 0.0
    order = np.argsort(workload.model, kind="stable")
    ends = np.cumsum(np.bincount(workload.model, minlength=len(workload.model_names)))[:-1]
    arrivals, slos = (np.split(each[order], ends) for each in (workload.arrival_s, workload.slo_s))
    per_model = {
        name: {
            **_counted(arrival_s, last_s),
            "slo_s": [float(each) if each < math.inf else None for each in (slo_s.min(), slo_s.max())]
            if len(slo_s)
            else [],
        }
        for name, arrival_s, slo_s in zip(workload.model_names, arrivals, slos, strict=False)
    }
    further = {
        field: {str(name): {"requests": count} for name, count in counts.items()}
        for field, counts, unused in (
            ("per_priority", workload.requests_by_priority(), 0),
            ("per_tenant", workload.requests_by_tenant(), ""),
        )
        if counts.keys() - {unused}
    }
    return {**_counted(workload.arrival_s, last_s), "duration_s": last_s, "per_model": per_model, **further}


def _counted(arrival_s: Any, last_s: float) -> dict[str, Any]:
    gaps = np.diff(arrival_s)
    mean_s = float(gaps.mean()) if len(gaps) > 1 else 0.0
    return {
        "requests": len(arrival_s),
        "rate": len(arrival_s) / last_s if last_s else None,
        "cv": float(gaps.std()) / mean_s if mean_s else None,
    }


def _in_short(described: Mapping[str, Any]) -> str:
    rate = f", {_figure(described['rate'])} per second" if described["rate"] is not None else ""
    models = len(described["per_model"])
    return (
        f"{described['requests']} requests of {models} {'model' if models == 1 else 'models'} "
        f"in {_figure(described['duration_s'])} s{rate}"
    )


def _figure(value: float | None) -> str:
    """A number to read, of four digits or more."""
    if value is None:
        return "-"
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"
