"""One call over gRPC: who makes it, how long it may take, and how it ends when it goes wrong.

Every method is served as one that reads a stream of messages, though clients send one: on the wire there is no
difference, and the method is called before the message is read. So a stranger is turned away before his 64 MiB are
taken in, and a message that does not come is not waited for without end.
"""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import grpc

from jaxserve.errors import (
    DeadlineExceeded,
    InvalidInput,
    JaxserveError,
    PermissionDenied,
    RequestCancelled,
    Unauthenticated,
)
from jaxserve.protocols.statuses import status_of
from jaxserve.server.identity import Identity
from jaxserve.server.service import Service

_log = logging.getLogger("jaxserve.grpc")

FAILED = "the server failed; its log says more"
LONGEST_REQUEST_ID = 128
"""The most characters of the header `x-request-id` that are logged."""
LONGEST_TEXT = 1024
"""The most characters of an error that a client gets: they travel in a header, and clients bound these."""

END: Any = grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]  # missing in the stubs
"""What `context.read` returns in place of a message where no more will come."""


class Reading:
    """Reads messages, and gives up those that do not come.

    A timer for each message would take longer than to read it. So those that wait are looked at from time to time: who
    was there the last time too has waited for long enough.

    Args:
        timeout_s: seconds for which a message is waited for at least, and twice as many at most.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._waiting: set[asyncio.Task[Any]] = set()
        self._seen: set[asyncio.Task[Any]] = set()  # waited when we looked last
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Looks from now on, until `stop`."""
        self._look()

    async def message(self, context: Any) -> bytes:
        """The only message of a call.

        Raises:
            InvalidInput: there is none.
            RequestCancelled: it did not come in time.
        """
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            data = await context.read()
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            self._late.discard(task)
            raise RequestCancelled(f"the message did not come, for {self._timeout_s:g} s or more") from None
        finally:
            self._waiting.discard(task)
        if data is END:
            raise InvalidInput("the call has no message")
        return data

    def _look(self) -> None:
        for task in self._seen & self._waiting:
            self._late.add(task)
            task.cancel()
        self._seen = self._waiting - self._late
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._look)

    def stop(self) -> None:
        """Looks no more."""
        if self._timer is not None:
            self._timer.cancel()


_HEADERS = frozenset({"authorization", "x-request-id", "x-tenant", "traceparent"})


class Call:
    """A call of one method.

    Args:
        service: whose method it is.
        context: of gRPC.
    """

    __slots__ = ("_authorization", "_service", "context", "request_id", "tenant", "traceparent")

    def __init__(self, service: Service, context: Any) -> None:
        self._service = service
        self._authorization = None
        self.context = context
        self.request_id = self.tenant = ""
        self.traceparent = None
        for name, value in context.invocation_metadata():
            if name in _HEADERS:  # almost never: there is one for each call that is none of them
                if name == "authorization":
                    self._authorization = value
                elif name == "x-request-id":
                    self.request_id = value[:LONGEST_REQUEST_ID]
                elif name == "x-tenant":
                    self.tenant = value
                else:
                    self.traceparent = value

    def identity(self) -> Identity:
        """Who makes it.

        Raises:
            Unauthenticated: nobody knows.
        """
        return self._service.identify(self._authorization)

    def client(self) -> str:
        """The address of the client, without its port."""
        return _host_of(self.context.peer())

    def deadline_s(self, asked_s: float | None) -> float | None:
        """Seconds that are left: the less of what the client waits and of what the request asks for.

        Raises:
            DeadlineExceeded: none are.
        """
        left_s = self.context.time_remaining()
        if left_s is None:
            return asked_s
        if left_s <= 0.0:
            raise DeadlineExceeded("the deadline of the call passed before it was read")
        return left_s if asked_s is None else min(left_s, asked_s)


@functools.lru_cache(maxsize=1024)
def _host_of(peer: str) -> str:
    """The address without its port, of what gRPC calls the other end of a connection."""
    kind, _, address = peer.partition(":")
    host = address.rpartition(":")[0] if kind in ("ipv4", "ipv6") else address
    return unquote(host).strip("[]") if kind == "ipv6" else host


async def refuse(context: Any, error: JaxserveError) -> None:
    """Ends a call with an error, which `context.abort` raises."""
    status = status_of(error)
    trailing: list[tuple[str, str]] = [("jaxserve-code", status.code)]
    if status.retry_after_s is not None:
        trailing.append(("retry-after", str(status.retry_after_s)))
    await context.abort(grpc.StatusCode[status.grpc], text_of(error), tuple(trailing))


def text_of(error: JaxserveError) -> str:
    """What a client is told of an error."""
    text = str(error)
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 3]}..."


def guarded(
    name: str, method: Callable[[Any], Awaitable[bytes | None]], service: Service
) -> Callable[[Any, Any], Awaitable[bytes | None]]:
    """What gRPC calls in place of a method: it takes the context, and every error becomes a status."""

    async def serve(messages: object, context: Any) -> bytes | None:
        try:
            return await method(context)
        except Exception as error:
            await fail(name, context, error, service)

    return serve


async def fail(name: str, context: Any, error: Exception, service: Service) -> None:
    """Ends a call of a method with the status of what was raised, and tells of it."""
    if isinstance(error, JaxserveError):
        if not error.is_told:
            service.turned_away["grpc", status_of(error).code] += 1
            _tell(error, name, context)
        await refuse(context, error)
    if isinstance(error, grpc.aio.AbortError):
        raise error
    log_failure(name)
    await context.abort(grpc.StatusCode.INTERNAL, FAILED)


def log_failure(name: str) -> None:
    """Logs what an exception says that is being handled; no client learns of it."""
    _log.exception("the gRPC method %s failed", name)


def _tell(error: JaxserveError, name: str, context: Any) -> None:
    """Logs a call that was refused before it was one of a model."""
    code = status_of(error).code
    level = logging.WARNING if isinstance(error, Unauthenticated | PermissionDenied) else logging.INFO
    request_id = next((value for key, value in context.invocation_metadata() if key == "x-request-id"), "")
    extra = {
        "method": name,
        "client": _host_of(context.peer()),
        "request_id": request_id[:LONGEST_REQUEST_ID],
        "why": str(error)[:500],
    }
    _log.log(level, f"call refused: {code}", extra=extra)
