"""Which groups exist and which models they hold: policies, scored by the simulator."""

from jaxserve.placement.problem import Effort, Plan, Policy, Problem, Progress

__all__ = ["Effort", "Plan", "Policy", "Problem", "Progress"]
