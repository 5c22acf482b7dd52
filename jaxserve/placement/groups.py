"""Groups that are all alike, for the policies that have such: one config as often as it fits, and the remainder."""

from jaxserve.errors import PlacementError
from jaxserve.placement.devices import assign_devices
from jaxserve.placement.problem import Problem
from jaxserve.plans import ParallelConfig


def index_of(problem: Problem, config: ParallelConfig, *, needed_by: str) -> int:
    """The index of a config in the problem's tables.

    Raises:
        PlacementError: no model of the fleet has a profile for it.
    """
    configs = problem.tables.configs
    if config not in configs:
        listed = ", ".join(f"({each.intra_op}, {each.inter_op})" for each in configs) or "none"
        raise PlacementError(
            f"{needed_by} needs the config ({config.intra_op}, {config.inter_op}), but no model of the fleet has a row "
            f"for it at batch size 1; the profiles have {listed}: run `jaxserve profile`, or choose another policy"
        )
    return configs.index(config)


def alike(problem: Problem, config: ParallelConfig, devices: int) -> tuple[int, ...]:
    """Indices of the configs of the groups on `devices` devices: `config` as often as it fits, then smaller groups.

    The devices that are left become pipelines of one device per stage, their sizes the powers of two that sum up to the
    remainder, ascending. A pipeline that no model has a profile for is not made; its devices stay idle.
    """
    configs = problem.tables.configs
    count, left = divmod(devices, config.devices)
    rest = [ParallelConfig(1, 1 << bit) for bit in range(left.bit_length()) if left >> bit & 1]
    return (configs.index(config),) * count + tuple(configs.index(each) for each in rest if each in configs)


def fit_hosts(problem: Problem, groups: tuple[int, ...]) -> bool:
    """Whether the cluster has devices for these groups with every stage on one host."""
    configs = [problem.tables.configs[index] for index in groups]
    try:
        assign_devices(configs, devices=problem.fleet.devices, devices_per_host=problem.fleet.devices_per_host)
    except PlacementError:
        return False
    return True
