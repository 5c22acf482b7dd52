"""`jaxserve profile`: measures models and writes a profiles file."""

import os
from pathlib import Path

import click
import jax
from rich.table import Table

from jaxserve.cli.devices import use_cpu_devices
from jaxserve.cli.factory import load_models
from jaxserve.cli.show import Telling, milliseconds, print_json, print_table, say
from jaxserve.config import cache_directory
from jaxserve.errors import ConfigError
from jaxserve.model import Model
from jaxserve.plans import ParallelConfig, Profile, Profiles
from jaxserve.runtime import enable_compilation_cache, profile


@click.command("profile")
@click.argument("models", metavar="MODULE:ATTRIBUTE")
@click.option("-o", "--output", type=Path, metavar="FILE", help="Where to write the jaxserve-profiles/1 file.")
@click.option("--intra-op", default=1, help="Devices for each stage.")
@click.option("--inter-op", default=1, help="Number of stages; more than one needs models with cuts.")
@click.option("--cpu-devices", type=int, metavar="N", help="Measure on N fake CPU devices.")
@click.option("--json", "as_json", is_flag=True, help="Print the profiles as one JSON object.")
def command(
    models: str, output: Path | None, intra_op: int, inter_op: int, cpu_devices: int | None, as_json: bool
) -> None:
    """Measure every stage of every bucket of the models at MODULE:ATTRIBUTE on the devices that jax has."""
    try:
        config = ParallelConfig(intra_op, inter_op)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"-o {output}: there is no directory {output.parent}; make it first")
    if output is not None and output.is_dir():
        raise ConfigError(f"-o {output} is a directory; name a file, such as {output / 'profiles.json'}")
    if output is not None and not os.access(output.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"-o {output}: {output.parent} cannot be written to; choose another directory")
    use_cpu_devices(cpu_devices)
    loaded = _with_profiles(load_models(models))
    enable_compilation_cache(cache_directory() / "programs")
    devices = jax.devices()
    if config.devices > len(devices):
        raise ConfigError(
            f"--intra-op {intra_op} x --inter-op {inter_op} needs {config.devices} devices, but there are "
            f"{len(devices)}; try --cpu-devices {config.devices}"
        )
    rows: dict[str, tuple[Profile, ...]] = {}
    with Telling("profiling") as tell:
        for model in loaded:

            def report(what: str, done: int, total: int, name: str = model.name) -> None:
                tell(f"{name}: {what} {done} of {total}")

            rows[model.name] = profile(model, config, devices=devices, progress=report)
    stats = devices[0].memory_stats() or {}
    profiles = Profiles(
        device_kind=devices[0].device_kind, memory_bytes=float(stats.get("bytes_limit", 0)), models=rows
    )
    if output is not None:
        try:
            profiles.save(output)
        except OSError as error:
            raise ConfigError(f"-o {output} cannot be written: {error}") from error
    if as_json:
        print_json(profiles.to_json())
    else:
        print_table(_table(profiles))


def _with_profiles(models: list[Model]) -> list[Model]:
    """Those that run on devices; what runs on the host takes its turn on the event loop and has no stages."""
    on_host = [model.name for model in models if model.on_host]
    if len(on_host) == len(models):
        raise ConfigError(f"there is nothing to measure: {', '.join(on_host)} run on the host; name a model on devices")
    if on_host:
        say(f"not measured, as they run on the host: {', '.join(on_host)}")
    return [model for model in models if not model.on_host]


def _table(profiles: Profiles) -> Table:
    table = Table(title=f"measured on {profiles.device_kind}", title_justify="left")
    for column in ("model", "config", "batch", "length", "stages ms", "p99 ms", "weights MB", "activations MB"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, rows in profiles.models.items():
        for row in rows:
            table.add_row(
                name,
                f"({row.intra_op}, {row.inter_op})",
                str(row.batch_size),
                "-" if row.length is None else str(row.length),
                " + ".join(milliseconds(each) for each in row.stage_latency_s),
                " + ".join(milliseconds(each) for each in row.stage_latency_p99_s or ()) or "-",
                " + ".join(f"{each / 1e6:.1f}" for each in row.stage_weight_bytes),
                " + ".join(f"{each / 1e6:.1f}" for each in row.stage_activation_bytes),
            )
    return table
