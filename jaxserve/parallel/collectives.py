"""What communication costs: the alpha-beta model, in which a message of m bytes takes latency + m / bandwidth.

n devices form a ring; in each step every device sends 1 / n of the bytes to the next one, and receives as many from the
one before. The steps are those of Thakur, Rabenseifner and Gropp 2005 ("Optimization of collective communication
operations in MPICH"), without the cost of the additions, which memory bandwidth hides:

    all_gather              n - 1    section 4.1, ring
    all_to_all              n - 1    section 4.2, pairwise exchange
    reduce_scatter          n - 1    section 4.3, pairwise exchange
    all_reduce         2 (n - 1)     section 4.5, a reduce-scatter and an all-gather
    collective_permute          1    of all bytes, to one other device

Where each pair of neighbours has a link of its own, as in a TPU's ring, data of an all-to-all takes several hops and
n / 4 times as long once n is large; within a host n is at most 8.
"""

from typing import Literal

from jaxserve.errors import ConfigError
from jaxserve.parallel.devices import COLLECTIVES, Device

Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "collective_permute"]


def collective_s(device: Device, kind: str, nbytes: float, devices: int) -> float:
    """Seconds for one collective over neighbouring devices, its launch included; 0 on one device.

    A backend that lacks the collective does what XLA makes of it there: a reduce-scatter or an all-gather becomes an
    all-reduce (and a slice, or of a padded array), an all-to-all becomes an all-gather (and a slice).

    Args:
        device: of which kind all of them are.
        kind: one of `COLLECTIVES`.
        nbytes: per device; of the input (which each device has in full) of an all_reduce or reduce_scatter, of the
            result of an all_gather, of what a device holds for an all_to_all or sends by a collective_permute.
        devices: how many take part.

    Raises:
        ConfigError: no collective has this name.
    """
    if devices <= 1:
        return 0.0
    link = device.link(devices)
    if kind not in device.collectives:
        kind, nbytes = _instead(kind, nbytes, devices)
    if kind == "collective_permute":
        return device.overhead_s + (link.latency_s + nbytes / link.bandwidth_bytes_per_s)
    rounds = 2.0 if kind == "all_reduce" else 1.0
    step_s = link.latency_s + nbytes / devices / link.bandwidth_bytes_per_s
    return device.overhead_s + rounds * (devices - 1) * step_s


def _instead(kind: str, nbytes: float, devices: int) -> tuple[Collective, float]:
    """The collective that stands for one that the backend lacks, and its bytes."""
    if kind in ("reduce_scatter", "all_gather"):
        return "all_reduce", nbytes
    if kind == "all_to_all":
        return "all_gather", nbytes * devices
    raise ConfigError(f"no collective is called {kind!r}; choose one of {', '.join(sorted(COLLECTIVES))}")
