"""Which groups exist and which models they hold: policies, scored by the simulator."""

from jaxserve.placement.bound import Bound, upper_bound
from jaxserve.placement.explain import Unplaced
from jaxserve.placement.plan import GroupReport, ModelReport, PlanOptions, PlanResult, Shortfall, plan
from jaxserve.placement.policies import POLICY_NAMES, policy_named
from jaxserve.placement.problem import Effort, Plan, Policy, Problem, Progress
from jaxserve.placement.sizing import Sizing, Tried, devices_for
from jaxserve.placement.sweep import AXES, Point, Sweep, check_values, sweep

__all__ = [
    "AXES",
    "POLICY_NAMES",
    "Bound",
    "Effort",
    "GroupReport",
    "ModelReport",
    "Plan",
    "PlanOptions",
    "PlanResult",
    "Point",
    "Policy",
    "Problem",
    "Progress",
    "Shortfall",
    "Sizing",
    "Sweep",
    "Tried",
    "Unplaced",
    "check_values",
    "devices_for",
    "plan",
    "policy_named",
    "sweep",
    "upper_bound",
]
