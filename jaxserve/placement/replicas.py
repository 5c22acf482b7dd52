"""Which models each group holds, where the groups are given: AlpaServe's Algorithm 1 [OSDI'23, section 4.2].

The algorithm grows a selection of replicas, one at a time, by what the simulator says of it. In its full form it
simulates every replica that could be added to each of the k best selections of the round before and keeps the k best of
these (`beam_search`). That takes models x groups runs for each replica. In its fast form, which the paper's evaluation
uses, one run decides on one replica: the model with the most unserved requests goes to the group that was chosen least
(`fast_heuristic`).

    paper                                                  here
    model selection `sel`                                  Selection
    add_model_to_group                                     Selection.with_replica
    "is in memory constraint"                              Judge.fits (the rule of memory.py)
    simulate                                               Judge.run
    SLO attainment, by which selections are compared       value

To meet the attainments that were recorded of AlpaServe's code, its habits are kept where the paper is silent: equals
have the order that its sort gives them (`ranking.py`); the groups are sorted by their models after each step, which
decides whom the dispatch prefers on a tie; requests that a group refused count as its load; and of selections of like
attainment the one with the shorter mean latency wins, a refused request counting as 0 s, or with more replicas.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from jaxserve.placement.budget import Budget
from jaxserve.placement.memory import heaviest_stage_bytes
from jaxserve.placement.problem import Plan, Problem
from jaxserve.placement.ranking import ascending
from jaxserve.simulator import Score, Shape
from jaxserve.workload import Workload

EPSILON = 1e-6
"""What AlpaServe adds to a model's requests before it divides by them."""

Flags = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Groups and the models that they hold.

    Attributes:
        config: of each group, the index of its config in the tables.
        models: of each group, the indices of its models, ascending.
    """

    config: tuple[int, ...]
    models: tuple[tuple[int, ...], ...]

    @classmethod
    def empty(cls, config: tuple[int, ...]) -> "Selection":
        """Groups of these configs that hold nothing."""
        return cls(config=config, models=((),) * len(config))

    @property
    def replicas(self) -> int:
        """Models of all groups together."""
        return sum(map(len, self.models))

    def with_replica(self, group: int, model: int) -> "Selection":
        """The selection with one more replica, its groups sorted by their models."""
        models = list(self.models)
        models[group] = tuple(sorted((*models[group], model)))
        order = sorted(range(len(models)), key=models.__getitem__)
        return Selection(
            config=tuple(self.config[index] for index in order), models=tuple(models[index] for index in order)
        )

    def shape(self, models: int) -> Shape:
        """The selection as the simulator takes it, for a fleet of `models` models."""
        held = np.zeros((len(self.models), models), np.uint8)
        for group, own in enumerate(self.models):
            held[group, list(own)] = 1
        return Shape(config=np.array(self.config, np.int32), held=held)


class Judge:
    """What Algorithm 1 asks of a fleet and a workload: what a selection is worth, and what else fits on its groups.

    Args:
        problem: the fleet, and the traffic unless `workload` is given.
        budget: counts the runs.
        workload: the traffic to judge by, a part of the problem's.
        served: requests outside of `workload` that are known to be served; for the reports alone.
        models: indices of the models that may be placed; all of them if None.
    """

    def __init__(
        self,
        problem: Problem,
        budget: Budget,
        *,
        workload: Workload | None = None,
        served: int = 0,
        models: tuple[int, ...] | None = None,
    ) -> None:
        self._scorer = problem.scorer(workload)
        self._total = len(problem.workload)
        self._served = served
        self._memory_bytes = problem.fleet.memory_bytes
        self._bytes = heaviest_stage_bytes(problem.tables)
        if models is not None:
            self._bytes[:, np.setdiff1d(np.arange(len(problem.fleet.models)), models)] = np.inf
        self.budget = budget
        self.requests = self._scorer.traffic.per_model

    def run(self, selection: Selection) -> Score:
        """Simulates the workload."""
        score = self._scorer.score(selection.shape(len(self.requests)))
        self.budget.ran((self._served + int(score.served.sum())) / self._total)
        return score

    def used_bytes(self, selection: Selection) -> list[float]:
        """What the models of each group count for, in sum."""
        weights = self._bytes
        return [
            float(sum(weights[c, m] for m in own)) for c, own in zip(selection.config, selection.models, strict=True)
        ]

    def fits(self, selection: Selection, group: int, used_bytes: float) -> Flags:
        """The models, as bool [M], that a group, of which so much is used, has room for and does not hold."""
        fits = self._bytes[selection.config[group]] + used_bytes <= self._memory_bytes
        fits[list(selection.models[group])] = False
        return fits

    def weight_bytes(self, selection: Selection, group: int, model: int) -> float:
        """What a model counts for on a group."""
        return float(self._bytes[selection.config[group], model])


def value(score: Score, selection: Selection) -> float:
    """By what AlpaServe compares selections: attainment, then mean latency, then the number of replicas."""
    return score.slo_attainment - score.latency_s / score.requests / 10_000 + selection.replicas / 1_000_000


def fast_heuristic(judge: Judge, start: Selection, *, until: float = 1.0) -> tuple[Selection, Score]:
    """Adds the model with the most unserved requests to the group that was chosen least, until nothing fits.

    The last selection is returned, though adding a replica may have done harm. Where the part `until` of the budget is
    used before, the memory that is left is filled without simulations (`completed`).
    """
    selection = start
    while True:
        if judge.budget.spent(until):
            selection = completed(judge, selection)
            return selection, judge.run(selection)
        score = judge.run(selection)
        step = _next_replica(judge, selection, score)
        if step is None:
            return selection, score
        selection = selection.with_replica(*step)


def _next_replica(judge: Judge, selection: Selection, score: Score) -> tuple[int, int] | None:
    """The group and the model that the fast heuristic chooses."""
    unserved = judge.requests * (1 - score.served / (judge.requests + EPSILON))
    models = ascending(unserved)[::-1]
    used_bytes = judge.used_bytes(selection)
    for group in ascending(score.chosen).tolist():
        fits = judge.fits(selection, group, used_bytes[group])[models]
        if fits.any():
            return group, int(models[fits.argmax()])
    return None


def beam_search(judge: Judge, start: Selection, *, size: int, until: float = 1.0) -> tuple[Selection, Score]:
    """Algorithm 1 in full: from each of the `size` best selections on, every replica that could be added is tried.

    The best selection of all rounds is returned. Where the part `until` of the budget is used before, the memory that
    it leaves is filled without simulations (`completed`).
    """
    best: tuple[float, Selection, Score] | None = None
    beam = [start]
    while beam:
        scored: list[tuple[float, Selection, Score]] = []
        for selection in beam if best is None else _grown(judge, beam):
            if judge.budget.spent(until):
                selection = completed(judge, start if best is None else best[1])
                return selection, judge.run(selection)
            score = judge.run(selection)
            scored.append((value(score, selection), selection, score))
        scored.sort(key=lambda each: each[0], reverse=True)
        beam = [selection for _, selection, _ in scored[:size]]
        if best is None or (scored and scored[0][0] > best[0]):
            best = scored[0]
    assert best is not None
    return best[1:]


def _grown(judge: Judge, beam: list[Selection]) -> Iterator[Selection]:
    """Every selection with one replica more than one of `beam`, each once."""
    seen: set[Selection] = set()
    for selection in beam:
        for group, used_bytes in enumerate(judge.used_bytes(selection)):
            for model in np.flatnonzero(judge.fits(selection, group, used_bytes)).tolist():
                grown = selection.with_replica(group, model)
                if grown not in seen:
                    seen.add(grown)
                    yield grown


def completed(judge: Judge, selection: Selection) -> Selection:
    """The selection with the memory that it leaves filled, without a simulation.

    The model with the most requests per replica goes to the group with the least memory used that has room for it. No
    part of AlpaServe: what a search does that is out of time, since replicas that are missing cost more than misplaced
    ones.
    """
    groups = range(len(selection.config))
    used_bytes = np.array(judge.used_bytes(selection))
    fits = np.array([judge.fits(selection, group, used_bytes[group]) for group in groups]).reshape(len(groups), -1)
    models = [list(own) for own in selection.models]
    replicas = np.bincount([m for own in models for m in own], minlength=len(judge.requests))
    while fits.any():
        pressure = np.where(fits.any(axis=0), (judge.requests + EPSILON) / (replicas + EPSILON), -1.0)
        model = int(pressure.argmax())
        group = int(np.where(fits[:, model], used_bytes, np.inf).argmin())
        models[group].append(model)
        replicas[model] += 1
        used_bytes[group] += judge.weight_bytes(selection, group, model)
        fits[group] &= judge.fits(selection, group, used_bytes[group])
        fits[group, model] = False
    return Selection(config=selection.config, models=tuple(tuple(sorted(own)) for own in models))


def planned(problem: Problem, selection: Selection, budget: Budget) -> Plan:
    """The plan that a selection is."""
    placement = problem.placement(selection.shape(len(problem.fleet.models)))
    return Plan(placement=placement, simulations=budget.simulations)
