"""Families of metrics, and Prometheus's text formats of them.

prometheus_client makes an object and a dict of every sample, and then a text of each. For a few hundred models with
their histograms these are tens of thousands, and the loop stands still for some tenths of a second. Here a family's
rows become text at once, in a fifth to a tenth of the time (bench/scrape.py); a test holds the text against
prometheus_client's of the same families.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from jaxserve.metrics import Histogram

Value = float | Histogram
_EXPONENT_FROM = 1_000_000
"""Prometheus writes numbers from here on with an exponent."""


class Family(NamedTuple):
    """A metric, with its values by label.

    Attributes:
        name: with its unit, and `_total` where it is a counter.
        kind: of metric.
        about: one sentence without quotation marks, backslashes and full stop.
        labels: their names.
        rows: values of the labels, and the metric's own: a `Histogram` where it is one.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    about: str
    labels: tuple[str, ...]
    rows: Sequence[tuple[tuple[str, ...], Value]]


def write(families: Iterable[Family], *, openmetrics: bool) -> str:
    """The families as text, in OpenMetrics 1.0 (but for the line that ends it) or Prometheus 0.0.4."""
    lines: list[str] = []
    known: dict[tuple[str, ...], str] = {}  # many families have rows of the same labels
    bounds: Sequence[float] = ()
    bound_texts: Sequence[str] = ()
    for name, kind, about, labels, rows in families:
        of_family = name.removesuffix("_total") if openmetrics else name
        lines.append(f"# HELP {of_family} {about}")
        lines.append(f"# TYPE {of_family} {kind}")
        for values, value in rows:
            text = known.get(labels + values)
            if text is None:
                pairs = zip(labels, values, strict=True)
                text = known[labels + values] = ",".join([f'{label}="{_escape(given)}"' for label, given in pairs])
            if isinstance(value, Histogram):
                if value.bounds is not bounds:
                    bounds, bound_texts = value.bounds, [f'le="{_number(bound)}"}}' for bound in value.bounds]
                _write_histogram(lines, name, text, value, bound_texts)
            else:
                lines.append(f"{name}{{{text}}} {_number(value)}" if text else f"{name} {_number(value)}")
    lines.append("")
    return "\n".join(lines)


def as_metric(family: Family) -> Metric:
    """A family as prometheus_client has it."""
    name, kind, about, labels, rows = family
    if kind == "histogram":
        histograms = HistogramMetricFamily(name, about, labels=labels)
        for values, value in rows:
            assert isinstance(value, Histogram)
            cumulated = _cumulated(value)
            bounds = [*map(floatToGoString, value.bounds), "+Inf"]
            histograms.add_metric(values, list(zip(bounds, cumulated, strict=True)), value.sum)
        return histograms
    made = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(name, about, labels=labels)
    for values, value in rows:
        assert not isinstance(value, Histogram)
        made.add_metric(values, value)
    return made


def _write_histogram(lines: list[str], name: str, text: str, histogram: Histogram, bound_texts: Sequence[str]) -> None:
    begin = f"{name}_bucket{{{text}{',' if text else ''}"
    cumulated = _cumulated(histogram)
    lines += [f"{begin}{bound} {_number(count)}" for bound, count in zip(bound_texts, cumulated, strict=False)]
    total = _number(cumulated[-1])
    lines.append(f'{begin}le="+Inf"}} {total}')
    if histogram.bounds[0] >= 0:  # a sum may not go down, as one of values with signs does, and no count comes alone
        labels = f"{{{text}}}" if text else ""
        lines.append(f"{name}_count{labels} {total}")
        lines.append(f"{name}_sum{labels} {_number(histogram.sum)}")


def _cumulated(histogram: Histogram) -> list[int]:
    """How many values were at most each bound, and last how many there were."""
    total = 0
    return [total := total + count for count in histogram.counts]


def _number(value: float) -> str:
    return f"{value}.0" if type(value) is int and 0 <= value < _EXPONENT_FROM else floatToGoString(value)


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
