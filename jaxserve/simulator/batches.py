"""The compiled simulator with batches: as `scheduling/batch.py` merges requests, to the last bit.

As in `loop`, stages take what their profile says, so that the future of a group is known: its clocks after each of its
batches. A batch begins on stage 0 when the clock of stage 0 after the one ahead of it has come; from then on nobody may
join it, and when it will be done is settled. So a group is a queue of the batches that wait, each with its members and
the group's clocks after it, behind the clocks after all that have begun.

Before a request chooses, the batches that have begun by now leave the queues of the groups that hold its model
(completions come before arrivals). A batch that begins smaller than it was planned for has the clocks of those behind
it worked out anew. Then the request joins the batch that it had best join, if it may join any, else it is appended
where that is feasible, else refused. A batch that is appended to a group whose stage 0 is free begins at once. The
clocks after a batch that waits are the same whenever they are computed, since all sums are.

Whether an answer at t is in time for a member, t - arrival <= SLO, is true up to some t and false from there on, also
as rounded. `_latest` finds the last such t; the earliest of them among its members decides for a batch.

Arrays beside those of `loop` (B batch sizes, N the largest):

    latency_s   float64 [C * M * B * S]  of stage k at ((c * M + m) * B + b) * S + k
    size_of     int32 [C, M, N]   at n - 1 the index of the smallest size with a profile that holds n requests; -1: none
    finish_s    float64 [R or 0]  when it is answered; written for those who are served
    group_of    int32 [R or 0]    by whom it is served
    busy_s      float64 [G]       stage seconds that are used

and of the queues, by row; row g is for what has begun on group g, row G for a request that is
appended, row G + 1 for a join that is tried, the others for batches that wait, each by the row that it has been lent:

    clocks_s    float64 [., S]    the group's clocks after it
    behind      uint32 [.]        the batch that waits behind it
    first, final, size            its members: the first and the last, linked by `next_member` [R], and how many
    own         uint64 [.]        where the latencies of its model begin
    at          uint64 [.]        where the latencies of its size begin
    reserved    uint32 [.]        for how many it is planned at least
    latest_s    float64 [.]       when it must be done
    joinable    int32 [G, M]      how many batches of a model wait on a group and have room for one more
    waits       int64 [G]         how many batches wait on a group
    recent      float64 [G, M, 2] how many requests came for a model of late, and when the last of them
"""
# pyright: basic

import numpy as np

from jaxserve.scheduling.batch import MOST_PASSED
from jaxserve.scheduling.replica import WINDOW, WORTH
from jaxserve.simulator.loop import compiled, depths, replicas

DISPATCHES = ("alpaserve", "earliest-finish")
"""Those of scheduling/dispatch.py that are compiled."""
ALPASERVE, EARLIEST_FINISH = range(2)
NOBODY = np.uint32(0xFFFFFFFF)
ONE = np.uint32(1)


@compiled
def run(traffic, tables, placed, dispatch, overhead_s, served, chosen, finish_s, group_of, busy_s):
    """Runs a workload, where `dispatch` is an index of `DISPATCHES`.

    Counts what is `served` [M] in time and for whom a group was `chosen` [G]; returns the sum of latencies.
    """
    arrival_s, slo_s, model = traffic
    latency_s, size_of, stages, sizes, most_stages = tables
    config, held = placed
    depth = depths(config, stages)
    starts, group, offset = replicas(config, held, latency_s, len(sizes) * most_stages)
    requests, groups = np.uint32(len(arrival_s)), np.uint32(len(config))
    rows = requests + groups + np.uint32(2)
    clocks_s = np.empty((rows, most_stages))
    clocks_s[:groups] = 0.0
    behind = np.empty(rows, np.uint32)
    behind[:groups] = NOBODY
    tail = np.arange(len(config)).astype(np.uint32)
    next_member = np.empty(requests, np.uint32)
    first, final, size = np.empty(rows, np.uint32), np.empty(rows, np.uint32), np.empty(rows, np.uint32)
    own, at, reserved = np.empty(rows, np.uint64), np.empty(rows, np.uint64), np.empty(rows, np.uint32)
    latest_s = np.empty(rows)
    joinable = np.zeros(held.shape, np.int32)
    waits = np.zeros(groups, np.int64)
    recent = np.zeros((groups, held.shape[1], 2))
    queues = (clocks_s, behind, first, size, own, at, reserved, latest_s)
    alone, tried = groups, groups + ONE
    fresh = tried + ONE  # rows from here on were never lent
    vacant = NOBODY  # the first of those that were given back, linked by `behind`
    last_s = np.zeros(groups)  # after everything
    total_s = 0.0
    for i in range(requests + groups):
        if i < requests:
            m = np.uint32(model[i])
            now_s = arrival_s[i]
        else:  # nobody arrives any more: what waits begins in time
            m = np.uint32(0)
            now_s = np.inf
        g = groups
        best = np.uint64(0)
        free_s = np.inf
        begin, end = (starts[m], starts[m + ONE]) if i < requests else (np.uint64(0), np.uint64(1))
        for r in range(begin, end):
            other = group[r] if i < requests else np.uint32(i - requests)
            last = depth[other] - np.uint64(1)
            while behind[other] != NOBODY and clocks_s[other, 0] <= now_s:
                row = behind[other]
                begins_s = clocks_s[other, 0]
                asked = np.uint32(model[first[row]])
                mine = size_of[config[other], asked]
                settled = own[row] + np.uint64(mine[size[row] - ONE] * most_stages)
                smaller = settled != at[row]
                if smaller:
                    _follow(clocks_s, other, other, latency_s, settled, depth[other], begins_s)
                for k in range(depth[other]):
                    if not smaller:
                        clocks_s[other, k] = clocks_s[row, k]
                    busy_s[other] += latency_s[settled + k]
                done_s = clocks_s[other, last] + overhead_s
                member = first[row]
                if size[row] < len(mine) and mine[size[row]] >= 0:
                    joinable[other, asked] -= 1
                while member != NOBODY:
                    served[asked] += 1
                    total_s += done_s - arrival_s[member]
                    if len(finish_s):
                        finish_s[member] = done_s
                        group_of[member] = other
                    member = next_member[member]
                waits[other] -= 1
                behind[other] = behind[row]
                if tail[other] == row:
                    tail[other] = other
                behind[row] = vacant
                vacant = row
                if smaller:
                    before, row = other, behind[other]
                    while row != NOBODY:
                        _follow(clocks_s, before, row, latency_s, at[row], depth[other], begins_s)
                        before, row = row, behind[row]
                    last_s[other] = clocks_s[before, last]
            if i < requests:
                other_s = last_s[other]
                if dispatch == EARLIEST_FINISH:
                    _follow(clocks_s, tail[other], alone, latency_s, offset[r], depth[other], now_s)
                    other_s = clocks_s[alone, last]
                sooner = other_s < free_s
                g = other if sooner else g
                best = r if sooner else best
                free_s = min(free_s, other_s)
        if g == groups:
            continue
        chosen[g] += 1
        stage_count = depth[g]
        last = stage_count - np.uint64(1)
        mine = size_of[config[g], m]
        places = ONE
        if len(mine) > 1 and mine[1] >= 0:
            wait_s = max(0.0, clocks_s[tail[g], 0] - now_s)
            places = _places(
                recent[g, m], latency_s, offset[best], mine, sizes, most_stages, stage_count, now_s, wait_s,
                slo_s[i] - overhead_s,
            )  # fmt: skip
        planned = offset[best] + np.uint64(mine[places - ONE] * most_stages)
        _follow(clocks_s, tail[g], alone, latency_s, planned, stage_count, now_s)
        finish_alone_s = clocks_s[alone, last]
        in_time = finish_alone_s + overhead_s - now_s <= slo_s[i]
        joined = NOBODY
        if joinable[g, m]:
            joined = _find_join(
                queues, model, latency_s, mine, most_stages, overhead_s, joinable[g, m], waits[g],
                m, g, stage_count, now_s, slo_s[i], finish_alone_s if in_time else np.inf, tried,
            )  # fmt: skip
        if joined != NOBODY:
            next_member[final[joined]] = i
            next_member[i] = NOBODY
            final[joined] = i
            latest_s[joined] = min(latest_s[joined], _latest(now_s, slo_s[i]))
            size[joined] += ONE
            at[joined] = own[joined] + np.uint64(mine[max(size[joined], reserved[joined]) - ONE] * most_stages)
            if size[joined] == len(mine) or mine[size[joined]] < 0:
                joinable[g, m] -= 1
            before, row, moved = g, behind[g], False
            while row != NOBODY:
                moved = moved or row == joined
                if moved:
                    _follow(clocks_s, before, row, latency_s, at[row], stage_count, now_s)
                before, row = row, behind[row]
            last_s[g] = clocks_s[before, last]
        elif in_time and clocks_s[g, 0] <= now_s:  # nobody waits, and stage 0 is free
            last_s[g] = finish_alone_s
            for k in range(stage_count):
                clocks_s[g, k] = clocks_s[alone, k]
                busy_s[g] += latency_s[planned + k]
            done_s = finish_alone_s + overhead_s
            served[m] += 1
            total_s += done_s - now_s
            if len(finish_s):
                finish_s[i] = done_s
                group_of[i] = g
        elif in_time:
            last_s[g] = finish_alone_s
            row = vacant
            if row == NOBODY:
                row = fresh
                fresh += ONE
            else:
                vacant = behind[row]
            for k in range(stage_count):
                clocks_s[row, k] = clocks_s[alone, k]
            first[row] = i
            final[row] = i
            next_member[i] = NOBODY
            size[row] = ONE
            own[row] = offset[best]
            at[row] = planned
            reserved[row] = places
            latest_s[row] = _latest(now_s, slo_s[i])
            behind[row] = NOBODY
            behind[tail[g]] = row
            tail[g] = row
            waits[g] += 1
            if len(mine) > 1 and mine[1] >= 0:
                joinable[g, m] += 1
    return total_s


@compiled
def _places(recent, latency_s, own, size_of, sizes, most_stages, stages, now_s, wait_s, spare_s):
    """For how many a batch is planned that waits for so long; `Replica.rows_to_reserve`, and 1 for none."""
    window_s = 0.0
    for k in range(stages):
        window_s += latency_s[own + k]
    window_s *= WINDOW
    expected = 1.0
    if window_s > 0.0:
        rows = recent[0] / (1.0 + (now_s - recent[1]) / window_s)
        recent[0] = rows + 1.0
        recent[1] = now_s
        expected += rows * wait_s / window_s
    places = ONE
    slowest_s = 0.0
    for k in range(stages):
        slowest_s = max(slowest_s, latency_s[own + k])
    n = ONE
    while n < len(size_of) and size_of[n] >= 0:
        b = size_of[n]
        n = np.uint32(sizes[b])
        takes_s, longest_s = 0.0, 0.0
        for k in range(stages):
            stage_s = latency_s[own + np.uint64(b * most_stages) + k]
            takes_s += stage_s
            longest_s = max(longest_s, stage_s)
        if n > expected or takes_s + longest_s > spare_s:
            break
        if n * slowest_s >= WORTH * (places * longest_s):
            places = n
            slowest_s = longest_s
    return places


@compiled
def _follow(clocks_s, before, after, latency_s, at, stages, now_s):
    """Writes the clocks with one more batch behind those of a row to another row; `batch.clocks_after`."""
    t = now_s
    for k in range(stages):
        clock_s = clocks_s[before, k]
        t = (clock_s if clock_s > t else t) + latency_s[at + k]
        clocks_s[after, k] = t


@compiled
def _latest(arrival_s, slo_s):
    """The last time t at which t - arrival <= SLO."""
    latest_s = arrival_s + slo_s
    if latest_s == np.inf:
        return latest_s
    while latest_s - arrival_s > slo_s:
        latest_s = np.nextafter(latest_s, -np.inf)
    later_s = np.nextafter(latest_s, np.inf)
    while later_s - arrival_s <= slo_s:
        latest_s = later_s
        later_s = np.nextafter(latest_s, np.inf)
    return latest_s


@compiled
def _find_join(
    queues, model, latency_s, size_of, most_stages, overhead_s, joinable, waits,
    m, g, stages, now_s, slo_s, sooner_than_s, tried,
):  # fmt: skip
    """The batch that a request had best join, of those that leave the last stage free sooner; NOBODY for none.

    The request is of model m, for group g, where its batches have the sizes `size_of` [N]; `joinable` of `waits`
    batches have room for it; `tried` is a row to work on.
    """
    clocks_s, behind, first, size, own, at, reserved, latest_s = queues
    last = stages - np.uint64(1)
    before = g
    best = NOBODY
    while joinable:
        row = behind[before]
        if model[first[row]] == m and size[row] < len(size_of) and size_of[size[row]] >= 0:
            joinable -= 1
            if waits > MOST_PASSED:
                waits -= 1
                before = row
                continue
            b = size_of[max(size[row] + ONE, reserved[row]) - ONE]
            _follow(clocks_s, before, tried, latency_s, own[row] + np.uint64(b * most_stages), stages, now_s)
            done_s = clocks_s[tried, last] + overhead_s
            last_s = clocks_s[tried, last]
            feasible = done_s <= latest_s[row] and done_s - now_s <= slo_s and last_s < sooner_than_s
            other = behind[row]
            while feasible and other != NOBODY:
                _follow(clocks_s, tried, tried, latency_s, at[other], stages, now_s)
                last_s = clocks_s[tried, last]
                feasible = last_s + overhead_s <= latest_s[other] and last_s < sooner_than_s  # it will not fall again
                other = behind[other]
            if feasible:
                best = row
                sooner_than_s = last_s
        before = row
        waits -= 1
    return best
