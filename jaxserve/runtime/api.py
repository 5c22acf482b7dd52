"""What a program calls to have a model on its devices without an engine, or to measure or estimate it."""

from collections.abc import Sequence
from typing import Any

import jax

from jaxserve.model import Model
from jaxserve.parallel import Device, Limits, Objective, plan_model
from jaxserve.parallel import device_kind as described_device
from jaxserve.parallel.activations import peak_bytes
from jaxserve.parallel.plan import SOLVER_S
from jaxserve.plans import ParallelConfig, Profile
from jaxserve.runtime.loading import Progress, StageCosts, load
from jaxserve.runtime.pipeline import Pipeline

Configs = ParallelConfig | Sequence[ParallelConfig] | None


def parallelize(
    model: Model,
    config: ParallelConfig | None = None,
    *,
    devices: Sequence[Any] | None = None,
    progress: Progress | None = None,
    weight_budget_bytes: float | None = None,
    device_kind: Device | str | None = None,
    objective: Objective = "balance",
    solver_s: float = SOLVER_S,
    stage_costs: StageCosts | None = None,
) -> Pipeline:
    """The model on its devices: call the result with a dict of inputs, and it returns what the module returns.

    Every operation is sharded over the devices of its stage, and the model is cut into stages, so that it answers
    soonest by the cost model of the devices. `pipeline.plan` is what was decided, and `pipeline.check()` compares what
    the compiled stages send with it.

    Args:
        model: the model. It is cut into stages where that is best; where it names `cuts`, only there.
        config: devices per stage and stages; one device unless given.
        devices: `config.devices` of them, the first that jax has unless given.
        progress: called with what is being done, how much of it is done, and of how much.
        weight_budget_bytes: of weights that one device may hold; unless given, about an even share of them, infinite
            for the least latency whatever it takes.
        device_kind: what to plan for, such as "H100", or a description of it; unless given, what the devices say that
            they are.
        objective: of the cuts: "latency" for the fastest slowest stage, "memory" for the lightest heaviest one,
            "balance" for the lightest within 5 % of the fastest.
        solver_s: after this many seconds each solver stops with the best that it has found; `pipeline.plan.statuses`
            says so.
        stage_costs: what the cuts go by: "measured" on the first stage's devices, or "estimated" by the cost model;
            unless given, measured on accelerators, and estimated on CPU devices, which share their cores.

    Raises:
        PlacementError: the devices do not fit the config, the weights do not fit the devices or the budget, or the
            model cannot be cut into so many stages.
        ConfigError: no device of this kind is described.
    """
    return load(
        model,
        config,
        devices,
        progress=progress,
        limits=_limits(weight_budget_bytes, objective, solver_s),
        device=None if device_kind is None else _described(device_kind),
        stage_costs=stage_costs,
    )


def profile(
    model: Model,
    configs: Configs = None,
    *,
    devices: Sequence[Any] | None = None,
    progress: Progress | None = None,
    weight_budget_bytes: float | None = None,
    device_kind: Device | str | None = None,
) -> tuple[Profile, ...]:
    """Measures the latency and memory of every stage: one row for each config and each bucket of the model.

    Args:
        model: the model; it is loaded and unloaded once for each config.
        configs: one or more; one device unless given.
        devices: as many as the largest config needs, or more; those that jax has unless given.
        progress: called with what is being done, how much of it is done, and of how much.
        weight_budget_bytes: see `parallelize`.
        device_kind: see `parallelize`.

    Raises:
        PlacementError: a config needs more devices, the weights do not fit, or the model cannot be cut into so many
            stages.
        ConfigError: no device of this kind is described.
    """
    rows: list[Profile] = []
    available = jax.devices() if devices is None else devices
    for config in _each(configs):
        pipeline = load(
            model,
            config,
            available[: config.devices],
            progress=progress,
            limits=_limits(weight_budget_bytes),
            device=None if device_kind is None else _described(device_kind),
        )
        rows.extend(pipeline.profiles)
        pipeline.close()
    return tuple(rows)


def estimate(
    model: Model, configs: Configs, device_kind: Device | str, *, weight_budget_bytes: float | None = None
) -> tuple[Profile, ...]:
    """What `profile` would measure, by the cost model of a device that need not be there: rows marked "estimated".

    Latencies are those of the plan: rooflines of the kernels, alpha-beta costs of the collectives, and the way of the
    values to each stage. Activation bytes are those of the values that lie in memory at once: see
    `jaxserve.parallel.activations`; what XLA adds for its collectives is not among them.

    Args:
        model: the model; one that has only the shapes of its params is enough.
        configs: one or more; one device unless given.
        device_kind: such as "H100", or a description of one.
        weight_budget_bytes: see `parallelize`.

    Raises:
        PlacementError: the weights do not fit, the model cannot be cut into so many stages, or a stage has more devices
            than a host.
        ConfigError: no device of this kind is described.
    """
    described = _described(device_kind)
    limits = _limits(weight_budget_bytes)
    rows: list[Profile] = []
    for config in _each(configs):
        plan = plan_model(model, config, described, limits=limits)
        rows += [
            Profile(
                intra_op=config.intra_op,
                inter_op=config.inter_op,
                batch_size=bucket.batch_size,
                length=bucket.length,
                stage_latency_s=tuple(stage.seconds for stage in stages),
                stage_weight_bytes=tuple(stage.weight_bytes for stage in stages),
                stage_activation_bytes=tuple(peak_bytes(stage) for stage in stages),
                source="estimated",
            )
            for bucket, stages in zip(model.buckets, plan.stages, strict=True)
        ]
    return tuple(rows)


def _described(device_kind: Device | str) -> Device:
    return described_device(device_kind) if isinstance(device_kind, str) else device_kind


def _limits(weight_budget_bytes: float | None, objective: Objective = "balance", solver_s: float = SOLVER_S) -> Limits:
    budget = "even" if weight_budget_bytes is None else weight_budget_bytes
    return Limits(weight_budget_bytes=budget, objective=objective, solver_s=solver_s)


def _each(configs: Configs) -> Sequence[ParallelConfig]:
    if configs is None:
        return (ParallelConfig(),)
    return (configs,) if isinstance(configs, ParallelConfig) else configs
