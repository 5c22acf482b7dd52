"""Measures what the cost model cannot look up: how much of a device's peaks programs reach, and what a launch costs.

Each measurement is a loop inside one compiled program. The seconds of a step are those of many steps less those of one,
divided by the difference, so that calling the program and waiting for it drop out. All devices run at once: those that
share cores or memory, as XLA's CPU devices do, are measured as they will be used.
"""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxserve.parallel.devices import Device, Link, device_kind

MOST_SECONDS = 3.0
_SECONDS_PER_LOOP = 0.02
_LEAST_STEPS, _MOST_STEPS = 8, 100
_RUNS = 3
_DTYPES = ("float32", "bfloat16", "float16")
_TINY = 8  # rows and columns of a matrix whose product costs nothing beside its launch
_TINY_PER_STEP = 32  # of those in one step: on a GPU each step of a loop waits for the host once

Step = Callable[[jax.Array, jax.Array], jax.Array]
"""From what the step before returned, and what the first one was given, to its like."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """What is measured on a backend: large enough to reach its peaks, small enough to take milliseconds.

    Attributes:
        matrices: rows and columns of square matrices.
        copied_bytes: of one array that is read and written; beyond any cache.
        reduced_bytes: of two arrays that are summed over the devices, on each.
    """

    matrices: tuple[int, int]
    copied_bytes: int
    reduced_bytes: tuple[int, int]


_CPU = _Sizes(matrices=(256, 512), copied_bytes=2**25, reduced_bytes=(2**12, 2**22))
_ACCELERATOR = _Sizes(matrices=(4096, 6144), copied_bytes=2**29, reduced_bytes=(2**12, 2**26))


def calibrate(
    devices: Sequence[Any], *, clock: Callable[[], float] = time.perf_counter, most_s: float = MOST_SECONDS
) -> Device:
    """The description of these devices, with measured constants in place of the described ones.

    Measured are `compute_efficiency` (the best of two sizes, the mean over dtypes), `memory_efficiency`, `overhead_s`
    and, of several devices, `inside_host`. An efficiency may exceed 1 where the described peak is too low, as on a CPU
    with more cores than the described one.

    Args:
        devices: `jax.Device`s of one kind, attached to this process and idle.
        clock: seconds, ascending.
        most_s: when these have passed, what has not been measured keeps its described value. What began is finished.

    Raises:
        ConfigError: no device of this kind is described.
    """
    described = device_kind(devices[0].device_kind)
    sizes = _CPU if described.backend == "cpu" else _ACCELERATOR
    end_s = clock() + most_s
    device = described
    for measure in (_with_overhead, _with_compute, _with_memory, _with_link):
        if clock() < end_s:
            device = measure(device, _Bench(devices, clock, end_s), sizes)
    return device


class _Bench:
    """Times programs that all devices run at once."""

    def __init__(self, devices: Sequence[Any], clock: Callable[[], float], end_s: float) -> None:
        self.count = len(devices)
        self._mesh = Mesh(np.array(devices), ("devices",))
        self._clock = clock
        self._end_s = end_s

    @property
    def late(self) -> bool:
        """Whether nothing more should begin."""
        return self._clock() >= self._end_s

    def step_s(self, step: Step, shape: tuple[int, ...], dtype: str = "float32") -> float:
        """Seconds of one `step` on an array of this shape, of which each device has its own.

        Its elements are 1 / columns, so that the products of such matrices stay such matrices.
        """
        spec = PartitionSpec("devices")

        @functools.partial(jax.shard_map, mesh=self._mesh, in_specs=(PartitionSpec(), spec), out_specs=spec)
        def steps(count: jax.Array, values: jax.Array) -> jax.Array:
            return lax.fori_loop(0, count, lambda _, value: step(value[0], values[0])[None], values)

        sharding = NamedSharding(self._mesh, spec)
        values = jax.jit(lambda: jnp.full((self.count, *shape), 1 / shape[-1], dtype), out_shardings=sharding)()
        program = jax.jit(steps)

        def run(count: int) -> float:
            began_s = self._clock()
            program(np.int32(count), values).block_until_ready()
            return self._clock() - began_s

        run(1)  # compiles
        once_s = run(1)
        more = min(_MOST_STEPS, max(_LEAST_STEPS, math.ceil(_SECONDS_PER_LOOP / once_s))) if once_s > 0 else _MOST_STEPS
        # What else the machine does only adds to a run: the shortest is the nearest.
        pairs = [(run(1), run(1 + more)) for _ in range(_RUNS)]
        return max(min(many for _, many in pairs) - min(one for one, _ in pairs), 0.0) / more


def _with_overhead(device: Device, bench: _Bench, _: _Sizes) -> Device:
    """A chain of products that nothing can fuse."""

    def products(value: jax.Array, first: jax.Array) -> jax.Array:
        for _ in range(_TINY_PER_STEP):
            value = value @ first
        return value

    return dataclasses.replace(device, overhead_s=bench.step_s(products, (_TINY, _TINY)) / _TINY_PER_STEP)


def _with_memory(device: Device, bench: _Bench, sizes: _Sizes) -> Device:
    """One elementwise operation, which reads and writes."""
    step_s = bench.step_s(lambda value, _: value + 1.0, (sizes.copied_bytes // 4,)) - device.overhead_s
    if step_s <= 0:
        return device
    reached = 2 * sizes.copied_bytes / step_s
    return dataclasses.replace(device, memory_efficiency=reached / device.memory_bandwidth_bytes_per_s)


def _with_link(device: Device, bench: _Bench, sizes: _Sizes) -> Device:
    """All-reduces of two sizes: their difference is the bandwidth's, the rest latency; as `collective_s` has it."""
    if bench.count == 1:
        return device

    def all_reduce(value: jax.Array, first: jax.Array) -> jax.Array:
        # What all have in common needs no all-reduce, and XLA would see it: each adds its own array to the sum.
        return lax.psum(value, "devices") / bench.count + first

    small, large = sizes.reduced_bytes
    small_s, large_s = (bench.step_s(all_reduce, (nbytes // 4,)) for nbytes in (small, large))
    if large_s <= small_s:
        return device
    rounds = 2 * (bench.count - 1)
    bandwidth = rounds / bench.count * (large - small) / (large_s - small_s)
    latency_s = (small_s - device.overhead_s) / rounds - small / bench.count / bandwidth
    return dataclasses.replace(device, inside_host=Link(bandwidth_bytes_per_s=bandwidth, latency_s=max(latency_s, 0.0)))


def _with_compute(device: Device, bench: _Bench, sizes: _Sizes) -> Device:
    """Products of square matrices of the dtypes that the device has."""
    reached: list[float] = []
    for dtype in _DTYPES:
        if dtype not in device.peak_flops_per_s or (reached and bench.late):
            continue
        steps_s = {size: bench.step_s(jnp.matmul, (size, size), dtype) for size in sizes.matrices}
        rates = [2.0 * size**3 / step_s for size, step_s in steps_s.items() if step_s > 0]
        if rates:
            reached.append(max(rates) / device.peak(dtype))
    return dataclasses.replace(device, compute_efficiency=statistics.fmean(reached)) if reached else device
