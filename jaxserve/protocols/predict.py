"""TensorFlow Serving's REST form: `POST /v1/models/{model}:predict`, and what is asked there about a model.

A request comes by rows, `{"instances": [...]}`, each row an object of named inputs, or a bare value where the model
takes one input; or by columns, `{"inputs": ...}`, an object of whole inputs, or one whole input. The answer keeps that
form: `{"predictions": [...]}` or `{"outputs": ...}`, again without a name where the model returns one output.

Numbers that JSON has no form for are written as TensorFlow Serving writes them, as the literals NaN, Infinity and
-Infinity: its clients read them, and null would not say which one it was. An answer without them is plain JSON.
"""

import base64
import binascii
import dataclasses
import itertools
import reprlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import numpy as np
import orjson

from jaxserve.errors import InvalidInput, Unsupported
from jaxserve.protocols.datatypes import with_words
from jaxserve.protocols.nested import NARROW_DTYPES, array_of, word_for

Description = Mapping[str, Any]
"""What the engine's `describe` says about one model."""

Value = np.ndarray | list[str]
State = Literal["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]

SIGNATURE = "serving_default"

_TOP_LEVEL = frozenset({"signature_name", "instances", "inputs"})
_MOST_NAMES, _LONGEST_NAME = 8, 64
_STRING = "string"
_WRITE = orjson.OPT_SERIALIZE_NUMPY
_TENSORFLOW_DTYPES = {
    _STRING: "DT_STRING",
    "bool": "DT_BOOL",
    "float16": "DT_HALF",
    "float32": "DT_FLOAT",
    "float64": "DT_DOUBLE",
}
"""The names that are not just the dtype in capitals."""


@dataclasses.dataclass(frozen=True, slots=True)
class PredictRequest:
    """What a client asks to be predicted.

    Attributes:
        inputs: arrays of the model's dtypes by name, whose shapes are not checked yet; lists of str for text.
        by_row: whether it came by rows, so that the answer goes by rows too.
    """

    inputs: dict[str, Value]
    by_row: bool


def read_request(body: Any, description: Description) -> PredictRequest:
    """The request in a parsed JSON body to the model of this description.

    Raises:
        InvalidInput: the body is no such request, or names or holds what the model does not take.
    """
    if type(body) is not dict:
        raise InvalidInput(
            f"the body is {word_for(body)}, but must be an object with 'instances' (row by row) or 'inputs' (by column)"
        )
    if not _TOP_LEVEL.issuperset(body):
        unknown = _listed(key for key in body if key not in _TOP_LEVEL)
        raise InvalidInput(f"the body has {unknown}; it may have 'instances' or 'inputs', and 'signature_name'")
    by_row = "instances" in body
    if by_row == ("inputs" in body):
        given = "both 'instances' and 'inputs'" if by_row else "neither 'instances' nor 'inputs'"
        raise InvalidInput(f"the body has {given}; send one of them: 'instances' row by row, 'inputs' by column")
    signature = body.get("signature_name", SIGNATURE)
    if signature not in ("", SIGNATURE):
        raise InvalidInput(
            f"signature_name is {reprlib.repr(signature):.80}, but models here have only {SIGNATURE!r}; leave it out"
        )
    specs = description["inputs"]
    values = _columns_of_rows(body["instances"], specs) if by_row else _columns(body["inputs"], specs)
    return PredictRequest({name: _value(name, values[name], spec) for name, spec in specs.items()}, by_row)


def _columns_of_rows(rows: Any, specs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rows of each input by its name."""
    if type(rows) is not list or not rows:
        given = "empty" if type(rows) is list else word_for(rows)
        raise InvalidInput(f"'instances' is {given}, but must be a list of at least one row")
    if len(specs) == 1 and not any(_is_named(row, specs) for row in rows):
        [name] = specs
        return {name: rows}
    names = specs.keys()
    for index, row in enumerate(rows):
        if type(row) is not dict:
            raise InvalidInput(f"instances[{index}] is {word_for(row)}, but must be an object with {_listed(names)}")
        if row.keys() != names:
            raise _wrong_names(f"instances[{index}]", row, names)
    return {name: [row[name] for row in rows] for name in names}


def _columns(columns: Any, specs: Mapping[str, Any]) -> Mapping[str, Any]:
    if len(specs) == 1 and not _is_named(columns, specs):
        [name] = specs
        return {name: columns}
    if type(columns) is not dict:
        raise InvalidInput(f"'inputs' is {word_for(columns)}, but must be an object with {_listed(specs.keys())}")
    if columns.keys() != specs.keys():
        raise _wrong_names("'inputs'", columns, specs.keys())
    return columns


def _is_named(value: Any, specs: Mapping[str, Any]) -> bool:
    """Whether this is an object of named inputs, and not one value that is written as an object."""
    return type(value) is dict and not (value.keys() == {"b64"} and "b64" not in specs)


def _wrong_names(what: str, given: Mapping[str, Any], names: Collection[str]) -> InvalidInput:
    missing = [name for name in names if name not in given]
    unknown = [name for name in given if name not in names]
    parts = [f"lacks {_listed(missing)}"] if missing else []
    parts += [f"has {_listed(unknown)}, which the model does not take"] if unknown else []
    return InvalidInput(f"{what} {' and '.join(parts)}; it must have {_listed(names)}, and nothing else")


def _value(name: str, value: Any, spec: Mapping[str, Any]) -> Value:
    return _texts(name, value) if spec["dtype"] == _STRING else array_of(value, spec, name=name)


def _texts(name: str, value: Any) -> list[str]:
    if type(value) is not list:
        raise InvalidInput(f"input {name!r} is {word_for(value)}, but must be a list of texts")
    if set(map(type, value)) <= {str}:
        return value
    return [text if type(text) is str else _text_of_bytes(name, index, text) for index, text in enumerate(value)]


def _text_of_bytes(name: str, index: int, value: Any) -> str:
    """The text that `{"b64": ...}` stands for: bytes which models here only take where they are text."""
    encoded = value.get("b64") if type(value) is dict and len(value) == 1 else None
    if type(encoded) is not str:
        raise InvalidInput(
            f'input {name!r} has {word_for(value)} at {index}, but must be text there, or {{"b64": "..."}} of text'
        )
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"input {name!r} has bytes at {index} that are no UTF-8 text ({error.reason} at byte {error.start}); "
            f"models here take text and numbers, so decode what it is before sending it"
        ) from error
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"input {name!r} has at {index} a 'b64' that is not base64: {error}") from error


def write_response(outputs: Mapping[str, Value], *, by_row: bool) -> bytes:
    """The answer that holds these outputs, which all have one row for each of the request.

    Raises:
        Unsupported: an output is of complex numbers.
    """
    columns = {name: _writable(name, value) for name, value in outputs.items()}
    if not by_row:
        whole = {name: column if _is_finite(column) else _with_literals(column) for name, column in columns.items()}
        return orjson.dumps({"outputs": _bare(whole)}, option=_WRITE)
    if len(columns) == 1:
        [column] = columns.values()
        predictions: Any = column if _is_finite(column) else _with_literals(column)
    else:
        rows = [column if _is_finite(column) else map(_with_literals, column) for column in columns.values()]
        predictions = [dict(zip(columns, row, strict=True)) for row in zip(*rows, strict=True)]
    return orjson.dumps({"predictions": predictions}, option=_WRITE)


def _bare(named: Mapping[str, Any]) -> Any:
    return next(iter(named.values())) if len(named) == 1 else named


def _writable(name: str, value: Value) -> Value:
    """The value as orjson takes it: C-contiguous and of a dtype that it knows."""
    if isinstance(value, list):
        return value
    if value.dtype.kind == "c":
        raise Unsupported(f"output {name!r} is {value.dtype.name}, which JSON has no form for; ask in another protocol")
    if value.dtype.name in NARROW_DTYPES:
        return value.astype(np.float32)
    return np.ascontiguousarray(value)


def _is_finite(value: Value) -> bool:
    return isinstance(value, list) or value.dtype.kind != "f" or bool(np.isfinite(value).all())


def _with_literals(value: Any) -> orjson.Fragment:
    """JSON of an array or a number in which NaN and the infinities are literals."""
    return orjson.Fragment(with_words(orjson.dumps(value, option=_WRITE), np.asarray(value)))


def status(state: State, reason: str = "") -> dict[str, Any]:
    """The answer to `GET /v1/models/{model}`: the state of its one version, and why it is not to be had."""
    error = {"error_code": "UNAVAILABLE" if reason else "OK", "error_message": reason}
    return {"model_version_status": [{"version": "1", "state": state, "status": error}]}


def write_metadata(description: Description) -> bytes:
    """The answer to `GET /v1/models/{model}/metadata`: what the model takes and returns."""
    signature = {
        "inputs": {name: _tensor_info(name, spec) for name, spec in description["inputs"].items()},
        "outputs": {name: _tensor_info(name, spec) for name, spec in description["outputs"].items()},
        "method_name": "tensorflow/serving/predict",
    }
    spec = {"name": description["name"], "signature_name": "", "version": "1"}
    return orjson.dumps({"model_spec": spec, "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}}})


def _tensor_info(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    dims = [
        {"size": "-1", "name": dim} if isinstance(dim, str) else {"size": str(dim), "name": ""} for dim in spec["shape"]
    ]
    dtype = _TENSORFLOW_DTYPES.get(spec["dtype"], f"DT_{spec['dtype'].upper()}")
    return {"dtype": dtype, "tensor_shape": {"dim": dims, "unknown_rank": False}, "name": name}


def _listed(names: Iterable[str]) -> str:
    """Names that perhaps a stranger chose: a few of them, none at length."""
    first = [repr(name[:_LONGEST_NAME]) for name in itertools.islice(names, _MOST_NAMES + 1)]
    return ", ".join(first if len(first) <= _MOST_NAMES else [*first[:_MOST_NAMES], "..."])
