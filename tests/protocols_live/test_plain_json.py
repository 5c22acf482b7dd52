"""What curl, probes and proxies send: TensorFlow Serving's form, bare V2, headers, and the socket of administrators."""

import gzip
import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.protocols_live.live import LIMITS, LiveServer
from tests.protocols_live.models import count_letters
from tests.protocols_live.plain import Answer, ask

ROWS = [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]
AFFINE = [[1.0, 3.0, 5.0, 7.0], [9.0, 11.0, 13.0, 15.0]]
PREDICT = "/v1/models/affine:predict"
INFER = "/v2/models/affine/infer"
INPUT = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": ROWS}


# ---------------------------------------------------------------------------------------- TensorFlow Serving's form


@pytest.mark.parametrize("path", [PREDICT, "/v1/models/affine/versions/1:predict"])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"instances": ROWS}, {"predictions": AFFINE}),
        ({"instances": [{"x": row} for row in ROWS]}, {"predictions": AFFINE}),
        ({"inputs": ROWS}, {"outputs": AFFINE}),
        ({"inputs": {"x": ROWS}, "signature_name": "serving_default"}, {"outputs": AFFINE}),
    ],
    ids=["rows", "named-rows", "column", "named-columns"],
)
def test_predict(live: LiveServer, path: str, body: Any, expected: Any) -> None:
    answer = ask(live.public, "POST", path, body)
    assert (answer.status, answer.json) == (200, expected)


def test_predict_texts(live: LiveServer) -> None:
    expected = (count_letters(["banana", "abc"]) / 2).tolist()
    for rows in (["banana", "abc"], [{"text": "banana"}, {"text": "abc"}], [{"b64": "YmFuYW5h"}, "abc"]):
        assert ask(live.public, "POST", "/v1/models/letters:predict", {"instances": rows}).json == {
            "predictions": expected
        }


def test_predict_several_outputs(live: LiveServer) -> None:
    row = {"flags": [True, False, True], "counts": [[1, 2], [3, 4]], "halves": [0.5, 1, 2], "brains": [1, 2, 3]}
    made = {"negated": [False, True, False], "counted": [[2, 3], [4, 5]], "doubled": [1, 2, 4], "tripled": [3, 6, 9]}
    answer = ask(live.public, "POST", "/v1/models/mixed:predict", {"instances": [row, row]})
    assert answer.json == {"predictions": [made, made]}
    columns = {name: [value] for name, value in row.items()}
    answer = ask(live.public, "POST", "/v1/models/mixed:predict", {"inputs": columns})
    assert answer.json == {"outputs": {name: [value] for name, value in made.items()}}


def test_predict_what_json_has_no_number_for(live: LiveServer) -> None:
    answer = ask(live.public, "POST", PREDICT, b'{"instances": [[NaN, Infinity, -Infinity, 1e39]]}')
    assert answer.status in (200, 400), answer
    answer = ask(live.public, "POST", PREDICT, b'{"instances": [[3e38, -3e38, 0, 1]]}')
    [[inf, minus_inf, one, three]] = answer.json["predictions"]
    assert (inf, minus_inf, one, three) == (math.inf, -math.inf, 1.0, 3.0)


def test_predict_compressed(live: LiveServer) -> None:
    body = json.dumps({"instances": ROWS}).encode()
    for encoding, codec in (("gzip", gzip), ("deflate", zlib)):
        headers = {"Content-Encoding": encoding, "Accept-Encoding": encoding}
        answer = ask(live.public, "POST", PREDICT, codec.compress(body), headers=headers)
        assert answer.headers["content-encoding"] == encoding
        assert json.loads(codec.decompress(answer.body)) == {"predictions": AFFINE}


WRONG_PREDICT: Mapping[str, tuple[str, Any, int, str, str]] = {
    "no-json": (PREDICT, b"{instances: 1}", 400, "invalid_input", "JSON"),
    "empty": (PREDICT, b"", 400, "invalid_input", "empty"),
    "no-object": (PREDICT, [1], 400, "invalid_input", "must be an object"),
    "neither": (PREDICT, {}, 400, "invalid_input", "neither 'instances' nor 'inputs'"),
    "both": (PREDICT, {"instances": ROWS, "inputs": ROWS}, 400, "invalid_input", "both 'instances' and 'inputs'"),
    "unknown-key": (PREDICT, {"instance": ROWS}, 400, "invalid_input", "'instance'"),
    "no-rows": (PREDICT, {"instances": []}, 400, "invalid_input", "at least one row"),
    "ragged": (PREDICT, {"instances": [[1, 2, 3, 4], [1]]}, 400, "invalid_input", "x"),
    "words": (PREDICT, {"instances": [["one", 2, 3, 4]]}, 400, "invalid_input", "x"),
    "shape": (PREDICT, {"instances": [[1, 2, 3]]}, 400, "invalid_input", "dimension 1 must be 4"),
    "name": (PREDICT, {"instances": [{"y": ROWS[0]}]}, 400, "invalid_input", "lacks 'x' and has 'y'"),
    "too-many-rows": (PREDICT, {"instances": 5 * [ROWS[0]]}, 400, "invalid_input", "batch"),
    "signature": (PREDICT, {"instances": ROWS, "signature_name": "other"}, 400, "invalid_input", "signature_name"),
    "model": ("/v1/models/nothing:predict", {"instances": ROWS}, 404, "model_not_found", "no model 'nothing'"),
    "version": ("/v1/models/affine/versions/7:predict", {"instances": ROWS}, 404, "model_not_found", "no version '7'"),
    "raises": ("/v1/models/fails:predict", {"instances": [[-1, 0, 0, 0]]}, 500, "model_failed", "no root"),
    "verb": ("/v1/models/affine:classify", {"examples": []}, 501, "unsupported", "ask for predictions with `:predict`"),
}


@pytest.mark.parametrize("wrong", WRONG_PREDICT)
def test_predict_what_is_wrong(live: LiveServer, wrong: str) -> None:
    path, body, status, code, part = WRONG_PREDICT[wrong]
    message = ask(live.public, "POST", path, body).is_error(status, code)
    assert part in message
    assert "Traceback" not in message


def test_status_and_metadata_of_a_model(live: LiveServer) -> None:
    for path in ("/v1/models/affine", "/v1/models/affine/versions/1"):
        [version] = ask(live.public, "GET", path).json["model_version_status"]
        assert (version["version"], version["state"], version["status"]["error_code"]) == ("1", "AVAILABLE", "OK")
    [version] = ask(live.draining, "GET", "/v1/models/affine").json["model_version_status"]
    assert version["state"] != "AVAILABLE"
    metadata = ask(live.public, "GET", "/v1/models/affine/metadata").json
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    for path in ("/v1/models/nothing", "/v1/models/nothing/metadata", "/v1/models/affine/versions/7"):
        ask(live.public, "GET", path).is_error(404, "model_not_found")


# ------------------------------------------------------------------------------------------- the V2 protocol by hand


def test_infer_by_hand(live: LiveServer) -> None:
    for data in (ROWS, np.ravel(ROWS).tolist()):
        answer = ask(live.public, "POST", INFER, {"id": "a", "inputs": [{**INPUT, "data": data}]})
        assert answer.json == {
            "id": "a",
            "model_name": "affine",
            "model_version": "1",
            "outputs": [{"name": "output", "datatype": "FP32", "shape": [2, 4], "data": np.ravel(AFFINE).tolist()}],
        }
    assert "id" not in ask(live.public, "POST", INFER, {"inputs": [INPUT]}).json


def test_infer_by_hand_binary_both_ways(live: LiveServer) -> None:
    x = np.array(ROWS, np.float32)
    head = json.dumps(
        {
            "inputs": [
                {"name": "x", "shape": [2, 4], "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Accept-Encoding": "gzip, deflate"}
    answer = ask(live.public, "POST", INFER, head + x.tobytes(), headers=headers)
    assert answer.headers["content-type"] == "application/octet-stream"
    json_bytes = int(answer.headers["inference-header-content-length"])
    [output] = json.loads(answer.body[:json_bytes])["outputs"]
    assert output["parameters"] == {"binary_data_size": x.nbytes}
    assert answer.body[json_bytes:] == np.array(AFFINE, np.float32).tobytes()


WRONG_INFER: Mapping[str, tuple[bytes, Mapping[str, str], int, str, str]] = {
    "empty": (b"", {}, 400, "invalid_input", "JSON"),
    "no-object": (b"[]", {}, 400, "invalid_input", "must be a JSON object"),
    "no-inputs": (b"{}", {}, 400, "invalid_input", "inputs must be a list"),
    "header-too-large": (b"{}", {"Inference-Header-Content-Length": "9"}, 400, "invalid_input", "body has 2 bytes"),
    "header-no-number": (b"{}", {"Inference-Header-Content-Length": "-1"}, 400, "invalid_input", "'-1'"),
    "encoding": (b"{}", {"Content-Encoding": "br"}, 415, "unknown_encoding", "gzip or deflate"),
    "not-gzip": (b"{}", {"Content-Encoding": "gzip"}, 400, "invalid_input", "is not gzip"),
    "half-a-gzip": (gzip.compress(b"{}" * 99)[:20], {"Content-Encoding": "gzip"}, 400, "invalid_input", "middle"),
    "bomb": (gzip.compress(bytes(2 * LIMITS.max_body_bytes)), {"Content-Encoding": "gzip"}, 413, "too_large", "bytes"),
    "too-large": (bytes(LIMITS.max_body_bytes + 1), {}, 413, "too_large", "larger than"),
    "deep": (b'{"inputs":' + b"[" * 10_000, {}, 400, "invalid_input", "JSON"),
    "many": (b'{"inputs":[' + b",".join([b"{}"] * 300) + b"]}", {}, 400, "invalid_input", "at most 256"),
}


@pytest.mark.parametrize("wrong", WRONG_INFER)
def test_infer_by_hand_what_is_wrong(live: LiveServer, wrong: str) -> None:
    body, headers, status, code, part = WRONG_INFER[wrong]
    assert part in ask(live.public, "POST", INFER, body, headers=headers).is_error(status, code)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"shape": [-2, -4]}, "negative"),
        ({"shape": [2**33, 2**33]}, "x"),
        ({"shape": [2]}, "list"),
        ({"shape": "2,4"}, "list of whole numbers"),
        ({"shape": [2.0, 4]}, "whole number"),
        ({"datatype": "FP31"}, "FP31"),
        ({"datatype": "INT32"}, "whole numbers"),
        ({"data": [[1, 2, 3, 4], [1, 2, 3]]}, "nested"),
        ({"data": [1, 2, 3, 4, 5, 6, 7, None]}, "null"),
        ({"data": "AAAA"}, "list"),
        ({"name": ""}, "name"),
        ({"name": "../x"}, "lack 'x'"),
        ({"parameters": {"binary_data_size": 32}}, "data and binary_data_size"),
    ],
)
def test_infer_by_hand_a_tensor_that_is_wrong(live: LiveServer, change: Mapping[str, Any], part: str) -> None:
    message = ask(live.public, "POST", INFER, {"inputs": [{**INPUT, **change}]}).is_error(400, "invalid_input")
    assert part in message


def test_two_inputs_of_one_name_are_refused(live: LiveServer) -> None:
    message = ask(live.public, "POST", INFER, {"inputs": [INPUT, INPUT]}).is_error(400, "invalid_input")
    assert "'x' is there twice" in message


# ------------------------------------------------------------------------------------------------------------- headers


def test_a_deadline_in_a_header(live: LiveServer) -> None:
    for name, soon, now in (("X-Deadline-S", "0.05", "1e-6"), ("X-Envoy-Expected-Rq-Timeout-Ms", "50", "1e-3")):
        with live.gate.closed():
            answer = ask(live.public, "POST", "/v1/models/gated:predict", {"instances": ROWS}, headers={name: soon})
            assert "deadline" in answer.is_error(504, "deadline_exceeded")
        answer = ask(live.public, "POST", PREDICT, {"instances": ROWS}, headers={name: now})
        assert "would be answered after" in answer.is_error(429, "deadline_refused")
        assert int(answer.headers["retry-after"]) >= 1
        answer = ask(live.public, "POST", PREDICT, {"instances": ROWS}, headers={name: "-1"})
        assert name in answer.is_error(400, "invalid_input")


def test_request_ids(live: LiveServer) -> None:
    answer = ask(live.public, "POST", PREDICT, {"instances": ROWS}, headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    first, second = (ask(live.public, "POST", PREDICT, {"instances": ROWS}).headers["x-request-id"] for _ in range(2))
    assert first != second
    answer = ask(live.public, "POST", "/v1/models/nothing:predict", {}, headers={"X-Request-Id": "mine-2"})
    assert answer.headers["x-request-id"] == "mine-2"


def test_tokens(live: LiveServer) -> None:
    answer = ask(live.guarded, "POST", PREDICT, {"instances": ROWS})
    answer.is_error(401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    headers = live.authorization("user")
    assert ask(live.guarded, "POST", PREDICT, {"instances": ROWS}, headers=headers).json == {"predictions": AFFINE}
    fails = ask(live.guarded, "POST", "/v1/models/fails:predict", {"instances": ROWS}, headers=headers)
    fails.is_error(403, "permission_denied")
    ask(live.guarded, "GET", "/v1/models/affine").is_error(401, "unauthenticated")


def test_probes(live: LiveServer) -> None:
    for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2/models/affine/ready"):
        assert ask(live.public, "GET", path).status == 200
        head = ask(live.public, "HEAD", path)
        assert (head.status, head.body) == (200, b"")
        draining = ask(live.draining, "GET", path)
        assert draining.status == (200 if "live" in path else 503)
    for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert ask(live.guarded, "GET", path).status == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", INFER, "POST"),
        ("PUT", PREDICT, "POST"),
        ("POST", "/v2", "GET, HEAD"),
        ("DELETE", "/v2/models/affine", "GET, HEAD"),
    ],
)
def test_a_wrong_method(live: LiveServer, method: str, path: str, allowed: str) -> None:
    answer = ask(live.public, method, path)
    answer.is_error(405, "wrong_method")
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize(
    "path",
    [
        "/v3",
        "/v2/models/affine/infer/",
        "/v2/models//infer",
        "/v2/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/v2/models/..%2Faffine",
        "/v2/models/%ff",
        "/v1/models/:predict",
        "/../../etc/passwd",
        "//v2",
    ],
)
def test_a_path_to_nowhere(live: LiveServer, path: str) -> None:
    answer = ask(live.public, "GET", path)
    assert answer.status == 404
    assert answer.json.keys() == {"error", "code"}


def test_a_name_may_be_encoded(live: LiveServer) -> None:
    assert ask(live.public, "GET", "/v2/models/%61ffine?verbose=1").json["name"] == "affine"


def test_administration_has_a_socket_of_its_own(live: LiveServer) -> None:
    def load(action: str) -> Answer:
        return ask(live.admin_path, "POST", f"/v2/repository/models/spare/{action}", {})

    def state() -> str:
        index = ask(live.admin_path, "POST", "/v2/repository/index").json
        return next(each["state"] for each in index if each["name"] == "spare")

    with live.restored():
        assert load("unload").json == {}
        assert state() == "UNAVAILABLE"
        assert ask(live.public, "GET", "/v2/models/spare/ready").status == 404
        ready = ask(live.public, "POST", "/v2/repository/index", {"ready": True}).json
        assert "spare" not in {each["name"] for each in ready}
        assert load("load").json == {}
    assert state() == "READY"
    answer = ask(live.public, "POST", "/v2/repository/models/spare/unload", {})
    answer.is_error(503, "administration_off")
