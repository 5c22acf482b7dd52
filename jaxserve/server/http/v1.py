"""Plain JSON over HTTP: TensorFlow Serving's form for any model, and OpenAI's for those that embed texts."""

import asyncio
import time

from aiohttp import web

from jaxserve.errors import InvalidInput
from jaxserve.protocols import embeddings, predict
from jaxserve.protocols.json_text import read_json
from jaxserve.server.http.answers import JSON, answer, compressed
from jaxserve.server.http.exchange import Exchange

_BEGAN_S = time.time()


async def predict_model(exchange: Exchange) -> web.StreamResponse:
    """POST /v1/models/{model}[/versions/{version}]:predict."""
    identity = exchange.identity()
    body, route = await _read(exchange), exchange.route
    if not identity.may_infer(route.model):
        raise identity.cannot_infer(route.model)
    description = exchange.service.description(route.model, route.version)
    asked = predict.read_request(body, description)
    outputs = await exchange.infer(
        route.model,
        asked.inputs,
        identity=identity,
        version=route.version,
        deadline_s=exchange.deadline_s(),
    )
    return await _answer(exchange, predict.write_response(outputs, by_row=asked.by_row))


async def model_status(exchange: Exchange) -> web.StreamResponse:
    """GET /v1/models/{model}."""
    exchange.identity()
    route = exchange.route
    exchange.service.description(route.model, route.version)
    is_ready = exchange.service.is_model_ready(route.model, route.version)
    return answer(predict.write_status("AVAILABLE" if is_ready else "LOADING"), JSON)


async def model_metadata(exchange: Exchange) -> web.StreamResponse:
    """GET /v1/models/{model}/metadata."""
    exchange.identity()
    return answer(
        predict.write_metadata(exchange.service.description(exchange.route.model, exchange.route.version)), JSON
    )


async def list_models(exchange: Exchange) -> web.StreamResponse:
    """GET /v1/models, as OpenAI's clients ask for it."""
    identity = exchange.identity()
    names = [name for name in exchange.service.engine.models if identity.may_infer(name)]
    return answer(embeddings.write_models(names, created_unix_s=_BEGAN_S), JSON)


async def embed(exchange: Exchange) -> web.StreamResponse:
    """POST /v1/embeddings."""
    identity = exchange.identity()
    asked = embeddings.read_request(await _read(exchange))
    if not identity.may_infer(asked.model):
        raise identity.cannot_infer(asked.model)
    description = exchange.service.description(asked.model)
    batches = embeddings.batches_of(asked, description)
    deadline_s = exchange.deadline_s()
    embedder = exchange.service.engine.models[asked.model].embedder
    assert embedder is not None  # else there were no batches
    calls = [exchange.infer(asked.model, batch, identity=identity, deadline_s=deadline_s) for batch in batches]
    count = embedder.count_tokens
    try:
        async with asyncio.TaskGroup() as tasks:
            outputs = [tasks.create_task(call) for call in calls]
            tokens = None if count is None else tasks.create_task(asyncio.to_thread(count, asked.texts))
    except ExceptionGroup as group:  # the first to fail has had the others cancelled
        raise group.exceptions[0] from None
    body = embeddings.write_response(
        asked,
        [each.result() for each in outputs],
        description,
        tokens=None if tokens is None else tokens.result(),
    )
    return await _answer(exchange, body)


async def _read(exchange: Exchange) -> object:
    limits = exchange.service.limits
    body = await exchange.body()
    if not body:
        raise InvalidInput("the body is empty, but must be a JSON object")
    return read_json(body, max_elements=limits.max_json_elements, max_depth=limits.max_json_depth)


async def _answer(exchange: Exchange, body: bytes) -> web.Response:
    whole, encoding = await compressed([body], exchange.request.headers.get("Accept-Encoding", ""), is_text=True)
    fields = {"X-Request-Id": exchange.request_id}
    if encoding:
        fields["Content-Encoding"] = encoding
    return answer(whole, JSON, headers=fields)
