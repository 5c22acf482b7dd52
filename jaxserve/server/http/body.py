"""Bodies of requests: read and decompressed within bounds.

The size that a client announces is never believed: what it announces too large is refused, and room is made only for
what has arrived. Bodies that take long to arrive, or to decompress, count against one budget of the whole server.
"""

import asyncio
import zlib
from collections.abc import Iterator
from typing import Self

from aiohttp import web
from aiohttp.web_exceptions import HTTPException

from jaxserve.errors import InvalidInput, JaxserveError
from jaxserve.server.limits import SLOWEST_BYTES_PER_S, Limits

_SMALL_BYTES = 64 * 2**10
"""What may be read without counting: as much as the loop reads at a time."""
_QUICK_BYTES = 4 * 2**10
"""What is decompressed on the loop; it makes four megabytes at most."""
_STEP_BYTES = 2**20


class Refused(JaxserveError):
    """A request that HTTP itself has a status for.

    Attributes:
        status: of HTTP.
        code: what it is called in the answer.
        closes: whether the connection cannot go on, because not all of the request was read.
        headers: of the answer.
    """

    def __init__(
        self, status: int, code: str, message: str, *, closes: bool = False, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.closes = closes
        self.headers = headers or {}


class Budget:
    """What all large bodies may take together.

    Args:
        limit_bytes: at most.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.used_bytes = 0

    def share(self) -> "Share":
        """A part of it, for one request, which is given back on leaving."""
        return Share(self)

    def take(self, size_bytes: int) -> None:
        """Takes so much of it.

        Raises:
            Refused: there is not so much left.
        """
        if self.used_bytes + size_bytes > self._limit_bytes:
            raise Refused(
                503,
                "too_many_bytes",
                f"bodies of {self.used_bytes} bytes are being read or answered, of {self._limit_bytes} that may be; "
                f"try again in a second",
                closes=True,
                headers={"Retry-After": "1"},
            )
        self.used_bytes += size_bytes


class Share:
    """What one request has of a budget.

    Attributes:
        bytes: how much.
    """

    __slots__ = ("_budget", "bytes")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.bytes = 0

    def grow(self, size_bytes: int) -> None:
        """Takes more of it, up to `size_bytes` in all.

        Raises:
            Refused: there is not so much left.
        """
        if size_bytes > self.bytes:
            self._budget.take(size_bytes - self.bytes)
            self.bytes = size_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.used_bytes -= self.bytes


async def read_body(request: web.BaseRequest, limits: Limits, share: Share) -> bytes | bytearray:
    """The body of a request as it came.

    Raises:
        Refused: it is too large, too slow, or there is no room for it.
        InvalidInput: its framing is wrong.
    """
    content = request.content
    try:
        if content.is_eof():
            body = content.read_nowait()
            if len(body) > limits.max_body_bytes:
                raise _too_large(limits)
            return body
        length = request.content_length
        if length is not None and length > limits.max_body_bytes:
            raise _too_large(limits)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # pyright: ignore[reportAttributeAccessIssue]
        return await _read_slowly(request, limits, share)
    except (HTTPException, web.RequestPayloadError) as error:
        raise InvalidInput("the body is not framed as its headers say") from error
    except RuntimeError as error:  # aiohttp's way to say that the connection was closed meanwhile
        raise ConnectionResetError(str(error)) from error


async def _read_slowly(request: web.BaseRequest, limits: Limits, share: Share) -> bytearray:
    """A body that has not all arrived."""
    content, body = request.content, bytearray()
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    try:
        async with asyncio.timeout(limits.body_timeout_s) as timeout:
            while chunk := await content.readany():
                body += chunk
                if len(body) > limits.max_body_bytes:
                    raise _too_large(limits)
                if len(body) > _SMALL_BYTES:
                    share.grow(len(body))
                timeout.reschedule(began_s + limits.body_timeout_s + len(body) / SLOWEST_BYTES_PER_S)
    except TimeoutError:
        raise Refused(
            408,
            "too_slow",
            f"{len(body)} bytes of the body arrived within {loop.time() - began_s:.0f} s; send it faster, or in "
            f"smaller requests",
            closes=True,
        ) from None
    return body


async def decompress(body: bytes | bytearray, encoding: str, limits: Limits, share: Share) -> bytes | bytearray:
    """The body that `Content-Encoding` says was compressed.

    Raises:
        Refused: it becomes too large, or is compressed in a way that is not known.
        InvalidInput: it is not what its encoding says.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Refused(
            415,
            "unknown_encoding",
            f"Content-Encoding is {encoding!r:.80}; send the body as it is, or with gzip or deflate",
            headers={"Accept-Encoding": "gzip, deflate"},
        )
    inflating = _inflate(body, encoding, limits.max_body_bytes)
    whole = bytearray()
    in_thread = len(body) > _QUICK_BYTES
    while step := (await asyncio.to_thread(next, inflating, b"")) if in_thread else next(inflating, b""):
        whole += step
        if len(whole) > _SMALL_BYTES:
            share.grow(len(body) + len(whole))
    return whole


def _inflate(body: bytes | bytearray, encoding: str, max_bytes: int) -> Iterator[bytes]:
    """What is compressed in a body, in steps; a generator, so that no step is made before the last one was counted."""
    is_raw = encoding == "deflate" and not _has_zlib_header(body)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS if is_raw else zlib.MAX_WBITS | 32)
    made_bytes, rest = 0, bytes(body)
    try:
        while not inflater.eof:
            step = inflater.decompress(rest, _STEP_BYTES)
            rest = inflater.unconsumed_tail
            made_bytes += len(step)
            if made_bytes > max_bytes:
                raise Refused(
                    413,
                    "too_large",
                    f"the body is more than {max_bytes} bytes when decompressed; send it in smaller requests",
                )
            if step:
                yield step
            elif not inflater.eof and not rest:
                raise InvalidInput(f"the body ends in the middle of its {encoding} data")
    except zlib.error as error:
        raise InvalidInput(f"the body is not {encoding}, as its Content-Encoding says: {error}") from error
    if inflater.unused_data:
        raise InvalidInput(f"{len(inflater.unused_data)} bytes follow the {encoding} data of the body")


def _has_zlib_header(body: bytes | bytearray) -> bool:
    """Whether `deflate` is meant as RFC 9110 says; some send the bare data without the header [RFC 1950, 2.2]."""
    return len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0


def _too_large(limits: Limits) -> Refused:
    return Refused(
        413,
        "too_large",
        f"the body is larger than {limits.max_body_bytes} bytes; send it in smaller requests",
        closes=True,
    )
