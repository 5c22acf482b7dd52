"""One operation of the OpenAPI document as a value, and the usual kinds of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxserve.protocols.openapi.schemas import NAME, Schema

JSON, RAW = "application/json", "application/octet-stream"

WITH_BODY = (413, 415)
"""The statuses of errors, beyond those of every path, where there is a body."""
_INFERENCE = (404, *WITH_BODY, 429, 499, 501, 504)
"""And where a model runs."""
_INFERENCE_PARAMETERS = ("Deadline", "EnvoyDeadline", "Tenant", "RequestId", "TraceParent")
_REQUEST_ID = {"X-Request-Id": {"required": True, "description": "The request's, or one made here.", "schema": NAME}}

Media = Mapping[str, Mapping[str, Any]]
"""What a body is, by its media type."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of a path.

    Attributes:
        id: a name of its own.
        tag: what it belongs to.
        summary: what it does.
        answers: the responses that are its own, by status.
        statuses: of the errors that not every path has.
        parameters: names of those of the document.
        body: the request's, if it has one.
        needs_body: whether it must have one.
    """

    id: str
    tag: str
    summary: str
    answers: Mapping[int, Mapping[str, Any]]
    statuses: Sequence[int] = ()
    parameters: Sequence[str] = ()
    body: Media | None = None
    needs_body: bool = True


Paths = dict[str, dict[str, Operation]]
"""Operations by path and method."""


def json_body(schema: Schema, example: Any | None = None) -> Media:
    """A body of such JSON."""
    return {JSON: {"schema": schema} if example is None else {"schema": schema, "example": example}}


def answer(says: str, content: Media | None = None) -> Mapping[str, Any]:
    """A response that is no error."""
    return {"description": says} if content is None else {"description": says, "content": content}


def query(
    id: str, tag: str, says: str, content: Media, *, parameters: Sequence[str] = (), statuses: Sequence[int] = ()
) -> dict[str, Operation]:
    """The methods of a path that is only asked."""
    answers = {200: answer(says, content)}
    return {"get": Operation(id=id, tag=tag, summary=says, answers=answers, parameters=parameters, statuses=statuses)}


def inference(
    id: str,
    tag: str,
    summary: str,
    *,
    body: Media,
    outputs: Media,
    parameters: Sequence[str] = (),
    headers: Mapping[str, Any] | None = None,
) -> dict[str, Operation]:
    """The methods of a path that runs a model; `headers` are of the answer."""
    found = {**answer("The outputs.", outputs), "headers": {**_REQUEST_ID, **(headers or {})}}
    return {
        "post": Operation(
            id=id,
            tag=tag,
            summary=summary,
            answers={200: found},
            statuses=_INFERENCE,
            parameters=(*parameters, *_INFERENCE_PARAMETERS),
            body=body,
        )
    }
