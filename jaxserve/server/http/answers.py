"""Answers of the HTTP server: JSON, tensors, errors, compressed where the client wants it."""

import asyncio
import gzip
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from typing import Any

import orjson
from aiohttp import web

from jaxserve.errors import AdministrationOff, JaxserveError
from jaxserve.protocols.embeddings import write_error
from jaxserve.protocols.loop import write_parts
from jaxserve.protocols.statuses import status_of
from jaxserve.protocols.tensors import Buffer
from jaxserve.server.http.body import Refused

JSON = "application/json"
OCTETS = "application/octet-stream"
_WORTH_IT_BYTES = 4 * 2**10
_QUICK_BYTES = 64 * 2**10
_NO_WEIGHT = re.compile(r"q\s*=\s*0(\.0*)?")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def json_answer(value: Any, *, status: int = 200) -> web.Response:
    """A value as JSON."""
    return answer(orjson.dumps(value), JSON, status=status)


def answer(
    body: bytes, content_type: str, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A body of a type."""
    fields = {"Content-Type": content_type, "Server": "jaxserve"}
    if headers:
        fields.update(headers)
    return web.Response(body=body, status=status, headers=fields)


class Quick:
    """An answer to an inference: what `web.Response` would write, at a quarter of the time.

    To aiohttp it is a response by what that asks of one: `prepare`, `write_eof` and `keep_alive`.

    Args:
        parts: of the body.
        fields: the headers but for those that every answer has; each line with its end.
    """

    __slots__ = ("_fields", "_parts", "_request", "keep_alive", "status")
    prepared = True
    """Its headers are what they are."""

    def __init__(self, parts: Sequence[Buffer], fields: bytes) -> None:
        self._parts = parts
        self._fields = fields
        self._request: web.BaseRequest
        self.keep_alive: bool | None = None
        self.status = 200

    def force_close(self) -> None:
        """Ends the connection after this."""
        self.keep_alive = False

    async def prepare(self, request: web.BaseRequest) -> None:
        """Learns whom to answer."""
        self._request = request
        if self.keep_alive is None:
            self.keep_alive = request.keep_alive

    async def write_eof(self) -> None:
        """Sends it."""
        request, parts = self._request, self._parts
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        size_bytes = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        head = b"HTTP/1.1 200 OK\r\n%b%bContent-Length: %d\r\nDate: %b\r\n\r\n" % (
            self._fields,
            b"" if self.keep_alive else b"Connection: close\r\n",
            size_bytes,
            _date(),
        )
        write_parts(transport, [head, *parts])
        if request.protocol.writing_paused:
            await request.writer.drain()


_dates: tuple[int, bytes] = (0, b"")


def _date() -> bytes:
    """The time as HTTP has it [RFC 9110, 5.6.7]; made once a second."""
    global _dates
    now_s = int(time.time())
    if _dates[0] != now_s:
        _dates = now_s, formatdate(now_s, usegmt=True).encode()
    return _dates[1]


def refusal(error: JaxserveError, *, is_openai: bool) -> web.Response:
    """An error in OpenAI's form, or in that of the Open Inference Protocol, which TensorFlow Serving's is, too."""
    status, code, headers = error_parts(error)
    if is_openai:
        param = getattr(error, "details", {}).get("param")
        body = write_error(str(error), http_status=status, code=code, param=None if param is None else str(param))
    else:
        body = orjson.dumps({"error": str(error), "code": code})
    response = answer(body, JSON, status=status, headers=headers)
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


def encoding_for(accepted: str, parts: Sequence[Buffer], *, is_text: bool) -> str:
    """The `Content-Encoding` that an answer is to have, empty for none.

    Who names one encoding and no other (tritonclient, where it is told to) gets it. Most clients name all that they
    know with every request, whether the network is slow or not: for these only large texts are compressed.
    """
    if not accepted:
        return ""
    names = accepted_encodings(accepted)
    encoding = next((name for name in ("gzip", "deflate") if name in names), "")
    if len(names) > 1 and (not is_text or sum(map(len, parts)) < _WORTH_IT_BYTES):
        return ""
    return encoding


def accepted_encodings(accepted: str) -> list[str]:
    """The encodings that a header `Accept-Encoding` names, but for those that it refuses [RFC 9110, 12.5.3]."""
    found: list[str] = []
    for item in accepted.lower().split(","):
        name, _, weight = item.partition(";")
        if not _NO_WEIGHT.fullmatch(weight.strip()):
            found.append(name.strip())
    return found


async def encoded_answer(
    parts: Sequence[Buffer], content_type: str, encoding: str, *, headers: Mapping[str, str] | None = None
) -> web.Response:
    """The parts as one body of a type, in a `Content-Encoding` (see `encoding_for`), empty for none."""
    body = bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
    if not encoding:
        return answer(body, content_type, headers=headers)
    if len(body) <= _QUICK_BYTES:
        body = _compress(body, encoding)
    else:
        body = await asyncio.to_thread(_compress, body, encoding)
    return answer(body, content_type, headers={**(headers or {}), "Content-Encoding": encoding})


def _compress(body: bytes, encoding: str) -> bytes:
    return gzip.compress(body, 1, mtime=0) if encoding == "gzip" else zlib.compress(body, 1)
