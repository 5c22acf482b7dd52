"""A model on a group, as the dispatch sees it.

On an idle group a request is judged by the profile, not by the estimate: else an estimate above every deadline, from a
time that is over, would refuse every request, and nothing would ever be observed again.

A replica also knows how many requests came for it of late, and so for how many to plan a batch (batch.py says why).
"""

import dataclasses

from jaxserve.request import Request
from jaxserve.scheduling.batch import clocks_after
from jaxserve.scheduling.group import GroupState
from jaxserve.scheduling.latencies import StageLatencies, total_s

WINDOW = 8.0
WORTH = 1.25


@dataclasses.dataclass(slots=True, eq=False)
class Replica:
    """A model on a group.

    Attributes:
        group: the group's index.
        state: the group.
        latencies: what the model's stages take there.
        recent_rows: what came for it of late, each row weighing the less the longer ago it came.
        recent_s: when the last of them came.
    """

    group: int
    state: GroupState
    latencies: StageLatencies
    recent_rows: float = 0.0
    recent_s: float = 0.0

    def latency_s(self, bucket: int) -> tuple[float, ...]:
        """What each stage is expected to take for a request that arrives now and runs by itself."""
        latencies = self.latencies
        return latencies.profiled[bucket] if self.state.is_idle else latencies.estimated[bucket]

    def finish_s(self, request: Request, now_s: float) -> float:
        """When a request that arrives now is expected to leave the last stage, behind all that the group holds."""
        return clocks_after(self.state.clocks(now_s), self.latency_s(request.bucket), now_s)[-1]

    def rows_to_reserve(self, request: Request, *, now_s: float, wait_s: float, spare_s: float) -> int:
        """For how many rows to plan a batch that begins with a request and waits for `wait_s`; 0 for those of it alone.

        As many as are expected to come, of one of the batch sizes on which it takes `spare_s` at most, counting what
        the slowest stage takes twice; and of the next larger size only where that runs `WORTH` times as many rows a
        second.
        """
        expected = request.rows + self._expect(request.rows, now_s, wait_s)
        grid, estimated = self.latencies.grid, self.latencies.estimated
        cell = grid.cell(request.bucket)
        slowest_s, rows = max(estimated[request.bucket]), request.rows
        reserved = 0
        for position, size in enumerate(grid.sizes):
            if size <= request.rows:
                continue
            latency_s = estimated[position * grid.cells + cell]
            longest_s = max(latency_s)
            if size > expected or total_s(latency_s) + longest_s > spare_s:
                break
            if size * slowest_s >= WORTH * (rows * longest_s):
                reserved = rows = size
                slowest_s = longest_s
        return reserved

    def _expect(self, rows: int, now_s: float, wait_s: float) -> float:
        """How many rows are expected to come within `wait_s`, by those that came of late; notes that some did.

        Of late is within about `WINDOW` times what the model takes.
        """
        window_s = WINDOW * total_s(self.latencies.profiled[0])
        if window_s <= 0.0:
            return 0.0
        recent_rows = self.recent_rows / (1.0 + (now_s - self.recent_s) / window_s)
        self.recent_rows = recent_rows + rows
        self.recent_s = now_s
        return recent_rows * wait_s / window_s
