"""What no placement can exceed: the SLO attainment of a linear program that forgives a placement most of its limits.

Let a placement without segments be given, and call a request *served* if the simulator serves it in time. For a request
of model m that arrives at a with deadline d = a + SLO - overhead, and with config c ranging over those under which m
alone fits on the devices:

latency   It takes at least alone(m) = min_c sum_k l(m, c, k), so it is served only if a + alone(m) <= d. With batches,
          l is the least over the batch sizes.
work      The group that serves it is busy for it: intra_op(c) devices for l(m, c, k) seconds, for each stage k. So
          at least work(m) = min_c intra_op(c) sum_k l(m, c, k) device seconds are spent on it, all of them between a
          and d. In a batch of size b each of at most b members accounts for 1 / b of what the batch takes, so there l
          is the least latency / size. No device does two things at a time, so in any bin of dt seconds all requests
          together are given at most D dt device seconds, D being all devices.
memory    A model that is served is on a group, whose devices hold bytes(m) = min_c intra_op(c) sum_k w(m, c, k) of
          its weights in all. Together the devices hold at most D times what one may hold.

Given the placement, set x(m, i) = how many requests of model m with arrivals in bin i are served, f(m, i, j) = the
device seconds that they are given in bin j, and h(m) = 1 if m is on a group, else 0. Then

    sum_j f(m, i, j) >= work(m) x(m, i)       for each m, i; j from the bin of arrival to that of the latest deadline
    sum_m,i f(m, i, j) <= D dt                for each j
    sum_i x(m, i) <= n(m) h(m)                for each m, n(m) being its requests that `latency` leaves
    sum_m bytes(m) h(m) <= D memory
    0 <= x(m, i) <= n(m, i),  0 <= h(m) <= 1

hold by `work` and `memory`. So the program's largest sum of x is at least what the placement serves. It allows what no
placement does: a request that runs on all devices at once, bit by bit, at its model's cheapest config, and fractions of
models. Rounding times to bins, outwards, allows a little more, as does a common f for all models of the same work,
whose constraints are sums of those above. Deadlines behind the last bin have a bin of their own, without a limit.

The simulator's clocks are rounded to doubles, which are 2.4e-7 s apart where times are seconds since 1970: a stage may
be half of that shorter than its profile says. So l is a spacing less here (`rounding_s`), and deadlines are later.

    x, f, h            the program's variables, in this order, in `_program`
    binding            the row whose shadow price is not 0, memory before capacity
"""

import dataclasses

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.sparse

from jaxserve.placement.problem import Problem
from jaxserve.simulator import Traffic

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_MOST_BINS = 1500
_PER_SLO = 6  # bins in the median SLO, where they are not too many
_TOLERANCE = 1e-6  # of the solver, relative


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What no placement without segments exceeds.

    Attributes:
        slo_attainment: share of all requests.
        binding: what stands in the way of more: `latency`, `memory` or `capacity`; `nothing` at 1.
        reachable: for each model the share of its requests that some config answers in time when it is idle; 1 where it
            has none.
    """

    slo_attainment: float
    binding: str
    reachable: dict[str, float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Costs:
    """The least that a request of each model takes: float64 [M], infinite where no config holds the model."""

    alone_s: Floats
    work_s: Floats
    weight_bytes: Floats


def upper_bound(problem: Problem) -> Bound:
    """The bound for a problem's fleet, cluster and workload (see this module for what it is and why it holds)."""
    fleet = problem.fleet
    traffic = Traffic.of(problem.workload, fleet)
    costs = _least(problem, rounding_s(problem, traffic))
    possible = in_time(problem, traffic, costs.alone_s)
    counts = np.bincount(traffic.model, weights=possible, minlength=len(fleet.models))
    requests = traffic.per_model
    shares = np.where(requests > 0, counts / np.maximum(requests, 1), 1.0)
    served, binding = float(possible.sum()), "latency"
    if served:
        served, tight = _most_served(problem, traffic, possible, costs)
        binding = tight or binding
    attainment = min(1.0, served / traffic.requests) if traffic.requests else 1.0
    return Bound(
        slo_attainment=attainment,
        binding="nothing" if attainment == 1.0 else binding,
        reachable={model.name: float(share) for model, share in zip(fleet.models, shares, strict=True)},
    )


def in_time(problem: Problem, traffic: Traffic, alone_s: Floats) -> npt.NDArray[np.bool_]:
    """[R]: whether each request is in time if its model takes `alone_s` [M]; infinite is no time at all."""
    late_s = (alone_s + problem.overhead_s)[traffic.model]
    slack_s = 1e-9 + 2 * rounding_s(problem, traffic)  # the simulator's sums may be rounded in its favour
    return np.isfinite(late_s) & (late_s <= traffic.slo_s * (1 + 1e-9) + slack_s)


def rounding_s(problem: Problem, traffic: Traffic) -> float:
    """How far apart doubles are at the largest time that the simulator comes to, all requests one after another."""
    longest_s = problem.tables.latency_s.sum(axis=2)
    longest_s = float(longest_s.max(initial=0.0, where=np.isfinite(longest_s)))
    return float(np.spacing(traffic.arrival_s.max(initial=0.0) + len(traffic.model) * longest_s))


def _least(problem: Problem, spacing_s: float) -> _Costs:
    tables, fleet = problem.tables, problem.fleet
    latency_s = np.maximum(tables.latency_s - spacing_s, 0.0)
    wide = np.array([config.intra_op for config in tables.configs], np.float64)[:, None]
    fits = (tables.weight_bytes <= fleet.memory_bytes).all(axis=2) & (tables.devices <= fleet.devices)[:, None]
    alone_s = latency_s.min(axis=3).sum(axis=2)
    work_s = wide * (latency_s / tables.batch_sizes).min(axis=3).sum(axis=2)
    weight_bytes = wide * tables.weight_bytes.sum(axis=2)
    alone, work, weight = (
        np.where(fits, each, np.inf).min(axis=0, initial=np.inf) for each in (alone_s, work_s, weight_bytes)
    )
    return _Costs(alone_s=alone, work_s=work, weight_bytes=weight)


def _most_served(
    problem: Problem, traffic: Traffic, possible: npt.NDArray[np.bool_], costs: _Costs
) -> tuple[float, str]:
    """The program's value, and what binds it; empty where nothing but latency does."""
    model = traffic.model[possible].astype(np.int64)
    arrival_s = traffic.arrival_s[possible]
    arrival_s = arrival_s - arrival_s[0]
    slo_s = traffic.slo_s[possible]
    deadline_s = arrival_s + slo_s - problem.overhead_s + 1e-9 + 2 * rounding_s(problem, traffic)
    finite = np.isfinite(deadline_s)
    typical_s = float(np.median(slo_s[finite])) if finite.any() else 1.0
    end_s = float(arrival_s[-1]) + 2 * typical_s
    bins = int(np.clip(np.ceil(_PER_SLO * end_s / typical_s), 1, _MOST_BINS))
    width_s = end_s / bins
    first = np.minimum((arrival_s / width_s).astype(np.int64), bins - 1)
    last = np.minimum(np.where(finite, deadline_s, end_s) / width_s, bins).astype(np.int64)
    last[~finite] = bins  # the bin without a limit
    program = _program(problem, costs, model=model, first=first, last=last, bins=bins, width_s=width_s)
    solved = scipy.optimize.linprog(
        program.gains,
        A_ub=program.rows,
        b_ub=program.limits,
        bounds=np.stack([np.zeros_like(program.most), program.most], axis=1),
        method="highs-ipm",
    )
    if not solved.success:  # without an optimum all that is known is what latency leaves
        return float(possible.sum()), ""
    prices = -solved.ineqlin.marginals
    memory, capacity = prices[-1] > _TOLERANCE, (prices[program.capacity] > _TOLERANCE).any()
    served = min(float(possible.sum()), -solved.fun * (1 + _TOLERANCE))
    return served, "memory" if memory else "capacity" if capacity else ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Program:
    """Minimise gains z, where rows z <= limits and 0 <= z <= most; `capacity` is where the bins' rows are."""

    gains: Floats
    rows: scipy.sparse.csr_array
    limits: Floats
    most: Floats
    capacity: slice


def _program(
    problem: Problem, costs: _Costs, *, model: Ints, first: Ints, last: Ints, bins: int, width_s: float
) -> _Program:
    """The linear program of this module.

    Args:
        problem: the problem.
        costs: of its models.
        model: [N], the model of each request that latency leaves.
        first: [N], the bin of its arrival.
        last: [N], the bin of its deadline; `bins` where it is behind all.
        bins: how many bins there are.
        width_s: length of each.
    """
    models = len(problem.fleet.models)
    works, kind_of = np.unique(np.where(np.isfinite(costs.work_s), costs.work_s, 0.0), return_inverse=True)
    kind = kind_of[model]
    # x: requests by model and bin of arrival
    cell, count = np.unique(model * bins + first, return_counts=True)
    cell_model, cell_first = cell // bins, cell % bins
    # f: seconds for the requests of a kind that arrive in a bin, in each bin until the latest of their deadlines
    source, of_request = np.unique(kind * bins + first, return_inverse=True)
    latest = np.zeros(len(source), np.int64)
    np.maximum.at(latest, of_request, last)
    spans = latest - source % bins + 1
    flow_source = np.repeat(np.arange(len(source)), spans)
    begins = np.cumsum(spans) - spans
    flow_bin = (source % bins)[flow_source] + np.arange(len(flow_source)) - begins[flow_source]
    xs, fs = len(cell), len(flow_source)
    hosted = np.unique(cell_model)
    x, f, h = np.arange(xs), xs + np.arange(fs), xs + fs + np.arange(len(hosted))
    row_of_source = np.searchsorted(source, kind_of[cell_model] * bins + cell_first)
    inside = flow_bin < bins
    per_model = np.bincount(model, minlength=models)[hosted].astype(np.float64)
    capacity, hosting = len(source), len(source) + bins
    memory = hosting + len(hosted)
    entries = [
        (row_of_source, x, works[kind_of[cell_model]]),
        (flow_source, f, np.full(fs, -1.0)),
        (capacity + flow_bin[inside], f[inside], np.ones(int(inside.sum()))),
        (hosting + np.searchsorted(hosted, cell_model), x, np.ones(xs)),
        (hosting + np.arange(len(hosted)), h, -per_model),
        (np.full(len(hosted), memory), h, costs.weight_bytes[hosted] / max(problem.fleet.memory_bytes, 1e-300)),
    ]
    rows, columns, values = (np.concatenate([entry[part] for entry in entries]) for part in range(3))
    devices = float(problem.fleet.devices)
    return _Program(
        gains=np.concatenate([np.full(xs, -1.0), np.zeros(fs + len(hosted))]),
        rows=scipy.sparse.coo_matrix((values, (rows, columns)), shape=(memory + 1, xs + fs + len(hosted))).tocsr(),
        limits=np.concatenate([np.zeros(capacity), np.full(bins, devices * width_s), np.zeros(len(hosted)), [devices]]),
        most=np.concatenate([count.astype(np.float64), np.full(fs, np.inf), np.ones(len(hosted))]),
        capacity=slice(capacity, hosting),
    )
