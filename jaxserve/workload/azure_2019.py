"""Azure Functions 2019, AlpaServe's MAF1: how often each function was called in each minute.

The files `invocations_per_function_md.anon.dNN.csv` of github.com/Azure/AzurePublicDataset (Shahrad et al., Serverless
in the Wild, ATC'20), one a day: HashOwner, HashApp, HashFunction, Trigger, and the counts of minutes 1 to 1440. A
function is one HashFunction of one HashApp; rows of one function add up.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from jaxserve.errors import ConfigError
from jaxserve.workload.cells import window_edges_s
from jaxserve.workload.dealing import Deal, check_range, deal_functions, slo_of_each
from jaxserve.workload.fitted import Fitted
from jaxserve.workload.rows import BrokenRows, Skipped, rows_of
from jaxserve.workload.workload import Floats, Ints

_MINUTES = 1440
_NAMES = ["HashOwner", "HashApp", "HashFunction", "Trigger"]
_HEADER = ",".join([*_NAMES, *(str(minute) for minute in range(1, _MINUTES + 1))])
_SHOWN = ",".join([*_NAMES, f"1,2,...,{_MINUTES}"])
_MOST = 2**31 - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FunctionCounts:
    """Calls per minute; minutes without calls are left out.

    Attributes:
        functions: `app/function` hashes in order of first appearance in the files, also those without calls.
        function: int32 [entries], index into `functions`.
        minute: int32 [entries], from the start of the range.
        count: int32 [entries], calls of this function in this minute, from 1.
        duration_s: length of the range.
        skipped: broken rows.
    """

    functions: tuple[str, ...]
    function: Ints
    minute: Ints
    count: Ints
    duration_s: float
    skipped: Skipped

    def fitted(
        self,
        *,
        model_names: Sequence[str],
        slo_s: float | Sequence[float] | Floats,
        window_s: float = 60.0,
        deal: Deal = "stripe",
    ) -> Fitted:
        """Functions dealt to models and counted in windows, each a Poisson process of its rate: count / length.

        As AlpaServe draws MAF1, `fitted(...).sample(rng, rate_scale=r, cv_scale=c)` is a Gamma process of r times that
        rate and CV c in each window.

        Args:
            model_names: the models.
            slo_s: seconds from arrival to deadline: of every model, or of each.
            window_s: a multiple of 60 seconds.
            deal: how functions are dealt to models (see `dealing.deal_functions`).

        Raises:
            ConfigError: a window that is no multiple of 60, fewer functions with calls than models, or an SLO that is
                not greater than 0.
        """
        if window_s % 60 or not 0 < window_s < np.inf:
            raise ConfigError(f"window_s is {window_s}, but calls are counted per minute; give a multiple of 60")
        slos = slo_of_each(slo_s, models=len(model_names))
        model = deal_functions(self.function, models=len(model_names), deal=deal)
        edges = window_edges_s(window_s, self.duration_s)
        window = np.searchsorted(edges[1:-1], 60.0 * self.minute, side="right")
        counts = np.zeros((len(edges) - 1, len(model_names)))
        np.add.at(counts, (window, model), self.count)
        return Fitted(
            model_names=tuple(model_names),
            window_s=float(window_s),
            duration_s=self.duration_s,
            rate=counts / np.diff(edges)[:, None],
            cv=np.ones(counts.shape),
            slo_s=tuple(slos[:, None]),
        )


def read_azure_2019(
    paths: Sequence[str | os.PathLike[str]], *, start_s: float = 0.0, end_s: float | None = None, strict: bool = False
) -> FunctionCounts:
    """Reads days of the trace, in the order of `paths`, row by row.

    Besides one row it holds 12 bytes for each minute of a function that has calls.

    Args:
        paths: one file a day; the first begins at 0 s, each takes 86,400 s.
        start_s: where the range begins, a multiple of 60.
        end_s: where it ends, a multiple of 60; with the last day where it is None.
        strict: refuse broken rows: a wrong number of columns, or a count that is no whole number from 0.

    Raises:
        FileFormatError: a file that cannot be read, or has another header, or a broken row if `strict`.
        ConfigError: no files, or a range that is not within them, or not of whole minutes.
    """
    days_s = 60.0 * _MINUTES * len(paths)
    end_s = days_s if end_s is None else end_s
    if not paths:
        raise ConfigError("no files were given; give at least one day, as invocations_per_function_md.anon.d01.csv")
    check_range(start_s, end_s)
    if start_s % 60 or end_s % 60 or end_s > days_s:
        raise ConfigError(
            f"from {start_s} s to {end_s} s was asked for, but the range must be of whole minutes up to {days_s} s"
        )
    broken = BrokenRows(strict=strict)
    index_of: dict[str, int] = {}
    parts: list[tuple[int, Ints, Ints]] = []  # function, minutes, counts
    for day, path in enumerate(paths):
        first = max(0, int(start_s // 60) - day * _MINUTES)
        last = min(_MINUTES, int(end_s // 60) - day * _MINUTES)
        begin = day * _MINUTES - int(start_s // 60)
        for line, text in rows_of(path, header=_HEADER, shown=_SHOWN):
            columns = text.split(",")
            if len(columns) != len(_NAMES) + _MINUTES:
                broken.add(path, line, f"has {len(columns)} columns, but must have {len(_NAMES) + _MINUTES}")
                continue
            try:
                counts = np.array(list(map(int, columns[len(_NAMES) :])), np.int64)
            except (ValueError, OverflowError) as error:
                broken.add(path, line, f"has a count that is no whole number ({error})")
                continue
            if not 0 <= counts.min() <= counts.max() <= _MOST:
                minute = int(np.argmax((counts < 0) | (counts > _MOST)))
                broken.add(path, line, f"has a count of {counts[minute]} in minute {minute + 1}")
                continue
            function = index_of.setdefault(f"{columns[1]}/{columns[2]}", len(index_of))
            if first < last:
                called = first + np.flatnonzero(counts[first:last]).astype(np.int32)
                parts.append((function, called + np.int32(begin), counts[called].astype(np.int32)))
    nothing = np.zeros(0, np.int32)
    return FunctionCounts(
        functions=tuple(index_of),
        function=np.repeat(np.array([part[0] for part in parts], np.int32), [len(part[1]) for part in parts]),
        minute=np.concatenate([nothing, *(part[1] for part in parts)]),
        count=np.concatenate([nothing, *(part[2] for part in parts)]),
        duration_s=float(end_s - start_s),
        skipped=broken.skipped(),
    )
