"""Do well-behaved clients notice strangers who dawdle, and strangers who ask for ten times what there is?

Three emulated groups of two stages: 12 and 9 ms for one request, up to 3.2 times as long for a batch of eight. Two
groups have the model that the well-behaved use, one has another. Twelve well-behaved clients, eight over V2 HTTP and
four over the native protocol, each ask, take the answer, think for a while, and ask again; together they want about a
third of what their groups can do. They are measured alone, and then while there are

- 1,000 connections of those who dawdle, of six kinds in equal parts: a byte of a request's head a second, a byte of its
  body a second, requests whose answers nobody reads, noise that is no HTTP and then silence, half a handshake of the
  native protocol, half a one of HTTP/2; each that the server cuts off is made anew a second later;
- an open loop that asks ten times what there is, half over HTTP and half over the native protocol: first of the other
  model ("apart": what the strangers cost is the server's own time), then of that of the well-behaved ("together").

Strangers and well-behaved are two tenants of equal shares (`--shares equal`). Timeouts are shorter than a server has by
itself (2 s for a head, 4 s for a body, 4 s in which something of an answer must be taken), so that strangers are cut
off many times while it is measured. Server, clients and strangers are a process each and share the machine, but that
of the strangers yields to the others.

Every round starts a fresh server and measures alone, apart, together, and alone again. A ratio is that of the 99th
percentiles of what was answered to the mean of both times alone; what is refused is counted, but has no latency. The
table shows medians over the rounds.

Targets: ratios of at most 3; apart, nearly all that the well-behaved ask is answered in time; a bounded resident set.

    python bench/hostile.py [--seconds 8] [--rounds 3] [--dawdlers 1000] [--times 10] [--quick] [-o FILE]
"""

import argparse
import asyncio
import contextlib
import gc
import json
import math
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from processes import Child, child
from record import circumstances, write
from strangers import HOST, Dawdlers, http_infer, overload

from jaxserve import AsyncClient, Engine, Model, Placement, TensorSpec
from jaxserve.cluster import EmulatedCluster
from jaxserve.errors import InferenceError
from jaxserve.plans import Group, Profile, Profiles
from jaxserve.protocols.loop import loop_factory
from jaxserve.server.front import Doors, Front
from jaxserve.server.limits import Limits

GROUPS = tuple(
    Group(inter_op=2, devices=(2 * index, 2 * index + 1), models=(model,))
    for index, model in enumerate(("model", "model", "other"))
)
STAGE_S = (0.012, 0.009)
GROWTH = {1: 1.0, 2: 1.35, 4: 2.0, 8: 3.2}
"""What a batch of each size takes, by what one request takes."""
DEADLINE_S = 0.15
OVERHEAD_S = 0.005
"""Kept in hand at admission, for what an answer takes from the engine to its caller on a busy loop."""
CAPACITY = max(size / growth for size, growth in GROWTH.items()) / max(STAGE_S)
"""Requests per second of one group with full batches."""
GROUPS_OF = Counter(group.models[0] for group in GROUPS)
THINK_S = 0.06
OVER_HTTP, OVER_NATIVE = 8, 4
WARM_UP_S = 1.0
SETTLE_S = 6.0
"""Between the first of the strangers and when they are measured among."""
LIMITS = Limits(head_timeout_s=2.0, body_timeout_s=4.0, write_timeout_s=4.0, keepalive_timeout_s=30.0)
AMONG = {"apart": "other", "together": "model"}
"""What the strangers ask for."""
TARGET_RATIO, TARGET_ANSWERED = 3.0, 0.95
TARGET_GROWTH_BYTES = 512 * 2**20
SEED = 0

X = np.ones((1, 16), np.float32)


async def serve() -> None:
    """The server; every line on standard input is answered with what it takes."""
    inputs = {"x": TensorSpec(("batch", 16), "float32")}
    models = [Model.from_function(name, lambda x: x, inputs=inputs, batch_sizes=tuple(GROWTH)) for name in GROUPS_OF]
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
    profiles = Profiles(device_kind="emulated", memory_bytes=1.0, models=dict.fromkeys(GROUPS_OF, rows))
    cluster = EmulatedCluster(GROUPS, profiles)
    placement = Placement(groups=GROUPS)
    async with (
        Engine(models, placement=placement, cluster=cluster, overhead_s=OVERHEAD_S, shares={}) as engine,
        Front(engine, doors=Doors(), known=models, limits=LIMITS) as front,
    ):
        done = asyncio.Event()

        def told() -> None:
            if not sys.stdin.readline():
                asyncio.get_running_loop().remove_reader(sys.stdin)
                done.set()
                return
            assert front.http is not None
            assert front.native is not None
            taken = {
                "cpu_s": time.process_time(),
                "resident_bytes": resident_bytes(),
                "connections": front.http.connections + front.native.connections,
                "in_flight": front.in_flight,
            }
            print(json.dumps(taken), flush=True)

        asyncio.get_running_loop().add_reader(sys.stdin, told)
        gc.collect()
        gc.freeze()  # as `jaxserve serve` does
        print(json.dumps({name: server.port for name, server in front.servers.items()}), flush=True)
        await done.wait()


def resident_bytes() -> int:
    """Resident set of this process; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


# The well-behaved


async def behave(ports: dict[str, int], seconds: float) -> None:
    """The well-behaved, for a while; prints what they saw."""
    outcomes: Counter[str] = Counter()
    latencies_s: list[float] = []
    began_s = time.perf_counter()

    def note(outcome: str, sent_s: float) -> None:
        took_s = time.perf_counter() - sent_s
        if sent_s - began_s >= WARM_UP_S:
            if outcome == "answered" and took_s > DEADLINE_S:
                outcome = "answered late"
            outcomes[outcome] += 1
            if outcome.startswith("answered"):
                latencies_s.append(took_s)

    async with asyncio.timeout(WARM_UP_S + seconds + 30.0), asyncio.TaskGroup() as tasks:
        until_s = began_s + WARM_UP_S + seconds
        for number in range(OVER_HTTP):
            tasks.create_task(ask_over_http(ports["http"], number, until_s, note))
        for number in range(OVER_NATIVE):
            tasks.create_task(ask_over_native(ports["native"], number, until_s, note))
    figures = {f"p{q}_s": float(np.percentile(latencies_s or [math.inf], q)) for q in (50, 99)}
    print(json.dumps({**figures, "outcomes": outcomes, "asked": outcomes.total()}), flush=True)


async def ask_over_http(port: int, number: int, until_s: float, note: Any) -> None:
    """One client over HTTP."""
    rng = np.random.default_rng((SEED, number))
    request = http_infer("model", X, "well-behaved", DEADLINE_S)
    while (sent_s := time.perf_counter()) < until_s:
        reader, writer = await asyncio.open_connection(HOST, port)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while time.perf_counter() < until_s:
                sent_s = time.perf_counter()
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                start = head.find(b"\r\nContent-Length: ") + 18
                await reader.readexactly(int(head[start : head.find(b"\r", start)]))
                note("answered" if head[9:12] == b"200" else f"HTTP {head[9:12].decode()}", sent_s)
                await asyncio.sleep(rng.exponential(THINK_S))
            writer.close()
            return
        note("connection lost", sent_s)
        writer.close()


async def ask_over_native(port: int, number: int, until_s: float, note: Any) -> None:
    """One client over the native protocol."""
    rng = np.random.default_rng((SEED, OVER_HTTP + number))
    async with AsyncClient(f"{HOST}:{port}") as client:
        while time.perf_counter() < until_s:
            sent_s = time.perf_counter()
            try:
                await client.infer("model", {"x": X}, deadline_s=DEADLINE_S, tenant="well-behaved")
            except InferenceError as error:
                note(error.code, sent_s)
            else:
                note("answered", sent_s)
            await asyncio.sleep(rng.exponential(THINK_S))


# The strangers


async def estrange(ports: dict[str, int], model: str, dawdlers: int, rate: float) -> None:
    """The strangers, until standard input ends; prints when all are there, and at the end what became of them."""
    os.nice(10)  # strangers have machines of their own; here they must not take the server's processor
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(sys.stdin, lambda: (loop.remove_reader(sys.stdin), done.set()))
    slow = Dawdlers(ports, dawdlers)
    outcomes: Counter[str] = Counter()
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(slow.run())]
        if rate:
            running.append(tasks.create_task(overload(ports, model, rate, X, DEADLINE_S, outcomes)))
        await asyncio.sleep(SETTLE_S)
        print("there", flush=True)
        began_s, before = time.perf_counter(), outcomes.total()
        await done.wait()
        wall_s = time.perf_counter() - began_s
        open_now = slow.open.total()
        for task in running:
            task.cancel()
    cut_off = {
        kind: {"count": len(lasted_s), "median_s": statistics.median(lasted_s), "longest_s": max(lasted_s)}
        for kind, lasted_s in slow.lasted_s.items()
        if lasted_s
    }
    seen = {
        "outcomes": outcomes,
        "answered_rps": (outcomes.total() - before) / wall_s,
        "dawdlers_open": open_now,
        "cut_off": cut_off,
        "could_not_connect": slow.failed,
    }
    print(json.dumps(seen), flush=True)


# The run


def measure(server: Child, ports: str, seconds: float) -> dict[str, Any]:
    """What the well-behaved see, and what the server takes meanwhile."""
    before, began_s = server.ask(), time.perf_counter()
    with child("behave", ports, seconds) as clients:
        largest_bytes, connections = before["resident_bytes"], before["connections"]
        while time.perf_counter() - began_s < WARM_UP_S + seconds:
            time.sleep(0.25)
            now = server.ask()
            largest_bytes = max(largest_bytes, now["resident_bytes"])
            connections = max(connections, now["connections"])
        seen = json.loads(clients.hear())
    after = server.ask()
    busy = (after["cpu_s"] - before["cpu_s"]) / (time.perf_counter() - began_s)
    return {**seen, "largest_bytes": largest_bytes, "connections": connections, "busy_share": busy}


def one_round(seconds: float, dawdlers: int, times: float) -> dict[str, Any]:
    """Alone, among strangers of both kinds, and alone again, on a fresh server."""
    with child("serve") as server:
        ports = server.hear().strip()
        alone = [measure(server, ports, seconds)]
        among: dict[str, dict[str, Any]] = {}
        for name, model in AMONG.items():
            rate = times * CAPACITY * GROUPS_OF[model]
            with child("estrange", ports, model, dawdlers, rate) as strangers:
                strangers.hear()
                seen = measure(server, ports, seconds)
                seen["strangers"] = json.loads(strangers.end())
            among[name] = seen
            time.sleep(SETTLE_S)
        alone.append(measure(server, ports, seconds))
        rest = server.ask()
    alone_p99_s = statistics.mean(each["p99_s"] for each in alone)
    return {
        "alone": alone,
        "among": among,
        "ratios": {name: seen["p99_s"] / alone_p99_s for name, seen in among.items()},
        "answered": {name: answered(seen) for name, seen in among.items()},
        "growth_bytes": max(seen["largest_bytes"] for seen in among.values()) - alone[0]["largest_bytes"],
        "growth_left_bytes": rest["resident_bytes"] - alone[0]["largest_bytes"],
        "connections_left": rest["connections"],
    }


def answered(seen: dict[str, Any]) -> float:
    """The part of what the well-behaved asked that was answered in time."""
    return seen["outcomes"].get("answered", 0) / max(1, seen["asked"])


def collect(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds."""
    return {
        **{
            what: {name: statistics.median(each[what][name] for each in rounds) for name in AMONG}
            for what in ("ratios", "answered")
        },
        **{
            name: statistics.median(each[name] for each in rounds)
            for name in ("growth_bytes", "growth_left_bytes", "connections_left")
        },
        "target_ratio": TARGET_RATIO,
        "target_answered": TARGET_ANSWERED,
        "target_growth_bytes": TARGET_GROWTH_BYTES,
        "rounds": list(rounds),
    }


def show(results: dict[str, Any]) -> None:
    """The tables and the targets."""
    print(f"{'':<13}{'asked':>7}{'in time':>9}{'p50 ms':>9}{'p99 ms':>9}{'connections':>13}{'MiB':>7}{'busy':>7}")
    for each in results["rounds"]:
        rows = [("alone", each["alone"][0]), *each["among"].items(), ("alone again", each["alone"][1])]
        for name, seen in rows:
            print(
                f"{name:<13}{seen['asked']:>7}{answered(seen):>9.1%}"
                f"{1e3 * seen['p50_s']:>9.1f}{1e3 * seen['p99_s']:>9.1f}"
                f"{seen['connections']:>13}{seen['largest_bytes'] / 2**20:>7.0f}{seen['busy_share']:>7.0%}"
            )
    for name, seen in results["rounds"][-1]["among"].items():
        met = seen["strangers"]
        print(f"\n{name}, the last time: the well-behaved were told {seen['outcomes']}")
        print(f"those who ask for too much were told, {met['answered_rps']:.0f} times a second, {met['outcomes']}")
        print(f"{met['dawdlers_open']} dawdled at the end; cut off were")
        for kind, cut in met["cut_off"].items():
            print(
                f"  {kind:<8}{cut['count']:>6} after {cut['median_s']:.1f} s, the last after {cut['longest_s']:.1f} s"
            )
    ratios, growth_bytes = results["ratios"], results["growth_bytes"]
    in_time = results["answered"]["apart"]
    print(f"\nanswered in time, together: {results['answered']['together']:.1%}")
    for text, target, holds in (
        *(
            (f"p99 {name} / alone: {ratio:.2f}", f"<= {TARGET_RATIO:g}", ratio <= TARGET_RATIO)
            for name, ratio in ratios.items()
        ),
        (f"answered in time, apart: {in_time:.1%}", f">= {TARGET_ANSWERED:.0%}", in_time >= TARGET_ANSWERED),
        (
            f"memory: {growth_bytes / 2**20:+.0f} MiB, and {results['growth_left_bytes'] / 2**20:+.0f} afterwards",
            f"<= {TARGET_GROWTH_BYTES / 2**20:.0f} MiB",
            growth_bytes <= TARGET_GROWTH_BYTES,
        ),
    ):
        print(f"{text}   target {target}: {'met' if holds else 'MISSED'}")


def play(role: str, *words: str) -> None:
    """What a child process does."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        match role, words:
            case "serve", ():
                runner.run(serve())
            case "behave", (ports, seconds):
                runner.run(behave(json.loads(ports), float(seconds)))
            case "estrange", (ports, model, dawdlers, rate):
                runner.run(estrange(json.loads(ports), model, int(dawdlers), float(rate)))
            case _:
                raise SystemExit(f"unknown role {role}")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement, beside the warm-up")
    parser.add_argument("--rounds", type=int, default=3, help="medians are over so many")
    parser.add_argument("--dawdlers", type=int, default=1000, help="connections that are kept open with little")
    parser.add_argument("--times", type=float, default=10.0, help="what is asked, by what the groups can do")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        play(*arguments.role)
        return
    seconds, repeats = (2.0, 1) if arguments.quick else (arguments.seconds, arguments.rounds)
    rounds: list[dict[str, Any]] = []
    for number in range(repeats):
        print(f"round {number + 1} of {repeats}", file=sys.stderr)
        rounds.append(one_round(seconds, arguments.dawdlers, arguments.times))
    results = {
        "benchmark": "hostile",
        **circumstances(seed=SEED),
        "seconds": seconds,
        "dawdlers": arguments.dawdlers,
        "times_capacity": arguments.times,
        "capacity_rps": {model: CAPACITY * groups for model, groups in GROUPS_OF.items()},
        "deadline_s": DEADLINE_S,
        **collect(rounds),
    }
    show(results)
    write(arguments.output, results)


if __name__ == "__main__":
    main()
