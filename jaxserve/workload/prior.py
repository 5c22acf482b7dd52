"""What the rates of all models say about the rate of each: empirical Bayes.

A count of n requests with a CV above 1 varies like n / CV^2 Poisson events, so it tells the rate only within a part
CV / sqrt(n). The likelihood of a rate r given a window of T seconds and gaps of shape k is proportional to
r^(nk) exp(-r k T): that of nk = n / CV^2 events in kT seconds. Under a Gamma prior with `shape` a and `rate_s` b, the
posterior is Gamma with a + nk and b + kT. Gaps that are more regular than Poisson's (k > 1) are counted as Poisson's.

The prior comes from the rates of all cells by moments (Marshall, Mapping disease and mortality rates using empirical
Bayes estimators, 1991): with weights w = kT, its mean is m = sum(w r) / sum(w), its variance that of the r around m,
less the part m / mean(w) which counts vary by anyway.
"""

import dataclasses
import math

import numpy as np

from jaxserve.workload.special import log_gamma
from jaxserve.workload.workload import Floats

_FEWEST = 4  # cells that tell a variance between them


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RatePrior:
    """A Gamma distribution of rates.

    Attributes:
        shape: a; 0 is no knowledge.
        rate_s: b, in seconds.
    """

    shape: float
    rate_s: float

    def draw(self, events: Floats, exposure_s: Floats, rng: np.random.Generator) -> Floats:
        """Rates from the posterior of each cell."""
        return rng.standard_gamma(self.shape + events) / (self.rate_s + exposure_s)

    def log_evidence(self, events: Floats, exposure_s: Floats) -> Floats:
        """Log of the mean likelihood under the prior / the largest likelihood, of each cell.

        Without knowledge it is what the Bayesian information criterion takes for a rate.
        """
        if self.shape == 0:
            return -0.5 * np.log1p(events)
        posterior = self.shape + events
        mean = (
            self.shape * np.log(self.rate_s)
            + log_gamma(posterior)
            - math.lgamma(self.shape)
            - posterior * np.log(self.rate_s + exposure_s)
        )
        rate = np.where(events > 0, events / exposure_s, 1.0)
        return mean - (events * np.log(rate) - events)


def effective(count: Floats, cv: Floats, length_s: Floats) -> tuple[Floats, Floats]:
    """Poisson events and the seconds in which they came that say as much of the rate as `count` requests do."""
    dispersion = np.maximum(cv, 1.0) ** 2
    return count / dispersion, length_s / dispersion


def fit_prior(events: Floats, exposure_s: Floats, *, least_spread: float) -> RatePrior:
    """The prior of the rates events / exposure; no knowledge where there are less than four, or no events at all.

    Its standard deviation is at least `least_spread` times its mean.
    """
    mean = float(events.sum() / exposure_s.sum())
    if events.size < _FEWEST or mean == 0:
        return RatePrior(shape=0.0, rate_s=0.0)
    squares = float((exposure_s * (events / exposure_s - mean) ** 2).sum() / exposure_s.sum())
    variance = squares * events.size / (events.size - 1) - mean / float(exposure_s.mean())
    variance = max(variance, (least_spread * mean) ** 2)
    return RatePrior(shape=mean**2 / variance, rate_s=mean / variance)
