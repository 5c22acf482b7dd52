"""Where groups live, as the engine sees it.

The engine decides what begins when; a cluster makes it happen and reports each end of a stage. Both sides of the seam
run on the engine's event loop.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jaxserve.model import Model
from jaxserve.request import Request
from jaxserve.scheduling import Latencies

Inputs = Mapping[str, Any]
Outputs = dict[str, Any]


@dataclasses.dataclass(slots=True, eq=False)
class Job:
    """A request on its way through a group, with its tensors.

    Attributes:
        request: the request.
        inputs: checked inputs of the module, by name, not padded.
        sizes: sizes of the variable dimensions.
        abandoned: nobody waits for it any more.
        outputs: what the last stage gave, by name, unpadded.
    """

    request: Request
    inputs: Inputs
    sizes: Mapping[str, int]
    abandoned: bool = False
    outputs: Outputs | None = None


@dataclasses.dataclass(slots=True, eq=False)
class Work:
    """A batch on its way through a group: the jobs that run as one.

    Attributes:
        batch_id: as the scheduler knows it.
        model: their model.
        bucket: index of the bucket that they run on.
        jobs: one or more; their rows lie one after another in this order.
        leaving: where there are none, and the model's weights are to be brought to the stages, one after another: the
            models whose weights leave for them.
        counted: how many of the jobs are counted, which those are not that only show that the model answers.
        begun_s: when its first stage began, by the engine's clock.
        stages: begin and end of each stage that has ended, by the engine's clock.
        error: what the model raised. That weights could not be brought to a stage is told by the last one, after those
            that leave have left all stages.
    """

    batch_id: int
    model: Model
    bucket: int
    jobs: Sequence[Job]
    leaving: Sequence[str] | None = None
    counted: int = 0
    begun_s: float = math.nan
    stages: list[tuple[float, float]] = dataclasses.field(default_factory=list[tuple[float, float]])
    error: Exception | None = None

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for any of it; it goes no further than the stage it is on."""
        return self.leaving is None and all(job.abandoned for job in self.jobs)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a replica takes.

    Attributes:
        latency_s: of each stage, for each bucket.
        weight_bytes: what the weights of each stage take on each of its devices.
        restore_s: of a spare, what each stage takes to be brought there.
    """

    latency_s: Latencies
    weight_bytes: Sequence[float] = ()
    restore_s: Sequence[float] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """What a device says of its memory.

    Attributes:
        device: its index, as placements have it.
        in_use_bytes: what is allocated.
        limit_bytes: what may be.
    """

    device: int
    in_use_bytes: int
    limit_bytes: int


class Listener(Protocol):
    """What a cluster reports to."""

    def advance(self, now_s: float) -> None:
        """Lets happen everything that is due by now; called before a report of what was not due."""
        ...

    def stage_ended(self, group: int, stage: int, work: Work, now_s: float) -> None:
        """A stage is done with a batch: `work.error` or, after the last stage, the outputs of its jobs are set."""
        ...

    def group_failed(self, group: int, reason: str, now_s: float) -> None:
        """A group is lost, with everything inside."""
        ...


class Cluster(Protocol):
    """Groups of one kind: real stages on devices, or emulated ones.

    Attributes:
        stages: number of stages of each group.
    """

    stages: tuple[int, ...]

    async def open(self, listener: Listener) -> None:
        """Makes the groups ready; called once, before anything else."""
        ...

    async def load(self, group: int, model: Model, *, spare: bool = False) -> Loaded:
        """Loads a replica. Of a spare, nothing is on the devices before a batch brings it."""
        ...

    async def unload(self, group: int, model: str) -> None:
        """Gives back what a replica holds; nothing of it runs any more."""
        ...

    def begin(self, group: int, stage: int, work: Work, now_s: float) -> None:
        """Begins a batch on a stage that is free."""
        ...

    @property
    def next_end_s(self) -> float:
        """When `report_next` has an end to report; infinite for a cluster that reports by itself."""
        return math.inf

    def report_next(self) -> None:
        """Reports the end that is due at `next_end_s`, as of that time."""
        ...

    def memory(self) -> list[DeviceMemory]:
        """The memory of those devices that tell (CPUs do not)."""
        ...

    async def close(self) -> None:
        """Ends everything that the cluster runs and gives back what it holds."""
        ...
