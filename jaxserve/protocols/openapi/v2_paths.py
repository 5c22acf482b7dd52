"""The paths of the Open Inference Protocol, and the probes beside it."""

from collections.abc import Sequence

from jaxserve.protocols.openapi.operations import (
    RAW,
    WITH_BODY,
    Media,
    Operation,
    Paths,
    answer,
    inference,
    json_body,
    query,
)
from jaxserve.protocols.openapi.schemas import COUNT, record, ref

_OF_MODEL = ("/v2/models/{model}", "", ("Model",))
_OF_VERSION = ("/v2/models/{model}/versions/{version}", "OfVersion", ("Model", "Version"))


def paths() -> Paths:
    """Every path, for any model."""
    return {**_health(), **_open_inference(), **_repository(), **_settings(), **_shared_memory()}


def _health() -> Paths:
    def probe(id: str, key: str, says: str, parameters: Sequence[str] = ()) -> dict[str, Operation]:
        answers = {
            200: answer("Yes.", json_body(record({key: {"const": True}}))),
            503: answer("No.", json_body(ref("Error"))),
        }
        statuses = (404,) if parameters else ()
        return {
            "get": Operation(
                id=id, tag="health", summary=says, answers=answers, parameters=parameters, statuses=statuses
            )
        }

    live = "live", "Whether the process does its work."
    ready = "ready", "Whether requests are taken and every model has answered lately."
    model_ready = "ready", "Whether this model has answered lately."
    paths = {
        "/v2/health/live": probe("live", *live),
        "/v2/health/ready": probe("ready", *ready),
        "/livez": probe("livez", *live),
        "/readyz": probe("readyz", *ready),
    }
    for prefix, suffix, parameters in (_OF_MODEL, _OF_VERSION):
        paths[f"{prefix}/ready"] = probe(f"modelReady{suffix}", *model_ready, parameters)
    return paths


def _open_inference() -> Paths:
    paths = {
        "/v2": query("serverMetadata", "models", "What the server is.", json_body(ref("ServerMetadata"))),
        "/v2/models/stats": query("statistics", "models", "What every model has done.", json_body(ref("Statistics"))),
    }
    for prefix, suffix, parameters in (_OF_MODEL, _OF_VERSION):
        for path, id, says, schema in (
            ("", "modelMetadata", "What a model takes and returns.", "ModelMetadata"),
            ("/config", "modelConfig", "How a model is served.", "ModelConfig"),
            ("/stats", "modelStatistics", "What a model has done.", "Statistics"),
        ):
            paths[prefix + path] = query(
                id + suffix, "models", says, json_body(ref(schema)), parameters=parameters, statuses=(404,)
            )
        body = {**json_body(ref("InferRequest")), RAW: {"schema": _RAW_REQUEST}}
        paths[f"{prefix}/infer"] = infer(f"infer{suffix}", "Runs a model.", body, (*parameters, "JsonBytes"))
    return paths


_RAW_REQUEST = {
    "type": "string",
    "format": "binary",
    "description": (
        "JSON as in the other form, whose inputs have the parameter `binary_data_size` in place of data, and behind it "
        "their raw data, little-endian, in their order. Inference-Header-Content-Length says how much is JSON."
    ),
}


def infer(id: str, summary: str, body: Media, parameters: Sequence[str] = ()) -> dict[str, Operation]:
    """The methods of a path that runs a model."""
    return inference(
        id,
        "inference",
        summary,
        body=body,
        outputs={**json_body(ref("InferResponse")), RAW: {"schema": {"type": "string", "format": "binary"}}},
        parameters=parameters,
        headers={"Inference-Header-Content-Length": {"description": "How much is JSON, if not all.", "schema": COUNT}},
    )


def _repository() -> Paths:
    index = Operation(
        id="repositoryIndex",
        tag="repository",
        summary="The models that are known, and their states.",
        answers={200: answer("One entry for each model.", json_body(ref("RepositoryIndex")))},
        statuses=WITH_BODY,
        body=json_body(ref("RepositoryIndexRequest")),
        needs_body=False,
    )
    paths = {"/v2/repository/index": {"post": index}}
    # Triton would take a configuration here; a model is loaded as the server was given it.
    nothing = {"type": "object", "maxProperties": 0}
    for verb, says, parameters in (
        ("load", "Loads a model that is known.", nothing),
        ("unload", "Unloads a model once it has answered.", {"type": "object"}),
    ):
        post = Operation(
            id=verb,
            tag="repository",
            summary=says,
            answers={200: answer("Done.", json_body({"type": "object"}))},
            statuses=(404, *WITH_BODY, 501),
            parameters=("KnownModel",),
            body=json_body(record({}, {"parameters": parameters})),
            needs_body=False,
        )
        paths[f"/v2/repository/models/{{model}}/{verb}"] = {"post": post}
    return paths


def _not_done(id: str, summary: str, parameters: Sequence[str] = ()) -> Operation:
    return Operation(
        id=id, tag="not supported", summary=summary, answers={}, statuses=(501, *WITH_BODY), parameters=parameters
    )


def _settings() -> Paths:
    """Clients ask for these; nothing can be changed by them."""
    paths: Paths = {}
    for path, id, says, parameters in (
        ("/v2/trace/setting", "traceSettings", "How requests are traced.", ()),
        ("/v2/models/{model}/trace/setting", "traceSettingsOfModel", "How requests are traced.", ("Model",)),
        ("/v2/logging", "logSettings", "What is logged.", ()),
    ):
        statuses = (404,) if parameters else ()
        get = query(id, "models", says, json_body({"type": "object"}), parameters=parameters, statuses=statuses)
        post = _not_done(f"{id}Update", "Not done: say it where the server is started.", parameters)
        paths[path] = {**get, "post": post}
    return paths


def _shared_memory() -> Paths:
    """There is none, so there is nothing to tell of it and nothing to let go."""
    paths: Paths = {}
    for kind in ("systemsharedmemory", "cudasharedmemory"):
        for prefix, suffix, parameters in (
            (f"/v2/{kind}", "", ()),
            (f"/v2/{kind}/region/{{region}}", "OfRegion", ("Region",)),
        ):
            paths[f"{prefix}/status"] = query(
                f"{kind}Status{suffix}", "models", "Always empty.", json_body({"type": "array"}), parameters=parameters
            )
            unregister = Operation(
                id=f"{kind}Unregister{suffix}",
                tag="models",
                summary="Nothing is registered.",
                answers={200: answer("Done.", json_body({"type": "object"}))},
                statuses=WITH_BODY,
                parameters=parameters,
            )
            paths[f"{prefix}/unregister"] = {"post": unregister}
        register = _not_done(f"{kind}Register", "Not done: send the data itself.", ("Region",))
        paths[f"/v2/{kind}/region/{{region}}/register"] = {"post": register}
    return paths
