"""The native server with tokens, with TLS and with as many connections as it may have."""

import asyncio
import functools
import hashlib
import ssl
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxserve.errors import ConfigError, Unauthenticated
from jaxserve.protocols import messages, native
from jaxserve.protocols.tls import client_context
from jaxserve.server import NativeServer
from jaxserve.server.access import OPERATOR, Access, Identity
from jaxserve.server.tls import Tls, TlsFiles
from tests.certificates import issue, write_authority
from tests.server.fakes import FakeEngine
from tests.server.live import Peer, X, connect, greeted, on_every_loop, serves, until
from tests.server.test_native_server import GOOD, QUICK, failure_of

SEARCH, ADS = "search-0123456789", "ads-0123456789ab"


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def tokens() -> Access:
    return Access(
        [
            Identity(name="search", infer=("now", "he*"), digest=digest(SEARCH)),
            Identity(name="ads", infer=("soon",), observe=False, digest=digest(ADS)),
        ]
    )


# Tokens


@on_every_loop
async def test_a_token_opens_the_models_that_it_names_and_is_the_tenant():
    engine = FakeEngine()
    async with NativeServer(engine, access=tokens(), **QUICK) as server, await connect(server) as peer:
        await peer.greet(token=SEARCH)
        await peer.infer(1)
        assert (await peer.hear()).id == 1
        await peer.tell(messages.Infer(2, "held", None, {"x": X}, tenant="somebody else"))
        await engine.until(lambda: len(engine.held) == 1)
        assert [held.tenant for held in engine.held.values()] == ["search"]
        for id, model in ((3, "soon"), (4, "no such model")):
            await peer.infer(id, model)
            denied = failure_of(await peer.hear(), "permission_denied", id=id)
            assert denied.message.startswith(f"the token 'search' may not use model '{model}'; ")
        assert (engine.submitted, server.in_flight) == (2, 1)
        engine.release_all()
        assert (await peer.hear()).id == 2


@on_every_loop
async def test_who_may_not_observe_sees_the_models_that_it_may_use():
    async with NativeServer(FakeEngine(), access=tokens(), **QUICK) as server:
        for token, status, models in ((SEARCH, None, ["now", "soon", "held"]), (ADS, "permission_denied", ["soon"])):
            async with await connect(server) as peer:
                await peer.greet(token=token)
                await peer.tell(messages.StatusQuery(1))
                assert getattr(await peer.hear(), "code", None) == status
                await peer.tell(messages.DescribeQuery(2))
                assert [model["name"] for model in (await peer.hear()).value] == models


@pytest.mark.parametrize("token", ["", "wrong-0123456789", SEARCH + "x", "ü" * 20])
def test_no_token_or_an_unknown_one_ends_the_connection(token):
    @on_every_loop
    async def test() -> None:
        engine = FakeEngine()
        async with NativeServer(engine, access=tokens(), **QUICK) as server, await connect(server) as peer:
            hello = messages.Hello([1], 2**26, "test", token)
            await peer.send(native.PREAMBLE + b"".join(native.encode(hello)) + GOOD)
            failure = failure_of(await peer.hear(), "unauthenticated")
            assert token not in failure.message or not token
            assert await peer.hear() is None
            assert engine.submitted == 0
            assert isinstance(native.connection_error(failure), Unauthenticated)

    test("fastest")


@on_every_loop
async def test_an_open_server_looks_at_no_token():
    async with NativeServer(FakeEngine(), **QUICK) as server, await connect(server) as peer:
        await peer.greet(token="whatever it is")
        await peer.infer(1)
        assert (await peer.hear()).id == 1


@on_every_loop
async def test_an_open_server_may_be_open_to_less_than_everything():
    access = Access(everybody=Identity(infer=("now",), observe=False))
    async with NativeServer(FakeEngine(), access=access, **QUICK) as server, greeted(server) as peer:
        await peer.infer(1, "soon")
        assert "whoever shows no token" in failure_of(await peer.hear(), "permission_denied", id=1).message
        await peer.tell(messages.StatusQuery(2))
        failure_of(await peer.hear(), "permission_denied", id=2)
    async with NativeServer(FakeEngine(), access=Access(everybody=OPERATOR), **QUICK) as server:
        await serves(server)


def test_tokens_that_are_read_again_hold_for_those_who_are_there(tmp_path):
    path = tmp_path / "tokens.toml"

    def write(*entries: str) -> None:
        path.touch(mode=0o600)
        path.write_text("\n".join(f"[[tokens]]\n{entry}" for entry in entries))

    one = f'name = "one"\ntoken = "{SEARCH}"\ninfer = ["now"]'
    two = f'name = "two"\ntoken = "{ADS}"\ninfer = ["now"]'

    @on_every_loop
    async def test() -> None:
        write(one, two)
        engine = FakeEngine()
        access = Access.from_file(path)
        async with (
            NativeServer(engine, access=access, **QUICK) as server,
            await connect(server) as first,
            await connect(server) as second,
            await connect(server) as third,
        ):
            await first.greet(token=SEARCH)
            await second.greet(token=ADS)
            write(one.replace("now", "held"))
            access.reload()
            failure_of(await second.hear(), "unauthenticated")
            assert await second.hear() is None
            await first.infer(1, "held")
            await engine.until(lambda: len(engine.held) == 1)
            await first.infer(2, "now")
            failure_of(await first.hear(), "permission_denied", id=2)
            await third.greet(token=SEARCH)  # it had not said hello when they were read
            path.write_text("nonsense")
            with pytest.raises(ConfigError, match=r"tokens\.toml, line 1"):
                access.reload()
            engine.release_all()
            assert (await first.hear()).id == 1
        write(one, two)
        access.reload()  # after the server's end

    test("asyncio")
    test("fastest")


# Too many


@on_every_loop
async def test_one_connection_too_many_is_told_so():
    async with NativeServer(FakeEngine(), max_connections=2, **QUICK) as server:
        async with greeted(server) as peer, greeted(server):
            async with await connect(server) as third:
                failure = failure_of(await third.hear(), "too_many_connections")
                assert failure.message == "the server has 2 connections, as many as it may; try again later"
                assert await third.hear() is None
            await peer.infer(1)
            assert (await peer.hear()).id == 1
        await until(lambda: server.connections == 0)
        await serves(server)
        assert server.refused_connections == 1


@on_every_loop
async def test_very_many_too_many_are_cut_off():
    async with NativeServer(FakeEngine(), max_connections=1, linger_s=0.5) as server, greeted(server) as peer:
        others = [await connect(server) for _ in range(100)]
        heard = [await _last_words(other) for other in others]
        told = [each for each in heard if isinstance(each, messages.Failure)]
        assert 1 <= len(told) <= 100
        assert {each.code for each in told} == {"too_many_connections"}
        for other in others:
            await other.close()
        await until(lambda: server.connections == 1)
        await peer.infer(1)
        assert (await peer.hear()).id == 1


async def _last_words(peer: Peer) -> Any:
    try:
        return await peer.hear()
    except OSError:  # a reset, or TLS's own way of saying so
        return None


def test_one_client_may_not_have_all_connections(tmp_path):
    path = tmp_path / "socket"

    @on_every_loop
    async def test() -> None:
        async with NativeServer(FakeEngine(), path=path, max_connections_per_client=1, **QUICK) as server:
            for _ in range(2):  # the second time the first has gone
                async with greeted(server):
                    async with await connect(server) as second:
                        failure = failure_of(await second.hear(), "too_many_connections")
                        assert failure.message.startswith("127.0.0.1 has 1 connections to the server")
                    for _ in range(3):  # on a Unix socket all are the same host
                        peer = Peer(*await asyncio.open_unix_connection(str(path)))
                        await peer.greet()
                        await peer.close()
                await until(lambda: server.connections == 0)

    test("asyncio")
    test("fastest")


# TLS


@functools.cache
def contexts() -> dict[str, ssl.SSLContext]:
    """A server's that speaks TLS and one's that wants to see certificates; a client's without one and with one."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ca = write_authority(directory)
        certificate, key = issue(directory, "server")
        own, own_key = issue(directory, "client", "client.test")
        return {
            "server": Tls(TlsFiles(certificate=certificate, key=key)).context(),
            "mutual": Tls(TlsFiles(certificate=certificate, key=key, client_ca=ca)).context(),
            "client": client_context(ca=ca),
            "known client": client_context(ca=ca, certificate=own, key=own_key),
        }


async def connect_tls(server: NativeServer, client: str = "client") -> Peer:
    return Peer(*await asyncio.open_connection("127.0.0.1", server.port, ssl=contexts()[client]))


@on_every_loop
async def test_tls_carries_requests_of_every_size():
    large = np.arange(2**20, dtype=np.float32)
    async with (
        NativeServer(FakeEngine(), tls=contexts()["server"], **QUICK) as server,
        await connect_tls(server) as peer,
    ):
        await peer.greet()
        for id in range(1, 101):
            await peer.infer(id, "soon")
        assert {(await peer.hear()).id for _ in range(100)} == set(range(1, 101))
        await peer.infer(101, "soon", x=large)
        np.testing.assert_array_equal((await peer.hear()).outputs["x"], large)
    assert server.connections == 0


@on_every_loop
async def test_over_tls_a_connection_that_fails_is_told_why_and_ends():
    engine = FakeEngine()
    async with NativeServer(engine, tls=contexts()["server"], access=tokens(), **QUICK) as server:
        for token, sent, code in ((SEARCH, bytes(8), "protocol_error"), ("", b"", "unauthenticated")):
            async with await connect_tls(server) as peer:
                await peer.send(native.PREAMBLE)
                await peer.tell(messages.Hello([1], 2**26, "test", token))
                if sent:
                    assert isinstance(await peer.hear(), messages.Welcome)
                    await peer.send(sent)
                failure_of(await peer.hear(), code)
                assert await peer.hear() is None
            await until(lambda: server.connections == 0)


@on_every_loop
async def test_over_tls_a_peer_that_does_not_take_its_answers_is_not_read_any_more():
    payload = np.arange(2**14, dtype=np.float32)
    async with (
        NativeServer(FakeEngine(), tls=contexts()["server"], write_high_water_bytes=2**16, **QUICK) as server,
        await connect_tls(server) as peer,
    ):
        await peer.greet()
        peer.writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]

        async def send() -> None:
            for id in range(1, 401):
                await peer.infer(id, "now", x=payload)

        sending = asyncio.create_task(send())
        [connection] = server._connections
        await until(lambda: connection._is_reading_paused)
        peer.writer.transport.resume_reading()  # pyright: ignore[reportAttributeAccessIssue]
        for id in range(1, 401):
            assert (await peer.hear()).id == id
        await sending


@on_every_loop
async def test_over_tls_draining_finishes_what_is_in_flight():
    engine = FakeEngine()
    async with (
        NativeServer(engine, tls=contexts()["server"], **QUICK) as server,
        await connect_tls(server) as peer,
    ):
        await peer.greet()
        await peer.infer(1, "held")
        await engine.until(lambda: len(engine.held) == 1)
        draining = asyncio.create_task(server.drain(10.0))
        assert isinstance(await peer.hear(), messages.Goodbye)
        engine.release_all()
        assert (await peer.hear()).id == 1
        assert await peer.hear() is None
        await draining


@on_every_loop
async def test_over_tls_a_disconnect_cancels_what_is_in_flight():
    engine = FakeEngine()
    async with NativeServer(engine, tls=contexts()["server"], **QUICK) as server:
        for leave in ("close", "reset"):
            peer = await connect_tls(server)
            await peer.greet()
            await peer.infer(1, "held")
            await engine.until(lambda: len(engine.held) == 1)
            if leave == "reset":
                peer.reset()
            else:
                peer.writer.close()
            await engine.until(lambda: not engine.held)
            await until(lambda: server.connections == 0)
            await peer.close()


@on_every_loop
async def test_who_does_not_speak_tls_is_not_served():
    engine = FakeEngine()
    async with NativeServer(engine, tls=contexts()["server"], **QUICK) as server:
        async with await connect(server) as peer:
            await peer.send(native.PREAMBLE + b"".join(native.encode(messages.Hello([1], 2**26, "test"))) + GOOD)
            assert not isinstance(await _last_words(peer), messages.Welcome)
        assert engine.submitted == 0
        async with await connect_tls(server) as peer:
            await peer.greet()


@on_every_loop
async def test_who_does_not_begin_a_tls_handshake_is_sent_away():
    async with NativeServer(FakeEngine(), tls=contexts()["server"], handshake_timeout_s=0.05, **QUICK) as server:
        async with await connect(server) as peer:
            assert await _last_words(peer) is None
        async with await connect_tls(server) as peer:  # and who does not say hello, after it
            assert "no hello within" in failure_of(await peer.hear(), "protocol_error").message


@on_every_loop
async def test_handshakes_count_as_connections_and_do_not_outlive_the_server():
    async with NativeServer(FakeEngine(), tls=contexts()["server"], max_connections=2, **QUICK) as server:
        silent = [await connect(server) for _ in range(2)]
        await until(lambda: server.connections == 2)
        async with await connect(server) as third:
            assert await _last_words(third) is None
        await silent.pop().close()
        await until(lambda: server.connections == 1)
        async with await connect_tls(server) as peer:
            await peer.greet()
            assert server.connections == 2
    assert server.connections == 0
    assert await _last_words(silent[0]) is None
    await silent[0].close()


@on_every_loop
async def test_what_comes_with_the_end_of_the_handshake_is_not_lost():
    """The client's hello is in the same packet as the last of its handshake, and perhaps it leaves at once."""
    hello = native.PREAMBLE + b"".join(native.encode(messages.Hello([1], 2**26, "test")))
    engine = FakeEngine()
    async with NativeServer(engine, tls=contexts()["server"], **QUICK) as server:
        for leaves in (False, True):
            async with await connect(server) as plain:
                into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = contexts()["client"].wrap_bio(into, out, server_hostname="localhost")
                with pytest.raises(ssl.SSLWantReadError):
                    tls.do_handshake()
                await plain.send(out.read())
                while True:
                    into.write(await plain.reader.read(65536))
                    try:
                        tls.do_handshake()
                    except ssl.SSLWantReadError:
                        continue
                    break
                tls.write(hello)
                if leaves:
                    plain.writer.write(out.read())
                    plain.reset()
                else:
                    await plain.send(out.read())
                    decoder, heard = native.Decoder(end="client"), []
                    while not heard:
                        into.write(await plain.reader.read(65536))
                        try:
                            heard = decoder.feed(tls.read(65536))
                        except ssl.SSLWantReadError:
                            continue
                    assert isinstance(heard[0], messages.Welcome)
            await until(lambda: server.connections == 0)


@on_every_loop
async def test_mutual_tls_wants_a_certificate_of_the_right_authority():
    async with NativeServer(FakeEngine(), tls=contexts()["mutual"], **QUICK) as server:
        async with await connect_tls(server, "known client") as peer:
            await peer.greet()
            await peer.infer(1)
            assert (await peer.hear()).id == 1
        async with await connect_tls(server) as peer:  # its side of the handshake is done before the server's
            assert await _last_words(peer) is None
