"""One inference call and what can become of it: values, with no I/O and no clock.

They are not frozen, because making a frozen dataclass takes a microsecond longer, on a path that has ten for all;
nobody changes one.
"""

import dataclasses
import enum
import math
import numbers
import reprlib

from jaxserve.errors import InvalidInput

LOWEST_PRIORITY, HIGHEST_PRIORITY = -10, 10
LONGEST_TENANT = 128


@dataclasses.dataclass(slots=True, kw_only=True)
class Request:
    """One inference call, as the scheduler sees it.

    Attributes:
        id: ascending in the order of arrival.
        model: name of the model.
        bucket: index of the model's bucket that holds the request by itself.
        rows: size of its batch dimension: how much of a bucket's batch it takes.
        arrival_s: engine clock when the call was decoded.
        slo_s: seconds after `arrival_s` within which an answer is worth something.
        priority: of two that wait for one model, the higher one goes first, where the scheduler is to heed it.
        tenant: whose it is, where the scheduler is to share fairly among tenants.
    """

    id: int
    model: str
    arrival_s: float
    slo_s: float = math.inf
    bucket: int = 0
    rows: int = 1
    priority: int = 0
    tenant: str = ""

    @property
    def deadline_s(self) -> float:
        """Engine clock after which an answer is worthless."""
        return self.arrival_s + self.slo_s


class FailReason(enum.Enum):
    """Why an admitted request was not served."""

    EXPIRED = "expired"
    CANCELLED = "cancelled"
    MODEL = "model"
    GROUP = "group"
    STOPPED = "stopped"


@dataclasses.dataclass(slots=True, kw_only=True)
class Done:
    """Served at `finish_s` (engine clock) by group `group`."""

    id: int
    group: int
    finish_s: float


class RefuseReason(enum.Enum):
    """Why a request was not taken in."""

    LATE = "late"
    COLD = "cold"
    FULL = "full"
    SHARE = "share"
    DOWN = "down"


@dataclasses.dataclass(slots=True, kw_only=True)
class Rejected:
    """Refused on arrival.

    Attributes:
        id: of the request.
        predicted_finish_s: engine clock when it would have been answered; infinite where no group holds the model.
        retry_after_s: seconds after which another one like it may be taken in, where nothing else arrives meanwhile;
            infinite where it would not be in time even on an idle group.
        reason: its finish would be late, or only because its model has to be brought to the devices first; the queue is
            full; its tenant has its share of the queue; or no group that holds the model is well.
    """

    id: int
    predicted_finish_s: float
    retry_after_s: float = math.inf
    reason: RefuseReason = RefuseReason.LATE


@dataclasses.dataclass(slots=True, kw_only=True)
class Failed:
    """Admitted by group `group`, then not served."""

    id: int
    group: int
    reason: FailReason


Outcome = Done | Rejected | Failed


def check_deadline(deadline_s: object) -> float:
    """A deadline that a caller gave, in seconds from now.

    Raises:
        InvalidInput: it is not a finite number greater than 0.
    """
    if type(deadline_s) is float and 0.0 < deadline_s < math.inf:  # almost always
        return deadline_s
    seconds = math.nan
    if not isinstance(deadline_s, bool) and isinstance(deadline_s, numbers.Real):
        try:
            seconds = float(deadline_s)
        except OverflowError:
            seconds = math.inf
    if not 0.0 < seconds < math.inf:
        raise InvalidInput(
            f"deadline_s is {reprlib.repr(deadline_s)}, but must be a finite number of seconds from now, "
            f"greater than 0; leave it out for the model's own"
        )
    return seconds


def check_priority(priority: object) -> int:
    """A priority that a caller gave; the higher, the sooner.

    Raises:
        InvalidInput: it is not a whole number from `LOWEST_PRIORITY` to `HIGHEST_PRIORITY`.
    """
    if type(priority) is not int and not isinstance(priority, bool) and isinstance(priority, numbers.Integral):
        priority = int(priority)
    if type(priority) is not int or not LOWEST_PRIORITY <= priority <= HIGHEST_PRIORITY:
        raise InvalidInput(
            f"priority is {reprlib.repr(priority)}, but must be a whole number from {LOWEST_PRIORITY} to "
            f"{HIGHEST_PRIORITY}; the higher, the sooner, and 0 unless given"
        )
    return priority


def check_tenant(tenant: object) -> str:
    """The name of a tenant that a caller gave; empty for none.

    Raises:
        InvalidInput: it is not text of at most `LONGEST_TENANT` characters.
    """
    if type(tenant) is not str or len(tenant) > LONGEST_TENANT or (not tenant.isascii() and not _is_text(tenant)):
        raise InvalidInput(
            f"tenant is {reprlib.repr(tenant)}, but must be text of at most {LONGEST_TENANT} characters, without lone "
            f"surrogates: the name of whoever is to get a share"
        )
    return tenant


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
