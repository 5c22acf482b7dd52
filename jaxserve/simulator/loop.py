"""The compiled simulator's inner loop: the scheduling rule on arrays, a request at a time, without batches.

It decides as `scheduling` does with dispatch `alpaserve` (scheduling/dispatch.py, scheduling/group.py), with the same
sums in the same order, so its finish times equal the reference's to the last bit; tests/simulator/test_fast.py checks
that on random cases. As long as stages take what their profile says, a group is its stages' clocks and nothing else: no
event heap is needed.

Arrays (R requests, M models, G groups, C configs, S stages of the longest config):

    arrival_s, slo_s  float64 [R]    ascending; seconds from arrival to deadline
    model             int32 [R]      index of a model, every one known
    latency_s         float64 [C * M * S]   of stage k at (c * M + m) * S + k; infinite where there is no profile
    stages            int32 [C]
    config            int32 [G]      index of the group's config; -1: no such group
    held              uint8 [G, M]   1 where the group holds the model

Indices are unsigned where they can be: numba then has no need to ask whether they count from the end.
"""
# pyright: basic

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

OPTIONS = {"nogil": True, "error_model": "numpy"}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function at its first call and keeps that on disk, where there is a place to keep it.

    Numba takes what it kept until the function's own file changes: after a change of this file, change the others too.
    """
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # neither the package nor the user's cache directory can be written to
        return numba.njit(**OPTIONS)(function)


@compiled
def replicas(config, held, latency_s, stride):
    """Who holds what, by model: starts uint64 [M + 1], and of each replica its group and where its latencies begin.

    Replicas of a model are in order of group. A model is not served by a group without a profile for it.
    """
    groups, models = held.shape
    starts = np.zeros(models + 1, np.uint64)
    for g in range(groups):
        for m in range(models):
            if held[g, m] and config[g] >= 0 and latency_s[(config[g] * models + m) * stride] < np.inf:
                starts[m + 1] += np.uint64(1)
    for m in range(models):
        starts[m + 1] += starts[m]
    group = np.empty(np.int64(starts[models]), np.uint32)
    offset = np.empty(np.int64(starts[models]), np.uint64)
    end = starts.copy()
    for g in range(groups):
        for m in range(models):
            at = (config[g] * models + m) * stride
            if held[g, m] and config[g] >= 0 and latency_s[at] < np.inf:
                group[end[m]] = g
                offset[end[m]] = at
                end[m] += np.uint64(1)
    return starts, group, offset


@compiled
def depths(config, stages):
    """uint64 [G]: how many stages each group has; 0 where there is no such group."""
    depth = np.zeros(len(config), np.uint64)
    for g in range(len(config)):
        if config[g] >= len(stages):
            raise ValueError("a config is no index into the fleet's tables")
        if config[g] >= 0:
            depth[g] = stages[config[g]]
    return depth


@compiled
def score(arrival_s, slo_s, model, latency_s, stages, most_stages, config, held, overhead_s, served, chosen):
    """Counts what is `served` [M] in time and for whom a group was `chosen` [G]; returns the sum of latencies."""
    depth = depths(config, stages)
    starts, group, offset = replicas(config, held, latency_s, most_stages)
    clocks_s = np.zeros((len(config), most_stages))
    last_s = np.zeros(len(config))  # of those clocks the last stage's, side by side
    ahead_s = np.empty(most_stages)
    total_s = 0.0
    for i in range(len(arrival_s)):
        m = np.uint32(model[i])
        first, end = starts[m], starts[m + np.uint32(1)]
        if first == end:
            continue
        now_s = arrival_s[i]
        best = first
        g = group[first]
        free_s = last_s[g]
        for r in range(first + np.uint64(1), end):  # without a branch: who is free first cannot be foretold
            other = group[r]
            other_s = last_s[other]
            sooner = other_s < free_s
            best = r if sooner else best
            g = other if sooner else g
            free_s = min(free_s, other_s)
        chosen[g] += 1
        at = offset[best]
        inner = depth[g] - np.uint64(1)
        t = now_s
        for k in range(inner):
            clock_s = clocks_s[g, k]
            t = (clock_s if clock_s > t else t) + latency_s[at + k]
            ahead_s[k] = t
        t = (free_s if free_s > t else t) + latency_s[at + inner]
        late_s = t + overhead_s - now_s
        if late_s <= slo_s[i]:
            for k in range(inner):
                clocks_s[g, k] = ahead_s[k]
            last_s[g] = t
            served[m] += 1
            total_s += late_s
    return total_s
