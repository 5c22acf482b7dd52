"""How schemas [JSON Schema, draft 2020-12] are put together, and those of the Open Inference Protocol for any model.

Requests are described as strictly as they are read; of answers, what a client may rely on.
"""

from collections.abc import Mapping
from typing import Any

from jaxserve.protocols.datatypes import BYTES, DTYPES
from jaxserve.protocols.open_inference import LONGEST_ID, MAX_TENSORS
from jaxserve.protocols.tensors import MAX_NDIM
from jaxserve.request import LONGEST_TENANT

Schema = Mapping[str, Any]

COUNT: Schema = {"type": "integer", "minimum": 0}
TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}


def ref(name: str) -> Schema:
    """One of `SCHEMAS` where it is used."""
    return {"$ref": f"#/components/schemas/{name}"}


def record(
    required: Mapping[str, Any], optional: Mapping[str, Any] | None = None, *, closed: bool = False, says: str = ""
) -> Schema:
    """An object with these members; with no others if it is closed."""
    schema: dict[str, Any] = {"type": "object", "properties": {**required, **(optional or {})}}
    if required:
        schema["required"] = list(required)
    if closed:
        schema["additionalProperties"] = False
    if says:
        schema["description"] = says
    return schema


def array(items: Schema, *, least: int = 0, most: int | None = None, says: str = "") -> Schema:
    """A list of such items."""
    schema: dict[str, Any] = {"type": "array", "items": items}
    if least:
        schema["minItems"] = least
    if most is not None:
        schema["maxItems"] = most
    if says:
        schema["description"] = says
    return schema


INFER_OPTIONS: Mapping[str, Schema] = {
    "id": {"type": "string", "maxLength": LONGEST_ID, "description": "Comes back with the answer."},
    "parameters": ref("InferParameters"),
}
OUTPUT_PARAMETERS = record(
    {},
    {
        "binary_data": FLAG,
        "classification": {
            **COUNT,
            "description": "So many of the greatest values, as `value:index`; 0 for all values.",
        },
    },
)

_STATISTIC_DURATIONS = ("compute_input", "compute_infer", "compute_output")

OPEN_INFERENCE: Mapping[str, Schema] = {
    "Error": record(
        {
            "error": {**TEXT, "description": "What was given, what is needed and how to mend it."},
            "code": {**NAME, "description": "What it is called, for programs."},
        }
    ),
    "Datatype": {"type": "string", "enum": [*DTYPES, BYTES]},
    "ServerMetadata": record({"name": TEXT, "version": TEXT, "extensions": array(TEXT)}),
    "TensorMetadata": record(
        {
            "name": NAME,
            "datatype": ref("Datatype"),
            "shape": array(
                {"type": "integer", "minimum": -1}, says="A variable dimension is -1; the first is the batch."
            ),
        }
    ),
    "ModelMetadata": record(
        {
            "name": NAME,
            "versions": array(TEXT),
            "platform": TEXT,
            "inputs": array(ref("TensorMetadata")),
            "outputs": array(ref("TensorMetadata")),
        }
    ),
    "TensorConfig": record(
        {
            "name": NAME,
            "data_type": {"type": "string", "pattern": "^TYPE_"},
            "dims": array({"type": "integer", "minimum": -1}, says="Without the batch."),
        }
    ),
    "ModelConfig": record(
        {
            "name": NAME,
            "platform": TEXT,
            "backend": TEXT,
            "max_batch_size": COUNT,
            "input": array(ref("TensorConfig")),
            "output": array(ref("TensorConfig")),
        }
    ),
    "Duration": record({"count": COUNT, "ns": COUNT}),
    "ModelStatistics": record(
        {
            "name": NAME,
            "version": TEXT,
            "last_inference": {**COUNT, "description": "Milliseconds since 1970; 0 for never."},
            "inference_count": COUNT,
            "execution_count": COUNT,
            "inference_stats": record(
                dict.fromkeys(
                    ("success", "fail", "queue", *_STATISTIC_DURATIONS, "cache_hit", "cache_miss"), ref("Duration")
                )
            ),
            "batch_stats": array(
                record({"batch_size": COUNT, **dict.fromkeys(_STATISTIC_DURATIONS, ref("Duration"))}),
            ),
        }
    ),
    "Statistics": record({"model_stats": array(ref("ModelStatistics"))}),
    "RepositoryIndexRequest": record({}, {"ready": {**FLAG, "description": "Only models that are ready."}}),
    "RepositoryIndex": array(
        record(
            {"name": NAME, "state": {"enum": ["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]}},
            {"version": TEXT, "reason": TEXT},
        )
    ),
    "Data": {
        "type": "array",
        "items": {"anyOf": [{"type": ["number", "string", "boolean"]}, ref("Data")]},
        "description": "Flat in row-major order, or nested as the shape says.",
    },
    "Shape": array(COUNT, most=MAX_NDIM),
    "InferParameters": record(
        {},
        {
            "timeout": {**COUNT, "description": "Microseconds until the answer is worthless; 0 for the model's own."},
            "priority": {**COUNT, "description": "1 is the highest, greater is lower; 0 for the default."},
            "tenant": {
                "type": "string",
                "maxLength": LONGEST_TENANT,
                "description": "Without a token: for whom it is.",
            },
            "binary_data_output": {**FLAG, "description": "Whether outputs come as raw data."},
        },
    ),
    "InferInput": record(
        {
            "name": NAME,
            "datatype": {"enum": [*(name for name in DTYPES if name != "BF16"), BYTES]},
            "shape": ref("Shape"),
            "data": ref("Data"),
        }
    ),
    "RequestedOutput": record({"name": NAME}, {"parameters": OUTPUT_PARAMETERS}),
    "InferRequest": record(
        {"inputs": array(ref("InferInput"), least=1, most=MAX_TENSORS)},
        {
            **INFER_OPTIONS,
            "outputs": array(ref("RequestedOutput"), most=MAX_TENSORS, says="All of them where this is left out."),
        },
    ),
    "InferResponse": record(
        {
            "model_name": NAME,
            "model_version": TEXT,
            "outputs": array(
                record(
                    {"name": NAME, "datatype": ref("Datatype"), "shape": ref("Shape")},
                    {"data": ref("Data"), "parameters": record({}, {"binary_data_size": COUNT})},
                )
            ),
        },
        {"id": TEXT},
    ),
}
