"""What happened to each request under a placement, and what happens when the placement changes a little.

`record` runs the loop of `loop.score` and keeps each request's choice and the clocks of its group after it. `change`
then finds what another placement would do by following *differences* only:

- A group is *dirty* while its clocks differ from those of the recorded run at the same time. A request can only fare
  differently if its model's replicas changed (the model is *watched*), or if its model is on a dirty group: that
  group's last clock may now come first, or no longer. If it goes where it went before and that group is clean, nothing
  changed.
- A dirty group becomes clean again when a request leaves it with the same clocks in both runs: after the first request
  that finds it idle in both, typically. A group whose config changed stays dirty (its latencies are others).
- Whom a dirty group can concern is known beforehand, as a bitmap over the requests for each group. So a run costs the
  OR of a few bitmaps and a look at each set bit, not a look at each request.

The decisions are those of a full run, exactly: the same sums in the same order. Only the sum of latencies is brought up
to date by differences and may differ in its last bits.

A look costs two or three times what a request costs in a full run: it jumps where that runs ahead. So `change` gives up
after so many looks as a full run is worth, and does not begin where that is expected (follower.py says how).

A clean group's clocks are those after the last request that it served. That request is found from a bitmap of those
whom the group served among each 64 requests, and its index where there is none among them. The rows after those of the
requests are for groups: row R is a group that has served nobody yet, row R + 1 + g the clocks of group g while dirty.

Arrays beside those of `loop` (W = ceil(R / 64) words). They take R (24 + 8 S + 20 G / 64 + M / 8) bytes, and what
holds the edits as much again as `AFFORDABLE_LOOKS` of R (8 + 8 S):

    requests    REQUEST [R]             arrival, SLO and model as in `loop`, and the choice: group g; ~g where g refused
                                        it; ~G where nobody holds its model
    last_s      float64 [R + 1 + G]     the group's last clock after it, where it was served
    inner_s     float64 [R + 1 + G, S - 1]   the group's other clocks after it
    accepted    uint64 [W, G]           bit i: request i of the word was served by the group
    before      uint32 [W, G]           whom the group served last before this word; R where nobody
    concerns    uint64 [G, W]           bit i: the group holds the model of request i of the word
    of_model    uint64 [M, W]           bit i: request i of the word is for the model
"""
# pyright: basic

import numpy as np

from jaxserve.simulator.bits import leading_zeros, ones, prefetch, trailing_zeros
from jaxserve.simulator.loop import compiled, depths, replicas

REQUEST = np.dtype([("arrival_s", "f8"), ("slo_s", "f8"), ("model", "i4"), ("choice", "i4")])
EDIT = np.dtype([("last_s", "f8"), ("request", "i4"), ("choice", "i4")])
GAVE_UP = -1
CACHED_REQUESTS = 100_000  # the record of more than these is not expected to stay in a processor's own cache
ONE, WORD_BITS, BITS = np.uint64(1), np.uint64(6), np.uint64(63)  # i is bit i & BITS of word i >> WORD_BITS


@compiled
def model_bitmaps(model, models):
    """`of_model`."""
    bits = np.zeros((models, (len(model) + 63) // 64), np.uint64)
    for i in range(np.uint64(len(model))):
        bits[model[i], i >> WORD_BITS] |= ONE << (i & BITS)
    return bits


@compiled
def _unite(concerns, g, held, of_model):
    """Fills in the bitmap of whom a group concerns."""
    concerns[g] = 0
    for m in range(len(of_model)):
        if held[g, m]:
            for w in range(concerns.shape[1]):
                concerns[g, w] |= of_model[m, w]


@compiled
def record(tables, placed, overhead_s, recorded, served, chosen):
    """`loop.score`, keeping what happened; returns the sum of latencies."""
    latency_s, stages, most_stages = tables
    config, held = placed
    requests, last_s, inner_s, accepted, before, concerns, of_model = recorded
    depth = depths(config, stages)
    starts, group, offset = replicas(config, held, latency_s, most_stages)
    groups = len(config)
    for g in range(groups):
        _unite(concerns, g, held, of_model)
    accepted[:] = 0
    last_s[len(requests) :] = 0.0
    inner_s[len(requests) :] = 0.0
    row = np.full(groups, len(requests), np.uint32)
    total_s = 0.0
    for i in range(np.uint64(len(requests))):
        w = i >> WORD_BITS
        if i & BITS == 0:
            before[w] = row
        m = np.uint32(requests[i].model)
        g = np.uint32(groups)
        best = np.uint64(0)
        free_s = np.inf
        for r in range(starts[m], starts[m + np.uint32(1)]):
            other = group[r]
            other_s = last_s[row[other]]
            sooner = other_s < free_s
            g = other if sooner else g
            best = r if sooner else best
            free_s = min(free_s, other_s)
        requests[i].choice = ~np.int32(g)
        if g == groups:
            continue
        chosen[g] += 1
        at = offset[best]
        inner = depth[g] - ONE
        now_s = requests[i].arrival_s
        t = now_s
        for k in range(inner):
            clock_s = inner_s[row[g], k]
            t = (clock_s if clock_s > t else t) + latency_s[at + k]
            inner_s[i, k] = t
        t = (free_s if free_s > t else t) + latency_s[at + inner]
        late_s = t + overhead_s - now_s
        if late_s <= requests[i].slo_s:
            requests[i].choice = np.int32(g)
            last_s[i] = t
            accepted[w, g] |= ONE << (i & BITS)
            row[g] = i
            served[m] += 1
            total_s += late_s
    return total_s


@compiled
def _last_served(accepted, before, w, bit, g):
    """Whom a group served last before the request that is `bit` of word w, by the record."""
    bits = accepted[w, g] & ((ONE << bit) - ONE)
    within = (w << WORD_BITS) + BITS - leading_zeros(bits)
    earlier = np.uint64(before[w, g])
    return within if bits != 0 else earlier


@compiled
def watch_models(old, placed, of_model):
    """The models whose replicas changed: bitmap [W] of their requests, and how many these are."""
    old_config, old_held = old
    config, held = placed
    watched = np.zeros(len(of_model), np.uint8)
    for g in range(len(config)):
        reshaped = np.uint8(config[g] != old_config[g])
        for m in range(len(of_model)):
            watched[m] |= (held[g, m] ^ old_held[g, m]) | (held[g, m] * reshaped)
    watch = np.zeros(of_model.shape[1], np.uint64)
    for m in range(len(of_model)):
        if watched[m]:
            for w in range(len(watch)):
                watch[w] |= of_model[m, w]
    count = 0
    for w in range(len(watch)):
        count += np.int64(ones(watch[w]))
    return watch, count


@compiled
def _whom(w, watch, concerns, soiled, soils):
    """Which requests of word w are of watched models or may be concerned by groups that are dirty."""
    word = watch[w]
    for d in range(soils):
        word |= concerns[soiled[d], w]
    return word


@compiled
def _bring_near(word, w, requests, last_s):
    """Has these requests of word w fetched while others are dealt with."""
    while word != 0:
        i = (w << WORD_BITS) + trailing_zeros(word)
        word &= word - ONE
        prefetch(requests, i)
        prefetch(last_s, i)


@compiled
def change(tables, old, placed, overhead_s, recorded, served, chosen, edits, edit_inner_s, most_looks, spread):
    """What the configs and models of `placed` would do instead of those of `old`, which is recorded.

    Brings `served` and `chosen` up to date, and writes what changed in the record to `edits` and `edit_inner_s`, which
    must be 64 longer than `most_looks`. Returns how many edits (`GAVE_UP` where it took more than `most_looks`, or
    would with `spread` looks for each request of a watched model), the change of the sum of latencies, how many looks,
    how many requests of watched models, and how many requests it came to.
    """
    latency_s, stages, most_stages = tables
    config, held = placed
    requests, last_s, inner_s, accepted, before, concerns, of_model = recorded
    words, groups = accepted.shape
    watch, watched = watch_models(old, placed, of_model)
    if watched * spread > most_looks:
        return GAVE_UP, 0.0, 0, watched, 0
    depth = depths(config, stages)
    starts, group, offset = replicas(config, held, latency_s, most_stages)
    dirty_row = np.uint64(len(requests) + 1)
    last_s[dirty_row:] = 0.0
    inner_s[dirty_row:] = 0.0
    ahead_s = np.empty(most_stages)
    nobody = np.uint32(groups)
    reshaped = config != old[0]  # all of their requests are watched
    dirty = np.zeros(groups + 1, np.bool_)  # nobody never is
    dirty[:groups] = reshaped
    soiled = np.empty(groups, np.uint32)  # the dirty groups that are not reshaped
    place = np.empty(groups, np.uint32)  # of a dirty group in `soiled`
    soils = np.uint32(0)
    count = np.uint64(0)
    looks = 0
    moved_s = 0.0
    for w in range(np.uint64(words)):
        word = _whom(w, watch, concerns, soiled, soils)
        if looks > most_looks:
            return GAVE_UP, 0.0, looks, watched, np.int64(w << WORD_BITS)
        later = w + np.uint64(2)
        if len(requests) > CACHED_REQUESTS and later < np.uint64(words):
            _bring_near(_whom(later, watch, concerns, soiled, soils), later, requests, last_s)
        while word != 0:
            bit = trailing_zeros(word)
            word &= word - ONE
            i = (w << WORD_BITS) + bit
            looks += 1
            m = np.uint32(requests[i].model)
            was = requests[i].choice
            home = np.uint32(was if was >= 0 else ~was)
            g = nobody
            best = np.uint64(0)
            row = np.uint64(0)
            free_s = np.inf
            for r in range(starts[m], starts[m + np.uint32(1)]):
                other = group[r]
                clean_row = _last_served(accepted, before, w, bit, other)
                other_row = dirty_row + np.uint64(other) if dirty[other] else clean_row
                other_s = last_s[other_row]
                sooner = other_s < free_s
                g = other if sooner else g
                best = r if sooner else best
                row = other_row if sooner else row
                free_s = min(free_s, other_s)
            if g == home and not dirty[g]:
                continue
            now_s = requests[i].arrival_s
            t = now_s
            late_s = np.inf
            inner = np.uint64(0)
            if g != nobody:
                inner = depth[g] - ONE
                at = offset[best]
                for k in range(inner):
                    clock_s = inner_s[row, k]
                    t = (clock_s if clock_s > t else t) + latency_s[at + k]
                    ahead_s[k] = t
                t = (free_s if free_s > t else t) + latency_s[at + inner]
                late_s = t + overhead_s - now_s
                chosen[g] += 1
            taken = g != nobody and late_s <= requests[i].slo_s
            if home != nobody:
                chosen[home] -= 1
            turned = False  # whether a group became dirty or clean
            if was >= 0:
                served[m] -= 1
                moved_s -= last_s[i] + overhead_s - now_s
                if not dirty[home] and not (taken and g == home):  # it loses this request
                    row = _last_served(accepted, before, w, bit, home)
                    last_s[dirty_row + np.uint64(home)] = last_s[row]
                    for k in range(depth[home] - ONE):
                        inner_s[dirty_row + np.uint64(home), k] = inner_s[row, k]
                    dirty[home] = True
                    soiled[soils] = home
                    place[home] = soils
                    soils += np.uint32(1)
                    turned = True
            edits[count].request = np.int32(i)
            edits[count].choice = np.int32(g) if taken else ~np.int32(g)
            edits[count].last_s = t
            if taken:
                served[m] += 1
                moved_s += late_s
                same = was == np.int32(g) and not reshaped[g] and t == last_s[i]
                last_s[dirty_row + np.uint64(g)] = t
                for k in range(inner):
                    inner_s[dirty_row + np.uint64(g), k] = ahead_s[k]
                    edit_inner_s[count, k] = ahead_s[k]
                    same = same and ahead_s[k] == inner_s[i, k]
                if dirty[g] == same:
                    turned = True
                    dirty[g] = not same
                    if same:
                        soils -= np.uint32(1)
                        soiled[place[g]] = soiled[soils]
                        place[soiled[soils]] = place[g]
                    else:
                        soiled[soils] = g
                        place[g] = soils
                        soils += np.uint32(1)
            count += ONE
            if turned:
                word = _whom(w, watch, concerns, soiled, soils) & ~((np.uint64(2) << bit) - ONE)
    return np.int64(count), moved_s, looks, watched, len(requests)


@compiled
def commit(count, edits, edit_inner_s, recorded, old, placed):
    """Makes what `change` found, and the placement itself, part of the record."""
    requests, last_s, inner_s, accepted, before, concerns, of_model = recorded
    words, groups = accepted.shape
    for g in range(groups):
        if (placed[1][g] != old[1][g]).any():
            _unite(concerns, g, placed[1], of_model)
    touched = np.zeros(groups, np.bool_)
    for e in range(count):
        i = np.uint64(edits[e].request)
        w, bit = i >> WORD_BITS, ONE << (i & BITS)
        was, now = requests[i].choice, edits[e].choice
        if was >= 0:
            accepted[w, was] &= ~bit
            touched[was] = True
        if now >= 0:
            accepted[w, now] |= bit
            touched[now] = True
            last_s[i] = edits[e].last_s
            inner_s[i] = edit_inner_s[e]
        requests[i].choice = now
    for g in range(groups):
        if touched[g]:
            row = np.uint64(len(requests))
            for w in range(np.uint64(words)):
                before[w, g] = row
                if accepted[w, g] != 0:
                    row = (w << WORD_BITS) + BITS - leading_zeros(accepted[w, g])
