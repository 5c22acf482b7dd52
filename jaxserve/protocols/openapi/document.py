"""The OpenAPI 3.1 document of the HTTP server: every path, what it takes, and every status that it answers with.

Paths that name a model are there once for any model; those that ask for an inference also once for each model that is
served, with its own schema and an example.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxserve.protocols.openapi import plain_paths, v2_paths
from jaxserve.protocols.openapi.models import (
    Description,
    infer_example,
    infer_request,
    predict_example,
    predict_request,
)
from jaxserve.protocols.openapi.operations import JSON, Operation, Paths, json_body
from jaxserve.protocols.openapi.plain_schemas import OPENAI, TENSORFLOW
from jaxserve.protocols.openapi.schemas import OPEN_INFERENCE, TEXT, Schema, ref
from jaxserve.request import LONGEST_TENANT

_OF_MODEL = "/v2/models/{model}"
OPEN_PATHS = frozenset(
    {"/", "/page/{file}", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready"}
    | {f"{_OF_MODEL}/ready", f"{_OF_MODEL}/versions/{{version}}/ready"}
)
"""Where no token is wanted although others want one, unless said otherwise."""

MOST_MODELS = 100
"""So many models get paths of their own, of a few kilobytes each."""

_ABOUT = (
    "Models served within deadlines: over the Open Inference Protocol (V2), in TensorFlow Serving's form, and in "
    "OpenAI's form of embeddings. A request may say how long its answer is worth waiting for; one that cannot be in "
    "time is refused at once."
)
_TAGS: Mapping[str, str] = {
    "health": "Whether the server and its models answer.",
    "inference": "The Open Inference Protocol.",
    "models": "What is served, and how it does.",
    "repository": "Loading and unloading.",
    "predict": "TensorFlow Serving's form.",
    "openai": "OpenAI's form.",
    "operation": "For people and their dashboards.",
    "not supported": "Calls of the Open Inference Protocol that are not done here.",
}
_STATUSES: Mapping[int, str] = {
    400: "The request is not what it should be; the error says what was given, what is needed and how to mend it.",
    401: "A token is needed, and there is none or one that is not known.",
    403: "The token does not allow this.",
    404: "There is no such model, or no such version of it.",
    405: "There is such a path, but not with this method.",
    408: "The request did not arrive in time.",
    413: "The body is larger than is allowed, as it came or decompressed.",
    415: "The body is compressed in a way that is not known here.",
    429: "Refused on arrival: it could not be in time, too many wait already, or its client has too many unanswered.",
    431: "A line or a header of the request is longer than is allowed.",
    499: "Cancelled, because its client went away.",
    500: "The model raised on this request, or the server has a fault, which its log describes.",
    501: "A call of the protocol that is not done here.",
    503: "The server stops, the devices that ran the request were lost, or models are not administered here.",
    504: "Admitted, but its deadline passed before it was done.",
}
_EVERYWHERE = frozenset({400, 405, 408, 431, 500, 503})
_WITH_TOKENS = frozenset({401, 403})
_HEADERS: Mapping[int, Mapping[str, Any]] = {
    401: {"WWW-Authenticate": {"required": True, "description": "How to come in.", "schema": TEXT}},
    405: {"Allow": {"required": True, "description": "The methods that there are.", "schema": TEXT}},
    429: {
        "Retry-After": {
            "required": True,
            "description": "Seconds after which it may be tried again.",
            "schema": {"type": "integer", "minimum": 1},
        }
    },
}
_POSITIVE: Schema = {"type": "number", "exclusiveMinimum": 0}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._~-]+")
"""A model's name that is the same in a path."""
_ERROR, _OPENAI_ERROR = "Error", "OpenAIError"
_OPENAI_PATHS = frozenset({"/v1/embeddings", "/v1/models"})
"""Where errors have OpenAI's form."""


def build(
    *,
    version: str,
    title: str = "jaxserve",
    models: Sequence[Description] = (),
    tokens: bool = False,
) -> dict[str, Any]:
    """The document, as values of which JSON is made.

    Args:
        version: of the server.
        title: what it is called.
        models: what the engine's `describe` says of those that are served; none to leave them out of it.
        tokens: whether callers need a bearer token, but for `OPEN_PATHS`.
    """
    paths = {**v2_paths.paths(), **plain_paths.paths(models)}
    for description in models[:MOST_MODELS]:
        paths |= _of_model(description)
    components: dict[str, Any] = {
        "schemas": {**OPEN_INFERENCE, **TENSORFLOW, **OPENAI},
        "parameters": _parameters([description["name"] for description in models]),
        "responses": {
            f"{error}{status}": _refusal(status, error) for error in (_ERROR, _OPENAI_ERROR) for status in _STATUSES
        },
    }
    if tokens:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": version,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name, "description": says} for name, says in _TAGS.items()],
        "paths": {
            path: {
                method: _written(operation, path, needs_token=tokens and path not in OPEN_PATHS)
                for method, operation in operations.items()
            }
            for path, operations in paths.items()
        },
        "components": components,
    }


def _of_model(description: Description) -> Paths:
    """The paths that run one model, by its own schema; none where its name would have to be quoted."""
    name = description["name"]
    if _PLAIN_NAME.fullmatch(name) is None:
        return {}
    summary = f"Runs {name}."
    body = json_body(predict_request(description), predict_example(description))
    paths = {f"/v1/models/{name}:predict": plain_paths.predict(f"predict_{name}", summary, body)}
    schema = infer_request(description)
    if schema is not None:
        body = json_body(schema, infer_example(description))
        paths[f"/v2/models/{name}/infer"] = v2_paths.infer(f"infer_{name}", summary, body)
    return paths


def _written(operation: Operation, path: str, *, needs_token: bool) -> dict[str, Any]:
    error = _OPENAI_ERROR if path in _OPENAI_PATHS else _ERROR
    statuses = _EVERYWHERE.union(operation.statuses, _WITH_TOKENS if needs_token else ())
    responses = {status: {"$ref": f"#/components/responses/{error}{status}"} for status in sorted(statuses)}
    written: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in operation.parameters],
        "responses": {str(status): answer for status, answer in {**responses, **operation.answers}.items()},
    }
    if operation.body is not None:
        written["requestBody"] = {"required": operation.needs_body, "content": operation.body}
    if needs_token:
        written["security"] = [{"token": []}]
    return written


def _refusal(status: int, error: str) -> dict[str, Any]:
    refusal: dict[str, Any] = {"description": _STATUSES[status], "content": {JSON: {"schema": ref(error)}}}
    if status in _HEADERS:
        refusal["headers"] = _HEADERS[status]
    return refusal


def _parameters(names: Sequence[str]) -> dict[str, Any]:
    any_name = {"type": "string", "pattern": "^[^/]+$"}
    return {
        "Model": _in_path("model", {"enum": list(names)} if names else any_name, "The name of a model that is served."),
        "KnownModel": _in_path("model", any_name, "The name of a model that is served, or was."),
        "Version": _in_path("version", {"const": "1"}, "The version of the model; there is only this one."),
        "Region": _in_path("region", any_name, "The name of a region of shared memory."),
        "File": {
            **_in_path("file", {"type": "string", "pattern": r"^[a-z]+\.(js|css)$"}, "The name of the file."),
            "example": "main.js",
        },
        "Deadline": _in_header(
            "X-Deadline-S",
            _POSITIVE,
            "Seconds after which the answer is worthless; where nothing says so, the model's own deadline holds.",
        ),
        "EnvoyDeadline": _in_header("x-envoy-expected-rq-timeout-ms", _POSITIVE, "The same in milliseconds, by Envoy."),
        "RequestId": _in_header("X-Request-Id", TEXT, "Comes back with the answer, and stands in the log."),
        "Tenant": _in_header(
            "X-Tenant", {"type": "string", "maxLength": LONGEST_TENANT}, "Without a token: for whom the request is."
        ),
        "TraceParent": _in_header("traceparent", TEXT, "The caller's span, by W3C Trace Context."),
        "JsonBytes": _in_header(
            "Inference-Header-Content-Length",
            {"type": "integer", "minimum": 1},
            "How much of the body, once decompressed, is JSON, if not all.",
        ),
    }


def _in_path(name: str, schema: Schema, says: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "description": says, "schema": schema}


def _in_header(name: str, schema: Schema, says: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": says, "schema": schema}
