"""Open Inference Protocol (V2) over gRPC: messages of inference requests and of their answers.

A field of two bytes may become, once it is parsed, an object of a hundred. So the fields of a large message are
counted on the wire before it is parsed. Its raw tensors are then cut out where they are: they are not parsed, and so
not copied.

An answer is put together of serialised parts. What depends on the model, the names, dtypes and shapes alone is made by
protobuf once and remembered; the id and the raw tensors, which differ, are fields that are written behind it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from jaxserve.errors import InvalidInput
from jaxserve.protocols.datatypes import BYTES, MAX_STRINGS, Value, check_shape, from_raw, layout, to_raw
from jaxserve.protocols.grpc_messages import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from jaxserve.protocols.grpc_recall import RAW, Received, learn, recall
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
    check_unique,
    read_parameters,
    refuse_shared_memory,
    requested_output,
)
from jaxserve.protocols.json_text import MAX_ELEMENTS
from jaxserve.protocols.protobuf_wire import fields, tag_of, varint
from jaxserve.protocols.remembered import Remembered
from jaxserve.protocols.tensors import COPY_UP_TO_BYTES, Buffer, Malformed, tensor_view

SMALL_BYTES = 64 * 1024
"""A message up to this size is parsed without further thought."""
MAX_FIELDS = 16_384
"""The most fields that a larger message may have, those of its inputs and requested outputs included."""
LONGEST_ELEMENT_BYTES = 10
"""What an element of typed contents takes at most; strings take more."""

_FINAL = "triton_final_response"

_INPUTS, _OUTPUTS = tag_of(5), tag_of(6)  # of ModelInferRequest
_CONTENTS = tag_of(5)  # of InferInputTensor
_ID_OUT, _RAW_OUT = varint(tag_of(3)), varint(tag_of(6))  # of ModelInferResponse
_INFER_RESPONSE = varint(tag_of(2))  # of ModelStreamInferResponse

# Where the elements of a datatype are in InferTensorContents.
_LISTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}


# Reading


def receive(data: bytes, *, max_tensors: int = MAX_TENSORS, max_elements: int = MAX_ELEMENTS) -> Received:
    """The request that a serialised `ModelInferRequest` is. Arrays are views of it where it is large, and not aligned.

    Args:
        data: the message.
        max_tensors: the most inputs, and the most requested outputs.
        max_elements: the most elements that typed contents may have, over all inputs.

    Raises:
        InvalidInput: whatever is wrong with it.
    """
    received = recall(data, max_tensors)
    if received is not None:
        return received
    message, raw = _parse(data, max_elements)
    inputs = _read_inputs(message, raw, max_tensors, max_elements)
    parameters = read_parameters(_plain(message.parameters) if message.parameters else NONE)
    outputs = _read_outputs(message, max_tensors)
    request = InferRequest(check_id(message.id), inputs, outputs, *parameters)
    received = Received(message.model_name, message.model_version, request)
    if raw and not any(isinstance(value, list) for value in inputs.values()):
        learn(data, received, list(map(len, raw)))
    return received


def about(data: bytes) -> dict[str, str]:
    """What a message that was refused says of itself, to be said again; nothing where it cannot be told."""
    try:
        message, _ = _parse(data, MAX_ELEMENTS)
    except InvalidInput:
        return {}
    return {"id": message.id[:LONGEST_ID], "model": message.model_name, "version": message.model_version}


def _parse(data: bytes, max_elements: int) -> tuple[Any, Sequence[Buffer]]:
    """The `ModelInferRequest` that bytes hold, and its raw tensors, which it may then not have itself."""
    raw: Sequence[Buffer] | None = None
    try:
        if len(data) > SMALL_BYTES:
            data, raw = _without_raw(data, max_elements)
        message = ModelInferRequest.FromString(data)
    except (DecodeError, Malformed):
        raise InvalidInput("the message is not a ModelInferRequest") from None
    return message, message.raw_input_contents if raw is None else raw


def _without_raw(data: bytes, max_elements: int) -> tuple[bytes, list[Buffer]]:
    """A large message without its raw tensors, and these."""
    view = memoryview(data)
    rest: list[Buffer] = []
    raw: list[Buffer] = []
    count = contents_bytes = rest_start = 0
    for field in fields(data, 0, len(data)):
        count += 1
        if field.tag == RAW:
            rest.append(view[rest_start : field.start])
            raw.append(view[field.value_start : field.stop])
            rest_start = field.stop
        elif field.tag in (_INPUTS, _OUTPUTS):
            for inner in fields(data, field.value_start, field.stop):
                count += 1
                if field.tag == _INPUTS and inner.tag == _CONTENTS:
                    contents_bytes += inner.stop - inner.value_start
                _check_fields(count)
        _check_fields(count)
    if contents_bytes > LONGEST_ELEMENT_BYTES * max_elements:
        raise _too_many_elements(max_elements)
    rest.append(view[rest_start:])
    return b"".join(rest), raw


def _check_fields(count: int) -> None:
    if count > MAX_FIELDS:
        raise InvalidInput(f"the message has more than {MAX_FIELDS} fields; send fewer tensors, and them raw")


def _too_many_elements(max_elements: int) -> InvalidInput:
    return InvalidInput(f"contents of more than {max_elements} elements; send large tensors in raw_input_contents")


def _read_inputs(message: Any, raw: Sequence[Buffer], max_tensors: int, max_elements: int) -> dict[str, Value]:
    given = message.inputs
    check_number_of_tensors(len(given), max_tensors, "inputs")
    if raw and len(raw) != len(given):
        raise InvalidInput(
            f"{len(raw)} raw_input_contents for {len(given)} inputs; there must be one for each, or none"
        )
    inputs: dict[str, Value] = {}
    left = max_elements
    for index, tensor in enumerate(given):
        name = tensor.name
        what = f"input {name!r:.80}"
        if not name:
            raise InvalidInput(f"inputs[{index}] has no name")
        if name in inputs:
            raise InvalidInput(f"{what} is there twice; say it once")
        if tensor.parameters:
            refuse_shared_memory(tensor.parameters, what)
        if not raw:
            value = _from_contents(tensor, left, what=what)
            left -= len(value) if isinstance(value, list) else value.size
        elif tensor.HasField("contents"):
            raise InvalidInput(f"{what} has contents, but the request has raw_input_contents; send all in one form")
        else:
            value = from_raw(tensor.datatype, tuple(tensor.shape), raw[index], what=what)
        inputs[name] = value
    return inputs


def _read_outputs(message: Any, max_tensors: int) -> tuple[RequestedOutput, ...] | None:
    outputs = message.outputs
    if not outputs:
        return None
    check_number_of_tensors(len(outputs), max_tensors, "outputs")
    check_unique([output.name for output in outputs], "output")
    return tuple([requested_output(output.name, _plain(output.parameters), binary=True) for output in outputs])


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Typed parameters as plain values; None for one that has none."""
    plain: dict[str, Any] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        plain[name] = None if choice is None else getattr(parameter, choice)
    return plain


def _from_contents(tensor: Any, max_elements: int, *, what: str) -> Value:
    """The value of a tensor whose elements are typed."""
    datatype, shape = tensor.datatype, check_shape(tuple(tensor.shape), what=what)
    expected = _LISTS.get(datatype)
    if expected is None:
        layout(datatype, shape, what=what)  # says what there is, if that is nothing
        raise InvalidInput(f"{what}: {datatype} has no form in contents; send it in raw_input_contents")
    for field, _ in tensor.contents.ListFields():
        if field.name != expected:
            raise InvalidInput(f"{what} has {field.name}; elements of {datatype} belong in {expected}")
    elements = getattr(tensor.contents, expected)
    if len(elements) > max_elements:
        raise _too_many_elements(max_elements)
    if datatype == BYTES:
        return _strings(shape, elements, what=what)
    dtype, size_bytes = layout(datatype, shape, what=what)
    count = size_bytes // dtype.itemsize
    if len(elements) != count:
        raise InvalidInput(f"{what}: shape {list(shape)} takes {count} elements, but contents has {len(elements)}")
    try:
        return np.fromiter(elements, dtype, count).reshape(shape)
    except OverflowError:
        raise InvalidInput(f"{what}: a number is out of the range of {datatype}") from None


def _strings(shape: tuple[int, ...], elements: Sequence[bytes], *, what: str) -> list[str]:
    if shape != (len(elements),) or len(elements) > MAX_STRINGS:
        raise InvalidInput(
            f"{what}: {len(elements)} strings of shape {list(shape)}; models take a list of at most {MAX_STRINGS}, "
            f"whose shape is their number"
        )
    strings: list[str] = []
    for index, element in enumerate(elements):
        try:
            strings.append(element.decode())
        except UnicodeDecodeError:
            raise InvalidInput(f"{what}: string {index} is not UTF-8") from None
    return strings


# Writing


class _Form(NamedTuple):
    """A serialised answer without its id and its data, which differ.

    Attributes:
        opening: all fields but those, and the tag and the length of the first raw tensor.
        others: the tags and the lengths of the other ones.
    """

    opening: bytes
    others: Sequence[bytes]


_forms: Remembered[tuple[Any, ...], _Form] = Remembered()


def write_infer(request: InferRequest, outputs: Mapping[str, Value], *, model: str, version: str = "1") -> bytes:
    """The serialised `ModelInferResponse` of a request.

    Raises:
        InvalidInput: there is no such output.
        Unsupported: an output is of a dtype that the protocol has no name for.
    """
    return b"".join(_answer(request, outputs, model, version))


def write_stream_answer(
    request: InferRequest, outputs: Mapping[str, Value], *, model: str, version: str = "1"
) -> bytes:
    """The serialised `ModelStreamInferResponse` of a request: its only one, and so the final one.

    Raises:
        InvalidInput, Unsupported: as `write_infer`.
    """
    parts = _answer(request, outputs, model, version)
    parts.append(_FINAL_PARAMETER)
    return b"".join((_INFER_RESPONSE, varint(sum(map(len, parts))), *parts))


def write_stream_error(text: str, *, id: str = "", model: str = "", version: str = "") -> bytes:
    """The serialised `ModelStreamInferResponse` of a request that was not served; the final one."""
    response = ModelStreamInferResponse(error_message=text)
    answer = response.infer_response
    answer.id, answer.model_name, answer.model_version = id, model, version
    answer.MergeFromString(_FINAL_PARAMETER)
    return response.SerializeToString()


def _answer(request: InferRequest, outputs: Mapping[str, Value], model: str, version: str) -> list[Buffer]:
    """The parts of an answer. Fields may stand in any order, so the id comes last."""
    asked = request.outputs
    form = key = None
    try:
        if len(outputs) == 1:  # almost always; half the time of the general case
            [(name, value)] = outputs.items()
            form = _forms.get(key := (model, version, asked, name, value.dtype, value.shape))  # pyright: ignore
            if form is not None:
                parts = [form.opening, value.tobytes() if value.nbytes <= COPY_UP_TO_BYTES else tensor_view(value)]  # pyright: ignore
                return parts if not request.id else _with_id(parts, request.id)
        else:
            layout = tuple([(name, value.dtype, value.shape) for name, value in outputs.items()])  # pyright: ignore
            form = _forms.get(key := (model, version, asked, layout))
    except AttributeError:  # a list, which says not how long it is when serialised
        key = None
    if form is None:
        found = answers(request, outputs)
        values = [answer.value for answer in found]
        form = _make_form(found, model, version)
        if key is not None and all(isinstance(value, np.ndarray) and value.dtype.isnative for value in values):
            _forms.keep(key, form)
    else:
        values = outputs.values() if asked is None else [outputs[output.name] for output in asked]
    parts: list[Buffer] = [form.opening]
    for head, value in zip((b"", *form.others), values, strict=False):
        parts += (head, to_raw(value))
    return parts if not request.id else _with_id(parts, request.id)


def _with_id(parts: list[Buffer], id: str) -> list[Buffer]:
    encoded = id.encode()
    return [*parts, _ID_OUT, varint(len(encoded)), encoded]


def _make_form(found: Sequence[Answer], model: str, version: str) -> _Form:
    response = ModelInferResponse(model_name=model, model_version=version)
    heads: list[bytes] = []
    for answer in found:
        response.outputs.add(name=answer.name, datatype=answer.datatype, shape=answer.shape)
        value = answer.value
        size_bytes = len(to_raw(value)) if isinstance(value, list) else value.nbytes
        heads.append(_RAW_OUT + varint(size_bytes))
    return _Form(b"".join((response.SerializeToString(), *heads[:1])), heads[1:])


def _final_parameter() -> bytes:
    response = ModelInferResponse()
    response.parameters[_FINAL].bool_param = True
    return response.SerializeToString()


_FINAL_PARAMETER = _final_parameter()
