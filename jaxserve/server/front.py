"""All servers in front of one engine: the native protocol, HTTP and gRPC, started and ended together."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jaxserve.engine import Engine
from jaxserve.model import Model
from jaxserve.plans import Outlook
from jaxserve.protocols import openapi
from jaxserve.server.access import Access
from jaxserve.server.feed import Feed
from jaxserve.server.grpc_server import GrpcServer
from jaxserve.server.health import Health
from jaxserve.server.http import HttpServer
from jaxserve.server.limits import Limits
from jaxserve.server.native import NativeServer
from jaxserve.server.prometheus import Prometheus
from jaxserve.server.service import Service
from jaxserve.server.tls import Tls
from jaxserve.server.tracing import NOT_TRACED, Tracing
from jaxserve.server.v2_forms import VERSION


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """Where to listen.

    Attributes:
        host: for all ports.
        port: of the native protocol, 0 for any that is free, None for none; as the others.
        http_port: of HTTP.
        grpc_port: of gRPC.
        unix: a Unix socket for the native protocol as well.
        admin_unix: a Unix socket, for this user alone, on which models may be loaded and unloaded over HTTP.
    """

    host: str = "127.0.0.1"
    port: int | None = 0
    http_port: int | None = 0
    grpc_port: int | None = 0
    unix: Path | None = None
    admin_unix: Path | None = None


class Front:
    """The servers of an engine; an async context manager.

    Args:
        engine: that is running, and outlives this.
        doors: where to listen.
        known: the models that may be loaded again once they were unloaded.
        access: who may come in.
        tls: to be spoken on every port; None for none.
        limits: what strangers may cost.
        ready_within_s: see `Health`.
        outlook: what was planned, for the live page.
        logs_requests: whether every request is logged.
        tracing: where spans go.

    Raises:
        ConfigError: somewhere cannot be listened on, on entering.
    """

    def __init__(
        self,
        engine: Engine,
        doors: Doors,
        *,
        known: Iterable[Model] = (),
        access: Access | None = None,
        tls: Tls | None = None,
        limits: Limits | None = None,
        ready_within_s: float = 10.0,
        outlook: Outlook | None = None,
        logs_requests: bool = False,
        tracing: Tracing = NOT_TRACED,
    ) -> None:
        access = Access() if access is None else access
        limits = Limits() if limits is None else limits
        self.health = Health(engine, ready_within_s=ready_within_s)
        self.service = Service(
            engine,
            health=self.health,
            access=access,
            known=known,
            limits=limits,
            logs_requests=logs_requests,
            tracing=tracing,
        )
        self.feed = Feed(engine, self.health, outlook=outlook, addresses=lambda: self.addresses)
        self._engine = engine
        self._needs_tokens = not access.is_open
        self._stack = contextlib.AsyncExitStack()
        self.native: NativeServer | None = None
        self.http: HttpServer | None = None
        self.grpc: GrpcServer | None = None
        if doors.port is not None or doors.unix is not None:
            self.native = NativeServer(
                engine,
                host=doors.host,
                port=doors.port,
                path=doors.unix,
                access=access,
                tls=None if tls is None else tls.context(),
                max_connections=limits.max_connections,
                max_connections_per_client=limits.max_connections_per_client,
                max_in_flight=limits.max_in_flight_per_client,
                handshake_timeout_s=limits.head_timeout_s,
            )
        if doors.http_port is not None or doors.admin_unix is not None:
            self.http = HttpServer(
                self.service,
                self,
                host=doors.host,
                port=doors.http_port,
                tls=None if tls is None else tls.context(alpn=("http/1.1",)),
                admin_path=doors.admin_unix,
            )
        if doors.grpc_port is not None:
            self.grpc = GrpcServer(
                self.service,
                host=doors.host,
                port=doors.grpc_port,
                credentials=None if tls is None else tls.grpc_credentials(),
            )
        self._prometheus = Prometheus(
            engine,
            self.health,
            connections=lambda: {
                name: server.connections for name, server in self.servers.items() if not isinstance(server, GrpcServer)
            },
            connections_refused=lambda: {
                name: server.refused_connections
                for name, server in self.servers.items()
                if not isinstance(server, GrpcServer)
            },
            http_responses=lambda: {} if self.http is None else self.http.answered,
            turned_away=lambda: self.service.turned_away,
        )

    @property
    def servers(self) -> Mapping[str, "NativeServer | HttpServer | GrpcServer"]:
        """Those that there are, by the name of their protocol."""
        named = {"native": self.native, "http": self.http, "grpc": self.grpc}
        return {name: server for name, server in named.items() if server is not None}

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where clients find them."""
        return tuple(address for server in self.servers.values() for address in server.addresses)

    @property
    def in_flight(self) -> int:
        """Requests taken and not answered, over all servers."""
        return sum(server.in_flight for server in self.servers.values())

    async def metrics(self, accepted: str) -> tuple[bytes, str]:
        """See `Site`."""
        return await self._prometheus.exposition(accepted)

    def openapi(self, models: Sequence[str]) -> dict[str, Any]:
        """See `Site`."""
        shown = [each for each in self._engine.describe() if each["name"] in models]
        return openapi.build(version=VERSION, models=shown, tokens=self._needs_tokens)

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._prometheus.close)
            for server in self.servers.values():
                await stack.enter_async_context(server)
            await stack.enter_async_context(self.health)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def drain(self, grace_s: float) -> None:
        """Ends in order: nothing is ready, nobody comes in, and what is in flight has `grace_s` seconds.

        What is still in flight then is answered with `EngineStopped`. May be called again, with less patience.
        """
        self.health.drain()
        async with asyncio.TaskGroup() as tasks:
            for server in self.servers.values():
                tasks.create_task(server.drain(grace_s))
