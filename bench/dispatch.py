"""What does it cost to call a compiled model with many weights, and what does stacking them save?

A transformer of 12 layers so narrow that it computes next to nothing, on 1, 2 and 4 fake CPU devices, each in a fresh
process: microseconds of a call from numpy inputs to numpy outputs, of the same program with every weight an argument of
its own, and with biases and scales stacked. Then the sweep from which `jaxserve.runtime.weights` has its rule: 48
vectors that are added, or matrices that are multiplied, of growing size, apart and stacked.

    python bench/dispatch.py [--devices 1 2 4] [-o FILE]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import circumstances, write

LAYERS, WIDTH, LENGTH, BATCH = 12, 16, 8, 4
SWEEP_WEIGHTS = 48
SWEEP = {"added": (64, 1024, 16384, 65536), "multiplied": (8, 32, 64, 128)}
SECONDS = 0.6
SEED = 0


def microseconds(calls: dict[str, Callable[[], Any]], rounds: int = 10) -> dict[str, float]:
    """Median microseconds of each call; they take turns, so that what else the machine does falls on all alike."""
    medians: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            taken: list[float] = []
            end = time.perf_counter() + SECONDS / rounds
            while time.perf_counter() < end:
                began = time.perf_counter()
                call()
                taken.append(time.perf_counter() - began)
            medians[name].append(statistics.median(taken))
    return {name: round(min(each) * 1e6, 1) for name, each in medians.items()}


def transformer() -> Any:
    """The model, on one bucket."""
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    from jaxserve import Model, TensorSpec

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
            return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(WIDTH)(nn.LayerNorm()(x))))

    class Transformer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for layer in range(LAYERS):
                x = Layer(name=f"layers_{layer}")(x)
            return x

    module = Transformer()
    variables = jax.jit(module.init)(jax.random.key(SEED), jnp.ones((1, LENGTH, WIDTH)))
    spec = TensorSpec(("batch", LENGTH, WIDTH), "float32")
    return Model.from_linen("transformer", module, variables, inputs={"x": spec}, batch_sizes=(BATCH,))


def calls(devices: int) -> dict[str, Any]:
    """The transformer, with and without stacking."""
    import jax
    import numpy as np

    from jaxserve import runtime
    from jaxserve.plans import ParallelConfig
    from jaxserve.runtime.weights import STACK_BELOW_BYTES

    model = transformer()
    inputs = {"x": np.ones((BATCH, LENGTH, WIDTH), np.float32)}
    pipelines = {
        name: runtime.load(model, ParallelConfig(devices), jax.devices(), repeats=1, stack_below_bytes=bound)
        for name, bound in (("apart", 0), ("stacked", STACK_BELOW_BYTES))
    }
    found = microseconds(
        {
            name: lambda pipeline=pipeline: pipeline.fetch(0, pipeline.run(0, 0, pipeline.put(0, inputs)))
            for name, pipeline in pipelines.items()
        }
    )
    arguments = {name: pipeline.num_arrays for name, pipeline in pipelines.items()}
    return {"us": found, "arguments": arguments, "saved_us": round(found["apart"] - found["stacked"], 1)}


def sweep(devices: int) -> list[dict[str, Any]]:
    """Weights of growing size, apart and stacked."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    replicated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    generator = np.random.default_rng(SEED)

    def case(use: str, width: int) -> dict[str, Any]:
        shape = (width,) if use == "added" else (width, width)
        weights = [generator.normal(size=shape).astype(np.float32) for _ in range(SWEEP_WEIGHTS)]

        def chain(weights: Any, x: jax.Array) -> jax.Array:
            for weight in weights:
                x = jnp.tanh(x + weight if use == "added" else x @ weight)
            return x

        def stacked(stack: jax.Array, x: jax.Array) -> jax.Array:
            return chain([stack[place] for place in range(SWEEP_WEIGHTS)], x)

        def apart(*arguments: jax.Array) -> jax.Array:
            return chain(arguments[:-1], arguments[-1])

        x = jax.device_put(np.ones((BATCH, width), np.float32), split)
        leaves = [jax.device_put(weight, replicated) for weight in weights]
        stack = jax.device_put(np.stack(weights), replicated)
        shardings = ((replicated,) * SWEEP_WEIGHTS, (replicated,))
        many, one = (
            jax.jit(function, in_shardings=(*each, split), out_shardings=split).lower(*arguments, x).compile()
            for function, each, arguments in zip((apart, stacked), shardings, (leaves, [stack]), strict=True)
        )
        found = microseconds(
            {
                "apart": lambda: many(*leaves, x).block_until_ready(),
                "stacked": lambda: one(stack, x).block_until_ready(),
            }
        )
        saved = round((found["apart"] - found["stacked"]) / SWEEP_WEIGHTS, 2)
        return {"use": use, "bytes": weights[0].nbytes, **found, "saved_us_per_weight": saved}

    return [case(use, width) for use, widths in SWEEP.items() for width in widths]


def in_fresh_process(devices: int) -> dict[str, Any]:
    """Both measurements on so many fake devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, __file__, "--worker", "--devices", str(devices)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def show(results: dict[int, dict[str, Any]]) -> None:
    """Both tables."""
    print(f"{'devices':>7} {'arguments':>15} {'apart us':>9} {'stacked us':>10} {'saved us':>8}")
    for devices, result in results.items():
        model = result["model"]
        arguments = f"{model['arguments']['apart']} -> {model['arguments']['stacked']}"
        us = model["us"]
        print(f"{devices:>7} {arguments:>15} {us['apart']:>9} {us['stacked']:>10} {model['saved_us']:>8}")
    print(f"\n{'devices':>7} {'use':>10} {'bytes':>7} {'apart us':>9} {'stacked us':>10} {'saved us per weight':>19}")
    for devices, result in results.items():
        for row in result["sweep"]:
            cells = f"{row['use']:>10} {row['bytes']:>7} {row['apart']:>9} {row['stacked']:>10}"
            print(f"{devices:>7} {cells} {row['saved_us_per_weight']:>19}")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4], help="numbers of fake CPU devices")
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        (devices,) = arguments.devices
        print(json.dumps({"model": calls(devices), "sweep": sweep(devices)}))
        return
    results = {devices: in_fresh_process(devices) for devices in arguments.devices}
    show(results)
    write(arguments.output, {**circumstances(seed=SEED), "devices": results})


if __name__ == "__main__":
    main()
