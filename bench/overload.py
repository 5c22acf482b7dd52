"""Does an engine that is offered ten times what it can do still do what it can?

Two emulated groups of two stages with one model: 12 and 9 ms for one request, up to 3.2 times as long for a batch of
eight. An open loop of Poisson arrivals sends 0.6, 1, 2, 5 and 10 times what the groups can do with full batches, each
request as a task of its own that awaits `engine.infer` with a deadline of about seven times the latency of one. The
engine and the load share one event loop and one process, so the loop's busy share is that of both.

Goodput is answers per second that their caller had within the deadline, from when it called, after a warm-up. A refusal
takes from when its task was made to when that has the error. Memory is the resident set, and the interpreter's
allocated blocks before and after; all that a load's callers keep of a request is a number in an array made before.
Rounds of all loads alternate, each with an engine of its own; the table shows medians over the rounds.

Targets: goodput at the highest load at least 0.95 of the best; the 99th percentile of refusals at that load below 2 ms;
no memory that grows with the load's length.

    python bench/overload.py [--seconds 8] [--rounds 3] [--loads 0.6 1 2 5 10] [--quick] [-o FILE]
"""

import argparse
import asyncio
import gc
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from record import circumstances, write

from jaxserve import Engine, Model, Placement, TensorSpec
from jaxserve.cluster import EmulatedCluster
from jaxserve.errors import DeadlineExceeded, DeadlineRefused
from jaxserve.plans import Group, Profile, Profiles
from jaxserve.protocols.loop import loop_factory
from jaxserve.workload import poisson

GROUPS = tuple(Group(inter_op=2, devices=(2 * index, 2 * index + 1), models=("model",)) for index in range(2))
STAGE_S = (0.012, 0.009)
GROWTH = {1: 1.0, 2: 1.35, 4: 2.0, 8: 3.2}
"""What a batch of each size takes, by what one request takes."""
DEADLINE_S = 0.15
OVERHEAD_S = 0.003
"""Kept in hand at admission, for what an answer takes from the engine to its caller on a busy loop."""
CAPACITY = len(GROUPS) * max(size / growth for size, growth in GROWTH.items()) / max(STAGE_S)
"""Requests per second with full batches."""
LOADS = (0.6, 1.0, 2.0, 5.0, 10.0)
"""The first is to be done with ease: the best goodput may be that of a load below what full batches can do."""
WARM_UP_S = 0.5
TARGET_GOODPUT, TARGET_REFUSAL_S = 0.95, 0.002
SEED = 0
NOT_YET, IN_TIME, TOO_LATE, REFUSED, EXPIRED = range(5)

X = np.ones((1, 16), np.float32)


def make_engine() -> Engine:
    """The model on its emulated groups."""
    model = Model.from_function(
        "model", lambda x: x, inputs={"x": TensorSpec(("batch", 16), "float32")}, batch_sizes=tuple(GROWTH)
    )
    rows = tuple(
        Profile(
            inter_op=len(STAGE_S),
            intra_op=1,
            batch_size=size,
            stage_latency_s=tuple(growth * stage_s for stage_s in STAGE_S),
            stage_weight_bytes=(0.0,) * len(STAGE_S),
            stage_activation_bytes=(0.0,) * len(STAGE_S),
        )
        for size, growth in GROWTH.items()
    )
    profiles = Profiles(device_kind="emulated", memory_bytes=1.0, models={"model": rows})
    cluster = EmulatedCluster(GROUPS, profiles)
    return Engine([model], placement=Placement(groups=GROUPS), cluster=cluster, overhead_s=OVERHEAD_S)


class Load:
    """An open loop, and what its callers saw.

    Attributes:
        due_s: when each request is due, from the start.
        verdict: of each request.
        took_s: of each request, from when its task was made to its end.
        late_s: of each request, by how much its task was made too late.
        peak: the most tasks that were under way at once.
    """

    def __init__(self, engine: Engine, due_s: np.ndarray[Any, Any]) -> None:
        self._engine = engine
        self._inside = 0
        self._sent_s = np.zeros(len(due_s))
        self.due_s = due_s
        self.verdict = np.full(len(due_s), NOT_YET, np.int8)
        self.took_s = np.zeros(len(due_s))
        self.late_s = np.zeros(len(due_s))
        self.peak = 0

    async def run(self) -> None:
        """Sends every request when it is due, whatever became of the earlier ones, and waits for all."""
        began_s = time.perf_counter()
        dues: list[float] = self.due_s.tolist()
        async with asyncio.TaskGroup() as tasks:
            for index, due_s in enumerate(dues):
                ahead_s = began_s + due_s - time.perf_counter()
                if ahead_s > 0:
                    await asyncio.sleep(ahead_s)
                self._inside += 1
                self.peak = max(self.peak, self._inside)
                self._sent_s[index] = sent_s = time.perf_counter()
                self.late_s[index] = sent_s - began_s - due_s
                tasks.create_task(self._call(index))
                if index % 64 == 63:
                    await asyncio.sleep(0)  # where it is behind, the engine must not starve

    async def _call(self, index: int) -> None:
        verdict = IN_TIME
        try:
            await self._engine.infer("model", {"x": X}, deadline_s=DEADLINE_S)
        except DeadlineRefused:
            verdict = REFUSED
        except DeadlineExceeded:
            verdict = EXPIRED
        took_s = time.perf_counter() - self._sent_s[index]
        if verdict == IN_TIME and took_s > DEADLINE_S:
            verdict = TOO_LATE
        self.took_s[index], self.verdict[index] = took_s, verdict
        self._inside -= 1


def resident_bytes() -> int:
    """Resident set of this process; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


async def watch_memory(every_s: float) -> None:
    """Notes the resident set until cancelled; the notes are the task's list."""
    while True:
        MEMORY.append(resident_bytes())
        await asyncio.sleep(every_s)


MEMORY: list[int] = []


def blocks() -> int:
    """What the interpreter has allocated, garbage aside."""
    gc.collect()
    return sys.getallocatedblocks()


async def measure(times_capacity: float, seconds: float) -> dict[str, Any]:
    """One load on a fresh engine."""
    rng = np.random.default_rng(SEED)
    duration_s = WARM_UP_S + seconds
    due_s = poisson(rate=times_capacity * CAPACITY, duration_s=duration_s, rng=rng)
    async with make_engine() as engine:
        await Load(engine, np.zeros(4)).run()  # what is made once, at the first call
        load = Load(engine, due_s)
        before = blocks()
        MEMORY.clear()
        watcher = asyncio.create_task(watch_memory(duration_s / 20))
        began_s, cpu_s = time.perf_counter(), time.thread_time()
        await load.run()
        wall_s, cpu_s = time.perf_counter() - began_s, time.thread_time() - cpu_s
        watcher.cancel()
        await asyncio.wait([watcher])
        after = blocks()
        status = engine.status()["models"]["model"]
    return summary(load, seconds) | {
        "times_capacity": times_capacity,
        "offered_rps": len(due_s) / duration_s,
        "wall_s": wall_s,
        "busy_share": cpu_s / wall_s,
        "peak_inside": load.peak,
        "rows_per_batch": status["served"] / max(1, status["batches"]),
        "resident_growth_bytes": MEMORY[-1] - MEMORY[len(MEMORY) // 2],
        "allocated_blocks_growth": after - before,
    }


def summary(load: Load, seconds: float) -> dict[str, Any]:
    """What the callers saw after the warm-up."""
    counted = load.due_s >= WARM_UP_S
    verdict, took_s = load.verdict[counted], load.took_s[counted]
    refused_s, answered_s = took_s[verdict == REFUSED], took_s[(verdict == IN_TIME) | (verdict == TOO_LATE)]
    return {
        "goodput_rps": int((verdict == IN_TIME).sum()) / seconds,
        "answered_late_rps": int((verdict == TOO_LATE).sum()) / seconds,
        "expired_rps": int((verdict == EXPIRED).sum()) / seconds,
        "refused_rps": len(refused_s) / seconds,
        "refusal_p50_s": percentile(refused_s, 50),
        "refusal_p99_s": percentile(refused_s, 99),
        "answer_p50_s": percentile(answered_s, 50),
        "answer_p99_s": percentile(answered_s, 99),
        "sent_late_p99_s": percentile(load.late_s[counted], 99),
    }


def percentile(values: np.ndarray[Any, Any], q: float) -> float | None:
    """A percentile; None of nothing."""
    return float(np.percentile(values, q)) if len(values) else None


def median_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure."""
    found: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows if row[name] is not None]
        found[name] = statistics.median(values) if values else None
    return found


def collect(rounds: Sequence[dict[float, dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the rounds, of figures and of the ratio."""
    highest = max(rounds[0])
    ratios = [each[highest]["goodput_rps"] / max(row["goodput_rps"] for row in each.values()) for each in rounds]
    return {
        "rows": [median_row([each[times] for each in rounds]) for times in sorted(rounds[0])],
        "goodput_ratio": statistics.median(ratios),
        "target_goodput_ratio": TARGET_GOODPUT,
        "target_refusal_p99_s": TARGET_REFUSAL_S,
        "rounds": [list(each.values()) for each in rounds],
    }


def ms(value: float | None) -> str:
    """Milliseconds, or a dash."""
    return "-" if value is None else f"{1e3 * value:.2f}"


def show(results: dict[str, Any]) -> None:
    """The table and the targets."""
    print(f"the groups can do {CAPACITY:.0f} requests/s with full batches; deadline {1e3 * DEADLINE_S:.0f} ms")
    print(f"{'load':>5}{'offered/s':>11}{'goodput/s':>11}{'late/s':>8}{'expired/s':>11}{'rows':>6}", end="")
    print(f"{'answer p50':>12}{'p99 ms':>8}{'refusal p50':>13}{'p99 ms':>8}{'inside':>8}{'busy %':>8}{'RSS +KiB':>10}")
    for row in results["rows"]:
        print(
            f"{row['times_capacity']:>5g}{row['offered_rps']:>11.0f}{row['goodput_rps']:>11.1f}"
            f"{row['answered_late_rps']:>8.1f}{row['expired_rps']:>11.1f}{row['rows_per_batch']:>6.2f}"
            f"{ms(row['answer_p50_s']):>12}{ms(row['answer_p99_s']):>8}{ms(row['refusal_p50_s']):>13}"
            f"{ms(row['refusal_p99_s']):>8}{row['peak_inside']:>8.0f}{100 * row['busy_share']:>8.1f}"
            f"{row['resident_growth_bytes'] / 1024:>10.0f}"
        )
    last = results["rows"][-1]
    ratio, refusal_s = results["goodput_ratio"], last["refusal_p99_s"]
    met = "met" if ratio >= TARGET_GOODPUT else "MISSED"
    print(f"\ngoodput at {last['times_capacity']:g} x / the best: {ratio:.3f}   target >= {TARGET_GOODPUT}: {met}")
    if refusal_s is not None:
        met = "met" if refusal_s < TARGET_REFUSAL_S else "MISSED"
        print(f"refusals at {last['times_capacity']:g} x, p99: {ms(refusal_s)} ms   ", end="")
        print(f"target < {ms(TARGET_REFUSAL_S)} ms: {met}")
    print(
        f"memory at {last['times_capacity']:g} x: resident set {last['resident_growth_bytes'] / 1024:+.0f} KiB in",
        end=" ",
    )
    print(f"the second half, allocated blocks {last['allocated_blocks_growth']:+.0f} from before to after; ", end="")
    print(f"at most {last['peak_inside']:.0f} requests inside")
    if last["busy_share"] > 0.9:
        print("the loop itself was full: these figures are its limits, not the engine's policy")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load, beside the warm-up")
    parser.add_argument("--rounds", type=int, default=3, help="medians are over so many")
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS, help="multiples of what the groups can do")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    seconds, repeats = (1.5, 1) if arguments.quick else (arguments.seconds, arguments.rounds)
    rounds: list[dict[float, dict[str, Any]]] = []
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        for number in range(repeats):
            print(f"round {number + 1} of {repeats}", file=sys.stderr)
            rounds.append({times: runner.run(measure(times, seconds)) for times in arguments.loads})
    results = {
        "benchmark": "overload",
        **circumstances(seed=SEED),
        "seconds": seconds,
        "capacity_rps": CAPACITY,
        "deadline_s": DEADLINE_S,
        "overhead_s": OVERHEAD_S,
        **collect(rounds),
    }
    show(results)
    write(arguments.output, results)


if __name__ == "__main__":
    main()
