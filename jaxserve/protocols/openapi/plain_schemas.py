"""The schemas of TensorFlow Serving's form and of OpenAI's, for any model."""

from collections.abc import Mapping

from jaxserve.protocols.embeddings import MAX_TEXTS
from jaxserve.protocols.openapi.schemas import COUNT, FLAG, NAME, TEXT, Schema, array, record
from jaxserve.protocols.predict import SIGNATURE

_PREDICT_OPTIONS: Schema = {"signature_name": {"enum": ["", SIGNATURE], "description": "There is no other."}}


def by_row_or_column(rows: Schema, columns: Schema) -> Schema:
    """A request in TensorFlow Serving's form, whose instances or inputs are like this."""
    return {
        "oneOf": [
            record({"instances": rows}, _PREDICT_OPTIONS, closed=True),
            record({"inputs": columns}, _PREDICT_OPTIONS, closed=True),
        ]
    }


_TENSOR_INFO = record(
    {
        "dtype": {"type": "string", "pattern": "^DT_"},
        "tensor_shape": record(
            {
                "dim": array(record({"size": {"type": "string", "pattern": "^(-1|[0-9]+)$"}, "name": TEXT})),
                "unknown_rank": FLAG,
            }
        ),
        "name": NAME,
    },
)

TENSORFLOW: Mapping[str, Schema] = {
    "PredictRequest": by_row_or_column(
        array(
            {"type": ["number", "string", "boolean", "array", "object"]},
            least=1,
            says="Row by row: objects of named inputs, or bare values where the model has one input.",
        ),
        {"type": ["array", "object"], "description": "Whole inputs by name, or one whole input."},
    ),
    "PredictResponse": {
        "oneOf": [
            record({"predictions": array({}, says="Row by row.")}, closed=True),
            record({"outputs": {"type": ["array", "object"]}}, closed=True),
        ],
        "description": "In the form of the request. Numbers that JSON lacks are the words NaN, Infinity and -Infinity.",
    },
    "ModelStatus": record(
        {
            "model_version_status": array(
                record(
                    {
                        "version": TEXT,
                        "state": {"enum": ["UNKNOWN", "START", "LOADING", "AVAILABLE", "UNLOADING", "END"]},
                        "status": record({"error_code": TEXT, "error_message": TEXT}),
                    }
                ),
                least=1,
            )
        }
    ),
    "ModelSignatures": record(
        {
            "model_spec": record({"name": NAME, "signature_name": TEXT, "version": TEXT}),
            "metadata": record(
                {
                    "signature_def": record(
                        {
                            "signature_def": {
                                "type": "object",
                                "additionalProperties": record(
                                    {
                                        "inputs": {"type": "object", "additionalProperties": _TENSOR_INFO},
                                        "outputs": {"type": "object", "additionalProperties": _TENSOR_INFO},
                                        "method_name": TEXT,
                                    }
                                ),
                            }
                        }
                    )
                }
            ),
        }
    ),
}


def embed_texts(model: Schema, dimensions: Schema) -> Schema:
    """A request in OpenAI's form to such a model, for so many dimensions."""
    text = {"type": "string", "minLength": 1}
    return record(
        {"model": model, "input": {"anyOf": [text, array(text, least=1, most=MAX_TEXTS)]}},
        {
            "encoding_format": {
                "enum": ["float", "base64", None],
                "description": "base64 is of little-endian float32.",
            },
            "dimensions": {**dimensions, "description": "As many as the model makes, or left out."},
            "user": {"type": ["string", "null"], "description": "Not used."},
        },
        closed=True,
    )


OPENAI: Mapping[str, Schema] = {
    "OpenAIError": record(
        {"error": record({"message": TEXT, "type": TEXT, "param": {"type": ["string", "null"]}, "code": TEXT})}
    ),
    "EmbeddingsRequest": embed_texts(NAME, {"type": ["integer", "null"], "minimum": 1}),
    "EmbeddingsResponse": record(
        {
            "object": {"const": "list"},
            "data": array(
                record(
                    {
                        "object": {"const": "embedding"},
                        "index": COUNT,
                        "embedding": {"anyOf": [array({"type": "number"}), TEXT]},
                    }
                ),
                least=1,
            ),
            "model": NAME,
            "usage": record(
                {"prompt_tokens": COUNT, "total_tokens": COUNT}, says="0 where the model does not count its tokens."
            ),
        }
    ),
    "ModelList": record(
        {
            "object": {"const": "list"},
            "data": array(record({"id": NAME, "object": {"const": "model"}, "created": COUNT, "owned_by": TEXT})),
        }
    ),
}
