"""Small fleets to place, for the tests of this room."""

import numpy as np

from jaxserve.placement import Problem
from jaxserve.plans import Fleet, FleetModel, ParallelConfig, Profile, Profiles
from jaxserve.workload import synthetic

CONFIGS = [ParallelConfig(1, 1), ParallelConfig(1, 2), ParallelConfig(2, 1), ParallelConfig(2, 2), ParallelConfig(1, 4)]


def row(config: ParallelConfig, *, latency_s: float, weight_bytes: float, batch_size: int = 1) -> Profile:
    """A profile whose stages are as long as each other, 10 % more work for each doubling of devices."""
    spread = config.devices * 0.9 ** (config.devices.bit_length() - 1)
    return Profile(
        intra_op=config.intra_op,
        inter_op=config.inter_op,
        batch_size=batch_size,
        stage_latency_s=(latency_s / spread,) * config.inter_op,
        stage_weight_bytes=(weight_bytes / config.devices,) * config.inter_op,
        stage_activation_bytes=(0.0,) * config.inter_op,
        source="estimated",
    )


def profiles(configs: list[ParallelConfig] | None = None) -> Profiles:
    """A small model and a large one, with rows for these configs."""
    sizes = {"small": (0.1, 30.0), "large": (0.3, 90.0)}
    return Profiles(
        device_kind="test",
        memory_bytes=100.0,
        models={
            name: tuple(row(config, latency_s=latency_s, weight_bytes=weight) for config in configs or CONFIGS)
            for name, (latency_s, weight) in sizes.items()
        },
    )


def problem(
    *,
    models: int = 6,
    devices: int = 4,
    rate: float = 12.0,
    duration_s: float = 60.0,
    slo_scale: float = 4.0,
    configs: list[ParallelConfig] | None = None,
    seed: int = 0,
    fair: bool = False,
    min_attainment: float = 0.0,
) -> Problem:
    """Every third model large, Gamma traffic of CV 3."""
    kinds = ["large" if index % 3 == 2 else "small" for index in range(models)]
    fleet = Fleet(
        devices=devices,
        devices_per_host=4,
        memory_bytes=100.0,
        models=tuple(
            FleetModel(name=f"m{index}", profile=kind, slo_s=slo_scale * (0.1 if kind == "small" else 0.3))
            for index, kind in enumerate(kinds)
        ),
    )
    workload = synthetic(
        model_names=[model.name for model in fleet.models],
        slo_s=[model.slo_s for model in fleet.models],
        rate=rate,
        cv=3.0,
        duration_s=duration_s,
        split="power-law:0.5",
        rng=np.random.default_rng(seed),
    )
    return Problem.of(
        fleet=fleet,
        profiles=profiles(configs),
        workload=workload,
        overhead_s=0.001,
        fair=fair,
        min_attainment=min_attainment,
    )
