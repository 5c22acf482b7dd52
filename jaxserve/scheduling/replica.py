"""A model on a group, as the dispatch sees it.

On an idle group a request is judged by the profile, not by the estimate: else an estimate above every deadline, from a
time that is over, would refuse every request, and nothing would ever be observed again.
"""

import dataclasses

from jaxserve.request import Request
from jaxserve.scheduling.group import GroupState
from jaxserve.scheduling.latencies import StageLatencies


@dataclasses.dataclass(slots=True, eq=False)
class Replica:
    """A model on a group.

    Attributes:
        group: the group's index.
        state: the group.
        latencies: what the model's stages take there.
    """

    group: int
    state: GroupState
    latencies: StageLatencies

    def latency_s(self, bucket: int) -> tuple[float, ...]:
        """What each stage is expected to take for a request that arrives now and runs by itself."""
        latencies = self.latencies
        return latencies.profiled[bucket] if self.state.is_idle else latencies.estimated[bucket]

    def finish_s(self, request: Request, now_s: float) -> float:
        """When a request that arrives now is expected to leave the last stage, behind all that the group holds."""
        finish_s = now_s
        for clock, latency in zip(self.state.clocks(now_s), self.latency_s(request.bucket)):  # noqa: B905
            finish_s = (clock if clock > finish_s else finish_s) + latency
        return finish_s
