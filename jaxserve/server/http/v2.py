"""The Open Inference Protocol over HTTP."""

from typing import cast

from aiohttp import HttpVersion11, web
from multidict import istr

from jaxserve.errors import InvalidInput, ModelNotFound, Unsupported
from jaxserve.protocols.json_recall import first_id
from jaxserve.protocols.json_text import read_json
from jaxserve.protocols.open_inference import check_outputs, read_infer, write_infer
from jaxserve.server.http.answers import (
    JSON,
    OCTETS,
    Quick,
    encoded_answer,
    encoding_for,
    json_answer,
    request_id_of,
)
from jaxserve.server.http.exchange import Exchange
from jaxserve.server.v2_forms import LOG_SETTINGS, MODEL_VERSION, TRACE_SETTINGS

_LENGTH = istr("Inference-Header-Content-Length")
_JSON_FIELDS = b"Content-Type: application/json\r\nServer: jaxserve\r\nX-Request-Id: %b\r\n"
_BINARY_FIELDS = (
    b"Content-Type: application/octet-stream\r\nServer: jaxserve\r\nX-Request-Id: %b\r\n"
    b"Inference-Header-Content-Length: %d\r\n"
)
_ACCEPT_ENCODING = istr("Accept-Encoding")


async def infer(exchange: Exchange) -> web.StreamResponse:
    """POST /v2/models/{model}[/versions/{version}]/infer."""
    identity = exchange.identity()
    body = await exchange.body()
    limits, request, route = exchange.service.limits, exchange.request, exchange.route
    headers = request.headers
    length = headers.get(_LENGTH)
    try:
        asked = read_infer(
            body,
            None if length is None else _json_bytes(length),
            max_tensors=limits.max_tensors,
            max_json_elements=limits.max_json_elements,
            max_json_depth=limits.max_json_depth,
        )
    except InvalidInput:
        _call(exchange, first_id(body))
        raise
    if asked.outputs is not None and identity.may_infer(route.model):  # else the names are none of its business
        check_outputs(asked, exchange.service.output_names(route.model))
    if asked.id:
        _call(exchange, asked.id)
    outputs = await exchange.infer(
        route.model,
        asked.inputs,
        identity=identity,
        version=route.version,
        deadline_s=exchange.deadline_s(asked.timeout_s),
        priority=asked.priority,
        tenant=asked.tenant,
    )
    parts, json_bytes = write_infer(asked, outputs, model=route.model, version=MODEL_VERSION)
    encoding = encoding_for(headers.get(_ACCEPT_ENCODING, ""), parts, is_text=json_bytes is None)
    if request.version == HttpVersion11 and not encoding:
        id = exchange.request_id.encode()
        quick = Quick(parts, _JSON_FIELDS % id if json_bytes is None else _BINARY_FIELDS % (id, json_bytes))
        return cast(web.StreamResponse, quick)
    response = await encoded_answer(parts, JSON if json_bytes is None else OCTETS, encoding)
    if json_bytes is not None:
        response.headers[_LENGTH] = str(json_bytes)
    return response


def _call(exchange: Exchange, id: str) -> None:
    """Has a request go by the id that its body says, unless a header says another."""
    if "X-Request-Id" not in exchange.request.headers:
        exchange.request_id = request_id_of(id) or exchange.request_id


def _json_bytes(length: str) -> int:
    if not length.isascii() or not length.isdigit() or len(length) > 18:
        raise InvalidInput(f"{_LENGTH} is {length!r:.80}, but must be the number of bytes of JSON in the body")
    return int(length)


async def live(exchange: Exchange) -> web.StreamResponse:
    """GET /v2/health/live."""
    return _yes_or_no(exchange.service.is_live(), "live")


async def ready(exchange: Exchange) -> web.StreamResponse:
    """GET /v2/health/ready."""
    return _yes_or_no(exchange.service.is_ready(), "ready")


async def model_ready(exchange: Exchange) -> web.StreamResponse:
    """GET /v2/models/{model}[/versions/{version}]/ready."""
    route = exchange.route
    if not exchange.service.has(route.model, route.version):
        version = f" of version {route.version!r:.80}" if route.version else ""
        raise ModelNotFound(f"no model {route.model!r:.200}{version} is served")
    return _yes_or_no(exchange.service.is_model_ready(route.model, route.version), "ready")


def _yes_or_no(holds: bool, what: str) -> web.Response:
    if holds:
        return json_answer({what: True})
    return json_answer({what: False, "error": f"not {what}", "code": f"not_{what}"}, status=503)


async def server_metadata(exchange: Exchange) -> web.StreamResponse:
    """GET /v2."""
    exchange.identity()
    return json_answer(exchange.service.server_metadata())


async def model_metadata(exchange: Exchange) -> web.StreamResponse:
    """GET /v2/models/{model}[/versions/{version}]."""
    identity, route = exchange.identity(), exchange.route
    return json_answer(exchange.service.model_metadata(route.model, route.version, identity=identity))


async def model_config(exchange: Exchange) -> web.StreamResponse:
    """GET /v2/models/{model}[/versions/{version}]/config."""
    identity, route = exchange.identity(), exchange.route
    return json_answer(exchange.service.model_config(route.model, route.version, identity=identity))


async def statistics(exchange: Exchange) -> web.StreamResponse:
    """GET /v2/models/stats and /v2/models/{model}[/versions/{version}]/stats."""
    identity, route = exchange.identity(), exchange.route
    identity.check_observes()
    return json_answer(exchange.service.statistics(route.model, route.version, identity=identity))


async def repository_index(exchange: Exchange) -> web.StreamResponse:
    """POST /v2/repository/index."""
    identity = exchange.identity()
    body = await exchange.body()
    wanted = read_json(body) if body else {}
    if type(wanted) is not dict or type(wanted.get("ready", False)) is not bool:
        raise InvalidInput('the body must be empty, or an object such as {"ready": true}')
    return json_answer(exchange.service.repository_index(identity=identity, ready_only=wanted.get("ready", False)))


async def load(exchange: Exchange) -> web.StreamResponse:
    """POST /v2/repository/models/{model}/load."""
    identity = exchange.identity()
    parameters = await _parameters(exchange)
    if parameters:
        raise Unsupported(
            f"a model is loaded as the server was given it; the parameters {sorted(parameters)!r:.200} change nothing"
        )
    await exchange.service.load(exchange.route.model, identity=identity)
    return json_answer({})


async def unload(exchange: Exchange) -> web.StreamResponse:
    """POST /v2/repository/models/{model}/unload."""
    identity = exchange.identity()
    await _parameters(exchange)
    await exchange.service.unload(exchange.route.model, identity=identity)
    return json_answer({})


async def _parameters(exchange: Exchange) -> dict[str, object]:
    body = await exchange.body()
    document = read_json(body) if body else {}
    parameters = document.get("parameters", {}) if type(document) is dict else None
    if type(parameters) is not dict:
        raise InvalidInput('the body must be empty, or an object such as {"parameters": {}}')
    return parameters


async def trace_setting(exchange: Exchange) -> web.StreamResponse:
    """GET /v2/trace/setting, and of a model."""
    identity, route = exchange.identity(), exchange.route
    if route.model:
        exchange.service.description(route.model, route.version, identity=identity)
    return json_answer(TRACE_SETTINGS)


async def log_settings(exchange: Exchange) -> web.StreamResponse:
    """GET /v2/logging."""
    exchange.identity()
    return json_answer(LOG_SETTINGS)


async def shared_memory_status(exchange: Exchange) -> web.StreamResponse:
    """GET /v2/systemsharedmemory/status and /v2/cudasharedmemory/status: there is none."""
    exchange.identity()
    return json_answer([])


async def nothing_registered(exchange: Exchange) -> web.StreamResponse:
    """POST /v2/systemsharedmemory/unregister and its like: nothing is registered, so nothing is left to do."""
    exchange.identity()
    await exchange.body()
    return json_answer({})


async def unsupported(exchange: Exchange) -> web.StreamResponse:
    """What the protocol has and this server has not."""
    exchange.identity()
    await exchange.body()
    raise Unsupported(f"{exchange.request.method} {exchange.request.raw_path!r:.200} is not supported by this server")
