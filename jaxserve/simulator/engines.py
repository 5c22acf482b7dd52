"""The two ways to run a workload: the reference, which drives the scheduler, and the compiled loop, which equals it."""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from jaxserve.plans import Fleet, Group, Profiles
from jaxserve.request import Done, Request
from jaxserve.scheduling import Dispatch, Grid, Scheduler
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
        dispatch: chooses a group.
        overhead_s: added to every finish.
        max_batch: the largest batch.
    """

    def __init__(self, workload: Workload, *, dispatch: Dispatch, overhead_s: float, max_batch: int) -> None:
        self._workload = workload
        self._scheduler = functools.partial(Scheduler, dispatch=dispatch, overhead_s=overhead_s)
        self._max_batch = max_batch

    def run(self, groups: Sequence[Group], rows: Sequence[Rows], first: int, finish_s: Floats, group: Ints) -> Floats:
        """See `Engine`."""
        scheduler = self._scheduler()
        latencies = [
            {name: tuple(row.stage_latency_s for row in buckets) for name, buckets in held.items()} for held in rows
        ]
        for each, held in zip(groups, rows, strict=True):
            index = scheduler.add_group(each.inter_op)
            for name, buckets in held.items():
                grid = Grid([row.batch_size for row in buckets], max_batch=self._max_batch)
                scheduler.place(index, name, latencies[index][name], grid)
        driver = Reference(scheduler, latency_s=lambda group, model: latencies[group][model])
        requests = slice(first, first + len(finish_s))
        arrival_s: list[float] = self._workload.arrival_s[requests].tolist()
        slo_s: list[float] = self._workload.slo_s[requests].tolist()
        model: list[int] = self._workload.model[requests].tolist()
        for at in range(len(arrival_s)):
            name = self._workload.model_names[model[at]]
            driver.arrive(Request(id=at, model=name, arrival_s=arrival_s[at], slo_s=slo_s[at]))
        driver.drain()
        for at, answer in driver.answers.items():
            if isinstance(answer.outcome, Done):
                finish_s[at] = answer.outcome.finish_s
                group[at] = answer.outcome.group
        return np.array([driver.busy_s.get(index, 0.0) for index in range(len(groups))])


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
