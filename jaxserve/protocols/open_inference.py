"""Open Inference Protocol (V2) over HTTP: bodies of inference requests and of their answers.

A body is JSON, or JSON and then the raw data of the tensors in their order; a header of HTTP then says how long the
JSON is. A client sends the same JSON again and again, but for the request's id, which it puts first. So JSON of up to a
kilobyte is remembered without its id, together with where its tensors are in the data behind it: reading the next
request like it is one look into a dictionary and one view for each tensor. The JSON of answers is remembered alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from jaxserve.errors import InvalidInput
from jaxserve.protocols.datatypes import (
    BYTES,
    DTYPES,
    Value,
    check_shape,
    from_json,
    from_raw,
    to_json,
    to_raw,
)
from jaxserve.protocols.infer_request import (
    LONGEST_ID,
    MAX_TENSORS,
    NONE,
    Answer,
    InferRequest,
    RequestedOutput,
    answers,
    check_id,
    check_number_of_tensors,
    check_outputs,
    check_unique,
    quoted,
    read_count,
    read_parameters,
    refuse_shared_memory,
    requested_output,
)
from jaxserve.protocols.json_recall import learn, learn_answer, recall, recall_answer, split_id, split_numbers
from jaxserve.protocols.json_text import MAX_DEPTH, MAX_ELEMENTS, read_json
from jaxserve.protocols.remembered import LONGEST_BYTES, Remembered, Seen, seen_of
from jaxserve.protocols.tensors import COPY_UP_TO_BYTES, Buffer

__all__ = ["LONGEST_ID", "MAX_TENSORS", "InferRequest", "RequestedOutput", "check_outputs", "read_infer", "write_infer"]

_BINARY_SIZE = "binary_data_size"

# Reading

_seen: Remembered[bytes, Seen] = Remembered()


def read_infer(
    body: Buffer,
    json_bytes: int | None,
    *,
    max_tensors: int = MAX_TENSORS,
    max_json_elements: int = MAX_ELEMENTS,
    max_json_depth: int = MAX_DEPTH,
) -> InferRequest:
    """The request that a body holds. Arrays are views of it, and not aligned.

    Args:
        body: all of it, decompressed.
        json_bytes: how much of it is JSON, with raw data behind; None where all of it is.
        max_tensors: the most inputs, and the most requested outputs.
        max_json_elements: see `read_json`.
        max_json_depth: see `read_json`.

    Raises:
        InvalidInput: whatever is wrong with it.
    """
    head = members = parts = None
    if json_bytes is None:
        if type(body) is bytes and len(body) <= max_json_elements:
            parts = split_numbers(body)
            known = None if parts is None else recall(parts)
            if known is not None:
                return known
    elif 0 < json_bytes <= LONGEST_BYTES:
        head = bytes(body[:json_bytes])
        id, members = split_id(head)
        seen = _seen.get(members) if members is not None else None
        if seen is not None and len(body) == json_bytes + seen.data_bytes and len(seen.tensors) <= max_tensors:
            return seen.fill(id, body if type(body) is bytes else memoryview(body).toreadonly(), json_bytes)
    document = _read_document(body, json_bytes, head, max_json_elements, max_json_depth)
    id = check_id(document.get("id", ""))
    parameters = read_parameters(_parameters_of(document, "the request"))
    outputs = _read_outputs(document, parameters.binary_output, max_tensors)
    entries = _entries(document, "inputs", max_tensors)
    inputs = _read_inputs(entries, body, json_bytes)
    request = InferRequest(id, inputs, outputs, *parameters)
    if members is not None and b'"id"' not in members and b"\\" not in members:  # it has no second id
        seen = None if any("data" in entry for entry in entries) else seen_of(request)
        if seen is not None:
            _seen.keep(members, seen)
    if parts is not None and len(entries) == 1:
        learn(parts, entries[0]["datatype"], inputs, outputs, parameters)
    return request


def _read_document(
    body: Buffer, json_bytes: int | None, head: bytes | None, max_elements: int, max_depth: int
) -> dict[str, Any]:
    if json_bytes is None:
        what = "the body (no Inference-Header-Content-Length says that only its start is JSON)"
        document = read_json(body, max_elements=max_elements, max_depth=max_depth, what=what)
    elif not 0 < json_bytes <= len(body):
        raise InvalidInput(
            f"Inference-Header-Content-Length is {json_bytes}, but the body has {len(body)} bytes; it must say how "
            f"many of them are JSON, which comes first"
        )
    else:
        text = body[:json_bytes] if head is None else head
        document = read_json(text, max_elements=max_elements, max_depth=max_depth, what="the JSON of the body")
    if type(document) is not dict:
        raise InvalidInput('the body must be a JSON object, such as {"inputs": [...]}')
    return document


def _entries(document: Mapping[str, Any], key: str, max_tensors: int) -> list[dict[str, Any]]:
    """The inputs or the requested outputs: a list of objects, each with a name of its own."""
    entries = document.get(key)
    if type(entries) is not list:
        raise InvalidInput(f'{key} must be a list, such as [{{"name": "x", ...}}]')
    check_number_of_tensors(len(entries), max_tensors, key)
    names: list[str] = []
    for index, entry in enumerate(entries):
        name = entry.get("name") if type(entry) is dict else None
        if type(name) is not str or not name:
            raise InvalidInput(f'{key}[{index}] must be an object with a name, such as {{"name": "x", ...}}')
        names.append(name)
    check_unique(names, key.removesuffix("s"))
    return entries


def _parameters_of(holder: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    parameters = holder.get("parameters", NONE)
    if parameters is not NONE and type(parameters) is not dict:
        raise InvalidInput(f"parameters of {what} must be an object")
    return parameters


def _read_outputs(
    document: Mapping[str, Any], binary_output: bool, max_tensors: int
) -> tuple[RequestedOutput, ...] | None:
    if document.get("outputs", []) == []:  # an empty list asks for nothing in particular
        return None
    found: list[RequestedOutput] = []
    for entry in _entries(document, "outputs", max_tensors):
        name = entry["name"]
        found.append(requested_output(name, _parameters_of(entry, f"output {quoted(name)}"), binary=binary_output))
    return tuple(found)


def _read_inputs(entries: Sequence[Mapping[str, Any]], body: Buffer, json_bytes: int | None) -> dict[str, Value]:
    inputs: dict[str, Value] = {}
    end = len(body)
    start = end if json_bytes is None else json_bytes
    view = memoryview(body).toreadonly()
    for entry in entries:
        name = entry["name"]
        what = f"input {quoted(name)}"
        datatype = entry.get("datatype")
        if type(datatype) is not str:
            raise InvalidInput(f"{what} has no datatype; there are {', '.join((*DTYPES, BYTES))}")
        shape = check_shape(entry.get("shape"), what=what)
        parameters = _parameters_of(entry, what)
        refuse_shared_memory(parameters, what)
        if _BINARY_SIZE in parameters:
            if "data" in entry:
                raise InvalidInput(f"{what} has data and {_BINARY_SIZE}; send it in one form")
            size_bytes = read_count(parameters[_BINARY_SIZE], f"{what}: {_BINARY_SIZE}")
            if size_bytes > end - start:
                hint = "; the header Inference-Header-Content-Length is missing" if json_bytes is None else ""
                raise InvalidInput(f"{what}: {_BINARY_SIZE} is {size_bytes}, but {end - start} bytes are left{hint}")
            inputs[name] = from_raw(datatype, shape, view[start : start + size_bytes], what=what)
            start += size_bytes
        elif "data" in entry:
            inputs[name] = from_json(datatype, shape, entry["data"], what=what)
        else:
            raise InvalidInput(f"{what} has neither data nor the parameter {_BINARY_SIZE}")
    if start != end:
        raise InvalidInput(
            f"{end - start} bytes are left over after the data of all inputs; each that is raw must say its "
            f"{_BINARY_SIZE}"
        )
    return inputs


# Writing

_forms: Remembered[tuple[Any, ...], bytes] = Remembered()


def write_infer(
    request: InferRequest, outputs: Mapping[str, Value], *, model: str, version: str = "1"
) -> tuple[list[Buffer], int | None]:
    """The body of the answer to a request, and how much of it is JSON if not all is.

    Large arrays are not copied: they must not change until they are sent. What is small is one piece.

    Raises:
        InvalidInput: there is no such output, or no such form of it.
        Unsupported: an output is of a dtype that the protocol has no name for.
    """
    asked = request.outputs
    key = _form_key(request, outputs, model, version)
    if key is None:
        pass
    elif (members := _forms.get(key)) is not None:
        values = outputs.values() if asked is None else [outputs[output.name] for output in asked]
        return _joined(_with_id(request.id, members), map(to_raw, values))
    elif len(outputs) == 1:
        [value] = outputs.values()
        known = recall_answer(key, value)  # pyright: ignore[reportArgumentType]  # a key says that it is an array
        if known is not None:
            before, data, after = known
            return [b"".join((_with_id(request.id, before), data, after))], None
    found = answers(request, outputs)
    binary = [answer for answer in found if answer.binary]
    raw = [to_raw(answer.value) for answer in binary]
    sizes_bytes = iter(map(len, raw))
    entries = [_entry(answer, next(sizes_bytes) if answer.binary else None) for answer in found]
    document = {"model_name": model, "model_version": version, "outputs": entries}
    members = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)[1:]
    if not binary:
        if key is not None and len(found) == 1 and isinstance(found[0].value, np.ndarray):
            learn_answer(key, document)
        return [_with_id(request.id, members)], None
    if key is not None and all(_is_as_it_is_sent(answer) for answer in found):
        _forms.keep(key, members)
    return _joined(_with_id(request.id, members), raw)


def _form_key(request: InferRequest, outputs: Mapping[str, Value], model: str, version: str) -> tuple[Any, ...] | None:
    """What the JSON of an answer depends on; None where a value is no array."""
    try:
        if len(outputs) == 1:  # almost always; half the time of the general case
            [(name, value)] = outputs.items()
            return model, version, request.outputs, request.binary_output, name, value.dtype, value.shape  # pyright: ignore
        layout = tuple([(name, value.dtype, value.shape) for name, value in outputs.items()])  # pyright: ignore
        return model, version, request.outputs, request.binary_output, layout
    except AttributeError:
        return None


def _is_as_it_is_sent(answer: Answer) -> bool:
    """Whether the JSON of an answer is the same for every value of its layout."""
    return answer.binary and isinstance(answer.value, np.ndarray)


def _entry(answer: Answer, size_bytes: int | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": answer.name, "datatype": answer.datatype, "shape": answer.shape}
    if size_bytes is None:
        entry["data"] = to_json(answer.value, what=f"output {quoted(answer.name)}")
    else:
        entry["parameters"] = {_BINARY_SIZE: size_bytes}
    return entry


def _with_id(id: str, members: bytes) -> bytes:
    return b'{"id":%b,%b' % (orjson.dumps(id), members) if id else b"{" + members


def _joined(head: bytes, raw: Iterable[Buffer]) -> tuple[list[Buffer], int]:
    parts: list[Buffer] = [head, *raw]
    if all(type(part) is bytes for part in parts) and sum(map(len, parts)) <= COPY_UP_TO_BYTES:
        parts = [b"".join(parts)]
    return parts, len(head)
