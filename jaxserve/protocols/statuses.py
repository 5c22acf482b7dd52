"""What each error is called in HTTP and in gRPC."""

import dataclasses
import math

from jaxserve import errors
from jaxserve.errors import JaxserveError

LONGEST_RETRY_S = 3600
"""What is said where even an idle group would be too slow, so that waiting does not help by itself."""

_KINDS: dict[type[JaxserveError], tuple[int, str]] = {
    errors.InvalidInput: (400, "INVALID_ARGUMENT"),
    errors.Unauthenticated: (401, "UNAUTHENTICATED"),
    errors.PermissionDenied: (403, "PERMISSION_DENIED"),
    errors.ModelNotFound: (404, "NOT_FOUND"),
    errors.DeadlineRefused: (429, "RESOURCE_EXHAUSTED"),
    errors.QueueFull: (429, "RESOURCE_EXHAUSTED"),
    errors.TooManyInFlight: (429, "RESOURCE_EXHAUSTED"),
    errors.RequestCancelled: (499, "CANCELLED"),
    errors.ModelFailed: (500, "INTERNAL"),
    errors.Unsupported: (501, "UNIMPLEMENTED"),
    errors.GroupFailed: (503, "UNAVAILABLE"),
    errors.EngineStopped: (503, "UNAVAILABLE"),
    errors.AdministrationOff: (503, "UNAVAILABLE"),
    errors.DeadlineExceeded: (504, "DEADLINE_EXCEEDED"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """An error as HTTP and gRPC see it.

    Attributes:
        http: the status code.
        grpc: the name of the `grpc.StatusCode`.
        code: what the native protocol calls it.
        retry_after_s: whole seconds after which a refused request may be tried again; None for what is no refusal.
    """

    http: int
    grpc: str
    code: str
    retry_after_s: int | None = None


def status_of(error: JaxserveError) -> Status:
    """The status of an error; what is not meant for callers is an internal one."""
    for kind in type(error).__mro__:
        if kind in _KINDS:
            http, grpc = _KINDS[kind]
            code = getattr(error, "code", "server_error")
            return Status(http, grpc, code, _retry_after_s(error) if http == 429 else None)
    return Status(500, "INTERNAL", "server_error")


def _retry_after_s(error: JaxserveError) -> int:
    seconds = getattr(error, "retry_after_s", 1.0)
    return LONGEST_RETRY_S if not seconds < LONGEST_RETRY_S else max(1, math.ceil(seconds))
