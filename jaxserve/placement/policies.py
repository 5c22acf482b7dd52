"""The policies that have names."""

from collections.abc import Mapping

from jaxserve.errors import ConfigError
from jaxserve.placement.alpaserve import alpaserve
from jaxserve.placement.clockwork import clockwork_plus_plus
from jaxserve.placement.greedy import greedy
from jaxserve.placement.problem import Policy
from jaxserve.placement.round_robin import round_robin
from jaxserve.placement.search import search
from jaxserve.placement.selective_replication import selective_replication

_POLICIES: Mapping[str, Policy] = {
    "search": search,
    "alpaserve": alpaserve,
    "selective-replication": selective_replication,
    "round-robin": round_robin,
    "clockwork++": clockwork_plus_plus(),
}
_GREEDY = "greedy-"

POLICY_NAMES = (*_POLICIES, "greedy-N")
"""What may be asked for by name; N is a number of stages."""

FAIR = frozenset({"search"})
"""The policies that heed fairness and floors; the others only maximise the total."""

MOVING = frozenset({"clockwork++"})
"""The policies whose placements have segments, for which the bound does not hold."""


def policy_named(name: str) -> Policy:
    """The policy of this name.

    Raises:
        ConfigError: there is none.
    """
    if name in _POLICIES:
        return _POLICIES[name]
    stages = name.removeprefix(_GREEDY)
    if name.startswith(_GREEDY) and stages.isdecimal():
        return greedy(int(stages))
    raise ConfigError(
        f"policy is {name!r}, but must be one of {', '.join(POLICY_NAMES)}, where N is a number of stages, "
        f"or a function of your own"
    )


def policy_label(policy: str | Policy) -> str:
    """What a policy is called in results: its name, or MODULE:FUNCTION."""
    if isinstance(policy, str):
        return policy
    return f"{policy.__module__}:{getattr(policy, '__qualname__', type(policy).__qualname__)}"
