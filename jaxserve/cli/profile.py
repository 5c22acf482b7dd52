"""`jaxserve profile`: measures models, or estimates them, and writes a profiles file."""

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import jax
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.table import Table

from jaxserve.cli.devices import use_cpu_devices
from jaxserve.cli.explain import budget_bytes, parallel_config, short
from jaxserve.cli.factory import load_models
from jaxserve.cli.output import check_output
from jaxserve.cli.show import Bar, print_json, print_table, say, table_of
from jaxserve.config import cache_directory
from jaxserve.errors import ConfigError, PlacementError
from jaxserve.model import Model
from jaxserve.parallel import device_kind as described_device
from jaxserve.plans import ParallelConfig, Profile, Profiles
from jaxserve.runtime import enable_compilation_cache, estimate, profile

DEVICES = 8
"""Of an estimated cluster, unless said otherwise."""

_PARTS = {"compile": (0.0, 0.6), "load": (0.6, 0.7), "profile": (0.7, 1.0)}
"""Of loading one config, where each part of it begins and ends; roughly what they take."""

Report = Callable[[str, float], None]


@click.command("profile")
@click.argument("models", metavar="MODULE:ATTRIBUTE")
@click.option("-o", "--output", type=Path, metavar="FILE", help="Where to write the jaxserve-profiles/1 file.")
@click.option("--intra-op", type=int, metavar="N", help="Devices for each stage; 1 by default.")
@click.option("--inter-op", type=int, metavar="N", help="Number of stages; 1 by default.")
@click.option("--all-configs", is_flag=True, help="Every config of powers of two that the devices hold.")
@click.option(
    "--devices", type=int, metavar="N", help="How many devices the cluster has; by default all, or 8 estimated."
)
@click.option("--device-kind", metavar="KIND", help="Estimate for such devices, as H100, without having one.")
@click.option("--weight-budget-gb", type=float, metavar="X", help="Weights that a device may hold, in 10^9 bytes.")
@click.option("--cpu-devices", type=int, metavar="N", help="Measure on N fake CPU devices.")
@click.option("--json", "as_json", is_flag=True, help="Print the profiles as one JSON object.")
def command(
    models: str,
    output: Path | None,
    intra_op: int | None,
    inter_op: int | None,
    all_configs: bool,
    devices: int | None,
    device_kind: str | None,
    weight_budget_gb: float | None,
    cpu_devices: int | None,
    as_json: bool,
) -> None:
    """Measure every stage of every bucket of the models at MODULE:ATTRIBUTE on the devices that jax has.

    With --device-kind nothing runs: the cost model of such a device estimates them, as it does where a plan is made.
    """
    if all_configs and (intra_op is not None or inter_op is not None):
        raise ConfigError("--all-configs covers every --intra-op and --inter-op; give it, or one config")
    if device_kind is not None and cpu_devices is not None:
        raise ConfigError("--cpu-devices is to measure, and --device-kind to estimate; give one of them")
    if devices is not None and devices < 1:
        raise ConfigError(f"--devices is {devices}, but must be at least 1")
    config = parallel_config(1 if intra_op is None else intra_op, 1 if inter_op is None else inter_op)
    budget = budget_bytes(weight_budget_gb)
    check_output("-o", output, example="profiles.json")
    if device_kind is None:
        make = _Measure(cpu_devices, budget)
    else:
        make = _Estimate(device_kind, devices or max(config.devices, DEVICES), budget)
    count = make.devices if devices is None else devices
    if count > make.devices:
        raise ConfigError(f"--devices is {devices}, but there are {make.devices}; try --cpu-devices {devices}")
    if config.devices > count:
        raise ConfigError(
            f"--intra-op {config.intra_op} x --inter-op {config.inter_op} needs {config.devices} devices, but there "
            f"are {count}; try {make.more(config.devices)}"
        )
    loaded = _with_profiles(load_models(models))
    make.prepare()
    configs = every_config(count) if all_configs else (config,)
    profiles = Profiles(device_kind=make.kind, memory_bytes=make.memory_bytes, models=_rows(make, loaded, configs))
    if output is not None:
        try:
            profiles.save(output)
        except OSError as error:
            raise ConfigError(f"-o {output} cannot be written: {error}") from error
    if as_json:
        print_json(profiles.to_json())
    else:
        print_table(table(profiles, make.how))


def every_config(devices: int) -> tuple[ParallelConfig, ...]:
    """All configs of powers of two with at most this many devices, those of few devices first."""
    powers = [1 << exponent for exponent in range(devices.bit_length()) if 1 << exponent <= devices]
    every = [ParallelConfig(*each) for each in itertools.product(powers, repeat=2)]
    return tuple(sorted((each for each in every if each.devices <= devices), key=lambda each: (each.devices, each)))


class _Measure:
    """Rows by measuring on what jax has."""

    how = "measured on"

    def __init__(self, cpu_devices: int | None, budget: float | None) -> None:
        use_cpu_devices(cpu_devices)
        self._attached = jax.devices()
        self._budget = budget
        self.devices = len(self._attached)
        self.kind = self._attached[0].device_kind
        self.memory_bytes = float((self._attached[0].memory_stats() or {}).get("bytes_limit", 0))

    def prepare(self) -> None:
        enable_compilation_cache(cache_directory() / "programs")

    def more(self, count: int) -> str:
        return f"--cpu-devices {count}"

    def rows(self, model: Model, config: ParallelConfig, report: Report) -> tuple[Profile, ...]:
        def told(what: str, done: int, total: int) -> None:
            start, end = _PARTS.get(what, (0.0, 0.0))
            report(f"{what} {done} of {total}", start + (end - start) * done / max(total, 1))

        return profile(model, config, devices=self._attached, progress=told, weight_budget_bytes=self._budget)


class _Estimate:
    """Rows by the cost model of a kind of device."""

    how = "estimated for"

    def __init__(self, device_kind: str, devices: int, budget: float | None) -> None:
        self._device = described_device(device_kind)
        self._budget = budget
        self.devices = devices
        self.kind = self._device.kind
        self.memory_bytes = float(self._device.memory_bytes)

    def prepare(self) -> None:
        pass

    def more(self, count: int) -> str:
        return f"--devices {count}"

    def rows(self, model: Model, config: ParallelConfig, report: Report) -> tuple[Profile, ...]:
        report("plan", 0.0)
        return estimate(model, config, self._device, weight_budget_bytes=self._budget)


class Remaining(Bar):
    """Shows how much is done and how long the rest takes: a bar on a terminal, else a line for each step."""

    def __init__(self, total: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._clock = clock
        self._began_s = clock()
        self._done = 0
        self._name = ""
        super().__init__(TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[left]}"))
        self._task = None if self._bar is None else self._bar.add_task("profiling", total=total, left="")

    def begin(self, name: str) -> None:
        """The next step begins."""
        self._name = name
        if self._bar is None:
            left = self.left(0.0)
            say(f"profiling {name}: {self._done + 1} of {self._total}{left and f', {left}'}")
        self.report("", 0.0)

    def report(self, what: str, part: float) -> None:
        """This is being done now, and so much of the step is done; any thread may say so."""
        if self._bar is not None and self._task is not None:
            text = escape(f"profiling {self._name} {what}")
            self._bar.update(
                self._task, completed=self._done + part, description=text, left=self.left(part), refresh=True
            )

    def end(self) -> None:
        """The step is done."""
        self._done += 1
        self.report("", 0.0)

    def left(self, part: float) -> str:
        """About how long the rest takes, if it goes on as until now; nothing as long as nothing is done."""
        done = self._done + part
        if done <= 0:
            return ""
        seconds = (self._clock() - self._began_s) / done * (self._total - done)
        return f"about {seconds:.0f} s left" if seconds < 120 else f"about {seconds / 60:.0f} min left"


def _rows(
    make: _Measure | _Estimate, models: Sequence[Model], configs: Sequence[ParallelConfig]
) -> dict[str, tuple[Profile, ...]]:
    """The rows of each model under all configs that it can have.

    Raises:
        PlacementError: a model can have none; it is the error of the last one, which has most devices.
    """
    rows: dict[str, tuple[Profile, ...]] = {}
    left_out: list[str] = []
    with Remaining(len(models) * len(configs)) as remaining:
        for model in models:
            found: list[Profile] = []
            problem: PlacementError | None = None
            for config in configs:
                remaining.begin(f"{model.name} ({config.intra_op}, {config.inter_op})")
                try:
                    found += make.rows(model, config, remaining.report)
                except PlacementError as error:
                    problem = error
                    left_out.append(f"left out ({config.intra_op}, {config.inter_op}): {error}")
                remaining.end()
            if not found and problem is not None:
                raise problem
            rows[model.name] = tuple(found)
    for line in left_out:
        say(line)
    return rows


def _with_profiles(models: list[Model]) -> list[Model]:
    """Those that run on devices; what runs on the host takes its turn on the event loop and has no stages."""
    on_host = [model.name for model in models if model.on_host]
    if len(on_host) == len(models):
        raise ConfigError(f"there is nothing to measure: {', '.join(on_host)} run on the host; name a model on devices")
    if on_host:
        say(f"not measured, as they run on the host: {', '.join(on_host)}")
    return [model for model in models if not model.on_host]


def table(profiles: Profiles, how: str) -> Table:
    """The rows, for 80 columns: of several stages the sum of their latencies, and the slowest and heaviest of them."""
    columns = ["config", "batch", "length", "ms", "slowest", "p99", "weights", "act."]
    shown = table_of(["model"], columns)
    shown.title, shown.title_justify = escape(f"{how} {profiles.device_kind}"), "left"
    shown.caption = "ms through all stages; of the stage that has most: slowest, p99 in ms; weights, activations in MB"
    shown.caption_justify = "left"
    for name, rows in profiles.models.items():
        for row in rows:
            shown.add_row(
                escape(name),
                f"({row.intra_op}, {row.inter_op})",
                str(row.batch_size),
                "-" if row.length is None else str(row.length),
                short(1e3 * row.latency_s),
                short(1e3 * max(row.stage_latency_s)),
                "-" if row.stage_latency_p99_s is None else short(1e3 * max(row.stage_latency_p99_s)),
                short(max(row.stage_weight_bytes) / 1e6),
                short(max(row.stage_activation_bytes) / 1e6),
            )
    return shown
