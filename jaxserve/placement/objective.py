"""What a placement is judged by."""

import dataclasses

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_SHORTFALL = 10.0  # what a model's missing one point of its floor weighs against one point of all requests


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objective:
    """The share of requests served in time, the worst model's first where `fair`; floors come before either.

    Attributes:
        fair: maximise the attainment of the worst model, then that of all requests.
        floors: float64 [models], attainment that each model must reach; 0 where there is no floor.
    """

    fair: bool
    floors: npt.NDArray[np.float64]

    @property
    def is_total(self) -> bool:
        """Whether only the total counts."""
        return not self.fair and not self.floors.any()

    def value(self, served: Ints, requests: Ints, missed: int = 0) -> float:
        """How good it is; more is better.

        Args:
            served: [models], requests served in time.
            requests: [models], requests in all.
            missed: requests of models that are not in the fleet.
        """
        total = float(served.sum()) / max(int(requests.sum()) + missed, 1)
        if self.is_total:
            return total
        attainment = np.where(requests > 0, served / np.maximum(requests, 1), 1.0)
        value = float(attainment.min(initial=1.0)) + 0.1 * total if self.fair else total
        return value - _SHORTFALL * float(np.maximum(self.floors - attainment, 0.0).mean())

    def shortfalls(self, served: Ints, requests: Ints) -> Ints:
        """Models that do not reach their floor, by index."""
        attainment = np.where(requests > 0, served / np.maximum(requests, 1), 1.0)
        return np.flatnonzero(attainment < self.floors - 1e-12)
