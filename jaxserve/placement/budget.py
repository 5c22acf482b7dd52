"""How much of an effort is left, in runs of the simulator where it limits these, else in seconds."""

from jaxserve.placement.problem import Effort, Progress

REPORT_EVERY_S = 0.1


class Budget:
    """Counts the runs of one search and says when to stop.

    Args:
        effort: how far the search may go.

    Attributes:
        simulations: runs so far.
    """

    def __init__(self, effort: Effort) -> None:
        self._effort = effort
        self._began_s = self._reported_s = effort.clock()
        self._stopped = False
        self._best = 0.0
        self.simulations = 0

    @property
    def used(self) -> float:
        """The part of the effort that is used, 1 or more at the end.

        In runs, one more than there were: what is returned when nothing is left must be scored as well.
        """
        if self._effort.simulations is not None:
            return (self.simulations + 1) / max(self._effort.simulations, 1)
        elapsed_s = self._effort.clock() - self._began_s
        return elapsed_s / self._effort.seconds if self._effort.seconds > 0 else 1.0

    def share(self, parts: int) -> float:
        """What will be used when one of `parts` equal parts of the rest is."""
        used = self.used
        return used + max(1 - used, 0.0) / parts

    def spent(self, until: float = 1.0) -> bool:
        """Whether this much of the effort is used, or the search was told to stop."""
        self._stopped = self._stopped or self._effort.stop()
        return self._stopped or self.used >= until

    def ran(self, slo_attainment: float) -> None:
        """Counts a run that found this attainment, and reports now and then."""
        self.simulations += 1
        self._best = max(self._best, slo_attainment)
        now_s = self._effort.clock()
        if now_s - self._reported_s >= REPORT_EVERY_S:
            self._reported_s = now_s
            done = min(self.used, 1.0)
            self._effort.report(Progress(done=done, simulations=self.simulations, slo_attainment=self._best))
