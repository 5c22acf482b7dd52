"""What the engine counts."""

import dataclasses
import math
from collections import deque

import numpy as np

_WINDOW = 2048


@dataclasses.dataclass(slots=True)
class ModelMetrics:
    """Counters of one model since it was loaded, and the latencies of its latest answers.

    `batches` counts how often its first stage began: the fewer for as many requests, the more of them ran as one. A
    request ends in one of `served`, `refused`, `expired`, `failed`, `cancelled`; `invalid` ones were never requests.
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
    latencies_s: deque[float] = dataclasses.field(default_factory=lambda: deque[float](maxlen=_WINDOW))
    errors_s: deque[float] = dataclasses.field(default_factory=lambda: deque[float](maxlen=_WINDOW))

    def answered(self, latency_s: float, error_s: float) -> None:
        """Counts an answer: seconds from arrival, and seconds that it came later than predicted on arrival."""
        self.served += 1
        self.latencies_s.append(latency_s)
        self.errors_s.append(error_s)

    def to_json(self) -> dict[str, object]:
        """Counters and percentiles; a percentile of nothing is None.

        `slo_attainment` is what was served in time over all that ended but for what its caller cancelled.
        """
        ended = self.served + self.refused + self.expired + self.failed
        return {
            "requests": self.requests,
            "served": self.served,
            "refused": self.refused,
            "expired": self.expired,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "invalid": self.invalid,
            "batches": self.batches,
            "slo_attainment": (self.served - self.late) / ended if ended else None,
            "latency_p50_s": _percentile(self.latencies_s, 50),
            "latency_p99_s": _percentile(self.latencies_s, 99),
            "predicted_error_p50_s": _percentile(self.errors_s, 50),
            "predicted_error_p99_s": _percentile(self.errors_s, 99),
        }


@dataclasses.dataclass(slots=True)
class GroupMetrics:
    """Counters of one group: jobs that entered, and seconds that its stages were busy."""

    requests: int = 0
    busy_s: float = 0.0
    stages: int = 1
    _since_s: dict[int, float] = dataclasses.field(default_factory=dict[int, float])

    def begin(self, stage: int, now_s: float) -> None:
        """A stage begins something."""
        self._since_s[stage] = now_s
        if stage == 0:
            self.requests += 1

    def end(self, stage: int, now_s: float) -> None:
        """A stage ends what it began."""
        self.busy_s += now_s - self._since_s.pop(stage, now_s)

    def clear(self, now_s: float) -> None:
        """Every stage ends, as when the group is lost."""
        for stage in list(self._since_s):
            self.end(stage, now_s)

    def busy_until(self, now_s: float) -> float:
        """Busy seconds of all stages up to now, with what still runs."""
        return self.busy_s + math.fsum(now_s - since_s for since_s in self._since_s.values())


def _percentile(values: deque[float], percent: float) -> float | None:
    return float(np.percentile(np.fromiter(values, float), percent)) if values else None
