"""What models take that need no device: plain functions of numpy arrays, called where the engine runs."""

import statistics
import time
from collections.abc import Sequence

import numpy as np

from jaxserve.model import Bucket, Model
from jaxserve.model.signature import numpy_dtype

_REPEATS = 5


def host_latencies_s(model: Model) -> Sequence[float]:
    """Median seconds of a call of `model`, for each bucket."""
    return [_median_s(model, bucket) for bucket in model.buckets]


def _median_s(model: Model, bucket: Bucket) -> float:
    sizes = bucket.sizes
    inputs = {name: np.zeros(spec.resolve(sizes), numpy_dtype(spec.dtype)) for name, spec in model.inputs.items()}
    times: list[float] = []
    for _ in range(_REPEATS):
        began_s = time.perf_counter()
        model.call_on_host(inputs)
        times.append(time.perf_counter() - began_s)
    return statistics.median(times)
