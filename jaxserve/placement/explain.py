"""Why a model is on no group: what keeps it from every group, or what it lost its place to.

A model that no group can serve in time may be on one all the same, where there is room; it is told of as well.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxserve.errors import PlacementError
from jaxserve.placement.problem import Problem
from jaxserve.plans import Group, ParallelConfig, Placement
from jaxserve.simulator import Traffic


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unplaced:
    """Why a model is on no group, or on one that is of no use to it.

    Attributes:
        model: its name.
        cause: `not-in-fleet`, `no-profile`, `too-few-devices`, `memory` or `too-slow`, which no placement can mend;
            `no-requests`; `crowded-out`, or `left-out` where a group has room for it.
        why: the same in words, with numbers and what to do.
    """

    model: str
    cause: str
    why: str


def unplaced(problem: Problem, placement: Placement) -> tuple[Unplaced, ...]:
    """Every model that is on no group of any segment, or can be served by none, in the order of the fleet.

    Then those of the workload that are not in the fleet.
    """
    reasons = _Reasons(problem, placement.groups)
    segments = [segment.groups for segment in placement.segments] or [placement.groups]
    held = {name for groups in segments for group in groups for name in group.models}
    found = [
        reasons.obstacle(index) if model.name in held else reasons.why(index)
        for index, model in enumerate(problem.fleet.models)
    ]
    return (*(each for each in found if each is not None), *_strangers(problem))


def refuse_hopeless(problem: Problem) -> None:
    """Raises where no placement could serve a single request.

    Raises:
        PlacementError: something keeps every model from every group, or no request is for any model of the fleet.
    """
    names = [model.name for model in problem.fleet.models]
    counted = _counted(problem)
    if not any(counted.get(name) for name in names):
        raise PlacementError(
            f"the workload's requests are for {_listed(list(counted))}, but the fleet's models are {_listed(names)}; "
            f"use the same names in both"
        )
    reasons = _Reasons(problem)
    obstacles = [reasons.obstacle(index) for index in range(len(names))]
    if None not in obstacles:
        (_, first), *others = zip(names, obstacles, strict=True)
        more = f" (nor can {_listed([name for name, _ in others])})" if others else ""
        why = "" if first is None else f"{first.model}: {first.why}"
        raise PlacementError(f"no model of the fleet can be served on this cluster; {why}{more}")


class _Reasons:
    """What keeps the models of one problem from groups, and from these groups in particular."""

    def __init__(self, problem: Problem, groups: Sequence[Group] = ()) -> None:
        traffic = Traffic.of(problem.workload, problem.fleet)
        self._problem = problem
        self._requests = traffic.per_model
        self._slo_s = np.zeros(len(problem.fleet.models))
        np.maximum.at(self._slo_s, traffic.model, traffic.slo_s)  # the longest of each model's requests
        tables = problem.tables
        index_of = {model.name: index for index, model in enumerate(problem.fleet.models)}
        self._config = np.array([tables.configs.index(group.config) for group in groups], np.int64)
        used = [
            tables.weight_bytes[config, [index_of[name] for name in group.models]].sum(axis=0)
            for config, group in zip(self._config, groups, strict=True)
        ]
        free_bytes = problem.fleet.memory_bytes - np.array(used, np.float64)
        self._free_bytes = free_bytes.reshape(len(groups), tables.weight_bytes.shape[2])  # [groups, stages]

    def why(self, index: int) -> Unplaced:
        """Why a model is on none of the groups."""
        if (found := self.obstacle(index)) is not None:
            return found
        if not self._requests[index]:
            return self._because(index, "no-requests", "no request of the workload is for it")
        return self._outdone(index)

    def obstacle(self, index: int) -> Unplaced | None:
        """What keeps a model from every group that the cluster can have; None where nothing does."""
        tables, fleet = self._problem.tables, self._problem.fleet
        has_row = np.flatnonzero(tables.has_row[:, index])
        if not len(has_row):
            why = f"its profile {fleet.models[index].profile!r} has no row at batch size 1; run `jaxserve profile`"
            return self._because(index, "no-profile", why)
        host = min(fleet.devices_per_host, fleet.devices)
        possible = [
            int(c) for c in has_row if tables.devices[c] <= fleet.devices and tables.configs[c].intra_op <= host
        ]
        if not possible:
            smallest = min((tables.configs[c] for c in has_row), key=lambda config: (config.devices, config.intra_op))
            why = (
                f"its smallest config, {_shown(smallest)}, needs {smallest.devices} devices, {smallest.intra_op} of "
                f"them on one host, but the cluster has {fleet.devices}, {host} on a host; add devices, or profile "
                f"smaller configs"
            )
            return self._because(index, "too-few-devices", why)
        needed = tables.weight_bytes[possible, index].max(axis=1)
        fitting = [c for c, weight in zip(possible, needed, strict=True) if weight <= fleet.memory_bytes]
        if not fitting:
            lightest = tables.configs[possible[int(needed.argmin())]]
            why = (
                f"at its lightest, as {_shown(lightest)}, it needs {_gb(needed.min())} GB on each device of a stage, "
                f"but a device may hold {_gb(fleet.memory_bytes)} GB: {_gb(needed.min() - fleet.memory_bytes)} GB are "
                f"missing; profile configs of more devices, or use devices with more memory"
            )
            return self._because(index, "memory", why)
        return self._too_slow(index, fitting)

    def _too_slow(self, index: int, fitting: Sequence[int]) -> Unplaced | None:
        tables = self._problem.tables
        alone_s = tables.latency_s[fitting, index, :, 0].sum(axis=1) + self._problem.overhead_s
        slo_s = self._slo_s[index] if self._requests[index] else self._problem.fleet.models[index].slo_s
        if alone_s.min() <= slo_s:
            return None
        fastest = tables.configs[fitting[int(alone_s.argmin())]]
        why = (
            f"at its fastest, as {_shown(fastest)}, a request takes {alone_s.min():.4g} s on an idle group, but its "
            f"SLO is {slo_s:.4g} s; allow more time, or profile faster configs"
        )
        return self._because(index, "too-slow", why)

    def _outdone(self, index: int) -> Unplaced:
        tables, memory_bytes = self._problem.tables, self._problem.fleet.memory_bytes
        weights = tables.weight_bytes[:, index]
        usable = np.all(weights <= memory_bytes, axis=1)  # [configs]
        matching = np.flatnonzero(usable[self._config])
        if not len(matching):
            shapes = ", ".join(_shown(tables.configs[c]) for c in np.flatnonzero(usable))
            why = (
                f"it fits {shapes}, but the policy made no group of such a shape, since others gain more; add devices, "
                f"or give it a min_attainment"
            )
            return self._because(index, "crowded-out", why)
        with_room = matching[np.all(weights[self._config[matching]] <= self._free_bytes[matching], axis=1)]
        if len(with_room):
            why = f"group {with_room[0]} has room for it, but the policy did not use it; try the policy search"
            return self._because(index, "left-out", why)
        config = self._config[matching[0]]
        shape, needed = _shown(tables.configs[config]), _gb(weights[config].max())
        why = (
            f"no group has room left for it: as {shape} it needs {needed} of the {_gb(memory_bytes)} GB that a device "
            f"may hold, and others gain more there; add devices, or give it a min_attainment"
        )
        return self._because(index, "crowded-out", why)

    def _because(self, index: int, cause: str, why: str) -> Unplaced:
        return Unplaced(model=self._problem.fleet.models[index].name, cause=cause, why=why)


def _strangers(problem: Problem) -> list[Unplaced]:
    names = {model.name for model in problem.fleet.models}
    return [
        Unplaced(
            model=name,
            cause="not-in-fleet",
            why=f"it is not in the fleet, so its {count} requests are missed; add it, or take them out",
        )
        for name, count in _counted(problem).items()
        if count and name not in names
    ]


def _counted(problem: Problem) -> dict[str, int]:
    """Requests of each model of the workload."""
    names = problem.workload.model_names
    counts: list[int] = np.bincount(problem.workload.model, minlength=len(names)).tolist()
    return dict(zip(names, counts, strict=True))


def _shown(config: ParallelConfig) -> str:
    return f"({config.intra_op}, {config.inter_op})"


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.3g}"


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most]) or "none"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
