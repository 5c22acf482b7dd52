"""A placement for a fleet and its traffic, by a policy, and what is to be known of it."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

import numpy as np

from jaxserve.errors import ConfigError
from jaxserve.placement.bound import Bound, upper_bound
from jaxserve.placement.explain import Unplaced, refuse_hopeless, unplaced
from jaxserve.placement.policies import FAIR, policy_label, policy_named
from jaxserve.placement.problem import Effort, Plan, Policy, Problem, Progress
from jaxserve.plans import Fleet, Group, Placement, Profiles
from jaxserve.scheduling import DISPATCHES
from jaxserve.simulator import SimulationResult, simulate
from jaxserve.workload import Workload


class PlanOptions(TypedDict, total=False):
    """The options of `plan` beside what is to be placed; `devices_for` and `sweep` pass them on."""

    policy: str | Policy
    dispatch: str
    overhead_s: float
    max_batch: int
    seconds: float
    simulations: int | None
    seed: int
    fairness: bool
    min_attainment: float
    bound: bool
    report: Callable[[Progress], None] | None
    stop: Callable[[], bool] | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """What a plan does for one model.

    Attributes:
        requests: of the workload.
        slo_attainment: share of them that is served in time; 1 where there are none.
        groups: indices of the groups that hold it; where the placement has segments, of all groups in their order.
    """

    requests: int
    slo_attainment: float
    groups: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GroupReport:
    """How busy one group is.

    Attributes:
        requests: that it serves.
        utilization: share of its stage seconds that is used.
        load: the part of `utilization` that is of each of its models.
    """

    requests: int
    utilization: float
    load: Mapping[str, float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """A model that is served less than it must be: what it must reach, and what it does."""

    model: str
    min_attainment: float
    slo_attainment: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlanResult:
    """A placement, and what the simulator says of it on the traffic that was planned for.

    Attributes:
        placement: the placement.
        slo_attainment: of all requests of the workload.
        policy: the name of the policy, or MODULE:FUNCTION.
        search_s: seconds that the policy took.
        simulations: runs of a workload that it took.
        per_model: by name, in the order of the fleet; then models of the workload that the fleet lacks.
        per_group: in the order of the groups, those of all segments where there are several.
        bound: what no placement without segments exceeds; None where it was not asked for.
        unplaced: why each model that is on no group is on none; also models that no group can serve in time.
        shortfalls: models below their floor, the farthest below first.
    """

    placement: Placement
    slo_attainment: float
    policy: str
    search_s: float
    simulations: int
    per_model: Mapping[str, ModelReport]
    per_group: tuple[GroupReport, ...]
    bound: Bound | None
    unplaced: tuple[Unplaced, ...]
    shortfalls: tuple[Shortfall, ...]

    @property
    def groups(self) -> int:
        """How many groups there are at a time."""
        return len(self.placement.groups)

    def to_json(self) -> dict[str, object]:
        """The result as `jaxserve plan --json` prints it."""
        return {
            "slo_attainment": self.slo_attainment,
            "policy": self.policy,
            "search_s": self.search_s,
            "simulations": self.simulations,
            "groups": self.groups,
            "placement": self.placement.to_json(),
            "per_model": {name: dataclasses.asdict(each) for name, each in self.per_model.items()},
            "per_group": [dataclasses.asdict(each) for each in self.per_group],
            "bound": None if self.bound is None else dataclasses.asdict(self.bound),
            "unplaced": [dataclasses.asdict(each) for each in self.unplaced],
            "shortfalls": [dataclasses.asdict(each) for each in self.shortfalls],
        }


def plan(
    *,
    profiles: Profiles,
    fleet: Fleet,
    workload: Workload,
    policy: str | Policy = "search",
    dispatch: str = "alpaserve",
    overhead_s: float = 0.0,
    max_batch: int = 1,
    seconds: float = 20.0,
    simulations: int | None = None,
    seed: int = 0,
    fairness: bool = False,
    min_attainment: float = 0.0,
    bound: bool = True,
    report: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> PlanResult:
    """Decides which groups there are and which models each holds, for a fleet and the traffic that it gets.

    The result is told of, not raised, where some model stays below its floor (`shortfalls`) or is on no group
    (`unplaced`).

    Args:
        profiles: what the models cost.
        fleet: the models and the cluster; a model's own `min_attainment` goes before the one given here.
        workload: the traffic to plan for, and to judge the plan by.
        policy: one of `search`, `alpaserve`, `selective-replication`, `round-robin`, `greedy-N` with a number of
            stages, `clockwork++`; or a function, `Policy`.
        dispatch: how a group is chosen, when the plan is judged; policies themselves go by `alpaserve`.
        overhead_s: seconds that an answer costs beyond its stages.
        max_batch: how many requests are merged into a batch at most.
        seconds: how long to search; ignored where `simulations` is given.
        simulations: how many runs of a workload the search may use; the result then depends on the seed only.
        seed: of every random draw.
        fairness: whether to maximise the worst model's attainment first.
        min_attainment: SLO attainment that each model must reach, 0 to 1.
        bound: whether to compute what no placement exceeds.
        report: called now and then while the policy runs.
        stop: asked now and then; True ends the search with the best so far.

    Raises:
        ConfigError: an option that makes no sense, a workload without requests, a profile that is missing.
        PlacementError: no model of the fleet can be served on its cluster; the message says what is missing.
    """
    chosen, name = _policy(policy, fairness=fairness), policy_label(policy)
    _check(dispatch=dispatch, seconds=seconds, simulations=simulations, seed=seed)
    problem = Problem.of(
        fleet=fleet,
        profiles=profiles,
        workload=workload,
        overhead_s=overhead_s,
        max_batch=max_batch,
        fair=fairness,
        min_attainment=min_attainment,
    )
    refuse_hopeless(problem)
    effort = Effort(seconds=seconds, simulations=simulations, seed=seed)
    effort = dataclasses.replace(effort, report=report or effort.report, stop=stop or effort.stop)
    began_s = time.perf_counter()
    found = chosen(problem, effort)
    search_s = time.perf_counter() - began_s
    if not isinstance(found, Plan):
        given = type(found).__name__
        raise ConfigError(f"the policy {name} returned a {given}, but a policy returns a jaxserve.placement.Plan")
    result = simulate(
        profiles=profiles,
        fleet=fleet,
        placement=found.placement,
        workload=workload,
        dispatch=dispatch,
        overhead_s=overhead_s,
        max_batch=max_batch,
    )
    per_model = _per_model(problem, found.placement, result)
    return PlanResult(
        placement=found.placement,
        slo_attainment=result.slo_attainment,
        policy=name,
        search_s=search_s,
        simulations=found.simulations,
        per_model=per_model,
        per_group=_per_group(problem, found.placement, result),
        bound=upper_bound(problem) if bound else None,
        unplaced=unplaced(problem, found.placement),
        shortfalls=_shortfalls(problem, per_model),
    )


def _policy(policy: str | Policy, *, fairness: bool) -> Policy:
    if not isinstance(policy, str):
        return policy
    chosen = policy_named(policy)
    if fairness and policy not in FAIR:
        raise ConfigError(
            f"fairness was asked for, but the policy {policy} only maximises the total; "
            f"choose {', '.join(sorted(FAIR))}, or a function of your own"
        )
    return chosen


def _check(*, dispatch: str, seconds: float, simulations: int | None, seed: int) -> None:
    if dispatch not in DISPATCHES:
        raise ConfigError(f"dispatch is {dispatch!r}, but must be one of {', '.join(DISPATCHES)}")
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ConfigError(f"seconds is {seconds:g}, but a search needs a finite time greater than 0")
    if simulations is not None and simulations < 1:
        raise ConfigError(f"simulations is {simulations}, but must be at least 1")
    if seed < 0:
        raise ConfigError(f"seed is {seed}, but must not be negative")


def _groups(placement: Placement) -> Sequence[Group]:
    """The groups of all segments, as the simulator numbers them."""
    return [group for segment in placement.segments for group in segment.groups] or placement.groups


def _per_model(problem: Problem, placement: Placement, result: SimulationResult) -> dict[str, ModelReport]:
    workload = result.workload
    requests = np.bincount(workload.model, minlength=len(workload.model_names))
    served = np.bincount(workload.model[result.outcome == 0], minlength=len(workload.model_names))
    index_of = {name: index for index, name in enumerate(workload.model_names)}
    strangers = [name for name, index in index_of.items() if requests[index]]
    reports: dict[str, ModelReport] = {}
    groups: dict[str, list[int]] = {}
    for number, group in enumerate(_groups(placement)):
        for name in group.models:
            groups.setdefault(name, []).append(number)
    for name in dict.fromkeys([*(model.name for model in problem.fleet.models), *strangers]):
        own = int(requests[index_of[name]]) if name in index_of else 0
        reports[name] = ModelReport(
            requests=own,
            slo_attainment=float(served[index_of[name]]) / own if own else 1.0,
            groups=tuple(groups.get(name, ())),
        )
    return reports


def _per_group(problem: Problem, placement: Placement, result: SimulationResult) -> tuple[GroupReport, ...]:
    profile_of = {model.name: model.profile for model in problem.fleet.models}
    names = result.workload.model_names
    groups = _groups(placement)
    taken = result.group >= 0
    pairs = result.group[taken].astype(np.int64) * len(names) + result.workload.model[taken]
    counts = np.bincount(pairs, minlength=len(groups) * len(names)).reshape(len(groups), len(names))
    reports: list[GroupReport] = []
    for number, group in enumerate(groups):
        work_s: dict[str, float] = {}
        for name in group.models:
            row = problem.profiles.find(profile_of[name], group.config)
            count = int(counts[number, names.index(name)]) if name in names else 0
            work_s[name] = 0.0 if row is None else count * row.latency_s
        whole = result.busy[number] / (sum(work_s.values()) or 1.0)
        reports.append(
            GroupReport(
                requests=int(counts[number].sum()),
                utilization=result.busy[number],
                load={name: own * whole for name, own in work_s.items()},
            )
        )
    return tuple(reports)


def _shortfalls(problem: Problem, per_model: Mapping[str, ModelReport]) -> tuple[Shortfall, ...]:
    names = [model.name for model in problem.fleet.models]
    requests = np.array([per_model[name].requests for name in names])
    served = np.array([round(per_model[name].requests * per_model[name].slo_attainment) for name in names])
    below = [
        Shortfall(
            model=names[index],
            min_attainment=float(problem.objective.floors[index]),
            slo_attainment=per_model[names[index]].slo_attainment,
        )
        for index in problem.objective.shortfalls(served, requests)
    ]
    return tuple(sorted(below, key=lambda each: each.slo_attainment - each.min_attainment))
