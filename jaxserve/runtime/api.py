"""What a program calls to have a model on its devices without an engine, or to measure it."""

from collections.abc import Sequence
from typing import Any

import jax

from jaxserve.model import Model
from jaxserve.plans import ParallelConfig, Profile
from jaxserve.runtime.loading import Progress, load
from jaxserve.runtime.pipeline import Pipeline


def parallelize(
    model: Model,
    config: ParallelConfig | None = None,
    *,
    devices: Sequence[Any] | None = None,
    progress: Progress | None = None,
) -> Pipeline:
    """The model on its devices: call the result with a dict of inputs, and it returns what the module returns.

    Args:
        model: the model; for more than one stage it must name `cuts`.
        config: devices per stage and stages; one device unless given.
        devices: `config.devices` of them, the first that jax has unless given.
        progress: called with what is being done, how much of it is done, and of how much.

    Raises:
        PlacementError: the devices do not fit the config, or the model cannot be cut into so many stages.
    """
    return load(model, config, devices, progress=progress)


def profile(
    model: Model,
    configs: ParallelConfig | Sequence[ParallelConfig] | None = None,
    *,
    devices: Sequence[Any] | None = None,
    progress: Progress | None = None,
) -> tuple[Profile, ...]:
    """Measures the latency and memory of every stage: one row for each config and each bucket of the model.

    Args:
        model: the model; it is loaded and unloaded once for each config.
        configs: one or more; one device unless given.
        devices: as many as the largest config needs, or more; those that jax has unless given.
        progress: called with what is being done, how much of it is done, and of how much.

    Raises:
        PlacementError: a config needs more devices, or the model cannot be cut into so many stages.
    """
    if configs is None:
        configs = ParallelConfig()
    if isinstance(configs, ParallelConfig):
        configs = (configs,)
    rows: list[Profile] = []
    for config in configs:
        available = jax.devices() if devices is None else devices
        pipeline = load(model, config, available[: config.devices], progress=progress)
        rows.extend(pipeline.profiles)
        pipeline.close()
    return tuple(rows)
