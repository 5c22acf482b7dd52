"""A caller, and what it may do."""

import dataclasses
import fnmatch
from collections.abc import Iterable

from jaxserve.errors import PermissionDenied

_REMEMBERED = 1024  # models for each identity; names come from callers, so there may be any number of them
_LONGEST_REMEMBERED = 256  # characters


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A caller, and what it may do. Models are given by patterns with `*`, `?` and `[...]`, as for file names.

    Attributes:
        name: of its token, and so the tenant of its requests; empty for a caller without one, who chooses a tenant.
        infer: models that it may use.
        admin: models that it may load and unload.
        observe: whether it may see metrics, the status and the live page.
        digest: SHA-256 of its token; empty for a caller without one.
    """

    name: str = ""
    infer: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()
    observe: bool = True
    digest: bytes = dataclasses.field(default=b"", repr=False)
    _may_infer: dict[str, bool] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)
    _may_administer: dict[str, bool] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def may_infer(self, model: str) -> bool:
        """Whether it may use a model, served or not."""
        may = self._may_infer.get(model)
        return _decided(self._may_infer, self.infer, model) if may is None else may

    def may_administer(self, model: str) -> bool:
        """Whether it may load and unload a model, served or not."""
        may = self._may_administer.get(model)
        return _decided(self._may_administer, self.admin, model) if may is None else may

    def tenant(self, asked: str) -> str:
        """Whose its requests are: the token's, or whose the request says they are."""
        return self.name or asked

    def cannot_infer(self, model: str) -> PermissionDenied:
        """What it is told that asks a model that it may not use."""
        return PermissionDenied(f"{self._called} may not use model {model!r:.200}; {self._mend('infer')}")

    def cannot_administer(self, model: str) -> PermissionDenied:
        """What it is told that would load or unload a model that it may not."""
        return PermissionDenied(f"{self._called} may not administer model {model!r:.200}; {self._mend('admin')}")

    def cannot_observe(self) -> PermissionDenied:
        """What it is told that asks for metrics or the status and may not see them."""
        return PermissionDenied(f"{self._called} may not see what the server does; {self._mend('observe')}")

    def check_observes(self) -> None:
        """Looks whether it may see metrics, the status and the live page.

        Raises:
            PermissionDenied: it may not.
        """
        if not self.observe:
            raise self.cannot_observe()

    @property
    def _called(self) -> str:
        return f"the token {self.name!r}" if self.name else "whoever shows no token"

    def _mend(self, right: str) -> str:
        if self.name:
            return f"who runs the server can allow it by the token's {right!r} in the tokens file"
        return "who runs the server can give out tokens that allow it"


def _decided(known: dict[str, bool], patterns: Iterable[str], model: str) -> bool:
    """Whether a pattern covers the model; remembered."""
    may = any(fnmatch.fnmatchcase(model, pattern) for pattern in patterns)
    if len(model) <= _LONGEST_REMEMBERED:
        if len(known) >= _REMEMBERED:
            known.clear()  # crude, but it bounds the memory, and honest callers never come near the bound
        known[model] = may
    return may


ANYBODY = Identity(infer=("*",))
"""Every caller of an open server: uses everything, sees everything, administers nothing."""

OPERATOR = Identity(infer=("*",), admin=("*",))
"""Whoever may open the administration socket: its file's mode says who that is."""
