"""Placements to start from: one shape of groups throughout, filled by who is served worst."""

from collections.abc import Sequence

import numpy as np

from jaxserve.errors import PlacementError
from jaxserve.placement.anneal import Judge, Verdict
from jaxserve.placement.moves import Moves
from jaxserve.placement.problem import Problem
from jaxserve.simulator import Shape

_AT_ONCE = 4  # groups that get a model between two scorings, as a part of all


def uniform_groups(problem: Problem, moves: Moves) -> list[list[int]]:
    """For each config that holds any model: as many groups of it as there is room for, and smaller ones in the rest."""
    tables, fleet = problem.tables, problem.fleet
    useful = np.flatnonzero(moves.fits.any(axis=1))
    found = []
    for config in useful:
        left = fleet.devices
        groups: list[int] = []
        for other in [config, *sorted(useful, key=lambda c: (-tables.devices[c], -tables.stages[c]))]:
            count = left // int(tables.devices[other])
            groups += [int(other)] * count
            left -= count * int(tables.devices[other])
        while groups:
            try:
                problem.placement(problem.empty(groups))
            except PlacementError:
                groups.pop()  # its stages would cross hosts
            else:
                break
        if config in groups:
            found.append(groups)
    return found


def fill_by_need(judge: Judge, moves: Moves, problem: Problem, configs: Sequence[int]) -> Verdict:
    """Groups of these configs, filled with replicas of whatever is served worst, the least busy groups first.

    AlpaServe's fast heuristic (OSDI'23, section 4.2) adds one replica after each simulation; this adds one to each of
    the least busy groups, which takes a fraction of the simulations and ends nearly as well.
    """
    spare = max(2, len(configs) // 4)
    shape = problem.empty([*configs, *[-1] * spare])
    verdict = judge.verdict(shape)
    while True:
        wanted = (judge.requests - verdict.served).sum(axis=0).astype(np.float64)
        shape = Shape(config=verdict.shape.config, held=verdict.shape.held.copy())
        added = 0
        for group in np.argsort(verdict.chosen[: len(configs)], kind="stable").tolist():
            model = moves.most_wanted(shape, group, wanted)
            if model is None:
                continue
            shape.held[group, model] = 1
            wanted[model] /= 2
            added += 1
            if added * _AT_ONCE >= len(configs):
                break
        if not added:
            return verdict
        verdict = judge.verdict(shape)
