"""Every codec with what is fed to it, and what must hold of what it makes of that."""

import copy
import json
import math
import random
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from jaxserve.errors import InvalidInput, ModelFailed, ProtocolError, Unauthenticated, Unsupported
from jaxserve.protocols import embeddings, messages, native, open_inference, open_inference_grpc, predict
from jaxserve.protocols.bearer import token_in
from jaxserve.protocols.datatypes import DTYPES, Value, datatype_of_value
from jaxserve.protocols.grpc_messages import ModelInferResponse, ModelStreamInferResponse
from jaxserve.protocols.infer_request import InferRequest, RequestedOutput, check_outputs
from jaxserve.protocols.json_text import read_json
from jaxserve.server.http.body import Budget, Refused, decompress
from jaxserve.server.limits import Limits
from tests.fuzzing import native_traffic
from tests.fuzzing.grpc_requests import grpc_request
from tests.fuzzing.http_traffic import Draft, binary_infer, compress
from tests.fuzzing.http_words import EMBEDDINGS_FORMS, JSON_FORMS, PREDICT_FORMS
from tests.fuzzing.mutations import damage, damage_json, hostile_value, write_json
from tests.protocols.comparable import comparable
from tests.protocols.descriptions import MODELS, described

_SMALL = Limits(max_body_bytes=2**20)
_BYPASS = b" " * 1100
"""JSON that is this much longer is never remembered."""
_PAD = bytes([0xC2, 0x3E]) + b"\x80\x80\x05" + bytes(5 * 2**14)
"""A field of protobuf that nobody knows (number 1000), so long that the message is a large one."""
_SHORT_PAD = bytes([0xC2, 0x3E, 1, 0])
_LETTERS = described(
    "letters",
    {"text": (["batch"], "string")},
    {"embedding": (["batch", 26], "float32")},
    embedder={"input": "text", "output": "embedding"},
)
_AFFINE = described("affine", {"x": (["batch", 4], "float32")}, {"output": (["batch", 4], "float32")})
_MIXED = described(
    "mixed",
    {
        "flags": (["batch", 3], "bool"),
        "counts": (["batch", 2, 2], "int32"),
        "halves": (["batch", 3], "float16"),
        "brains": (["batch", 3], "bfloat16"),
    },
    {"counted": (["batch", 2, 2], "int32")},
)
_DESCRIPTIONS = (*MODELS, _LETTERS, _AFFINE, _MIXED)


class Wrong(Exception):
    """Something that must hold does not; with what is wrong, and the input."""

    def __init__(self, what: str, detail: str, input: bytes) -> None:
        super().__init__(what)
        self.what, self.detail, self.input = what, detail, input


def _holds(holds: bool, what: str, detail: object, input: bytes) -> None:
    if not holds:
        raise Wrong(what, str(detail)[:2000], input)


def _outcome(input: bytes, call: Callable[[], Any], *allowed: type[Exception]) -> Any:
    """What a call returns, or the error that it may raise."""
    try:
        return call()
    except allowed as error:
        _holds(bool(str(error)) and len(str(error)) < 4000, "a message is empty or long", str(error), input)
        return error
    except Exception as error:
        raise Wrong(f"{type(error).__name__}: {str(error)[:80]}", _trace(error), input) from error


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-1500:]


def _name(result: Any) -> str:
    return type(result).__name__ if isinstance(result, Exception) else "read"


def json_texts(rng: random.Random) -> str:
    """`read_json`."""
    document = rng.choice((*(form for _, form in JSON_FORMS), hostile_value(rng)))
    text = write_json(rng, damage_json(rng, document) if rng.random() < 0.7 else document)
    if rng.random() < 0.5:
        text = damage(rng, text)
    max_elements, max_depth = rng.choice(((2**20, 64), (100, 5), (8, 1)))
    result = _outcome(text, lambda: read_json(text, max_elements=max_elements, max_depth=max_depth), InvalidInput)
    if not isinstance(result, Exception):
        _holds(_depth(result) <= max_depth, "a value is nested deeper than allowed", _depth(result), text)
        _holds(_elements(result) <= max(max_elements, len(text)), "a value has more elements than allowed", "", text)
        again = _outcome(text, lambda: read_json(json.dumps(result).encode()), InvalidInput)
        _holds(repr(again) == repr(result), "a value is not read again as it was written", again, text)
        view = _outcome(
            text, lambda: read_json(memoryview(text), max_elements=max_elements, max_depth=max_depth), InvalidInput
        )
        _holds(repr(view) == repr(result), "a view is read otherwise", view, text)
    return _name(result)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, list | dict)]:
        depth += 1
        level = [item for each in level for item in (each.values() if isinstance(each, dict) else each)]
    return depth


def _elements(value: Any) -> int:
    count, level = 0, [value]
    while level := [each for each in level if isinstance(each, list | dict)]:
        level = [item for each in level for item in (each.values() if isinstance(each, dict) else each)]
        count += len(level)
    return count


def v2_bodies(rng: random.Random) -> str:
    """`open_inference.read_infer`, and `write_infer` of what it has read."""
    json_bytes: int | None
    if rng.random() < 0.6:
        _, body, json_bytes = binary_infer(rng)
        text, raw = body[:json_bytes], body[json_bytes:]
        match rng.randrange(5):
            case 0:
                raw = damage(rng, raw, text)
            case 1:
                text = write_json(rng, damage_json(rng, json.loads(text)))
            case 2:
                text = damage(rng, text, raw)
            case 3:
                json_bytes += rng.choice((-1, 1, -json_bytes, 10**9))
            case _:
                pass
        if rng.random() < 0.8:
            json_bytes = len(text)
        body = text + raw
    else:
        document = rng.choice(JSON_FORMS)[1]
        body = write_json(rng, damage_json(rng, document) if rng.random() < 0.8 else document)
        json_bytes = None if rng.random() < 0.7 else len(body)
        text, raw = body, b""
    first = _outcome(body, lambda: open_inference.read_infer(body, json_bytes), InvalidInput)
    again = _outcome(body, lambda: open_inference.read_infer(bytearray(body), json_bytes), InvalidInput)
    if isinstance(first, InferRequest) or isinstance(again, InferRequest):  # what is wrong may be said in other words
        _holds(comparable(first) == comparable(again), "a view is read otherwise", [first, again], body)
    if json_bytes is not None and json_bytes == len(text):
        longer = text + _BYPASS + raw
        other = _outcome(body, lambda: open_inference.read_infer(longer, len(text) + len(_BYPASS)), InvalidInput)
        if isinstance(first, InferRequest) or isinstance(other, InferRequest):
            _holds(comparable(first) == comparable(other), "what is remembered is read otherwise", [first, other], body)
    if isinstance(first, InferRequest):
        _check_request(first, body)
        _write_v2(rng, first, body)
    return _name(first)


def _check_request(request: InferRequest, input: bytes) -> None:
    for name, value in request.inputs.items():
        if isinstance(value, list):
            _holds(all(type(text) is str for text in value), "texts that are none", name, input)
        else:
            _holds(value.dtype in DTYPES.values(), "a dtype that is none of the protocol's", value.dtype, input)
            _holds(value.nbytes <= 64 * len(input) + 64, "an array is larger than its text", value.nbytes, input)
            value.tobytes()  # touches every byte
    _holds(request.timeout_s is None or 0 < request.timeout_s < math.inf, "a timeout", request.timeout_s, input)
    _holds(-10 <= request.priority <= 10, "a priority", request.priority, input)


def _write_v2(rng: random.Random, request: InferRequest, input: bytes) -> None:
    """Answers a request with its own inputs."""
    for _ in range(2):  # the second time with what was remembered
        wrong = _outcome(input, lambda: check_outputs(request, request.inputs), InvalidInput)
        written = _outcome(
            input, lambda: open_inference.write_infer(request, request.inputs, model="m"), InvalidInput, Unsupported
        )
        if isinstance(written, Exception):
            continue
        _holds(wrong is None, "outputs that there are not were written", wrong, input)
        parts, json_bytes = written
        whole = b"".join(parts)
        head = whole if json_bytes is None else whole[:json_bytes]
        document = json.loads(head)
        _holds(document.get("id", "") == request.id, "another id came back", document, input)
        start = len(head)
        for entry in document["outputs"]:
            _check_output(entry, request, whole, start, input)
            start += entry.get("parameters", {}).get("binary_data_size", 0)
        _holds(start == len(whole), "bytes are left over in an answer", start, input)


def _check_output(entry: Mapping[str, Any], request: InferRequest, whole: bytes, start: int, input: bytes) -> None:
    value = request.inputs[entry["name"]]
    asked = {output.name: output for output in request.outputs or ()}.get(entry["name"], RequestedOutput(""))
    if asked.classification:
        return
    _holds(entry["datatype"] == datatype_of_value(value, what=""), "another datatype came back", entry, input)
    if "data" in entry:
        if isinstance(value, list):
            same = entry["data"] == value
        else:
            same = np.array_equal(
                np.array(entry["data"], value.dtype), value.ravel(), equal_nan=value.dtype.kind == "f"
            )
        _holds(same, "other data came back", entry, input)
    elif isinstance(value, np.ndarray):
        size_bytes = entry["parameters"]["binary_data_size"]
        _holds(whole[start : start + size_bytes] == value.tobytes(), "other raw data came back", entry, input)


def grpc_messages(rng: random.Random) -> str:
    """`open_inference_grpc.receive`, and `write_infer` of what it has read."""
    data = grpc_request(rng).SerializeToString()
    if rng.random() < 0.7:
        data = damage(rng, data, grpc_request(rng).SerializeToString())
    first = _outcome(data, lambda: open_inference_grpc.receive(data), InvalidInput)
    again = _outcome(data, lambda: open_inference_grpc.receive(data), InvalidInput)
    _holds(comparable(first) == comparable(again), "the second time it is read otherwise", [first, again], data)
    for pad in (_PAD, _SHORT_PAD):
        other = _outcome(data, lambda pad=pad: open_inference_grpc.receive(pad + data), InvalidInput)
        if not isinstance(first, Exception) or not isinstance(other, Exception):
            _holds(comparable(first) == comparable(other), "behind an unknown field it is read otherwise", other, data)
    _outcome(data, lambda: open_inference_grpc.about(data))
    if isinstance(first, Exception):
        return _name(first)
    request = first.request
    _check_request(request, data)
    for _ in range(2):
        written = _outcome(
            data, lambda: open_inference_grpc.write_infer(request, request.inputs, model="m"), InvalidInput, Unsupported
        )
        if not isinstance(written, Exception):
            answer = ModelInferResponse.FromString(written)
            _holds(answer.id == request.id, "another id came back", answer.id, data)
            _holds(len(answer.outputs) == len(answer.raw_output_contents), "outputs without data", answer, data)
    streamed = _outcome(
        data,
        lambda: open_inference_grpc.write_stream_answer(request, request.inputs, model="m"),
        InvalidInput,
        Unsupported,
    )
    if not isinstance(streamed, Exception):
        ModelStreamInferResponse.FromString(streamed)
    return "read"


def predictions(rng: random.Random) -> str:
    """`predict.read_request` and `write_response`."""
    document = rng.choice(PREDICT_FORMS)[1]
    text = write_json(rng, damage_json(rng, document) if rng.random() < 0.8 else document)
    description = rng.choice(_DESCRIPTIONS)
    document = _outcome(text, lambda: read_json(text), InvalidInput)
    if isinstance(document, Exception):
        return _name(document)
    before = copy.deepcopy(document)
    result = _outcome(text, lambda: predict.read_request(document, description), InvalidInput)
    _holds(repr(document) == repr(before), "a document was changed by reading it", document, text)
    if isinstance(result, predict.PredictRequest):
        _holds(result.inputs.keys() == description["inputs"].keys(), "other inputs", result, text)
        for name, value in result.inputs.items():
            dtype = description["inputs"][name]["dtype"]
            if isinstance(value, list):
                _holds(
                    dtype == "string" and all(type(item) is str for item in value), "texts that are none", name, text
                )
            else:
                _holds(value.dtype.name == dtype, "another dtype", value.dtype, text)
        rows = min((len(value) for value in result.inputs.values() if np.ndim(value)), default=0)
        columns: dict[str, Value] = {name: value[:rows] for name, value in result.inputs.items() if np.ndim(value)}  # pyright: ignore
        if columns:
            written = _outcome(text, lambda: predict.write_response(columns, by_row=result.by_row), Unsupported)
            if not isinstance(written, Exception):
                read = json.loads(written)  # which knows the words NaN and Infinity
                _holds(read.keys() <= {"predictions", "outputs"}, "another answer", written, text)
    return _name(result)


def embedded(rng: random.Random) -> str:
    """`embeddings.read_request` and `batches_of`."""
    document = rng.choice(EMBEDDINGS_FORMS)
    text = write_json(rng, damage_json(rng, document) if rng.random() < 0.9 else document)
    document = _outcome(text, lambda: read_json(text), InvalidInput)
    if isinstance(document, Exception):
        return _name(document)
    result = _outcome(text, lambda: embeddings.read_request(document), InvalidInput)
    if isinstance(result, embeddings.EmbeddingsRequest):
        _holds(all(type(each) is str and each for each in result.texts), "texts that are none", result, text)
        batches = _outcome(text, lambda: embeddings.batches_of(result, _LETTERS), InvalidInput)
        if not isinstance(batches, Exception):
            together = [each for batch in batches for each in batch["text"]]
            _holds(together == result.texts, "the batches are not the texts", batches, text)
            size = embeddings.size_of(_LETTERS)
            outputs = [{"embedding": np.full((len(batch["text"]), size), 0.5, np.float32)} for batch in batches]
            answer = _outcome(text, lambda: embeddings.write_response(result, outputs, _LETTERS), ModelFailed)
            if not isinstance(answer, Exception):
                _holds(len(orjson.loads(answer)["data"]) == len(result.texts), "an embedding is missing", answer, text)
    error = result if isinstance(result, InvalidInput) else InvalidInput("x")
    _outcome(
        text,
        lambda: embeddings.write_error(
            str(error), http_status=400, code="invalid_input", param=str(error.details.get("param"))
        ),
    )
    return _name(result)


def native_frames(rng: random.Random) -> str:
    """`native.Decoder` at both ends, in pieces and whole."""
    if rng.random() < 0.7:
        data, is_right = native_traffic.stream(rng)
        end = "server"
    else:
        welcome = native_traffic.encoded(messages.Welcome(1, 2**26, 8, "fuzzer"))
        sent = [native_traffic.from_server(rng) for _ in range(rng.choice((1, 2, 5)))]
        data = native.PREAMBLE + welcome + b"".join(map(native_traffic.encoded, sent))
        is_right, end = rng.random() < 0.3, "client"
        if not is_right:
            data = damage(rng, data, native_traffic.hostile_frame(rng))
    whole = _outcome(data, lambda: native.Decoder(end=end).feed(data))  # pyright: ignore[reportArgumentType]
    decoder = native.Decoder(end=end, max_frame_bytes=2**26)  # pyright: ignore[reportArgumentType]
    pieces: list[Any] = []
    cuts = sorted(rng.randint(0, len(data)) for _ in range(rng.randint(0, 5)))
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        pieces += _outcome(data, lambda start=start, stop=stop: decoder.feed(data[start:stop]))
    same = comparable(whole) == comparable(pieces)
    _holds(same or _began_otherwise(whole, pieces), "in pieces it is read otherwise", [whole, pieces], data)
    failed = [each for each in whole if isinstance(each, ProtocolError)]
    _holds(not (is_right and failed), "what is right was refused", failed, data)
    for message in whole:
        if isinstance(message, messages.Infer | messages.Result):
            again = native_traffic.encoded(message)
            opened = native.Decoder(end=end)  # pyright: ignore[reportArgumentType]
            greeting = messages.Hello([1], 2**26, "x") if end == "server" else messages.Welcome(1, 2**26, 8, "x")
            read = opened.feed(native.PREAMBLE + native_traffic.encoded(greeting) + again)[1:]
            _holds(comparable(read) == comparable([message]), "a message is not read again as written", read, data)
    return "refused" if failed else "read"


def _began_otherwise(whole: Sequence[Any], pieces: Sequence[Any]) -> bool:
    """Whether both refuse the preamble, and only show more or less of what came instead."""
    first = [each[0] if each else None for each in (whole, pieces)]
    return all(isinstance(each, ProtocolError) and "does not speak" in str(each) for each in first)


def compressed_bodies(rng: random.Random) -> str:
    """`decompress`, of bodies that are so small that it does not wait for a thread."""
    draft = Draft(method="POST", body=write_json(rng, rng.choice(JSON_FORMS)[1]))
    compress(rng, draft)
    body, encoding = draft.body[:4096], draft.headers[-1][1]
    budget = Budget(2**20)

    def inflate() -> bytes:
        with budget.share() as share:
            return bytes(_at_once(decompress(body, encoding, _SMALL, share)))

    result = _outcome(body, inflate, InvalidInput, Refused)
    _holds(budget.used_bytes == 0, "a budget was not given back", budget.used_bytes, body)
    if isinstance(result, bytes):
        _holds(len(result) <= _SMALL.max_body_bytes, "more was made than is allowed", len(result), body)
    return _name(result)


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that does not wait for anything."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("it waits")


def bearers(rng: random.Random) -> str:
    """`token_in`."""
    text = damage(rng, b"Bearer 0123456789abcdef").decode("latin-1")
    return _name(_outcome(text.encode(), lambda: token_in(text), Unauthenticated))


TARGETS: Mapping[str, tuple[Callable[[random.Random], str], int]] = {
    "json": (json_texts, 3),
    "v2": (v2_bodies, 6),
    "grpc": (grpc_messages, 4),
    "predict": (predictions, 3),
    "embeddings": (embedded, 2),
    "native": (native_frames, 5),
    "compressed": (compressed_bodies, 2),
    "bearer": (bearers, 1),
}
"""By name, and how often each has its turn."""
