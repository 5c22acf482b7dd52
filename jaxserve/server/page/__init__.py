"""The live page: what a browser is given at `/`, to be served as it is; docs/live-page.md says how."""

import dataclasses
import gzip
import importlib.resources
from collections.abc import Mapping
from types import MappingProxyType

# Scripts and styles come from this server only and nothing is inline. Trusted types make the browser itself refuse to
# take any string for markup, so that a model's name cannot become an element even if the page had such a mistake.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

# What every file of the page is served with, whoever asks: the files hold no data, so they need no token.
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
)

_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
_INDEX = "index.html"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of the page.

    Attributes:
        path: where it is served, below which the page looks for its other files.
        content_type: the value of its `Content-Type` header.
        body: its bytes.
        gzipped: the same as `Content-Encoding: gzip`, for who accepts that; a third of the size.
    """

    path: str
    content_type: str
    body: bytes
    gzipped: bytes


def files() -> tuple[File, ...]:
    """Every file of the page: the document at `/`, its style and its modules below `/page/`."""
    found = []
    for entry in sorted(importlib.resources.files(__name__).iterdir(), key=lambda entry: entry.name):
        content_type = _CONTENT_TYPES.get(f".{entry.name.rpartition('.')[2]}")
        if content_type is not None:
            path = "/" if entry.name == _INDEX else f"/page/{entry.name}"
            body = entry.read_bytes()
            gzipped = gzip.compress(body, mtime=0)
            found.append(File(path=path, content_type=content_type, body=body, gzipped=gzipped))
    return tuple(found)
