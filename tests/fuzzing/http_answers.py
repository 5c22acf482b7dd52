"""Reads the answers of an HTTP server strictly, as RFC 9112 has them; and says what is wrong with one."""

import dataclasses
import json
import re

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3}) ([\t\x20-\x7e\x80-\xff]*)")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]+)(;.*)?")


class Malformed(Exception):
    """It is no HTTP."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes


def read_answers(data: bytes, *, is_over: bool, has_head: bool) -> tuple[list[Answer], bytes]:
    """The answers that are complete, and what is left.

    Args:
        data: all that came.
        is_over: whether nothing else will come, because the server has closed.
        has_head: whether one may be to a HEAD, which has no body.

    Raises:
        Malformed: they are no HTTP.
    """
    answers: list[Answer] = []
    while data:
        head_end = data.find(b"\r\n\r\n")
        if head_end < 0:
            break
        status, headers = _read_head(data[:head_end])
        rest = data[head_end + 4 :]
        if status < 200:
            data = rest
            continue
        taken = _read_body(status, headers, rest, is_over=is_over, has_head=has_head)
        if taken is None:
            break
        body, data = taken
        answers.append(Answer(status, headers, body))
    return answers, data


def _read_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.split(b"\r\n")
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        raise Malformed(f"the status line is {first[:200]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        field = _HEADER.fullmatch(line)
        if field is None:
            raise Malformed(f"a header is {line[:200]!r}")
        name = field[1].decode().lower()
        if name in headers and name not in ("set-cookie",):
            raise Malformed(f"the header {name} is there twice")
        headers[name] = field[2].decode("latin-1")
    return int(match[1]), headers


def _read_body(
    status: int, headers: dict[str, str], rest: bytes, *, is_over: bool, has_head: bool
) -> tuple[bytes, bytes] | None:
    if status in (204, 304):
        return b"", rest
    if has_head and (rest.startswith(b"HTTP/1.") or not rest):
        return b"", rest  # to a HEAD, perhaps
    length = headers.get("content-length")
    if "transfer-encoding" in headers:
        if length is not None:
            raise Malformed("an answer has Transfer-Encoding and Content-Length")
        return _read_chunks(rest)
    if length is None:
        return (rest, b"") if is_over else None
    if not length.isdigit():
        raise Malformed(f"Content-Length is {length!r}")
    if len(rest) < int(length):
        return None
    return rest[: int(length)], rest[int(length) :]


def _read_chunks(rest: bytes) -> tuple[bytes, bytes] | None:
    body: list[bytes] = []
    while True:
        end = rest.find(b"\r\n")
        if end < 0:
            return None
        match = _CHUNK_SIZE.fullmatch(rest[:end])
        if match is None:
            raise Malformed(f"a chunk has size {rest[:end][:80]!r}")
        size = int(match[1], 16)
        if len(rest) < end + 2 + size + 2:
            return None
        body.append(rest[end + 2 : end + 2 + size])
        if rest[end + 2 + size : end + 4 + size] != b"\r\n":
            raise Malformed("a chunk does not end where it says")
        rest = rest[end + 4 + size :]
        if not size:
            return b"".join(body), rest


def complaint(answer: Answer) -> str | None:
    """What is wrong with an answer, in words that are the same each time; None for nothing."""
    if answer.status < 400:
        return None
    if not answer.body:  # to a HEAD
        return None if answer.status < 500 else _about_head(answer)
    if answer.headers.get("content-type") != "application/json":
        return f"{answer.status} is {answer.headers.get('content-type')}, not JSON"
    try:
        document = json.loads(answer.body)
    except ValueError:
        return f"{answer.status} is no JSON"
    error, code = document.get("error"), document.get("code")
    if isinstance(error, dict):  # OpenAI's form
        error, code = error.get("message"), error.get("code")
    if not isinstance(error, str) or not error:
        return f"{answer.status} has no error"
    if not isinstance(code, str) or not code:
        return f"{answer.status} has no code"
    if code == "server_error":
        return f"{answer.status} is a server_error"
    if "Traceback" in error or 'File "' in error:
        return f"{answer.status} shows a trace"
    return None


def _about_head(answer: Answer) -> str | None:
    return f"{answer.status} without a body" if answer.status == 500 else None
