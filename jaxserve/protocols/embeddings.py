"""OpenAI's form of embeddings, `POST /v1/embeddings`, and of the list of models, `GET /v1/models`.

A model answers here if its description names, as its `embedder`, the input that takes the text and the output that is
the embedding. The model's name is in the body, so a request is read in two steps: `read_request` for what can be
checked without the model, `batches_of` for the rest.
"""

import base64
import dataclasses
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from jaxserve.errors import InvalidInput, ModelFailed

Description = Mapping[str, Any]
"""What the engine's `describe` says about one model."""

MAX_TEXTS = 2048
"""The most texts in one request, which is OpenAI's limit."""

_FIELDS = frozenset({"model", "input", "encoding_format", "dimensions", "user"})
_FORMATS = ("float", "base64")
_ERROR_TYPES: Mapping[int, str] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingsRequest:
    """What a client wants embedded.

    Attributes:
        model: the model's name.
        texts: at least one, none of them empty.
        as_base64: whether the numbers go back as base64 of little-endian float32, and not as JSON numbers.
        dimensions: how many numbers an embedding shall have; None for as many as the model makes.
    """

    model: str
    texts: list[str]
    as_base64: bool = False
    dimensions: int | None = None


def read_request(body: Any) -> EmbeddingsRequest:
    """The request in a parsed JSON body.

    Raises:
        InvalidInput: it is none; `param` in its details is the field at fault, where it is one.
    """
    if type(body) is not dict:
        raise InvalidInput("the body must be an object with 'model' and 'input'")
    if not _FIELDS.issuperset(body):
        unknown = next(key for key in body if key not in _FIELDS)[:64]
        raise InvalidInput(f"the body has {unknown!r}; it may have {', '.join(sorted(_FIELDS))}", param=unknown)
    model = body.get("model")
    if type(model) is not str or not model:
        raise _wrong("model", model, "the name of a model that embeds texts")
    encoding_format = body.get("encoding_format")
    if encoding_format is not None and encoding_format not in _FORMATS:
        raise _wrong("encoding_format", encoding_format, '"float" or "base64"')
    dimensions = body.get("dimensions")
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        raise _wrong("dimensions", dimensions, "a whole number of at least 1; or leave it out")
    user = body.get("user")
    if user is not None and type(user) is not str:
        raise _wrong("user", user, "a text; it is not used here, so it may be left out")
    return EmbeddingsRequest(
        model=model,
        texts=_texts(body.get("input")),
        as_base64=encoding_format == "base64",
        dimensions=dimensions,
    )


def _texts(given: Any) -> list[str]:
    texts: list[Any] = [given] if type(given) is str else given
    if type(texts) is not list or not texts:
        raise _wrong("input", given, f"a text, or a list of 1 to {MAX_TEXTS} texts")
    if len(texts) > MAX_TEXTS:
        raise InvalidInput(f"input has {len(texts)} texts; send at most {MAX_TEXTS} at a time", param="input")
    for index, text in enumerate(texts):
        if type(text) is int or type(text) is list:
            raise InvalidInput(
                "input is of token ids, which depend on a tokenizer that the client need not know; send the text",
                param="input",
            )
        if type(text) is not str:
            raise _wrong(f"input[{index}]", text, "a text", param="input")
        if not text:
            where = "input" if texts is not given else f"input[{index}]"
            raise InvalidInput(f"{where} is an empty text, which has no embedding; leave it out", param="input")
    return texts


def _wrong(what: str, given: Any, needed: str, *, param: str | None = None) -> InvalidInput:
    is_given = "is missing or null" if given is None else f"is {reprlib.repr(given):.80}"
    return InvalidInput(f"{what} {is_given}, but must be {needed}", param=param or what)


def is_embedder(description: Description) -> bool:
    """Whether this model embeds texts."""
    return description.get("embedder") is not None


def size_of(description: Description) -> int:
    """How many numbers an embedding of this model has."""
    return description["outputs"][description["embedder"]["output"]]["shape"][-1]


def batches_of(request: EmbeddingsRequest, description: Description) -> list[dict[str, list[str]]]:
    """The inputs of the model of this description that the request stands for, as few as the model can take.

    Clients of OpenAI send thousands of texts at once, and models here take what their largest batch holds.

    Raises:
        InvalidInput: the model is no embedder, or its embeddings have another size than was asked for.
    """
    name = description["name"]
    if not is_embedder(description):
        raise InvalidInput(
            f"model {name!r} makes no embeddings; name one that does, or ask this one at /v1/models/{name}:predict",
            param="model",
        )
    embedder = description["embedder"]
    size = size_of(description)
    if request.dimensions is not None and request.dimensions != size:
        raise InvalidInput(
            f"dimensions is {request.dimensions}, but the embeddings of {name!r} have {size}, and cannot be cut; "
            f"leave it out",
            param="dimensions",
        )
    most, texts = max(description["batch_sizes"]), request.texts
    return [{embedder["input"]: texts[start : start + most]} for start in range(0, len(texts), most)]


def write_response(
    request: EmbeddingsRequest,
    outputs: Sequence[Mapping[str, np.ndarray | list[str]]],
    description: Description,
    *,
    tokens: int | None = None,
) -> bytes:
    """The answer that holds the embeddings, whatever their dtype, as float32.

    Clients read `usage` without asking whether it is there, some of them into numbers that cannot be null. So where
    nobody counted the tokens it says 0, which no count can be: a text that is not empty has at least one.

    Args:
        request: that is answered.
        outputs: of the model, for each of the request's batches in turn.
        description: of the model.
        tokens: how many the texts have together; None where that is not known.

    Raises:
        ModelFailed: an embedding is not finite, for which OpenAI's form has no words.
    """
    name = description["embedder"]["output"]
    parts = [np.asarray(each[name], np.float32) for each in outputs]
    vectors = np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))
    finite = np.isfinite(vectors)
    if not finite.all():
        index = int(np.argmin(finite.all(axis=1)))
        raise ModelFailed(
            f"model {request.model!r} made an embedding of text {index} that is not finite", model=request.model
        )
    embeddings: Iterable[Any] = vectors
    if request.as_base64:
        embeddings = [base64.b64encode(vector).decode() for vector in vectors]
    count = tokens or 0
    answer = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": embedding}
            for index, embedding in enumerate(embeddings)
        ],
        "model": request.model,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def model(name: str, *, created_unix_s: float) -> dict[str, Any]:
    """One model as `GET /v1/models` lists it; also one that embeds nothing."""
    return {"id": name, "object": "model", "created": int(created_unix_s), "owned_by": "jaxserve"}


def write_error(message: str, *, http_status: int, code: str, param: str | None = None) -> bytes:
    """The body of an answer that is an error, by which `openai` makes its exceptions."""
    kind = _ERROR_TYPES.get(http_status, "server_error" if http_status >= 500 else "invalid_request_error")
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})
