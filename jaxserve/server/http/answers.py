"""Answers of the HTTP server: JSON, tensors, errors, compressed where the client wants it."""

import asyncio
import gzip
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from aiohttp import web

from jaxserve.errors import AdministrationOff, JaxserveError
from jaxserve.protocols.statuses import status_of
from jaxserve.protocols.tensors import Buffer
from jaxserve.server.http.body import Refused

JSON = "application/json"
OCTETS = "application/octet-stream"
_WORTH_IT_BYTES = 4 * 2**10
_QUICK_BYTES = 64 * 2**10
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def json_answer(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A value as JSON."""
    return answer(orjson.dumps(value), JSON, status=status, headers=headers)


def answer(
    body: bytes, content_type: str, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A body of a type."""
    fields = {"Content-Type": content_type, "Server": "jaxserve"}
    if headers:
        fields.update(headers)
    return web.Response(body=body, status=status, headers=fields)


def error_answer(error: JaxserveError) -> web.Response:
    """An error in the form of the Open Inference Protocol, which TensorFlow Serving's form is, too."""
    status, code, headers = error_parts(error)
    response = json_answer({"error": str(error), "code": code}, status=status, headers=headers)
    if isinstance(error, Refused) and error.closes:
        response.force_close()
    return response


def error_parts(error: JaxserveError) -> tuple[int, str, dict[str, str]]:
    """The status of an error, its code, and the headers that go with it."""
    if isinstance(error, Refused):
        return error.status, error.code, error.headers
    status = status_of(error)
    headers: dict[str, str] = {}
    if status.retry_after_s is not None:
        headers["Retry-After"] = str(status.retry_after_s)
    elif status.http == 503 and not isinstance(error, AdministrationOff):
        headers["Retry-After"] = "1"
    elif status.http == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="jaxserve"'
    return status.http, status.code, headers


def request_id_of(given: str | None) -> str:
    """The id that a client has given its request, where it can be sent back and logged; else nothing."""
    return given if given is not None and _REQUEST_ID.fullmatch(given) else ""


async def compressed(parts: Sequence[Buffer], accepted: str, *, is_text: bool) -> tuple[bytes, str]:
    """The parts as one body, compressed if the client wants that, and its `Content-Encoding`, empty for none.

    Who names one encoding and no other (tritonclient, where it is told to) gets it. Most clients name all that they
    know with every request, whether the network is slow or not: for these only large texts are compressed.
    """
    body = bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
    if not accepted:
        return body, ""
    names = [name.strip().lower() for name in accepted.split(",")]
    encoding = next((name for name in ("gzip", "deflate") if name in names), "")
    if not encoding or (len(names) > 1 and (not is_text or len(body) < _WORTH_IT_BYTES)):
        return body, ""
    if len(body) <= _QUICK_BYTES:
        return _compress(body, encoding), encoding
    return await asyncio.to_thread(_compress, body, encoding), encoding


def _compress(body: bytes, encoding: str) -> bytes:
    return gzip.compress(body, 1, mtime=0) if encoding == "gzip" else zlib.compress(body, 1)
