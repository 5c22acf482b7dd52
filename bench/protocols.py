"""What do the standard protocols add to a request? Measured against the least that could be done, in one run.

Every server answers an identity on float32 [1, 128], which needs no device, and shares the machine with its load.

- V2 HTTP, binary: as `tritonclient.http` sends it. The floor is a bare aiohttp on uvloop that sends the body back.
- V2 HTTP, JSON: as `tritonclient.http` sends it where it is told not to send binary data. The floor is a bare aiohttp
  on uvloop that reads the JSON with orjson and writes a V2 answer with the same data.
- V2 gRPC: as `tritonclient.grpc` sends it. The floor is a bare grpc.aio that reads and writes the protobuf messages.
  "grpc" is under the load of a grpc.aio client with one channel, which is what users have; it takes as long as a server
  does, and they share the machine. "frames" is the same under a load that knows no more of HTTP/2 than it needs, over
  four connections: it shows more of what the server adds, and no target is set for it.

jaxserve serves it with all that a request passes: limits, access, input checks, scheduler, admission (every request has
a deadline), metrics.

The load is a closed loop from a process of its own. That for HTTP has one kept-alive connection for each request in
flight, and reads of an answer no more than its status and its length. The column "load" says how much of a core the
load took.

Each round starts fresh processes. Both servers of a protocol are up at the same time and are measured in turns, one
load after the other; the table shows medians over the rounds, and the ratios are medians of the rounds' ratios.

    python bench/protocols.py [--seconds 2] [--repeats 5] [--only binary json grpc frames] [-o FILE]
"""

import argparse
import asyncio
import gc
import json
import statistics
import struct
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
from overhead import serve_until_told, summary
from processes import child, measure
from record import circumstances, write

from jaxserve.protocols.loop import loop_factory

IN_FLIGHT = (1, 16, 64)
PROTOCOLS = ("binary", "json", "grpc", "frames")
SYSTEMS = ("floor", "jaxserve")
SEED = 0
DEADLINE_S = 1.0
WARM_UP_S = 0.3
CONNECTIONS = 4
"""Of the load that speaks gRPC in frames."""
HOST = "127.0.0.1"
ENOUGH_RPS = 11_000
"""Of V2 HTTP, binary: what Triton 2.51 with its Python backend does on such a machine (10.8k and 11.4k)."""
WANTED_RATIOS = {"binary": 0.6, "json": 0.6, "grpc": 0.8}
"""Requests per second, jaxserve's to the floor's."""
PACKAGES = ("aiohttp", "orjson", "uvloop", "grpcio", "protobuf")

X = np.random.default_rng(SEED).standard_normal((1, 128), np.float32)


# The floors


async def serve_raw() -> None:
    """A bare aiohttp that sends the body back."""
    from aiohttp import web

    async def infer(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    await serve_aiohttp(infer)


async def serve_json() -> None:
    """A bare aiohttp that reads V2 JSON and answers with the same data."""
    from aiohttp import web

    async def infer(request: web.Request) -> web.Response:
        asked = orjson.loads(await request.read())
        tensor = asked["inputs"][0]
        answer = {
            "id": asked["id"],
            "model_name": "identity",
            "model_version": "1",
            "outputs": [
                {"name": "output", "datatype": "FP32", "shape": tensor["shape"], "data": tensor["data"]},
            ],
        }
        return web.Response(body=orjson.dumps(answer), content_type="application/json")

    await serve_aiohttp(infer)


async def serve_aiohttp(handler: Any) -> None:
    """An application with one route."""
    from aiohttp import web

    application = web.Application()
    application.router.add_post("/v2/models/identity/infer", handler)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    await serve_until_told(asyncio.get_running_loop(), runner.addresses[0][1]).wait()
    await runner.cleanup()


async def serve_grpc() -> None:
    """A bare grpc.aio that reads a request and answers with its data."""
    import grpc

    from jaxserve.protocols.grpc_messages import INFERENCE, ModelInferRequest, ModelInferResponse

    async def infer(request: Any, context: Any) -> Any:
        tensor = request.inputs[0]
        return ModelInferResponse(
            id=request.id,
            model_name="identity",
            model_version="1",
            outputs=[ModelInferResponse.InferOutputTensor(name="output", datatype="FP32", shape=tensor.shape)],
            raw_output_contents=[request.raw_input_contents[0]],
        )

    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(
        infer,
        request_deserializer=ModelInferRequest.FromString,
        response_serializer=ModelInferResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(INFERENCE, {"ModelInfer": method}),))
    port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    await serve_until_told(asyncio.get_running_loop(), port).wait()
    await server.stop(0)


# The real server, the real engine


class NoSite:
    """Nothing to look at."""

    def __init__(self, feed: Any) -> None:
        self.feed = feed

    async def metrics(self, accepted: str) -> tuple[bytes, str]:
        """None."""
        return b"", "text/plain"

    def openapi(self, models: Sequence[str]) -> dict[str, Any]:
        """Empty."""
        return {}


async def serve_jaxserve(protocol: str) -> None:
    """One door of it."""
    from jaxserve import Engine, Model, TensorSpec
    from jaxserve.server.access import Access
    from jaxserve.server.feed import Feed
    from jaxserve.server.health import Health
    from jaxserve.server.http import HttpServer
    from jaxserve.server.limits import Limits
    from jaxserve.server.service import Service

    identity = Model.from_function(
        "identity",
        lambda x: x,
        inputs={"x": TensorSpec(("batch", 128), "float32")},
        deadline_s=DEADLINE_S,
        on_host=True,
    )
    async with Engine([identity]) as engine, Health(engine) as health:
        service = Service(engine, health=health, access=Access(), known=[identity], limits=Limits())
        if protocol in ("grpc", "frames"):
            from jaxserve.server.grpc_server import GrpcServer

            server: Any = GrpcServer(service, host=HOST, port=0)
        else:
            server = HttpServer(service, NoSite(Feed(engine, health)), host=HOST, port=0)
        async with server:
            gc.collect()
            gc.freeze()  # as `jaxserve serve` does
            await serve_until_told(asyncio.get_running_loop(), server.port).wait()


# What the clients send


def http_request(id: int, head: dict[str, Any], data: bytes | None) -> bytes:
    """The bytes of a request, as `tritonclient.http` 2.73 sends them, with the headers in its order."""
    text = orjson.dumps({"id": str(id), **head})
    body = text if data is None else text + data
    length = b"" if data is None else b"Inference-Header-Content-Length: %d\r\n" % len(text)
    return (
        b"POST /v2/models/identity/infer HTTP/1.1\r\nUser-Agent: python/gevent-http-client-2.6.1\r\n"
        b"%bHost: 127.0.0.1:8000\r\nContent-Length: %d\r\n\r\n%b" % (length, len(body), body)
    )


def binary_request(id: int) -> bytes:
    """Binary data in and out, the client's default."""
    tensor = {"name": "x", "shape": [1, 128], "datatype": "FP32", "parameters": {"binary_data_size": X.nbytes}}
    return http_request(id, {"inputs": [tensor], "parameters": {"binary_data_output": True}}, X.tobytes())


def json_request(id: int) -> bytes:
    """JSON in and out: the input and the output with `binary_data=False`."""
    tensor = {"name": "x", "shape": [1, 128], "datatype": "FP32", "data": X.ravel().tolist()}
    output = {"name": "output", "parameters": {"binary_data": False}}
    return http_request(id, {"inputs": [tensor], "outputs": [output]}, None)


def grpc_request(id: int) -> bytes:
    """The message: raw contents in, and so raw contents out."""
    from jaxserve.protocols.grpc_messages import ModelInferRequest

    tensor = ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=X.shape)
    request = ModelInferRequest(id=str(id), model_name="identity", inputs=[tensor], raw_input_contents=[X.tobytes()])
    return request.SerializeToString()


# The load for HTTP


class Load:
    """A closed loop, or several: every answer is followed by the next request.

    Attributes:
        latencies_s: where it notes what answers take.
        wrong: why it has ended; it should not.
    """

    def __init__(self) -> None:
        self.latencies_s: list[float] = []
        self.wrong = ""

    async def start(self, port: int) -> None:
        """Connects, and begins."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Ends."""
        raise NotImplementedError


class Connection(Load, asyncio.Protocol):
    """A load of one connection."""

    async def start(self, port: int) -> None:
        """Connects, and begins."""
        await asyncio.get_running_loop().create_connection(lambda: self, HOST, port)

    async def stop(self) -> None:
        """Ends."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server is there."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server has gone, or was left."""
        self._give_up(f"the server ended a connection: {exc}")

    def _give_up(self, wrong: str) -> None:
        self.wrong = self.wrong or wrong
        self._transport.abort()


class HttpLoad(Connection):
    """One request at a time."""

    def __init__(self, request: bytes, expected: bytes) -> None:
        super().__init__()
        self._request = request
        self._expected = expected
        self._rest = b""
        self._end = 0
        self._sent_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server is there."""
        super().connection_made(transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        """Notes an answer once it is complete, and sends a request."""
        if self._rest:
            data = self._rest + data
        if not self._end:
            head_end = data.find(b"\r\n\r\n")
            if head_end < 0:
                self._rest = data
                return
            if not data.startswith(b"HTTP/1.1 200 "):
                return self._give_up(f"the server answered {data[:500]!r}")
            start = data.find(b"\r\nContent-Length: ") + 18  # not that of Inference-Header-Content-Length
            self._end = head_end + 4 + int(data[start : data.find(b"\r", start)])
        if len(data) < self._end:
            self._rest = data
            return
        if self._expected not in data:
            return self._give_up(f"the server answered {data[:500]!r} without the data that it got")
        self._rest, self._end = b"", 0
        self.latencies_s.append(time.perf_counter() - self._sent_s)
        self._send()

    def _send(self) -> None:
        self._sent_s = time.perf_counter()
        self._transport.write(self._request)


# The loads for gRPC: a client, and as much of HTTP/2 [RFC 9113] as it takes


class ClientLoad(Load):
    """Several requests at a time over one channel of grpc.aio."""

    def __init__(self, messages: Sequence[bytes], expected: bytes) -> None:
        super().__init__()
        self._messages = messages
        self._expected = expected

    async def start(self, port: int) -> None:
        """Connects, and begins."""
        import grpc

        from jaxserve.protocols.grpc_messages import INFERENCE, ModelInferRequest, ModelInferResponse

        self._channel = grpc.aio.insecure_channel(f"{HOST}:{port}")
        method: Any = self._channel.unary_unary(
            f"/{INFERENCE}/ModelInfer",
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelInferResponse.FromString,
        )
        self._calling = [
            asyncio.create_task(self._call(method, ModelInferRequest.FromString(each))) for each in self._messages
        ]

    async def _call(self, method: Any, request: Any) -> None:
        try:
            while True:
                sent_s = time.perf_counter()
                answer = await method(request)
                if answer.raw_output_contents[0] != self._expected:
                    raise RuntimeError(f"the server answered {answer} without the data that it got")
                self.latencies_s.append(time.perf_counter() - sent_s)
        except Exception as error:
            self.wrong = self.wrong or repr(error)

    async def stop(self) -> None:
        """Ends."""
        for task in self._calling:
            task.cancel()
        await self._channel.close()


_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_LARGEST_WINDOW = 2**31 - 1
_FIRST_WINDOW = 2**16 - 1
_STREAM = struct.Struct(">I")
_FRAME_HEAD_BYTES = 9
_INITIAL_WINDOW_SIZE = 4  # of SETTINGS
_PATH = b"/inference.GRPCInferenceService/ModelInfer"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + _STREAM.pack(stream) + payload


def headers_of_first_and_others() -> tuple[bytes, bytes]:
    """HPACK [RFC 7541]: the first request says its headers, the others say that they are the same, as clients do."""

    def text(value: bytes) -> bytes:
        return bytes((len(value),)) + value

    fixed = bytes((0x80 | 3, 0x80 | 6))  # :method POST, :scheme http
    said = [
        bytes((0x40 | 4,)) + text(_PATH),
        bytes((0x40 | 1,)) + text(b"127.0.0.1:8001"),  # :authority
        bytes((0x40 | 31,)) + text(b"application/grpc"),  # content-type
        bytes((0x40,)) + text(b"te") + text(b"trailers"),
        bytes((0x40,)) + text(b"grpc-accept-encoding") + text(b"identity, deflate, gzip"),
        bytes((0x40 | 58,)) + text(b"grpc-python-asyncio/1.85.1"),  # user-agent
    ]
    newest = 62  # where the table of what was said begins, with the last
    repeated = bytes(0x80 | newest + len(said) - 1 - index for index in range(len(said)))
    return fixed + b"".join(said), fixed + repeated


class FramesLoad(Connection):
    """Several requests at a time."""

    def __init__(self, messages: Sequence[bytes], expected: bytes) -> None:
        super().__init__()
        self._bodies = [b"\0" + len(message).to_bytes(4, "big") + message for message in messages]
        self._expected = expected
        self._rest = b""
        self._window = _FIRST_WINDOW
        self._next_stream = 1
        self._sent: dict[int, tuple[float, int]] = {}
        self._answered: set[int] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server is there."""
        super().connection_made(transport)
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)
        first, others = headers_of_first_and_others()
        self._head = first
        requests = [self._request(0)]
        self._head = others
        self._transport.write(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(_SETTINGS, 0, 0, settings)
            + frame(_WINDOW_UPDATE, 0, 0, _STREAM.pack(_LARGEST_WINDOW - _FIRST_WINDOW))
            + b"".join(requests + [self._request(index) for index in range(1, len(self._bodies))])
        )

    def data_received(self, data: bytes) -> None:
        """Notes every answer that is complete, and sends as many requests."""
        if self._rest:
            data = self._rest + data
        position, stop = 0, len(data)
        out: list[bytes] = []
        while stop - position >= _FRAME_HEAD_BYTES:
            start = position + _FRAME_HEAD_BYTES
            end = start + int.from_bytes(data[position : position + 3], "big")
            if end > stop:
                break
            kind, flags = data[position + 3], data[position + 4]
            if kind == _DATA:
                (stream,) = _STREAM.unpack_from(data, position + 5)
                if end > start:
                    self._answered.add(stream)
                    if self._expected not in data[start:end]:
                        self._give_up(f"the server answered {data[start:end][:500]!r} without the data that it got")
            if kind <= _HEADERS:
                if flags & _END_STREAM:
                    (stream,) = _STREAM.unpack_from(data, position + 5)
                    out.append(self._end(stream, data[start:end]))
            elif kind != _CONTINUATION:
                (stream,) = _STREAM.unpack_from(data, position + 5)
                out.append(self._control(kind, flags, stream, data[start:end]))
            position = end
        self._rest = data[position:]
        if out:
            self._transport.write(b"".join(out))

    def _end(self, stream: int, trailers: bytes) -> bytes:
        if stream not in self._answered:
            self._give_up(f"the server answered without data: {trailers!r}")
        self._answered.discard(stream)
        sent_s, index = self._sent.pop(stream)
        self.latencies_s.append(time.perf_counter() - sent_s)
        return self._request(index)

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        if kind == _WINDOW_UPDATE:
            if stream == 0:  # the window of a stream is larger than what is sent over it
                self._window += _STREAM.unpack(payload)[0]
        elif kind in (_SETTINGS, _PING) and not flags & _ACK:
            return frame(kind, _ACK, 0, payload if kind == _PING else b"")
        elif kind in (_GOAWAY, _RST_STREAM):
            self._give_up(f"the server ends with {payload!r}")
        return b""

    def _request(self, index: int) -> bytes:
        stream, body = self._next_stream, self._bodies[index]
        self._next_stream = stream + 2
        self._window -= len(body)
        if self._window < 0:
            self._give_up("the server does not open its window in time")
        self._sent[stream] = (time.perf_counter(), index)
        return frame(_HEADERS, _END_HEADERS, stream, self._head) + frame(_DATA, _END_STREAM, stream, body)


# The load as a process


def loads(protocol: str, in_flight: int) -> Sequence[Load]:
    """One for each connection."""
    ids = range(1, in_flight + 1)
    if protocol in ("grpc", "frames"):
        messages = [grpc_request(id) for id in ids]
        if protocol == "grpc":
            return [ClientLoad(messages, X.tobytes())]
        connections = min(CONNECTIONS, in_flight)
        return [FramesLoad(messages[index::connections], X.tobytes()) for index in range(connections)]
    if protocol == "json":
        return [HttpLoad(json_request(id), b'"data":[%.6s' % str(X[0, 0]).encode()) for id in ids]
    return [HttpLoad(binary_request(id), X.tobytes()) for id in ids]


async def load(protocol: str, port: int, in_flight: int, seconds: float) -> None:
    """Warms up, waits for a line, measures, and prints what it has measured."""
    made = loads(protocol, in_flight)
    for each in made:
        await each.start(port)
    await asyncio.sleep(WARM_UP_S)
    print("warm", flush=True)
    sys.stdin.readline()
    latencies_s: list[float] = []
    for each in made:
        each.latencies_s = latencies_s
    cpu_s, started_s = time.process_time(), time.perf_counter()
    await asyncio.sleep(seconds)
    wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    for each in made:
        if each.wrong:
            raise SystemExit(each.wrong)
    print(json.dumps({**summary(latencies_s, wall_s), "load": cpu_s / wall_s}), flush=True)
    for each in made:
        await each.stop()


# The run


def one_round(protocol: str, seconds: float, *, floor_first: bool) -> list[dict[str, Any]]:
    """Both servers of a protocol under every load, in turns."""
    rows = []
    with child("floor", protocol) as floor, child("jaxserve", protocol) as jaxserve:
        servers = {"floor": (floor, int(floor.hear())), "jaxserve": (jaxserve, int(jaxserve.hear()))}
        for in_flight in IN_FLIGHT:
            for system in SYSTEMS if floor_first else SYSTEMS[::-1]:
                server, port = servers[system]
                row = measure(server, "load", protocol, port, in_flight, seconds)
                rows.append({"protocol": protocol, "system": system, "in_flight": in_flight, **row})
    return rows


def collect(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, of figures and of ratios, and the least and the greatest ratio."""
    by_case: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        by_case.setdefault((row["protocol"], row["in_flight"], row["system"]), []).append(row)
    ratios = []
    for protocol, in_flight in dict.fromkeys((protocol, in_flight) for protocol, in_flight, _ in by_case):
        floor, ours = (by_case[protocol, in_flight, system] for system in SYSTEMS)
        each = [one["rps"] / other["rps"] for one, other in zip(ours, floor, strict=True)]
        added_s = [one["server_cpu_s"] - other["server_cpu_s"] for one, other in zip(ours, floor, strict=True)]
        ratios.append(
            {
                "protocol": protocol,
                "in_flight": in_flight,
                "ratio": statistics.median(each),
                "least": min(each),
                "greatest": max(each),
                "rps": statistics.median(one["rps"] for one in ours),
                "added_cpu_s": statistics.median(added_s),
            }
        )
    return {
        "rows": [
            {
                **dict(zip(("protocol", "in_flight", "system"), case, strict=True)),
                **{
                    name: statistics.median(row[name] for row in measured)
                    for name in ("rps", "p50_s", "p99_s", "server_cpu_s", "load")
                },
            }
            for case, measured in by_case.items()
        ],
        "ratios": [{**ratio, **verdict(ratio)} for ratio in ratios],
    }


def verdict(ratio: dict[str, Any]) -> dict[str, Any]:
    """The target of a ratio, and whether it is met; none for one request at a time."""
    wanted = WANTED_RATIOS.get(ratio["protocol"])
    if wanted is None or ratio["in_flight"] == 1:
        return {"target": "", "met": None}
    met = ratio["ratio"] >= wanted
    if ratio["protocol"] != "binary":
        return {"target": f">= {wanted}", "met": met}
    return {"target": f">= {wanted} or {ENOUGH_RPS:,} rps", "met": met or ratio["rps"] >= ENOUGH_RPS}


def show(results: dict[str, Any]) -> None:
    """The tables."""
    print(
        f"{'protocol':<10}{'in flight':>9}  {'system':<10}{'rps':>9}{'p50 ms':>9}{'p99 ms':>9}"
        f"{'server CPU µs':>15}{'load':>7}"
    )
    for row in results["rows"]:
        print(
            f"{row['protocol']:<10}{row['in_flight']:>9}  {row['system']:<10}{row['rps']:>9,.0f}"
            f"{1e3 * row['p50_s']:>9.3f}{1e3 * row['p99_s']:>9.3f}{1e6 * row['server_cpu_s']:>15.1f}{row['load']:>7.0%}"
        )
    print(f"\n{'jaxserve / floor':<17}{'in flight':>9}{'ratio':>8}{'least':>8}{'most':>8}{'added CPU µs':>14}   target")
    for row in results["ratios"]:
        met = {None: "", True: ": met", False: ": MISSED"}[row["met"]]
        print(
            f"{row['protocol']:<17}{row['in_flight']:>9}{row['ratio']:>8.2f}{row['least']:>8.2f}{row['greatest']:>8.2f}"
            f"{1e6 * row['added_cpu_s']:>14.1f}   {row['target']}{met}"
        )


def run(arguments: argparse.Namespace) -> None:
    """All rounds, the tables and the file."""
    rows = []
    for number in range(arguments.repeats):
        for protocol in arguments.only:
            print(f"round {number + 1} of {arguments.repeats}: {protocol}", file=sys.stderr)
            measured = one_round(protocol, arguments.seconds, floor_first=number % 2 == 0)
            rows += [{"round": number, **row} for row in measured]
    results = {
        "benchmark": "protocols",
        **circumstances(seed=SEED),
        "seconds": arguments.seconds,
        "repeats": arguments.repeats,
        **collect(rows),
        "rounds": rows,
    }
    results["versions"] |= {name: version(name) for name in PACKAGES}
    show(results)
    write(arguments.output, results)


def play(role: str, protocol: str, *words: str) -> None:
    """What a child process does."""
    floors: dict[str, Callable[[], Any]] = {"binary": serve_raw, "json": serve_json}
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        match role, words:
            case "floor", ():
                runner.run(floors.get(protocol, serve_grpc)())
            case "jaxserve", ():
                runner.run(serve_jaxserve(protocol))
            case "load", (port, in_flight, seconds):
                runner.run(load(protocol, int(port), int(in_flight), float(seconds)))
            case _:
                raise ValueError(f"no role {role} {words}")


def main() -> None:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--only", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), help="which protocols")
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        play(*arguments.role)
    else:
        run(arguments)


if __name__ == "__main__":
    main()
