"""What every policy is given: the fleet, what its models cost, the traffic to plan for, and how far to go."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from jaxserve.errors import ConfigError, PlacementError
from jaxserve.placement.devices import assign_devices
from jaxserve.placement.objective import Objective
from jaxserve.plans import Fleet, Group, Placement, Profiles
from jaxserve.simulator import FleetTables, Scorer, Shape, Traffic
from jaxserve.workload import Workload


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """A fleet to place, and the traffic to place it for.

    Attributes:
        fleet: the models and the cluster.
        profiles: what the models cost.
        workload: what a policy may see of the traffic.
        overhead_s: what an answer costs beyond its stages.
        max_batch: the largest batch that requests may be merged into.
        objective: what a placement is judged by.
        tables: the fleet and its profiles as arrays.
    """

    fleet: Fleet
    profiles: Profiles
    workload: Workload
    overhead_s: float
    max_batch: int
    objective: Objective
    tables: FleetTables

    @classmethod
    def of(
        cls,
        *,
        fleet: Fleet,
        profiles: Profiles,
        workload: Workload,
        overhead_s: float = 0.0,
        max_batch: int = 1,
        fair: bool = False,
        min_attainment: float = 0.0,
    ) -> "Problem":
        """A problem from its parts.

        Args:
            fleet: the models and the cluster.
            profiles: what the models cost.
            workload: what a policy may see of the traffic.
            overhead_s: what an answer costs beyond its stages.
            max_batch: the largest batch that requests may be merged into.
            fair: whether the worst model comes first.
            min_attainment: floor of every model that has none of its own in the fleet.

        Raises:
            ConfigError: a workload without requests, an option out of its range, or a profile that is missing.
            PlacementError: a fleet of no models.
        """
        if not len(workload):
            raise ConfigError("the workload has no requests; a placement is planned for traffic: give some")
        if not 0 <= overhead_s < np.inf:
            raise ConfigError(f"overhead_s is {overhead_s}, but must be finite and not negative")
        tables = FleetTables.of(fleet, profiles, max_batch=max_batch)
        problem = cls(
            fleet=fleet,
            profiles=profiles,
            workload=workload,
            overhead_s=overhead_s,
            max_batch=max_batch,
            objective=Objective(fair=fair, floors=_floors(fleet, min_attainment)),
            tables=tables,
        )
        if not fleet.models:
            raise PlacementError("the fleet has no models; name at least one")
        return problem

    def scorer(self, workload: Workload | None = None) -> Scorer:
        """Scores placements under the problem's workload, or another one."""
        traffic = Traffic.of(self.workload if workload is None else workload, self.fleet)
        return Scorer(self.tables, traffic, overhead_s=self.overhead_s)

    def empty(self, configs: "npt.ArrayLike") -> Shape:
        """Groups of these configs (indices into the tables) that hold nothing yet."""
        config = np.asarray(configs, np.int32)
        return Shape(config=config, held=np.zeros((len(config), len(self.fleet.models)), np.uint8))

    def shape(self, placement: Placement, *, spare: int = 0) -> Shape:
        """A placement without segments as arrays, and `spare` slots for more groups behind its own."""
        index_of = {model.name: index for index, model in enumerate(self.fleet.models)}
        configs = [self.tables.configs.index(group.config) for group in placement.groups]
        shape = self.empty([*configs, *[-1] * spare])
        for index, group in enumerate(placement.groups):
            shape.held[index, [index_of[name] for name in group.models]] = 1
        return shape

    def placement(self, shape: Shape) -> Placement:
        """A placement of this shape, on numbered devices; groups that hold nothing keep their devices.

        Raises:
            PlacementError: the groups need more devices than there are, or a stage would cross hosts.
        """
        used = [index for index in range(len(shape.config)) if shape.config[index] >= 0]
        configs = [self.tables.configs[shape.config[index]] for index in used]
        devices = assign_devices(configs, devices=self.fleet.devices, devices_per_host=self.fleet.devices_per_host)
        names = [model.name for model in self.fleet.models]
        return Placement(
            groups=tuple(
                Group(
                    intra_op=config.intra_op,
                    inter_op=config.inter_op,
                    devices=own,
                    models=tuple(names[m] for m in np.flatnonzero(shape.held[index])),
                )
                for index, config, own in zip(used, configs, devices, strict=True)
            )
        )


def _floors(fleet: Fleet, min_attainment: float) -> npt.NDArray[np.float64]:
    """float64 [models]: the attainment that each must reach."""
    floors = [min_attainment if model.min_attainment is None else model.min_attainment for model in fleet.models]
    for floor in (min_attainment, *floors):
        if not 0 <= floor <= 1:
            raise ConfigError(f"min_attainment is {floor:g}, but must be a share of a model's requests, 0 to 1")
    return np.array(floors, np.float64)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a policy is.

    Attributes:
        done: share of its seconds or simulations that is used, 0 to 1.
        simulations: runs of a workload so far.
        slo_attainment: of the best placement so far, on the traffic that it is judged by.
    """

    done: float
    simulations: int
    slo_attainment: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How far a policy may go. One that needs no more than a moment ignores it.

    Attributes:
        seconds: how long it may search; ignored where `simulations` is given.
        simulations: how many runs of a workload it may use; the result then depends on the seed only.
        seed: of every random draw.
        report: called now and then, from the calling thread.
        stop: asked now and then; True ends the search with the best so far.
        clock: seconds.
    """

    seconds: float = 20.0
    simulations: int | None = None
    seed: int = 0
    report: Callable[[Progress], None] = lambda progress: None
    stop: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a policy returns.

    Attributes:
        placement: the placement.
        simulations: runs of a workload that it took.
    """

    placement: Placement
    simulations: int


Policy = Callable[[Problem, Effort], Plan]
"""A policy is a function in a file of its own; `jaxserve plan --policy module:function` takes anybody's."""
