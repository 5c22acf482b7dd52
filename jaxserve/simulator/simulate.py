"""What would become of a workload under a placement."""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jaxserve.errors import ConfigError, PlacementError
from jaxserve.plans import Fleet, Group, Placement, Profiles, Segment
from jaxserve.request import Done, Request
from jaxserve.scheduling import DISPATCHES, Latencies, Scheduler
from jaxserve.simulator.reference import Reference
from jaxserve.workload import Workload

SERVED, REJECTED, LATE = 0, 1, 2


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
    finish_s: npt.NDArray[np.float64]
    group: npt.NDArray[np.int32]
    outcome: npt.NDArray[np.int8]
    busy: tuple[float, ...]
    wall_s: float

    @property
    def slo_attainment(self) -> float:
        """Requests answered within their deadline over all requests; 1 where there are none."""
        return _share(self.outcome == SERVED)

    def to_json(self) -> dict[str, object]:
        """The result as `jaxserve simulate --json` prints it."""
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
        }


def _share(hits: npt.NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else 1.0


def simulate(
    *,
    profiles: Profiles,
    fleet: Fleet,
    placement: Placement,
    workload: Workload,
    dispatch: str = "alpaserve",
    overhead_s: float = 0.0,
) -> SimulationResult:
    """Decides every request of a workload as the scheduler would, on stages that take exactly what was profiled.

    A request whose model is not in the fleet, or is on no group, is rejected. Where the placement has segments, the
    next one begins, with idle stages, at the first arrival later than its start; what was admitted before finishes on
    the old stages.

    Raises:
        PlacementError: the placement does not fit the fleet, the cluster or the profiles.
        ConfigError: no such dispatch, or a negative overhead.
    """
    if dispatch not in DISPATCHES:
        raise ConfigError(f"dispatch is {dispatch!r}, but must be one of {', '.join(DISPATCHES)}")
    if not 0 <= overhead_s < np.inf:
        raise ConfigError(f"overhead_s is {overhead_s}, but must be finite and not negative")
    began_s = time.perf_counter()
    segments = placement.segments or (Segment(start_s=0.0, groups=placement.groups),)
    latencies = [_latencies(segment.groups, fleet=fleet, profiles=profiles) for segment in segments]
    finish_s = np.full(len(workload), np.nan)
    group = np.full(len(workload), -1, np.int32)
    busy: list[float] = []
    first, base = 0, 0
    for index, segment in enumerate(segments):
        end = len(workload)
        if index + 1 < len(segments):
            end = int(np.searchsorted(workload.arrival_s, segments[index + 1].start_s, side="right"))
        driver = _run(workload, range(first, end), segment.groups, latencies[index], dispatch, overhead_s)
        for request_id in range(first, end):
            outcome = driver.answers[request_id].outcome
            if isinstance(outcome, Done):
                finish_s[request_id] = outcome.finish_s
                group[request_id] = base + outcome.group
        span_s = _span_s(workload.arrival_s, finish_s, first, end)
        for number, each in enumerate(segment.groups):
            used = driver.busy_s.get(number, 0.0) / each.inter_op
            busy.append(used / span_s if span_s > 0 else 0.0)
        first, base = end, base + len(segment.groups)
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


def _run(
    workload: Workload,
    requests: range,
    groups: Sequence[Group],
    latencies: Sequence[dict[str, Latencies]],
    dispatch: str,
    overhead_s: float,
) -> Reference:
    scheduler = Scheduler(dispatch=DISPATCHES[dispatch], overhead_s=overhead_s)
    for group, held in zip(groups, latencies, strict=True):
        index = scheduler.add_group(group.inter_op)
        for name, latency_s in held.items():
            scheduler.place(index, name, latency_s)
    driver = Reference(scheduler, latency_s=lambda group, model: latencies[group][model])
    arrival_s, slo_s = workload.arrival_s.tolist(), workload.slo_s.tolist()
    model: list[int] = workload.model.tolist()
    for at in requests:
        name = workload.model_names[model[at]]
        driver.arrive(Request(id=at, model=name, arrival_s=arrival_s[at], slo_s=slo_s[at]))
    driver.drain()
    return driver


def _span_s(arrival_s: npt.NDArray[np.float64], finish_s: npt.NDArray[np.float64], first: int, end: int) -> float:
    if first == end:
        return 0.0
    last_s = float(np.nanmax(np.append(finish_s[first:end], arrival_s[end - 1])))
    return last_s - float(arrival_s[first])


def _latencies(groups: Sequence[Group], *, fleet: Fleet, profiles: Profiles) -> list[dict[str, Latencies]]:
    """Stage latencies by model for each group; checks that the groups fit the fleet."""
    profile_of = {model.name: model.profile for model in fleet.models}
    found: list[dict[str, Latencies]] = []
    for index, group in enumerate(groups):
        wrong = [device for device in group.devices if device >= fleet.devices]
        if wrong:
            raise PlacementError(
                f"group {index} uses device {wrong[0]}, but the fleet's cluster has {fleet.devices}, numbered from 0"
            )
        used = [0.0] * group.inter_op
        held: dict[str, Latencies] = {}
        for name in group.models:
            if name not in profile_of:
                raise PlacementError(f"group {index} holds {name!r}, which is not in the fleet; add it or take it out")
            row = profiles.find(profile_of[name], group.config)
            if row is None:
                configs = sorted({each.config for each in profiles.models.get(profile_of[name], ())})
                listed = ", ".join(f"({each.intra_op}, {each.inter_op})" for each in configs) or "none"
                raise PlacementError(
                    f"group {index} holds {name!r} as ({group.intra_op}, {group.inter_op}), but its profile "
                    f"{profile_of[name]!r} has no such row at batch size 1; it has {listed}: run "
                    f"`jaxserve profile`, or choose one of these"
                )
            held[name] = (row.stage_latency_s,)
            used = [before + more for before, more in zip(used, row.stage_weight_bytes, strict=True)]
        heaviest = max(used)
        if heaviest > fleet.memory_bytes:
            raise PlacementError(
                f"group {index} needs {heaviest:.4g} bytes of weights on each device of stage {used.index(heaviest)}, "
                f"but a device may hold {fleet.memory_bytes:.4g}; take a model out or use a config of more stages"
            )
        found.append(held)
    return found
