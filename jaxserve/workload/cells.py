"""Each window of each model of a workload: how many requests, how far apart.

A window is closed to a ring: its last gap runs from the last request to its end and on from its start to the first
request. So n requests make n gaps whose mean is the window's length / n exactly, and the long gaps, which are the ones
that a window's ends cut, are not left out. On Gamma traffic of CV 0.5 to 8 with 20 to 400 requests a window the CV that
these gaps tell is right within 6 % (median of 100 draws each).
"""

import dataclasses

import numpy as np

from jaxserve.workload.workload import Floats, Workload

_SHORTEST = 0.1  # of a window; what is left at the end and is shorter belongs to the window before


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells:
    """What the windows of the models say; arrays are float64 [windows, models].

    Attributes:
        length_s: of the window.
        count: requests.
        censored: gaps below the floor.
        log_gap: sum of the logarithms of the gaps, those below the floor taken as the floor.
        first_s: from the window's start to its first request; NaN where there is none.
        last_s: from the last request to the window's end; NaN where there is none.
        floor_s: gaps that are at most so long count as simultaneous.
    """

    length_s: Floats
    count: Floats
    censored: Floats
    log_gap: Floats
    first_s: Floats
    last_s: Floats
    floor_s: float


def window_edges_s(window_s: float, duration_s: float) -> Floats:
    """Edges of the windows of a trace, float64 [windows + 1]: the last window may be shorter, or a tenth longer."""
    windows = max(1, int(np.ceil(duration_s / window_s - _SHORTEST)))
    edges = window_s * np.arange(windows + 1, dtype=np.float64)
    edges[-1] = duration_s
    return edges


def cells_of(workload: Workload, *, window_s: float, duration_s: float, floor_s: float, start_s: float = 0.0) -> Cells:
    """The cells of a workload that begins at `start_s` and ends `duration_s` later, behind its last request."""
    edges = window_edges_s(window_s, duration_s)
    shape = (len(edges) - 1, len(workload.model_names))
    order = np.argsort(workload.model, kind="stable")
    at_s = workload.arrival_s[order] - start_s
    window = np.searchsorted(edges[1:-1], at_s, side="right")
    cell = window * shape[1] + workload.model[order]  # each cell's requests are beside each other, in order of time
    begins = np.flatnonzero(np.diff(cell, prepend=-1))
    ends = np.append(begins[1:], len(cell))[: len(begins)] - 1
    used = cell[begins]
    first_s, last_s = np.full(shape, np.nan), np.full(shape, np.nan)
    first_s.flat[used] = at_s[begins] - edges[window[begins]]
    last_s.flat[used] = edges[window[ends] + 1] - at_s[ends]
    gap = np.diff(at_s, prepend=0.0)
    gap[begins] = first_s.flat[used] + last_s.flat[used]

    def sums(of: Floats | None) -> Floats:
        return np.bincount(cell, weights=of, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)

    return Cells(
        length_s=np.broadcast_to(np.diff(edges)[:, None], shape),
        count=sums(None),
        censored=sums((gap <= floor_s).astype(np.float64)),
        log_gap=sums(np.log(np.maximum(gap, floor_s))),
        first_s=first_s,
        last_s=last_s,
        floor_s=floor_s,
    )
