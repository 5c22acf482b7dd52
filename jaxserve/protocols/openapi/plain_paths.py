"""The paths of plain JSON, TensorFlow Serving's and OpenAI's, and of what people and their dashboards look at."""

from collections.abc import Sequence

from jaxserve.protocols.openapi.models import Description, embeddings_request
from jaxserve.protocols.openapi.operations import Media, Operation, Paths, inference, json_body, query
from jaxserve.protocols.openapi.schemas import TEXT, ref


def paths(models: Sequence[Description]) -> Paths:
    """Every path, for any model; of `models` those that embed are asked for embeddings."""
    return {**_predict(), **_openai(models), **_site()}


def _predict() -> Paths:
    paths: Paths = {}
    for prefix, suffix, parameters in (
        ("/v1/models/{model}", "", ("Model",)),
        ("/v1/models/{model}/versions/{version}", "OfVersion", ("Model", "Version")),
    ):
        body = json_body(ref("PredictRequest"))
        paths[f"{prefix}:predict"] = predict(f"predict{suffix}", "Runs a model.", body, parameters)
        for path, id, says, schema in (
            ("", "modelStatus", "Whether a model is to be had.", "ModelStatus"),
            ("/metadata", "modelSignatures", "What a model takes and returns.", "ModelSignatures"),
        ):
            paths[prefix + path] = query(
                id + suffix, "predict", says, json_body(ref(schema)), parameters=parameters, statuses=(404,)
            )
    return paths


def predict(id: str, summary: str, body: Media, parameters: Sequence[str] = ()) -> dict[str, Operation]:
    """The methods of a path that runs a model in TensorFlow Serving's form."""
    return inference(
        id, "predict", summary, body=body, outputs=json_body(ref("PredictResponse")), parameters=parameters
    )


def _openai(models: Sequence[Description]) -> Paths:
    body, outputs = json_body(embeddings_request(models)), json_body(ref("EmbeddingsResponse"))
    return {
        "/v1/embeddings": inference("embeddings", "openai", "Embeds texts.", body=body, outputs=outputs),
        "/v1/models": query("listModels", "openai", "The models that are served.", json_body(ref("ModelList"))),
    }


def _site() -> Paths:
    def text(*types: str) -> Media:
        return {f"text/{each}": {"schema": TEXT} for each in types}

    metrics = {**text("plain"), "application/openmetrics-text": {"schema": TEXT}}
    return {
        "/": query("page", "operation", "The live page.", text("html")),
        "/page/{file}": query(
            "pageFile",
            "operation",
            "A file of the live page.",
            text("javascript", "css"),
            parameters=("File",),
            statuses=(404,),
        ),
        "/events": query("events", "operation", "What the live page shows, as it changes.", text("event-stream")),
        "/metrics": query("metrics", "operation", "Metrics for Prometheus.", metrics),
        "/openapi.json": query("openapi", "operation", "This document.", json_body({"type": "object"})),
    }
