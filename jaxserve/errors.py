"""The exception tree.

    JaxserveError
    ├── ModelError            a model that cannot be made: signature, params, buckets, apply
    ├── FileFormatError       a file that is not what it should be; names the field
    ├── PlacementError        a placement that does not fit its models, profiles or devices
    ├── ConfigError           a command, flag or setting that makes no sense
    ├── MissingExtra          an optional dependency that is not installed
    ├── InferenceError        the answer to one inference call, when it is not its outputs
    │   ├── ModelNotFound
    │   ├── InvalidInput
    │   ├── DeadlineRefused   refused on arrival: it could not have finished in time
    │   ├── QueueFull         refused on arrival: too many wait already
    │   ├── DeadlineExceeded  admitted, but its deadline passed before it finished
    │   ├── RequestCancelled
    │   ├── GroupFailed       the mesh group could not run it
    │   │   └── ModelFailed   the model raised on this request; the group goes on
    │   ├── EngineStopped
    │   ├── Unauthenticated   the server wants a token, and got none or one that it does not know
    │   ├── PermissionDenied  the token does not allow it
    │   └── TooManyInFlight   refused on arrival: its client has as many unanswered as it may have
    ├── ServiceError          the answer of a server to another call than inference
    │   ├── Unsupported       a call of a protocol that is not done here
    │   └── AdministrationOff
    └── TransportError        between a client and a server
        ├── ConnectionLost    the connection ended before the answer came
        ├── ProtocolError     bytes that are not the native protocol
        │   ├── FrameTooLarge
        │   └── VersionMismatch
        └── ServerError       the server failed for a reason that is its own

Inside the engine a refusal is a value (`jaxserve.request.Rejected`); it becomes one of these where it reaches a caller.
Every `InferenceError` crosses the network as (code, message, details) and is rebuilt by `from_wire`.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

Detail = str | int | float


class JaxserveError(Exception):
    """Base of everything that jaxserve raises on purpose.

    Attributes:
        is_told: whether a server has logged it.
    """

    is_told = False


class ModelError(JaxserveError, ValueError):
    """A model that cannot be made."""


class FileFormatError(JaxserveError, ValueError):
    """A file that does not hold what its format demands; the message names the field."""


class PlacementError(JaxserveError, ValueError):
    """A placement that does not fit its models, its profiles or its devices."""


class ConfigError(JaxserveError, ValueError):
    """A command, flag or setting that makes no sense."""


class MissingExtra(JaxserveError, ImportError):
    """An optional dependency that is not installed; the message names the extra that brings it."""


class InferenceError(JaxserveError):
    """The answer to one inference call, when it is not the outputs.

    Attributes:
        code: the name of this error on the wire.
        details: the numbers behind the message, by name.
    """

    code: ClassVar[str] = "inference_error"

    def __init__(self, message: str, **details: Detail) -> None:
        super().__init__(message)
        self.details: Mapping[str, Detail] = details


class ModelNotFound(InferenceError, LookupError):
    """No model of this name is served."""

    code = "model_not_found"


class InvalidInput(InferenceError, ValueError):
    """Inputs that do not fit the model's signature, or a deadline, priority or tenant that is none."""

    code = "invalid_input"


class DeadlineRefused(InferenceError, TimeoutError):
    """Refused on arrival: no group would have finished it in time.

    Attributes:
        predicted_finish_s: seconds from arrival to the predicted finish (infinite where no group holds the model).
        deadline_s: seconds from arrival to the deadline.
        retry_after_s: seconds after which a request like it may be taken in, where nothing else arrives meanwhile;
            infinite where even an idle group would be too slow.
    """

    code = "deadline_refused"

    @property
    def predicted_finish_s(self) -> float:
        """Seconds from arrival to the finish that was predicted."""
        return float(self.details["predicted_finish_s"])

    @property
    def deadline_s(self) -> float:
        """Seconds from arrival to the deadline that was asked for."""
        return float(self.details["deadline_s"])

    @property
    def retry_after_s(self) -> float:
        """Seconds after which a request like it may be taken in."""
        return float(self.details.get("retry_after_s", math.inf))


class QueueFull(InferenceError):
    """Refused on arrival: as many requests wait as are allowed to, of all or of its tenant, which `details` then names.

    Attributes:
        retry_after_s: seconds after which there is expected to be room.
    """

    code = "queue_full"

    @property
    def retry_after_s(self) -> float:
        """Seconds after which there is expected to be room."""
        return float(self.details["retry_after_s"])


class DeadlineExceeded(InferenceError, TimeoutError):
    """Admitted, but its deadline passed before it finished."""

    code = "deadline_exceeded"


class RequestCancelled(InferenceError):
    """Cancelled by its caller, or its caller's connection ended."""

    code = "cancelled"


class GroupFailed(InferenceError):
    """The mesh group could not run the request."""

    code = "group_failed"


class ModelFailed(GroupFailed):
    """The model raised on this request; its group goes on with the others."""

    code = "model_failed"


class EngineStopped(InferenceError):
    """The engine stopped, or is stopping, before the request was answered."""

    code = "engine_stopped"


class Unauthenticated(InferenceError):
    """The server wants a token, and got none or one that it does not know."""

    code = "unauthenticated"


class PermissionDenied(InferenceError):
    """The token does not allow it."""

    code = "permission_denied"


class TooManyInFlight(InferenceError):
    """Refused on arrival: its client has as many requests unanswered as it may have.

    Attributes:
        retry_after_s: seconds after which there is expected to be room.
    """

    code = "too_many_in_flight"

    @property
    def retry_after_s(self) -> float:
        """Seconds after which there is expected to be room."""
        return float(self.details.get("retry_after_s", 1.0))


class ServiceError(JaxserveError):
    """The answer of a server to another call than inference.

    Attributes:
        code: the name of this error on the wire.
    """

    code: ClassVar[str] = "service_error"


class Unsupported(ServiceError):
    """A call of a protocol that is not done here."""

    code = "unsupported"


class AdministrationOff(ServiceError):
    """Models are not loaded and unloaded through this door."""

    code = "administration_off"


class TransportError(JaxserveError, ConnectionError):
    """Something between a client and a server."""


class ConnectionLost(TransportError):
    """The connection ended before the answer came."""


class ProtocolError(TransportError):
    """Bytes that are not the native protocol."""


class FrameTooLarge(ProtocolError):
    """A frame over the size limit."""


class VersionMismatch(ProtocolError):
    """The two ends speak no common version of the protocol."""


class ServerError(TransportError):
    """The server failed for a reason that is its own; its log says more."""


_BY_CODE: dict[str, type[InferenceError]] = {
    kind.code: kind
    for kind in (
        ModelNotFound,
        InvalidInput,
        DeadlineRefused,
        QueueFull,
        DeadlineExceeded,
        RequestCancelled,
        GroupFailed,
        ModelFailed,
        EngineStopped,
        Unauthenticated,
        PermissionDenied,
        TooManyInFlight,
    )
}


_LONGEST_BRIEF = 300


def from_wire(code: str, message: str, details: Mapping[str, Detail]) -> JaxserveError:
    """The error that (code, message, details) stands for; an unknown code becomes a `ServerError`."""
    kind = _BY_CODE.get(code)
    if kind is None:
        return ServerError(f"{message} (code {code!r})")
    return kind(message, **details)


def not_readable(error: Exception) -> InvalidInput:
    """What the caller of a request gets whose inputs raised as they were made arrays."""
    invalid = InvalidInput(f"an input cannot be read as an array: {type(error).__name__}: {brief(error)}")
    invalid.__cause__ = error
    return invalid


def model_failed(model: str, error: BaseException) -> InferenceError:
    """What the caller of a request gets on which `model` raised; an error that is meant for callers stays as it is."""
    if isinstance(error, InferenceError):
        return error
    what = f"model {model!r} raised {type(error).__name__} on this request: {brief(error)}"
    failed = ModelFailed(what, model=model)
    failed.__cause__ = error
    return failed


def too_late(predicted_s: float, slo_s: float, retry_after_s: float) -> DeadlineRefused:
    """What the caller of a request gets that would be answered after `predicted_s`, where `slo_s` are allowed."""
    details: dict[str, Detail] = {"predicted_finish_s": predicted_s, "deadline_s": slo_s}
    advice = "allow more time, or send less"
    if retry_after_s < math.inf:
        details["retry_after_s"] = retry_after_s
        advice = f"allow more time, or try again in {retry_after_s:.2g} s"
    return DeadlineRefused(
        f"would be answered after {predicted_s:.4g} s, but its deadline is {slo_s:.4g} s; {advice}", **details
    )


def brief(error: BaseException) -> str:
    """One line of an error for its caller; jax puts whole tracebacks into messages, and those end with the cause."""
    lines = str(error).strip().splitlines() or [""]
    line = lines[-1] if any("Traceback (most recent call last)" in line for line in lines) else lines[0]
    return line if len(line) <= _LONGEST_BRIEF else f"{line[:_LONGEST_BRIEF]}..."
