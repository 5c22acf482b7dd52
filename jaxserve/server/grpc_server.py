"""The gRPC server: listens, and ends in order."""

import asyncio
import contextlib
import logging
import socket
from types import TracebackType
from typing import Any, Self

import grpc

from jaxserve.server.grpc_calls import Reading
from jaxserve.server.grpc_infer import Inference
from jaxserve.server.grpc_methods import Methods
from jaxserve.server.limits import Limits
from jaxserve.server.service import Service
from jaxserve.server.tcp import cannot_listen, in_url

_log = logging.getLogger("jaxserve.grpc.server")

# From this version on, one call whose path is not UTF-8 ends the server of grpcio: no connection is taken any more.
# Versions before answer it UNKNOWN. Found by the fuzzer (1.66 to 1.83 go on, 1.84.2 and 1.85.1 end).
FRAGILE_FROM = (1, 84)

_LINGER_S = 1.0  # that clients have to take their last answers
_CALLS_PER_CONNECTION = 4  # calls that may be open at a time, on average, where all connections are
_MOST_PENDING = 4096  # calls that wait to be taken; each holds some kilobytes, even after its connection has gone


class GrpcServer:
    """Serves the Open Inference Protocol over gRPC, on the loop that is running; an async context manager.

    Leaving the context ends the server at once; `drain` first lets the requests in flight finish.

    Args:
        service: what serves the requests; its engine must outlive the server.
        host: where to listen.
        port: the TCP port, 0 for one that is free (see `port`).
        credentials: for TLS; None for none.

    Raises:
        ConfigError: an address that cannot be listened on, on entering.
    """

    def __init__(
        self,
        service: Service,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self._service = service
        self._host = host
        self._requested_port = port
        self._credentials = credentials
        self._stops: list[asyncio.Task[None]] = []
        self._server: Any = None
        self._inference: Inference
        self._reading: Reading
        self.port: int | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where clients find it."""
        return () if self.port is None else (f"{in_url(self._host)}:{self.port}",)

    @property
    def in_flight(self) -> int:
        """Requests taken and not answered."""
        return 0 if self._server is None else self._service.in_flight("grpc")

    async def __aenter__(self) -> Self:
        limits = self._service.limits
        self._check_address()
        if is_fragile():
            _log.warning(
                "grpcio %s ends its server when the path of a call is not UTF-8, and whoever can connect may send one; "
                "install 'grpcio<1.84'",
                grpc.__version__,
            )
        logging.getLogger("grpc._cython.cygrpc").addFilter(_tell_of_strangers)  # once, however often it is added
        reading = Reading(limits.body_timeout_s)
        inference = Inference(self._service, reading)
        server = grpc.aio.server(
            handlers=Methods(self._service, inference, reading).handlers(),
            options=channel_options(limits),
            maximum_concurrent_rpcs=_CALLS_PER_CONNECTION * limits.max_connections,
        )
        address = f"{in_url(self._host)}:{self._requested_port}"
        try:
            if self._credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise cannot_listen(self._host, self._requested_port, error) from error
        await server.start()
        reading.start()
        self._server, self._inference, self._reading = server, inference, reading
        self.port = port
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain(0.0)

    async def drain(self, grace_s: float) -> None:
        """Ends in order: no new connections, no new requests, `grace_s` seconds for those in flight.

        What is still in flight then is answered with `EngineStopped`. May be called again, with less patience, while or
        after a first call runs or was cancelled.
        """
        if self._server is None:
            return
        self._inference.drain()
        # The listener closes at once; calls that are still open after the grace, and some time to end, are cut off.
        self._stops.append(asyncio.get_running_loop().create_task(self._server.stop(grace_s + _LINGER_S)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._service.until_idle("grpc")
        self._inference.stop()
        await asyncio.wait(self._stops)  # which goes on if this is cancelled
        self._reading.stop()
        for stop in self._stops:
            stop.result()

    def _check_address(self) -> None:
        """Asks the system for the address first: gRPC does not say why it cannot have one, but writes it to stderr."""
        try:
            found = socket.getaddrinfo(
                self._host, self._requested_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, kind, protocol, _, address in found:
                with socket.socket(family, kind, protocol) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6:
                        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    probe.bind(address)
        except (OSError, OverflowError) as error:
            raise cannot_listen(self._host, self._requested_port, error) from error


# What grpcio logs as errors of the server, with a trace, though nothing is wrong but what a client has sent, or that it
# has gone while it was told so.
_OF_STRANGERS = (
    "ExecuteBatchError raised in core by",
    "Failed sending error status from server",
    "Invalid encoding on",
    "Unexpected [UnicodeDecodeError] raised by",
)


def _tell_of_strangers(record: logging.LogRecord) -> bool:
    """Tells what grpcio says of strangers as what it is, in a line; whether a record is something else."""
    message = record.getMessage()
    if not message.startswith(_OF_STRANGERS):
        return True
    _log.info("gRPC could not go on with a call", extra={"why": message[:200]})
    return False


def is_fragile() -> bool:
    """Whether the grpcio that is installed can be ended by any client."""
    return tuple(int(number) for number in grpc.__version__.split(".")[:2]) >= FRAGILE_FROM


def channel_options(limits: Limits) -> list[tuple[str, int]]:
    """The limits as gRPC has them."""
    idle_ms = round(1000 * limits.keepalive_timeout_s)
    return [
        ("grpc.so_reuseport", 0),  # or two servers would share a port, and neither know
        ("grpc.max_receive_message_length", limits.max_body_bytes),  # after decompression
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.max_header_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_header_bytes),
        ("grpc.max_concurrent_streams", limits.max_in_flight_per_client),
        # gRPC's own protections against overload end calls without a word that clients could act on, some by chance.
        # What is too much is refused by name here, or waits at the client for a place on its connection.
        ("grpc.http.overload_protection", 0),
        ("grpc.server.max_pending_requests", _MOST_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", 2 * _MOST_PENDING),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.server_handshake_timeout_ms", round(1000 * limits.head_timeout_s)),
        ("grpc.max_connection_idle_ms", idle_ms),
        # A connection whose other end has vanished is found out by pings; one that pings too often is closed.
        ("grpc.keepalive_time_ms", idle_ms),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
    ]
