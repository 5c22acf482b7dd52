"""Plain HTTP, as curl speaks it."""

import dataclasses
import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.protocols_live.live import Door
from tests.protocols_live.models import PATIENCE_S


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What came back; `headers` are by name in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which must be declared as JSON."""
        assert self.headers["content-type"] == "application/json", self
        return json.loads(self.body)

    def is_error(self, status: int, code: str) -> str:
        """Looks whether this is such an error, in the form of the Open Inference Protocol; its message."""
        assert self.status == status, self
        assert self.json.keys() == {"error", "code"}
        assert self.json["code"] == code
        assert self.headers["x-request-id"]
        return self.json["error"]


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(str(self._path))


def ask(
    where: Door | Path,
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request on a connection of its own; a body that is not of bytes is sent as JSON."""
    if isinstance(where, Path):
        connection = UnixConnection(where)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", where.http, timeout=PATIENCE_S)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, dict(headers or {}))
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, fields, response.read())
    finally:
        connection.close()
