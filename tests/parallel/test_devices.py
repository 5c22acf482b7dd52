"""Devices are found by the names that jax reports, and what their descriptions say makes sense."""

import re

import pytest

from jaxserve.errors import ConfigError
from jaxserve.parallel.devices import COLLECTIVES, DEVICES, device_kind

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "kind", "memory_bytes"),
    [
        ("NVIDIA H100 80GB HBM3", "h100", 80 * GIB),
        ("NVIDIA H200", "h200", 141 * 10**9),
        ("NVIDIA A100-SXM4-80GB", "a100", 80 * GIB),
        ("NVIDIA A100-SXM4-40GB", "a100", 40 * GIB),
        ("Tesla V100-SXM2-16GB", "v100", 16 * GIB),
        ("NVIDIA V100-SXM2-32GB", "v100", 32 * GIB),
        ("NVIDIA L4", "l4", 24 * GIB),
        ("TPU v4", "tpu-v4", 32 * GIB),
        ("TPU v5 lite", "tpu-v5e", 16 * GIB),
        ("TPU v5e", "tpu-v5e", 16 * GIB),
        ("TPU v5", "tpu-v5p", 95 * GIB),
        ("TPU v5p", "tpu-v5p", 95 * GIB),
        ("TPU v6 lite", "tpu-v6e", 32 * GIB),
        ("cpu", "cpu", 8 * GIB),
        (" V100 ", "v100", 16 * GIB),
        ("TPU-V5E", "tpu-v5e", 16 * GIB),
    ],
)
def test_names_as_jax_reports_them_and_short_ones(name, kind, memory_bytes):
    device = device_kind(name)
    assert (device.kind, device.memory_bytes) == (kind, memory_bytes)


@pytest.mark.parametrize("kind", sorted(DEVICES))
def test_every_kind_is_found_by_its_own_name(kind):
    assert device_kind(kind) == DEVICES[kind]


@pytest.mark.parametrize("name", ["NVIDIA L40S", "TPU v7x", "abacus", "", "cpux"])
def test_what_is_not_described_is_refused_with_what_is(name):
    message = f"no device of kind {name!r} is described; choose one of a100, cpu, h100, h200, l4, tpu-v4, tpu-v5e, "
    with pytest.raises(ConfigError, match=re.escape(message)):
        device_kind(name)


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: device.kind)
def test_descriptions_make_sense(device):
    assert 0 < device.compute_efficiency <= 1
    assert 0 < device.memory_efficiency <= 1
    assert 0 <= device.overhead_s <= 1e-5
    assert {"all_reduce", "all_gather", "collective_permute"} <= device.collectives <= COLLECTIVES
    assert device.inside_host.bandwidth_bytes_per_s >= device.between_hosts.bandwidth_bytes_per_s
    assert device.inside_host.latency_s <= device.between_hosts.latency_s
    assert device.inside_host.bandwidth_bytes_per_s < device.memory_bandwidth_bytes_per_s
    assert device.link(device.devices_per_host) is device.inside_host
    assert device.link(device.devices_per_host + 1) is device.between_hosts


@pytest.mark.parametrize(
    ("kind", "dtype", "peak"),
    [
        ("v100", "float16", 125e12),
        ("v100", "bfloat16", 15.7e12),  # in float32: Volta's tensor cores know float16 alone
        ("v100", "float64", 7.8e12),
        ("v100", "bool", 15.7e12),
        ("v100", "complex64", 15.7e12 / 4),
        ("a100", "float32", 156e12),  # in TF32
        ("a100", "uint8", 624e12),
        ("a100", "float8_e4m3fn", 312e12),
        ("h100", "float8_e4m3fn", 1979e12),
        ("tpu-v4", "float32", 275e12),  # in one pass of bfloat16
        ("tpu-v4", "float64", 275e12 / 16),
        ("cpu", "bfloat16", 0.5e12),
        ("cpu", "key<fry>", 0.5e12),
    ],
)
def test_peaks_of_dtypes_that_a_device_has_or_computes_by_others(kind, dtype, peak):
    assert DEVICES[kind].peak(dtype) == pytest.approx(peak)
