"""Does the simulator foretell what the engine does?

One trace goes through the engine, with emulated groups, in real time, and through the simulator: 1,000 requests per
second, Gamma arrivals of CV 4 at twelve models whose popularity follows a power law, each on four of 16 groups, half of
them of one stage and half of two; deadlines of two to five times the latency; batches of up to eight.

The simulator's figures are those of `jaxserve.simulate`, whose two engines must agree; its predicted finishes are what
a `Scheduler` says as `Reference` drives it. The engine's predicted finish is what it notes for a request as it is
submitted. The mean is over the requests that were admitted, from their arrival on.

The engine sees a request when the event loop comes to it, so later than it was due; the last lines say by how much, and
what the reference says of the trace with the arrivals as the engine saw them: what still differs then is the engine's.
"answered" counts what the engine answered and did not let expire; "seen in time" what its caller had within the
deadline by the wall clock, from when it was due: the lag of arrivals and of answers counts there, which no simulation
knows of.

Targets, for "answered": SLO attainment differs by at most 1 point, the mean predicted finish by at most 2 ms.

    python bench/engine_simulator.py [--seconds 60] [--rate 1000] [--dispatch earliest-finish] [--quick] [-o FILE]
"""

import argparse
import asyncio
import dataclasses
import functools
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from record import circumstances, write

from jaxserve import Engine, Model, Placement, TensorSpec, simulate
from jaxserve.cluster import EmulatedCluster
from jaxserve.errors import InferenceError
from jaxserve.plans import Fleet, FleetModel, Group, ParallelConfig, Profile, Profiles
from jaxserve.protocols.loop import loop_factory
from jaxserve.request import Done, Request
from jaxserve.scheduling import DISPATCHES, Grid, Scheduler
from jaxserve.simulator import Reference
from jaxserve.workload import Workload, synthetic

GROUPS, MODELS, REPLICAS = 16, 12, 4
GROWTH = {1: 1.0, 2: 1.25, 4: 1.8, 8: 3.0}
"""What a batch of each size takes, by what one request takes."""
MAX_BATCH = max(GROWTH)
CONFIGS = (ParallelConfig(1, 1), ParallelConfig(1, 2))
CV, SPLIT = 4.0, "power-law:0.5"
SLO_SCALES = (2.0, 3.0, 4.0, 5.0)
RATE = 1000.0
TARGET_ATTAINMENT, TARGET_FINISH_S = 0.01, 0.002
SEED = 0

Floats = npt.NDArray[np.float64]
X = np.ones((1, 4), np.float32)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is served, on what."""

    profiles: Profiles
    fleet: Fleet
    placement: Placement

    @classmethod
    def make(cls) -> "World":
        """Models of 8 to 30 ms, each on two groups of either kind."""
        rng = np.random.default_rng(SEED)
        names = [f"m{index}" for index in range(MODELS)]
        alone_s = np.linspace(0.008, 0.030, MODELS)
        rng.shuffle(alone_s)
        rows = {
            name: tuple(
                profile(config, size, growth * seconds) for config in CONFIGS for size, growth in GROWTH.items()
            )
            for name, seconds in zip(names, alone_s.tolist(), strict=True)
        }
        held: list[list[str]] = [[] for _ in range(GROUPS)]
        for index, name in enumerate(names):
            for replica in range(REPLICAS):  # dealt in turns, so that every group holds three
                held[(index * REPLICAS + replica * 5) % GROUPS].append(name)
        groups: list[Group] = []
        for index, models in enumerate(held):
            stages = 1 + index % len(CONFIGS)
            devices = tuple(range(2 * index, 2 * index + stages))
            groups.append(Group(inter_op=stages, devices=devices, models=tuple(models)))
        models = tuple(
            FleetModel(name=name, profile=name, slo_s=SLO_SCALES[index % len(SLO_SCALES)] * float(alone_s[index]))
            for index, name in enumerate(names)
        )
        return cls(
            profiles=Profiles(device_kind="emulated", memory_bytes=1.0, models=rows),
            fleet=Fleet(devices=2 * GROUPS, devices_per_host=2 * GROUPS, memory_bytes=1.0, models=models),
            placement=Placement(groups=tuple(groups)),
        )

    def workload(self, rate: float, seconds: float) -> Workload:
        """The trace."""
        return synthetic(
            model_names=[model.name for model in self.fleet.models],
            slo_s=[model.slo_s for model in self.fleet.models],
            rate=rate,
            cv=CV,
            duration_s=seconds,
            split=SPLIT,
            rng=np.random.default_rng(SEED + 1),
        )

    def latencies(self, group: int, model: str) -> tuple[tuple[float, ...], ...]:
        """What the stages of a model take on a group, for each batch size."""
        config = self.placement.groups[group].config
        return tuple(row.stage_latency_s for row in self.profiles.models[model] if row.config == config)


def profile(config: ParallelConfig, batch_size: int, latency_s: float) -> Profile:
    """A row; two stages together take 5 % longer than one, and the first a little longer than the second."""
    shares = (1.0,) if config.inter_op == 1 else (0.55, 0.50)
    nothing = (0.0,) * config.inter_op
    return Profile(
        intra_op=config.intra_op,
        inter_op=config.inter_op,
        batch_size=batch_size,
        stage_latency_s=tuple(share * latency_s for share in shares),
        stage_weight_bytes=nothing,
        stage_activation_bytes=nothing,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What became of each request, [requests].

    Attributes:
        arrival_s: when it came, from the start of the trace.
        predicted_s: what was predicted as it was admitted, from its arrival on; NaN where it was refused.
        answered: whether it was answered.
        in_time: whether its caller had the answer by its deadline.
    """

    arrival_s: Floats
    predicted_s: Floats
    answered: npt.NDArray[np.bool_]
    in_time: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, arrival_s: Floats) -> "Seen":
        """Of these requests nothing is known yet."""
        no = np.zeros(len(arrival_s), np.bool_)
        return cls(arrival_s=arrival_s.copy(), predicted_s=np.full(len(no), np.nan), answered=no, in_time=no.copy())

    def summary(self) -> dict[str, float]:
        """Shares and the mean prediction."""
        return {
            "admitted": float(np.isfinite(self.predicted_s).mean()),
            "slo_attainment": float(self.answered.mean()),
            "seen_in_time": float(self.in_time.mean()),
            "predicted_finish_s": float(np.nanmean(self.predicted_s)),
        }


def by_reference(world: World, workload: Workload, dispatch: str) -> Seen:
    """The scheduler, driven by the reference simulator, and what it said of each request."""
    scheduler = Scheduler(dispatch=DISPATCHES[dispatch])
    for group in world.placement.groups:
        index = scheduler.add_group(group.inter_op)
        for name in group.models:
            scheduler.place(index, name, world.latencies(index, name), Grid(tuple(GROWTH), max_batch=MAX_BATCH))
    driver = Reference(scheduler)
    arrivals: list[float] = workload.arrival_s.tolist()
    slos: list[float] = workload.slo_s.tolist()
    for id, model in enumerate(workload.model.tolist()):
        name = workload.model_names[model]
        driver.arrive(Request(id=id, model=name, arrival_s=arrivals[id], slo_s=slos[id]))
    driver.drain()
    seen = Seen.of(workload.arrival_s)
    for id, answer in driver.answers.items():
        if answer.admitted is not None:
            seen.predicted_s[id] = answer.admitted.predicted_finish_s - arrivals[id]
        seen.answered[id] = isinstance(answer.outcome, Done)
    seen.in_time[:] = seen.answered
    return seen


class Clock:
    """The engine's clock: real time, which stands still while a request is submitted, so that its arrival is known."""

    def __init__(self) -> None:
        self.held_s: float | None = None

    def __call__(self) -> float:
        """Seconds."""
        return time.monotonic() if self.held_s is None else self.held_s


async def by_engine(world: World, workload: Workload, dispatch: str) -> tuple[Seen, dict[str, float]]:
    """The trace in real time; what became of it, and of the event loop."""
    clock = Clock()
    seen = Seen.of(workload.arrival_s)
    dues: list[float] = workload.arrival_s.tolist()
    slos: list[float] = workload.slo_s.tolist()
    models = [
        Model.from_function(
            model.name, lambda x: x, inputs={"x": TensorSpec(("batch", 4), "float32")}, batch_sizes=tuple(GROWTH)
        )
        for model in world.fleet.models
    ]
    cluster = EmulatedCluster(world.placement.groups, world.profiles)
    async with Engine(
        models, placement=world.placement, cluster=cluster, dispatch=dispatch, max_batch=MAX_BATCH, clock=clock
    ) as engine:
        began_s = time.monotonic() + 0.1

        def settle(id: int, result: dict[str, Any] | InferenceError) -> None:
            if not isinstance(result, InferenceError):
                seen.answered[id] = True
                seen.in_time[id] = time.monotonic() - began_s <= dues[id] + slos[id]

        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        for id, model in enumerate(workload.model.tolist()):
            ahead_s = began_s + dues[id] - time.monotonic()
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
            elif id % 64 == 0:
                await asyncio.sleep(0)  # where it is behind, the engine must not starve
            clock.held_s = now_s = time.monotonic()
            ticket = engine.submit(
                workload.model_names[model], {"x": X}, deadline_s=slos[id], on_settled=functools.partial(settle, id)
            )
            seen.arrival_s[id] = now_s - began_s
            if ticket >= 0:
                seen.predicted_s[id] = engine._pending[ticket].predicted_finish_s - now_s
            clock.held_s = None
        wall_s, cpu_s = time.perf_counter() - wall_s, time.thread_time() - cpu_s
        await engine.drain()
        counted = engine.status()["models"].values()
    late_s = seen.arrival_s - workload.arrival_s
    return seen, {
        "arrival_late_mean_s": float(late_s.mean()),
        "arrival_late_p99_s": float(np.percentile(late_s, 99)),
        "arrival_late_max_s": float(late_s.max()),
        "loop_busy_share": cpu_s / wall_s,
        "rows_per_batch": sum(each["served"] for each in counted) / max(1, sum(each["batches"] for each in counted)),
    }


def compare(world: World, workload: Workload, dispatch: str) -> dict[str, Any]:
    """Every way through the trace."""
    simulated = {
        engine: simulate(
            profiles=world.profiles,
            fleet=world.fleet,
            placement=world.placement,
            workload=workload,
            dispatch=dispatch,
            max_batch=MAX_BATCH,
            engine=engine,
        )
        for engine in ("reference", "fast")
    }
    print("the engine, in real time ...", file=sys.stderr)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        engine, loop = runner.run(by_engine(world, workload, dispatch))
    reference = by_reference(world, workload, dispatch)
    retold = by_reference(world, dataclasses.replace(workload, arrival_s=engine.arrival_s), dispatch)
    both = np.isfinite(retold.predicted_s) & np.isfinite(engine.predicted_s)
    return {
        "requests": len(workload),
        "simulate": {name: result.slo_attainment for name, result in simulated.items()},
        "simulate_busy": float(np.mean(simulated["reference"].busy)),
        "reference": reference.summary(),
        "engine": engine.summary(),
        "retold": retold.summary(),
        "loop": loop,
        "attainment_difference": engine.summary()["slo_attainment"] - simulated["reference"].slo_attainment,
        "predicted_difference_s": engine.summary()["predicted_finish_s"] - reference.summary()["predicted_finish_s"],
        "decided_otherwise": int((np.isfinite(retold.predicted_s) != np.isfinite(engine.predicted_s)).sum()),
        "predicted_otherwise": int((np.abs((retold.predicted_s - engine.predicted_s)[both]) > 1e-6).sum()),
        "target_attainment": TARGET_ATTAINMENT,
        "target_predicted_s": TARGET_FINISH_S,
    }


def show(results: dict[str, Any]) -> None:
    """The table and the targets."""
    simulated, loop = results["simulate"], results["loop"]
    print(
        f"{results['requests']} requests; groups busy {100 * results['simulate_busy']:.0f} % by the simulator;", end=" "
    )
    print(f"{loop['rows_per_batch']:.2f} requests in a batch of the engine")
    print(f"{'':<34}{'admitted %':>11}{'answered %':>12}{'seen in time %':>16}{'predicted finish ms':>21}")
    for name, attainment in simulated.items():
        print(f"{'simulate, engine ' + name:<34}{'':>11}{100 * attainment:>12.3f}")
    for name, text in (
        ("reference", "reference and scheduler"),
        ("engine", "engine, real time"),
        ("retold", "reference, arrivals as they came"),
    ):
        row = results[name]
        print(
            f"{text:<34}{100 * row['admitted']:>11.3f}{100 * row['slo_attainment']:>12.3f}"
            f"{100 * row['seen_in_time']:>16.3f}{1e3 * row['predicted_finish_s']:>21.3f}"
        )
    print(f"\narrivals late by {1e3 * loop['arrival_late_mean_s']:.3f} ms on average,", end=" ")
    print(f"p99 {1e3 * loop['arrival_late_p99_s']:.2f}, at most {1e3 * loop['arrival_late_max_s']:.2f};", end=" ")
    print(f"loop busy {100 * loop['loop_busy_share']:.0f} %")
    print(f"of the arrivals as they came, the engine admits {results['decided_otherwise']} otherwise than the", end=" ")
    print(f"reference, and predicts {results['predicted_otherwise']} otherwise by more than 1 µs")
    if simulated["reference"] != simulated["fast"]:
        print("the two engines of `simulate` DIFFER")
    difference, limit = results["attainment_difference"], TARGET_ATTAINMENT
    met = "met" if abs(difference) <= limit else "MISSED"
    print(f"SLO attainment differs by {100 * difference:+.3f} points   target within {100 * limit:g}: {met}")
    difference, limit = results["predicted_difference_s"], TARGET_FINISH_S
    met = "met" if abs(difference) <= limit else "MISSED"
    print(f"mean predicted finish differs by {1e3 * difference:+.3f} ms   target within {1e3 * limit:g}: {met}")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the trace, which the engine takes in real time")
    parser.add_argument("--rate", type=float, default=RATE, help="requests per second, all models together")
    parser.add_argument("--dispatch", choices=DISPATCHES, default="earliest-finish", help="how groups are chosen")
    parser.add_argument("--quick", action="store_true", help="five seconds, to see that it runs")
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    seconds = 5.0 if arguments.quick else arguments.seconds
    world = World.make()
    results = {
        "benchmark": "engine_simulator",
        **circumstances(seed=SEED),
        "seconds": seconds,
        "rate": arguments.rate,
        "cv": CV,
        "dispatch": arguments.dispatch,
        **compare(world, world.workload(arguments.rate, seconds), arguments.dispatch),
    }
    show(results)
    write(arguments.output, results)


if __name__ == "__main__":
    main()
