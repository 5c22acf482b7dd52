"""A model on a group, as the dispatch sees it.

On an idle group a request is judged by the profile, not by the estimate: else an estimate above every deadline, from a
time that is over, would refuse every request, and nothing would ever be observed again.

A replica also knows how many requests came for it of late, and so for how many to plan a batch (batch.py says why).
"""

import dataclasses
from collections.abc import Sequence

from jaxserve.request import Request
from jaxserve.scheduling.batch import clocks_after
from jaxserve.scheduling.group import TOLERANCE, GroupState
from jaxserve.scheduling.latencies import StageLatencies, total_s
from jaxserve.scheduling.residency import Spare

WINDOW = 8.0
ROUGH = 0.06
WORTH = 1.25


@dataclasses.dataclass(slots=True, eq=False)
class Replica:
    """A model on a group.

    Attributes:
        group: the group's index.
        state: the group.
        latencies: what the model's stages take there.
        max_wait_s: for how long a request that finds stage 0 free may wait for company.
        spare: how the model comes to the group's devices, where it is not always there.
        recent_rows: what came for it of late, each row weighing the less the longer ago it came.
        recent_s: when the last of them came.
        window_s: how long ago "of late" is.
    """

    group: int
    state: GroupState
    latencies: StageLatencies
    max_wait_s: float = 0.0
    spare: Spare | None = None
    recent_rows: float = 0.0
    recent_s: float = 0.0
    window_s: float = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.window_s = WINDOW * total_s(self.latencies.profiled[0])

    def latency_s(self, bucket: int) -> tuple[float, ...]:
        """What each stage is expected to take for a request that arrives now and runs by itself."""
        latencies = self.latencies
        return latencies.profiled[bucket] if self.state.is_idle else latencies.estimated[bucket]

    def finish_s(self, request: Request, now_s: float) -> float:
        """When a request that arrives now is about to leave the last stage, behind all that the group holds."""
        state, latencies = self.state, self.latencies
        latency_s = (latencies.profiled if state.is_idle else latencies.estimated)[request.bucket]
        clocks = state.clocks(now_s, ROUGH) if self.spare is None else self.clocks(now_s, ROUGH)
        finish_s = now_s
        for clock, latency in zip(clocks, latency_s):  # noqa: B905  of one length; asking costs a fifth more
            finish_s = (clock if clock > finish_s else finish_s) + latency
        return finish_s

    def clocks(self, now_s: float, tolerance: float = TOLERANCE) -> Sequence[float]:
        """When each stage will be free for it: where it is not there, once it has been brought."""
        clocks = self.state.clocks(now_s, tolerance)
        if self.spare is None or self.spare.resident:
            return clocks
        return clocks_after(clocks, self.spare.latencies.estimated[0], now_s)

    @property
    def is_cold(self) -> bool:
        """Whether it has to be brought to the devices first."""
        return self.spare is not None and not self.spare.resident

    def rows_to_reserve(self, request: Request, *, now_s: float, wait_s: float, spare_s: float) -> int:
        """For how many rows to plan a batch that begins with a request and waits for `wait_s`; 0 for those of it alone.

        As many as are expected to come, of one of the batch sizes on which it takes `spare_s` at most, counting what
        the slowest stage takes twice; and of the next larger size only where that runs `WORTH` times as many rows a
        second.
        """
        expected = request.rows + self._expect(request.rows, now_s, wait_s)
        latencies, grid = self.latencies, self.latencies.grid
        cell = grid.cell(request.bucket)
        _, slowest_s = latencies.total_and_longest_s(request.bucket)
        rows = request.rows
        reserved = 0
        for position, size in enumerate(grid.sizes):
            if size <= request.rows:
                continue
            if size > expected:
                break
            all_s, longest_s = latencies.total_and_longest_s(position * grid.cells + cell)
            if all_s + longest_s > spare_s:
                break
            if size * slowest_s >= WORTH * (rows * longest_s):
                reserved = rows = size
                slowest_s = longest_s
        return reserved

    def _expect(self, rows: int, now_s: float, wait_s: float) -> float:
        """How many rows are expected to come within `wait_s`, by those that came of late; notes that some did.

        Of late is within about `WINDOW` times what the model takes by itself.
        """
        window_s = self.window_s
        if window_s <= 0.0:
            return 0.0
        recent_rows = self.recent_rows / (1.0 + (now_s - self.recent_s) / window_s)
        self.recent_rows = recent_rows + rows
        self.recent_s = now_s
        return recent_rows * wait_s / window_s
