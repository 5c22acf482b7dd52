"""Azure Functions 2021, AlpaServe's MAF2: when each call of two weeks ended, and how long it took.

The file `AzureFunctionsInvocationTraceForTwoWeeksJan2021.txt` of github.com/Azure/AzurePublicDataset (Zhang et al.,
Faster and Cheaper Serverless Computing on Harvested Resources, SOSP'21): app, func, end_timestamp, duration, both in
seconds. A call arrived when it ended, less its duration. A function is one func of one app.
"""

import array
import dataclasses
import math
import os
from collections.abc import Sequence

import numpy as np

from jaxserve.workload.dealing import Deal, check_range, deal_functions, slo_of_each
from jaxserve.workload.rows import BrokenRows, Skipped, rows_of
from jaxserve.workload.workload import Floats, Ints, Workload

_HEADER = "app,func,end_timestamp,duration"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FunctionArrivals:
    """Calls in order of arrival.

    Attributes:
        functions: `app/func` hashes in order of first appearance in the file, also those without calls in the range.
        arrival_s: float64 [calls], ascending, from the start of the range.
        function: int32 [calls], index into `functions`.
        skipped: broken rows.
    """

    functions: tuple[str, ...]
    arrival_s: Floats
    function: Ints
    skipped: Skipped

    def workload(
        self, *, model_names: Sequence[str], slo_s: float | Sequence[float] | Floats, deal: Deal = "stripe"
    ) -> Workload:
        """The calls as they came, the functions dealt to models.

        As AlpaServe draws MAF2, `fit(workload, window_s=...).sample(rng, rate_scale=r, cv_scale=c)` fits a Gamma
        process to each window and draws it anew.

        Args:
            model_names: the models.
            slo_s: seconds from arrival to deadline: of every model, or of each.
            deal: how functions are dealt to models (see `dealing.deal_functions`).

        Raises:
            ConfigError: fewer functions with calls than models, or another number of SLOs.
        """
        slos = slo_of_each(slo_s, models=len(model_names))
        model = deal_functions(self.function, models=len(model_names), deal=deal)
        return Workload(arrival_s=self.arrival_s, model=model, model_names=tuple(model_names), slo_s=slos[model])


def read_azure_2021(
    path: str | os.PathLike[str], *, start_s: float = 0.0, end_s: float = math.inf, strict: bool = False
) -> FunctionArrivals:
    """Reads the calls that arrived in [start_s, end_s), row by row; besides one row it holds 12 bytes for each call.

    Args:
        path: the file as it was published.
        start_s: where the range begins; it becomes 0.
        end_s: where it ends.
        strict: refuse broken rows: a wrong number of columns, a time that is no finite number, a negative duration.

    Raises:
        FileFormatError: the file cannot be read, or has another header, or a broken row if `strict`.
        ConfigError: a range that is none.
    """
    check_range(start_s, end_s)
    broken = BrokenRows(strict=strict)
    index_of: dict[tuple[str, str], int] = {}
    arrivals, functions = array.array("d"), array.array("i")
    for line, text in rows_of(path, header=_HEADER):
        columns = text.split(",")
        if len(columns) != 4:
            broken.add(path, line, f"has {len(columns)} columns, but must have 4")
            continue
        app, func, ended, took = columns
        try:
            end, duration_s = float(ended), float(took)
        except ValueError:
            broken.add(path, line, f"has end_timestamp {ended!r} and duration {took!r}, but both must be numbers")
            continue
        if not (0 <= duration_s < math.inf and -math.inf < end < math.inf):
            broken.add(path, line, f"has end_timestamp {ended} and duration {took}, but they must be finite, from 0 s")
            continue
        function = index_of.setdefault((app, func), len(index_of))
        arrival_s = end - duration_s
        if start_s <= arrival_s < end_s:
            arrivals.append(arrival_s - start_s)
            functions.append(function)
    arrival = np.frombuffer(arrivals, np.float64)
    order = np.argsort(arrival, kind="stable")
    return FunctionArrivals(
        functions=tuple(f"{app}/{func}" for app, func in index_of),
        arrival_s=arrival[order],
        function=np.frombuffer(functions, np.int32)[order],
        skipped=broken.skipped(),
    )
