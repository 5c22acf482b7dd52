"""The HTTP server as a client sees it: paths, bodies, events, administration, slow clients, its end."""

import asyncio
import gzip
import hashlib
import io
import json
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import numpy as np
import pytest
import trustme

from jaxserve.engine import Engine
from jaxserve.errors import InvalidInput
from jaxserve.model import Model, TensorSpec
from jaxserve.protocols.loop import loop_factory
from jaxserve.server.access import Access, Identity
from jaxserve.server.feed import Feed
from jaxserve.server.health import Health
from jaxserve.server.http import HttpServer
from jaxserve.server.http.body import Budget, Refused, decompress
from jaxserve.server.http.routes import Routes
from jaxserve.server.limits import Limits
from jaxserve.server.service import Service
from tests.server.live import until

ADD_ONE = Model.from_function(
    "add one",
    lambda x: x + 1,
    inputs={"x": TensorSpec(("batch", 3), "float32")},
    on_host=True,
    deadline_s=5.0,
    batch_sizes=(1, 200_000),
)
INFER = "/v2/models/add%20one/infer"
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}


@asynccontextmanager
async def serving(
    *models: Model, limits: Limits | None = None, access: Access | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[HttpServer]:
    models = models or (ADD_ONE,)
    async with Engine(models) as engine, Health(engine) as health:
        service = Service(engine, health=health, access=access or Access(), known=models, limits=limits or Limits())

        async def metrics(accepted: str) -> tuple[bytes, str]:
            return b"# nothing\n", "text/plain"

        site = SimpleNamespace(feed=Feed(engine, health), metrics=metrics, openapi=lambda models: {"models": models})
        async with HttpServer(service, site, tls=tls) as server:
            yield server
        assert server.in_flight == 0
        assert server.connections == 0


def live(test: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(test())  # type: ignore[arg-type]


async def call(server: HttpServer, method: str, path: str, **options: Any) -> tuple[int, Any, Mapping[str, str]]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"http://127.0.0.1:{server.port}{path}", **options) as response,
    ):
        body = await response.read()
        value = json.loads(body) if response.content_type == "application/json" and body else body
        return response.status, value, response.headers.copy()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2", 200),
        ("HEAD", "/v2", 200),
        ("GET", "/v2?x=1", 200),
        ("POST", "/v2", 405),
        ("GET", "/livez", 200),
        ("GET", "/readyz", 200),
        ("GET", "/v2/models/add%20one", 200),
        ("GET", "/v2/models/add%20one/versions/1/config", 200),
        ("GET", "/v2/models/add%20one/versions/2/config", 404),
        ("GET", "/v2/models/add%20one/ready", 200),
        ("GET", "/v2/models/nobody/ready", 404),
        ("GET", "/v2/models//ready", 404),
        ("GET", "/v2/models/stats", 200),
        ("GET", "/v2/models/%ff", 404),
        ("GET", "/v2/trace/setting", 200),
        ("POST", "/v2/trace/setting", 501),
        ("GET", "/v2/systemsharedmemory/status", 200),
        ("POST", "/v2/cudasharedmemory/region/x/register", 501),
        ("POST", "/v2/repository/index", 200),
        ("POST", "/v2/repository/models/add%20one/load", 503),
        ("GET", "/v1/models/add%20one", 200),
        ("GET", "/v1/models/add%20one/metadata", 200),
        ("GET", "/v1/models/add%20one:predict", 405),
        ("GET", "/", 200),
        ("GET", "/metrics", 200),
        ("GET", "/nothing", 404),
        ("GET", "/v2/", 404),
    ],
)
def test_paths(method: str, path: str, status: int):
    async def test() -> None:
        async with serving() as server:
            got, value, headers = await call(server, method, path)
            assert got == status
            if status >= 400:
                assert set(value) == {"error", "code"}
                assert headers["X-Request-Id"]
            if status == 405:
                assert "GET" in headers["Allow"] or "POST" in headers["Allow"]

    live(test)


def test_a_request_id_comes_back_if_it_is_one():
    async def test() -> None:
        async with serving() as server:
            for given, expected in (("mine-1", True), ("a b", False), ("x" * 129, False)):
                _, _, headers = await call(server, "POST", INFER, json=BODY, headers={"X-Request-Id": given})
                assert (headers["X-Request-Id"] == given) is expected

    live(test)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Deadline-S": "2.5"}, 200),
        ({"X-Envoy-Expected-Rq-Timeout-Ms": "15000"}, 200),
        ({"X-Deadline-S": "1e-9"}, 429),
        ({"X-Deadline-S": "5", "X-Envoy-Expected-Rq-Timeout-Ms": "0.000001"}, 429),
        ([("X-Deadline-S", "5"), ("X-Deadline-S", "1e-9")], 429),
        ({"X-Deadline-S": "0"}, 400),
        ({"X-Deadline-S": "nan"}, 400),
        ({"X-Deadline-S": "soon"}, 400),
        ({"X-Tenant": "x" * 200}, 400),
    ],
)
def test_deadlines_by_headers(headers: dict[str, str], status: int):
    async def test() -> None:
        async with serving() as server:
            got, value, answered = await call(server, "POST", INFER, json=BODY, headers=headers)
            assert got == status, value
            if status == 429:
                assert int(answered["Retry-After"]) >= 1

    live(test)


@pytest.mark.parametrize(
    ("accepted", "expected"), [("gzip", "gzip"), ("deflate", "deflate"), ("gzip, deflate", None), ("br", None)]
)
@pytest.mark.parametrize("sent", [None, "gzip", "deflate", "raw deflate"])
def test_compression(accepted: str, expected: str | None, sent: str | None):
    body = json.dumps(BODY).encode()
    raw = zlib.compressobj(wbits=-15)
    packed = {
        None: body,
        "gzip": gzip.compress(body),
        "deflate": zlib.compress(body),
        "raw deflate": raw.compress(body) + raw.flush(),
    }[sent]

    async def test() -> None:
        async with serving() as server:
            headers = {"Accept-Encoding": accepted, "Content-Type": "application/json"}
            if sent is not None:
                headers["Content-Encoding"] = sent.split()[-1]
            status, value, answered = await call(server, "POST", INFER, data=packed, headers=headers)
            assert status == 200
            assert value["outputs"][0]["data"] == [2.0, 3.0, 4.0]
            assert answered.get("Content-Encoding") == expected

    live(test)


def test_what_is_decompressed_is_bounded_and_counted():
    async def test() -> None:
        limits = Limits(max_body_bytes=2**20)
        budget = Budget(1_200_000)
        bomb = gzip.compress(bytes(2**24))
        with budget.share() as share, pytest.raises(Refused, match="more than 1048576 bytes when decompressed"):
            await decompress(bomb, "gzip", limits, share)
        assert budget.used_bytes == 0
        with budget.share() as share:
            assert len(await decompress(gzip.compress(bytes(700_000)), "gzip", limits, share)) == 700_000
            assert budget.used_bytes > 700_000
            with budget.share() as other, pytest.raises(Refused, match="are being read or answered"):
                await decompress(gzip.compress(bytes(700_000)), "gzip", limits, other)
        assert budget.used_bytes == 0
        with budget.share() as share, pytest.raises(InvalidInput, match="3 bytes follow the gzip data"):
            await decompress(gzip.compress(b"x") + b"end", "gzip", limits, share)

    live(test)


def test_events_come_until_the_server_ends():
    async def test() -> None:
        async with aiohttp.ClientSession() as session:
            async with serving() as server:
                response = await session.get(f"http://127.0.0.1:{server.port}/events")
                assert response.content_type == "text/event-stream"
                assert await response.content.readline() == b"event: snapshot\n"
                snapshot = json.loads((await response.content.readline()).removeprefix(b"data: "))
                assert snapshot["models"][0]["name"] == "add one"
                assert snapshot["server"]["ready"]
                assert snapshot["plan"] is None
                await server.drain(5.0)
                await response.read()  # it ends
            assert response.content.at_eof()

    live(test)


def test_who_is_turned_away_is_counted_and_gets_its_id():
    async def test() -> None:
        async with serving() as server:
            short = {"id": "mine", "inputs": [{**BODY["inputs"][0], "data": [1]}]}
            status, _, headers = await call(server, "POST", INFER, json=short)
            assert (status, headers["X-Request-Id"]) == (400, "mine")
            for path in ("/v2/models/add%20one/versions/7/infer", "/v2/models/nobody/infer"):
                assert (await call(server, "POST", path, json=BODY))[0] == 404
            assert (await call(server, "GET", "/nowhere"))[0] == 404
            counted = {"invalid_input": 1, "model_not_found": 2, "no_such_path": 1}
            assert server._service.turned_away == {("http", code): count for code, count in counted.items()}

    live(test)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [("gzip", "gzip"), ("GZIP;q=1.0", "gzip"), ("gzip;q=0", ""), ("gzip; q=0.000, deflate;q=0.5", "deflate")],
)
def test_encodings_are_accepted_with_weights(accepted: str, encoding: str):
    async def test() -> None:
        async with serving() as server:
            # aiohttp's client shows what it has decompressed
            body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2000, 3], "data": [1.0] * 6000}]}
            _, _, headers = await call(server, "POST", INFER, json=body, headers={"Accept-Encoding": accepted})
            assert headers.get("Content-Encoding", "") == encoding

    live(test)


def test_nothing_follows_a_request_that_would_upgrade():
    ask = b"GET /livez HTTP/1.1\r\nHost: x\r\n%b\r\n"

    async def test() -> None:
        async with serving() as server:
            for protocol in (b"h2c", b"websocket", b"other"):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(ask % b"Connection: Upgrade\r\nUpgrade: %b\r\n" % protocol + ask % b"")
                answers = await reader.read()  # to the end
                assert answers.startswith(b"HTTP/1.1 200 OK")
                assert answers.count(b"HTTP/1.1 200 OK") == 1
                assert b"Connection: close" in answers
                writer.close()

    live(test)


def test_events_go_on_until_what_is_in_flight_is_done():
    async def test() -> None:
        waiting = Waiting()
        async with aiohttp.ClientSession() as session, serving(waiting.model) as server:
            response = await session.get(f"http://127.0.0.1:{server.port}/events")
            waiting.held = True
            running = asyncio.create_task(call(server, "POST", "/v2/models/waits/infer", json=X))
            await waiting.begun.wait()
            server._service.health.drain()  # as `Front.drain` does
            draining = asyncio.create_task(server.drain(30.0))
            shown: dict[str, Any] = {"accepting": True}
            while shown["accepting"]:
                line = await response.content.readline()
                assert line, "the events ended"
                if line.startswith(b"data: "):
                    shown = json.loads(line.removeprefix(b"data: "))["server"]
            assert (shown["ready"], shown["in_flight"]) == (False, 1)
            waiting.go_on()
            assert (await running)[0] == 200
            await draining
            await response.read()  # it ends

    live(test)


def test_events_end_for_whose_token_is_taken_away(tmp_path: Path):
    def token(name: str) -> str:
        return f'[[tokens]]\nname = "{name}"\ninfer = ["*"]\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n'

    path = tmp_path / "tokens.toml"
    path.write_text(token("one") + token("two"))
    path.chmod(0o600)
    access = Access.from_file(path)

    async def test() -> None:
        async with aiohttp.ClientSession() as session, serving(access=access) as server:
            url, headers = f"http://127.0.0.1:{server.port}/events", {"Authorization": "Bearer two"}
            response = await session.get(url, headers=headers)
            assert await response.content.readline() == b"event: snapshot\n"
            path.write_text(token("one"))
            access.reload()
            await response.read()  # it ends
            assert (await call(server, "GET", "/events", headers=headers))[0] == 401

    live(test)


def test_the_openapi_document_has_the_models_that_a_token_may_use():
    access = Access([Identity(name="user", digest=hashlib.sha256(b"user").digest(), infer=("add*",))])
    other = Model.from_function("other", lambda x: x, inputs=ADD_ONE.inputs, on_host=True)

    async def test() -> None:
        async with serving(ADD_ONE, other, access=access) as server:
            _, document, _ = await call(server, "GET", "/openapi.json", headers={"Authorization": "Bearer user"})
            assert document == {"models": ["add one"]}

    live(test)


def test_tokens_say_who_may_what():
    def identity(name: str, **rights: Any) -> Identity:
        return Identity(name=name, digest=hashlib.sha256(name.encode()).digest(), **rights)

    access = Access([identity("user", infer=("add*",), observe=False), identity("chief", admin=("*",))])

    async def test() -> None:
        async with serving(access=access) as server:

            async def status(method: str, path: str, token: str | None, **options: Any) -> int:
                headers = {} if token is None else {"Authorization": f"Bearer {token}"}
                return (await call(server, method, path, headers=headers, **options))[0]

            assert await status("GET", "/livez", None) == 200
            assert await status("GET", "/", None) == 200
            for path in ("/v2", "/metrics", "/openapi.json", "/v2/models/add%20one", "/events"):
                assert await status("GET", path, None) == 401
                assert await status("GET", path, "somebody") == 401
            assert await status("GET", "/metrics", "user") == 403
            assert await status("GET", "/metrics", "chief") == 200
            assert await status("POST", INFER, "user", json=BODY) == 200
            assert await status("POST", INFER, "chief", json=BODY) == 403
            assert await status("POST", "/v2/repository/models/add%20one/unload", "user") == 503
            assert await status("POST", "/v2/repository/models/add%20one/unload", "chief") == 200
            assert await status("POST", "/v2/repository/models/add%20one/load", "chief") == 200

    live(test)


def test_the_administration_socket_is_for_its_owner_alone(tmp_path: Path):
    path = tmp_path / "admin.sock"

    async def test() -> None:
        async with Engine([ADD_ONE]) as engine, Health(engine) as health:
            service = Service(engine, health=health, access=Access(), known=[ADD_ONE], limits=Limits())
            site = SimpleNamespace(feed=Feed(engine, health))
            async with HttpServer(service, site, port=None, admin_path=path) as server:
                assert server.port is None
                assert path.stat().st_mode & 0o777 == 0o600
                async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
                    for action in ("unload", "load"):
                        url = f"http://here/v2/repository/models/add%20one/{action}"
                        async with session.post(url) as response:
                            assert response.status == 200, await response.text()
            assert not path.exists()

    live(test)


class Waiting:
    """A model on the host that a test holds up."""

    def __init__(self) -> None:
        self.model = Model.from_function(
            "waits",
            lambda x: 2 * x,
            inputs={"x": TensorSpec(("batch", 1), "float32")},
            preprocess=self._prepare,
            accepts={"x": TensorSpec(("batch", 1), "float32")},
            on_host=True,
        )
        self.begun = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._go_on: asyncio.Future[None] = self._loop.create_future()
        self.held = False

    def _prepare(self, inputs: Any) -> Any:
        if self.held:
            self._loop.call_soon_threadsafe(self.begun.set)
            asyncio.run_coroutine_threadsafe(self._wait(), self._loop).result()
        return inputs

    async def _wait(self) -> None:
        await self._go_on

    def go_on(self) -> None:
        self._go_on.set_result(None)


X = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}


@pytest.mark.parametrize("in_time", [True, False])
def test_draining_finishes_what_is_in_flight_or_says_that_it_cannot(in_time: bool):
    async def test() -> None:
        waiting = Waiting()
        async with serving(waiting.model) as server:
            waiting.held = True
            running = asyncio.create_task(call(server, "POST", "/v2/models/waits/infer", json=X))
            await waiting.begun.wait()
            draining = asyncio.create_task(server.drain(30.0 if in_time else 0.0))
            if in_time:
                await asyncio.sleep(0)
                with pytest.raises(aiohttp.ClientConnectorError):
                    await call(server, "GET", "/livez")
                waiting.go_on()
            status, value, _ = await running
            assert (status, value.get("code")) == ((200, None) if in_time else (503, "engine_stopped"))
            if not in_time:
                waiting.go_on()
            await draining

    live(test)


def test_a_client_that_goes_away_cancels_its_request():
    async def test() -> None:
        waiting = Waiting()
        async with serving(waiting.model) as server:
            waiting.held = True
            running = asyncio.create_task(call(server, "POST", "/v2/models/waits/infer", json=X))
            await waiting.begun.wait()
            running.cancel()
            await until(lambda: server.in_flight == 0)
            assert server.answered[499] == 1
            waiting.go_on()

    live(test)


def test_clients_that_dawdle_are_cut_off():
    limits = Limits(head_timeout_s=0.05, body_timeout_s=0.05, keepalive_timeout_s=60.0)

    async def talk(server: HttpServer, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(data)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    async def test() -> None:
        async with serving(limits=limits) as server:
            assert await talk(server, b"POST /v2/models/x/infer HTTP/1.1\r\nHost:") == b""
            assert await talk(server, b"") == b""
            head = b"POST /v2/models/x/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n1234"
            answer = await talk(server, head)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"4 bytes of the body arrived" in answer

    live(test)


def test_connections_are_bounded():
    async def test() -> None:
        async with serving(limits=Limits(max_connections_per_client=2)) as server:
            open_ones = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
            status, value, headers = await call(server, "GET", "/livez")
            assert (status, value["code"], headers["Retry-After"]) == (503, "too_many_connections", "1")
            assert server.refused_connections == 1
            for _, writer in open_ones:
                writer.close()
                await writer.wait_closed()
            await until(lambda: server.connections == 0)
            assert (await call(server, "GET", "/livez"))[0] == 200

    live(test)


def test_many_paths_are_not_all_remembered():
    routes = Routes()
    for index in range(5000):
        found = routes.find(f"/v2/models/m{index}/infer")
        assert found is not None
        assert found.model == f"m{index}"
    assert len(routes._known) < 4200
    assert routes.find("/v2/models/a%2Fb/infer").model == "a/b"  # type: ignore[union-attr]


def test_an_array_of_a_large_request_is_answered_whole():
    big = np.arange(3 * 200_000, dtype=np.float32).reshape(-1, 3)

    async def test() -> None:
        async with serving() as server:
            head = json.dumps(
                {
                    "inputs": [
                        {
                            "name": "x",
                            "datatype": "FP32",
                            "shape": list(big.shape),
                            "parameters": {"binary_data_size": big.nbytes},
                        }
                    ],
                    "parameters": {"binary_data_output": True},
                }
            ).encode()
            headers = {"Inference-Header-Content-Length": str(len(head)), "Expect": "100-continue"}
            status, body, answered = await call(
                server, "POST", INFER, data=io.BytesIO(head + big.tobytes()), headers=headers
            )
            assert status == 200
            start = int(answered["Inference-Header-Content-Length"])
            np.testing.assert_array_equal(np.frombuffer(body[start:], np.float32), big.ravel() + 1)

    live(test)


def test_tls_handshakes_are_counted_and_bounded(tmp_path: Path):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def test() -> None:
        async with serving(limits=Limits(max_connections=1), tls=context) as server:
            url = f"{server.addresses[0]}/livez"
            async with aiohttp.ClientSession() as session, session.get(url, ssl=trusting) as response:
                assert response.status == 200
            await until(lambda: server.connections == 0)
            _, silent = await asyncio.open_connection("127.0.0.1", server.port)
            await until(lambda: server.connections == 1)
            async with aiohttp.ClientSession() as session:
                with pytest.raises(aiohttp.ClientError):
                    await session.get(url, ssl=trusting)
            silent.close()
            await silent.wait_closed()
            await until(lambda: server.connections == 0)
            reader, silent = await asyncio.open_connection("127.0.0.1", server.port)
            await until(lambda: server.connections == 1)
            await server.drain(5.0)  # does not wait for who says nothing
            assert await reader.read() == b""
            silent.close()

    live(test)


@pytest.mark.parametrize(
    ("version", "connection", "stays"),
    [("1.1", None, True), ("1.1", "close", False), ("1.0", None, False), ("1.0", "keep-alive", True)],
)
def test_connections_stay_open_as_clients_want(version: str, connection: str | None, stays: bool):
    body = json.dumps(BODY)
    lines = [f"POST {INFER} HTTP/{version}", "Host: x", f"Content-Length: {len(body)}"]
    lines += [] if connection is None else [f"Connection: {connection}"]
    request = "\r\n".join([*lines, "", body])

    async def test() -> None:
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            for _ in range(2 if stays else 1):
                writer.write(request.encode())
                answer = await reader.readuntil(b"\r\n\r\n")
                assert b" 200 OK\r\n" in answer
                length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                assert json.loads(await reader.readexactly(length))["outputs"][0]["data"] == [2.0, 3.0, 4.0]
            if not stays:
                assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    live(test)


def test_a_client_that_takes_nothing_of_its_answers_is_cut_off_and_costs_no_more_than_one():
    rows = 100_000
    one = np.zeros((rows, 3), np.float32)
    entry = {"name": "x", "datatype": "FP32", "shape": [rows, 3], "parameters": {"binary_data_size": one.nbytes}}
    text = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: {len(text)}\r\n"
    request = f"{head}Content-Length: {len(text) + one.nbytes}\r\n\r\n".encode() + text + one.tobytes()

    async def test() -> None:
        async with serving(limits=Limits(write_timeout_s=0.05)) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
            for _ in range(20):  # 24 MB of answers, which no socket buffers take
                writer.write(request)
            await until(lambda: server.in_flight == 1)
            connection = next(iter(server._connections.connections))
            await until(lambda: connection.writing_paused)
            connection.look(asyncio.get_running_loop().time() + 1000.0, Limits())  # type: ignore[union-attr]
            await until(lambda: server.connections == 0)
            assert 1 <= sum(server.answered.values()) < 20
            writer.close()

    live(test)


def test_at_the_end_idle_clients_go_at_once_and_half_a_body_is_still_read():
    body = json.dumps(BODY)
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"

    async def test() -> None:
        async with serving() as server:
            idle, idle_writer = await asyncio.open_connection("127.0.0.1", server.port)
            idle_writer.write(f"{head}{body}".encode())
            await idle.readuntil(b"}]}")
            fresh, fresh_writer = await asyncio.open_connection("127.0.0.1", server.port)
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(f"{head}{body[:10]}".encode())
            await until(lambda: server.in_flight == 1 and server.connections == 3)
            draining = asyncio.create_task(server.drain(30.0))
            assert await idle.read() == b""
            assert await fresh.read() == b""
            writer.write(body[10:].encode())
            answer = await reader.read()
            assert b"200 OK" in answer
            assert b"Connection: close" in answer
            await draining
            for each in (idle_writer, fresh_writer, writer):
                each.close()
                await each.wait_closed()

    live(test)


@pytest.mark.parametrize(
    ("request_headers", "body", "logger", "message", "level"),
    [
        ({"Authorization": "Bearer nobody"}, b"{}", "jaxserve.http", "request refused: unauthenticated", "WARNING"),
        ({"Authorization": "Bearer user"}, b"{bad", "jaxserve.http", "request refused: invalid_input", "INFO"),
        (
            {"Authorization": "Bearer user"},
            json.dumps({"inputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1]}]}).encode(),
            "jaxserve.service",
            "request not served: invalid_input",
            "INFO",
        ),
        ({"Authorization": "Bearer other"}, b"{}", "jaxserve.http", "request refused: invalid_input", "INFO"),
    ],
)
def test_whoever_is_refused_is_logged_once(
    caplog: pytest.LogCaptureFixture,
    request_headers: dict[str, str],
    body: bytes,
    logger: str,
    message: str,
    level: str,
):
    caplog.set_level("INFO", "jaxserve")

    def identity(name: str, *infer: str) -> Identity:
        return Identity(name=name, infer=infer, digest=hashlib.sha256(name.encode()).digest())

    async def test() -> None:
        async with serving(access=Access([identity("user", "*"), identity("other", "m")])) as server:
            status, _, headers = await call(server, "POST", INFER, data=body, headers=request_headers)
            assert status >= 400
            [record] = [record for record in caplog.records if "request_id" in record.__dict__]
            assert (record.name, record.message, record.levelname) == (logger, message, level)
            assert record.__dict__["request_id"] == headers["X-Request-Id"]

    live(test)


@pytest.mark.parametrize("line", ["GET /livez", "GET /livez HTTP/2.0"])
def test_other_versions_of_http_get_no_answer_in_them(line: str):
    async def test() -> None:
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(f"{line}\r\n\r\n".encode())
            answer = await reader.read()
            assert answer == b"" or answer.startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 "))
            writer.close()
            await writer.wait_closed()

    live(test)
