"""One request and what is known of it; the answer is what its handler returns."""

import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

from aiohttp import web
from multidict import istr

from jaxserve.errors import InvalidInput
from jaxserve.request import check_deadline
from jaxserve.server.access import Identity
from jaxserve.server.feed import Feed
from jaxserve.server.http.body import Share, decompress, read_body
from jaxserve.server.http.connection import Connection
from jaxserve.server.service import Service

# Looked up as they are, without being folded first
_AUTHORIZATION, _CONTENT_ENCODING = istr("Authorization"), istr("Content-Encoding")
_TENANT, _TRACEPARENT = istr("X-Tenant"), istr("traceparent")
_DEADLINES = ((istr("X-Deadline-S"), 1.0), (istr("X-Envoy-Expected-Rq-Timeout-Ms"), 1e-3))


class Site(Protocol):
    """What people and monitoring look at.

    Attributes:
        feed: of the live page.
    """

    feed: Feed

    async def metrics(self, accepted: str) -> tuple[bytes, str]:
        """The metrics in a form that is accepted, and its content type."""
        ...

    def openapi(self, models: Sequence[str]) -> dict[str, Any]:
        """The OpenAPI document, with these models."""
        ...


class Exchange:
    """One request.

    Attributes:
        service: what serves it.
        site: what people look at.
        request: aiohttp's.
        route: where it goes.
        request_id: its client's, or one made here.
        share: of the budget of bodies.
    """

    __slots__ = ("connection", "request", "request_id", "route", "service", "share", "site")

    def __init__(
        self,
        service: Service,
        site: Site,
        request: web.BaseRequest,
        route: "Route",
        *,
        request_id: str,
        share: Share,
    ) -> None:
        self.service = service
        self.site = site
        self.request = request
        self.route = route
        self.request_id = request_id
        self.share = share
        self.connection = cast(Connection, request.protocol)

    @property
    def headers(self) -> Mapping[str, str]:
        """The request's, by name in any case."""
        return self.request.headers

    def identity(self) -> Identity:
        """Who asks.

        Raises:
            Unauthenticated: nobody knows.
        """
        return self.connection.identify(self.request.headers.get(_AUTHORIZATION))

    async def body(self) -> bytes | bytearray:
        """The body, decompressed.

        Raises:
            Refused, InvalidInput: it is not what it may be.
        """
        limits = self.service.limits
        body = await read_body(self.request, limits, self.share)
        encodings = self.request.headers.getall(_CONTENT_ENCODING, ())
        return body if not encodings else await decompress(body, ", ".join(encodings), limits, self.share)

    def deadline_s(self, asked_s: float | None = None) -> float | None:
        """Seconds until the deadline: the least of what the request itself asks for and of what its headers do.

        `X-Deadline-S` is ours; `X-Envoy-Expected-Rq-Timeout-Ms` is what Envoy tells how long it will wait.

        Raises:
            InvalidInput: a header is no number of seconds, or of milliseconds.
        """
        headers = self.request.headers
        for name, unit_s in _DEADLINES:
            for given in headers.getall(name, ()):
                try:
                    seconds = max(check_deadline(float(given.replace("_", "x"))) * unit_s, sys.float_info.min)
                except ValueError as error:
                    raise InvalidInput(
                        f"the header {name} is {given!r:.80}, but must be a finite number greater than 0"
                    ) from error
                asked_s = seconds if asked_s is None else min(asked_s, seconds)
        return asked_s

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        identity: Identity,
        version: str = "",
        deadline_s: float | None,
        priority: int = 0,
        tenant: str = "",
    ) -> Coroutine[Any, Any, Mapping[str, Any]]:
        """Runs a request: see `Service.infer`."""
        headers = self.request.headers
        return self.service.infer(
            model,
            inputs,
            identity=identity,
            protocol="http",
            client=self.connection.client,
            version=version,
            deadline_s=deadline_s,
            priority=priority,
            tenant=tenant or headers.get(_TENANT, ""),
            request_id=self.request_id,
            traceparent=headers.get(_TRACEPARENT),
        )


Handler = Callable[[Exchange], Awaitable[web.StreamResponse]]


class Route(NamedTuple):
    """Where a path leads.

    Attributes:
        handlers: by method.
        model: in the path, if any.
        version: of the model in the path, if any.
        is_openai: whether errors are in OpenAI's form.
    """

    handlers: Mapping[str, Handler]
    model: str = ""
    version: str = ""
    is_openai: bool = False
