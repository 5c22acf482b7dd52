"""Every decision, with no I/O and no clock: group queues, stage clocks, admission, choice of group."""

from jaxserve.scheduling.dispatch import DISPATCHES, Dispatch, alpaserve
from jaxserve.scheduling.group import GroupState
from jaxserve.scheduling.replica import Latencies, Replica
from jaxserve.scheduling.scheduler import Admitted, Scheduler, Step

__all__ = ["DISPATCHES", "Admitted", "Dispatch", "GroupState", "Latencies", "Replica", "Scheduler", "Step", "alpaserve"]
