"""What the Open Inference Protocol says of a server and its models, as plain values of its own field names.

HTTP answers them as JSON; gRPC parses them into its messages, whose fields have the same names.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from jaxserve.metrics import ModelObservation
from jaxserve.protocols.datatypes import config_type_of, datatype_of

NAME = "jaxserve"
VERSION = version("jaxserve")
MODEL_VERSION = "1"
"""The only version that a model has."""
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "statistics",
)

# Nothing of these can be changed: they are answered because clients ask for them.
TRACE_SETTINGS: Mapping[str, Any] = {
    "trace_level": ["OFF"],
    "trace_rate": "1",
    "trace_count": "-1",
    "log_frequency": "0",
}
LOG_SETTINGS: Mapping[str, Any] = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}


def server_metadata() -> dict[str, Any]:
    """What the server is."""
    return {"name": NAME, "version": VERSION, "extensions": list(EXTENSIONS)}


def model_metadata(description: Mapping[str, Any]) -> dict[str, Any]:
    """What a model takes and returns; a variable dimension is -1.

    Args:
        description: of the model, as an engine gives it.
    """

    def tensors(specs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [
            {"name": name, "datatype": datatype_of(spec["dtype"]), "shape": _dims(spec["shape"])}
            for name, spec in specs.items()
        ]

    return {
        "name": description["name"],
        "versions": [MODEL_VERSION],
        "platform": NAME,
        "inputs": tensors(description["inputs"]),
        "outputs": tensors(description["outputs"]),
    }


def model_config(description: Mapping[str, Any]) -> dict[str, Any]:
    """How a model is served; its dimensions are those after the batch."""

    def tensors(specs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [
            {"name": name, "data_type": config_type_of(spec["dtype"]), "dims": _dims(spec["shape"])[1:] or [1]}
            for name, spec in specs.items()
        ]

    parameters = {"profiled_latency_s": f"{description['latency_s']:.6g}"}
    if description["deadline_s"] is not None:
        parameters["deadline_s"] = f"{description['deadline_s']:g}"
    return {
        "name": description["name"],
        "platform": NAME,
        "backend": NAME,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": max(description["batch_sizes"]),
        "input": tensors(description["inputs"]),
        "output": tensors(description["outputs"]),
        "instance_group": [
            {"name": f"group_{group}", "kind": "KIND_MODEL", "count": 1} for group in description["groups"]
        ],
        "dynamic_batching": {"preferred_batch_size": description["batch_sizes"]},
        "parameters": {name: {"string_value": value} for name, value in parameters.items()},
    }


def model_statistics(name: str, model: ModelObservation, *, last_inference_ms: int) -> dict[str, Any]:
    """What a model has done since it was loaded.

    `compute_input` is the wait for pre-processing and that itself, `compute_output` what came after the last stage.

    Args:
        name: of the model.
        model: its counters.
        last_inference_ms: when it last answered, in milliseconds since 1970; 0 for never.
    """
    metrics = model.metrics
    failed = metrics.refused + metrics.expired + metrics.failed + metrics.cancelled
    return {
        "name": name,
        "version": MODEL_VERSION,
        "last_inference": last_inference_ms,
        "inference_count": metrics.rows_served,
        "execution_count": metrics.batches,
        "inference_stats": {
            "success": _duration(metrics.served, metrics.latency.sum),
            "fail": _duration(failed, metrics.unserved_s),
            "queue": _duration(metrics.computed, metrics.queue.sum),
            "compute_input": _duration(metrics.computed, metrics.preparation.sum),
            "compute_infer": _duration(metrics.computed, metrics.compute_s),
            "compute_output": _duration(metrics.served, metrics.output_s),
            "cache_hit": _duration(0, 0.0),
            "cache_miss": _duration(0, 0.0),
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _duration(times.count, 0.0),
                "compute_infer": _duration(times.count, times.compute_s),
                "compute_output": _duration(times.count, 0.0),
            }
            for rows, times in sorted(metrics.batch_times.items())
        ],
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(1e9 * seconds)}


def _dims(shape: Sequence[int | str]) -> list[int]:
    return [-1 if isinstance(dim, str) else dim for dim in shape]
