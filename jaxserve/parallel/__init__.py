"""From a model to a plan of stages: its flat program, how each operation is sharded, where the program is cut."""

from jaxserve.parallel.cut import Stage, StageGraph, cut
from jaxserve.parallel.devices import Device, device_kind
from jaxserve.parallel.hoist import Derived, hoist
from jaxserve.parallel.inter_op import Objective
from jaxserve.parallel.lowering import constrained
from jaxserve.parallel.plan import Limits, Plan, StagePlan, plan_model
from jaxserve.parallel.shard import Sharded, sharded
from jaxserve.parallel.solutions import Solutions
from jaxserve.parallel.trace import Graph, calls_back, trace

__all__ = [
    "Derived",
    "Device",
    "Graph",
    "Limits",
    "Objective",
    "Plan",
    "Sharded",
    "Solutions",
    "Stage",
    "StageGraph",
    "StagePlan",
    "calls_back",
    "constrained",
    "cut",
    "device_kind",
    "hoist",
    "plan_model",
    "sharded",
    "trace",
]
