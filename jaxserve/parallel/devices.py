"""The devices that programs are planned for: what they compute, hold and send in a second.

Peaks are those of the makers' data sheets, dense (without the factor 2 of structured sparsity). Three numbers of a
device are fitted or measured rather than looked up: `compute_efficiency`, `memory_efficiency` and `overhead_s`.
docs/cost-model.md says how; `jaxserve.runtime.calibrate` measures them on devices that are attached.

Sources, by the names that the comments below use:

- V100: NVIDIA V100 data sheet, table of specifications, column V100 SXM2. A100: NVIDIA A100 80GB data sheet, column
  SXM. H100 and H200: NVIDIA H100 and H200 data sheets, column SXM. L4: NVIDIA L4 data sheet.
- TPU: cloud.google.com/tpu/docs, the page of each version (memory, its bandwidth, peaks), and Austin et al., "How to
  Scale Your Model" (2025), part 2, tables under "Key takeaways" (host size, ICI, data-centre network).
- NCCL: github.com/NVIDIA/nccl, its own cost model: what one NVLink carries in one direction (src/graph/topo.h,
  `SM70_NVLINK_BW` = 20 GB/s and its like; PCI Gen3 x16: 12), and the latency of one step of a ring with protocol Simple
  (src/graph/tuning.cc, `hwLat`: NVLink 3.4 us, PCI 5.7 us, network 14 us).
"""

import dataclasses
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from jaxserve.errors import ConfigError

Backend = Literal["gpu", "tpu", "cpu"]

COLLECTIVES = frozenset({"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "collective_permute"})
"""What a backend may have; XLA's names."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How devices reach each other.

    Attributes:
        bandwidth_bytes_per_s: what one device sends in one direction while it receives as much.
        latency_s: of one message however small, as in one step of a ring.
    """

    bandwidth_bytes_per_s: float
    latency_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One kind of device.

    Attributes:
        kind: its name in `DEVICES`.
        backend: the platform that XLA compiles for.
        memory_bytes: of one device.
        memory_bandwidth_bytes_per_s: peak, of reads and writes together.
        peak_flops_per_s: of matrix products at JAX's default precision, by the dtype of their operands; see `peak`.
        inside_host: to the other devices of its host.
        between_hosts: to a device of another host.
        devices_per_host: in the usual machine.
        collectives: those that the backend has.
        compute_efficiency: part of the peak that large products reach.
        memory_efficiency: part of the memory's bandwidth that large elementwise operations reach.
        overhead_s: of each launched kernel, whatever it does.
    """

    kind: str
    backend: Backend
    memory_bytes: int
    memory_bandwidth_bytes_per_s: float
    peak_flops_per_s: Mapping[str, float]
    inside_host: Link
    between_hosts: Link
    devices_per_host: int
    collectives: frozenset[str]
    compute_efficiency: float
    memory_efficiency: float
    overhead_s: float

    def peak(self, dtype: str) -> float:
        """Operations per second on this dtype: its own, or those of what the device computes it by."""
        peaks = self.peak_flops_per_s
        if dtype in peaks:
            return peaks[dtype]
        if dtype in _IN_SOFTWARE:
            return peaks["float32"] / _IN_SOFTWARE[dtype]
        return next(peaks[name] for name in (*_COMPUTED_BY.get(dtype, ()), "float32") if name in peaks)

    def link(self, devices: int) -> Link:
        """The slowest link among this many neighbours."""
        return self.inside_host if devices <= self.devices_per_host else self.between_hosts


# Where a device lacks a dtype, the next of these that it has computes it; after them float32, which all devices have.
# So are bool and wide integers, float16 on a TPU and bfloat16 on a V100.
_COMPUTED_BY: Mapping[str, tuple[str, ...]] = {
    "float8_e4m3fn": ("float8", "bfloat16", "float16"),
    "float8_e5m2": ("float8", "bfloat16", "float16"),
    "int4": ("int8",),
    "uint4": ("int8",),
    "uint8": ("int8",),
}

# Dtypes whose operations are several of float32 where the device lacks them: how many.
_IN_SOFTWARE = {"complex64": 4.0, "float64": 16.0, "complex128": 64.0}


def _peaks(**tera: float) -> Mapping[str, float]:
    """Peaks given in 10^12 operations per second."""
    return MappingProxyType({dtype: 1e12 * peak for dtype, peak in tera.items()})


_GIB = 2**30
_NVLINK_LATENCY_S = 3.4e-6  # NCCL
_PCI_LATENCY_S = 5.7e-6  # NCCL
_NETWORK_LATENCY_S = 14e-6  # NCCL
_TPU_NETWORK = Link(bandwidth_bytes_per_s=25e9, latency_s=_NETWORK_LATENCY_S)  # Austin et al.: 2.5e10 for a host
_TPU_HOP_S = 1e-6  # Austin et al., part 3: about 1 us for one hop over ICI

# The three constants are fitted for the V100 alone (docs/cost-model.md). The others have what large matrix products and
# copies usually reach, until `jaxserve.runtime.calibrate` has measured them. The launch of a GPU's kernel lies between
# the 1 us and the 5 us that XLA's own model has assumed (`kKernelLaunchOverhead`, gpu_performance_model_base.h and its
# forerunners); a TPU runs its program without a host's help.
_USUAL_COMPUTE = 0.7
_USUAL_MEMORY = 0.8
_GPU_LAUNCH_S = 3e-6
_TPU_LAUNCH_S = 1e-6


def _gpu(
    kind: str,
    *,
    memory_bytes: int,
    memory_bandwidth_bytes_per_s: float,
    peaks: Mapping[str, float],
    inside_host: Link,
    network_bytes_per_s: float,
    devices_per_host: int = 8,
    compute_efficiency: float = _USUAL_COMPUTE,
    memory_efficiency: float = _USUAL_MEMORY,
    overhead_s: float = _GPU_LAUNCH_S,
) -> Device:
    return Device(
        kind=kind,
        backend="gpu",
        memory_bytes=memory_bytes,
        memory_bandwidth_bytes_per_s=memory_bandwidth_bytes_per_s,
        peak_flops_per_s=peaks,
        inside_host=inside_host,
        between_hosts=Link(bandwidth_bytes_per_s=network_bytes_per_s, latency_s=_NETWORK_LATENCY_S),
        devices_per_host=devices_per_host,
        collectives=COLLECTIVES,
        compute_efficiency=compute_efficiency,
        memory_efficiency=memory_efficiency,
        overhead_s=overhead_s,
    )


def _tpu(
    kind: str,
    *,
    memory_bytes: int,
    memory_bandwidth_bytes_per_s: float,
    peaks: Mapping[str, float],
    link_bytes_per_s: float,
    devices_per_host: int,
) -> Device:
    """`link_bytes_per_s` is one way; a ring uses both ways of each link, so that a device sends twice as much."""
    return Device(
        kind=kind,
        backend="tpu",
        memory_bytes=memory_bytes,
        memory_bandwidth_bytes_per_s=memory_bandwidth_bytes_per_s,
        # By default JAX multiplies float32 matrices on a TPU in one pass of bfloat16 (jax.lax.Precision.DEFAULT).
        peak_flops_per_s=MappingProxyType({"float32": peaks["bfloat16"], **peaks}),
        inside_host=Link(bandwidth_bytes_per_s=2 * link_bytes_per_s, latency_s=_TPU_HOP_S),
        between_hosts=_TPU_NETWORK,
        devices_per_host=devices_per_host,
        collectives=COLLECTIVES,
        compute_efficiency=_USUAL_COMPUTE,
        memory_efficiency=_USUAL_MEMORY,
        overhead_s=_TPU_LAUNCH_S,
    )


# By default JAX multiplies float32 matrices in TF32 on Ampere and later (jax.lax.Precision.DEFAULT).
DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        device.kind: device
        for device in (
            _gpu(
                "v100",
                memory_bytes=16 * _GIB,
                memory_bandwidth_bytes_per_s=900e9,  # V100
                # V100: tensor 125, single 15.7, double 7.8. No tensor cores for bfloat16 or integers.
                peaks=_peaks(float16=125, float32=15.7, float64=7.8),
                # A hybrid cube mesh (NVIDIA DGX-1 with Tesla V100 system architecture, section 3): neighbours are
                # joined by one or two of a device's six links. Two links of NCCL's 20 GB/s.
                inside_host=Link(bandwidth_bytes_per_s=40e9, latency_s=_NVLINK_LATENCY_S),
                network_bytes_per_s=25e9 / 8,  # AWS p3.16xlarge, which AlpaServe used (section 6.1): 25 Gbit/s
                # The two efficiencies are fitted to AlpaServe's table 1 by bench/cost_model.py.
                compute_efficiency=0.88,
                memory_efficiency=0.76,
            ),
            _gpu(
                "a100",
                memory_bytes=80 * _GIB,
                memory_bandwidth_bytes_per_s=2039e9,  # A100
                peaks=_peaks(int8=624, float16=312, bfloat16=312, float32=156, float64=19.5),  # A100, tensor cores
                inside_host=Link(bandwidth_bytes_per_s=12 * 20e9, latency_s=_NVLINK_LATENCY_S),  # 12 NVLinks; NCCL
                network_bytes_per_s=200e9 / 8,  # DGX A100: a 200 Gbit/s adapter for each GPU
            ),
            _gpu(
                "h100",
                memory_bytes=80 * _GIB,
                memory_bandwidth_bytes_per_s=3.35e12,  # H100
                # H100: tensor cores with sparsity 3958, 1979, 989; dense is half. Double 67.
                peaks=_peaks(float8=1979, int8=1979, float16=989.5, bfloat16=989.5, float32=494.5, float64=67),
                inside_host=Link(bandwidth_bytes_per_s=18 * 20.6e9, latency_s=_NVLINK_LATENCY_S),  # 18 NVLinks; NCCL
                network_bytes_per_s=400e9 / 8,  # DGX H100: a 400 Gbit/s adapter for each GPU
            ),
            _gpu(
                "h200",
                memory_bytes=141 * 10**9,  # H200; unlike its elders' gigabytes these are of 10^9
                memory_bandwidth_bytes_per_s=4.8e12,  # H200
                peaks=_peaks(
                    float8=1979, int8=1979, float16=989.5, bfloat16=989.5, float32=494.5, float64=67
                ),  # H200: as H100
                inside_host=Link(bandwidth_bytes_per_s=18 * 20.6e9, latency_s=_NVLINK_LATENCY_S),
                network_bytes_per_s=400e9 / 8,  # DGX H200
            ),
            _gpu(
                "l4",
                memory_bytes=24 * _GIB,
                memory_bandwidth_bytes_per_s=300e9,  # L4
                # L4: with sparsity 485, 242, 120 (TF32); dense is half. Double is 1/64 of single (30.3).
                peaks=_peaks(float8=242.5, int8=242.5, float16=121, bfloat16=121, float32=60, float64=0.47),
                # PCIe Gen4 x16 (L4: 64 GB/s both ways): twice NCCL's 12 GB/s of Gen3. No NVLink.
                inside_host=Link(bandwidth_bytes_per_s=24e9, latency_s=_PCI_LATENCY_S),
                network_bytes_per_s=100e9 / 8,  # Google Cloud g2-standard-96: 100 Gbit/s
            ),
            _tpu(
                "tpu-v4",
                memory_bytes=32 * _GIB,
                memory_bandwidth_bytes_per_s=1228e9,
                peaks=_peaks(int8=275, bfloat16=275),
                link_bytes_per_s=4.5e10,
                devices_per_host=4,
            ),
            _tpu(
                "tpu-v5e",
                memory_bytes=16 * _GIB,
                memory_bandwidth_bytes_per_s=819e9,
                peaks=_peaks(int8=394, bfloat16=197),
                link_bytes_per_s=5e10,
                devices_per_host=8,
            ),
            _tpu(
                "tpu-v5p",
                memory_bytes=95 * _GIB,
                memory_bandwidth_bytes_per_s=2765e9,
                peaks=_peaks(int8=918, bfloat16=459),
                link_bytes_per_s=1e11,
                devices_per_host=4,
            ),
            _tpu(
                "tpu-v6e",
                memory_bytes=32 * _GIB,
                memory_bandwidth_bytes_per_s=1640e9,
                peaks=_peaks(int8=1836, bfloat16=918),
                link_bytes_per_s=1e11,
                devices_per_host=8,
            ),
            # No data sheet stands for "a CPU". This one is two cores with AVX-512 at 4 GHz (two fused multiply-adds of
            # 16 float32 in each cycle) and two memory channels, as one XLA device; the constants are about what
            # `jaxserve.runtime.calibrate` measured on such a machine. Several XLA devices share cores and memory.
            Device(
                kind="cpu",
                backend="cpu",
                memory_bytes=8 * _GIB,
                memory_bandwidth_bytes_per_s=50e9,
                peak_flops_per_s=_peaks(float32=0.5, float64=0.25),
                inside_host=Link(bandwidth_bytes_per_s=3e9, latency_s=10e-6),  # between threads
                between_hosts=Link(bandwidth_bytes_per_s=10e9 / 8, latency_s=100e-6),  # 10 Gbit/s Ethernet
                devices_per_host=8,
                # XLA's CPU backend has no reduce-scatter: it becomes an all-reduce and a slice.
                collectives=COLLECTIVES - {"reduce_scatter"},
                compute_efficiency=0.35,
                memory_efficiency=0.5,
                overhead_s=0.5e-6,
            ),
        )
    }
)
"""The kinds that are described, by their short names."""

# Words of what `jax.Device.device_kind` reports, or a user writes, and the kind that they mean. The first that fits:
# "TPU v5" alone is how JAX calls a v5p.
_NAMES = (
    (r"v100", "v100"),
    (r"a100", "a100"),
    (r"h100", "h100"),
    (r"h200", "h200"),
    (r"l4", "l4"),
    (r"(tpu )?v4p?", "tpu-v4"),
    (r"(tpu )?v5( ?lite|e)", "tpu-v5e"),
    (r"(tpu )?v5p", "tpu-v5p"),
    (r"tpu v5", "tpu-v5p"),
    (r"(tpu )?v6( ?lite|e)", "tpu-v6e"),
    (r"cpu", "cpu"),
)


def device_kind(name: str) -> Device:
    """The described device that a name means; with the memory that the name tells, as "V100-SXM2-32GB" does.

    Args:
        name: as `jax.Device.device_kind` has it ("NVIDIA A100-SXM4-80GB", "TPU v5 lite") or short ("a100", "tpu-v5e"),
            in any case.

    Raises:
        ConfigError: none is described that has this name.
    """
    words = " ".join(re.split(r"[\s_-]+", name.strip().lower()))
    for pattern, kind in _NAMES:
        if re.search(rf"(?<![a-z0-9]){pattern}(?![a-z0-9])", words):
            memory = re.search(r"(?<![a-z0-9])(\d+) ?gb(?![a-z0-9])", words)
            device = DEVICES[kind]
            return dataclasses.replace(device, memory_bytes=int(memory[1]) * _GIB) if memory else device
    raise ConfigError(f"no device of kind {name!r} is described; choose one of {', '.join(sorted(DEVICES))}")
