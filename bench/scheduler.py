"""What does the scheduler cost, by itself, for each request?

64 groups of one to four stages and 300 models, each on four of them. A closed loop keeps the number of requests inside
constant: whoever is answered is followed by the next, for a random model, with no deadline. First a driver with a heap
of stage ends makes the run and notes every call, `submit` and `stage_done`, with its arguments and what it took. Then
fresh schedulers are given the noted calls in a bare loop, and it is their last part, with the queues full, that is
timed: microseconds for each request, from its submission over all its stages to its end, with 0.1 or so of the loop.
Rounds of all cases alternate; the table shows medians over the rounds, of the thread's processor time. The garbage
collector is on, as in a server.

Cases: 1, 10, 100 and 1000 requests that wait on each group; without and with batching (batches of 1, 2, 4, 8, which
take less time for each row the larger they are); stages that end exactly as predicted, or up to 5 % sooner or later.
Targets: at most 15 µs per request, and at 1000 waiting no more than 1.5 times what it is at 10.

    python bench/scheduler.py [--requests 20000] [--rounds 5] [--dispatch NAME] [--profile] [--quick] [-o FILE]
"""

import argparse
import cProfile
import dataclasses
import gc
import heapq
import pstats
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from record import circumstances, write

from jaxserve.request import Done, Rejected, Request
from jaxserve.scheduling import ALONE, DISPATCHES, Grid, Latencies, Scheduler

GROUPS, MODELS, REPLICAS = 64, 300, 4
MOST_STAGES = 4
BATCH_SIZES = (1, 2, 4, 8)
GROWTH = (1.0, 1.3, 1.8, 2.8)
"""What a batch of each size takes, by what one request takes."""
DEVIATION = 0.05
WAITING = (1, 10, 100, 1000)
PROFILED_WAITING = 100
TARGET_US, TARGET_GROWTH = 15.0, 1.5
SEED = 0

Call = tuple[Any, ...]
"""(request, time) of a submission, (group, stage, batch id, time) of a stage's end."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the table.

    Attributes:
        waiting: requests that wait on each group, about.
        batching: whether requests are merged.
        deviation: by which share stages may end sooner or later than predicted.
    """

    waiting: int
    batching: bool
    deviation: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The calls of a case, and what its driver saw.

    Attributes:
        calls: all of them, in order.
        timed_from: index of the first that counts.
        requests: answered by those that count.
        waiting: requests that waited on a group, mean over groups and time.
        rows: requests in a batch, mean.
        submit_us: of each submission that counts.
        done_us: of each stage's end that counts.
    """

    calls: list[Call]
    timed_from: int
    requests: int
    waiting: float
    rows: float
    submit_us: list[float]
    done_us: list[float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is placed where.

    Attributes:
        stages: of each group.
        holds: (group, model, latencies) of each replica.
        dispatch: how groups are chosen.
    """

    stages: tuple[int, ...]
    holds: tuple[tuple[int, str, Latencies], ...]
    dispatch: str

    @classmethod
    def make(cls, dispatch: str) -> "World":
        """Models of 5 to 50 ms, cut into stages of about equal length."""
        generator = np.random.default_rng(SEED)
        stages = tuple(1 + group % MOST_STAGES for group in range(GROUPS))
        holds: list[tuple[int, str, Latencies]] = []
        for model in range(MODELS):
            latency_s = generator.uniform(0.005, 0.050)
            for group in sorted(generator.choice(GROUPS, REPLICAS, replace=False).tolist()):
                cuts = generator.uniform(0.8, 1.2, stages[group])
                single_s = (latency_s * cuts / cuts.sum()).tolist()
                holds.append((group, f"m{model}", tuple(tuple(s * growth for s in single_s) for growth in GROWTH)))
        return cls(stages=stages, holds=tuple(holds), dispatch=dispatch)

    def scheduler(self, *, batching: bool) -> Scheduler:
        """An idle scheduler."""
        scheduler = Scheduler(dispatch=DISPATCHES[self.dispatch])
        for stages in self.stages:
            scheduler.add_group(stages)
        grid = Grid(BATCH_SIZES, max_batch=BATCH_SIZES[-1]) if batching else ALONE
        for group, model, latencies in self.holds:
            scheduler.place(group, model, latencies, grid)
        return scheduler


def requests() -> Iterator[tuple[int, str]]:
    """Ids and models, without end."""
    generator = np.random.default_rng(SEED + 1)
    id = 0
    while True:
        for model in generator.integers(0, MODELS, 4096).tolist():
            yield id, f"m{model}"
            id += 1


class Driver:
    """Makes a run: the closed loop, in which stages take their profiled time or nearly that."""

    def __init__(self, world: World, case: Case) -> None:
        self._scheduler = world.scheduler(batching=case.batching)
        self._latencies = {(group, model): latencies for group, model, latencies in world.holds}
        self._deviation = case.deviation
        self._generator = np.random.default_rng(SEED + 2)
        self._ends: list[tuple[float, int, int, int]] = []  # (time, group, batch id, stage): a heap
        self._requests = requests()
        self.calls: list[Call] = []
        self.submit_us: list[float] = []
        self.done_us: list[float] = []
        self.batches = 0
        self.waiting: list[float] = []

    def submit(self, now_s: float) -> None:
        """The next request."""
        id, model = next(self._requests)
        request = Request(id=id, model=model, arrival_s=now_s)
        self.calls.append((request, now_s))
        began = time.thread_time()
        admitted = self._scheduler.submit(request, now_s=now_s)
        self.submit_us.append(1e6 * (time.thread_time() - began))
        assert not isinstance(admitted, Rejected)
        if admitted.begins is not None:
            self._begin(admitted.group, 0, admitted.begins, now_s)

    def end_stage(self) -> tuple[int, float]:
        """The next end of a stage; returns how many were answered by it, and when."""
        now_s, group, batch_id, stage = heapq.heappop(self._ends)
        self.calls.append((group, stage, batch_id, now_s))
        began = time.thread_time()
        step = self._scheduler.stage_done(group, stage, batch_id, now_s=now_s)
        self.done_us.append(1e6 * (time.thread_time() - began))
        for next_stage, next_id in step.begins:
            self._begin(group, next_stage, next_id, now_s)
        assert all(isinstance(outcome, Done) for outcome in step.outcomes)
        self.batches += bool(step.outcomes)
        return len(step.outcomes), now_s

    def look(self) -> None:
        """Notes how many wait."""
        self.waiting.append(statistics.fmean(group.queue_length for group in self._scheduler.groups))

    def _begin(self, group: int, stage: int, batch_id: int, now_s: float) -> None:
        batch = self._scheduler.groups[group].batch(batch_id)
        takes_s = self._latencies[group, batch.model][batch.bucket][stage]
        if self._deviation:
            takes_s *= 1 + self._deviation * (2 * self._generator.random() - 1)
        heapq.heappush(self._ends, (now_s + takes_s, group, batch_id, stage))


def drive(world: World, case: Case, timed: int) -> Run:
    """Fills the queues, lets a part of them go by, and then `timed` requests that count."""
    driver = Driver(world, case)
    inside = GROUPS * case.waiting + sum(world.stages)
    for number in range(inside):
        driver.submit(0.01 * number / inside)
    answered, counted_from, timed_from = 0, -1, 0
    while counted_from < 0 or answered < counted_from + timed:
        if counted_from < 0 and answered >= 2000:
            counted_from, timed_from = answered, len(driver.calls)
            driver.submit_us, driver.done_us, driver.batches = [], [], 0
        count, now_s = driver.end_stage()
        for _ in range(count):
            driver.submit(now_s)
        if answered // 500 < (answered + count) // 500:
            driver.look()
        answered += count
    return Run(
        calls=driver.calls,
        timed_from=timed_from,
        requests=answered - counted_from,
        waiting=statistics.fmean(driver.waiting),
        rows=(answered - counted_from) / driver.batches,
        submit_us=driver.submit_us,
        done_us=driver.done_us,
    )


def replay(scheduler: Scheduler, calls: Sequence[Call]) -> None:
    """Gives a scheduler these calls."""
    submit, stage_done = scheduler.submit, scheduler.stage_done
    for call in calls:
        if len(call) == 2:
            submit(call[0], now_s=call[1])
        else:
            stage_done(call[0], call[1], call[2], now_s=call[3])


def measure(world: World, case: Case, run: Run) -> float:
    """Microseconds per request of one replay."""
    scheduler = world.scheduler(batching=case.batching)
    replay(scheduler, run.calls[: run.timed_from])
    counted = run.calls[run.timed_from :]
    gc.collect()
    began = time.thread_time()
    replay(scheduler, counted)
    return 1e6 * (time.thread_time() - began) / run.requests


def profile(world: World, case: Case, run: Run) -> None:
    """Prints where the time of one replay goes."""
    scheduler = world.scheduler(batching=case.batching)
    replay(scheduler, run.calls[: run.timed_from])
    profiler = cProfile.Profile()
    profiler.runcall(replay, scheduler, run.calls[run.timed_from :])
    print(f"\n{case}, {run.requests} requests; the profiler makes small functions look larger than they are")
    pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(14)


def row(case: Case, run: Run, rounds_us: Sequence[float]) -> dict[str, Any]:
    """The figures of a case."""
    return {
        **dataclasses.asdict(case),
        "waiting_seen": run.waiting,
        "rows_per_batch": run.rows,
        "requests": run.requests,
        "us": statistics.median(rounds_us),
        "rounds_us": list(rounds_us),
        "submit_us": {
            "mean": statistics.fmean(run.submit_us),
            **{f"p{q:g}": float(np.percentile(run.submit_us, q)) for q in (50, 99, 99.9)},
        },
        "stage_done_us": {"mean": statistics.fmean(run.done_us)},
    }


def growth(rows: Sequence[dict[str, Any]], *, batching: bool, deviation: float) -> float:
    """How much more a request costs with the longest queue than with ten waiting."""
    us = {
        each["waiting"]: each["us"] for each in rows if (each["batching"], each["deviation"]) == (batching, deviation)
    }
    return us[max(us)] / us[10]


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table and the targets; on the right are single calls as the run was made, with 0.3 µs or so of the timer."""
    print(f"{'batching':<9}{'ends':>8}{'waiting':>9}{'seen':>8}{'rows':>6}{'µs/request':>12} |", end="")
    print(f"{'submit':>8}{'p50':>7}{'p99':>8}{'p99.9':>8}{'stage_done':>12}")
    for each in rows:
        ends = f"±{100 * each['deviation']:.0f} %" if each["deviation"] else "exact"
        submit = each["submit_us"]
        print(
            f"{'on' if each['batching'] else 'off':<9}{ends:>8}{each['waiting']:>9}{each['waiting_seen']:>8.1f}"
            f"{each['rows_per_batch']:>6.2f}{each['us']:>12.2f} |{submit['mean']:>8.2f}{submit['p50']:>7.1f}"
            f"{submit['p99']:>8.1f}{submit['p99.9']:>8.1f}{each['stage_done_us']['mean']:>12.2f}"
        )
    print()
    for batching in (False, True):
        for deviation in (0.0, DEVIATION):
            worst = max(each["us"] for each in rows if (each["batching"], each["deviation"]) == (batching, deviation))
            grown = growth(rows, batching=batching, deviation=deviation)
            what = f"batching {'on' if batching else 'off'}, ends {'deviate' if deviation else 'exact'}"
            verdicts = ["met" if met else "MISSED" for met in (worst <= TARGET_US, grown <= TARGET_GROWTH)]
            print(f"{what:<28}worst {worst:>7.2f} µs, target <= {TARGET_US:g}: {verdicts[0]}; ", end="")
            print(f"longest queue / 10 {grown:>6.2f}, target <= {TARGET_GROWTH:g}: {verdicts[1]}")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000, help="that count, in each case")
    parser.add_argument("--rounds", type=int, default=5, help="medians are over so many")
    parser.add_argument("--waiting", type=int, nargs="+", default=WAITING, help="requests that wait on a group")
    parser.add_argument("--dispatch", choices=DISPATCHES, default="earliest-finish", help="how groups are chosen")
    parser.add_argument("--profile", action="store_true", help="print the hot functions too")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    if 10 not in arguments.waiting:
        parser.error("--waiting must have 10, which the longest queue is compared with")
    timed, rounds = (2000, 1) if arguments.quick else (arguments.requests, arguments.rounds)
    world = World.make(arguments.dispatch)
    cases = [
        Case(waiting=waiting, batching=batching, deviation=deviation)
        for batching in (False, True)
        for deviation in (0.0, DEVIATION)
        for waiting in (arguments.waiting[:-1] if arguments.quick else arguments.waiting)
    ]
    runs: dict[Case, Run] = {}
    for case in cases:
        print(case, file=sys.stderr)
        runs[case] = drive(world, case, timed)
    measured: dict[Case, list[float]] = {case: [] for case in cases}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for case in cases:
            measured[case].append(measure(world, case, runs[case]))
    rows = [row(case, runs[case], measured[case]) for case in cases]
    show(rows)
    if arguments.profile:
        for case in cases:
            if case.waiting == PROFILED_WAITING:
                profile(world, case, runs[case])
    results = {
        "benchmark": "scheduler",
        **circumstances(seed=SEED),
        "groups": GROUPS,
        "models": MODELS,
        "replicas": REPLICAS,
        "dispatch": arguments.dispatch,
        "rounds": rounds,
        "target_us": TARGET_US,
        "target_growth": TARGET_GROWTH,
        "rows": rows,
    }
    write(arguments.output, results)


if __name__ == "__main__":
    main()
