"""The traffic that the search plans for: the trace that is given and others like it.

A placement that is fitted to one trace is fitted to its accidents: which model happened to burst when. So the trace is
taken apart into rates and CVs (`workload.fit`) and drawn again several times, with the rates drawn from what the trace
tells about them, and a placement is judged by the mean over all. A long trace holds many accidents itself, and runs of
it would take long: slices of it, evenly spread, take the place of resamples.
"""

import numpy as np

from jaxserve.plans import Fleet
from jaxserve.simulator import Traffic
from jaxserve.workload import Workload, fit

_RESAMPLES = 16
_REQUESTS = 200_000  # of all traces together
_SLICES = 4


def training_traces(workload: Workload, fleet: Fleet, rng: np.random.Generator) -> list[Traffic]:
    """What to score by, the given trace first; or slices of it where it is long."""
    if len(workload) > _REQUESTS:
        return [Traffic.of(part, fleet) for part in _slices(workload)]
    resamples = min(_RESAMPLES, _REQUESTS // len(workload) - 1)
    return [Traffic.of(workload, fleet), *fresh_traces(workload, fleet, rng, resamples=resamples)]


def fresh_traces(workload: Workload, fleet: Fleet, rng: np.random.Generator, *, resamples: int) -> list[Traffic]:
    """Traces like the given one; itself where it is so long that only slices of it were seen."""
    if len(workload) > _REQUESTS:
        return [Traffic.of(workload, fleet)]
    fitted = fit(workload)
    drawn = (fitted.sample(rng, posterior=True) for _ in range(resamples))
    return [Traffic.of(each, fleet) for each in drawn if len(each)]


def _slices(workload: Workload) -> list[Workload]:
    """Parts of equal numbers of requests, from the middles of equal parts of the trace."""
    own, part = _REQUESTS // _SLICES, len(workload) // _SLICES
    firsts = [index * part + (part - own) // 2 for index in range(_SLICES)]
    return [workload.take(slice(first, first + own), start_s=float(workload.arrival_s[first])) for first in firsts]
