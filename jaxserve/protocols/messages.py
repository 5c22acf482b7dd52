"""The messages of the native protocol: plain values, the same on both ends.

They are slotted but not frozen: a frozen dataclass takes a microsecond longer to make, once per request. Nobody changes
one. `id` numbers a request within its connection; the client chooses it, from 1 to 2**63 - 1, and may use it again once
the request has been answered.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxserve.errors import Detail, InvalidInput

Value = np.ndarray | list[str]
"""What one input or output is on the wire: a tensor, or a list of strings."""


@dataclasses.dataclass(slots=True)
class Hello:
    """Client to server, first: the versions it speaks, the largest frame that it will read, and who it is.

    Attributes:
        token: what a server that has tokens wants to see; empty for none.
    """

    versions: Sequence[int]
    max_frame_bytes: int
    agent: str
    token: str = ""


@dataclasses.dataclass(slots=True)
class Welcome:
    """Server to client, first: the version chosen, and what this connection may send."""

    version: int
    max_frame_bytes: int
    max_in_flight: int
    agent: str


@dataclasses.dataclass(slots=True)
class Infer:
    """Client to server: run `model`.

    Attributes:
        deadline_s: seconds left at the moment of sending; None for the model's default.
        priority: of requests that wait for one model, those of higher priority go first, where the server heeds it.
        tenant: whose request it is, where the server shares fairly among tenants; empty for none.
        size_bytes: what the frame took on the wire; 0 on a message that was not received.
    """

    id: int
    model: str
    deadline_s: float | None
    inputs: Mapping[str, Value]
    priority: int = 0
    tenant: str = ""
    size_bytes: int = 0


@dataclasses.dataclass(slots=True)
class BadInfer:
    """An `Infer` whose id could be read and whose content is wrong: to be answered, not served. Never sent."""

    id: int
    error: InvalidInput


@dataclasses.dataclass(slots=True)
class Result:
    """Server to client: the outputs of one request."""

    id: int
    outputs: Mapping[str, Value]


@dataclasses.dataclass(slots=True)
class Failure:
    """Server to client: what became of one request instead; with id 0 the connection itself failed and ends."""

    id: int
    code: str
    message: str
    details: Mapping[str, Detail]


@dataclasses.dataclass(slots=True)
class Cancel:
    """Client to server: request `id` is not wanted any more. Unknown ids are ignored: the answer may be under way."""

    id: int


@dataclasses.dataclass(slots=True)
class StatusQuery:
    """Client to server: what does the engine do."""

    id: int


@dataclasses.dataclass(slots=True)
class DescribeQuery:
    """Client to server: which models are served, and their signatures."""

    id: int


@dataclasses.dataclass(slots=True)
class Report:
    """Server to client: the answer to a query."""

    id: int
    value: Any


@dataclasses.dataclass(slots=True)
class Goodbye:
    """Server to client: send no more requests here; those in flight have `grace_s` seconds to finish."""

    grace_s: float
    reason: str


Message = (
    Hello | Welcome | Infer | BadInfer | Result | Failure | Cancel | StatusQuery | DescribeQuery | Report | Goodbye
)
