"""How long does a scrape of /metrics take, and for how long does it hold up the loop?

300 models, each on 4 of 64 emulated groups of two stages; every model has served, so that no histogram is empty. While
a thread makes the text, the loop is asked to wake every millisecond; by how much it is late tells how long it was held
up, by what only it may read and by the thread, with which it takes turns. `idle` is the same without a scrape.

    python bench/scrape.py [--models 300] [--groups 64] [--repeats 15] [-o FILE]
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from record import circumstances, write

from jaxserve import Engine, Model, Placement, TensorSpec
from jaxserve.cluster import EmulatedCluster
from jaxserve.plans import Group, Profile, Profiles
from jaxserve.protocols.loop import loop_factory
from jaxserve.server.health import Health
from jaxserve.server.prometheus import Prometheus

STAGES = 2
HOLDERS = 4
EVERY_S = 1e-3
ACCEPT = "application/openmetrics-text;version=1.0.0"


def engine_of(models: int, groups: int) -> Engine:
    """An engine on emulated groups that are quick."""
    nothing = (0.0,) * STAGES
    row = Profile(
        intra_op=1,
        inter_op=STAGES,
        batch_size=1,
        stage_latency_s=(1e-4,) * STAGES,
        stage_weight_bytes=nothing,
        stage_activation_bytes=nothing,
    )
    made = [
        Model.from_function(f"model-{index:03}", lambda x: x, inputs={"x": TensorSpec(("batch", 4), "float32")})
        for index in range(models)
    ]
    held: list[list[str]] = [[] for _ in range(groups)]
    for index, model in enumerate(made):
        for holder in range(min(HOLDERS, groups)):
            held[(index + holder * (groups // HOLDERS or 1)) % groups].append(model.name)
    placed = tuple(
        Group(inter_op=STAGES, devices=tuple(range(index * STAGES, (index + 1) * STAGES)), models=tuple(names))
        for index, names in enumerate(held)
    )
    profiles = Profiles(device_kind="none", memory_bytes=0.0, models={model.name: (row,) for model in made})
    return Engine(made, placement=Placement(groups=placed), cluster=EmulatedCluster(placed, profiles))


async def lateness_s(work: Awaitable[object]) -> tuple[float, list[float]]:
    """Seconds that `work` takes, and by how many the loop woke too late meanwhile, each time."""
    began_s = woke_s = time.perf_counter()

    async def until_done() -> float:
        await work
        return time.perf_counter() - began_s

    task = asyncio.create_task(until_done())
    late_s: list[float] = []
    while not task.done():
        await asyncio.sleep(EVERY_S)
        before_s, woke_s = woke_s, time.perf_counter()
        late_s.append(woke_s - before_s - EVERY_S)
    return await task, late_s


async def measure(models: int, groups: int, repeats: int) -> dict[str, Any]:
    """Seconds of scrapes in both formats, and of what the loop does and waits meanwhile."""
    async with engine_of(models, groups) as engine, Health(engine) as health:
        inputs = {"x": np.zeros((1, 4), np.float32)}
        for name in engine.models:
            await asyncio.gather(*(engine.infer(name, inputs) for _ in range(5)))
        prometheus = Prometheus(engine, health)
        makers: dict[str, Callable[[], Awaitable[object]]] = {
            "text": lambda: prometheus.exposition(""),
            "OpenMetrics": lambda: prometheus.exposition(ACCEPT),
            "idle": lambda: asyncio.sleep(0.5),
        }
        times_s: dict[str, list[float]] = {name: [] for name in makers}
        late_s: dict[str, list[float]] = {name: [] for name in makers}
        longest_s: dict[str, list[float]] = {name: [] for name in makers}
        reading_s: list[float] = []
        for _ in range(repeats):
            for name, make in makers.items():
                took_s, late = await lateness_s(make())
                times_s[name].append(took_s)
                late_s[name] += late
                longest_s[name].append(max(late))
            began_s = time.perf_counter()
            prometheus.collect()  # it reads at once, and makes the families when they are asked for
            reading_s.append(time.perf_counter() - began_s)
        body, _ = await prometheus.exposition("")
    return {
        "samples": sum(not line.startswith(b"#") for line in body.splitlines()),
        "bytes": len(body),
        "reading_on_the_loop_s": statistics.median(reading_s),
        "median_s": {name: statistics.median(each) for name, each in times_s.items()},
        "max_s": {name: max(each) for name, each in times_s.items()},
        "late_median_s": {name: statistics.median(each) for name, each in late_s.items()},
        "longest_late_median_s": {name: statistics.median(each) for name, each in longest_s.items()},
        "longest_late_s": {name: max(each) for name, each in longest_s.items()},
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        results = runner.run(measure(options.models, options.groups, options.repeats))
    print(f"{results['samples']} samples, {results['bytes'] / 1e6:.1f} MB")
    print(f"reading on the loop: {1e3 * results['reading_on_the_loop_s']:.1f} ms")
    columns = {
        "median": "median_s",
        "most": "max_s",
        "wakes late": "late_median_s",
        "longest in a scrape": "longest_late_median_s",
        "longest": "longest_late_s",
    }
    print(" " * 11 + "".join(f" {name:>19}" for name in columns))
    for name in results["median_s"]:
        print(f"{name:11}" + "".join(f" {1e3 * results[key][name]:16.1f} ms" for key in columns.values()))
    write(options.output, circumstances() | {"models": options.models, "groups": options.groups} | results)


if __name__ == "__main__":
    main()
