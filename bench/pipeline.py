"""Do the stages of a pipeline overlap? Four stages that sleep 20 ms each take twelve requests.

Ideal: (12 + 4 - 1) x 20 ms = 0.300 s; one after the other: 12 x 4 x 20 ms = 0.960 s. The stages sleep in a callback, so
that a machine with fewer cores than stages shows the overlap all the same. A sleep takes longer than asked for, and a
callback costs something: the table shows what one such stage takes alone, and the ideal for stages of that length.

    python bench/pipeline.py [--repeats 7] [-o FILE]
"""

import argparse
import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from record import circumstances, write

from jaxserve import Engine, Model, Placement, TensorSpec
from jaxserve.cli.devices import use_cpu_devices
from jaxserve.plans import Group

STAGES = 4
REQUESTS = 12
STAGE_S = 0.020
IDEAL_S = (REQUESTS + STAGES - 1) * STAGE_S
TARGET = 1.1


def sleep(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What a stage does."""
    time.sleep(STAGE_S)
    return x


def sleeper(x: jax.Array) -> jax.Array:
    """A function of four stages, each of which sleeps and adds one."""
    for stage in range(STAGES):
        with jax.named_scope(f"stage_{stage}"):
            x = jax.pure_callback(sleep, jax.ShapeDtypeStruct(x.shape, x.dtype), x) + 1
    return x


async def measure(repeats: int) -> dict[str, Any]:
    """Seconds for the twelve requests, and of one stage alone."""
    model = Model.from_function(
        "sleeper",
        sleeper,
        inputs={"x": TensorSpec(("batch", 8), "float32")},
        cuts=tuple(f"stage_{stage}" for stage in range(1, STAGES)),
    )
    group = Group(inter_op=STAGES, devices=tuple(range(STAGES)), models=("sleeper",))
    async with Engine([model], placement=Placement(groups=(group,))) as engine:
        walls_s: list[float] = []
        for _ in range(repeats):
            began_s = time.perf_counter()
            calls = [engine.infer("sleeper", {"x": np.full((1, 8), i, np.float32)}) for i in range(REQUESTS)]
            answers = await asyncio.gather(*calls)
            walls_s.append(time.perf_counter() - began_s)
            assert [answer["output"][0, 0] for answer in answers] == [i + STAGES for i in range(REQUESTS)]
        stage_s = engine.describe()[0]["latency_s"] / STAGES
    wall_s = statistics.median(walls_s)
    return {
        "wall_s": wall_s,
        "walls_s": walls_s,
        "ideal_s": IDEAL_S,
        "ratio": wall_s / IDEAL_S,
        "target_ratio": TARGET,
        "stage_alone_s": stage_s,
        "ratio_to_measured_stages": wall_s / (IDEAL_S / STAGE_S * stage_s),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    use_cpu_devices(STAGES)
    results = asyncio.run(measure(arguments.repeats))
    print(
        f"{REQUESTS} requests, {STAGES} stages of {1000 * STAGE_S:.0f} ms: {results['wall_s']:.3f} s, median of",
        end=" ",
    )
    print(f"{arguments.repeats}; {results['ratio']:.3f} x the ideal {IDEAL_S:.3f} s (target: at most {TARGET})")
    print(f"one stage alone takes {1000 * results['stage_alone_s']:.2f} ms;", end=" ")
    print(f"{results['ratio_to_measured_stages']:.3f} x the ideal for stages of that length")
    write(arguments.output, {"benchmark": "pipeline", **circumstances(), **results})


if __name__ == "__main__":
    main()
