"""Plain JSON over HTTP: TensorFlow Serving's form for any model, and OpenAI's for those that embed texts."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from jaxserve.errors import InvalidInput, Unsupported
from jaxserve.protocols import embeddings, predict
from jaxserve.protocols.json_text import read_json
from jaxserve.server.http.answers import JSON, answer, encoded_answer, encoding_for, json_answer
from jaxserve.server.http.exchange import Exchange

_BEGAN_S = time.time()
_AT_ONCE = 32
"""Batches of one request for embeddings, of which there may be hundreds: its client is not to take all places."""


async def predict_model(exchange: Exchange) -> web.StreamResponse:
    """POST /v1/models/{model}[/versions/{version}]:predict."""
    identity = exchange.identity()
    body, route = await _read(exchange), exchange.route
    description = exchange.service.description(route.model, route.version, identity=identity)
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
    """GET /v1/models/{model}: as TensorFlow Serving answers it and, beside that, as OpenAI does."""
    identity, route = exchange.identity(), exchange.route
    exchange.service.description(route.model, route.version, identity=identity)
    is_ready = exchange.service.is_model_ready(route.model, route.version)
    status = predict.status("AVAILABLE" if is_ready else "LOADING")
    return json_answer(status | embeddings.model(route.model, created_unix_s=_BEGAN_S))


async def model_metadata(exchange: Exchange) -> web.StreamResponse:
    """GET /v1/models/{model}/metadata."""
    identity, route = exchange.identity(), exchange.route
    description = exchange.service.description(route.model, route.version, identity=identity)
    return answer(predict.write_metadata(description), JSON)


async def unsupported(exchange: Exchange) -> web.StreamResponse:
    """POST /v1/models/{model}:classify and :regress."""
    exchange.identity()
    await exchange.body()
    raise Unsupported(f"{exchange.request.raw_path!r:.200} is not supported; ask for predictions with `:predict`")


async def list_models(exchange: Exchange) -> web.StreamResponse:
    """GET /v1/models, as OpenAI's clients ask for it."""
    names = exchange.service.visible(exchange.identity())
    return json_answer({"object": "list", "data": [embeddings.model(name, created_unix_s=_BEGAN_S) for name in names]})


async def embed(exchange: Exchange) -> web.StreamResponse:
    """POST /v1/embeddings."""
    identity = exchange.identity()
    asked = embeddings.read_request(await _read(exchange))
    description = exchange.service.description(asked.model, identity=identity)
    batches = embeddings.batches_of(asked, description)
    deadline_s = exchange.deadline_s()
    embedder = exchange.service.engine.models[asked.model].embedder
    assert embedder is not None  # else there were no batches
    at_once = asyncio.Semaphore(max(1, min(_AT_ONCE, exchange.service.limits.max_in_flight_per_client // 2)))

    async def infer(batch: Mapping[str, list[str]]) -> Mapping[str, Any]:
        async with at_once:
            return await exchange.infer(asked.model, batch, identity=identity, deadline_s=deadline_s)

    count = embedder.count_tokens
    try:
        async with asyncio.TaskGroup() as tasks:
            outputs = [tasks.create_task(infer(batch)) for batch in batches]
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
    encoding = encoding_for(exchange.request.headers.get("Accept-Encoding", ""), [body], is_text=True)
    return await encoded_answer([body], JSON, encoding, headers={"Vary": "Accept-Encoding"})
