"""What would become of a workload under a placement."""

import dataclasses
import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from jaxserve.errors import ConfigError
from jaxserve.plans import Fleet, Placement, Profiles, Segment
from jaxserve.scheduling import DISPATCHES, FIRST_COME, Policy
from jaxserve.simulator import batches
from jaxserve.simulator.engines import ByLoop, ByReference, Engine
from jaxserve.simulator.rows import rows_of
from jaxserve.workload import Workload

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
SERVED, REJECTED, LATE = 0, 1, 2
ENGINES = ("fast", "reference")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SimulationResult:
    """What became of each request, and the sums.

    Attributes:
        workload: what was simulated.
        finish_s: float64 [requests]; NaN where it was not served.
        group: int32 [requests]; -1 where none took it.
        outcome: int8 [requests]; 0 served within its deadline, 1 rejected, 2 late.
        busy: share of each group's stage seconds that was used, groups of all segments in order.
        wall_s: seconds that the simulation took.
    """

    workload: Workload
    finish_s: Floats
    group: Ints
    outcome: npt.NDArray[np.int8]
    busy: tuple[float, ...]
    wall_s: float

    @property
    def slo_attainment(self) -> float:
        """Requests answered within their deadline over all requests; 1 where there are none."""
        return _share(self.outcome == SERVED)

    def to_json(self) -> dict[str, object]:
        """The result as `jaxserve simulate --json` prints it.

        Where the workload has priorities or tenants, it has `per_priority` or `per_tenant` too.
        """
        latency_s = (self.finish_s - self.workload.arrival_s)[~np.isnan(self.finish_s)]
        per_model: dict[str, object] = {}
        for index, name in enumerate(self.workload.model_names):
            own = self.outcome[self.workload.model == index]
            per_model[name] = {"requests": len(own), "slo_attainment": _share(own == SERVED)}
        return {
            "requests": len(self.workload),
            "served": int((self.outcome == SERVED).sum()),
            "rejected": int((self.outcome == REJECTED).sum()),
            "late": int((self.outcome == LATE).sum()),
            "slo_attainment": self.slo_attainment,
            "latency_mean_s": float(latency_s.mean()) if len(latency_s) else None,
            "latency_p50_s": float(np.percentile(latency_s, 50)) if len(latency_s) else None,
            "latency_p99_s": float(np.percentile(latency_s, 99)) if len(latency_s) else None,
            "per_model": per_model,
            "per_group": [
                {"requests": int((self.group == index).sum()), "utilization": busy}
                for index, busy in enumerate(self.busy)
            ],
            "wall_s": self.wall_s,
        } | self._per_class()

    def _per_class(self) -> dict[str, object]:
        """What became of the requests of each priority and of each tenant, where there are several."""
        workload = self.workload
        priorities = {str(each): workload.priority == each for each in sorted(workload.requests_by_priority())}
        tenants = {name: workload.tenant == workload.tenant_names.index(name) for name in workload.requests_by_tenant()}
        latency_s = self.finish_s - workload.arrival_s
        found: dict[str, object] = {}
        for key, classes in (("per_priority", priorities), ("per_tenant", tenants)):
            if len(classes) > 1:
                found[key] = {
                    name: {
                        "requests": int(own.sum()),
                        "slo_attainment": _share(self.outcome[own] == SERVED),
                        "latency_p50_s": _median(latency_s[own]),
                    }
                    for name, own in classes.items()
                }
        return found


def _share(hits: npt.NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else 1.0


def _median(latency_s: Floats) -> float | None:
    served_s = latency_s[~np.isnan(latency_s)]
    return float(np.median(served_s)) if len(served_s) else None


def simulate(
    *,
    profiles: Profiles,
    fleet: Fleet,
    placement: Placement,
    workload: Workload,
    dispatch: str = "alpaserve",
    overhead_s: float = 0.0,
    max_batch: int = 1,
    max_overtakings: int = 0,
    shares: Mapping[str, float] | None = None,
    engine: str = "fast",
) -> SimulationResult:
    """Decides every request of a workload as the scheduler would, on stages that take exactly what was profiled.

    A request whose model is not in the fleet, or is on no group, is rejected. Where the placement has segments, the
    next one begins, with idle stages, at the first arrival later than its start; what was admitted before finishes on
    the old stages.

    Requests are merged into batches of the sizes for which the profiles have rows, up to `max_batch`.

    Where hosts end is not asked: a stage that spans two of them, which no cluster can serve, runs as any other.

    By `max_overtakings` the priorities of requests count, by `shares` their tenants, as in `Engine`.

    The engine "reference" drives the scheduler itself; "fast" is compiled and gives the same, `busy` but for rounding.
    Priorities, shares, models that wait for company and spares are not compiled: "fast" leaves them to the reference.

    Raises:
        PlacementError: the placement does not fit the fleet, the cluster or the profiles.
        ConfigError: no such dispatch or engine, a negative overhead, a largest batch of less than 1, a negative number
            of overtakings, or a share that is not from 0.001 to 1000.
    """
    if dispatch not in DISPATCHES:
        raise ConfigError(f"dispatch is {dispatch!r}, but must be one of {', '.join(DISPATCHES)}")
    if not 0 <= overhead_s < np.inf:
        raise ConfigError(f"overhead_s is {overhead_s}, but must be finite and not negative")
    if max_batch < 1:
        raise ConfigError(f"max_batch is {max_batch}, but must be at least 1; at 1 no requests are merged")
    if engine not in ENGINES:
        raise ConfigError(f"engine is {engine!r}, but must be one of {', '.join(ENGINES)}")
    policy = Policy(max_overtakings=max_overtakings, shares=shares)
    began_s = time.perf_counter()
    segments = placement.segments or (Segment(start_s=0.0, groups=placement.groups),)
    rows = [rows_of(segment.groups, fleet=fleet, profiles=profiles, max_batch=max_batch) for segment in segments]
    placed = {name for segment in segments for group in segment.groups for name in group.models}
    waits = max_batch > 1 and any(model.max_wait_s for model in fleet.models if model.name in placed)
    by_engine: Engine
    spares = any(group.spares for segment in segments for group in segment.groups)
    compiled = dispatch in batches.DISPATCHES and policy == FIRST_COME and not waits and not spares
    if engine == "fast" and compiled:
        by_engine = ByLoop(
            workload,
            placed,
            fleet=fleet,
            profiles=profiles,
            dispatch=dispatch,
            overhead_s=overhead_s,
            max_batch=max_batch,
        )
    else:
        by_engine = ByReference(
            workload,
            fleet=fleet,
            dispatch=DISPATCHES[dispatch],
            overhead_s=overhead_s,
            max_batch=max_batch,
            policy=policy,
        )
    finish_s = np.full(len(workload), np.nan)
    group = np.full(len(workload), -1, np.int32)
    busy: list[float] = []
    first = 0
    for index, segment in enumerate(segments):
        end = len(workload)
        if index + 1 < len(segments):
            end = int(np.searchsorted(workload.arrival_s, segments[index + 1].start_s, side="right"))
        busy_s = by_engine.run(segment.groups, rows[index], first, finish_s[first:end], group[first:end])
        group[first:end][group[first:end] >= 0] += len(busy)
        span_s = _span_s(workload.arrival_s, finish_s, first, end)
        for each, used_s in zip(segment.groups, busy_s, strict=True):
            busy.append(float(used_s) / each.inter_op / span_s if span_s > 0 else 0.0)
        first = end
    outcome = np.where(np.isnan(finish_s), REJECTED, SERVED).astype(np.int8)
    outcome[finish_s - workload.arrival_s > workload.slo_s] = LATE
    return SimulationResult(
        workload=workload,
        finish_s=finish_s,
        group=group,
        outcome=outcome,
        busy=tuple(busy),
        wall_s=time.perf_counter() - began_s,
    )


def _span_s(arrival_s: Floats, finish_s: Floats, first: int, end: int) -> float:
    if first == end:
        return 0.0
    last_s = float(np.nanmax(np.append(finish_s[first:end], arrival_s[end - 1])))
    return last_s - float(arrival_s[first])
