"""The `openai` client: embeddings as floats and as base64, the list of models, and its exceptions."""

import asyncio
import base64
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import openai
import pytest

from tests.protocols_live.live import LIMITS, LiveServer
from tests.protocols_live.models import LETTERS, PATIENCE_S, count_letters

TEXTS = ["a banana", "größer, 大きい", "abc abc"]
EXPECTED = count_letters(TEXTS) / 2


def _client(live: LiveServer, token: str | None = None) -> openai.OpenAI:
    door = live.public if token is None else live.guarded
    key = live.tokens.get(token or "", "none-of-these")
    return openai.OpenAI(base_url=f"{door.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S)


@pytest.fixture
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    with _client(live) as client:
        yield client


def test_embeddings_by_default(client: openai.OpenAI) -> None:
    """It asks for base64, and decodes it."""
    answer = client.embeddings.create(model="letters", input=TEXTS)
    assert (answer.object, answer.model) == ("list", "letters")
    assert [each.index for each in answer.data] == [0, 1, 2]
    assert {each.object for each in answer.data} == {"embedding"}
    np.testing.assert_array_equal([each.embedding for each in answer.data], EXPECTED)
    words = sum(len(text.split()) for text in TEXTS)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (words, words)


def test_embeddings_as_floats(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="letters", input=TEXTS, encoding_format="float", user="somebody")
    np.testing.assert_array_equal([each.embedding for each in answer.data], EXPECTED)


def test_embeddings_as_base64(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="letters", input=TEXTS[0], encoding_format="base64", dimensions=LETTERS)
    [embedding] = answer.data
    encoded: Any = embedding.embedding  # which is typed as if it were always a list
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(encoded), "<f4"), EXPECTED[0])


def test_more_texts_than_a_batch(client: openai.OpenAI) -> None:
    texts = [f"{chr(97 + index % LETTERS)} text" for index in range(3)] * 4
    answer = client.embeddings.create(model="letters", input=texts)
    assert [each.index for each in answer.data] == list(range(len(texts)))
    np.testing.assert_array_equal([each.embedding for each in answer.data], count_letters(texts) / 2)


def test_more_batches_than_may_be_in_flight(client: openai.OpenAI) -> None:
    most_rows = 4
    texts = ["text"] * (most_rows * (LIMITS.max_in_flight_per_client + 1))
    answer = client.embeddings.create(model="letters", input=texts)
    assert len(answer.data) == len(texts)


def test_the_list_of_models(client: openai.OpenAI) -> None:
    models = client.models.list()
    assert {"identity", "affine", "letters"} <= {model.id for model in models}
    for model in models:
        assert (model.object, model.owned_by) == ("model", "jaxserve")
        assert model.created > 0


def test_the_list_has_what_a_token_may_use(live: LiveServer) -> None:
    with _client(live, "user") as client:
        names = {model.id for model in client.models.list()}
    assert "letters" in names
    assert "fails" not in names


def test_one_model(client: openai.OpenAI) -> None:
    model = client.models.retrieve("letters")
    assert (model.id, model.object, model.owned_by) == ("letters", "model", "jaxserve")


def test_what_is_not_there(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="letters", messages=[{"role": "user", "content": "hello"}])
    assert "/v1/chat/completions" in caught.value.response.text
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nothing")
    assert "no model 'nothing'" in caught.value.response.text


WRONG: Mapping[str, tuple[type[openai.APIStatusError], str, str | None, Mapping[str, Any]]] = {
    "model": (openai.NotFoundError, "model_not_found", None, {"model": "nothing"}),
    "no-embedder": (openai.BadRequestError, "invalid_input", "model", {"model": "affine"}),
    "no-texts": (openai.BadRequestError, "invalid_input", "input", {"input": []}),
    "empty-text": (openai.BadRequestError, "invalid_input", "input", {"input": ["a", ""]}),
    "tokens": (openai.BadRequestError, "invalid_input", "input", {"input": [1, 2]}),
    "too-many-texts": (openai.BadRequestError, "invalid_input", "input", {"input": ["a"] * 2049}),
    "dimensions": (openai.BadRequestError, "invalid_input", "dimensions", {"dimensions": 2}),
    "format": (openai.BadRequestError, "invalid_input", "encoding_format", {"encoding_format": "hex"}),
    "unknown": (openai.BadRequestError, "invalid_input", "truncate", {"extra_body": {"truncate": True}}),
    "header": (openai.BadRequestError, "invalid_input", None, {"extra_headers": {"X-Deadline-S": "soon"}}),
    "refused": (openai.RateLimitError, "deadline_refused", None, {"extra_headers": {"X-Deadline-S": "1e-9"}}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong(client: openai.OpenAI, wrong: str) -> None:
    kind, code, param, options = WRONG[wrong]
    with pytest.raises(kind) as caught:
        client.embeddings.create(**{"model": "letters", "input": TEXTS, **options})
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.type == ("rate_limit_error" if kind is openai.RateLimitError else "invalid_request_error")
    assert caught.value.request_id
    assert "Traceback" not in caught.value.message


def test_tokens(live: LiveServer) -> None:
    with _client(live, "nobody's") as client:
        with pytest.raises(openai.AuthenticationError, match="does not know the token"):
            client.embeddings.create(model="letters", input=TEXTS)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    with _client(live, "user") as client:
        assert len(client.embeddings.create(model="letters", input=TEXTS).data) == 3
        with pytest.raises(openai.PermissionDeniedError, match="may not use model 'fails'"):
            client.embeddings.create(model="fails", input=TEXTS)


def test_who_has_too_many_in_flight_waits(live: LiveServer) -> None:
    with _client(live, "user") as client, live.occupied("user", LIMITS.max_in_flight_per_client):
        with pytest.raises(openai.RateLimitError, match="4 requests unanswered") as caught:
            client.embeddings.create(model="letters", input=TEXTS)
        assert int(caught.value.response.headers["retry-after"]) >= 1


def test_the_asynchronous_client(live: LiveServer) -> None:
    async def main() -> None:
        url = f"{live.public.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0, timeout=PATIENCE_S) as client:
            answers = await asyncio.gather(
                *[client.embeddings.create(model="letters", input=TEXTS) for _ in range(3)],
            )
            for answer in answers:
                np.testing.assert_array_equal([each.embedding for each in answer.data], EXPECTED)
            assert "letters" in {model.id async for model in client.models.list()}
            with pytest.raises(openai.NotFoundError, match="no model 'nothing'"):
                await client.embeddings.create(model="nothing", input=TEXTS)

    asyncio.run(main())


def test_tls(live: LiveServer) -> None:
    context = ssl.create_default_context(cafile=live.secure.ca)
    url = f"https://127.0.0.1:{live.secure.http}/v1"
    with (
        openai.DefaultHttpxClient(verify=context) as transport,
        openai.OpenAI(base_url=url, api_key="any", max_retries=0, http_client=transport) as client,
    ):
        assert len(client.embeddings.create(model="letters", input=TEXTS).data) == 3
