"""Histograms with fixed bounds, cheap enough to be kept for every request."""

from bisect import bisect_left
from collections.abc import Sequence

LATENCY_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""For what takes milliseconds to seconds."""
ERROR_BOUNDS_S = (-1.0, -0.25, -0.1, -0.025, -0.01, -0.0025, 0.0, 0.0025, 0.01, 0.025, 0.1, 0.25, 1.0)
"""For differences, which have signs."""
ROWS_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""For rows of batches."""


class Histogram:
    """Counts of values by upper bound.

    Attributes:
        bounds: ascending; a value belongs to the first bound that is not below it.
        counts: of each bound, not cumulated, and last of what is above all of them.
        sum: of all values.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)
