"""The OpenAPI document: it is one, what it says of bodies is what the codecs do, and it has every status."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import numpy as np
import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxserve import errors
from jaxserve.errors import InvalidInput
from jaxserve.protocols import embeddings, open_inference, predict
from jaxserve.protocols.openapi import MOST_MODELS, OPEN_PATHS, build
from jaxserve.protocols.statuses import status_of
from tests.protocols.descriptions import GPT, MINILM, MIXED, MLP, MODELS, described


def plain(document: Any) -> Any:
    return json.loads(orjson.dumps(document))


BARE = plain(build(version="1.2.3"))
FULL = plain(build(version="1.2.3", title="ours", models=MODELS, tokens=True))
DOCUMENTS = pytest.mark.parametrize("document", [BARE, FULL], ids=["bare", "full"])


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def resolved(document: Any, value: Any) -> Any:
    """What a reference stands for."""
    while "$ref" in value:
        target = document
        for step in value["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        value = target
    return value


def validator(schema: Any, document: Any = FULL) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})


def check(body: bytes, name: str) -> None:
    validator({"$ref": f"#/components/schemas/{name}"}).validate(json.loads(body))


def body_schema(path: str, document: Any = FULL) -> Any:
    return document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]


# The document as such


@DOCUMENTS
def test_it_is_an_openapi_document(document):
    schemathesis.openapi.from_dict(document).validate()


@DOCUMENTS
def test_every_schema_is_one(document):
    for name, schema in document["components"]["schemas"].items():
        jsonschema_rs.meta.validate(schema)
        assert validator(schema, document), name
    for path, _, operation in operations(document):
        for media in operation.get("requestBody", {}).get("content", {}).values():
            assert validator(media["schema"], document), path


@DOCUMENTS
def test_every_reference_leads_somewhere_and_everything_is_used(document):
    text = json.dumps(document["paths"]) + json.dumps(document["components"])
    names = {(kind, name) for kind in ("schemas", "parameters", "responses") for name in document["components"][kind]}
    for kind, name in names:
        assert kind == "responses" or f'"#/components/{kind}/{name}"' in text or name == "EmbeddingsRequest", name
    for path, method, operation in operations(document):
        for part in (*operation.get("parameters", []), *operation["responses"].values()):
            assert resolved(document, part), (path, method)


@DOCUMENTS
def test_operations_have_ids_of_their_own_and_known_tags(document):
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    tags = {tag["name"] for tag in document["tags"]}
    assert {tag for _, _, operation in operations(document) for tag in operation["tags"]} == tags


@DOCUMENTS
def test_schemathesis_makes_requests_of_every_operation(document):
    made = [found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()]
    assert len(made) == len(list(operations(document)))


def test_what_it_is_told_it_says():
    assert BARE["info"]["title"] == "jaxserve"
    assert FULL["info"]["title"] == "ours"
    assert FULL["info"]["version"] == "1.2.3"
    assert BARE["components"]["parameters"]["Model"]["schema"] == {"type": "string", "pattern": "^[^/]+$"}
    assert FULL["components"]["parameters"]["Model"]["schema"] == {"enum": ["mlp", "gpt", "minilm", "mixed"]}


# Statuses


ERRORS = [
    *(kind("no", retry_after_s=1.0) for kind in errors.InferenceError.__subclasses__()),
    *(kind("no") for kind in errors.ServiceError.__subclasses__()),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_every_error_has_a_status_there(error):
    assert str(status_of(error).http) in FULL["paths"]["/v2/models/{model}/infer"]["post"]["responses"]


@DOCUMENTS
def test_statuses_have_their_headers_and_an_error(document):
    for name, response in document["components"]["responses"].items():
        status = int(name[-3:])
        expected = {401: {"WWW-Authenticate"}, 405: {"Allow"}, 429: {"Retry-After"}}.get(status, set())
        assert set(response.get("headers", {})) == expected
        schema = resolved(document, response["content"]["application/json"]["schema"])
        assert set(schema["properties"]) == ({"error"} if name.startswith("OpenAI") else {"error", "code"})
    for path, _, operation in operations(document):
        assert {"400", "405", "408", "431", "500", "503"} <= set(operation["responses"]), path


def test_openais_paths_have_openais_errors():
    for path, _, operation in operations(FULL):
        reference = operation["responses"]["400"]["$ref"]
        is_openai = path in ("/v1/embeddings", "/v1/models")
        assert reference == f"#/components/responses/{'OpenAIError' if is_openai else 'Error'}400"


def test_tokens_are_asked_for_only_where_they_are_needed():
    assert "securitySchemes" not in BARE["components"]
    assert FULL["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    for path, _, operation in operations(BARE):
        assert not {"401", "403"} & set(operation["responses"]), path
    for path, _, operation in operations(FULL):
        needs = path not in OPEN_PATHS
        assert operation.get("security") == ([{"token": []}] if needs else None), path
        assert ({"401", "403"} <= set(operation["responses"])) == needs, path


# Models


def test_models_whose_names_are_plain_have_paths_of_their_own():
    odd = [described(name, {"x": (["batch"], "float32")}, {}) for name in ("a b", "é", "{model}", "a%")]
    assert BARE["paths"].keys() == build(version="1", models=odd)["paths"].keys()
    assert FULL["paths"].keys() - BARE["paths"].keys() == {
        path
        for name in ("mlp", "gpt", "minilm", "mixed")
        for path in (f"/v2/models/{name}/infer", f"/v1/models/{name}:predict")
    }


def test_it_does_not_grow_without_end():
    many = [described(f"m{index}", {"x": (["batch"], "float32")}, {}) for index in range(MOST_MODELS + 1)]
    paths = build(version="1", models=many)["paths"]
    assert f"/v1/models/m{MOST_MODELS - 1}:predict" in paths
    assert f"/v1/models/m{MOST_MODELS}:predict" not in paths
    large = described("vit", {"image": (["batch", 224, 224, 3], "float32")}, {})
    assert len(orjson.dumps(build(version="1", models=[large])["paths"]["/v1/models/vit:predict"])) < 5000


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e5m2", "complex64"])
def test_what_the_open_inference_protocol_cannot_say_in_json_has_no_path_there(dtype):
    paths = build(version="1", models=[described("m", {"x": (["batch"], dtype)}, {})])["paths"]
    assert "/v1/models/m:predict" in paths
    assert "/v2/models/m/infer" not in paths


# The schemas, and what the codecs do


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["name"])
def test_examples_are_requests(model):
    media = FULL["paths"][f"/v1/models/{model['name']}:predict"]["post"]["requestBody"]["content"]["application/json"]
    validator(media["schema"]).validate(media["example"])
    assert predict.read_request(media["example"], model).inputs.keys() == model["inputs"].keys()
    media = FULL["paths"][f"/v2/models/{model['name']}/infer"]["post"]["requestBody"]["content"]["application/json"]
    validator(media["schema"]).validate(media["example"])
    check(orjson.dumps(media["example"]), "InferRequest")
    request = open_inference.read_infer(orjson.dumps(media["example"]), None)
    assert request.inputs.keys() == model["inputs"].keys()


def requests(path: str) -> st.SearchStrategy[Any]:
    """Bodies that the document allows."""
    operation = schemathesis.openapi.from_dict(FULL)[path]["POST"]
    return operation.as_strategy().map(lambda case: case.body)


slow = settings(suppress_health_check=list(HealthCheck))


@slow
@given(requests("/v1/models/mlp:predict"))
def test_what_the_schema_allows_is_read(body):
    [value] = predict.read_request(plain(body), MLP).inputs.values()
    assert isinstance(value, np.ndarray)
    assert value.shape in [(rows, 3) for rows in range(1, 5)]
    assert np.isfinite(value).all()


@slow
@given(requests("/v1/models/minilm:predict"))
def test_what_the_schema_allows_of_texts_is_read(body):
    [value] = predict.read_request(plain(body), MINILM).inputs.values()
    assert 1 <= len(value) <= 3


@slow
@given(requests("/v1/embeddings"))
def test_what_the_schema_allows_to_embed_is_read(body):
    assert embeddings.batches_of(embeddings.read_request(plain(body)), MINILM)


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "bfloat16", "float8_e4m3fn", "float8_e5m2", "uint8", "int32", "int64", "uint64"]
)
def test_bounds_are_those_of_the_dtype(dtype):
    model = described("m", {"x": (["batch"], dtype)}, {})
    document = plain(build(version="1", models=[model]))
    body = body_schema("/v1/models/m:predict", document)
    number = body["oneOf"][0]["properties"]["instances"]["anyOf"][0]["items"]
    if "maximum" in number:
        greatest, beyond = number["maximum"], number["maximum"] + 1
    else:
        beyond = number["exclusiveMaximum"]
        greatest = beyond * (1 - 2**-23)  # not the very next, for narrow dtypes are made by way of float32
    schema = validator(body, document)
    assert schema.is_valid({"instances": [greatest]})
    assert predict.read_request({"instances": [greatest]}, model)
    assert not schema.is_valid({"instances": [beyond]})
    with pytest.raises(InvalidInput, match="beyond the range"):
        predict.read_request({"instances": [beyond]}, model)


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-300, 300) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "count", "mode"]), inner),
    max_leaves=6,
)


@given(st.sampled_from(["instances", "inputs"]), NESTED, st.sampled_from([MLP, GPT, MIXED]))
def test_what_the_schema_forbids_is_not_read(form, value, model):
    """But for sizes, which the engine checks."""
    body = {form: value}
    if validator(body_schema(f"/v1/models/{model['name']}:predict")).is_valid(body):
        return
    try:
        request = predict.read_request(body, model)
    except InvalidInput:
        return
    shapes = {name: np.shape(tensor) for name, tensor in request.inputs.items()}
    sizes = {name: model["inputs"][name]["shape"] for name in shapes}
    assert any(
        len(shape) != len(sizes[name])
        or not 1 <= shape[0] <= 4
        or any(dim != size if isinstance(size, int) else dim < 1 for dim, size in zip(shape, sizes[name], strict=True))
        for name, shape in shapes.items()
    )


ROWS = {"y": np.array([[1, 2]], np.float32), "text": ["a"]}


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("outputs", [ROWS, {"y": ROWS["y"]}], ids=["two", "one"])
def test_predictions_fit_their_schema(outputs, by_row):
    check(predict.write_response(outputs, by_row=by_row), "PredictResponse")


@pytest.mark.parametrize("binary", [False, True])
def test_answers_of_the_open_inference_protocol_fit_their_schema(binary):
    request = open_inference.InferRequest("7", {}, binary_output=binary)
    parts, json_bytes = open_inference.write_infer(request, ROWS, model="m")
    check(b"".join(map(bytes, parts))[:json_bytes], "InferResponse")


@pytest.mark.parametrize("as_base64", [False, True])
def test_embeddings_fit_their_schema(as_base64):
    request = embeddings.EmbeddingsRequest(model="minilm", texts=["a"], as_base64=as_base64)
    outputs = [{"embedding": np.zeros((1, 4), np.float32)}]
    check(embeddings.write_response(request, outputs, MINILM), "EmbeddingsResponse")


def test_other_answers_fit_their_schemas():
    check(orjson.dumps(predict.status("LOADING", "soon") | embeddings.model("a", created_unix_s=1.5)), "ModelStatus")
    check(predict.write_metadata(MIXED), "ModelSignatures")
    listed = {"object": "list", "data": [embeddings.model("a", created_unix_s=1.5)]}
    check(orjson.dumps(listed), "ModelList")
    check(embeddings.write_error("no", http_status=400, code="invalid_input", param="input"), "OpenAIError")
