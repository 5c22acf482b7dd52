"""How many requests a second does the compiled simulator score on one core, and what does remembering a run save?

(a) The inner loop, beside a plain numba loop laid out as AlpaServe's is (`dense_loop`: a dense float32 table of models,
    groups and stages, a list of groups per model that ends with -1, a finish and a verdict written per request,
    counters per model and group), at two shapes: 32 groups of one stage with 32 models, four on each group; and 4
    groups of eight stages with 60 models of six kinds, each on two or four groups.
(b) The whole scoring call for a placement that was not scored before: from lists of model names to the attainment; also
    with batches of 1 and 2.
(c) A re-score after moving one model of 32 to another of 32 groups, beside a full score, with each model on 1, 2 or 4
    groups of one or of eight stages. Every change is another one; blocks of changes and of full scores alternate.
    Beside it, a change that is accepted.

Arrivals are Gamma (CV 4), spread over the models by a power law (exponent 0.5); in (c) so many that the groups would be
busy for 30 % of the time. Latencies are those of tests/golden/placement/profiles.json, SLOs five times the latency on
one device. What is compared takes turns in one process; the table shows medians over the rounds, of the thread's
processor time.

    python bench/simulator.py [--requests 13000 1000000] [--rounds 15] [-o FILE]
"""

import argparse
import importlib.metadata
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
from record import circumstances, write

from jaxserve.plans import Fleet, FleetModel, ParallelConfig, Profiles
from jaxserve.simulator import FleetTables, Scorer, Shape, Traffic, loop
from jaxserve.workload import Workload

PROFILES = Profiles.load(Path(__file__).parents[1] / "tests" / "golden" / "placement" / "profiles.json")
KINDS = ("bert-1.3b", "bert-2.6b", "bert-6.7b", "moe-1.3b", "moe-2.4b", "moe-5.3b")
CV, EXPONENT, SLO_SCALE, OVERHEAD_S = 4.0, 0.5, 5.0, 0.011
BUSY = 0.3
MOVES = 60
SEED = 0


@numba.njit
def dense_loop(finish_s, good, arrival_s, slo_s, model, groups_of, stages, latency_s):
    """The rule of dispatch `alpaserve` on dense tables; what a first version of a compiled simulator looks like."""
    models, groups, most = latency_s.shape
    clocks_s = np.zeros((groups, most))
    ahead_s = np.zeros(most)
    of_model, good_of_model = np.zeros(models, np.int32), np.zeros(models, np.int32)
    of_group, good_of_group = np.zeros(groups, np.int32), np.zeros(groups, np.int32)
    for i in range(len(arrival_s)):
        m = model[i]
        of_model[m] += 1
        chosen, free_s = -1, np.inf
        for g in groups_of[m]:
            if g < 0:
                break
            if clocks_s[g, stages[g] - 1] < free_s:
                chosen, free_s = g, clocks_s[g, stages[g] - 1]
        good[i] = False
        finish_s[i] = arrival_s[i]
        if chosen < 0:
            continue
        of_group[chosen] += 1
        t = arrival_s[i]
        for k in range(stages[chosen]):
            t = max(t, clocks_s[chosen, k]) + latency_s[m, chosen, k]
            ahead_s[k] = t
        if t + OVERHEAD_S - arrival_s[i] <= slo_s[i]:
            good[i] = True
            finish_s[i] = t + OVERHEAD_S
            for k in range(stages[chosen]):
                clocks_s[chosen, k] = ahead_s[k]
            good_of_model[m] += 1
            good_of_group[chosen] += 1
    return of_model, good_of_model, of_group, good_of_group


def tables(kinds: Sequence[str], *, max_batch: int = 1) -> FleetTables:
    """A fleet of one model of each of these kinds."""
    models = tuple(
        FleetModel(name=f"m{index}", profile=kind, slo_s=SLO_SCALE * alone_s(kind)) for index, kind in enumerate(kinds)
    )
    fleet = Fleet(devices=256, devices_per_host=8, memory_bytes=1e12, models=models)
    return FleetTables.of(fleet, PROFILES, max_batch=max_batch)


def alone_s(kind: str) -> float:
    """Latency on one device."""
    row = PROFILES.find(kind, ParallelConfig(1, 1))
    assert row is not None
    return row.latency_s


def traffic(fleet: Fleet, *, requests: int, rate_hz: float) -> Traffic:
    """Gamma arrivals of each model, merged."""
    generator = np.random.default_rng(SEED)
    share = (1.0 + np.arange(len(fleet.models))) ** -EXPONENT
    share /= share.sum()
    seconds = requests / rate_hz
    arrivals: list[np.ndarray] = []
    for rate in rate_hz * share:
        gaps_s = generator.gamma(1 / CV**2, CV**2 / rate, size=int(1.5 * rate * seconds) + 200)
        arrivals.append(np.cumsum(gaps_s))
        arrivals[-1] = arrivals[-1][arrivals[-1] < seconds]
    arrival_s = np.concatenate(arrivals)
    model = np.repeat(np.arange(len(arrivals)), [len(each) for each in arrivals])
    order = np.argsort(arrival_s, kind="stable")
    workload = Workload(
        arrival_s=arrival_s[order],
        model=model[order],
        model_names=tuple(each.name for each in fleet.models),
        slo_s=np.array([each.slo_s for each in fleet.models])[model[order]],
    )
    return Traffic.of(workload, fleet)


SHAPES: dict[str, tuple[tuple[str, ...], ParallelConfig, list[list[int]], float]] = {
    "32 groups x 1 stage, 32 models": (
        ("bert-1.3b",) * 32,
        ParallelConfig(1, 1),
        [[(4 * group + place) % 32 for place in range(4)] for group in range(32)],
        64.0,
    ),
    "4 groups x 8 stages, 60 models": (
        tuple(KINDS[model % 6] for model in range(60)),
        ParallelConfig(1, 8),
        [[model for model in range(60) if (model + group) % 2 == 0 or model % 4 == 0] for group in range(4)],
        40.0,
    ),
}


def shape_of(fleet_tables: FleetTables, groups: Sequence[tuple[ParallelConfig, Sequence[str]]]) -> Shape:
    """A placement that is told by names."""
    config_of = {config: index for index, config in enumerate(fleet_tables.configs)}
    model_of = {model.name: index for index, model in enumerate(fleet_tables.fleet.models)}
    held = np.zeros((len(groups), len(model_of)), np.uint8)
    for group, (_, names) in enumerate(groups):
        held[group, [model_of[name] for name in names]] = 1
    return Shape(config=np.array([config_of[config] for config, _ in groups], np.int32), held=held)


def seconds(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median processor seconds of each call; they take turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for each in calls.values():
        each()
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.thread_time()
            call()
            taken[name].append(time.thread_time() - began)
    return {name: statistics.median(each) for name, each in taken.items()}


def scoring(name: str, requests: int, rounds: int) -> dict[str, Any]:
    """(a) and (b) at one shape, in million requests a second."""
    kinds, config, placed, rate_hz = SHAPES[name]
    fleet_tables = tables(kinds)
    arrived = traffic(fleet_tables.fleet, requests=requests, rate_hz=rate_hz)
    names = [(config, [f"m{model}" for model in models]) for models in placed]
    shape = shape_of(fleet_tables, names)
    scorer = Scorer(fleet_tables, arrived, overhead_s=OVERHEAD_S)
    batched = Scorer(tables(kinds, max_batch=2), arrived, overhead_s=OVERHEAD_S)

    latency_s = fleet_tables.latency_s[shape.config[0], :, : config.inter_op, 0]
    dense_s = np.repeat(latency_s[:, None], len(placed), axis=1).astype(np.float32)
    groups_of = np.full((len(kinds), len(placed)), -1, np.int32)
    for model in range(len(kinds)):
        holders = np.flatnonzero(shape.held[:, model])
        groups_of[model, : len(holders)] = holders
    stages = np.full(len(placed), config.inter_op, np.int32)
    finish_s, good = np.empty(len(arrived.model)), np.empty(len(arrived.model), np.bool_)
    slo_s = arrived.slo_s.astype(np.float32)
    plain = fleet_tables.without_batches

    def inner() -> int:
        served, chosen = np.zeros(len(kinds), np.int64), np.zeros(len(placed), np.int64)
        loop.score(
            arrived.arrival_s,
            arrived.slo_s,
            arrived.model,
            *plain,
            shape.config,
            shape.held,
            OVERHEAD_S,
            served,
            chosen,
        )
        return int(served.sum())

    def dense() -> int:
        dense_loop(finish_s, good, arrived.arrival_s, slo_s, arrived.model, groups_of, stages, dense_s)
        return int(good.sum())

    calls: dict[str, Callable[[], Any]] = {
        "dense": dense,
        "inner": inner,
        "whole": lambda: scorer.score(shape_of(fleet_tables, names)).slo_attainment,
        "batches": lambda: batched.score(shape_of(batched.tables, names)).slo_attainment,
    }
    # float32 latencies and SLOs may turn a few verdicts
    assert abs(dense() - inner()) <= 1e-3 * len(arrived.model)
    found = {call: len(arrived.model) / taken_s / 1e6 for call, taken_s in seconds(calls, rounds).items()}
    attainment = scorer.score(shape).slo_attainment
    return {
        "shape": name,
        "requests": len(arrived.model),
        "slo_attainment": round(attainment, 3),
        "million_per_s": found,
    }


def rescoring(stages: int, replicas: int, requests: int, rounds: int) -> dict[str, Any]:
    """(c) at one shape, in microseconds."""
    kind, config, groups = "bert-1.3b", ParallelConfig(1, stages), 32
    fleet_tables = tables((kind,) * groups)
    row = PROFILES.find(kind, config)
    assert row is not None
    rate_hz = BUSY * groups / max(row.stage_latency_s)
    arrived = traffic(fleet_tables.fleet, requests=requests, rate_hz=rate_hz)
    generator = np.random.default_rng(SEED)
    # each group holds as many models as the others; a model is on `replicas` groups
    held = np.zeros((groups, groups), np.uint8)
    order = generator.permutation(groups)
    for replica in range(replicas):
        held[order, (np.arange(groups) + replica * 5) % groups] = 1
    index = fleet_tables.configs.index(config)
    scorer = Scorer(fleet_tables, arrived, overhead_s=OVERHEAD_S)
    current = scorer.start(Shape(config=np.full(groups, index, np.int32), held=held))
    moves = [moved(current.shape, generator) for _ in range(MOVES)]
    for move in moves:
        changed, full = current.change(move), scorer.score(move)
        assert (changed.served == full.served).all()
        assert (changed.chosen == full.chosen).all()

    def blocks(call: Callable[[Shape], Any]) -> Callable[[], Any]:
        return lambda: [call(move) for move in moves]

    stepping = scorer.start(current.shape)

    def there_and_back() -> None:
        for number in range(len(moves)):
            stepping.change(current.shape if number % 2 else moves[number])
            stepping.accept()

    calls = {"full": blocks(scorer.score), "change": blocks(current.change), "accepted": there_and_back}
    us = {name: taken_s / MOVES * 1e6 for name, taken_s in seconds(calls, rounds).items()}
    return {
        "stages": stages,
        "replicas": replicas,
        "requests": len(arrived.model),
        "slo_attainment": round(current.score.slo_attainment, 3),
        "us": us,
        "ratio": us["full"] / us["change"],
    }


def moved(shape: Shape, generator: np.random.Generator) -> Shape:
    """One model moved to a group that does not hold it."""
    while True:
        group, other = generator.choice(len(shape.config), 2, replace=False)
        models = np.flatnonzero(shape.held[group] & (1 - shape.held[other]))
        if len(models):
            held = shape.held.copy()
            model = generator.choice(models)
            held[group, model], held[other, model] = 0, 1
            return Shape(config=shape.config, held=held)


def show(results: dict[str, list[dict[str, Any]]]) -> None:
    """Both tables."""
    print(f"{'million requests / s':>32} {'requests':>9} {'SLO %':>6} {'dense':>7} {'(a) loop':>9} ", end="")
    print(f"{'(b) whole':>9} {'batches':>8}")
    for row in results["scoring"]:
        rates = row["million_per_s"]
        cells = f"{rates['dense']:>7.1f} {rates['inner']:>9.1f} {rates['whole']:>9.1f} {rates['batches']:>8.1f}"
        print(f"{row['shape']:>32} {row['requests']:>9} {100 * row['slo_attainment']:>6.1f} {cells}")
    print(f"\n(c) {'stages':>6} {'replicas':>8} {'requests':>9} {'SLO %':>6} {'full us':>9} {'change us':>9} ", end="")
    print(f"{'+ accept us':>16} {'ratio':>6}")
    for row in results["rescoring"]:
        us = row["us"]
        cells = f"{us['full']:>9.1f} {us['change']:>9.1f} {us['accepted']:>16.1f} {row['ratio']:>6.1f}"
        where = f"{row['stages']:>10} {row['replicas']:>8} {row['requests']:>9}"
        print(f"{where} {100 * row['slo_attainment']:>6.1f} {cells}")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=[13_000, 1_000_000], help="how many, about")
    parser.add_argument("--rounds", type=int, default=15, help="medians are over so many")
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {"scoring": [], "rescoring": []}
    for requests in arguments.requests:
        rounds = max(3, min(arguments.rounds, round(3e6 / requests)))
        results["scoring"] += [scoring(name, requests, arguments.rounds) for name in SHAPES]
        for stages in (1, 8):
            results["rescoring"] += [rescoring(stages, replicas, requests, rounds) for replicas in (1, 2, 4)]
    show(results)
    write(arguments.output, {**circumstances(seed=SEED), "numba": importlib.metadata.version("numba"), **results})


if __name__ == "__main__":
    main()
