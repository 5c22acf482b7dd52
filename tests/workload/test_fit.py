"""Fits: known processes are found again, windows are chosen where they must be, draws are like what they come from."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.errors import ConfigError
from jaxserve.workload import Fitted, Workload, between, deterministic, fit, gamma, merge, synthetic
from jaxserve.workload.cells import cells_of, window_edges_s
from jaxserve.workload.prior import effective, fit_prior
from jaxserve.workload.renewal import draw, fit_cv
from jaxserve.workload.workload import Floats

NAMES = [f"m{i}" for i in range(32)]


def one_model(arrivals: Floats) -> Workload:
    return merge([arrivals], model_names=("m",), slo_s=(1.0,))


def fitted(rate: Any, cv: Any, *, window_s: float = 60.0, duration_s: float = 60.0, slo_s: Any = None) -> Fitted:
    rate, cv = np.broadcast_arrays(np.atleast_2d(np.asarray(rate, float)), np.asarray(cv, float))
    models = rate.shape[1]
    return Fitted(
        model_names=tuple(f"m{i}" for i in range(models)),
        window_s=window_s,
        duration_s=duration_s,
        rate=rate,
        cv=cv,
        slo_s=tuple(np.ones(1) for _ in range(models)) if slo_s is None else slo_s,
    )


@pytest.mark.parametrize(("cv", "seed"), [*itertools.product((0.3, 1.0, 4.0, 8.0), (0, 1))])
def test_a_known_process_is_found_again(cv: float, seed: int) -> None:
    arrivals = gamma(rate=4.0, cv=cv, duration_s=2000.0, rng=np.random.default_rng(seed))
    found = fit(one_model(arrivals), window_s=2000.0, duration_s=2000.0)
    assert found.rate[0, 0] == len(arrivals) / 2000.0
    assert found.rate[0, 0] == pytest.approx(4.0, rel=0.1 if cv <= 4 else 0.2)
    assert found.cv[0, 0] == pytest.approx(cv, rel=0.15)


def test_the_cv_is_that_of_maximum_likelihood() -> None:
    gaps = np.random.default_rng(0).gamma(0.25, 4.0, size=5000)
    spread = np.log(gaps.mean()) - np.log(gaps).mean()
    found = fit_cv(count=np.array([[5000.0]]), spread=np.array([spread]), censored=np.zeros(1), most=20.0)
    shape, _, _ = scipy.stats.gamma.fit(gaps, floc=0)
    assert found[0] == pytest.approx(shape**-0.5, rel=1e-3)


@given(
    count=st.integers(2, 1000),
    spread=st.floats(1e-6, 200),
    censored=st.floats(0, 0.99),
    windows=st.integers(1, 4),
    most=st.floats(0.5, 50),
)
def test_the_cv_solves_its_equation_or_is_at_a_bound(
    count: int, spread: float, censored: float, windows: int, most: float
) -> None:
    counts = np.full((windows, 1), float(count))
    (cv,) = fit_cv(count=counts, spread=np.array([spread]), censored=np.array([censored]), most=most)
    shape = cv**-2
    if 0.0101 < cv < most * 0.999:
        psi = scipy.special.digamma
        left = np.log(shape) - psi(shape) - censored / shape - (np.log(count * shape) - psi(count * shape))
        assert left == pytest.approx(spread, rel=1e-5, abs=1e-7)
    assert 0.0099 < cv < most * 1.001


def test_simultaneous_requests_do_not_break_a_fit() -> None:
    bursts = np.repeat(np.sort(np.random.default_rng(0).random(50) * 100), 8)
    found = fit(one_model(bursts), duration_s=100.0)
    assert 1 < found.cv[0, 0] < 20
    together = fit(one_model(np.full(10, 5.0)), window_s=100.0, duration_s=100.0)
    assert together.cv[0, 0] == pytest.approx(20.0)
    at_zero = fit(one_model(np.zeros(5)))
    assert at_zero.duration_s == 1.0
    assert fit(one_model(np.full(10, 5.0)), window_s=100.0, duration_s=100.0, most_cv=7.0).cv[0, 0] == pytest.approx(7)


def test_regular_requests_have_the_least_cv() -> None:
    found = fit(one_model(deterministic(rate=2.0, duration_s=50.0)), duration_s=50.0)
    assert found.cv[0, 0] < 0.02
    assert len(found.sample(np.random.default_rng(0))) == pytest.approx(100, abs=2)


def test_few_requests_are_poisson_and_none_has_rate_0() -> None:
    trace = merge(
        [np.array([1.0, 2.0]), np.zeros(0), np.array([3.0])], model_names=("a", "b", "c"), slo_s=(1.0, 2.0, 3.0)
    )
    found = fit(trace, window_s=10.0, duration_s=10.0)
    np.testing.assert_allclose(found.rate, [[0.2, 0.0, 0.1]])
    np.testing.assert_array_equal(found.cv, 1.0)
    assert set(found.sample(np.random.default_rng(0), rate_scale=100.0).model) == {0, 2}


@settings(max_examples=50)
@given(st.lists(st.lists(st.floats(0, 99.9), max_size=30), min_size=1, max_size=4), st.sampled_from((7.0, 30.0, 99.0)))
def test_rates_agree_with_the_counts(times: list[list[float]], window_s: float) -> None:
    trace = merge(
        [np.sort(np.array(each)) for each in times], model_names=NAMES[: len(times)], slo_s=[1.0] * len(times)
    )
    if not len(trace):
        return
    found = fit(trace, window_s=window_s, duration_s=100.0)
    edges = window_edges_s(window_s, 100.0)
    expected = np.array([np.histogram(each, bins=edges)[0] for each in times]).T
    np.testing.assert_allclose(found.rate * np.diff(edges)[:, None], expected, atol=1e-9)
    assert ((found.cv >= 0.0099) & (found.cv <= 20.01)).all()
    again = found.sample(np.random.default_rng(0), posterior=True)
    assert again.model_names == trace.model_names


@given(st.floats(1, 100), st.floats(1, 10_000))
def test_windows_cover_the_trace(window_s: float, duration_s: float) -> None:
    edges = window_edges_s(window_s, duration_s)
    assert edges[0] == 0
    assert edges[-1] == duration_s
    lengths = np.diff(edges)
    np.testing.assert_allclose(lengths[:-1], window_s)
    assert 0 < lengths[-1] <= window_s * (1.1 + 1e-9)


def test_the_gaps_of_a_ring() -> None:
    cells = cells_of(one_model(np.array([1.0, 3.0, 3.0, 12.0])), window_s=10.0, duration_s=30.0, floor_s=1e-3)
    np.testing.assert_array_equal(cells.count, [[3], [1], [0]])
    np.testing.assert_array_equal(cells.censored, [[1], [0], [0]])
    np.testing.assert_allclose(cells.log_gap, [[np.log(8.0) + np.log(2.0) + np.log(1e-3)], [np.log(10.0)], [0]])
    np.testing.assert_allclose(cells.first_s[:2], [[1], [2]])
    np.testing.assert_allclose(cells.last_s[:2], [[7], [8]])
    assert np.isnan(cells.first_s[2, 0])


@pytest.mark.parametrize(("cv", "split"), [(1.0, "power-law:0.5"), (4.0, "power-law:0.5"), (4.0, "uniform")])
@pytest.mark.parametrize("seed", [0, 1])
def test_steady_traffic_has_one_window(cv: float, split: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    trace = synthetic(model_names=NAMES, slo_s=1.0, rate=64.0, cv=cv, duration_s=200.0, split=split, rng=rng)
    assert fit(trace).window_s > 190


@pytest.mark.parametrize(("cv", "split"), [(1.0, "power-law:0.5"), (4.0, "power-law:0.5"), (4.0, "power-law:1.0")])
@pytest.mark.parametrize("seed", [0, 1])
def test_traffic_that_shifts_has_the_windows_of_its_shifts(cv: float, split: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    trace = synthetic(
        model_names=NAMES, slo_s=1.0, rate=64.0, cv=cv, duration_s=200.0, split=split, shift_s=60.0, rng=rng
    )
    assert fit(trace).window_s == 60.0


def test_one_cv_or_one_in_each_window() -> None:
    rng = np.random.default_rng(0)
    calm = synthetic(model_names=NAMES[:4], slo_s=1.0, rate=40.0, cv=0.5, duration_s=200.0, rng=rng)
    late = synthetic(model_names=NAMES[:4], slo_s=1.0, rate=40.0, cv=4.0, duration_s=200.0, rng=rng)
    both = merge(
        [np.concatenate([calm.arrival_s[calm.model == i], 200 + late.arrival_s[late.model == i]]) for i in range(4)],
        model_names=NAMES[:4],
        slo_s=[1.0] * 4,
    )
    own = fit(both, window_s=200.0, duration_s=400.0)
    assert (own.cv[0] < 0.7).all()
    assert (own.cv[1] > 2.5).all()
    one = fit(both, window_s=200.0, duration_s=400.0, one_cv=True)
    np.testing.assert_array_equal(one.cv[0], one.cv[1])
    np.testing.assert_array_equal(one.rate, own.rate)
    steady = fit(calm, window_s=20.0, duration_s=200.0)
    np.testing.assert_array_equal(steady.cv[0], steady.cv[1])


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_draws_are_in_equilibrium_and_ascend(cv: float) -> None:
    processes = 20_000
    times, of = draw(
        rate=np.full(processes, 2.0),
        cv=np.full(processes, cv),
        duration_s=np.full(processes, 3.0),
        rng=np.random.default_rng(0),
    )
    early = np.histogram(times, bins=6, range=(0, 3))[0]
    np.testing.assert_allclose(early, processes, rtol=6 * max(cv, 1) / np.sqrt(processes))
    by_process = np.lexsort((times, of))
    within = np.diff(of[by_process]) == 0
    gaps = np.diff(times[by_process])[within]
    assert (gaps >= 0).all()
    assert times.max() < 3.0


def test_a_long_draw_has_its_rate_and_cv() -> None:
    times, _ = draw(
        rate=np.array([5.0, 0.0]),
        cv=np.array([3.0, 1.0]),
        duration_s=np.full(2, 20_000.0),
        rng=np.random.default_rng(0),
    )
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.05)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from((0.5, 1.0, 8.0)), st.booleans())
def test_samples_are_workloads_within_the_trace(seed: int, cv: float, posterior: bool) -> None:
    source = fitted([[3.0, 0.0], [0.0, 5.0], [1.0, 1.0]], cv, window_s=10.0, duration_s=25.0)
    made = [source.sample(np.random.default_rng(seed), posterior=posterior) for _ in range(2)]
    np.testing.assert_array_equal(made[0].arrival_s, made[1].arrival_s)
    assert (made[0].arrival_s < 25.0).all()
    if not posterior:
        assert not len(between(made[0], 0.0, 10.0).model.nonzero()[0])
        assert (between(made[0], 10.0, 20.0).model == 1).all()


def test_scales_of_rate_and_cv() -> None:
    source = fitted(4.0, 2.0, window_s=5000.0, duration_s=5000.0)
    made = source.sample(np.random.default_rng(0), rate_scale=3.0, cv_scale=0.5)
    gaps = np.diff(made.arrival_s)
    assert gaps.mean() == pytest.approx(1 / 12, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.03)


def test_slos_are_those_that_were_recorded() -> None:
    trace = Workload(
        arrival_s=np.arange(8.0),
        model=np.array([0, 1] * 4),
        model_names=("a", "b", "c"),
        slo_s=np.array([1.0, 2.0, 1.0, 3.0] * 2),
    )
    found = fit(trace, window_s=10.0, duration_s=10.0)
    assert [sorted(set(each.tolist())) for each in found.slo_s] == [[1.0], [2.0, 3.0], [1.0, 2.0, 3.0]]
    made = found.sample(np.random.default_rng(0), rate_scale=50.0)
    assert set(made.slo_s[made.model == 0]) == {1.0}
    assert set(made.slo_s[made.model == 1]) == {2.0, 3.0}


def test_what_is_drawn_has_the_priorities_and_tenants_that_were_recorded() -> None:
    trace = Workload(
        arrival_s=np.arange(8.0),
        model=np.array([0, 1] * 4),
        model_names=("a", "b", "c"),
        slo_s=np.array([1.0, 2.0, 1.0, 3.0] * 2),
        priority=np.array([5, 1, 5, 2] * 2),
        tenant=np.array([0, 1, 0, 2] * 2),
        tenant_names=("x", "y", "z"),
    )
    found = fit(trace, window_s=10.0, duration_s=10.0)
    assert [each.tolist() for each in found.priority[:2]] == [[5], [1, 2, 1, 2]]
    made = found.sample(np.random.default_rng(0), rate_scale=50.0)
    assert made.tenant_names == trace.tenant_names
    together = set(
        zip(made.model.tolist(), made.slo_s.tolist(), made.priority.tolist(), made.tenant.tolist(), strict=True)
    )
    assert together == {(0, 1.0, 5, 0), (1, 2.0, 1, 1), (1, 3.0, 2, 2)}
    all_of_one = dataclasses.replace(trace, priority=np.array(0), tenant=np.array(1))
    made = fit(all_of_one, window_s=10.0, duration_s=10.0).sample(np.random.default_rng(0))
    assert (made.requests_by_priority(), made.requests_by_tenant()) == ({0: len(made)}, {"y": len(made)})


@pytest.mark.parametrize("cv", [1.0, 4.0])
def test_the_posterior_covers_the_true_rates(cv: float) -> None:
    """Four of five true rates lie between the 10th and the 90th of 100 posterior draws; counts stay what they were."""
    rng = np.random.default_rng(0)
    truth = 64 * np.arange(1, 33) ** -0.5 / (np.arange(1, 33) ** -0.5).sum()
    inside: list[float] = []
    totals: list[float] = []
    for _ in range(20):
        trace = fitted(truth, cv, window_s=200.0, duration_s=200.0).sample(rng)
        found = fit(trace, window_s=200.0, duration_s=200.0)
        events, exposure_s = effective(found.rate * 200, found.cv, np.full((1, 32), 200.0))
        prior = fit_prior(events, exposure_s, least_spread=0.1)
        draws = np.array([prior.draw(events, exposure_s, rng)[0] for _ in range(100)])
        rank = (draws < truth).mean(axis=0)
        inside.append(((rank > 0.1) & (rank < 0.9)).mean())
        totals.append(draws.sum(axis=1).mean() / 64)
    assert np.mean(inside) == pytest.approx(0.8, abs=0.06)
    assert np.mean(totals) == pytest.approx(1.0, abs=0.04)


def test_the_posterior_shrinks_and_knows_what_it_does_not_know() -> None:
    source = fitted([[1.0] * 16 + [0.0]], 4.0, window_s=200.0, duration_s=200.0)
    rng = np.random.default_rng(0)
    counts = np.array([np.bincount(source.sample(rng, posterior=True).model, minlength=17) for _ in range(200)])
    assert 0 < counts[:, 16].mean() < 200
    alone = fitted(1.0, 4.0, window_s=200.0, duration_s=200.0)  # one cell tells no prior: n / CV^2 = 12.5 events
    draws = [len(alone.sample(rng, posterior=True)) / 200 for _ in range(400)]
    assert np.mean(draws) == pytest.approx(1.0, rel=0.1)
    assert np.std(draws) > 0.3


def test_evidence_is_the_mean_likelihood_under_the_prior() -> None:
    events, exposure_s = np.array([0.0, 3.0, 8.0, 20.0]), np.full(4, 10.0)
    prior = fit_prior(events, exposure_s, least_spread=0.1)
    rates = prior.draw(np.zeros((400_000, 1)), np.zeros((400_000, 1)), np.random.default_rng(0))
    best = np.where(events > 0, events / exposure_s, 1e-300)
    relative = np.exp(events * np.log(rates / best) - exposure_s * (rates - best))
    np.testing.assert_allclose(prior.log_evidence(events, exposure_s), np.log(relative.mean(axis=0)), atol=0.02)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"duration_s": 1.0}, r"duration_s is 1.0, but a request arrives at 2.0 s; give a longer one"),
        ({"window_s": 0.0}, "window_s is 0.0"),
        ({"most_cv": -1.0}, "most_cv is -1.0"),
        ({"floor_s": 0.0}, "floor_s is 0.0"),
    ],
)
def test_fit_refuses(wrong: dict[str, float], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        fit(one_model(np.array([1.0, 2.0])), **wrong)


def test_more_refusals() -> None:
    with pytest.raises(ConfigError, match="no requests to fit"):
        fit(one_model(np.zeros(0)))
    source = fitted(1.0, 1.0)
    with pytest.raises(ConfigError, match=r"rate_scale is 0.0"):
        source.sample(np.random.default_rng(0), rate_scale=0.0)
    with pytest.raises(ConfigError, match=r"cv_scale is -1.0"):
        source.sample(np.random.default_rng(0), cv_scale=-1.0)
    with pytest.raises(ConfigError, match=r"shapes \(1, 1\) and \(1, 1\), but must have \(2, 1\)"):
        fitted(1.0, 1.0, duration_s=120.0)
    with pytest.raises(ConfigError, match="a rate is negative"):
        fitted(-1.0, 1.0)
    with pytest.raises(ConfigError, match="slo_s holds 0 arrays"):
        fitted(1.0, 1.0, slo_s=())
    with pytest.raises(ConfigError, match=r"tenant has arrays of shapes .*2.*, but must have those of slo_s"):
        dataclasses.replace(source, tenant=(np.zeros(2, np.int32),))


def at(arrivals: Floats, start_s: float) -> Workload:
    return one_model(arrivals + start_s)


def test_times_of_a_calendar_are_counted_from_the_first_request() -> None:
    """As much traffic that begins at a Unix time is the same traffic later: windows do not begin in 1970."""
    arrivals = gamma(rate=10.0, cv=1.0, duration_s=60.0, rng=np.random.default_rng(0))
    late = fit(at(arrivals, 1.7e9))
    assert late.start_s == pytest.approx(1.7e9, abs=1)
    assert late.duration_s == pytest.approx(60, abs=1)
    assert len(late.rate) <= 2
    made = late.sample(np.random.default_rng(0))
    assert (made.arrival_s >= late.start_s).all()
    assert (made.arrival_s < late.edges_s[-1]).all()
    assert len(made) == pytest.approx(600, rel=0.2)


@pytest.mark.parametrize(
    "arrivals",
    [
        np.array([0.0, 1e9]),
        np.append(0.0, 1.7e9 + np.linspace(0, 60, 599)),
        np.array([0.0, 1e17]),
        np.full(5, 1e17),
        np.linspace(0, 1e6, 50),
    ],
)
def test_there_are_no_more_windows_than_requests(arrivals: Floats) -> None:
    found = fit(at(arrivals, 0.0))
    assert found.rate.size <= len(arrivals)
    made = found.sample(np.random.default_rng(0), posterior=True)
    assert ((made.arrival_s >= 0) & (made.arrival_s <= found.edges_s[-1])).all()


def test_where_a_trace_begins() -> None:
    silent_first = np.linspace(40, 100, 30)
    assert fit(at(silent_first, 0.0)).start_s == 0
    assert fit(at(silent_first, 60.0)).start_s == 100
    assert fit(at(silent_first, 60.0), duration_s=200.0).start_s == 0


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (
            {"rate": 1e12},
            "about 6e\\+13 requests would be drawn, but 5e\\+07 are the most; give a rate scale of at most",
        ),
        (
            {"cv": 1e6},
            "the CV scale is 1, but the traffic has CVs of up to 1e\\+06, and none above 1000 is drawn; give",
        ),
    ],
)
def test_a_sample_has_its_limits(changed: dict[str, float], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        fitted(**{"rate": 1.0, "cv": 1.0, **changed}).sample(np.random.default_rng(0))
    assert fitted(**{"rate": 1.0, "cv": 1.0, **changed}).requests == 60 * changed.get("rate", 1.0)


def test_windows_have_their_limit() -> None:
    with pytest.raises(ConfigError, match="in windows of 1e-09 s are too many windows to keep; make them"):
        fit(one_model(np.array([1.0, 2.0])), window_s=1e-9)
    with pytest.raises(ConfigError, match="too many windows to keep"):
        fitted(1.0, 1.0, window_s=1e-9)
