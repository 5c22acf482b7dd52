"""Where the time of one request went."""

import dataclasses
import math


@dataclasses.dataclass(slots=True)
class Timeline:
    """Filled by the engine when a request is settled, for whoever gave it one; all times by the engine's clock.

    Attributes:
        arrival_s: when the engine got it.
        decided_s: when it was admitted or refused: after its pre-processing.
        group: that admitted it; -1 where none did.
        predicted_finish_s: as it was promised.
        rows: of the batch that it ran in, 0 where it did not.
        begun_s: when its batch began on the first stage.
        stages: begin and end of each stage that has ended; in the order of stages.
        settled_s: when it was answered, in whatever way.
    """

    arrival_s: float = math.nan
    decided_s: float = math.nan
    group: int = -1
    predicted_finish_s: float = math.nan
    rows: int = 0
    begun_s: float = math.nan
    stages: list[tuple[float, float]] = dataclasses.field(default_factory=list[tuple[float, float]])
    settled_s: float = math.nan
