"""Every decision, with no I/O and no clock: group queues, stage clocks, admission, choice of group."""

from jaxserve.scheduling.dispatch import DISPATCHES, Dispatch, Latencies, alpaserve
from jaxserve.scheduling.group import GroupState
from jaxserve.scheduling.scheduler import Admitted, Scheduler, Step

__all__ = ["DISPATCHES", "Admitted", "Dispatch", "GroupState", "Latencies", "Scheduler", "Step", "alpaserve"]
