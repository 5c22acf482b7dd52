"""AlpaServe's placement: Algorithm 2, enumerated group partitions and parallel configs [OSDI'23, section 4.2].

A large model in front of a small one makes it wait long ("convoy effect"), so the paper cuts the models into buckets
of like latency and gives each bucket devices of its own. Within a bucket all groups are alike, but for what is left of
the devices. Algorithm 1 (`replicas.py`) says which models the groups of each such choice hold; the choice that the
simulator likes best is kept.

    paper                             here
    get_potential_model_buckets       model_buckets
    get_potential_device_buckets      device_buckets
    get_potential_group_partitions    partitions, the outer loop
    get_potential_parallel_configs    partitions, the inner loop
    greedy_selection                  fast_heuristic, or beam_search
    concat                            _concatenated

The recorded `mp-search` is AlpaServe's code with one bucket that holds all models; `variant(buckets=False)` meets its
attainments. For mixed models its evaluation cuts them into buckets, and so does `alpaserve`.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from jaxserve.errors import ConfigError, PlacementError
from jaxserve.placement.budget import Budget
from jaxserve.placement.groups import alike, fit_hosts
from jaxserve.placement.problem import Effort, Plan, Policy, Problem
from jaxserve.placement.replicas import Judge, Selection, beam_search, fast_heuristic, planned, value
from jaxserve.plans import ParallelConfig
from jaxserve.simulator import Score

MOST_STAGES = 8
WIDEST_STAGE = 4
"""Configs with longer pipelines or wider stages are not tried, as in AlpaServe's evaluation."""

SPREADS = (1.38, 2.0, 4.0)
"""How many times slower than its fastest model a bucket's slowest may be; the first is what AlpaServe's code has."""

MOST_BUCKETS = 4
MOST_DEVICE_BUCKETS = 100
"""Device buckets that are tried for one choice of model buckets: those whose devices match the load best."""

MOST_UNITS = 32
"""Parts into which the devices are cut for device buckets."""

Bucket = tuple[int, ...]
"""Indices of models."""


def alpaserve(problem: Problem, effort: Effort) -> Plan:
    """The policy `alpaserve`: Algorithm 2 with buckets, and the fast heuristic for Algorithm 1.

    Where the effort is used up early, the best of what was found is returned. All models in one bucket come first; each
    choice of groups gets an equal part of what is left when its turn comes.

    Raises:
        PlacementError: no model has a profile for a config that is tried.
    """
    return variant()(problem, effort)


def variant(*, beam_size: int | None = None, buckets: bool = True) -> Policy:
    """The policy with options.

    Args:
        beam_size: how many selections the full Algorithm 1 keeps; None for the fast heuristic.
        buckets: whether to cut the models into buckets, after all of them in one have been tried.

    Raises:
        ConfigError: a beam size of less than 1.
    """
    if beam_size is not None and beam_size < 1:
        raise ConfigError(f"beam_size is {beam_size}, but must be at least 1, or None for the fast heuristic")

    def policy(problem: Problem, effort: Effort) -> Plan:
        search = _Search(problem, Budget(effort), beam_size=beam_size)
        everything = tuple(range(len(problem.fleet.models)))
        best = search.one_bucket(everything, problem.fleet.devices)
        if best is None:
            raise _nothing_to_try(problem)
        for cut in model_buckets(problem) if buckets else ():
            for devices in device_buckets(problem, cut):
                found = search.all_buckets(cut, devices)
                best = best if found is None else _better(best, found)
        return planned(problem, best.selection, search.budget)

    return policy


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    selection: Selection
    score: Score


def _better(one: _Found, other: _Found) -> _Found:
    """What AlpaServe's comparison prefers; the first of equals."""
    return other if value(other.score, other.selection) > value(one.score, one.selection) else one


class _Search:
    """Algorithm 2's loops over one problem; remembers what was found for a bucket on so many devices."""

    def __init__(self, problem: Problem, budget: Budget, *, beam_size: int | None) -> None:
        self._problem = problem
        self._beam_size = beam_size
        self._known: dict[tuple[Bucket, int], _Found | None] = {}
        self.budget = budget

    def one_bucket(self, models: Bucket, devices: int) -> _Found | None:
        """The best groups for some models on some devices; None where there is no config to try, or no time."""
        if (models, devices) not in self._known:
            self._known[models, devices] = self._search(models, devices)
        return self._known[models, devices]

    def all_buckets(self, cut: tuple[Bucket, ...], devices: tuple[int, ...]) -> _Found | None:
        """The best groups of each bucket, as one selection; None where a bucket has none, or there is no time."""
        parts: list[Selection] = []
        for models, own in zip(cut, devices, strict=True):
            part = self.one_bucket(models, own)
            if part is None or self.budget.spent():
                return None
            parts.append(part.selection)
        selection = _concatenated(parts)
        if not fit_hosts(self._problem, selection.config):
            return None
        return _Found(selection=selection, score=Judge(self._problem, self.budget).run(selection))

    def _search(self, models: Bucket, devices: int) -> _Found | None:
        judge = Judge(self._problem, self.budget, models=models)
        choices = list(partitions(self._problem, devices))
        best: _Found | None = None
        for index, groups in enumerate(choices):
            if (self._known or best is not None) and self.budget.spent():
                break
            until = self.budget.share(len(choices) - index)
            start = Selection.empty(groups)
            if self._beam_size is None:
                selection, score = fast_heuristic(judge, start, until=until)
            else:
                selection, score = beam_search(judge, start, size=self._beam_size, until=until)
            found = _Found(selection=selection, score=score)
            best = found if best is None else _better(best, found)
        return best


def partitions(problem: Problem, devices: int) -> Iterator[tuple[int, ...]]:
    """Indices of the groups' configs, for each way to make groups that are alike on `devices` devices.

    The groups' size is a power of two; each of its factors up to `MOST_STAGES` is tried as the number of stages, where
    the stages are no wider than `WIDEST_STAGE` and some model has a profile. A remainder becomes shorter pipelines.
    """
    for size in _powers_of_two(devices):
        for stages in _powers_of_two(size):
            config = ParallelConfig(size // stages, stages)
            if stages > MOST_STAGES or config.intra_op > WIDEST_STAGE or config not in problem.tables.configs:
                continue
            groups = alike(problem, config, devices)
            if fit_hosts(problem, groups):
                yield groups


def model_buckets(problem: Problem) -> list[tuple[Bucket, ...]]:
    """Ways to cut the models into two to four buckets of like latency, finest first.

    For each of `SPREADS`, from the fastest model on, a bucket takes models up to that many times slower than its first.
    A model's latency is that on the config with the fewest devices that it has a profile for; a model without a profile
    is in no bucket.
    """
    latency_s = _latency_s(problem)
    order = [model for model in np.argsort(latency_s, kind="stable").tolist() if latency_s[model] > 0]
    cuts: list[tuple[Bucket, ...]] = []
    for spread in SPREADS:
        buckets: list[list[int]] = []
        for model in order:
            if not buckets or latency_s[model] > spread * latency_s[buckets[-1][0]]:
                buckets.append([])
            buckets[-1].append(model)
        cut = tuple(tuple(sorted(bucket)) for bucket in buckets)
        if 2 <= len(cut) <= MOST_BUCKETS and cut not in cuts:
            cuts.append(cut)
    return cuts


def device_buckets(problem: Problem, cut: tuple[Bucket, ...]) -> list[tuple[int, ...]]:
    """Numbers of devices for each bucket, the best match to the load first.

    The load of a bucket is what its requests take on their models' smallest configs, in device seconds. The devices are
    dealt in `MOST_UNITS` parts, or singly where they are fewer. Of all ways to deal them those are kept,
    `MOST_DEVICE_BUCKETS` at most, whose shares are nearest to those of the load, by the share that is farthest off.
    """
    load_s = _latency_s(problem, devices=True) * problem.scorer().traffic.per_model
    load = np.array([load_s[list(bucket)].sum() for bucket in cut])
    share = load / load.sum() if load.sum() > 0 else np.full(len(cut), 1 / len(cut))
    units = min(problem.fleet.devices, MOST_UNITS)
    edges = [round(unit * problem.fleet.devices / units) for unit in range(units + 1)]
    dealt = [
        tuple(end - start for start, end in itertools.pairwise((0, *inner, edges[-1])))
        for inner in itertools.combinations(edges[1:-1], len(cut) - 1)
    ]
    distance = [float(np.abs(np.array(each) / edges[-1] - share).max()) for each in dealt]
    nearest = sorted(range(len(dealt)), key=distance.__getitem__)[:MOST_DEVICE_BUCKETS]
    return [dealt[index] for index in nearest]


def _latency_s(problem: Problem, *, devices: bool = False) -> npt.NDArray[np.float64]:
    """float64 [M]: latency of each model on its smallest config, or that times its devices; 0 without a profile."""
    tables = problem.tables
    latency_s = np.zeros(len(problem.fleet.models))
    for config in np.argsort(tables.devices, kind="stable")[::-1]:
        has = tables.has_row[config]
        own_s = tables.latency_s[config, :, :, 0].sum(axis=1)
        latency_s[has] = own_s[has] * (tables.devices[config] if devices else 1)
    return latency_s


def _concatenated(parts: list[Selection]) -> Selection:
    return Selection(
        config=tuple(config for part in parts for config in part.config),
        models=tuple(models for part in parts for models in part.models),
    )


def _powers_of_two(most: int) -> list[int]:
    return [1 << bit for bit in range(most.bit_length())]


def _nothing_to_try(problem: Problem) -> PlacementError:
    listed = ", ".join(f"({each.intra_op}, {each.inter_op})" for each in problem.tables.configs) or "none"
    return PlacementError(
        f"alpaserve tries configs of up to {WIDEST_STAGE} devices per stage and {MOST_STAGES} stages, powers of two, "
        f"on {problem.fleet.devices} devices, but the profiles of the fleet's models have {listed}: "
        f"run `jaxserve profile`, or choose another policy"
    )
