"""What people and monitoring look at: the live page, its events, metrics, the OpenAPI document."""

from collections.abc import Mapping

import orjson
from aiohttp import web

from jaxserve.errors import PermissionDenied, Unauthenticated
from jaxserve.server import page
from jaxserve.server.http.answers import accepted_encodings, answer, json_answer
from jaxserve.server.http.body import Refused
from jaxserve.server.http.exchange import Exchange, Handler

FILES = page.files()
_EVERY_S = 1.0
MOST_VIEWERS = 64
"""Of the live page at a time."""


def serve_file(file: page.File) -> Handler:
    """Serves a file of the live page. It holds no data, so that whoever has no token yet may see it."""

    async def serve(exchange: Exchange) -> web.StreamResponse:
        if "gzip" in accepted_encodings(exchange.headers.get("Accept-Encoding", "")):
            return answer(file.gzipped, file.content_type, headers={**page.HEADERS, "Content-Encoding": "gzip"})
        return answer(file.body, file.content_type, headers=page.HEADERS)

    return serve


async def metrics(exchange: Exchange) -> web.StreamResponse:
    """GET /metrics."""
    exchange.identity().check_observes()
    body, content_type = await exchange.site.metrics(exchange.headers.get("Accept", ""))
    return answer(body, content_type)


async def openapi(exchange: Exchange) -> web.StreamResponse:
    """GET /openapi.json."""
    visible = exchange.service.visible(exchange.identity())
    return json_answer(exchange.site.openapi(visible))


async def events(exchange: Exchange) -> web.StreamResponse:
    """GET /events: what the live page shows, every second, until the client goes or the server drains."""
    exchange.identity().check_observes()
    feed = exchange.site.feed
    if feed.viewers >= MOST_VIEWERS:
        raise Refused(503, "too_many_viewers", f"{MOST_VIEWERS} look at the live page already; close one")
    headers: Mapping[str, str] = {
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-store",
        "Server": "jaxserve",
        "X-Accel-Buffering": "no",
    }
    response = web.StreamResponse(headers=headers)
    response.force_close()  # nothing can follow on this connection
    await response.prepare(exchange.request)
    with feed.viewing():
        while not feed.is_over and _may_look(exchange):
            snapshot = orjson.dumps(feed.snapshot())
            await response.write(b"event: snapshot\ndata: " + snapshot + b"\n\n")
            await feed.wait(_EVERY_S)
    await response.write_eof()
    return response


def _may_look(exchange: Exchange) -> bool:
    """Whether the client still may, whose token may have been taken away."""
    try:
        exchange.identity().check_observes()
    except (PermissionDenied, Unauthenticated):
        return False
    return True
