"""For how long does a scrape of /metrics hold up the loop, and would it with prometheus_client's own text?

300 models, each on 4 of 64 emulated groups of two stages; every model has served, so that no histogram is empty. The
text is made from start to end as for a scraper, by turns with prometheus_client's of the same families.

    python bench/scrape.py [--models 300] [--groups 64] [--repeats 15] [-o FILE]
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from record import circumstances, write

from jaxserve import Engine, Model, Placement, TensorSpec
from jaxserve.cluster import EmulatedCluster
from jaxserve.plans import Group, Profile, Profiles
from jaxserve.server.health import Health
from jaxserve.server.prometheus import Prometheus

STAGES = 2
HOLDERS = 4
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


async def measure(models: int, groups: int, repeats: int) -> dict[str, Any]:
    """Seconds of a scrape, of both texts in both formats."""
    async with engine_of(models, groups) as engine, Health(engine) as health:
        inputs = {"x": np.zeros((1, 4), np.float32)}
        for name in engine.models:
            await asyncio.gather(*(engine.infer(name, inputs) for _ in range(5)))
        prometheus = Prometheus(engine, health)
        registry = CollectorRegistry()
        registry.register(prometheus)
        makers: dict[str, Callable[[], object]] = {
            "text": lambda: prometheus.exposition(""),
            "text, prometheus_client": lambda: generate_latest(registry),
            "OpenMetrics": lambda: prometheus.exposition(ACCEPT),
            "OpenMetrics, prometheus_client": lambda: openmetrics.generate_latest(registry),
            "of this, observing the engine": engine.observe,
        }
        times_s: dict[str, list[float]] = {name: [] for name in makers}
        for _ in range(repeats):
            for name, make in makers.items():
                began_s = time.perf_counter()
                make()
                times_s[name].append(time.perf_counter() - began_s)
        body, _ = prometheus.exposition("")
    return {
        "samples": sum(not line.startswith(b"#") for line in body.splitlines()),
        "bytes": len(body),
        "median_s": {name: statistics.median(each) for name, each in times_s.items()},
        "max_s": {name: max(each) for name, each in times_s.items()},
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    results = asyncio.run(measure(options.models, options.groups, options.repeats))
    print(f"{results['samples']} samples, {results['bytes'] / 1e6:.1f} MB")
    print(f"{'':32} {'median':>9} {'most':>9}")
    for name, median_s in results["median_s"].items():
        print(f"{name:32} {1e3 * median_s:6.1f} ms {1e3 * results['max_s'][name]:6.1f} ms")
    write(options.output, circumstances() | {"models": options.models, "groups": options.groups} | results)


if __name__ == "__main__":
    main()
