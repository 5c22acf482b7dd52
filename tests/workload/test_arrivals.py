"""Arrival processes and synthetic workloads: statistics, bounds, and what is refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.errors import ConfigError
from jaxserve.workload import (
    deterministic,
    gamma,
    merge,
    poisson,
    shifting,
    slo_from_latency,
    split_power_law,
    split_uniform,
    synthetic,
)

seeds = st.integers(0, 2**32)


@given(rate=st.floats(1, 50), cv=st.sampled_from((0.5, 1.0, 4.0)), seed=seeds)
def test_arrivals_ascend_within_the_duration(rate: float, cv: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for arrivals in (
        gamma(rate=rate, cv=cv, duration_s=5.0, rng=rng),
        poisson(rate=rate, duration_s=5.0, rng=rng),
        deterministic(rate=rate, duration_s=5.0, first_s=rng.random()),
        *shifting(rates=(rate, 1.0), cv=cv, period_s=0.7, duration_s=5.0, rng=rng),
    ):
        assert arrivals.dtype == np.float64
        assert (np.diff(arrivals) >= 0).all()
        assert ((arrivals >= 0) & (arrivals < 5.0)).all()


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gamma_has_the_rate_and_the_cv_asked_for(cv: float) -> None:
    gaps = np.diff(gamma(rate=20.0, cv=cv, duration_s=10_000.0, rng=np.random.default_rng(0)))
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


def test_poisson_has_the_rate_asked_for_and_a_cv_of_1() -> None:
    gaps = np.diff(poisson(rate=20.0, duration_s=10_000.0, rng=np.random.default_rng(0)))
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.01)
    assert gaps.std() / gaps.mean() == pytest.approx(1, rel=0.01)


@given(rate=st.floats(0.01, 100), duration_s=st.floats(0.01, 100), first_s=st.floats(0, 50))
def test_deterministic_gaps_are_alike_and_none_is_missing(rate: float, duration_s: float, first_s: float) -> None:
    arrivals = deterministic(rate=rate, duration_s=duration_s, first_s=first_s)
    np.testing.assert_allclose(np.diff(arrivals), 1 / rate, rtol=1e-6)
    after_s = arrivals[-1] + 1 / rate if len(arrivals) else first_s
    assert after_s >= duration_s * (1 - 1e-12)


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"cv": 0.0}, {"duration_s": np.inf}, {"rate": np.nan}, {"cv": -1.0}])
def test_gamma_refuses(wrong: dict[str, float]) -> None:
    good = {"rate": 1.0, "cv": 1.0, "duration_s": 1.0}
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is .*greater than 0"):
        gamma(**(good | wrong), rng=np.random.default_rng(0))


def test_refusals_say_how_to_mend() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match=r"cv is 0.0.*use `deterministic`"):
        gamma(rate=1.0, cv=0.0, duration_s=1.0, rng=rng)
    with pytest.raises(ConfigError, match=r"rate is 0.0.*give no arrivals"):
        poisson(rate=0.0, duration_s=1.0, rng=rng)
    with pytest.raises(ConfigError, match=r"first_s is -1.0"):
        deterministic(rate=1.0, duration_s=1.0, first_s=-1.0)
    with pytest.raises(ConfigError, match=r"period_s is 0.0"):
        shifting(rates=(1.0,), cv=1.0, period_s=0.0, duration_s=1.0, rng=rng)
    with pytest.raises(ConfigError, match=r"rate is -1.0"):
        shifting(rates=(1.0, -1.0), cv=1.0, period_s=1.0, duration_s=1.0, rng=rng)


def test_shifting_deals_the_same_rates_anew_each_period() -> None:
    rates = np.array([50.0, 20.0, 5.0, 1.0])
    arrivals = shifting(rates=rates, cv=1.0, period_s=100.0, duration_s=1000.0, rng=np.random.default_rng(1))
    counts = np.array([np.histogram(each, bins=np.arange(0, 1001, 100))[0] for each in arrivals]).T / 100
    np.testing.assert_allclose(counts[0], rates, rtol=0.3, atol=0.3)
    np.testing.assert_allclose(np.sort(counts, axis=1), np.tile(np.sort(rates), (10, 1)), rtol=0.3, atol=0.3)
    assert len({tuple(np.argsort(each)) for each in counts}) > 3


@given(rate=st.floats(0.1, 100), models=st.integers(1, 50), exponent=st.floats(0, 3), other=st.integers(0, 49))
def test_splits_add_up_and_follow_the_power_law(rate: float, models: int, exponent: float, other: int) -> None:
    rates = split_power_law(rate, models=models, exponent=exponent)
    other = min(other, models - 1)
    assert rates.sum() == pytest.approx(rate)
    assert rates[0] / rates[other] == pytest.approx((other + 1) ** exponent)
    np.testing.assert_allclose(split_uniform(rate, models=models), rate / models)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"rate": 0.0}, "rate is 0.0, but must be finite and greater than 0"),
        ({"cv": 0.0}, "use `deterministic`"),
        ({"slo_s": (1.0, 2.0)}, "2 SLOs were given for 3 models; give one, or one of each"),
        ({"slo_s": 0.0}, r"slo_s\[0\] is 0.0"),
        ({"model_names": ()}, "models is 0, but a rate is divided among at least 1"),
        ({"model_names": ("a", "a", "b")}, "a name twice, 'a'"),
        ({"split": "zipf"}, "split is 'zipf', but must be 'uniform' or 'power-law:EXPONENT', such as 'power-law:0.5'"),
        ({"split": "power-law:x"}, "split is 'power-law:x'"),
        ({"split": "power-law:-1"}, "exponent is -1.0, but must be finite and not negative"),
        ({"shift_s": 0.0}, "period_s is 0.0"),
        ({"duration_s": -1.0}, "duration_s is -1.0"),
    ],
)
def test_synthetic_refuses(wrong: dict[str, Any], problem: str) -> None:
    good: dict[str, Any] = {"model_names": ("a", "b", "c"), "slo_s": 1.0, "rate": 3.0, "cv": 1.0, "duration_s": 100.0}
    with pytest.raises(ValueError, match=problem):
        synthetic(**(good | wrong), rng=np.random.default_rng(0))


@pytest.mark.parametrize("shift_s", [None, 60.0])
@settings(max_examples=10)
@given(seed=seeds)
def test_synthetic_has_the_rate_and_is_as_its_seed(shift_s: float | None, seed: int) -> None:
    made = [
        synthetic(
            model_names=[f"m{i}" for i in range(8)],
            slo_s=slo_from_latency([0.1] * 8, scale=5.0),
            rate=40.0,
            cv=1.0,
            duration_s=200.0,
            split="power-law:0.5",
            shift_s=shift_s,
            rng=np.random.default_rng(seed),
        )
        for _ in range(2)
    ]
    assert len(made[0]) == pytest.approx(8000, abs=6 * np.sqrt(8000))
    assert (made[0].slo_s == 0.5).all()
    np.testing.assert_array_equal(made[0].arrival_s, made[1].arrival_s)
    np.testing.assert_array_equal(made[0].model, made[1].model)


def test_slos_from_latencies() -> None:
    np.testing.assert_allclose(slo_from_latency((0.1, 0.2), scale=5.0), (0.5, 1.0))
    with pytest.raises(ConfigError, match=r"latency_s is 0.0"):
        slo_from_latency((0.1, 0.0), scale=5.0)
    with pytest.raises(ConfigError, match=r"scale is -1.0"):
        slo_from_latency((0.1,), scale=-1.0)


def test_merge_sorts_and_keeps_each_models_slo() -> None:
    merged = merge([np.array([0.0, 2.0]), np.array([1.0])], model_names=("a", "b"), slo_s=(3.0, 4.0))
    np.testing.assert_array_equal(merged.arrival_s, [0, 1, 2])
    np.testing.assert_array_equal(merged.model, [0, 1, 0])
    np.testing.assert_array_equal(merged.slo_s, [3, 4, 3])
    with pytest.raises(ConfigError, match="1 arrays of arrivals, 2 model names and 1 SLOs"):
        merge([np.zeros(0)], model_names=("a", "b"), slo_s=(1.0,))


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: gamma(rate=1.0, cv=1e6, duration_s=10.0, rng=rng),
        lambda rng: gamma(rate=1e12, cv=1.0, duration_s=10.0, rng=rng),
        lambda rng: poisson(rate=1e12, duration_s=10.0, rng=rng),
        lambda rng: deterministic(rate=1e12, duration_s=10.0),
        lambda rng: shifting(rates=(1e12, 1.0), cv=1.0, period_s=5.0, duration_s=10.0, rng=rng),
        lambda rng: synthetic(model_names="ab", slo_s=1.0, rate=6e6, cv=1.0, duration_s=10.0, rng=rng),
    ],
)
def test_more_requests_than_can_be_kept_are_refused(draw: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"about \de\+\d\d requests would be drawn, but 5e\+07 are the most; lower the"
    ):
        draw(np.random.default_rng(0))


def test_more_periods_than_can_be_kept_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"10 s in windows of 1e-09 s are too many windows to keep"):
        shifting(rates=(1.0,), cv=1.0, period_s=1e-9, duration_s=10.0, rng=np.random.default_rng(0))
