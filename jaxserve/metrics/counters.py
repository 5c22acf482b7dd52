"""What the engine counts of each model and of each group."""

import dataclasses
import math
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np

from jaxserve.metrics.attainment import WINDOWS, Attainment
from jaxserve.metrics.histogram import ERROR_BOUNDS_S, LATENCY_BOUNDS_S, ROWS_BOUNDS, Histogram
from jaxserve.request import RefuseReason

_WINDOW = 2048


@dataclasses.dataclass(slots=True)
class BatchTimes:
    """Batches of one size: how many, and seconds from the begin of their first stage to the end of the last."""

    count: int = 0
    compute_s: float = 0.0


@dataclasses.dataclass(slots=True)
class ModelMetrics:
    """Counters of one model since it was loaded, and the latencies of its latest answers.

    A request ends in one of `served`, `refused`, `expired`, `failed`, `cancelled`; `invalid` ones were never requests.

    Attributes:
        late: served, but after their deadline.
        batches: how often its first stage began: the fewer for as many requests, the more of them ran as one.
        refusals: of the refused, why.
        last_served_s: engine clock of the latest answer, to probes too; NaN before the first.
        last_answer_s: the same, but for probes.
        latency: seconds from arrival to answer, of those served.
        preparation: seconds from arrival to the decision, of those that ran on a group: pre-processing, and the wait
            for it.
        queue: seconds from the decision to the begin of the first stage; of the same.
        error: seconds that answers came later than was predicted on arrival.
        rows: of the batches.
        computed, compute_s: requests that ran to the end of the last stage, and seconds that they were there, summed.
        output_s: seconds from the end of the last stage to the answer, of those served, summed.
        unserved_s: seconds from arrival to the end, of those that were not served, summed.
        volume, padding: elements of the batches' buckets, and how many of these were padding.
        batch_times: by rows of the batch.
        rows_served: rows of those served.
    """

    requests: int = 0
    served: int = 0
    refused: int = 0
    expired: int = 0
    failed: int = 0
    cancelled: int = 0
    invalid: int = 0
    late: int = 0
    batches: int = 0
    refusals: Counter[RefuseReason] = dataclasses.field(default_factory=Counter[RefuseReason])
    last_served_s: float = math.nan
    last_answer_s: float = math.nan
    latency: Histogram = dataclasses.field(default_factory=lambda: Histogram(LATENCY_BOUNDS_S))
    preparation: Histogram = dataclasses.field(default_factory=lambda: Histogram(LATENCY_BOUNDS_S))
    queue: Histogram = dataclasses.field(default_factory=lambda: Histogram(LATENCY_BOUNDS_S))
    error: Histogram = dataclasses.field(default_factory=lambda: Histogram(ERROR_BOUNDS_S))
    rows: Histogram = dataclasses.field(default_factory=lambda: Histogram(ROWS_BOUNDS))
    computed: int = 0
    compute_s: float = 0.0
    output_s: float = 0.0
    unserved_s: float = 0.0
    volume: int = 0
    padding: int = 0
    batch_times: dict[int, BatchTimes] = dataclasses.field(default_factory=dict[int, BatchTimes])
    rows_served: int = 0
    attainment: Attainment = dataclasses.field(default_factory=Attainment)
    latencies_s: deque[float] = dataclasses.field(default_factory=lambda: deque[float](maxlen=_WINDOW))
    errors_s: deque[float] = dataclasses.field(default_factory=lambda: deque[float](maxlen=_WINDOW))

    def answer(
        self, arrival_s: float, slo_s: float, predicted_finish_s: float, computed_s: float, rows: int, now_s: float
    ) -> bool:
        """Counts an answer whose last stage ended at `computed_s`; returns whether it was in time."""
        latency_s, error_s = now_s - arrival_s, now_s - predicted_finish_s
        in_time = latency_s <= slo_s
        self.served += 1
        self.rows_served += rows
        self.late += not in_time
        self.last_served_s = self.last_answer_s = now_s
        self.output_s += now_s - computed_s
        self.latencies_s.append(latency_s)
        self.errors_s.append(error_s)
        self.latency.observe(latency_s)
        self.error.observe(error_s)
        self.attainment.note(now_s, in_time=in_time)
        return in_time

    def refuse(self, reason: RefuseReason, now_s: float) -> None:
        """Counts a request that was not taken in."""
        self.refused += 1
        self.refusals[reason] += 1
        self.attainment.note(now_s, in_time=False)

    def expire(self, now_s: float) -> None:
        """Counts a request that was taken in, and whose deadline passed."""
        self.expired += 1
        self.attainment.note(now_s, in_time=False)

    def fail(self, now_s: float) -> None:
        """Counts a request that was taken in, and failed."""
        self.failed += 1
        self.attainment.note(now_s, in_time=False)

    def begin(self, *, rows: int, volume: int, used: int) -> None:
        """Counts a batch that begins: its rows, the elements of its bucket, and how many of them are used."""
        self.batches += 1
        self.rows.observe(rows)
        self.volume += volume
        self.padding += volume - used

    def run_on_host(self, rows: int, compute_s: float) -> None:
        """Counts a request that ran here and now, without waiting and without padding."""
        self.batches += 1
        self.volume += rows
        self.rows.observe(rows)
        self.end(rows, 1, compute_s)

    def end(self, rows: int, requests: int, compute_s: float) -> None:
        """Counts a batch that has ended, of `requests` with `rows` in all."""
        times = self.batch_times.get(rows)
        if times is None:
            times = self.batch_times[rows] = BatchTimes()
        times.count += 1
        times.compute_s += compute_s
        self.computed += requests
        self.compute_s += compute_s * requests

    def to_json(self, now_s: float) -> dict[str, object]:
        """Counters and percentiles; a percentile of nothing is None.

        `slo_attainment` is what was served in time over all that ended but for what its caller cancelled.
        """
        ended = self.served + self.refused + self.expired + self.failed
        return {
            "requests": self.requests,
            "served": self.served,
            "refused": self.refused,
            "refusals": {reason.value: self.refusals[reason] for reason in RefuseReason},
            "expired": self.expired,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "invalid": self.invalid,
            "batches": self.batches,
            "slo_attainment": (self.served - self.late) / ended if ended else None,
            "recent_attainment": {name: self.attainment.over(window_s, now_s) for name, window_s in WINDOWS.items()},
            "latency_p50_s": _percentile(self.latencies_s, 50),
            "latency_p99_s": _percentile(self.latencies_s, 99),
            "predicted_error_p50_s": _percentile(self.errors_s, 50),
            "predicted_error_p99_s": _percentile(self.errors_s, 99),
        }


@dataclasses.dataclass(slots=True)
class StageMetrics:
    """One stage of a group.

    Attributes:
        busy_s: seconds that it was, but for what runs now.
        told_s: the most busy seconds that were told.
        running: the model that it runs now; None where it is idle.
        since_s: since when.
        duration: seconds from begin to end.
    """

    busy_s: float = 0.0
    told_s: float = 0.0
    running: str | None = None
    since_s: float = 0.0
    duration: Histogram = dataclasses.field(default_factory=lambda: Histogram(LATENCY_BOUNDS_S))


class GroupMetrics:
    """Counters of one group.

    Attributes:
        requests: batches that entered.
        stages: of each stage.
    """

    __slots__ = ("requests", "stages")

    def __init__(self, *, stages: int) -> None:
        self.requests = 0
        self.stages: Sequence[StageMetrics] = [StageMetrics() for _ in range(stages)]

    def begin(self, stage: int, model: str, now_s: float) -> None:
        """A stage begins something."""
        metrics = self.stages[stage]
        metrics.running, metrics.since_s = model, now_s
        if stage == 0:
            self.requests += 1

    def end(self, stage: int, now_s: float) -> tuple[float, float]:
        """A stage ends what it began; returns since when it ran, and until when."""
        metrics = self.stages[stage]
        if metrics.running is None:
            return now_s, now_s  # it was cleared meanwhile
        metrics.running = None
        took_s = now_s - metrics.since_s
        metrics.busy_s += took_s
        metrics.duration.observe(took_s)
        return metrics.since_s, now_s

    def run_on_host(self, took_s: float) -> None:
        """The only stage has run something here and now."""
        self.requests += 1
        stage = self.stages[0]
        stage.busy_s += took_s
        stage.duration.observe(took_s)

    def clear(self, now_s: float) -> None:
        """Every stage ends, as when the group is lost."""
        for stage in range(len(self.stages)):
            self.end(stage, now_s)

    def busy_until(self, now_s: float) -> list[float]:
        """Busy seconds of each stage up to now, with what still runs; never fewer than were told before.

        An end may be reported after this was asked, as of a time before; who computes a rate must not see that.
        """
        for stage in self.stages:
            running_s = 0.0 if stage.running is None else now_s - stage.since_s
            stage.told_s = max(stage.told_s, stage.busy_s + running_s)
        return [stage.told_s for stage in self.stages]


def _percentile(values: deque[float], percent: float) -> float | None:
    return float(np.percentile(np.fromiter(values, float), percent)) if values else None
