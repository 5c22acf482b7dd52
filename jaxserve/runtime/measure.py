"""How long each stage of a loaded pipeline takes: to run, for the rows of the profile, and to be put on its devices."""

import itertools
import statistics
import time
from collections.abc import Callable

import numpy as np

from jaxserve.runtime.pipeline import Pipeline

WARM_UP_RUNS = 2
LEAST_RUNS = 3
MOST_RUNS = 100
MOST_SECONDS_PER_STAGE = 0.3


def measure_stages(
    pipeline: Pipeline, bucket: int, *, repeats: int | None = None, clock: Callable[[], float] = time.perf_counter
) -> np.ndarray:
    """Seconds of each stage in each run, as an array of [runs, stages], on inputs of zeros.

    The first stage's time includes the way of the inputs to its devices, the last one's that of the outputs back.

    Args:
        pipeline: the loaded model.
        bucket: index of the bucket.
        repeats: number of runs; unless given, up to 100, but fewer when they take longer than 0.3 s for each stage.
        clock: seconds, ascending.
    """
    inputs = {name: np.zeros(shape, dtype) for name, (shape, dtype) in pipeline.model.padded_inputs(bucket).items()}
    most_s = MOST_SECONDS_PER_STAGE * pipeline.num_stages
    end = clock() + most_s
    for _ in range(WARM_UP_RUNS):
        _run_once(pipeline, bucket, inputs, clock)
        if clock() > end:
            break  # so slow that a second time would not warm it further
    end = clock() + most_s
    runs: list[list[float]] = []
    while len(runs) < (repeats or LEAST_RUNS) or (repeats is None and len(runs) < MOST_RUNS and clock() < end):
        runs.append(_run_once(pipeline, bucket, inputs, clock))
    return np.array(runs)


def measure_restore(
    pipeline: Pipeline, stage: int, *, repeats: int | None = None, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The median seconds in which a stage is put back onto its devices, after one round to warm up.

    The other stages stay where they are; this one is on its devices afterwards.

    Args:
        pipeline: the model, loaded as a spare, with nothing running on it.
        stage: number of the stage.
        repeats: number of rounds; unless given, up to 100, but fewer when they take longer than 0.3 s.
        clock: seconds, ascending.
    """
    _restore_once(pipeline, stage, clock)
    end = clock() + MOST_SECONDS_PER_STAGE
    took: list[float] = []
    while len(took) < (repeats or LEAST_RUNS) or (repeats is None and len(took) < MOST_RUNS and clock() < end):
        took.append(_restore_once(pipeline, stage, clock))
    return statistics.median(took)


def _restore_once(pipeline: Pipeline, stage: int, clock: Callable[[], float]) -> float:
    pipeline.evict(stage)
    start = clock()
    pipeline.restore(stage)
    return clock() - start


def _run_once(
    pipeline: Pipeline, bucket: int, inputs: dict[str, np.ndarray], clock: Callable[[], float]
) -> list[float]:
    marks = [clock()]
    values = pipeline.put(bucket, inputs)
    for stage in range(pipeline.num_stages):
        values = pipeline.run(stage, bucket, values)
        marks.append(clock())
    pipeline.fetch(bucket, values)
    marks[-1] = clock()
    return [end - start for start, end in itertools.pairwise(marks)]
