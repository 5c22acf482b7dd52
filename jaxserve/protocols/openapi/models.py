"""What one model's requests look like, as JSON Schemas and examples made from its description.

No schema can say that two inputs agree in a variable dimension, or that a shape and its data do; what is wrong there
the server refuses although it fits. Sizes of large tensors are left out, for who reads the schema, or makes values
after it, is not helped by a list of 150,528 elements.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxserve.errors import Unsupported
from jaxserve.protocols.datatypes import datatype_of
from jaxserve.protocols.embeddings import is_embedder, size_of
from jaxserve.protocols.openapi.plain_schemas import by_row_or_column, embed_texts
from jaxserve.protocols.openapi.schemas import INFER_OPTIONS, OUTPUT_PARAMETERS, Schema, array, record, ref

Description = Mapping[str, Any]

_MOST_SIZED, _MOST_SHOWN = 1024, 64
_STRING = "string"
_EXAMPLES = {"boolean": True, "integer": 1, "number": 0.5}
_BOUNDS: Mapping[str, float] = {
    "float32": 2.0**128 - 2.0**103,
    "float16": 65_520.0,
    "bfloat16": 2.0**128 - 2.0**119,
    "float8_e5m2": 61_440.0,
    "float8_e4m3fn": float(np.nextafter(np.float32(464), np.float32(math.inf))),
}
"""The least numbers that round to more than the dtype can hold."""


def predict_request(description: Description) -> Schema:
    """A request in TensorFlow Serving's form."""
    specs = description["inputs"]
    most = max(description["batch_sizes"])
    rows = {name: _nested(spec["shape"][1:], spec["dtype"]) for name, spec in specs.items()}
    columns = {name: array(row, least=1, most=most) for name, row in rows.items()}
    by_row: Schema = array(record(rows, closed=True), least=1, most=most)
    by_column: Schema = record(columns, closed=True)
    if len(specs) == 1:
        [column] = columns.values()
        by_row, by_column = {"anyOf": [column, by_row]}, {"anyOf": [column, by_column]}
    return by_row_or_column(by_row, by_column)


def predict_example(description: Description) -> Any | None:
    """One row in that form; None where it would be large."""
    values = _values(description)
    if values is None:
        return None
    if len(values) == 1:
        return {"instances": next(iter(values.values()))}
    return {"instances": [{name: value[0] for name, value in values.items()}]}


def infer_request(description: Description) -> Schema | None:
    """A request of the Open Inference Protocol in JSON; None where the model takes what that has no form for."""
    try:
        datatypes = {name: datatype_of(spec["dtype"]) for name, spec in description["inputs"].items()}
    except Unsupported:
        return None
    if "BF16" in datatypes.values():
        return None
    inputs = [
        record(
            {
                "name": {"const": name},
                "datatype": {"const": datatypes[name]},
                "shape": _sizes(spec["shape"], max(description["batch_sizes"])),
                "data": ref("Data"),
            }
        )
        for name, spec in description["inputs"].items()
    ]
    asked = record({"name": {"enum": list(description["outputs"])}}, {"parameters": OUTPUT_PARAMETERS})
    return record(
        {"inputs": array({"anyOf": inputs}, least=len(inputs), most=len(inputs))},
        {**INFER_OPTIONS, "outputs": array(asked, most=len(description["outputs"]))},
    )


def infer_example(description: Description) -> Any | None:
    """A request for one row in that form; None where it would be large."""
    values = _values(description)
    if values is None:
        return None
    return {"inputs": [_tensor(name, value, description["inputs"][name]) for name, value in values.items()]}


def embeddings_request(descriptions: Sequence[Description]) -> Schema:
    """A request in OpenAI's form to one of those models that embed texts; to any where none is there."""
    schemas = [
        embed_texts({"const": description["name"]}, {"enum": [size_of(description), None]})
        for description in descriptions
        if is_embedder(description)
    ]
    return ref("EmbeddingsRequest") if not schemas else schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _tensor(name: str, value: list[Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "shape": _small(spec["shape"]),
        "datatype": datatype_of(spec["dtype"]),
        "data": np.array(value, object).reshape(-1).tolist(),
    }


def _values(description: Description) -> dict[str, list[Any]] | None:
    """One row of each input by its name, of size 1 where sizes vary."""
    specs = description["inputs"]
    if any(math.prod(_small(spec["shape"])) > _MOST_SHOWN for spec in specs.values()):
        return None
    return {name: _filled(spec) for name, spec in specs.items()}


def _filled(spec: Mapping[str, Any]) -> list[Any]:
    value = "a sentence" if spec["dtype"] == _STRING else _EXAMPLES[_kind(spec["dtype"])]
    return np.full(_small(spec["shape"]), value, object).tolist()


def _small(shape: Sequence[int | str]) -> list[int]:
    return [1 if isinstance(dim, str) else dim for dim in shape]


def _nested(shape: Sequence[int | str], dtype: str) -> Schema:
    """Values of this shape and dtype."""
    is_sized = math.prod(_small(shape)) <= _MOST_SIZED
    schema = _value(dtype)
    for dim in reversed(shape):
        if isinstance(dim, str):
            schema = array(schema, least=1, says=f"As many as {dim!r} is.")
        elif is_sized:
            schema = array(schema, least=dim, most=dim)
        else:
            schema = array(schema, says=f"{dim} of them.")
    return schema


def _value(dtype: str) -> Schema:
    if dtype == _STRING:
        return {"type": "string", "description": 'Or {"b64": "..."} of its UTF-8.'}
    kind = _kind(dtype)
    if kind == "integer":
        limits = np.iinfo(dtype)
        return {"type": kind, "minimum": int(limits.min), "maximum": int(limits.max)}
    if dtype in _BOUNDS:
        return {"type": kind, "exclusiveMinimum": -_BOUNDS[dtype], "exclusiveMaximum": _BOUNDS[dtype]}
    return {"type": kind}


def _kind(dtype: str) -> str:
    """What JSON Schema calls numbers of a dtype."""
    return "boolean" if dtype == "bool" else "integer" if np.dtype(dtype).kind in "iu" else "number"


def _sizes(shape: Sequence[int | str], largest_batch: int) -> Schema:
    """The shape of a tensor, whose first dimension is the batch."""
    batch = {"type": "integer", "minimum": 1, "maximum": largest_batch}
    others = [{"type": "integer", "minimum": 1} if isinstance(dim, str) else {"const": dim} for dim in shape[1:]]
    return {**array({"type": "integer"}, least=len(shape), most=len(shape)), "prefixItems": [batch, *others]}
