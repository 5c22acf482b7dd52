"""Live servers of the standard protocols: several doors to one engine, in a thread with a loop of its own.

The clients of other projects then run as they do elsewhere, in the thread of the test.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import trustme

from jaxserve import Engine
from jaxserve.protocols.loop import loop_factory
from jaxserve.server.access import Access
from jaxserve.server.feed import Feed
from jaxserve.server.grpc_server import GrpcServer
from jaxserve.server.health import Health
from jaxserve.server.http import HttpServer
from jaxserve.server.identity import OPERATOR
from jaxserve.server.limits import Limits
from jaxserve.server.service import Service
from jaxserve.server.tls import Tls, TlsFiles
from tests.protocols_live.models import PATIENCE_S, WIDTH, Gate, make_models

LIMITS = Limits(max_in_flight_per_client=4, max_body_bytes=2**19)
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Where clients come in.

    Attributes:
        http: the port of HTTP.
        grpc: the port of gRPC.
        ca: the file of the certificate by which clients know the server; None where no TLS is spoken.
    """

    http: int
    grpc: int
    ca: Path | None = None

    @property
    def url(self) -> str:
        """Of its HTTP server."""
        return f"http://127.0.0.1:{self.http}"


class LiveServer:
    """The server under test.

    Attributes:
        gate: where requests to the model `gated` wait.
        tokens: by name: `user` may use all models but `fails`, `operator` may load and unload `spare`, `blind` may not
            see what the server does.
        public: everybody may come in.
        guarded: a token is wanted.
        draining: nothing is ready any more.
        secure: as `public`, with TLS.
        admin_path: the socket for administration.
    """

    public: Door
    guarded: Door
    draining: Door
    secure: Door

    def __init__(self, directory: Path) -> None:
        self.gate = Gate()
        self.admin_path = directory / "admin.sock"
        self._directory = directory
        self.tokens: dict[str, str] = {}
        self._write_tokens()
        self._ca = trustme.CA()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._services: dict[Door, Service] = {}
        self._servers: dict[Door, tuple[HttpServer, GrpcServer]] = {}
        self._new_service: Callable[[], Service]

    @classmethod
    @contextlib.contextmanager
    def running(cls, directory: Path) -> Iterator["LiveServer"]:
        """A server that runs."""
        server = cls(directory)
        started = threading.Event()
        failures: list[BaseException] = []

        def serve() -> None:
            try:
                with asyncio.Runner(loop_factory=loop_factory()) as runner:
                    runner.run(server._serve(started))
            except BaseException as error:
                failures.append(error)
                started.set()

        thread = threading.Thread(target=serve, name="live-server")
        thread.start()
        try:
            assert started.wait(4 * PATIENCE_S)
            if not failures:
                yield server
        finally:
            if server._loop is not None and not failures:
                server._loop.call_soon_threadsafe(server._stop.set)
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        if failures:
            raise failures[0]

    def authorization(self, name: str) -> dict[str, str]:
        """The header that shows the token of this name; in small letters, as gRPC wants it."""
        return {"authorization": f"Bearer {self.tokens[name]}"}

    def run(self, call: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
        """Runs something on the server's loop."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(PATIENCE_S)

    def until_in_flight(self, door: Door, count: int) -> None:
        """Waits until as many requests of a door are unanswered."""
        service = self._services[door]

        async def wait() -> None:
            async with asyncio.timeout(PATIENCE_S):
                while sum(map(service.in_flight, ("http", "grpc", "test"))) != count:  # noqa: ASYNC110  # what is looked at sets no event
                    await asyncio.sleep(0)

        self.run(wait)

    @contextlib.contextmanager
    def occupied(self, token: str, count: int) -> Iterator[None]:
        """A token has so many requests waiting at the gate, which is closed."""
        service = self._services[self.guarded]
        identity = service.identify(self.authorization(token)["authorization"])
        inputs = {"x": np.zeros((1, WIDTH), np.float32)}
        tasks: list[asyncio.Task[Any]] = []

        async def occupy() -> None:
            for _ in range(count):
                infer = service.infer("gated", inputs, identity=identity, protocol="test")
                tasks.append(asyncio.get_running_loop().create_task(infer))

        async def leave() -> None:
            await asyncio.gather(*tasks)

        with self.gate.closed():
            self.run(occupy)
            self.until_in_flight(self.guarded, count)
            yield
        self.run(leave)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Whatever becomes of the model `spare`, it is there and ready for the next test."""
        service = self._services[self.public]

        async def restore() -> None:
            if "spare" not in service.engine.models:
                await service.load("spare", identity=OPERATOR)
            await service.infer("spare", {"x": np.zeros((1, WIDTH), np.float32)}, identity=OPERATOR, protocol="test")

        try:
            yield
        finally:
            self.run(restore)

    def _write_tokens(self) -> None:
        rights = {
            "user": {"infer": ["[!f]*"]},
            "operator": {"infer": ["*"], "admin": ["spare"]},
            "blind": {"infer": ["*"], "observe": False},
        }
        lines: list[str] = []
        for name, may in rights.items():
            token = self.tokens[name] = secrets.token_urlsafe(32)
            digest = hashlib.sha256(token.encode()).hexdigest()
            lines += ["[[tokens]]", *(f"{key} = {json.dumps(value)}" for key, value in may.items())]
            lines += [f'name = "{name}"', f'sha256 = "{digest}"', ""]
        self._tokens_path = self._directory / "tokens.toml"
        self._tokens_path.touch(mode=0o600)
        self._tokens_path.write_text("\n".join(lines))

    def _tls(self) -> tuple[Tls, Path]:
        ca, certificate, key = (self._directory / f"{name}.pem" for name in ("ca", "certificate", "key"))
        issued = self._ca.issue_cert("localhost", "127.0.0.1")
        self._ca.cert_pem.write_to_path(str(ca))
        key.touch(mode=0o600)
        issued.private_key_pem.write_to_path(str(key))
        for part in issued.cert_chain_pems:
            part.write_to_path(str(certificate), append=True)
        return Tls(TlsFiles(certificate=certificate, key=key)), ca

    async def _serve(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        models = make_models(self.gate)
        tls, ca = self._tls()
        async with contextlib.AsyncExitStack() as stack:
            engine = await stack.enter_async_context(Engine(models, devices=jax.devices()[:1]))
            # This server lives as long as the process: it is not to run models while other tests measure memory.
            health = await stack.enter_async_context(Health(engine, ready_within_s=1e6))
            no_health = await stack.enter_async_context(Health(engine, ready_within_s=1e6))
            no_health.drain()

            def open_service(health: Health = health, access: Access | None = None) -> Service:
                return Service(engine, health=health, access=access or Access(), known=models, limits=LIMITS)

            self._new_service = open_service
            self.public = await self._open(stack, open_service(), admin_path=self.admin_path)
            self.guarded = await self._open(stack, open_service(access=Access.from_file(self._tokens_path)))
            self.draining = await self._open(stack, open_service(no_health))
            self.secure = await self._open(stack, open_service(), tls=tls, ca=ca)
            started.set()
            await self._stop.wait()

    async def _open(
        self,
        stack: contextlib.AsyncExitStack,
        service: Service,
        *,
        tls: Tls | None = None,
        ca: Path | None = None,
        admin_path: Path | None = None,
    ) -> Door:
        site = _Site(Feed(service.engine, service.health))
        context = None if tls is None else tls.context(alpn=["http/1.1"])
        credentials = None if tls is None else tls.grpc_credentials()
        http = await stack.enter_async_context(HttpServer(service, site, tls=context, admin_path=admin_path))
        grpc = await stack.enter_async_context(GrpcServer(service, credentials=credentials))
        assert http.port is not None
        assert grpc.port is not None
        door = Door(http=http.port, grpc=grpc.port, ca=ca)
        self._services[door] = service
        self._servers[door] = (http, grpc)
        return door

    @contextlib.contextmanager
    def closing(self) -> Iterator[Door]:
        """One more door, to be shut by `drain`."""
        stack = contextlib.AsyncExitStack()
        door = self.run(lambda: self._open(stack, self._new_service()))
        try:
            yield door
        finally:
            self.run(stack.aclose)

    def drain(self, door: Door, grace_s: float) -> "concurrent.futures.Future[Any]":
        """Begins to shut a door, behind which so many seconds are left."""
        assert self._loop is not None
        servers = self._servers[door]

        async def drain() -> None:
            await asyncio.gather(*[server.drain(grace_s) for server in servers])

        return asyncio.run_coroutine_threadsafe(drain(), self._loop)


class _Site:
    """What people look at; not what is tried here."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    async def metrics(self, accepted: str) -> tuple[bytes, str]:
        return b"", "text/plain"

    def openapi(self, models: Sequence[str]) -> dict[str, Any]:
        return {"openapi": "3.1.0"}
