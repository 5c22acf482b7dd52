"""The asynchronous client against live servers, good and bad."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import ml_dtypes
import numpy as np
import pytest

from jaxserve.client import AsyncClient
from jaxserve.errors import (
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    EngineStopped,
    FrameTooLarge,
    InvalidInput,
    JaxserveError,
    ModelFailed,
    ModelNotFound,
    ProtocolError,
    QueueFull,
    ServerError,
    VersionMismatch,
)
from jaxserve.protocols import messages, native
from jaxserve.server import NativeServer
from tests.server.fakes import FakeEngine
from tests.server.live import X, on_every_loop, until

QUICK = {"linger_s": 0.05}


@contextlib.asynccontextmanager
async def serving(engine: FakeEngine, **options: int) -> AsyncIterator[tuple[NativeServer, AsyncClient]]:
    async with NativeServer(engine, **QUICK, **options) as server, AsyncClient(server.addresses[0]) as client:
        yield server, client


@contextlib.asynccontextmanager
async def pretender(
    behave: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server that does what a test says; yields its address."""

    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            await behave(reader, writer)
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await asyncio.gather(*filter(None, serving))


async def _say(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def _hear_a_request(reader: asyncio.StreamReader) -> None:
    decoder = native.Decoder(end="server")
    while data := await reader.read(65536):
        if any(isinstance(message, messages.Infer) for message in decoder.feed(data)):
            return
    raise ConnectionError("the client left")


def frame(message: messages.Message) -> bytes:
    return b"".join(native.encode(message))


WELCOME = native.PREAMBLE + frame(messages.Welcome(1, 2**26, 8, "pretender"))


@on_every_loop
async def test_tensors_and_texts_there_and_back():
    async with serving(FakeEngine()) as (_, client):
        inputs = {
            "x": X,
            "text": ["a sentence", "ein Satz", ""],
            "half": np.array([1.5, -2.0], ml_dtypes.bfloat16),
            "flags": np.array([[True], [False]]),
            "scalar": np.int64(7),
            "empty": np.zeros((0, 3), np.uint16),
            "large": np.arange(2**18, dtype=np.float64),
        }
        for model in ("now", "soon"):
            outputs = await client.infer(model, inputs, deadline_s=np.float32(5.0))
            assert list(outputs) == list(inputs)
            for name, value in inputs.items():
                np.testing.assert_array_equal(outputs[name], value)
                if name != "text":
                    assert outputs[name].dtype == np.asarray(value).dtype


@on_every_loop
async def test_lists_take_the_declared_dtype():
    async with serving(FakeEngine()) as (_, client):
        outputs = await client.infer("now", {"x": [[1, 2]], "ids": [3], "half": [0.5], "count": [200], "text": []})
        assert {name: getattr(value, "dtype", None) for name, value in outputs.items()} == {
            "x": np.float32,
            "ids": np.int8,
            "half": ml_dtypes.bfloat16,
            "count": np.uint8,
            "text": None,
        }
        with pytest.raises(InvalidInput, match="'ids' holds numbers that are out of range for int8"):
            await client.infer("now", {"ids": [300]})
        with pytest.raises(ModelNotFound, match="nobody"):
            await client.infer("nobody", {"x": [1.0]})


@on_every_loop
async def test_status_and_models():
    async with serving(FakeEngine()) as (_, client):
        assert await client.status() == {"in_flight": 0, "submitted": 0}
        assert [model["name"] for model in await client.models()] == ["now", "soon", "held"]


@on_every_loop
async def test_many_calls_at_once_each_get_their_own_answer():
    async with (
        NativeServer(FakeEngine(), max_in_flight=16, **QUICK) as server,
        AsyncClient(server.addresses[0], connections=3) as client,
    ):
        assert server.connections == 3

        async def call(number: int) -> None:
            outputs = await client.infer("soon" if number % 3 else "now", {"x": np.array([number])})
            assert outputs["x"] == [number]

        async with asyncio.TaskGroup() as tasks:
            for number in range(500):
                tasks.create_task(call(number))
        assert server.in_flight == 0


@on_every_loop
async def test_calls_wait_for_room_and_a_cancelled_one_gives_its_turn_away():
    engine = FakeEngine()
    async with serving(engine, max_in_flight=1) as (_, client):
        calls = [asyncio.create_task(client.infer("held", {"x": X})) for _ in range(4)]
        await engine.until(lambda: len(engine.held) == 1)
        calls[1].cancel()
        for expected in (2, 3):
            engine.release_all()
            await engine.until(lambda expected=expected: engine.submitted == expected)
        engine.release_all()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(outcomes[1], asyncio.CancelledError)
        assert sum(isinstance(outcome, dict) for outcome in outcomes) == 3
        blocking = asyncio.create_task(client.infer("held", {"x": X}))
        await engine.until(lambda: len(engine.held) == 1)
        with pytest.raises(DeadlineExceeded, match="before the request could be sent"):
            await client.infer("now", {"x": X}, deadline_s=0.02)
        engine.release_all()
        await blocking


@on_every_loop
async def test_errors_have_their_types():
    async with serving(FakeEngine()) as (_, client):
        with pytest.raises(ModelNotFound, match="no model 'nobody' is served"):
            await client.infer("nobody", {"x": X})
        with pytest.raises(ModelFailed) as failed:
            await client.infer("failing", {"x": X})
        assert failed.value.details == {"model": "failing"}
        with pytest.raises(ServerError, match="complex64"):
            await client.infer("unsendable", {"x": X})
        assert (await client.infer("now", {"x": X}))["x"].shape == (1, 2)


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        ({"x": X}, {"deadline_s": 0}, "deadline_s is 0"),
        ({"x": X}, {"deadline_s": -1.0}, "deadline_s is -1.0"),
        ({"x": X}, {"deadline_s": float("nan")}, "deadline_s is nan"),
        ({"x": X}, {"deadline_s": 10**400}, "must be a finite number of seconds"),
        ({"x": X}, {"deadline_s": True}, "deadline_s is True"),
        ({"x": X}, {"priority": 11}, "priority is 11, but must be a whole number from -10 to 10"),
        ({"x": X}, {"priority": None}, "priority is None"),
        ({"x": X}, {"priority": 0.0}, "priority is 0.0"),
        ({"x": X}, {"tenant": "x" * 129}, "tenant is 'xxx.*, but must be text of at most 128 characters"),
        ({"x": X}, {"tenant": None}, "tenant is None"),
        ({"x": X}, {"tenant": "\ud800"}, "surrogates"),
        ({"x": np.zeros(1, complex)}, {}, "complex128 does not travel"),
        ({"x": "text"}, {}, "give a list of str"),
        ([X], {}, "inputs is a list"),
        ({1: X}, {}, "inputs is a dict; it must map the names of the inputs, each a str"),
        ({"x": ["\ud800"]}, {}, "surrogates"),
    ],
)
def test_bad_calls_are_refused_before_they_are_sent(inputs, options, says):
    @on_every_loop
    async def test() -> None:
        engine = FakeEngine()
        async with serving(engine) as (_, client):
            with pytest.raises(InvalidInput, match=says):
                await client.infer("now", inputs, **options)
            assert engine.submitted == 0
            await client.infer("now", {"x": X})

    test("fastest")


@on_every_loop
async def test_a_request_over_the_servers_limit_is_not_sent():
    engine = FakeEngine()
    async with serving(engine, max_frame_bytes=4096) as (_, client):
        with pytest.raises(FrameTooLarge, match="over the receiver's limit of 4096"):
            await client.infer("now", {"x": np.zeros(5000, np.uint8)})
        assert engine.submitted == 0
        await client.infer("now", {"x": X})


# Deadlines and cancellation


@on_every_loop
async def test_the_deadline_holds_at_the_client_too():
    engine = FakeEngine()
    async with (
        NativeServer(engine, **QUICK) as server,
        AsyncClient(server.addresses[0], silence_margin_s=0.01) as client,
    ):
        with pytest.raises(DeadlineExceeded, match=r"silent until past the deadline of 0\.0(2|1\d+) s"):
            await client.infer("held", {"x": X}, deadline_s=0.02)
        await engine.until(lambda: engine.cancelled == [1])
        await client.infer("now", {"x": X}, deadline_s=5.0)
        await until(lambda: server.in_flight == 0)


@on_every_loop
async def test_the_server_is_told_how_much_time_is_left():
    engine = FakeEngine()
    async with serving(engine) as (_, client):
        call = asyncio.create_task(client.infer("held", {"x": X}, deadline_s=5.0))
        await engine.until(lambda: len(engine.held) == 1)
        [held] = engine.held.values()
        assert held.deadline_s is not None
        assert 4.0 < held.deadline_s < 5.0
        engine.release_all()
        await call


@on_every_loop
async def test_priority_and_tenant_reach_the_engine():
    engine = FakeEngine()
    shares = [(0, ""), (-10, ""), (0, "team"), (10, "ü" * 128)]
    async with serving(engine) as (_, client):
        calls = [asyncio.create_task(client.infer("held", {"x": X}))]
        for priority, tenant in shares[1:]:
            call = client.infer("held", {"x": X}, deadline_s=5.0, priority=priority, tenant=tenant)
            calls.append(asyncio.create_task(call))
        await engine.until(lambda: len(engine.held) == 4)
        assert [(held.priority, held.tenant) for held in engine.held.values()] == shares
        engine.release_all()
        await asyncio.gather(*calls)


@on_every_loop
async def test_a_priority_may_be_a_number_of_numpy():
    engine = FakeEngine()
    async with NativeServer(engine, **QUICK) as server, AsyncClient(server.addresses[0]) as client:
        call = asyncio.ensure_future(client.infer("held", {"x": X}, priority=np.int64(3)))
        await engine.until(lambda: engine.held)
        assert [held.priority for held in engine.held.values()] == [3]
        call.cancel()
        await until(lambda: server.in_flight == 0)


@on_every_loop
async def test_a_full_queue_says_whose_it_is():
    engine = FakeEngine()
    async with serving(engine) as (_, client):
        call = asyncio.create_task(client.infer("held", {"x": X}, tenant="team"))
        await engine.until(lambda: len(engine.held) == 1)
        engine.release(1, QueueFull("the tenant has its share", retry_after_s=0.5, tenant="team"))
        with pytest.raises(QueueFull, match="has its share") as full:
            await call
        assert full.value.details == {"retry_after_s": 0.5, "tenant": "team"}


@on_every_loop
async def test_cancelling_the_task_reaches_the_engine():
    engine = FakeEngine()
    async with serving(engine) as (server, client):
        calls = [asyncio.create_task(client.infer("held", {"x": X})) for _ in range(10)]
        await engine.until(lambda: len(engine.held) == 10)
        for call in calls[::2]:
            call.cancel()
        await engine.until(lambda: len(engine.held) == 5)
        engine.release_all()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [True, False] * 5
        await client.infer("now", {"x": X})
        assert server.in_flight == 0


# Lost connections


@on_every_loop
async def test_a_call_that_was_sent_is_not_repeated_when_the_connection_ends():
    engine = FakeEngine()
    async with serving(engine) as (server, client):
        call = asyncio.create_task(client.infer("held", {"x": X}))
        await engine.until(lambda: len(engine.held) == 1)
        for connection in tuple(server._connections):
            connection.abort()
        with pytest.raises(ConnectionLost, match="ended before the answer came"):
            await call
        await client.infer("now", {"x": X})  # on a new connection
        assert engine.submitted == 2


@on_every_loop
async def test_a_call_that_was_never_sent_is_repeated():
    engine = FakeEngine()
    async with serving(engine) as (_, client):
        call = asyncio.create_task(client.infer("now", {"x": X}))
        await asyncio.sleep(0)  # encoded, and waiting for the loop's next turn
        [connection] = client._connections
        assert connection.in_flight == 1
        connection._transport.abort()
        assert (await call)["x"].shape == (1, 2)
        assert engine.submitted == 1


@on_every_loop
async def test_a_server_that_drains_sends_its_clients_to_the_next_one():
    first, second = FakeEngine(), FakeEngine()
    async with serving(first) as (server, client):
        finishing = asyncio.create_task(client.infer("held", {"x": X}))
        await first.until(lambda: len(first.held) == 1)
        draining = asyncio.create_task(server.drain(10.0))
        await until(lambda: not client._connections)
        waiting = [asyncio.create_task(client.infer("now", {"x": X})) for _ in range(3)]
        async with NativeServer(second, port=server.port, **QUICK):
            await asyncio.gather(*waiting)
            assert (first.submitted, second.submitted) == (1, 3)
            first.release_all()
            assert (await finishing)["x"].shape == (1, 2)
            await draining
            await client.infer("now", {"x": X})
            await client.__aexit__(None, None, None)


@on_every_loop
async def test_a_refused_call_is_repeated():
    connections = 0

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.write(WELCOME)
        await _hear_a_request(reader)
        if connections == 1:
            refusal = messages.Failure(1, "engine_stopped", "draining", {"refused": 1})
            await _say(writer, frame(messages.Goodbye(0.0, "draining")) + frame(refusal))
        else:
            await _say(writer, frame(messages.Result(1, {"x": X})))

    async with pretender(behave) as address, AsyncClient(address) as client:
        assert (await client.infer("now", {"x": X}, deadline_s=5.0))["x"].shape == (1, 2)
    assert connections == 2


@on_every_loop
async def test_what_the_server_gave_up_is_not_repeated():
    engine = FakeEngine()
    async with serving(engine) as (server, client):
        call = asyncio.create_task(client.infer("held", {"x": X}))
        await engine.until(lambda: len(engine.held) == 1)
        await server.drain(0.0)
        with pytest.raises(EngineStopped, match="stopped before the request was answered"):
            await call
        assert engine.submitted == 1


@on_every_loop
async def test_calls_say_how_long_they_waited_for_a_connection():
    engine = FakeEngine()
    async with NativeServer(engine, **QUICK) as server:
        address = server.addresses[0]
        async with AsyncClient(address, reconnect_timeout_s=0.05) as client:
            await server.drain(0.0)
            with pytest.raises(ConnectionLost, match=r"no connection to 127.* for 0\.05 s: cannot connect to 127"):
                await client.infer("now", {"x": X})
            with pytest.raises(DeadlineExceeded, match="before the request could be sent"):
                await client.infer("now", {"x": X}, deadline_s=0.01)
            with pytest.raises(DeadlineExceeded, match="before the request could be sent"):
                await client.infer("now", {"x": [[1.0, 2.0]]}, deadline_s=0.01)
            with pytest.raises(ConnectionLost, match="no connection to"):
                await client.status()
            async with NativeServer(engine, port=server.port, **QUICK):
                await client.infer("now", {"x": X}, deadline_s=5.0)
                await client.__aexit__(None, None, None)


# Opening and closing


@on_every_loop
async def test_nobody_at_the_address():
    async with NativeServer(FakeEngine(), **QUICK) as server:
        address = server.addresses[0]
    with pytest.raises(ConnectionLost, match=f"cannot connect to {address}: .*; is the server running"):
        async with AsyncClient(address):
            pass
    with pytest.raises(ConnectionLost, match="cannot connect to unix:/no/such/socket"):
        async with AsyncClient("unix:/no/such/socket"):
            pass


MISMATCH = native.PREAMBLE + frame(native.connection_failure(VersionMismatch("versions [2]")))


@pytest.mark.parametrize(
    ("says", "kind", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", ProtocolError, "does not speak jaxserve's native protocol"),
        (MISMATCH, VersionMismatch, r"versions \[2\]"),
        (native.PREAMBLE + frame(messages.Welcome(9, 2**26, 8, "")), ProtocolError, "chose version 9"),
        (b"", ConnectionLost, r"no welcome from 127.* within 0\.05 s"),
    ],
)
def test_servers_that_are_none(says, kind, message):
    @on_every_loop
    async def test() -> None:
        async with pretender(lambda _, writer: _say(writer, says)) as address:
            with pytest.raises(kind, match=message):
                async with AsyncClient(address, connect_timeout_s=0.05):
                    pass

    test("fastest")


@pytest.mark.parametrize(
    ("says", "kind", "message"),
    [
        (struct.pack("<II", 2**31 - 4, 0), FrameTooLarge, "at most 67108864 are accepted"),
        (frame(messages.Result(77, {})), ProtocolError, "answered request 77, which is not in flight"),
        (frame(native.connection_failure(ProtocolError("you broke it"))), ProtocolError, "you broke it"),
        (frame(messages.Failure(1, "new_code", "what", {})), ServerError, "what"),
    ],
)
def test_servers_that_break_the_protocol(says, kind, message):
    @on_every_loop
    async def test() -> None:
        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _say(writer, WELCOME)
            await _hear_a_request(reader)
            await _say(writer, says)

        async with pretender(behave) as address, AsyncClient(address) as client:
            with pytest.raises(kind, match=message) as raised:
                await client.infer("now", {"x": X}, deadline_s=5.0)
            assert isinstance(raised.value, JaxserveError)

    test("fastest")


@on_every_loop
async def test_closing_ends_the_calls_under_way():
    engine = FakeEngine()
    async with NativeServer(engine, max_in_flight=1, **QUICK) as server:
        async with AsyncClient(server.addresses[0]) as client:
            calls = [asyncio.create_task(client.infer("held", {"x": X})) for _ in range(2)]
            await engine.until(lambda: len(engine.held) == 1)
        sent, waiting = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(sent, ConnectionLost)
        assert isinstance(waiting, ConnectionLost)
        await engine.until(lambda: not engine.held)
        with pytest.raises(ConnectionLost, match="use it inside `async with`"):
            await client.infer("now", {"x": X})


@on_every_loop
async def test_a_client_that_was_not_entered():
    client = AsyncClient("127.0.0.1:8500")
    with pytest.raises(ConnectionLost, match="use it inside `async with`"):
        await client.infer("now", {"x": X})
    with pytest.raises(ConnectionLost, match="use it inside `async with`"):
        await client.status()


def test_arguments_that_make_no_sense():
    with pytest.raises(ConfigError, match="connections=0"):
        AsyncClient("127.0.0.1:8500", connections=0)
    with pytest.raises(ConfigError, match="max_frame_bytes=1; it must be from 4096"):
        AsyncClient("127.0.0.1:8500", max_frame_bytes=1)
    with pytest.raises(ConfigError, match="is not the address"):
        AsyncClient("nowhere")


def test_unix_sockets(tmp_path):
    @on_every_loop
    async def test() -> None:
        path = tmp_path / "jaxserve.sock"
        async with NativeServer(FakeEngine(), port=None, path=path, **QUICK), AsyncClient(f"unix:{path}") as client:
            assert (await client.infer("soon", {"x": X}, deadline_s=5.0))["x"].shape == (1, 2)

    test("asyncio")
    test("fastest")
