"""What does merging requests bring a real model, and what does it cost where there is nothing to merge?

all-MiniLM-L6-v2 with its real weights, the text tokenized by the engine, on one CPU device, under two engines in this
process: (a) `Engine(max_batch=1)`, (b) `Engine()`, which merges up to 16. Texts are of mixed lengths: sentences of
3 to 24 words, or queries of 1 to 9, as search engines get; a tenth of either is longer. What merging can bring depends
on the device: the closer one row comes to what the device can compute at all, the less, so queries gain more.

First the run measures (a): its latency with one request in flight, and what it can do in a closed loop of eight
without deadlines. Then, in each round:

overload   one trace, Gamma arrivals of CV 2 at 2.5 times what (a) can do, each with a deadline of ten times the mean
           latency, is replayed to both, open loop. Goodput is answers per second that the caller had within the
           deadline, from when the request was due.
low load   one request in flight, closed loop, no deadlines: the sides take turns with the same sentences; medians.

Rounds take turns in who is first; the ratios are medians of the rounds' ratios. Targets: goodput of (b) at least 1.5
times that of (a); its median latency at low load within 5 %.

    python bench/batching.py [--traffic sentences] [--seconds 8] [--rounds 5] [--lengths 32 256] [--quick] [-o FILE]
"""

import argparse
import asyncio
import contextlib
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from record import circumstances, write

from jaxserve import Engine
from jaxserve.cli.devices import use_cpu_devices
from jaxserve.config import cache_directory
from jaxserve.errors import DeadlineExceeded, DeadlineRefused, InferenceError
from jaxserve.models import minilm
from jaxserve.protocols.loop import loop_factory
from jaxserve.runtime import enable_compilation_cache
from jaxserve.workload import gamma

BATCH_SIZES = (1, 2, 4, 8, 16)
TRAFFIC = {"sentences": ((3, 24), (30, 90), (32, 256)), "queries": ((1, 9), (10, 40), (16, 64))}
"""Words of nine of ten texts, those of the tenth, and the length buckets."""
SIDES = ("alone", "merged")
CV, TIMES_CAPACITY, TIMES_LATENCY = 2.0, 2.5, 10.0
CLOSED_LOOP = 8
LOW_LOAD_CALLS = 200
TARGET_GOODPUT, TARGET_P50 = 1.5, 0.05
SEED = 0
TEXT = (
    "a server that merges requests fills the same matrices with more rows so each row costs less as long as the device "
    "waits for memory and not for arithmetic the cat sleeps on a warm sofa while rain falls over mountains and the "
    "orchestra tunes before its concert begins"
)


def texts_of(traffic: str) -> Iterator[str]:
    """Texts without end."""
    rng = np.random.default_rng(SEED)
    vocabulary = TEXT.split()
    short, long, _ = TRAFFIC[traffic]
    while True:
        fewest, most = long if rng.random() < 0.1 else short
        yield " ".join(rng.choice(vocabulary, rng.integers(fewest, most + 1)))


async def call(engine: Engine, text: str, deadline_s: float | None = None) -> float:
    """Seconds until the answer."""
    began_s = time.perf_counter()
    await engine.infer("minilm", {"text": [text]}, deadline_s=deadline_s)
    return time.perf_counter() - began_s


async def closed_loop(engine: Engine, texts: Sequence[str], *, in_flight: int) -> float:
    """Requests per second with so many in flight and no deadlines."""
    left = iter(texts)

    async def caller() -> None:
        for text in left:
            await call(engine, text)

    began_s = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return len(texts) / (time.perf_counter() - began_s)


async def open_loop(engine: Engine, due_s: Sequence[float], texts: Sequence[str], deadline_s: float) -> dict[str, Any]:
    """Replays a trace; what became of its requests, in requests per second."""
    counts = {"in_time": 0, "late": 0, "refused": 0, "expired": 0}
    latencies_s: list[float] = []
    before = batches(engine)

    async def one(text: str, at_s: float) -> None:
        try:
            await call(engine, text, deadline_s)
        except DeadlineRefused:
            counts["refused"] += 1
            return
        except DeadlineExceeded:
            counts["expired"] += 1
            return
        took_s = time.perf_counter() - at_s
        latencies_s.append(took_s)
        counts["in_time" if took_s <= deadline_s else "late"] += 1

    began_s, cpu_s = time.perf_counter(), time.thread_time()
    async with asyncio.TaskGroup() as tasks:
        for at_s, text in zip(due_s, texts, strict=True):
            ahead_s = began_s + at_s - time.perf_counter()
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
            tasks.create_task(one(text, began_s + at_s))
    cpu_s = time.thread_time() - cpu_s
    wall_s = time.perf_counter() - began_s
    return {
        "goodput_rps": counts["in_time"] / due_s[-1],
        **{f"{name}_rps": count / due_s[-1] for name, count in counts.items() if name != "in_time"},
        "answer_p50_s": statistics.median(latencies_s) if latencies_s else None,
        "rows_per_batch": (counts["in_time"] + counts["late"]) / max(1, batches(engine) - before),
        "loop_busy_share": cpu_s / wall_s,
    }


def batches(engine: Engine) -> int:
    """How many batches an engine has begun."""
    return engine.status()["models"]["minilm"]["batches"]


async def low_load(engines: dict[str, Engine], texts: Sequence[str], order: Sequence[str]) -> dict[str, float]:
    """Median seconds of each side with one request in flight; the sides take turns."""
    taken_s: dict[str, list[float]] = {side: [] for side in order}
    for index, text in enumerate(texts):
        for side in order if index % 2 else reversed(order):
            taken_s[side].append(await call(engines[side], text))
    return {side: statistics.median(taken_s[side]) for side in SIDES}


async def one_round(
    engines: dict[str, Engine], traffic: str, number: int, rate: float, deadline_s: float, seconds: float, calls: int
) -> dict[str, Any]:
    """Both measurements of both sides."""
    order = SIDES if number % 2 == 0 else SIDES[::-1]
    due_s = gamma(rate=rate, cv=CV, duration_s=seconds, rng=np.random.default_rng(SEED + number)).tolist()
    texts = list(itertools.islice(texts_of(traffic), max(len(due_s), calls)))
    overload: dict[str, Any] = {}
    for side in order:
        overload[side] = await open_loop(engines[side], due_s, texts[: len(due_s)], deadline_s)
    return {
        "offered_rps": len(due_s) / due_s[-1],
        "overload": {side: overload[side] for side in SIDES},
        "low_load_p50_s": await low_load(engines, texts[:calls], order),
    }


async def measure(arguments: argparse.Namespace, seconds: float, rounds: int, calls: int) -> dict[str, Any]:
    """Loads both engines, measures what (a) can do, then all rounds."""
    model = minilm(
        directory=cache_directory(),
        batch_sizes=BATCH_SIZES,
        lengths=tuple(arguments.lengths or TRAFFIC[arguments.traffic][2]),
        deadline_s=None,
    )
    device = jax.devices()[:1]
    async with contextlib.AsyncExitStack() as stack:
        engines: dict[str, Engine] = {}
        for side, options in zip(SIDES, ({"max_batch": 1}, {}), strict=True):
            print(f"loading: {side}", file=sys.stderr)
            options = {"overhead_s": arguments.overhead, **options}
            engines[side] = await stack.enter_async_context(Engine([model], devices=device, **options))
        texts = list(itertools.islice(texts_of(arguments.traffic), calls))
        for side in (*SIDES, *SIDES):  # the second time, everything was done once
            await closed_loop(engines[side], texts[:CLOSED_LOOP], in_flight=CLOSED_LOOP)
        latency_s = statistics.fmean([await call(engines["alone"], text) for text in texts])
        capacity_rps = await closed_loop(engines["alone"], texts * 2, in_flight=CLOSED_LOOP)
        merged_rps = await closed_loop(engines["merged"], texts * 2, in_flight=4 * CLOSED_LOOP)
        deadline_s, rate = TIMES_LATENCY * latency_s, arguments.times_capacity * capacity_rps
        found: list[dict[str, Any]] = []
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            found.append(await one_round(engines, arguments.traffic, number, rate, deadline_s, seconds, calls))
    return {
        "latency_alone_s": latency_s,
        "capacity_alone_rps": capacity_rps,
        "closed_loop_merged_rps": merged_rps,
        "deadline_s": deadline_s,
        "offered_rps": rate,
        **collect(found),
        "rounds": found,
    }


def collect(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, of figures and of ratios."""

    def median(of: Callable[[dict[str, Any]], float | None]) -> float | None:
        values = [value for each in rounds if (value := of(each)) is not None]
        return statistics.median(values) if values else None

    def ratio(each: dict[str, Any]) -> float | None:
        alone, merged = (each["overload"][side]["goodput_rps"] for side in SIDES)
        return merged / alone if alone else None

    names = rounds[0]["overload"][SIDES[0]]
    return {
        "overload": {
            side: {name: median(lambda each, side=side, name=name: each["overload"][side][name]) for name in names}
            for side in SIDES
        },
        "goodput_ratio": median(ratio),
        "low_load_p50_s": {side: median(lambda each, side=side: each["low_load_p50_s"][side]) for side in SIDES},
        "low_load_ratio": median(lambda each: each["low_load_p50_s"]["merged"] / each["low_load_p50_s"]["alone"]),
        "target_goodput_ratio": TARGET_GOODPUT,
        "target_low_load_difference": TARGET_P50,
    }


def show(results: dict[str, Any]) -> None:
    """The table and the targets."""
    print(f"(a) alone: {1e3 * results['latency_alone_s']:.2f} ms with one in flight, mean;", end=" ")
    print(f"{results['capacity_alone_rps']:.0f} requests/s with {CLOSED_LOOP} in flight;", end=" ")
    print(f"(b) merged: {results['closed_loop_merged_rps']:.0f} with {4 * CLOSED_LOOP}")
    print(f"offered {results['offered_rps']:.0f}/s, deadline {1e3 * results['deadline_s']:.0f} ms\n")
    print(f"{'side':<8}{'goodput/s':>11}{'late/s':>8}{'refused/s':>11}{'expired/s':>11}{'rows/batch':>12}", end="")
    print(f"{'answer p50 ms':>15}{'loop busy %':>13}{'low load p50 ms':>17}")
    for side in SIDES:
        row = results["overload"][side]
        p50 = "-" if row["answer_p50_s"] is None else f"{1e3 * row['answer_p50_s']:.1f}"
        print(
            f"{side:<8}{row['goodput_rps']:>11.1f}{row['late_rps']:>8.1f}{row['refused_rps']:>11.1f}"
            f"{row['expired_rps']:>11.1f}{row['rows_per_batch']:>12.2f}{p50:>15}{100 * row['loop_busy_share']:>13.1f}"
            f"{1e3 * results['low_load_p50_s'][side]:>17.3f}"
        )
    goodput, low = results["goodput_ratio"], results["low_load_ratio"]
    if goodput is None:
        print("\ngoodput: (a) answered nothing in time")
    else:
        met = "met" if goodput >= TARGET_GOODPUT else "MISSED"
        print(f"\ngoodput, merged / alone{goodput:>20.3f}   target >= {TARGET_GOODPUT}: {met}")
    met = "met" if abs(low - 1) <= TARGET_P50 else "MISSED"
    print(f"p50 at low load, merged / alone{low:>12.3f}   target within {100 * TARGET_P50:.0f} %: {met}")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each replay")
    parser.add_argument("--rounds", type=int, default=5, help="medians are over so many")
    parser.add_argument("--times-capacity", type=float, default=TIMES_CAPACITY, help="offered, by what (a) can do")
    parser.add_argument("--traffic", choices=TRAFFIC, default="sentences", help="what the texts are like")
    parser.add_argument("--lengths", type=int, nargs="+", help="in tokens, to compile; at most 256")
    parser.add_argument("--overhead", type=float, default=0.0, help="overhead_s of both engines")
    parser.add_argument("--quick", action="store_true", help="one short round; the first run still compiles")
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    seconds, rounds, calls = (arguments.seconds, arguments.rounds, LOW_LOAD_CALLS)
    if arguments.quick:
        seconds, rounds, calls = 2.0, 1, 40
    use_cpu_devices(1)
    cache = enable_compilation_cache(cache_directory() / "programs")
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            measured = runner.run(measure(arguments, seconds, rounds, calls))
    except InferenceError as error:
        sys.exit(f"a request without a deadline failed: {error}")
    results = {
        "benchmark": "batching",
        **circumstances(seed=SEED),
        "seconds": seconds,
        "batch_sizes": BATCH_SIZES,
        "traffic": arguments.traffic,
        "lengths": arguments.lengths or TRAFFIC[arguments.traffic][2],
        "overhead_s": arguments.overhead,
        "cv": CV,
        "times_capacity": arguments.times_capacity,
        "programs_compiled": cache.misses,
        **measured,
    }
    show(results)
    write(arguments.output, results)


if __name__ == "__main__":
    main()
