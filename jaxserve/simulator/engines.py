"""The two ways to run a workload: the reference, which drives the scheduler, and the compiled loop, which equals it."""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from jaxserve.plans import Fleet, Group, Profile, Profiles
from jaxserve.request import Done, Request
from jaxserve.scheduling import Dispatch, Grid, Policy, Scheduler, Spare
from jaxserve.simulator import batches
from jaxserve.simulator.reference import Reference
from jaxserve.simulator.rows import Rows
from jaxserve.simulator.tables import FleetTables, fleet_index
from jaxserve.workload import Workload

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]


class Engine(Protocol):
    """Runs a part of a workload on groups that stay."""

    def run(self, groups: Sequence[Group], rows: Sequence[Rows], first: int, finish_s: Floats, group: Ints) -> Floats:
        """Runs the requests from `first` on, as many as there are finishes, on idle groups.

        Writes when each one was served and by which group, where it was; returns the stage seconds that groups used.
        """
        ...


class ByReference:
    """Drives the scheduler.

    Args:
        workload: of which parts are run.
        fleet: has the models.
        dispatch: chooses a group.
        overhead_s: added to every finish.
        max_batch: the largest batch.
        policy: who goes first.
    """

    def __init__(
        self,
        workload: Workload,
        *,
        fleet: Fleet,
        dispatch: Dispatch,
        overhead_s: float,
        max_batch: int,
        policy: Policy,
    ) -> None:
        self._workload = workload
        self._fleet = fleet
        self._max_wait_s = {model.name: model.max_wait_s or 0.0 for model in fleet.models}
        self._scheduler = functools.partial(Scheduler, dispatch=dispatch, overhead_s=overhead_s, policy=policy)
        self._max_batch = max_batch

    def run(self, groups: Sequence[Group], rows: Sequence[Rows], first: int, finish_s: Floats, group: Ints) -> Floats:
        """See `Engine`."""
        scheduler = self._scheduler()
        for each, held in zip(groups, rows, strict=True):
            index = scheduler.add_group(each.inter_op, spare_bytes=self._spare_bytes(each, held))
            for name, buckets in held.items():
                grid = Grid([row.batch_size for row in buckets], max_batch=self._max_batch)
                scheduler.place(
                    index,
                    name,
                    tuple(row.stage_latency_s for row in buckets),
                    grid,
                    max_wait_s=self._max_wait_s[name],
                    spare=self._spare(buckets[0]) if name in each.spares else None,
                )
        driver = Reference(scheduler)
        requests = slice(first, first + len(finish_s))
        workload = self._workload
        arrival_s: list[float] = workload.arrival_s[requests].tolist()
        slo_s: list[float] = workload.slo_s[requests].tolist()
        model: list[int] = workload.model[requests].tolist()
        priority: list[int] = workload.priority[requests].tolist()
        tenant: list[int] = workload.tenant[requests].tolist()
        for at in range(len(arrival_s)):
            request = Request(
                id=at,
                model=workload.model_names[model[at]],
                arrival_s=arrival_s[at],
                slo_s=slo_s[at],
                priority=priority[at],
                tenant=workload.tenant_names[tenant[at]],
            )
            driver.arrive(request)
        driver.drain()
        for at, answer in driver.answers.items():
            if isinstance(answer.outcome, Done):
                finish_s[at] = answer.outcome.finish_s
                group[at] = answer.outcome.group
        return np.array([driver.busy_s.get(index, 0.0) for index in range(len(groups))])

    def _spare_bytes(self, group: Group, rows: Rows) -> list[float]:
        """What the models of a group leave of each device of its stages."""
        return [
            self._fleet.memory_bytes - sum(rows[name][0].stage_weight_bytes[stage] for name in group.models)
            for stage in range(group.inter_op)
        ]

    def _spare(self, row: Profile) -> Spare:
        rate = self._fleet.restore_bytes_per_s
        assert rate is not None
        return Spare.of(row.stage_weight_bytes, [each / rate for each in row.stage_weight_bytes])


class ByLoop:
    """Runs the compiled loop.

    Args:
        workload: of which parts are run.
        placed: names of the models that some group holds.
        fleet: has these models.
        profiles: have what their groups run by.
        dispatch: chooses a group, by name: one of `batches.DISPATCHES`.
        overhead_s: added to every finish.
        max_batch: the largest batch.
    """

    def __init__(
        self,
        workload: Workload,
        placed: Collection[str],
        *,
        fleet: Fleet,
        profiles: Profiles,
        dispatch: str,
        overhead_s: float,
        max_batch: int,
    ) -> None:
        models = tuple(model for model in fleet.models if model.name in placed)
        self._fleet = dataclasses.replace(fleet, models=models)
        self._tables = FleetTables.of(self._fleet, profiles, max_batch=max_batch)
        self._workload = workload
        self._model = fleet_index(workload, self._fleet)
        self._dispatch = batches.DISPATCHES.index(dispatch)
        self._overhead_s = overhead_s

    def run(self, groups: Sequence[Group], rows: Sequence[Rows], first: int, finish_s: Floats, group: Ints) -> Floats:
        """See `Engine`."""
        config_of = {config: index for index, config in enumerate(self._tables.configs)}
        config = np.array([config_of.get(each.config, -1) for each in groups], np.int32)
        held = np.array([[model.name in each for model in self._fleet.models] for each in rows], np.uint8)
        held = held.reshape(len(groups), len(self._fleet.models))
        known = first + np.flatnonzero(self._model[first : first + len(finish_s)] >= 0)
        traffic = (self._workload.arrival_s[known], self._workload.slo_s[known], self._model[known])
        served, chosen = np.zeros(len(self._fleet.models), np.int64), np.zeros(len(groups), np.int64)
        known_finish_s, known_group = np.full(len(known), np.nan), np.full(len(known), -1, np.int32)
        busy_s = np.zeros(len(groups))
        batches.run(
            traffic, self._tables.with_batches, (config, held), self._dispatch, self._overhead_s,
            served, chosen, known_finish_s, known_group, busy_s,
        )  # fmt: skip
        finish_s[known - first], group[known - first] = known_finish_s, known_group
        return busy_s
