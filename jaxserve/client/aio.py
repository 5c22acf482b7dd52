"""The asynchronous client."""

import asyncio
import collections
import contextlib
import math
import ssl
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np

from jaxserve.client.address import parse_address
from jaxserve.client.connection import Connection, NeverSent
from jaxserve.client.inputs import DtypeNames, needs_description, to_wire
from jaxserve.client.tls import checked_context, refused_by_tls
from jaxserve.errors import (
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    EngineStopped,
    InvalidInput,
    ProtocolError,
    TransportError,
    Unauthenticated,
)
from jaxserve.protocols import messages
from jaxserve.protocols.bearer import check_token
from jaxserve.protocols.envelopes import SMALLEST_FRAME_LIMIT_BYTES
from jaxserve.protocols.messages import Value
from jaxserve.protocols.native import DEFAULT_MAX_FRAME_BYTES, LARGEST_FRAME_BYTES
from jaxserve.protocols.tensors import Unencodable
from jaxserve.request import check_deadline, check_priority, check_tenant

_FIRST_BACKOFF_S = 0.05
_LAST_BACKOFF_S = 2.0
_SHUTDOWN_S = 1.0  # for the end of TLS, where the server is silent

_TOO_LATE_TO_SEND = "the deadline passed before the request could be sent"


class AsyncClient:
    """Calls a jaxserve server over the native protocol; an async context manager.

        async with AsyncClient("127.0.0.1:8500") as client:
            out = await client.infer("minilm", {"text": ["a sentence", "another"]}, deadline_s=1.0)

    Any number of calls may run at once; they share the connections. A connection that is lost is opened again, with
    growing pauses between the attempts. A call is repeated only if it was never sent, or if the server refused it
    because it was draining; any other call whose connection ends raises `ConnectionLost`, for it may have been served.

    Args:
        address: `host:port`, `[ipv6]:port` or `unix:/path`.
        token: shows the server who calls, where it wants to know.
        tls: how to speak TLS: True for servers whose certificates the system trusts, else an `ssl.SSLContext`
            (`ssl.create_default_context(cafile=...)` trusts another authority). False for none.
        connections: how many connections to spread the calls over.
        connect_timeout_s: seconds for one attempt to connect, handshake included.
        reconnect_timeout_s: seconds that a call without a deadline waits for a lost connection to come back.
        silence_margin_s: seconds past its deadline after which a call gives up on a silent server.
        max_frame_bytes: the largest answer that is read.

    Raises:
        ConfigError: arguments that make no sense, here.
        ConnectionLost: nobody answers at the address, or nobody that TLS trusts, on entering.
        Unauthenticated: the server does not know the token, or wants one, on entering.
        VersionMismatch: server and client have no version of the protocol in common, on entering.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | bool = False,
        connections: int = 1,
        connect_timeout_s: float = 10.0,
        reconnect_timeout_s: float = 10.0,
        silence_margin_s: float = 0.5,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
    ) -> None:
        if connections < 1:
            raise ConfigError(f"connections={connections}; at least 1 is needed")
        if not SMALLEST_FRAME_LIMIT_BYTES <= max_frame_bytes <= LARGEST_FRAME_BYTES:
            raise ConfigError(
                f"max_frame_bytes={max_frame_bytes}; it must be from {SMALLEST_FRAME_LIMIT_BYTES} "
                f"to {LARGEST_FRAME_BYTES}"
            )
        self._address = parse_address(address)
        self._token = "" if token is None else check_token(token)
        self._tls = checked_context(tls, self._address)
        self._wanted = connections
        self._connect_timeout_s = connect_timeout_s
        self._reconnect_timeout_s = reconnect_timeout_s
        self._silence_margin_s = silence_margin_s
        self._max_frame_bytes = max_frame_bytes
        self._connections: list[Connection] = []
        self._ending: set[Connection] = set()  # may not be used any more, but may still bring answers
        self._waiters: collections.deque[asyncio.Future[None]] = collections.deque()
        self._last_error: TransportError | Unauthenticated | None = None
        self._declared: dict[str, DtypeNames] = {}
        self._is_closed = True
        self._loop: asyncio.AbstractEventLoop
        self._missing: asyncio.Event
        self._reconnecting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._missing = asyncio.Event()
        self._last_error = None
        try:
            for _ in range(self._wanted):
                await self._connect()
        except BaseException:
            await self._close_connections()
            raise
        self._is_closed = False
        self._reconnecting = self._loop.create_task(self._reconnect(), name=f"jaxserve client {self._address}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closed = True
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.wait([self._reconnecting])
        self._wake_all()
        await self._close_connections()
        if self._reconnecting is not None and not self._reconnecting.cancelled():
            self._reconnecting.result()  # it ends only by being cancelled, or by a fault that must not stay unseen

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        deadline_s: float | None = None,
        priority: int = 0,
        tenant: str = "",
    ) -> dict[str, np.ndarray]:
        """Runs `model` on the server.

        Args:
            model: its name.
            inputs: by name: a numpy array (or what becomes one), a number, a nested list of numbers, a list of str.
                Arrays must not change before the call returns, for large ones are sent without a copy.
            deadline_s: seconds that the whole call may take, the network included; None for the model's default.
            priority: of requests that wait for one model, those of higher priority go first, where the server heeds it
                (from -10 to 10).
            tenant: whose request it is, where the server shares fairly among tenants (at most 128 characters).

        Returns:
            The outputs by name: read-only arrays.

        Raises:
            InferenceError: the server's answer, when it is not the outputs: `ModelNotFound`, `InvalidInput`,
                `DeadlineRefused`, `QueueFull`, `DeadlineExceeded`, `GroupFailed`, `EngineStopped`,
                `PermissionDenied`; or `Unauthenticated`, where the token is not good any more.
            TransportError: there is no answer.
        """
        self._check_open()
        if deadline_s is not None:
            deadline_s = check_deadline(deadline_s)
        priority, tenant = check_priority(priority), check_tenant(tenant)
        started_s = time.monotonic()  # not the loop's time, which uvloop cuts to milliseconds
        give_up_s = math.inf if deadline_s is None else started_s + deadline_s
        values = await self._values(model, inputs, give_up_s)
        while True:
            connection = self._pick() or await self._acquire(give_up_s)
            remaining_s = None if deadline_s is None else give_up_s - time.monotonic()
            if remaining_s is not None and remaining_s <= 0.0:
                raise DeadlineExceeded(_TOO_LATE_TO_SEND)
            try:
                answer = await connection.infer(
                    model,
                    values,
                    deadline_s=remaining_s,
                    priority=priority,
                    tenant=tenant,
                    silence_margin_s=self._silence_margin_s,
                )
            except NeverSent:
                continue
            except Unencodable as error:
                raise InvalidInput(str(error)) from error
            except EngineStopped as error:
                if "refused" not in error.details or time.monotonic() > started_s + self._reconnect_timeout_s:
                    raise
                continue
            return answer  # pyright: ignore[reportReturnType]  # models may return lists of str, too

    async def status(self) -> dict[str, Any]:
        """What the server does: models, groups, counters."""
        return await self._query(messages.StatusQuery, math.inf)

    async def models(self) -> list[dict[str, Any]]:
        """The models that are served, with their signatures and default deadlines."""
        models = await self._query(messages.DescribeQuery, math.inf)
        self._remember(models)
        return models

    # Inputs

    async def _values(self, model: str, inputs: Mapping[str, Any], give_up_s: float) -> dict[str, Value]:
        if not isinstance(model, str):
            raise InvalidInput(f"model is a {type(model).__name__}; it must be the name of one")
        if not isinstance(inputs, Mapping) or not all(type(name) is str for name in inputs):
            raise InvalidInput(
                f"inputs is a {type(inputs).__name__}; it must map the names of the inputs, each a str, to their values"
            )
        if not needs_description(inputs):
            return to_wire(inputs, {})
        if model not in self._declared:
            self._remember(await self._query(messages.DescribeQuery, give_up_s))
        return to_wire(inputs, self._declared.get(model, {}))

    def _remember(self, models: list[dict[str, Any]]) -> None:
        self._declared = {
            model["name"]: {name: spec["dtype"] for name, spec in model["inputs"].items()} for model in models
        }

    async def _query(self, kind: Callable[[int], messages.Message], give_up_s: float) -> Any:
        self._check_open()
        patience_s = self._connect_timeout_s
        remaining_s = give_up_s - time.monotonic()
        try:
            async with asyncio.timeout(min(remaining_s, patience_s)):
                while True:
                    connection = self._pick() or await self._acquire(give_up_s)
                    with contextlib.suppress(NeverSent):
                        return await connection.query(kind)
        except DeadlineExceeded:
            raise
        except TimeoutError as error:
            if remaining_s <= patience_s:
                raise DeadlineExceeded(_TOO_LATE_TO_SEND) from error
            raise ConnectionLost(f"no answer from {self._address} within {patience_s} s") from error

    # Connections

    def _check_open(self) -> None:
        if self._is_closed:
            raise ConnectionLost("the client is closed; use it inside `async with`")

    def _pick(self) -> Connection | None:
        """The connection with the fewest requests in flight, of those that can take one more."""
        best = None
        for connection in self._connections:
            if connection.has_room and (best is None or connection.in_flight < best.in_flight):
                best = connection
        return best

    async def _acquire(self, give_up_s: float) -> Connection:
        """Waits for a connection that can take a request."""
        lost_s = time.monotonic() + self._reconnect_timeout_s
        while True:
            self._check_open()
            connection = self._pick()
            if connection is not None:
                return connection
            if isinstance(self._last_error, ProtocolError | Unauthenticated):  # waiting would not help
                raise type(self._last_error)(str(self._last_error))
            # With a connection there is only room to wait for, and that comes with the server's next answer.
            until_s = give_up_s if self._connections else min(give_up_s, lost_s)
            try:
                async with asyncio.timeout(None if until_s == math.inf else until_s - time.monotonic()):
                    await self._room()
            except TimeoutError as error:
                if until_s == give_up_s:
                    raise DeadlineExceeded(_TOO_LATE_TO_SEND) from error
                raise ConnectionLost(
                    f"no connection to {self._address} for {self._reconnect_timeout_s} s: {self._last_error}"
                ) from error

    async def _room(self) -> None:
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._wake_one()  # the room that was meant for this call
            raise
        finally:
            if not waiter.done() or waiter.cancelled():
                with contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)

    def _wake_one(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _wake_all(self) -> None:
        while self._waiters:
            self._wake_one()

    async def _connect(self) -> None:
        """Adds a connection to the pool."""
        connection = Connection(
            str(self._address),
            token=self._token,
            max_frame_bytes=self._max_frame_bytes,
            on_room=self._wake_one,
            on_end=lambda: self._ended(connection),
            on_close=lambda: self._ending.discard(connection),
        )
        address = self._address
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                if address.path:
                    await self._loop.create_unix_connection(lambda: connection, address.path)
                else:
                    await self._loop.create_connection(
                        lambda: connection,
                        address.host,
                        address.port,
                        ssl=self._tls,
                        ssl_shutdown_timeout=None if self._tls is None else _SHUTDOWN_S,
                    )
                self._ending.add(connection)  # to be closed whatever happens now
                await connection.welcomed()
        except TimeoutError as error:
            connection.close()
            raise ConnectionLost(f"no welcome from {address} within {self._connect_timeout_s} s") from error
        except TransportError:
            connection.close()
            raise
        except ssl.SSLError as error:
            connection.close()
            raise ConnectionLost(refused_by_tls(address, error)) from error
        except (OSError, UnicodeError) as error:
            connection.close()
            raise ConnectionLost(f"cannot connect to {address}: {error}; is the server running?") from error
        except BaseException:
            connection.close()
            raise
        self._last_error = None
        self._declared = {}  # it may be another server than before
        if connection.is_open:
            self._ending.discard(connection)
            self._connections.append(connection)
            self._wake_all()

    def _ended(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            self._ending.add(connection)
        self._missing.set()
        self._wake_all()

    async def _reconnect(self) -> None:
        """Keeps the pool full. Attempts that follow each other closely wait longer and longer."""
        pause_s = _FIRST_BACKOFF_S
        attempted_s = -math.inf
        while True:
            await self._missing.wait()
            self._missing.clear()
            while len(self._connections) < self._wanted:
                if self._loop.time() - attempted_s < pause_s:
                    await asyncio.sleep(pause_s)
                    pause_s = min(2.0 * pause_s, _LAST_BACKOFF_S)
                else:
                    pause_s = _FIRST_BACKOFF_S
                attempted_s = self._loop.time()
                try:
                    await self._connect()
                except (TransportError, Unauthenticated) as error:
                    self._last_error = error
                    self._wake_all()

    async def _close_connections(self) -> None:
        connections = {*self._connections, *self._ending}
        for connection in connections:
            connection.close()
        for connection in connections:
            await connection.wait_closed()
        self._connections.clear()
        self._ending.clear()
