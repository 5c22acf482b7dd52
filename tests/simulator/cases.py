"""Random fleets, placements and workloads, on a coarse grid of times so that ties abound."""

import dataclasses
import itertools

import numpy as np
from hypothesis import strategies as st

from jaxserve.plans import Fleet, FleetModel, Group, ParallelConfig, Placement, Profile, Profiles, Segment
from jaxserve.workload import Workload

CONFIGS = tuple(ParallelConfig(*sizes) for sizes in ((1, 1), (1, 2), (2, 1), (1, 3)))
BATCH_SIZES = (1, 2, 3, 4)
UNKNOWN = "in no fleet"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What `simulate` is called with."""

    profiles: Profiles
    fleet: Fleet
    placement: Placement
    workload: Workload
    overhead_s: float
    max_batch: int


@st.composite
def fleets(draw: st.DrawFn, *, unit_s: float, max_batch: int) -> tuple[Fleet, Profiles]:
    """A fleet of models with rows for some configs, and at each config for some batch sizes."""
    profiles: dict[str, tuple[Profile, ...]] = {}
    for name in "pqr":
        rows: list[Profile] = []
        for config in draw(st.lists(st.sampled_from(CONFIGS), min_size=1, unique=True)):
            larger = draw(st.sets(st.sampled_from(BATCH_SIZES[1:]))) if max_batch > 1 else set[int]()
            for size in {1} | larger:
                ticks = draw(st.lists(st.integers(0, 5), min_size=config.inter_op, max_size=config.inter_op))
                rows.append(row(config, size, tuple(unit_s * tick for tick in ticks)))
        profiles[name] = tuple(draw(st.permutations(rows)))
    models = tuple(
        FleetModel(name=f"m{index}", profile=draw(st.sampled_from("pqr")), slo_s=1.0)
        for index in range(draw(st.integers(1, 5)))
    )
    fleet = Fleet(devices=16, devices_per_host=16, memory_bytes=1e9, models=models)
    return fleet, Profiles(device_kind="test", memory_bytes=1e9, models=profiles)


def row(config: ParallelConfig, batch_size: int, stage_latency_s: tuple[float, ...]) -> Profile:
    """A row of a profile that weighs nothing."""
    nothing = (0.0,) * config.inter_op
    return Profile(
        intra_op=config.intra_op,
        inter_op=config.inter_op,
        batch_size=batch_size,
        stage_latency_s=stage_latency_s,
        stage_weight_bytes=nothing,
        stage_activation_bytes=nothing,
    )


@st.composite
def groups(draw: st.DrawFn, fleet: Fleet, profiles: Profiles) -> tuple[Group, ...]:
    """Up to four groups; some hold nothing, some models are on none."""
    devices = itertools.count()
    made: list[Group] = []
    for config in draw(st.lists(st.sampled_from(CONFIGS), min_size=1, max_size=4)):
        able = [model.name for model in fleet.models if profiles.find(model.profile, config) is not None]
        held = draw(st.lists(st.sampled_from(able), unique=True)) if able else []
        own = tuple(itertools.islice(devices, config.devices))
        made.append(Group(intra_op=config.intra_op, inter_op=config.inter_op, devices=own, models=tuple(held)))
    return tuple(made)


@st.composite
def workloads(draw: st.DrawFn, fleet: Fleet, *, unit_s: float, most: int = 40) -> Workload:
    """Requests for the fleet's models and for one that is in no fleet, some without a deadline."""
    names = (*(model.name for model in fleet.models), UNKNOWN)
    request = st.tuples(st.integers(0, 30), st.integers(0, len(names) - 1), st.integers(1, 25) | st.just(np.inf))
    requests = sorted(draw(st.lists(request, max_size=most)), key=lambda each: each[0])
    return Workload(
        arrival_s=np.array([unit_s * tick for tick, _, _ in requests]),
        model=np.array([model for _, model, _ in requests], np.int32),
        model_names=draw(st.permutations(names)),
        slo_s=np.array([unit_s * ticks for _, _, ticks in requests]),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Sums of quarters are exact, those of tenths are not."""
    unit_s = draw(st.sampled_from((0.25, 0.1)))
    max_batch = draw(st.sampled_from((1, 2, 4)))
    fleet, profiles = draw(fleets(unit_s=unit_s, max_batch=max_batch))
    placement = Placement(groups=draw(groups(fleet, profiles)))
    starts = sorted(draw(st.sets(st.integers(1, 25), max_size=2)))
    if starts:
        later = (Segment(start_s=unit_s * start, groups=draw(groups(fleet, profiles))) for start in starts)
        placement = dataclasses.replace(placement, segments=(Segment(start_s=0.0, groups=placement.groups), *later))
    return Case(
        profiles=profiles,
        fleet=fleet,
        placement=placement,
        workload=draw(workloads(fleet, unit_s=unit_s)),
        overhead_s=draw(st.sampled_from((0.0, 0.011, 0.25))),
        max_batch=max_batch,
    )
