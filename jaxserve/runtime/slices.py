"""What the slices of a program take on attached devices: the costs by which the inter-op pass cuts it.

Each slice is compiled and run by itself, on zeros, on the devices of one stage. Slices that lower to the same program,
as the layers of a transformer do, are compiled and run once.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxserve.parallel import StagePlan
from jaxserve.runtime.compiled import lower_alone

RUNS = 5


def measure_slices(
    plans: Sequence[StagePlan], *, devices: Sequence[Any], clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """The median seconds of each slice over a few runs, after one to warm up.

    Args:
        plans: of the slices.
        devices: of one stage.
        clock: seconds, ascending.
    """
    known: dict[str, float] = {}
    seconds: list[float] = []
    for plan in plans:
        lowered = lower_alone(plan, devices)
        text = lowered.text
        if text not in known:
            arguments = [jax.device_put(np.zeros(each.shape, each.dtype), lies) for each, lies in lowered.arguments]
            known[text] = _median_s(lowered.compile().call, arguments, clock)
        seconds.append(known[text])
    return seconds


def _median_s(call: Any, arguments: Sequence[jax.Array], clock: Callable[[], float]) -> float:
    jax.block_until_ready(call(*arguments))
    took: list[float] = []
    for _ in range(RUNS):
        start = clock()
        jax.block_until_ready(call(*arguments))
        took.append(clock() - start)
    return float(np.median(took))
