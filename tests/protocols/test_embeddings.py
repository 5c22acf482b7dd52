"""OpenAI's form: read as OpenAI reads it, answered so that its own client takes it."""

import base64

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from openai.types import CreateEmbeddingResponse, Model

from jaxserve.errors import InvalidInput, ModelFailed
from jaxserve.protocols import embeddings
from jaxserve.protocols.embeddings import EmbeddingsRequest, batches_of, read_request, write_response
from tests.protocols import strategies
from tests.protocols.descriptions import MINILM, MLP

texts = st.lists(strategies.texts.filter(bool), min_size=1, max_size=8)
vectors = arrays(np.float32, (1, 4), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


def answer(request: EmbeddingsRequest, *parts: np.ndarray, tokens: int | None = None) -> bytes:
    return write_response(request, [{"embedding": part} for part in parts], MINILM, tokens=tokens)


@given(texts, st.sampled_from([None, "float", "base64"]), st.sampled_from([None, 4]), st.sampled_from([None, "me"]))
def test_a_request_is_read(given_texts, encoding_format, dimensions, user):
    body = {"model": "minilm", "input": given_texts, "encoding_format": encoding_format, "user": user}
    request = read_request(body | {"dimensions": dimensions})
    assert request == EmbeddingsRequest(
        model="minilm", texts=given_texts, as_base64=encoding_format == "base64", dimensions=dimensions
    )
    batches = batches_of(request, MINILM)
    assert [text for batch in batches for text in batch["text"]] == given_texts
    assert all(len(batch["text"]) == 3 for batch in batches[:-1])
    assert 1 <= len(batches[-1]["text"]) <= 3


def test_one_text_goes_without_a_list():
    assert read_request({"model": "minilm", "input": "a"}) == EmbeddingsRequest(model="minilm", texts=["a"])


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (["a"], None, "the body must be an object with 'model' and 'input'"),
        ({"input": "a"}, "model", "model is missing or null, but must be the name of a model that embeds texts"),
        ({"model": 1, "input": "a"}, "model", "model is 1, but must be"),
        ({"model": "", "input": "a"}, "model", "model is '', but must be"),
        ({"model": "m"}, "input", "input is missing or null, but must be a text, or a list of 1 to 2048 texts"),
        ({"model": "m", "input": []}, "input", r"input is \[\], but must be a text"),
        ({"model": "m", "input": {}}, "input", "input is {}, but must be a text"),
        ({"model": "m", "input": ""}, "input", "input is an empty text, which has no embedding; leave it out"),
        ({"model": "m", "input": ["a", ""]}, "input", r"input\[1\] is an empty text"),
        ({"model": "m", "input": ["a"] * 2049}, "input", "input has 2049 texts; send at most 2048 at a time"),
        ({"model": "m", "input": [1, 2]}, "input", "input is of token ids, .*; send the text"),
        ({"model": "m", "input": [[1, 2]]}, "input", "input is of token ids"),
        ({"model": "m", "input": ["a", True]}, "input", r"input\[1\] is True, but must be a text"),
        (
            {"model": "m", "input": "a", "encoding_format": "hex"},
            "encoding_format",
            '\'hex\', but must be "float" or "base',
        ),
        ({"model": "m", "input": "a", "dimensions": 0}, "dimensions", "dimensions is 0, but must be a whole number"),
        ({"model": "m", "input": "a", "dimensions": True}, "dimensions", "dimensions is True, but must be"),
        ({"model": "m", "input": "a", "user": 1}, "user", "user is 1, but must be a text; it is not used here"),
        ({"model": "m", "input": "a", "stream": True}, "stream", "the body has 'stream'; it may have dimensions, enc"),
    ],
)
def test_what_cannot_be_meant_is_refused(body, param, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        read_request(body)
    assert caught.value.details.get("param") == param


@given(strategies.plain, st.sampled_from(["model", "input", "encoding_format", "dimensions", "user"]))
def test_whatever_comes_is_read_or_refused(value, name):
    try:
        read_request({"model": "m", "input": "a", name: value})
    except InvalidInput as error:
        refusal = error
    else:
        return
    assert refusal.details["param"] == name
    assert len(str(refusal)) < 200


def test_a_model_must_embed():
    request = EmbeddingsRequest(model="mlp", texts=["a"])
    with pytest.raises(InvalidInput, match="model 'mlp' makes no embeddings; name one that does, or ask this one at "):
        batches_of(request, MLP)
    with pytest.raises(InvalidInput, match="makes no embeddings"):
        batches_of(request, {key: value for key, value in MLP.items() if key != "embedder"})


def test_embeddings_are_not_cut():
    with pytest.raises(InvalidInput, match="dimensions is 3, but the embeddings of 'minilm' have 4, and cannot be cut"):
        batches_of(EmbeddingsRequest(model="minilm", texts=["a"], dimensions=3), MINILM)


@given(st.lists(vectors, min_size=1, max_size=3))
def test_numbers_and_base64_say_the_same(parts):
    request = EmbeddingsRequest(model="minilm", texts=["a"] * len(parts))
    read = CreateEmbeddingResponse.model_validate_json(answer(request, *parts, tokens=5))
    sent = np.concatenate(parts)
    assert [each.index for each in read.data] == list(range(len(parts)))
    np.testing.assert_array_equal(np.array([each.embedding for each in read.data], np.float32), sent)
    assert (read.model, read.usage.prompt_tokens, read.usage.total_tokens) == ("minilm", 5, 5)
    request = EmbeddingsRequest(model="minilm", texts=["a"] * len(parts), as_base64=True)
    encoded = [each["embedding"] for each in orjson.loads(answer(request, *parts))["data"]]
    np.testing.assert_array_equal([np.frombuffer(base64.b64decode(each), "<f4") for each in encoded], sent)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("as_base64", [False, True])
def test_embeddings_are_float32_whatever_the_model_makes(dtype, as_base64):
    request = EmbeddingsRequest(model="minilm", texts=["a"], as_base64=as_base64)
    value = np.array([[1, -2, 0.5, 0]], dtype)
    assert answer(request, value) == answer(request, value.astype(np.float32))


def test_usage_is_there_also_where_nobody_counts():
    read = CreateEmbeddingResponse.model_validate_json(
        answer(EmbeddingsRequest(model="minilm", texts=["a"]), np.zeros((1, 4), np.float32))
    )
    assert (read.usage.prompt_tokens, read.usage.total_tokens) == (0, 0)


@pytest.mark.parametrize("as_base64", [False, True])
def test_an_embedding_must_be_finite(as_base64):
    request = EmbeddingsRequest(model="minilm", texts=["a", "b"], as_base64=as_base64)
    with pytest.raises(ModelFailed, match="model 'minilm' made an embedding of text 1 that is not finite"):
        answer(request, np.array([[1, 1, 1, 1], [1, np.nan, 1, 1]], np.float32))


def test_models():
    models = [Model.model_validate(embeddings.model(name, created_unix_s=1.7e9)) for name in ("minilm", "mlp")]
    assert [(each.id, each.created, each.object, each.owned_by) for each in models] == [
        ("minilm", 1_700_000_000, "model", "jaxserve"),
        ("mlp", 1_700_000_000, "model", "jaxserve"),
    ]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (499, "invalid_request_error"),
        (500, "server_error"),
        (503, "server_error"),
        (504, "server_error"),
    ],
)
def test_errors(status, kind):
    body = embeddings.write_error("no", http_status=status, code="invalid_input", param="input")
    assert orjson.loads(body) == {"error": {"message": "no", "type": kind, "param": "input", "code": "invalid_input"}}
    assert orjson.loads(embeddings.write_error("no", http_status=status, code="x"))["error"]["param"] is None
