"""The live server against raw sockets: whatever a peer does, the next good request is served and nothing is left."""

import asyncio
import random
import socket
import struct

import numpy as np
import pytest

from jaxserve.errors import ConfigError, ModelFailed
from jaxserve.protocols import messages, native
from jaxserve.server import NativeServer, check_unix_path
from tests.server.fakes import FakeEngine
from tests.server.live import Peer, X, connect, greeted, on_every_loop, serves, until

QUICK = {"linger_s": 0.05}


def failure_of(received: object, code: str, *, id: int = 0) -> messages.Failure:
    assert isinstance(received, messages.Failure)
    assert (received.id, received.code) == (id, code)
    return received


@on_every_loop
async def test_answers_come_out_of_order():
    engine = FakeEngine()
    async with NativeServer(engine, **QUICK) as server, greeted(server) as peer:
        await peer.infer(1, "held")
        await peer.infer(2, "soon")
        await peer.infer(3, "now", text=["a", "ü"])
        answers = [await peer.hear(), await peer.hear()]
        assert {answer.id for answer in answers} == {2, 3}
        await engine.until(lambda: len(engine.held) == 1)
        assert server.in_flight == 1
        engine.release_all()
        assert (await peer.hear()).id == 1
        assert server.in_flight == 0


@on_every_loop
async def test_the_deadline_reaches_the_engine_as_seconds_left():
    engine = FakeEngine()
    async with NativeServer(engine, **QUICK) as server, greeted(server) as peer:
        await peer.infer(1, "held", 0.25)
        await peer.infer(2, "held", None)
        await engine.until(lambda: len(engine.held) == 2)
        assert [held.deadline_s for held in engine.held.values()] == [0.25, None]
        engine.release_all()
        assert {(await peer.hear()).id, (await peer.hear()).id} == {1, 2}


@on_every_loop
async def test_priority_and_tenant_reach_the_engine():
    engine = FakeEngine()
    shares = [(0, ""), (-10, ""), (0, "team"), (10, "team")]
    async with NativeServer(engine, **QUICK) as server, greeted(server) as peer:
        for id, share in enumerate(shares, start=1):
            await peer.tell(messages.Infer(id, "held", None, {"x": X}, *share))
        await engine.until(lambda: len(engine.held) == 4)
        assert [(held.priority, held.tenant) for held in engine.held.values()] == shares
        engine.release_all()
        assert {(await peer.hear()).id for _ in range(4)} == {1, 2, 3, 4}


@on_every_loop
async def test_status_and_describe():
    async with NativeServer(FakeEngine(), **QUICK) as server, greeted(server) as peer:
        await peer.tell(messages.StatusQuery(4))
        assert await peer.hear() == messages.Report(4, {"in_flight": 0, "submitted": 0})
        await peer.tell(messages.DescribeQuery(5))
        report = await peer.hear()
        assert report.id == 5
        assert [model["name"] for model in report.value] == ["now", "soon", "held"]


@on_every_loop
async def test_cancel_reaches_the_engine_and_is_answered():
    engine = FakeEngine()
    async with NativeServer(engine, **QUICK) as server, greeted(server) as peer:
        await peer.infer(1, "held")
        await peer.tell(messages.Cancel(1))
        failure_of(await peer.hear(), "cancelled", id=1)
        await peer.tell(messages.Cancel(1))  # too late: ignored
        await peer.tell(messages.Cancel(99))  # never sent: ignored
        await peer.infer(1)  # the id is free again
        assert isinstance(await peer.hear(), messages.Result)
        assert engine.cancelled == [1]
        await serves(server)


@on_every_loop
async def test_errors_of_requests_leave_the_connection_open():
    async with NativeServer(FakeEngine(), **QUICK) as server, greeted(server) as peer:
        await peer.infer(1, "failing")
        assert failure_of(await peer.hear(), "model_failed", id=1).details == {"model": "failing"}
        await peer.infer(2, "nobody")
        failure_of(await peer.hear(), "model_not_found", id=2)
        await peer.infer(3, "now", -1.0)
        failure_of(await peer.hear(), "invalid_input", id=3)
        await peer.infer(4, "unsendable")
        assert "complex64" in failure_of(await peer.hear(), "server_error", id=4).message
        await peer.infer(5)
        assert (await peer.hear()).id == 5
        await peer.tell(messages.Infer(6, "now", None, {"x": X}, priority=11))
        assert "priority is 11, but must be" in failure_of(await peer.hear(), "invalid_input", id=6).message
        await peer.tell(messages.Infer(7, "now", None, {"x": X}, tenant="x" * 129))
        assert "tenant is 'xxx" in failure_of(await peer.hear(), "invalid_input", id=7).message
        await serves(server)


def test_a_bug_in_the_engine_costs_one_request(caplog):
    async def main() -> None:
        async with NativeServer(FakeEngine(), **QUICK) as server, greeted(server) as peer:
            await peer.infer(1, "broken")
            failure_of(await peer.hear(), "server_error", id=1)
            await peer.infer(2)
            assert (await peer.hear()).id == 2
            await serves(server)

    asyncio.run(main())
    assert "a bug in the engine" in caplog.text


@on_every_loop
async def test_an_answer_over_the_clients_limit_is_an_error_of_the_request():
    async with NativeServer(FakeEngine(), **QUICK) as server, await connect(server) as peer:
        await peer.greet(max_frame_bytes=4096)
        await peer.infer(1, "now", x=np.zeros(8192, np.uint8))
        assert "over the receiver's limit" in failure_of(await peer.hear(), "server_error", id=1).message
        await peer.infer(2)
        assert (await peer.hear()).id == 2


@on_every_loop
async def test_more_in_flight_than_allowed_is_refused_not_queued():
    engine = FakeEngine()
    async with NativeServer(engine, max_in_flight=2, **QUICK) as server, await connect(server) as peer:
        assert (await peer.greet()).max_in_flight == 2
        for id in (1, 2, 3):
            await peer.infer(id, "held")
        failure_of(await peer.hear(), "too_many_in_flight", id=3)
        engine.release_all()
        assert {(await peer.hear()).id, (await peer.hear()).id} == {1, 2}
        await serves(server)


@on_every_loop
async def test_a_flood_of_queries_reads_the_engine_once_and_is_refused():
    engine = FakeEngine()
    calls: list[str] = []
    engine.status = lambda: calls.append("status") or {"calls": len(calls)}
    async with NativeServer(engine, **QUICK) as server, greeted(server) as peer, greeted(server) as other:
        one = b"".join(native.encode(messages.StatusQuery(7)))
        await peer.send(one * 1000)
        await other.send(one * 2)
        answers = [await peer.hear() for _ in range(1000)]
        assert all(answer.id == 7 for answer in answers)
        reports = [answer for answer in answers if isinstance(answer, messages.Report)]
        assert 16 <= len(reports) < 1000
        assert {answer.code for answer in answers if isinstance(answer, messages.Failure)} == {"too_many_in_flight"}
        assert len(calls) <= len(reports) // 16 + 1  # a large chunk may arrive in more than one turn
        assert [(await other.hear()).id, (await other.hear()).id] == [7, 7]
        before = len(calls)
        await peer.send(one)  # a new turn: neither refused nor answered with what was read before
        assert await peer.hear() == messages.Report(7, {"calls": before + 1})


@on_every_loop
async def test_failures_keep_within_the_clients_limit():
    engine = FakeEngine()
    async with NativeServer(engine, **QUICK) as server, await connect(server) as peer:
        await peer.greet(max_frame_bytes=4096)
        peer._decoder._limit = 4096
        long = "\N{OLD PERSIAN SIGN A}" * 3000
        await peer.infer(1, long)
        assert "no model" in failure_of(await peer.hear(), "model_not_found", id=1).message
        await peer.infer(2, "now", **{long: X, "other": [""] * 3})
        failure_of(await peer.hear(), "server_error", id=2)
        await peer.infer(3, "held", **{long: X})
        await engine.until(lambda: len(engine.held) == 1)
        engine.release(min(engine.held), ModelFailed(long, model=long))
        failure_of(await peer.hear(), "model_failed", id=3)
        await peer.send(struct.pack("<II", 2**31 - 4, 0))
        failure_of(await peer.hear(), "frame_too_large")


# The handshake


@on_every_loop
async def test_the_highest_common_version_is_chosen():
    async with NativeServer(FakeEngine(), **QUICK) as server, await connect(server) as peer:
        assert (await peer.greet(versions=[0, 1, 2, 7])).version == 1


@on_every_loop
async def test_no_common_version_is_said_and_ends_the_connection():
    async with NativeServer(FakeEngine(), **QUICK) as server, await connect(server) as peer:
        await peer.send(native.PREAMBLE)
        await peer.tell(messages.Hello([2, 3], 2**26, "from the future"))
        failure = failure_of(await peer.hear(), "version_mismatch")
        assert "'from the future' speaks versions [2, 3]" in failure.message
        assert await peer.hear() is None
        await serves(server)


@on_every_loop
async def test_who_does_not_say_hello_in_time_is_sent_away():
    async with NativeServer(FakeEngine(), handshake_timeout_s=0.02, **QUICK) as server, await connect(server) as peer:
        await peer.send(native.PREAMBLE[:5])
        assert "no hello within 0.02 s" in failure_of(await peer.hear(), "protocol_error").message
        assert await peer.hear() is None
        await until(lambda: server.connections == 0)
        await serves(server)


# Bad bytes

GOOD = b"".join(native.encode(messages.Infer(1, "now", None, {"x": X})))


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (struct.pack("<II", 2**31 - 4, 0), "frame_too_large"),
        (b"\xff" * 64, "frame_too_large"),
        (struct.pack("<II", 12, 3) + b"\xc1\xc1\xc1" + bytes(5), "protocol_error"),
        (struct.pack("<II", 12, 800) + bytes(8), "protocol_error"),
        (bytes(8), "protocol_error"),
        (GOOD[:8] + bytes([0x95, 0x63]) + GOOD[10:], "protocol_error"),
        (GOOD.replace(b"\x95\x03\x01", b"\x95\x03\x00"), "protocol_error"),
        (GOOD[1:], "frame_too_large"),
    ],
)
def test_malformed_frames_end_the_connection_and_nothing_else(sent, code):
    @on_every_loop
    async def test() -> None:
        engine = FakeEngine()
        async with NativeServer(engine, **QUICK) as server, greeted(server) as peer:
            await peer.infer(1, "held")
            await engine.until(lambda: len(engine.held) == 1)
            await peer.send(sent)
            failure_of(await peer.hear(), code)
            assert await peer.hear() is None
            assert engine.cancelled == [1]
            await serves(server)

    test("fastest")


@on_every_loop
async def test_an_http_client_is_told_what_this_is():
    async with NativeServer(FakeEngine(), **QUICK) as server, await connect(server) as peer:
        await peer.send(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert "does not speak jaxserve's native protocol" in failure_of(await peer.hear(), "protocol_error").message
        assert await peer.hear() is None
        await serves(server)


@on_every_loop
async def test_an_id_that_is_in_flight_ends_the_connection():
    engine = FakeEngine()
    async with NativeServer(engine, **QUICK) as server:
        for deadline_s in (None, -1.0):  # the second one is a bad request as well
            async with greeted(server) as peer:
                await peer.infer(7, "held")
                await peer.infer(7, "held", deadline_s)
                assert "id 7 is in flight already" in failure_of(await peer.hear(), "protocol_error").message
                assert await peer.hear() is None
            assert not engine.held
            await serves(server)


@on_every_loop
async def test_garbage_of_every_kind():
    source = random.Random(0)
    async with NativeServer(FakeEngine(), **QUICK) as server:
        for round in range(60):
            async with await connect(server) as peer:
                if round % 3:
                    await peer.greet()
                damaged = bytearray(GOOD * 3) if round % 3 == 2 else bytearray(source.randbytes(400))
                for _ in range(5):
                    damaged[source.randrange(len(damaged))] = source.randrange(256)
                peer.writer.write(bytes(damaged))
                peer.writer.write_eof()
                while await peer.hear() is not None:
                    pass
        await until(lambda: server.connections == 0)
        await serves(server)


@on_every_loop
async def test_truncated_anywhere():
    engine = FakeEngine()
    stream = native.PREAMBLE + b"".join(native.encode(messages.Hello([1], 2**26, "test"))) + GOOD
    async with NativeServer(engine, **QUICK) as server:
        for cut in range(0, len(stream), 7):
            async with await connect(server) as peer:
                await peer.send(stream[:cut])
        await until(lambda: server.connections == 0)
        assert engine.submitted == 0
        await serves(server)


@on_every_loop
async def test_a_frame_that_arrives_byte_by_byte():
    async with NativeServer(FakeEngine(), **QUICK) as server, greeted(server) as peer, greeted(server) as other:
        for position in range(len(GOOD) - 1):
            await peer.send(GOOD[position : position + 1])
            if position % 20 == 0:  # a slow peer does not hold up the others
                await other.infer(position + 1)
                assert (await other.hear()).id == position + 1
        await peer.send(GOOD[-1:])
        assert (await peer.hear()).id == 1


@on_every_loop
async def test_a_large_frame_is_served():
    large = np.arange(2**20, dtype=np.float32)
    async with NativeServer(FakeEngine(), **QUICK) as server, greeted(server) as peer:
        for id in (1, 2):
            await peer.infer(id, "soon", x=large)
            np.testing.assert_array_equal((await peer.hear()).outputs["x"], large)


# Peers that go away


@on_every_loop
async def test_a_disconnect_cancels_what_is_in_flight():
    engine = FakeEngine()
    async with NativeServer(engine, **QUICK) as server:
        for leave in ("close", "reset", "half-close"):
            peer = await connect(server)
            await peer.greet()
            for id in range(1, 101):
                await peer.infer(id, "held")
            await engine.until(lambda: len(engine.held) == 100)
            assert server.in_flight == 100
            if leave == "reset":
                peer.reset()
            elif leave == "half-close":
                peer.writer.write_eof()
            else:
                await peer.close()
            await engine.until(lambda: not engine.held)
            await until(lambda: server.connections == 0)
            assert server.in_flight == 0
            await peer.close()
            await serves(server)
        assert len(engine.cancelled) == 300


# Back-pressure


def is_reading(server: NativeServer) -> bool:
    """Whether the server reads from the first of its connections."""
    [connection, *_] = server._connections
    return not connection._is_reading_paused


@on_every_loop
async def test_a_peer_that_does_not_take_its_answers_is_not_read_any_more():
    engine = FakeEngine()
    payload = np.arange(2**14, dtype=np.float32)
    requests = 400
    async with NativeServer(engine, write_high_water_bytes=2**16, **QUICK) as server, greeted(server) as peer:
        peer.writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]

        async def send() -> None:
            for id in range(1, requests + 1):
                await peer.infer(id, "now", x=payload)

        sending = asyncio.create_task(send())
        await until(lambda: not is_reading(server))
        assert not sending.done()
        submitted = engine.submitted
        await serves(server)  # the others do not wait for it
        assert engine.submitted == submitted + 1 < requests
        peer.writer.transport.resume_reading()  # pyright: ignore[reportAttributeAccessIssue]
        for id in range(1, requests + 1):
            result = await peer.hear()
            assert result.id == id
            np.testing.assert_array_equal(result.outputs["x"], payload)
        await sending
        assert is_reading(server)


@on_every_loop
async def test_large_requests_in_flight_stop_the_reading():
    engine = FakeEngine()
    large = np.zeros(2**18, np.uint8)
    async with NativeServer(engine, max_in_flight_bytes=2**19, **QUICK) as server, greeted(server) as peer:
        for id in range(1, 9):
            await peer.infer(id, "held", x=large)
        for done in range(1, 9):
            await until(lambda: not is_reading(server) or engine.submitted == 8)
            assert len(engine.held) <= 3
            engine.release(min(engine.held), {"x": X})
            assert (await peer.hear()).id == done
        assert is_reading(server)
        await serves(server)


# The end


@on_every_loop
async def test_draining_finishes_what_is_in_flight_and_refuses_the_rest():
    engine = FakeEngine()
    async with NativeServer(engine, **QUICK) as server, greeted(server) as peer, greeted(server) as idle:
        await peer.infer(1, "held")
        await engine.until(lambda: len(engine.held) == 1)
        draining = asyncio.create_task(server.drain(10.0))
        assert await peer.hear() == messages.Goodbye(10.0, "the server is draining")
        assert await idle.hear() == messages.Goodbye(10.0, "the server is draining")
        await peer.infer(2)
        assert failure_of(await peer.hear(), "engine_stopped", id=2).details == {"refused": 1}
        with pytest.raises(ConnectionRefusedError):
            await connect(server)
        assert not draining.done()
        engine.release_all()
        assert (await peer.hear()).id == 1
        assert await peer.hear() is None
        await draining
        assert server.connections == 0


@on_every_loop
async def test_what_is_in_flight_after_the_grace_is_told_that_the_engine_stopped():
    engine = FakeEngine()
    async with NativeServer(engine, **QUICK) as server, greeted(server) as peer:
        await peer.infer(1, "held")
        await engine.until(lambda: len(engine.held) == 1)
        await server.drain(0.01)
        assert isinstance(await peer.hear(), messages.Goodbye)
        assert failure_of(await peer.hear(), "engine_stopped", id=1).details == {}
        assert await peer.hear() is None
        assert engine.cancelled == [1]


@on_every_loop
async def test_leaving_the_context_ends_at_once():
    engine = FakeEngine()
    async with NativeServer(engine, **QUICK) as server:
        silent = await connect(server)
        peer = await connect(server)
        await peer.greet()
        await peer.infer(1, "held")
        await engine.until(lambda: len(engine.held) == 1)
    assert isinstance(await peer.hear(), messages.Goodbye)
    failure_of(await peer.hear(), "engine_stopped", id=1)
    assert await peer.hear() is None
    assert await silent.hear() is None
    assert not engine.held
    await peer.close()
    await silent.close()


@on_every_loop
async def test_a_second_drain_may_be_less_patient():
    engine = FakeEngine()
    async with NativeServer(engine, **QUICK) as server, greeted(server) as peer:
        await peer.infer(1, "held")
        await engine.until(lambda: len(engine.held) == 1)
        patient = asyncio.create_task(server.drain(1000.0))
        assert isinstance(await peer.hear(), messages.Goodbye)
        await server.drain(0.0)
        failure_of(await peer.hear(), "engine_stopped", id=1)
        await patient


# Where it listens


def test_unix_sockets(tmp_path):
    path = tmp_path / "jaxserve.sock"

    @on_every_loop
    async def test() -> None:
        async with NativeServer(FakeEngine(), path=path, **QUICK) as server:
            assert server.addresses == (f"127.0.0.1:{server.port}", f"unix:{path}")
            reader, writer = await asyncio.open_unix_connection(str(path))
            async with Peer(reader, writer) as peer:
                await peer.greet()
                await peer.infer(1, "soon")
                assert (await peer.hear()).id == 1
            await serves(server)
        assert not path.exists()

    test("asyncio")
    test("fastest")


def test_a_stale_socket_is_replaced_and_a_file_is_not(tmp_path):
    path = tmp_path / "jaxserve.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))

    async def serve() -> None:
        async with NativeServer(FakeEngine(), port=None, path=path, **QUICK) as server:
            assert server.port is None
            assert server.addresses == (f"unix:{path}",)

    async def serve_on_both() -> None:
        async with NativeServer(FakeEngine(), path=path, **QUICK):
            pass

    asyncio.run(serve())
    path.write_text("mine")
    for main in (serve, serve_on_both):
        with pytest.raises(ConfigError, match="exists and is not a socket; choose another path"):
            asyncio.run(main())
        assert path.read_text() == "mine"


def test_a_socket_that_another_server_listens_on_is_left_to_it(tmp_path):
    path = tmp_path / "jaxserve.sock"

    @on_every_loop
    async def test() -> None:
        async with NativeServer(FakeEngine(), path=path, **QUICK):
            with pytest.raises(ConfigError, match="is in use by another server; choose another path"):
                async with NativeServer(FakeEngine(), path=path, **QUICK):
                    pass
            async with Peer(*await asyncio.open_unix_connection(str(path))) as peer:
                await peer.greet()
        assert not path.exists()

    test("asyncio")
    test("fastest")


def test_at_the_end_only_the_servers_own_socket_is_removed(tmp_path):
    path = tmp_path / "jaxserve.sock"

    @on_every_loop
    async def test() -> None:
        async with NativeServer(FakeEngine(), path=path, **QUICK) as first:
            path.unlink()
            async with NativeServer(FakeEngine(), path=path, **QUICK):
                await first.drain(0.0)
                assert path.is_socket()
                async with Peer(*await asyncio.open_unix_connection(str(path))) as peer:
                    await peer.greet()
            assert not path.exists()
            path.write_text("mine")
        assert path.read_text() == "mine"
        path.unlink()

    test("asyncio")
    test("fastest")


def test_a_unix_path_can_be_looked_at_before_anything_is_started(tmp_path):
    check_unix_path(tmp_path / "free")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, says in {
        "file": "it exists and is not a socket",
        "link": "it exists and is not a socket",
        "absent/socket": "there is no directory .*absent; make it, or choose another path",
        "file/socket": "there is no directory .*file",
    }.items():
        with pytest.raises(ConfigError, match=rf"cannot listen on .*{name}: {says}"):
            check_unix_path(tmp_path / name)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "socket"))
        check_unix_path(tmp_path / "socket")  # nobody listens
        other.listen(0)
        for _ in range(3):  # and also when nobody accepts
            with pytest.raises(ConfigError, match="socket: it is in use by another server"):
                check_unix_path(tmp_path / "socket")


def test_a_unix_path_that_is_too_long_is_a_config_error(tmp_path):
    @on_every_loop
    async def test() -> None:
        with pytest.raises(ConfigError, match="path too long; choose another path"):
            async with NativeServer(FakeEngine(), path=tmp_path / ("x" * 120), **QUICK):
                pass

    test("asyncio")
    test("fastest")


@on_every_loop
async def test_a_port_that_is_taken_is_a_config_error():
    async with NativeServer(FakeEngine(), **QUICK) as server:
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{server.port}: .*choose another port"):
            async with NativeServer(FakeEngine(), port=server.port):
                pass
        await serves(server)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"port": None}, "somewhere to listen"),
        ({"max_frame_bytes": 100}, "max_frame_bytes=100; it must be from 4096"),
        ({"max_in_flight": 0}, "max_in_flight=0"),
    ],
)
def test_settings_that_make_no_sense(options, says):
    async def make() -> None:
        NativeServer(FakeEngine(), **options)

    with pytest.raises(ConfigError, match=says):
        asyncio.run(make())


def test_a_port_out_of_range_is_a_config_error():
    async def serve() -> None:
        async with NativeServer(FakeEngine(), port=70000):
            pass

    with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1:70000"):
        asyncio.run(serve())
