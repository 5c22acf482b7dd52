"""What if there were more devices, more traffic, burstier traffic, tighter SLOs: plans by several policies for each."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Unpack

import numpy as np

from jaxserve.errors import ConfigError, PlacementError
from jaxserve.placement.plan import PlanOptions, plan
from jaxserve.placement.policies import policy_label
from jaxserve.placement.problem import Policy
from jaxserve.plans import Fleet, Profiles
from jaxserve.workload import Workload, scale_cv, scale_rate, scale_slo

AXES = ("devices", "rate", "cv", "slo")
"""What may be varied: the number of devices; and by factors, the traffic's rate, its CV and its SLOs."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One policy at one value.

    Attributes:
        policy: its name.
        value: the number of devices, or the factor.
        slo_attainment: of its plan; None where it has none.
        bound: what no placement exceeds at this value; None where it was not asked for.
        search_s: seconds that the policy took.
        simulations: runs of a workload that it took.
        why: why there is no plan; else empty.
    """

    policy: str
    value: float
    slo_attainment: float | None
    bound: float | None
    search_s: float = 0.0
    simulations: int = 0
    why: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Attainment against one quantity: all policies at the first value, then at the next."""

    axis: str
    points: tuple[Point, ...]

    def to_json(self) -> dict[str, object]:
        """The points as `jaxserve plan --sweep --json` prints them."""
        return {"axis": self.axis, "points": [dataclasses.asdict(point) for point in self.points]}


def sweep(
    axis: str,
    values: Sequence[float],
    *,
    policies: Sequence[str | Policy],
    profiles: Profiles,
    fleet: Fleet,
    workload: Workload,
    begin: Callable[[str], None] = lambda what: None,
    **options: Unpack[PlanOptions],
) -> Sweep:
    """Plans by each policy at each value of one quantity.

    A policy that has no plan at some value, as a pipeline of eight on four devices, has a point without an attainment.

    Args:
        axis: one of `AXES`.
        values: numbers of devices, or factors.
        policies: names or functions.
        profiles: what the models cost.
        fleet: the models and the cluster.
        workload: the traffic; a CV is changed by fitting and drawing it again (`jaxserve.workload.scale_cv`).
        begin: told what is planned next.
        options: those of `plan`; `seconds` and `simulations` are for each point.

    Raises:
        ConfigError: no such axis, a value that makes no sense, no values or policies, or what `plan` refuses.
    """
    check_values(axis, values)
    if not policies:
        raise ConfigError("a sweep compares policies, but none was given; name at least one")
    points: list[Point] = []
    stop = options.get("stop")
    wants_bound = options.get("bound", True)
    for value in values:
        own_fleet, own_workload = _changed(axis, value, fleet, workload, seed=options.get("seed", 0))
        bound: float | None = None
        for policy in policies:
            if points and stop is not None and stop():
                return Sweep(axis=axis, points=tuple(points))
            begin(f"{axis} {value:g}, {policy_label(policy)}")
            options["policy"], options["bound"] = policy, wants_bound and bound is None
            try:
                found = plan(profiles=profiles, fleet=own_fleet, workload=own_workload, **options)
            except PlacementError as error:
                label = policy_label(policy)
                points.append(Point(policy=label, value=value, slo_attainment=None, bound=bound, why=str(error)))
                continue
            bound = bound if found.bound is None else found.bound.slo_attainment
            points.append(
                Point(
                    policy=found.policy,
                    value=value,
                    slo_attainment=found.slo_attainment,
                    bound=bound,
                    search_s=found.search_s,
                    simulations=found.simulations,
                )
            )
    return Sweep(axis=axis, points=tuple(points))


def check_values(axis: str, values: Sequence[float]) -> None:
    """Whether an axis can have these values.

    Raises:
        ConfigError: it cannot.
    """
    if axis not in AXES:
        raise ConfigError(f"a sweep of {axis!r} was asked for, but it must be of one of {', '.join(AXES)}")
    if not values:
        raise ConfigError(f"a sweep of {axis} needs values, but none was given")
    for value in values:
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"a sweep of {axis} has the value {value:g}, but it must be finite and greater than 0")
        if axis == "devices" and value != int(value):
            raise ConfigError(f"a sweep of devices has the value {value:g}, but it must be a whole number")


def _changed(axis: str, value: float, fleet: Fleet, workload: Workload, *, seed: int) -> tuple[Fleet, Workload]:
    match axis:
        case "devices":
            return dataclasses.replace(fleet, devices=int(value)), workload
        case "rate":
            return fleet, scale_rate(workload, value)
        case "cv":
            return fleet, scale_cv(workload, value, rng=np.random.default_rng(seed))
        case _:
            models = tuple(dataclasses.replace(model, slo_s=model.slo_s * value) for model in fleet.models)
            return dataclasses.replace(fleet, models=models), scale_slo(workload, value)
