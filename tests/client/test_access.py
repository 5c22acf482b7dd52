"""Clients that show a token, and clients that speak TLS."""

import asyncio
import hashlib
import ssl
from pathlib import Path

import numpy as np
import pytest

from jaxserve.client import AsyncClient, Client
from jaxserve.client.address import parse_address
from jaxserve.client.tls import checked_context
from jaxserve.errors import ConfigError, ConnectionLost, PermissionDenied, Unauthenticated
from jaxserve.protocols.tls import client_context
from jaxserve.server import NativeServer
from jaxserve.server.access import Access, Identity
from jaxserve.server.tls import Tls, TlsFiles
from tests.certificates import issue, write_authority
from tests.client.test_sync_client import served
from tests.server.fakes import FakeEngine
from tests.server.live import X, on_every_loop, until

QUICK = {"linger_s": 0.05}
TOKEN, OTHER = "search-0123456789", "ads-0123456789ab"


def access_of(token: str) -> Access:
    """A server of one token, for the model `now`."""
    return Access([Identity(name="search", infer=("now",), digest=hashlib.sha256(token.encode()).digest())])


# Tokens


@on_every_loop
async def test_a_token_opens_what_it_is_for():
    async with (
        NativeServer(FakeEngine(), access=access_of(TOKEN), **QUICK) as server,
        AsyncClient(server.addresses[0], token=TOKEN, connections=2) as client,
    ):
        np.testing.assert_array_equal((await client.infer("now", {"x": [[1.0, 2.0]]}))["x"], X)
        with pytest.raises(PermissionDenied, match="the token 'search' may not use model 'soon'"):
            await client.infer("soon", {"x": X})
        assert (await client.status())["submitted"] == 1


@on_every_loop
async def test_without_the_right_token_nobody_comes_in():
    async with NativeServer(FakeEngine(), access=access_of(TOKEN), **QUICK) as server:
        with pytest.raises(Unauthenticated, match="wants a token"):
            async with AsyncClient(server.addresses[0]):
                pass
        with pytest.raises(Unauthenticated, match="does not know the token"):
            async with AsyncClient(server.addresses[0], token=OTHER):
                pass
        await until(lambda: server.connections == 0)


def test_a_token_that_is_taken_away_and_given_back(tmp_path):
    path = tmp_path / "tokens.toml"
    path.touch(mode=0o600)

    def know(token: str) -> None:
        path.write_text(f'[[tokens]]\nname = "search"\ntoken = "{token}"\ninfer = ["*"]')

    @on_every_loop
    async def test() -> None:
        know(TOKEN)
        engine, access = FakeEngine(), Access.from_file(path)
        async with (
            NativeServer(engine, access=access, **QUICK) as server,
            AsyncClient(server.addresses[0], token=TOKEN) as client,
        ):
            call = asyncio.create_task(client.infer("held", {"x": X}))
            await engine.until(lambda: bool(engine.held))
            know(OTHER)
            access.reload()
            with pytest.raises(Unauthenticated, match="any more"):
                await call
            assert not engine.held
            with pytest.raises(Unauthenticated, match="does not know the token"):
                await client.infer("now", {"x": X})
            know(TOKEN)
            access.reload()
            await until(lambda: server.connections == 1 and bool(client._connections))
            await client.infer("now", {"x": X})

    test("asyncio")
    test("fastest")


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("two words", "characters that no header may carry"),
        ("line\n", "characters that no header may carry"),
        ("x" * 1025, "has 1025 characters, but must have from 1 to 1024"),
        ("", "characters that no header may carry"),
        (b"bytes", "is a bytes, but must be a text"),
    ],
)
def test_what_is_no_token(token, says):
    with pytest.raises(ConfigError, match=says) as raised:
        AsyncClient("127.0.0.1:8500", token=token)
    assert not token or str(token) not in str(raised.value)


@on_every_loop
async def test_the_longest_token_fits_into_a_hello():
    longest = "x" * 1024
    async with (
        NativeServer(FakeEngine(), access=access_of(longest), **QUICK) as server,
        AsyncClient(server.addresses[0], token=longest) as client,
    ):
        await client.infer("now", {"x": X})


@on_every_loop
async def test_one_connection_too_many_is_tried_again_later():
    async with NativeServer(FakeEngine(), max_connections=1, **QUICK) as server:
        async with AsyncClient(server.addresses[0]):
            with pytest.raises(ConnectionLost, match="has 1 connections, as many as it may"):
                async with AsyncClient(server.addresses[0]):
                    pass
        await until(lambda: server.connections == 0)
        async with AsyncClient(server.addresses[0]) as client:
            await client.infer("now", {"x": X})


# TLS


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    write_authority(directory)
    issue(directory, "server")
    issue(directory, "elsewhere", "elsewhere.test")
    issue(directory, "client", "client.test")
    return directory


def server_tls(files: Path, name: str = "server", *, mutual: bool = False) -> ssl.SSLContext:
    ca = files / "authority.pem" if mutual else None
    return Tls(TlsFiles(certificate=files / f"{name}.pem", key=files / f"{name}.key", client_ca=ca)).context()


def test_tls_and_tokens_together(files):
    @on_every_loop
    async def test() -> None:
        trusting = client_context(ca=files / "authority.pem")
        async with (
            NativeServer(FakeEngine(), tls=server_tls(files), access=access_of(TOKEN), **QUICK) as server,
            AsyncClient(f"localhost:{server.port}", tls=trusting, token=TOKEN) as client,
        ):
            large = np.arange(2**18, dtype=np.float64)
            outputs = await asyncio.gather(*(client.infer("now", {"x": large}, deadline_s=10.0) for _ in range(8)))
            for each in outputs:
                np.testing.assert_array_equal(each["x"], large)

    test("asyncio")
    test("fastest")


def test_mutual_tls(files):
    @on_every_loop
    async def test() -> None:
        ca = files / "authority.pem"
        known = client_context(ca=ca, certificate=files / "client.pem", key=files / "client.key")
        async with NativeServer(FakeEngine(), tls=server_tls(files, mutual=True), **QUICK) as server:
            async with AsyncClient(server.addresses[0], tls=known) as client:
                await client.infer("now", {"x": X})
            with pytest.raises(ConnectionLost):
                async with AsyncClient(server.addresses[0], tls=client_context(ca=ca)):
                    pass

    test("asyncio")
    test("fastest")


def test_servers_that_are_not_to_be_trusted(files):
    @on_every_loop
    async def test() -> None:
        trusting = client_context(ca=files / "authority.pem")
        async with NativeServer(FakeEngine(), tls=server_tls(files, "elsewhere"), **QUICK) as server:
            for tls, says in ((trusting, "IP address mismatch"), (True, "unable to get|self.signed")):
                with pytest.raises(ConnectionLost, match=f"a certificate that is not to be trusted .*{says}"):
                    async with AsyncClient(server.addresses[0], tls=tls):
                        pass

    test("asyncio")
    test("fastest")


def test_one_end_speaks_tls_and_the_other_does_not(files):
    @on_every_loop
    async def test() -> None:
        async with NativeServer(FakeEngine(), tls=server_tls(files), **QUICK) as server:
            with pytest.raises(ConnectionLost, match=r"before it greeted.*; does that port speak TLS"):
                async with AsyncClient(server.addresses[0]):
                    pass
        async with NativeServer(FakeEngine(), **QUICK) as server:
            with pytest.raises(ConnectionLost, match=r"cannot speak TLS with .*\(WRONG_VERSION_NUMBER\)"):
                async with AsyncClient(server.addresses[0], tls=client_context(ca=files / "authority.pem")):
                    pass

    test("asyncio")
    test("fastest")


def test_the_synchronous_client_takes_both():
    with served(access=access_of(TOKEN)) as (address, _), Client(address, token=TOKEN) as client:
        np.testing.assert_array_equal(client.infer("now", {"x": X})["x"], X)
        with pytest.raises(PermissionDenied):
            client.infer("soon", {"x": X})


def test_what_tls_may_be():
    address = parse_address("localhost:8500")
    assert checked_context(False, address) is None
    assert isinstance(checked_context(True, address), ssl.SSLContext)
    with pytest.raises(ConfigError, match="unix:/x is a Unix socket, where there is no TLS"):
        AsyncClient("unix:/x", tls=True)
    with pytest.raises(ConfigError, match=r"tls is a str, but must be an ssl\.SSLContext, True or False"):
        AsyncClient("localhost:8500", tls="yes")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="give both or neither"):
        client_context(key=Path("x"))
