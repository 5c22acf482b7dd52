"""What does jaxserve add to a request? Measured against the least that could be done, in one run.

(a) The floor of the native protocol: a bare uvloop server that decodes and encodes a length-prefixed msgpack frame with
    the same 512 bytes, and joins its answers into one write as jaxserve does. No models, no deadlines, no tensors.
(b) jaxserve serving an identity on float32 [1, 128] that needs no device, through the native protocol, input checks,
    scheduler, admission (every request has a deadline) and metrics; and the same server called by `AsyncClient`.
(c) `await engine.infer(...)` of a compiled tiny MLP in this process, against the compiled call itself, numpy to numpy.

(a) and (b) are driven by the same raw load generator, a closed loop from a process of its own, with one connection for
each request in flight, as many clients would. The rows with several in flight on one connection show what multiplexing
brings; there the floor shares all system calls and has next to nothing left to do, so no target is set.
Each round starts fresh processes; rounds of the systems alternate; the table shows medians over the rounds, and
the ratios are medians of the rounds' ratios.

    python bench/overhead.py [--seconds 2] [--repeats 5] [-o FILE]
"""

import argparse
import asyncio
import dataclasses
import itertools
import json
import statistics
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import msgpack
import numpy as np
from processes import child, measure
from record import circumstances, write

from jaxserve.client import AsyncClient
from jaxserve.protocols import messages, native
from jaxserve.protocols.loop import loop_factory

IN_FLIGHT = (1, 16, 64)
LOADS = ((1, 1), (16, 16), (64, 64), (16, 1), (64, 1))
"""Requests in flight, and connections that they are spread over."""
SYSTEMS = ("floor", "jaxserve", "AsyncClient")
SEED = 0
DEADLINE_S = 1.0
WARM_UP_S = 0.3
IN_PROCESS_CALLS = 4000

X = np.random.default_rng(SEED).standard_normal((1, 128), np.float32)
LENGTH = struct.Struct("<I")


# What both servers have in common: they say where they listen, and give an account of their processor time


def serve_until_told(loop: asyncio.AbstractEventLoop, port: int) -> asyncio.Event:
    """Announces the port; answers each line on standard input with the processor seconds so far; sets at its end."""
    done = asyncio.Event()

    def told() -> None:
        if sys.stdin.readline():
            print(time.process_time(), flush=True)
        else:
            loop.remove_reader(sys.stdin)
            done.set()

    loop.add_reader(sys.stdin, told)
    print(port, flush=True)
    return done


class Echo(asyncio.Protocol):
    """The floor: unpack, pack, one write for what arrived together."""

    def __init__(self) -> None:
        self._pack = msgpack.Packer().pack
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The load generator is there."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answers every frame that is complete."""
        if self._rest:
            data = self._rest + data
        position, stop = 0, len(data)
        out = []
        while stop - position >= 4:
            (length,) = LENGTH.unpack_from(data, position)
            end = position + 4 + length
            if end > stop:
                break
            id, payload = msgpack.unpackb(data[position + 4 : end])
            body = self._pack([id, payload])
            out += (LENGTH.pack(len(body)), body)
            position = end
        self._rest = data[position:]
        if out:
            self._transport.write(b"".join(out))


async def serve_floor() -> None:
    """The bare server."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    await serve_until_told(loop, server.sockets[0].getsockname()[1]).wait()


async def serve_jaxserve() -> None:
    """The real server, the real engine."""
    from jaxserve import Engine, Model, TensorSpec
    from jaxserve.server import NativeServer

    identity = Model.from_function(
        "identity",
        lambda x: x,
        inputs={"x": TensorSpec(("batch", 128), "float32")},
        deadline_s=DEADLINE_S,
        on_host=True,
    )
    async with Engine([identity]) as engine, NativeServer(engine) as server:
        assert server.port is not None
        await serve_until_told(asyncio.get_running_loop(), server.port).wait()


# The load generator


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """All that the load generator knows of a protocol.

    Attributes:
        opening: what to send first.
        answer_offset: bytes that the server sends before its first frame.
        opening_frames: frames that answer the opening.
        id_offset: where the last byte of the id stands in a frame.
        request: the frame of an id below 128.
    """

    opening: bytes
    answer_offset: int
    opening_frames: int
    id_offset: int
    request: Callable[[int], bytes]


def floor_request(id: int) -> bytes:
    """An id and 512 bytes."""
    body = cast(bytes, msgpack.packb([id, X.tobytes()]))
    return LENGTH.pack(len(body)) + body


def jaxserve_request(id: int) -> bytes:
    """The same 512 bytes as a tensor."""
    return b"".join(native.encode_infer(id, "identity", DEADLINE_S, {"x": X}))


DIALECTS = {
    "floor": Dialect(opening=b"", answer_offset=0, opening_frames=0, id_offset=5, request=floor_request),
    "jaxserve": Dialect(
        opening=native.PREAMBLE + b"".join(native.encode(messages.Hello([1], 2**26, "load"))),
        answer_offset=len(native.PREAMBLE),
        opening_frames=1,
        id_offset=18,
        request=jaxserve_request,
    ),
}


class Load(asyncio.Protocol):
    """A closed loop: every answer is followed by the next request of the same id."""

    def __init__(self, dialect: Dialect, in_flight: int) -> None:
        self._dialect = dialect
        self._requests = {id: dialect.request(id) for id in range(1, in_flight + 1)}
        self._sent_s = dict.fromkeys(self._requests, 0.0)
        self._rest = b""
        self._skip_bytes = dialect.answer_offset
        self._skip_frames = dialect.opening_frames
        self.latencies_s: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server is there."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._dialect.opening)
        if not self._skip_frames:
            self._begin()

    def data_received(self, data: bytes) -> None:
        """Notes every answer that is complete, and sends as many requests."""
        now_s = time.perf_counter()
        if self._rest:
            data = self._rest + data
        position, stop = self._skip_bytes, len(data)
        self._skip_bytes = 0
        ids = []
        id_offset = self._dialect.id_offset
        while stop - position >= 4:
            (length,) = LENGTH.unpack_from(data, position)
            end = position + 4 + length
            if end > stop:
                break
            ids.append(data[position + id_offset])
            position = end
        self._rest = data[position:]
        if self._skip_frames:
            self._skip_frames = 0
            self._begin()
            return
        sent_s, latencies_s = self._sent_s, self.latencies_s
        for id in ids:
            latencies_s.append(now_s - sent_s[id])
        self._send(ids)

    def _begin(self) -> None:
        self._send(list(self._requests))

    def _send(self, ids: Sequence[int]) -> None:
        requests, sent_s = self._requests, self._sent_s
        now_s = time.perf_counter()
        for id in ids:
            sent_s[id] = now_s
        self._transport.write(b"".join([requests[id] for id in ids]))


def summary(latencies_s: Sequence[float], wall_s: float) -> dict[str, float]:
    """What one measurement comes to."""
    p50_s, p99_s = np.percentile(latencies_s, [50, 99])
    return {
        "requests": len(latencies_s),
        "wall_s": wall_s,
        "rps": len(latencies_s) / wall_s,
        "p50_s": float(p50_s),
        "p99_s": float(p99_s),
    }


async def load(system: str, port: int, in_flight: int, connections: int, seconds: float) -> None:
    """The raw load generator, against either server."""
    loop = asyncio.get_running_loop()
    opened = [
        await loop.create_connection(lambda: Load(DIALECTS[system], in_flight // connections), "127.0.0.1", port)
        for _ in range(connections)
    ]
    await asyncio.sleep(WARM_UP_S)
    print("warm", flush=True)
    sys.stdin.readline()
    latencies_s: list[float] = []
    for _, protocol in opened:
        protocol.latencies_s = latencies_s
    started_s = time.perf_counter()
    await asyncio.sleep(seconds)
    print(json.dumps(summary(latencies_s, time.perf_counter() - started_s)), flush=True)
    for transport, _ in opened:
        transport.abort()


async def load_async_client(port: int, in_flight: int, seconds: float) -> None:
    """`in_flight` tasks that each await one call after the other."""
    latencies_s: list[float] = []

    async def caller(client: AsyncClient) -> None:
        while True:
            started_s = time.perf_counter()
            await client.infer("identity", {"x": X}, deadline_s=DEADLINE_S)
            latencies_s.append(time.perf_counter() - started_s)

    async with AsyncClient(f"127.0.0.1:{port}") as client:
        np.testing.assert_array_equal((await client.infer("identity", {"x": X}))["output"], X)
        callers = [asyncio.create_task(caller(client)) for _ in range(in_flight)]
        await asyncio.sleep(WARM_UP_S)
        print("warm", flush=True)
        sys.stdin.readline()
        latencies_s.clear()
        started_s = time.perf_counter()
        await asyncio.sleep(seconds)
        print(json.dumps(summary(latencies_s, time.perf_counter() - started_s)), flush=True)
        for task in callers:
            task.cancel()
        await asyncio.wait(callers)


# (c)


async def in_process() -> None:
    """The engine against the compiled call, in turns, so that both see the same machine."""
    import jax

    from jaxserve import Engine, Model, TensorSpec

    def mlp(params: dict[str, Any], x: Any) -> Any:
        return jax.nn.relu(x @ params["up"]) @ params["down"]

    source = np.random.default_rng(SEED)
    params = {
        "up": source.standard_normal((128, 256), np.float32),
        "down": source.standard_normal((256, 16), np.float32),
    }
    model = Model.from_function(
        "mlp", mlp, params, inputs={"x": TensorSpec(("batch", 128), "float32")}, deadline_s=DEADLINE_S
    )
    on_device = jax.device_put(params)
    compiled = jax.jit(mlp).lower(on_device, jax.ShapeDtypeStruct(X.shape, X.dtype)).compile()
    direct_s: list[float] = []
    engine_s: list[float] = []
    async with Engine([model], devices=jax.devices()[:1]) as engine:
        outputs = await engine.infer("mlp", {"x": X})
        np.testing.assert_allclose(outputs["output"], compiled(on_device, X), rtol=1e-5)
        for _ in range(IN_PROCESS_CALLS):
            started_s = time.perf_counter()
            np.asarray(compiled(on_device, X))
            between_s = time.perf_counter()
            await engine.infer("mlp", {"x": X}, deadline_s=DEADLINE_S)
            engine_s.append(time.perf_counter() - between_s)
            direct_s.append(between_s - started_s)
    skipped = IN_PROCESS_CALLS // 10
    direct_p50_s, direct_p99_s = np.percentile(direct_s[skipped:], [50, 99])
    engine_p50_s, engine_p99_s = np.percentile(engine_s[skipped:], [50, 99])
    print(
        json.dumps(
            {
                "direct_p50_s": direct_p50_s,
                "direct_p99_s": direct_p99_s,
                "engine_p50_s": engine_p50_s,
                "engine_p99_s": engine_p99_s,
                "added_p50_s": engine_p50_s - direct_p50_s,
            }
        )
    )


# The run


def one_round(seconds: float, *, floor_first: bool) -> list[dict[str, Any]]:
    """Every system under every load, each server in a fresh process."""
    rows = []
    for system in ("floor", "jaxserve") if floor_first else ("jaxserve", "floor"):
        with child(system) as server:
            port = int(server.hear())
            for in_flight, connections in LOADS:
                row = measure(server, "load", system, port, in_flight, connections, seconds)
                rows.append({"system": system, "in_flight": in_flight, "connections": connections, **row})
            if system == "jaxserve":
                for in_flight in IN_FLIGHT:
                    row = measure(server, "async-client", port, in_flight, seconds)
                    rows.append({"system": "AsyncClient", "in_flight": in_flight, "connections": 1, **row})
    return rows


def one_in_process_round() -> dict[str, float]:
    """(c) in a fresh process."""
    with child("in-process") as process:
        return json.loads(process.hear())


def collect(rounds: Sequence[list[dict[str, Any]]], in_process_rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Medians over the rounds, of figures and of ratios."""
    by_case: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for row in itertools.chain.from_iterable(rounds):
        by_case.setdefault((row["system"], row["in_flight"], row["connections"]), []).append(row)

    def ratio(name: str, in_flight: int, connections: int) -> float:
        ours, floor = (by_case[system, in_flight, connections] for system in ("jaxserve", "floor"))
        return statistics.median(one[name] / other[name] for one, other in zip(ours, floor, strict=True))

    return {
        "rows": [
            {
                **dict(zip(("system", "in_flight", "connections"), case, strict=True)),
                **{
                    name: statistics.median(row[name] for row in by_case[case])
                    for name in ("rps", "p50_s", "p99_s", "server_cpu_s")
                },
            }
            for case in sorted(by_case, key=lambda case: (SYSTEMS.index(case[0]), case[1] != case[2], case[1]))
        ],
        "in_process": {
            name: statistics.median(each[name] for each in in_process_rounds) for name in in_process_rounds[0]
        },
        "ratios": {
            "p50_at_1": ratio("p50_s", 1, 1),
            "rps_at_64": ratio("rps", 64, 64),
            "rps_at_64_multiplexed": ratio("rps", 64, 1),
        },
    }


def show(results: dict[str, Any]) -> None:
    """The table."""
    print(
        f"{'system':<12}{'in flight':>10}{'connections':>12}{'rps':>10}{'p50 ms':>9}{'p99 ms':>9}{'server CPU µs':>15}"
    )
    for row in results["rows"]:
        print(
            f"{row['system']:<12}{row['in_flight']:>10}{row['connections']:>12}{row['rps']:>10,.0f}"
            f"{1e3 * row['p50_s']:>9.3f}{1e3 * row['p99_s']:>9.3f}{1e6 * row['server_cpu_s']:>15.1f}"
        )
    ratios, inside = results["ratios"], results["in_process"]
    print(f"\ncompiled call p50 {1e6 * inside['direct_p50_s']:.0f} µs, ", end="")
    print(f"engine.infer p50 {1e6 * inside['engine_p50_s']:.0f} µs\n")
    for text, value, limit in (
        ("rps / floor, 64 in flight on 64 connections", ratios["rps_at_64"], ">= 0.4"),
        ("rps / floor, 64 in flight on 1 connection", ratios["rps_at_64_multiplexed"], ""),
        ("p50 / floor, 1 in flight", ratios["p50_at_1"], "<= 2.5"),
        ("µs that engine.infer adds", 1e6 * inside["added_p50_s"], "<= 100"),
    ):
        print(f"{text:<46}{value:>8.2f}   {verdict(value, limit)}")


def verdict(value: float, limit: str) -> str:
    """Whether a target was met; nothing where there is none."""
    if not limit:
        return ""
    relation, bound = limit.split()
    met = value >= float(bound) if relation == ">=" else value <= float(bound)
    return f"target {limit}: {'met' if met else 'MISSED'}"


def run(arguments: argparse.Namespace) -> None:
    """All rounds, the table and the file."""
    rounds, in_process_rounds = [], []
    for number in range(arguments.repeats):
        print(f"round {number + 1} of {arguments.repeats}", file=sys.stderr)
        rounds.append(one_round(arguments.seconds, floor_first=number % 2 == 0))
        in_process_rounds.append(one_in_process_round())
    results = {
        "benchmark": "overhead",
        **circumstances(seed=SEED),
        "seconds": arguments.seconds,
        "repeats": arguments.repeats,
        **collect(rounds, in_process_rounds),
        "rounds": [
            {"network": network, "in_process": inside}
            for network, inside in zip(rounds, in_process_rounds, strict=True)
        ],
    }
    show(results)
    write(arguments.output, results)


def play(role: str, *words: str) -> None:
    """What a child process does."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        match role, words:
            case "floor", ():
                runner.run(serve_floor())
            case "jaxserve", ():
                runner.run(serve_jaxserve())
            case "load", (system, port, in_flight, connections, seconds):
                runner.run(load(system, int(port), int(in_flight), int(connections), float(seconds)))
            case "async-client", (port, in_flight, seconds):
                runner.run(load_async_client(int(port), int(in_flight), float(seconds)))
            case "in-process", ():
                runner.run(in_process())
            case _:
                raise ValueError(f"no role {role} {words}")


def main() -> None:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        play(*arguments.role)
    else:
        run(arguments)


if __name__ == "__main__":
    main()
