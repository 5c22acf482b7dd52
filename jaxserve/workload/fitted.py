"""Traffic as rates and CVs of windows, and traffic drawn from them."""

import dataclasses
from typing import Any

import numpy as np

from jaxserve.errors import ConfigError
from jaxserve.workload.cells import window_edges_s
from jaxserve.workload.checks import MOST_CV, MOST_REQUESTS, check_positive, check_requests, check_windows
from jaxserve.workload.prior import effective, fit_prior
from jaxserve.workload.renewal import draw
from jaxserve.workload.workload import Floats, Ints, Workload

FEWEST = 3  # requests that tell a CV
_LEAST_SPREAD = 0.1  # models that are as popular as each other to the last tenth are not known to be so


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted:
    """Each window of each model as a Gamma renewal process (AlpaServe, OSDI'23, section 6.1).

    Attributes:
        model_names: names of the models.
        window_s: length of the windows; the last one ends with the trace and may be shorter, or a tenth longer.
        duration_s: length of the trace.
        start_s: where it begins, and its first window.
        rate: float64 [windows, models], requests per second: the window's count / its length.
        cv: float64 [windows, models], coefficient of variation of the gaps; 1 where nothing tells it.
        slo_s: for each model the SLOs that its requests draw from, float64 [at least 1].
        priority: for each model the priorities that go with these SLOs, int32, as many; empty where all are 0.
        tenant: for each model the tenants that go with them, indices into `tenant_names`; empty where all are 0.
        tenant_names: names of the tenants.
    """

    model_names: tuple[str, ...]
    window_s: float
    duration_s: float
    rate: Floats
    cv: Floats
    slo_s: tuple[Floats, ...]
    start_s: float = 0.0
    priority: tuple[Ints, ...] = ()
    tenant: tuple[Ints, ...] = ()
    tenant_names: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        check_positive(window_s=self.window_s, duration_s=self.duration_s)
        check_windows(self.window_s, self.duration_s)
        shape = (len(self.edges_s) - 1, len(self.model_names))
        if not self.rate.shape == self.cv.shape == shape:
            raise ConfigError(f"rate and cv have shapes {self.rate.shape} and {self.cv.shape}, but must have {shape}")
        if not (np.isfinite(self.rate) & (self.rate >= 0) & np.isfinite(self.cv) & (self.cv > 0)).all():
            raise ConfigError("a rate is negative, or a CV is not greater than 0, or one of them is not finite")
        if len(self.slo_s) != shape[1] or not all(each.size for each in self.slo_s):
            raise ConfigError(
                f"slo_s holds {len(self.slo_s)} arrays, but must hold one that is not empty for each model"
            )
        shapes = [each.shape for each in self.slo_s]
        for name in ("priority", "tenant"):
            found = [each.shape for each in getattr(self, name)]
            if found and found != shapes:
                raise ConfigError(f"{name} has arrays of shapes {found}, but must have those of slo_s, {shapes}")

    @property
    def edges_s(self) -> Floats:
        """Where windows begin and end, float64 [windows + 1]."""
        return self.start_s + window_edges_s(self.window_s, self.duration_s)

    @property
    def requests(self) -> float:
        """How many requests a sample has on average."""
        return float((self.rate * self._lengths_s[:, None]).sum())

    @property
    def _lengths_s(self) -> Floats:
        return np.diff(window_edges_s(self.window_s, self.duration_s))

    def sample(
        self, rng: np.random.Generator, *, rate_scale: float = 1.0, cv_scale: float = 1.0, posterior: bool = False
    ) -> Workload:
        """New requests like those that were fitted.

        Each has the SLO, the priority and the tenant that one request of its model had, drawn among all of them.

        Each window is drawn by itself and in equilibrium, so that its expected count is rate x length, however short
        it is (see `renewal.draw`).

        With `posterior` the rates are not taken as they are: a few hundred bursty requests tell a rate only within tens
        of percent, and what is planned for exactly those rates fits their noise. Instead, each window's rate is drawn
        from its posterior: a Gamma distribution with n / max(1, CV^2) events, under a prior that is fitted to the rates
        of all models and windows (see `prior`). A cell with less than 3 requests counts there, and is drawn, with the
        typical CV of its model's other windows, or of the other models: its own is unknown. One without requests may
        then get some.

        Args:
            rng: source of every draw.
            rate_scale: factor on every rate.
            cv_scale: factor on every CV.
            posterior: whether to draw the rates, too.

        Raises:
            ConfigError: a scale that is not greater than 0, or too many requests, or too large a CV.
        """
        check_positive(rate_scale=rate_scale, cv_scale=cv_scale)
        edges = self.edges_s
        length_s = np.broadcast_to(self._lengths_s[:, None], self.rate.shape)
        self._check_drawn(rate_scale, cv_scale)
        rate, cv = self._posterior(length_s, rng) if posterior else (self.rate, self.cv)
        times, cell = draw(
            rate=(rate * rate_scale).reshape(-1),
            cv=(cv * cv_scale).reshape(-1),
            duration_s=length_s.reshape(-1),
            rng=rng,
        )
        models = max(1, len(self.model_names))
        times = times + edges[cell // models]
        times = np.minimum(times, np.nextafter(edges[1:], 0.0)[cell // models])  # a sum may round up to the end
        order = np.argsort(times, kind="stable")
        model = (cell % models)[order]
        terms = self._terms(model, rng)
        return Workload(arrival_s=times[order], model=model, model_names=self.model_names, **terms)

    def _check_drawn(self, rate_scale: float, cv_scale: float) -> None:
        requests = self.requests
        most_scale = 0.95 * MOST_REQUESTS / max(requests, 1e-300)
        check_requests(
            rate_scale * requests, f"give a rate scale of at most {most_scale:.2g}, or a shorter range of time"
        )
        most_cv = float(self.cv.max(initial=0.0))
        if most_cv * cv_scale > MOST_CV:
            raise ConfigError(
                f"the CV scale is {cv_scale:g}, but the traffic has CVs of up to {most_cv:.2g}, and none above "
                f"{MOST_CV:g} is drawn; give at most {0.95 * MOST_CV / most_cv:.2g}"
            )

    def _posterior(self, length_s: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
        count = self.rate * length_s
        known = np.where(count > FEWEST - 0.5, count, 0.0)
        logs = known * np.log(self.cv)
        of_all = float(logs.sum() / max(known.sum(), 1.0))
        typical: Floats = logs.sum(axis=0) / np.maximum(known.sum(axis=0), 1.0)
        typical = np.where(known.any(axis=0), typical, of_all)
        cv = np.where(known > 0, self.cv, np.exp(typical))
        events, exposure_s = effective(count, cv, length_s)
        return fit_prior(events, exposure_s, least_spread=_LEAST_SPREAD).draw(events, exposure_s, rng), cv

    def _terms(self, model: Ints, rng: np.random.Generator) -> dict[str, Any]:
        """SLO, priority and tenant of each request, as `Workload` has them."""
        sizes = np.array([len(each) for each in self.slo_s], np.int64)
        starts = np.cumsum(sizes) - sizes
        which = starts[model]
        if (sizes > 1).any():
            which = which + rng.integers(sizes[model])
        terms = {"slo_s": self.slo_s or (np.ones(1),), "priority": self.priority, "tenant": self.tenant}
        drawn = {name: np.concatenate(of_models)[which] for name, of_models in terms.items() if of_models}
        return {**drawn, "tenant_names": self.tenant_names}
