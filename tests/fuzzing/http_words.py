"""What requests over HTTP are made of: bodies of right ones, and words that are right, odd or hostile."""

from collections.abc import Sequence
from typing import Any

MODELS = ("identity", "affine", "mixed", "every", "letters", "fails", "gated", "spare", "nobody")

JSON_FORMS: Sequence[tuple[str, Any]] = (
    ("identity", {"inputs": [{"name": "x", "shape": [1, 128], "datatype": "FP32", "data": [0.5] * 128}]}),
    (
        "affine",
        {
            "id": "a",
            "parameters": {"timeout": 5000000, "priority": 1, "tenant": "t", "binary_data_output": False},
            "inputs": [{"name": "x", "shape": [2, 4], "datatype": "FP32", "data": [[1, 2, 3, 4], [5, 6.5, 7, 8]]}],
            "outputs": [{"name": "output", "parameters": {"classification": 2}}],
        },
    ),
    (
        "mixed",
        {
            "inputs": [
                {"name": "flags", "shape": [1, 3], "datatype": "BOOL", "data": [True, False, True]},
                {"name": "counts", "shape": [1, 2, 2], "datatype": "INT32", "data": [[[1, 2], [3, -4]]]},
                {"name": "halves", "shape": [1, 3], "datatype": "FP16", "data": [0.5, 1, 2]},
            ],
            "outputs": [{"name": "counted"}, {"name": "doubled", "parameters": {"binary_data": True}}],
        },
    ),
    ("letters", {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["one", "zwei"]}]}),
    ("fails", {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [-1, 0, 1, 2]}]}),
    ("gated", {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}),
)
"""Requests of the Open Inference Protocol, and the models that they are for."""

PREDICT_FORMS: Sequence[tuple[str, Any]] = (
    ("affine", {"instances": [[1, 2, 3, 4], [5, 6, 7, 8]]}),
    ("affine", {"signature_name": "serving_default", "inputs": {"x": [[1, 2, 3, 4]]}}),
    ("letters", {"instances": ["one", {"b64": "endlaQ=="}]}),
    ("letters", {"inputs": {"text": ["one"]}}),
    (
        "mixed",
        {
            "instances": [
                {"flags": [True, False, True], "counts": [[1, 2], [3, 4]], "halves": [1, 2, 3], "brains": [0.5, 1, 2]}
            ]
        },
    ),
    ("fails", {"instances": [[-1, 0, 1, 2]]}),
)
"""Requests in TensorFlow Serving's form."""

EMBEDDINGS_FORMS: Sequence[Any] = (
    {"model": "letters", "input": "a text"},
    {
        "model": "letters",
        "input": ["a", "b", "c", "d", "e"],
        "encoding_format": "base64",
        "dimensions": 26,
        "user": "u",
    },
    {"model": "affine", "input": ["a"]},
)
"""Requests in OpenAI's form."""

GETS = (
    "/", "/v2", "/v2/health/live", "/v2/health/ready", "/livez", "/readyz", "/metrics", "/openapi.json", "/v1/models",
    "/v2/models/stats", "/v2/trace/setting", "/v2/logging", "/v2/systemsharedmemory/status",
    "/v2/cudasharedmemory/region/r/status", "/v2/models/{m}", "/v2/models/{m}/versions/1", "/v2/models/{m}/ready",
    "/v2/models/{m}/config", "/v2/models/{m}/stats", "/v2/models/{m}/trace/setting", "/v1/models/{m}",
    "/v1/models/{m}/metadata", "/v1/models/{m}/versions/1", "/page/live.js", "/nothing",
)  # fmt: skip
POSTS = (
    "/v2/repository/index", "/v2/repository/models/{m}/load", "/v2/repository/models/{m}/unload", "/v2/trace/setting",
    "/v2/logging", "/v2/systemsharedmemory/unregister", "/v2/systemsharedmemory/region/r/register",
    "/v2/cudasharedmemory/region/r/unregister",
)  # fmt: skip
METHODS = (
    "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "FOO", "PRI", "M" * 300, "G\u00cbT",
)  # fmt: skip
TARGETS = (
    "*", "", "//", "/../../etc/passwd", "/v2/models/../../etc/passwd", "/v2/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/v2/models/..%5c..%5cwindows/infer", "/v2/models/%00", "/v2/models/%ff%fe/infer", "/v2/models/a%2fb/infer",
    "/v2/models//infer", "/v2//models/identity", "/v2/models/identity/", "/v2/models/identity/versions/2",
    "/v2/models/identity/versions/-1/infer", "/v2/models/identity/versions/99999999999999999999/infer",
    "/v2/models/" + "m" * 15000, "/v2/models/" + "%41" * 3000 + "/infer", "/v2/models/" + "x/" * 3000,
    "/v2/models/identity?" + "a=b&" * 2000, "/v2/models/identity#fragment", "/v2/models/identity;a=b/infer",
    "http://other/v2", "http://other:99999/v2", "http://[::1/v2", "https://user:pw@host/livez", "http:///livez",
    "ftp://x/livez", "host:443", "/v2/models/%", "/v2/models/%zz", "/v2/models/\u00fc", "/v2/models/a b", "livez",
    "?", "/?x", "/livez?\t", "/v2/models/{identity}", "/v1/models/:predict", "/v1/models/affine%3Apredict",
    "/v1/models/affine:predict:predict", "/page/../live.js", "/page/%2e%2e/server.py", "/.git/config", "/v2/\x7f",
    "javascript:alert(1)", "/events", "/v2/models/$(id)", "/v2/models/<script>", "/v1/models/a/versions/1/metadata/x",
)  # fmt: skip
HEADERS: Sequence[tuple[str, Sequence[str]]] = (
    (
        "Content-Length",
        (
            "-1",
            "+5",
            "0x10",
            "5 5",
            "5, 5",
            "5,6",
            "10737418240",
            "99999999999999999999999",
            "",
            " ",
            "1e3",
            "\u0665",
            "00000000005",
            "5;",
            "4294967296",
            "18446744073709551621",
        ),
    ),
    (
        "Transfer-Encoding",
        (
            "chunked",
            "Chunked",
            "chunked, chunked",
            "gzip, chunked",
            "chunked, gzip",
            "identity",
            "",
            "xchunked",
            "chunked ",
            "\x0bchunked",
            "chunked;q=1",
            "deflate",
        ),
    ),
    (
        "Content-Encoding",
        ("gzip", "deflate", "x-gzip", "br", "zstd", "identity", "gzip, gzip", "", "GZIP", "\u00e9", "*"),
    ),
    ("Accept-Encoding", ("gzip", "deflate", "gzip, deflate, br", "", ",", "gzip;q=0", "*;q=0", "gzip" * 500)),
    (
        "Inference-Header-Content-Length",
        ("0", "-1", "1", "99999999999", "x", "", "1e2", "+5", " 5", "\u0665", "9" * 30, "2"),
    ),
    (
        "X-Deadline-S",
        ("nan", "inf", "-inf", "1e400", "-1", "0", "1e-320", "1e-9", "", "x", "1_0", " 1 ", "\u0665", "1e308"),
    ),
    ("X-Envoy-Expected-Rq-Timeout-Ms", ("nan", "0", "-5", "1e400", "1", "x", "0.001", "1e308")),
    (
        "X-Request-Id",
        ("ok-1", "a b", "x" * 128, "x" * 129, "x" * 9000, "\u00e9", "\x01", "", "a\tb", "a%0d%0aSet-Cookie: b"),
    ),
    ("X-Tenant", ("", "t", "t" * 128, "t" * 129, "\u00fc", "\x01", "../..", "\x80\xff")),
    (
        "traceparent",
        ("00-" + "a" * 32 + "-" + "b" * 16 + "-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-00", "zz", "", "-" * 60),
    ),
    (
        "Authorization",
        ("Bearer x", "Bearer", "Bearer ", "Basic eDp5", "Bearer \u00e9", "Bearer " + "x" * 9000, "", "bearer a b"),
    ),
    ("Expect", ("100-continue", "100-Continue", "200-ok", "", "x" * 500, "100-continue, 100-continue")),
    (
        "Connection",
        ("close", "keep-alive", "upgrade", "Upgrade, HTTP2-Settings", "te", "", "close, keep-alive", "\x01"),
    ),
    ("Upgrade", ("websocket", "h2c", "", "tcp")),
    ("HTTP2-Settings", ("AAMAAABkAARAAAAAAAIAAAAA", "")),
    ("Sec-WebSocket-Key", ("dGhlIHNhbXBsZSBub25jZQ==", "x", "")),
    ("Host", ("", "a", "a:99999", "a b", "[::1", "\u00fc", "x" * 4000, "evil\x00", "a,b")),
    (
        "Content-Type",
        (
            "application/json",
            "application/octet-stream",
            "text/html; charset=utf-7",
            "multipart/form-data; boundary=x",
            "multipart/form-data",
            "application/x-www-form-urlencoded",
            "",
            ";",
            "a/b;" + "c=d;" * 300,
            "\u00e9",
        ),
    ),
    ("Cookie", ("a=b", "a" * 9000, ";;;;", "a=\x01")),
    ("Range", ("bytes=0-1", "bytes=-1", "bytes=9-1", "x")),
    ("If-Modified-Since", ("x", "Thu, 99 Jan 9999 99:99:99 GMT")),
    ("Accept", ("*/*", "application/openmetrics-text; version=1.0.0", "text/plain;q=" + "9" * 300, "", "\u00e9")),
    ("Trailer", ("Content-Length", "x")),
    ("TE", ("trailers", "gzip", "\x01")),
    ("X-Forwarded-For", ("127.0.0.1", "x" * 5000)),
    ("x" * 20000, ("y",)),
    ("Bad Name", ("y",)),
    ("Bad\tName", ("y",)),
    ("", ("y",)),
    (":authority", ("y",)),
    ("X\u00e9", ("y",)),
    ("X-Long", ("y" * 20000, "y" * 16384, "y" * 8190)),
)
VERSIONS = (
    "HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.2", "HTTP/1.10", "http/1.1", "HTTP/1", "HTTP/99999.1", "",
    "HTTP/1.1 ", "RTSP/1.0", "HTTP/-1.1", "HTTP/1.1\x0b",
)  # fmt: skip
NOISE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64),
    b"JXSV\x01\r\n\x00",
    b"\r\n" * 500,
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 4000,
    b"\0" * 1000,
    b"SSH-2.0-x\r\n",
    b"GET /\r\n\r\n",
    b"a" * 40000,
    b"",
)
