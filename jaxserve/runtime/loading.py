"""From a model to a pipeline on given devices: trace, cut, shard, compile, load the weights, measure."""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxserve.errors import ConfigError, PlacementError
from jaxserve.model import Model
from jaxserve.parallel import (
    Device,
    Limits,
    Plan,
    Sharded,
    calls_back,
    device_kind,
    plan_model,
    sharded,
)
from jaxserve.plans import ParallelConfig, Profile
from jaxserve.runtime.compiled import Executable, LoweredStage, make_mesh
from jaxserve.runtime.measure import measure_restore, measure_stages
from jaxserve.runtime.pipeline import Pipeline
from jaxserve.runtime.residence import StageArrays
from jaxserve.runtime.slices import measure_slices
from jaxserve.runtime.weights import STACK_BELOW_BYTES, Layout, Weight, lay_out, load_weights

StageCosts = Literal["measured", "estimated"]
Progress = Callable[[str, int, int], None]

_USUAL = {"gpu": "A100", "cuda": "A100", "rocm": "A100", "tpu": "TPU v5e"}  # by platform


def load(
    model: Model,
    config: ParallelConfig | None = None,
    devices: Sequence[Any] | None = None,
    *,
    progress: Progress | None = None,
    repeats: int | None = None,
    limits: Limits | None = None,
    device: Device | None = None,
    stage_costs: StageCosts | None = None,
    stack_below_bytes: int = STACK_BELOW_BYTES,
    spare: bool = False,
) -> Pipeline:
    """Loads a model onto devices, compiled, warmed up and measured at every bucket.

    Args:
        model: the model; not one that runs on the host.
        config: devices per stage and stages; one device unless given.
        devices: `config.devices` of them, stage k on the k-th run of `intra_op`; the first that jax has, unless given.
        progress: called with what is being done ("compile", "load", "profile" and, of a spare, "restore"), how much is
            done, and of how much.
        repeats: runs to measure at each bucket, and rounds to measure a restore of each stage; unless given, as many as
            a fraction of a second allows.
        limits: what the plan has to keep to: see `Limits`.
        device: what to plan for; unless given, what the devices say they are.
        stage_costs: what the cuts go by: "measured" on the first stage's devices, or "estimated" by the cost model;
            unless given, measured on accelerators, and estimated on CPU devices, which share their cores.
        stack_below_bytes: weights smaller than this share arrays.
        spare: whether to keep a copy of the weights in host memory, so that each stage can be taken off its devices and
            put back, and to measure how long putting it back takes: see `Pipeline.evict`. At first all are there.

    Raises:
        PlacementError: the devices do not fit the config, or the model cannot be cut into so many stages.
    """
    config = config or ParallelConfig()
    if not isinstance(config, ParallelConfig):
        raise PlacementError(f"the config is {config!r}, but must be a ParallelConfig(intra_op=..., inter_op=...)")
    report = progress or _no_progress
    stage_devices = _stage_devices(model, config, devices)
    if stage_costs is None:
        stage_costs = "estimated" if stage_devices[0][0].platform == "cpu" else "measured"
    plan = plan_model(
        model,
        config,
        device or described(stage_devices[0][0]),
        limits=limits,
        measure=functools.partial(measure_slices, devices=stage_devices[0]) if stage_costs == "measured" else None,
    )
    if config.intra_op > 1 and any(calls_back(stage.stage.program.jaxpr) for row in plan.stages for stage in row):
        # where a callback raises on one device, the others wait for it, until XLA ends the whole process
        raise PlacementError(
            f"model {model.name!r} calls back into Python, which must not be spread over {config.intra_op} devices a "
            f"stage; choose intra_op 1"
        )
    specs = [[sharded(stage) for stage in row] for row in plan.stages]
    meshes = [make_mesh(each, specs[0][stage].mesh) for stage, each in enumerate(stage_devices)]
    layouts = [
        lay_out(_stage_weights(plan, specs, stage), mesh, stack_below_bytes=stack_below_bytes)
        for stage, mesh in enumerate(meshes)
    ]
    lowered = (
        LoweredStage(stage.stage, stage_specs, layout, mesh)
        for row, row_specs in zip(plan.stages, specs, strict=True)
        for stage, stage_specs, layout, mesh in zip(row, row_specs, layouts, meshes, strict=True)
    )
    flat = _compile_all(lowered, len(plan.stages) * config.inter_op, report)
    executables = [flat[start : start + config.inter_op] for start in range(0, len(flat), config.inter_op)]
    weights = load_weights(
        model, plan.weights, layouts, copies=spare, loaded=lambda done, total: report("load", done, total)
    )
    stages = [StageArrays(loaded, at_buckets) for loaded, *at_buckets in zip(weights, *executables, strict=True)]
    pipeline = Pipeline(model, plan, stages, executables)
    pipeline.profiles = _measure_all(pipeline, layouts, executables, repeats, report)
    if spare:
        pipeline.restore_s = _measure_restores(pipeline, repeats, report)
    return pipeline


def described(device: Any) -> Device:
    """What an attached device is, by its kind; one that is not known, as the usual one of its platform."""
    try:
        known = device_kind(device.device_kind)
    except ConfigError:
        known = device_kind(_USUAL.get(device.platform, "cpu"))
    memory = getattr(device, "memory_stats", lambda: None)() or {}
    return dataclasses.replace(known, memory_bytes=memory.get("bytes_limit", known.memory_bytes))


def _no_progress(what: str, done: int, total: int) -> None:
    pass


def _stage_devices(model: Model, config: ParallelConfig, devices: Sequence[Any] | None) -> list[Sequence[Any]]:
    if model.on_host:
        raise PlacementError(f"model {model.name!r} runs on the host and takes no devices; call it, do not load it")
    if devices is None:
        devices = jax.devices()[: config.devices]
    strange = next((each for each in devices if not isinstance(each, jax.Device)), None)
    if strange is not None:
        raise PlacementError(
            f"devices hold {strange!r}, but must be jax devices, such as jax.devices()[:{config.devices}]"
        )
    if len(devices) != config.devices or len(set(devices)) != len(devices):
        raise PlacementError(
            f"model {model.name!r} as ({config.intra_op}, {config.inter_op}) needs {config.devices} different devices, "
            f"but {len(set(devices))} are given; choose a config that they fit"
        )
    return [devices[start : start + config.intra_op] for start in range(0, len(devices), config.intra_op)]


def _stage_weights(plan: Plan, specs: Sequence[Sequence[Sharded]], stage: int) -> list[Weight]:
    """The weights that a stage uses at any bucket."""
    lies: dict[int, Any] = {}
    multiplied: set[int] = set()
    for row, row_specs in zip(plan.stages, specs, strict=True):
        here = row[stage].stage
        lies.update(zip(here.params, row_specs[stage].params, strict=True))
        multiplied.update(index for index in here.params if index not in here.added)
    return [
        Weight(index=index, shape=plan.weights[index].shape, spec=lies[index], added=index not in multiplied)
        for index in sorted(lies)
    ]


def _compile_all(lowered: Iterator[LoweredStage], total: int, report: Progress) -> list[Executable]:
    """Compiles while further stages are still being lowered; XLA lets go of the interpreter meanwhile."""
    report("compile", 0, total)
    executables: list[Executable] = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        pending = [pool.submit(stage.compile) for stage in lowered]
        for done, future in enumerate(pending):
            executables.append(future.result())
            report("compile", done + 1, total)
    return executables


def _measure_all(
    pipeline: Pipeline,
    layouts: Sequence[Layout],
    executables: Sequence[Sequence[Executable]],
    repeats: int | None,
    report: Progress,
) -> tuple[Profile, ...]:
    profiles: list[Profile] = []
    report("profile", 0, len(executables))
    for index, (bucket, stages) in enumerate(zip(pipeline.model.buckets, executables, strict=True)):
        seconds = measure_stages(pipeline, index, repeats=repeats)
        profiles.append(
            Profile(
                intra_op=pipeline.config.intra_op,
                inter_op=pipeline.config.inter_op,
                batch_size=bucket.batch_size,
                length=bucket.length,
                stage_latency_s=tuple(np.median(seconds, axis=0).tolist()),
                stage_latency_p99_s=tuple(np.percentile(seconds, 99, axis=0).tolist()),
                stage_weight_bytes=tuple(layout.bytes_per_device for layout in layouts),
                stage_activation_bytes=tuple(stage.activation_bytes for stage in stages),
                source="measured",
            )
        )
        report("profile", index + 1, len(executables))
    return tuple(profiles)


def _measure_restores(pipeline: Pipeline, repeats: int | None, report: Progress) -> tuple[float, ...]:
    seconds: list[float] = []
    report("restore", 0, pipeline.num_stages)
    for stage in range(pipeline.num_stages):
        seconds.append(measure_restore(pipeline, stage, repeats=repeats))
        report("restore", stage + 1, pipeline.num_stages)
    return tuple(seconds)
