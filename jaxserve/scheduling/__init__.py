"""Every decision, with no I/O and no clock: group queues, stage clocks, admission, batching, choice of group."""

from jaxserve.scheduling.batch import Batch
from jaxserve.scheduling.dispatch import DISPATCHES, Dispatch, alpaserve
from jaxserve.scheduling.grid import ALONE, Grid
from jaxserve.scheduling.group import GroupState
from jaxserve.scheduling.latencies import Latencies
from jaxserve.scheduling.order import FIRST_COME, Policy
from jaxserve.scheduling.replica import Replica
from jaxserve.scheduling.residency import Spare
from jaxserve.scheduling.scheduler import Admitted, Scheduler, Step

__all__ = [
    "ALONE",
    "DISPATCHES",
    "FIRST_COME",
    "Admitted",
    "Batch",
    "Dispatch",
    "Grid",
    "GroupState",
    "Latencies",
    "Policy",
    "Replica",
    "Scheduler",
    "Spare",
    "Step",
    "alpaserve",
]
