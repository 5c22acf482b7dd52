"""Calibration turns durations into constants; here the clock decides how long everything takes."""

import dataclasses
import itertools
import math

import jax
import pytest

from jaxserve.parallel.devices import DEVICES
from jaxserve.runtime import calibration as module
from jaxserve.runtime.calibration import _ACCELERATOR, _CPU, _Bench, _with_compute, _with_link, _with_memory, calibrate

SMALL = dataclasses.replace(_CPU, matrices=(8, 16), copied_bytes=2**12, reduced_bytes=(2**6, 2**10))


@dataclasses.dataclass
class Stub:
    """A bench whose steps take as long as a formula says."""

    count: int
    formula: object

    late = False

    def step_s(self, step, shape, dtype="float32"):
        return self.formula(math.prod(shape), dtype)


def test_the_real_thing_measures_all_constants_and_keeps_the_rest(monkeypatch):
    monkeypatch.setattr(module, "_CPU", SMALL)
    monkeypatch.setattr(module, "_SECONDS_PER_LOOP", 0.0)
    device = calibrate(jax.devices()[:2], most_s=math.inf)
    described = DEVICES["cpu"]
    assert device.compute_efficiency > 0
    assert device.memory_efficiency > 0
    assert device.overhead_s >= 0
    assert device.inside_host.bandwidth_bytes_per_s > 0
    assert device.inside_host.latency_s >= 0
    measured = ("compute_efficiency", "memory_efficiency", "overhead_s", "inside_host")
    assert dataclasses.replace(device, **{name: getattr(described, name) for name in measured}) == described


def test_when_the_time_is_up_the_described_values_stay():
    clock = itertools.count().__next__
    assert calibrate(jax.devices()[:1], clock=clock, most_s=0) == DEVICES["cpu"]


def test_steps_are_differences_so_that_calling_costs_nothing():
    # Between two readings the clock advances by what a run is said to take: 5 s to call, 2 s for each step.
    counts = []

    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock = Clock()
    bench = _Bench(jax.devices()[:1], clock, math.inf)

    def step(value, first):
        return value + first

    original = jax.jit

    def slow(function, **options):
        compiled = original(function, **options)

        def call(*arguments):
            result = compiled(*arguments)
            if arguments:
                counts.append(int(arguments[0]))
                clock.now += 5 + 2 * counts[-1]
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.jax, "jit", slow)
        assert bench.step_s(step, (4,)) == pytest.approx(2.0)
    assert counts == [1, 1, *[1, 1 + module._LEAST_STEPS] * module._RUNS]


def test_rates_become_efficiencies():
    described = DEVICES["a100"]
    # Half of each dtype's peak for the larger matrices, less for the smaller ones.
    larger = 2.0 * _ACCELERATOR.matrices[1] ** 3
    bench = Stub(count=1, formula=lambda size, dtype: larger / (0.5 * described.peak(dtype)))
    assert _with_compute(described, bench, _ACCELERATOR).compute_efficiency == pytest.approx(0.5)
    copy_s = 2 * _ACCELERATOR.copied_bytes / (0.9 * described.memory_bandwidth_bytes_per_s)
    bench = Stub(count=1, formula=lambda size, dtype: copy_s + described.overhead_s)
    assert _with_memory(described, bench, _ACCELERATOR).memory_efficiency == pytest.approx(0.9)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_two_all_reduces_become_a_link(count):
    described = DEVICES["a100"]
    rounds = 2 * (count - 1)

    def formula(size, dtype):
        return described.overhead_s + rounds * (7e-6 + 4 * size / count / 123e9)

    link = _with_link(described, Stub(count=count, formula=formula), _ACCELERATOR).inside_host
    assert link.bandwidth_bytes_per_s == pytest.approx(123e9)
    assert link.latency_s == pytest.approx(7e-6)


def test_measurements_without_sense_change_nothing():
    described = DEVICES["a100"]
    for measure in (_with_compute, _with_memory, _with_link):
        assert measure(described, Stub(count=2, formula=lambda size, dtype: 0.0), _ACCELERATOR) == described
    assert _with_link(described, Stub(count=1, formula=None), _ACCELERATOR) == described
