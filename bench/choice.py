"""Which rule should choose a request's group? Each of `scheduling/dispatch.py`, on the same requests.

(a) On the recorded placement cases: what policy `alpaserve` plans for `train.npz`, judged on `heldout.npz`. All groups
    of a model have one shape there or nearly so, and the rules differ little.
(b) Where a model is on groups of different shapes: six models of the cases' profiles, each on every group, arrivals of
    a Gamma process with CV 3 at 0.6, 0.9 and 1.3 of what the groups could serve, deadlines 2 and 5 times the latency on
    one device; the mean of four seeds.

    python bench/choice.py [--cases tests/golden/placement] [-o FILE]
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from record import circumstances, write

import jaxserve
from jaxserve.plans import Fleet, FleetModel, Group, ParallelConfig, Placement, Profile, Profiles
from jaxserve.scheduling import DISPATCHES
from jaxserve.workload import Workload

OVERHEAD_S = 0.011
SEEDS = 4
REQUESTS = 4000
CV = 3.0
ONE_DEVICE = ParallelConfig(1, 1)
SHAPES = (
    ((1, 1), (1, 1), (1, 1), (1, 1), (4, 1)),
    ((1, 1), (1, 1), (1, 1), (1, 1), (1, 4)),
    ((4, 1), (1, 4)),
    ((1, 1), (1, 1), (1, 2), (2, 1), (4, 1), (1, 4)),
)


def judge(**options: Any) -> dict[str, float]:
    """SLO attainment by each rule, in percent."""
    return {
        name: 100 * jaxserve.simulate(dispatch=name, overhead_s=OVERHEAD_S, **options).slo_attainment
        for name in DISPATCHES
    }


def recorded(case: Path, profiles: Profiles) -> dict[str, float]:
    """A case of (a)."""
    fleet = Fleet.load(case / "fleet.json")
    train, heldout = Workload.load(case / "train.npz"), Workload.load(case / "heldout.npz")
    plan = jaxserve.plan(
        profiles=profiles, fleet=fleet, workload=train, policy="alpaserve", overhead_s=OVERHEAD_S, bound=False
    )
    return judge(profiles=profiles, fleet=fleet, placement=plan.placement, workload=heldout)


def mixed(
    profiles: Profiles, shapes: tuple[tuple[int, int], ...], *, load: float, slo_scale: float
) -> dict[str, float]:
    """A case of (b)."""
    configs = [ParallelConfig(*shape) for shape in shapes]
    rows: dict[str, dict[ParallelConfig, Profile]] = {
        name: found
        for name in profiles.models
        if ONE_DEVICE in (found := _rows(profiles, name)) and all(config in found for config in configs)
    }
    names = sorted(rows)[:3] * 2
    models = tuple(
        FleetModel(name=f"m{index}", profile=name, slo_s=slo_scale * sum(rows[name][ONE_DEVICE].stage_latency_s))
        for index, name in enumerate(names)
    )
    groups: list[Group] = []
    devices = 0
    for config in configs:
        own = tuple(range(devices, devices + config.devices))
        groups.append(
            Group(intra_op=config.intra_op, inter_op=config.inter_op, devices=own, models=tuple(m.name for m in models))
        )
        devices += config.devices
    heaviest = 1e15  # memory is not what this is about
    fleet = Fleet(devices=devices, devices_per_host=devices, memory_bytes=heaviest, models=models)
    capacity_hz = sum(
        1 / statistics.mean(max(rows[name][config].stage_latency_s) for name in names) for config in configs
    )
    found = []
    for seed in range(SEEDS):
        generator = np.random.default_rng(seed)
        shape = 1 / CV**2
        model = generator.integers(0, len(models), REQUESTS).astype(np.int32)
        workload = Workload(
            arrival_s=np.cumsum(generator.gamma(shape, 1 / (shape * load * capacity_hz), REQUESTS)),
            model=model,
            model_names=tuple(each.name for each in models),
            slo_s=np.array([each.slo_s for each in models])[model],
        )
        placement = Placement(groups=tuple(groups))
        found.append(judge(profiles=profiles, fleet=fleet, placement=placement, workload=workload))
    return {name: statistics.mean(each[name] for each in found) for name in DISPATCHES}


def _rows(profiles: Profiles, name: str) -> dict[ParallelConfig, Profile]:
    return {row.config: row for row in profiles.models[name] if row.batch_size == 1}


def show(what: str, found: dict[str, float]) -> None:
    """A line."""
    print(f"{what:58}", *(f"{name} {percent:6.2f}  " for name, percent in found.items()), flush=True)


def main() -> None:
    """Runs all cases and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, default=Path("tests/golden/placement"))
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    profiles = Profiles.load(arguments.cases / "profiles.json")
    results: dict[str, dict[str, float]] = {}
    for case in sorted(each for each in arguments.cases.iterdir() if (each / "fleet.json").exists()):
        results[case.name] = recorded(case, profiles)
        show(case.name, results[case.name])
    for shapes in SHAPES:
        for slo_scale in (2.0, 5.0):
            for load in (0.6, 0.9, 1.3):
                what = f"{' '.join(f'{a}x{b}' for a, b in shapes)}, SLO {slo_scale:g}, load {load}"
                results[what] = mixed(profiles, shapes, load=load, slo_scale=slo_scale)
                show(what, results[what])
    write(arguments.output, {"circumstances": circumstances(seed=0), "slo_attainment_percent": results})


if __name__ == "__main__":
    main()
