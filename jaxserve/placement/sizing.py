"""How many devices it takes: the smallest cluster that is found whose plan reaches an SLO attainment.

The upper bound comes first: where not even it reaches the target, no plan has to be made, so the first count that is
tried is the smallest whose bound does. From there counts grow by steps that double, until one reaches the target; then
the gap to the largest one that did not is halved until it is closed.

Attainment does not grow strictly with devices: groups of several devices do not divide every count, and a search may
find a worse placement on a cluster that is larger by one. So "smallest" is of those that were tried, and a smaller one
that was not may do as well.
"""

import dataclasses
from collections.abc import Callable
from typing import Unpack

from jaxserve.errors import ConfigError, PlacementError
from jaxserve.placement.bound import upper_bound
from jaxserve.placement.plan import PlanOptions, PlanResult, plan
from jaxserve.placement.policies import MOVING
from jaxserve.placement.problem import Problem
from jaxserve.plans import Fleet, Profiles
from jaxserve.workload import Workload

MOST = 16
"""How many times the fleet's devices are tried at most, unless said otherwise."""

_FIRST_STEP = 8  # the first step is the first count over this


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One number of devices.

    Attributes:
        devices: how many.
        slo_attainment: of the plan; None where none was made.
        bound: what no placement on so many devices exceeds; None where it was not asked for.
        reached: whether the plan reaches the target, and every floor.
        why: why there is no plan, or why it does not do though it reaches the target; else empty.
    """

    devices: int
    slo_attainment: float | None
    bound: float | None
    reached: bool
    why: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """The answer to how many devices it takes.

    Attributes:
        target: the SLO attainment to be reached.
        devices: the smallest number tried that reaches it; None where none does.
        most_devices: the largest number that was allowed.
        tried: in the order in which they were.
        plan: the plan for that number.
    """

    target: float
    devices: int | None
    most_devices: int
    tried: tuple[Tried, ...]
    plan: PlanResult | None

    def to_json(self) -> dict[str, object]:
        """The answer as `jaxserve plan --devices-for` prints it beside the plan."""
        return {
            "target": self.target,
            "devices": self.devices,
            "most_devices": self.most_devices,
            "tried": [dataclasses.asdict(each) for each in self.tried],
        }


def devices_for(
    target: float,
    *,
    profiles: Profiles,
    fleet: Fleet,
    workload: Workload,
    most_devices: int | None = None,
    begin: Callable[[str], None] = lambda what: None,
    **options: Unpack[PlanOptions],
) -> Sizing:
    """The smallest number of devices that is found whose plan reaches an SLO attainment (see this module).

    Args:
        target: the attainment, greater than 0 and at most 1.
        profiles: what the models cost.
        fleet: the models and the cluster; the size of its hosts is kept, and the number of its devices is not.
        workload: the traffic.
        most_devices: where to give up; 16 times the fleet's devices by default.
        begin: told what is tried next.
        options: those of `plan`; `seconds` and `simulations` are for each number of devices. Without `bound`, and with
            the policy `clockwork++`, for which it does not hold, counting begins at one device; set it to false for a
            policy of your own whose placements have segments.

    Raises:
        ConfigError: a target or a largest number that makes no sense, or what `plan` refuses.
    """
    if not 0 < target <= 1:
        raise ConfigError(f"an attainment of {target:g} was asked for, but it must be above 0 and at most 1")
    most = MOST * fleet.devices if most_devices is None else most_devices
    if most < 1:
        raise ConfigError(f"most_devices is {most}, but must be at least 1")
    trial = _Trials(target, most, profiles, fleet, workload, begin, options)
    least = trial.least()
    if least is not None:
        trial.close_in(least)
    return trial.sizing()


class _Trials:
    """The numbers of devices that were tried so far."""

    def __init__(
        self,
        target: float,
        most: int,
        profiles: Profiles,
        fleet: Fleet,
        workload: Workload,
        begin: Callable[[str], None],
        options: PlanOptions,
    ) -> None:
        self._target = target
        self._most = most
        self._profiles = profiles
        self._fleet = fleet
        self._workload = workload
        self._begin = begin
        self._options = options
        self._tried: list[Tried] = []
        self._reached: dict[int, PlanResult] = {}

    def least(self) -> int | None:
        """The smallest number whose bound reaches the target; None where that of the largest does not."""
        policy = self._options.get("policy")
        if not self._options.get("bound", True) or (isinstance(policy, str) and policy in MOVING):
            return 1
        low, high = 0, self._most
        if (bound := self._bound(high)) < self._target:
            why = "no placement reaches the target"
            self._tried.append(Tried(devices=high, slo_attainment=None, bound=bound, reached=False, why=why))
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._bound(middle) >= self._target else (middle, high)
        if low:
            why = "no placement reaches the target"
            self._tried.append(Tried(devices=low, slo_attainment=None, bound=self._bound(low), reached=False, why=why))
        return high

    def close_in(self, least: int) -> None:
        """Grows from `least` until a number does, then halves the gap."""
        low, count, step = least - 1, least, max(1, least // _FIRST_STEP)
        while not self._does(count):
            if count == self._most or self._is_stopped():
                return
            low, count, step = count, min(count + step, self._most), 2 * step
        while count - low > 1 and not self._is_stopped():
            middle = (low + count) // 2
            low, count = (low, middle) if self._does(middle) else (middle, count)

    def sizing(self) -> Sizing:
        """The answer."""
        devices = min(self._reached, default=None)
        return Sizing(
            target=self._target,
            devices=devices,
            most_devices=self._most,
            tried=tuple(self._tried),
            plan=None if devices is None else self._reached[devices],
        )

    def _does(self, devices: int) -> bool:
        self._begin(f"{devices} {'device' if devices == 1 else 'devices'}")
        fleet = dataclasses.replace(self._fleet, devices=devices)
        try:
            found = plan(profiles=self._profiles, fleet=fleet, workload=self._workload, **self._options)
        except PlacementError as error:  # such as no room for any model on so few devices
            self._tried.append(Tried(devices=devices, slo_attainment=None, bound=None, reached=False, why=str(error)))
            return False
        below = ", ".join(each.model for each in found.shortfalls)
        reached = found.slo_attainment >= self._target and not below
        self._tried.append(
            Tried(
                devices=devices,
                slo_attainment=found.slo_attainment,
                bound=None if found.bound is None else found.bound.slo_attainment,
                reached=reached,
                why=f"below their floors: {below}" if below else "",
            )
        )
        if reached:
            self._reached[devices] = found
        return reached

    def _bound(self, devices: int) -> float:
        problem = Problem.of(
            fleet=dataclasses.replace(self._fleet, devices=devices),
            profiles=self._profiles,
            workload=self._workload,
            overhead_s=self._options.get("overhead_s", 0.0),
            max_batch=self._options.get("max_batch", 1),
        )
        return upper_bound(problem).slo_attainment

    def _is_stopped(self) -> bool:
        stop = self._options.get("stop")
        return stop is not None and stop()
