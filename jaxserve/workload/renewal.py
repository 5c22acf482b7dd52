"""Gamma renewal processes, many at once: drawn, and their CVs estimated.

A process has a rate and a coefficient of variation (CV). Its gaps are Gamma distributed with shape k = 1 / CV^2 and
mean 1 / rate.

**The CV that n gaps tell.** Given their sum, n Gamma gaps are Dirichlet distributed with n parameters k, so their rate
says nothing about k, and maximum likelihood asks for

    (log k - psi(k)) - (log nk - psi(nk)) = log(mean gap) - mean(log gap)

(Minka, Estimating a Gamma distribution, 2002, has the first bracket; the second is what n gaps lose by having their
mean estimated from themselves). Arrivals that share one instant, as recorded, would make the right side infinite.
Bursts have many: at a CV of 4 one gap in eight is below the spacing of doubles at 200 s. A gap below a `floor` is
therefore taken as censored, as no more than "at most the floor": its likelihood is P(gap <= floor) = (k floor /
mean)^k / Gamma(k + 1) up to a factor 1 - O(floor / mean), which takes p / k from the left side, where p is the share
of such gaps, and counts them with log(floor) on the right. Gaps in several windows, each with a mean of its own but
with one CV, add up on both sides. The equation is solved for 1 / k by Newton's method within a shrinking bracket.
"""

import numpy as np

from jaxserve.workload.special import digamma, trigamma
from jaxserve.workload.workload import Floats, Ints

_LEAST_CV = 0.01  # gaps that are all alike have none; this one is drawn without trouble
_FEWEST = 1e-12  # expected arrivals below which there are none, and the mean gap might be no finite number


def draw(*, rate: Floats, cv: Floats, duration_s: Floats, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """Arrivals of many processes, each in equilibrium: it began long before.

    The first arrival comes after the forward recurrence time, a uniform part of a gap that is drawn in proportion to
    its length: that gap's shape is k + 1. The expected count is then rate x duration exactly, however short the
    duration; a process that begins with a gap brings (CV^2 - 1) / 2 more (Cox, Renewal Theory, 1962).

    Args:
        rate: arrivals per second, [processes]; 0 is a process without arrivals.
        cv: coefficient of variation of the gaps, [processes].
        duration_s: each process runs in [0, duration), [processes].
        rng: source of the draws.

    Returns:
        Times in seconds, float64 [arrivals], ascending within a process, and the process of each, int32 [arrivals].
    """
    of = np.flatnonzero(rate * duration_s > _FEWEST)
    shape, scale = cv[of] ** -2, cv[of] ** 2 / rate[of]
    last_s = rng.random(len(of)) * rng.standard_gamma(shape + 1) * scale
    opened = last_s < duration_s[of]
    of, shape, scale, last_s = of[opened], shape[opened], scale[opened], last_s[opened]
    times, processes = [last_s], [of]
    while len(of):
        expected = (duration_s[of] - last_s) * rate[of]
        sizes = (expected + cv[of] * np.sqrt(expected) + 4).astype(np.int64)
        gaps = rng.standard_gamma(np.repeat(shape, sizes)) * np.repeat(scale, sizes)
        ends = np.cumsum(sizes)
        total = np.concatenate(([0.0], np.cumsum(gaps)))
        at_s = total[1:] + np.repeat(last_s - total[ends - sizes], sizes)
        process = np.repeat(of, sizes)
        within = at_s < duration_s[process]
        times.append(at_s[within])
        processes.append(process[within])
        last_s, opened = at_s[ends - 1], within[ends - 1]
        of, shape, scale, last_s = of[opened], shape[opened], scale[opened], last_s[opened]
    return np.concatenate(times), np.concatenate(processes).astype(np.int32)


def fit_cv(*, count: Floats, spread: Floats, censored: Floats, most: float) -> Floats:
    """CVs of maximum likelihood, [processes], at most `most`.

    Args:
        count: gaps in each window of each process, [windows, processes], at least one window with 2 or more.
        spread: mean over a process's gaps of log(mean gap of the window) - log(max(gap, floor)), [processes].
        censored: share of a process's gaps that are below the floor, [processes].
        most: cap on the CV.
    """
    weight = count / count.sum(axis=0)
    gaps = np.maximum(count, 1.0)
    least, largest = np.full(len(spread), _LEAST_CV**2), np.full(len(spread), most**2)
    inverse = np.clip(spread / np.maximum(1 - censored, 0.1), least, largest)  # 1 / k, where k is small
    for _ in range(60):
        shape = 1 / inverse
        excess = _entropy(shape) - censored * inverse - (weight * _entropy(gaps * shape)).sum(axis=0) - spread
        slope = _slope(shape) - censored - (weight * _slope(gaps * shape) * gaps).sum(axis=0)
        largest = np.where(excess > 0, inverse, largest)
        least = np.where(excess > 0, least, inverse)
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = inverse - excess / slope
        inside = (newton > least) & (newton < largest)
        after = np.where(inside, newton, np.sqrt(least * largest))
        settled = (np.abs(after - inverse) <= 1e-9 * inverse).all()
        inverse = after
        if settled:
            break
    return np.sqrt(inverse)


def _entropy(shape: Floats) -> Floats:
    """Log k - psi(k)."""
    return np.log(shape) - digamma(shape)


def _slope(shape: Floats) -> Floats:
    """The derivative of log k - psi(k) by 1 / k."""
    return shape**2 * trigamma(shape) - shape
