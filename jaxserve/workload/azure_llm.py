"""Azure LLM inference 2023: when requests came, how long their prompts and answers were.

The files `AzureLLMInferenceTrace_code.csv` and `_conv.csv` of github.com/Azure/AzurePublicDataset (Patel et al.,
Splitwise, ISCA'24): TIMESTAMP, ContextTokens, GeneratedTokens. The files of 2024 have the same columns, with a time
zone of +00:00 behind each timestamp, and are read as well.
"""

import array
import dataclasses
import datetime
import math
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxserve.workload.dealing import check_range, slo_of_each
from jaxserve.workload.rows import BrokenRows, Skipped, rows_of
from jaxserve.workload.workload import Floats, Ints, Workload

_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:\+00:00|Z)?")
_EPOCH = datetime.datetime(1970, 1, 1)
_MOST = 2**31 - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LlmTrace:
    """Requests in order of arrival.

    Attributes:
        model_names: one for each file.
        arrival_s: float64 [requests], ascending, from the start of the range.
        model: int32 [requests], index into `model_names`.
        context_tokens: int32 [requests], length of the prompt.
        generated_tokens: int32 [requests], length of the answer.
        skipped: broken rows.
    """

    model_names: tuple[str, ...]
    arrival_s: Floats
    model: Ints
    context_tokens: Ints
    generated_tokens: Ints
    skipped: Skipped

    def workload(self, *, slo_s: float | Sequence[float] | Floats) -> Workload:
        """The requests as they came; `slo_s` is of every model, or of each.

        Raises:
            ConfigError: another number of SLOs.
        """
        slos = slo_of_each(slo_s, models=len(self.model_names))
        return Workload(
            arrival_s=self.arrival_s, model=self.model, model_names=self.model_names, slo_s=slos[self.model]
        )


def read_azure_llm(
    paths: Mapping[str, str | os.PathLike[str]],
    *,
    start_s: float = 0.0,
    end_s: float = math.inf,
    strict: bool = False,
) -> LlmTrace:
    """Reads one file for each model, row by row; besides one row it holds 20 bytes for each request.

    Args:
        paths: the file of each model, by its name.
        start_s: where the range begins, counted from the earliest request of all files; it becomes 0.
        end_s: where it ends.
        strict: refuse broken rows: a wrong number of columns, a timestamp that is none, a count of tokens that is no
            whole number from 0.

    Raises:
        FileFormatError: a file that cannot be read, or has another header, or a broken row if `strict`.
        ConfigError: a range that is none.
    """
    check_range(start_s, end_s)
    broken = BrokenRows(strict=strict)
    times_ns, models, context, generated = array.array("q"), array.array("i"), array.array("i"), array.array("i")
    for model, path in enumerate(paths.values()):
        for line, text in rows_of(path, header=_HEADER):
            columns = text.split(",")
            if len(columns) != 3:
                broken.add(path, line, f"has {len(columns)} columns, but must have 3")
                continue
            at_ns = _nanoseconds(columns[0])
            if at_ns is None:
                broken.add(path, line, f"has TIMESTAMP {columns[0]!r}, which is not like 2023-11-16 18:17:03.9799600")
                continue
            if not all(each.isdecimal() and int(each) <= _MOST for each in columns[1:]):
                broken.add(path, line, f"has tokens {columns[1]!r} and {columns[2]!r}, which are no counts")
                continue
            times_ns.append(at_ns)
            models.append(model)
            context.append(int(columns[1]))
            generated.append(int(columns[2]))
    since_ns = np.frombuffer(times_ns, np.int64) - min(times_ns, default=0)
    at_s = since_ns / 1e9
    kept = np.flatnonzero((at_s >= start_s) & (at_s < end_s))
    kept = kept[np.argsort(since_ns[kept], kind="stable")]
    return LlmTrace(
        model_names=tuple(paths),
        arrival_s=at_s[kept] - start_s,
        model=np.frombuffer(models, np.int32)[kept],
        context_tokens=np.frombuffer(context, np.int32)[kept],
        generated_tokens=np.frombuffer(generated, np.int32)[kept],
        skipped=broken.skipped(),
    )


def _nanoseconds(timestamp: str) -> int | None:
    """Since 1970, exactly; None where the text is no timestamp."""
    match = _TIMESTAMP.fullmatch(timestamp)
    if match is None:
        return None
    try:
        whole = datetime.datetime.fromisoformat(match[1]) - _EPOCH
    except ValueError:
        return None
    return (whole.days * 86_400 + whole.seconds) * 10**9 + int((match[2] or "").ljust(9, "0"))
