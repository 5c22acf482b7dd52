"""The group of the models that need no device: plain functions of numpy arrays, called where the engine runs."""

import statistics
import time

import numpy as np

from jaxserve.cluster.seam import Job
from jaxserve.model import Bucket, Model
from jaxserve.model.signature import numpy_dtype
from jaxserve.scheduling import Latencies

_REPEATS = 5


def run_on_host(model: Model, job: Job) -> Exception | None:
    """Runs a job on its inputs, as they are, without padding; what the model raised."""
    try:
        job.outputs = model.call_on_host(job.inputs)
    except Exception as error:  # whatever a model raises is the answer to its request
        return error
    return None


def host_latencies(model: Model) -> Latencies:
    """Median seconds of a call of `model`, for each bucket."""
    return tuple((_median_s(model, bucket),) for bucket in model.buckets)


def _median_s(model: Model, bucket: Bucket) -> float:
    sizes = bucket.sizes
    inputs = {name: np.zeros(spec.resolve(sizes), numpy_dtype(spec.dtype)) for name, spec in model.inputs.items()}
    times: list[float] = []
    for _ in range(_REPEATS):
        began_s = time.perf_counter()
        model.call_on_host(inputs)
        times.append(time.perf_counter() - began_s)
    return statistics.median(times)
