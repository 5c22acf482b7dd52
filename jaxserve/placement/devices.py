"""Which devices each group gets. A stage's devices are on one host (DESIGN.md, decision 5); a group may span hosts."""

from collections.abc import Sequence

from jaxserve.errors import PlacementError
from jaxserve.plans import ParallelConfig


def assign_devices(configs: Sequence[ParallelConfig], *, devices: int, devices_per_host: int) -> list[tuple[int, ...]]:
    """Device numbers of each group, in its order; stage k has the k-th run of `intra_op` of them.

    Widest stages first, each on the first host with room, a group's stages together where they can be. That packs
    everything that fits where each width divides the next larger one and the host, as powers of two do.

    Raises:
        PlacementError: there are too few devices, or no host has room for a stage.
    """
    needed = sum(config.devices for config in configs)
    if needed > devices:
        raise PlacementError(f"the groups need {needed} devices, but the cluster has {devices}")
    free = [list(range(first, min(first + devices_per_host, devices))) for first in range(0, devices, devices_per_host)]
    assigned: list[tuple[int, ...]] = [()] * len(configs)
    order = sorted(range(len(configs)), key=lambda index: (-configs[index].intra_op, -configs[index].inter_op))
    for index in order:
        width, stages = configs[index].intra_op, configs[index].inter_op
        together = [host for host in free if len(host) >= width * stages]
        own: list[int] = []
        for _ in range(stages):
            hosts = together[:1] or [host for host in free if len(host) >= width]
            if not hosts:
                raise PlacementError(
                    f"group {index} has stages of {width} devices, but no host of {devices_per_host} has so many left; "
                    f"use narrower stages or fewer groups"
                )
            own += hosts[0][:width]
            del hosts[0][:width]
        assigned[index] = tuple(own)
    return assigned
