"""The dashboard's queries, and those of docs/metrics.md, name nothing but what is exported."""

import functools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.scrapes import families

DOCS = Path(__file__).resolve().parents[2] / "docs"
DASHBOARD = json.loads((DOCS / "grafana-dashboard.json").read_text("utf-8"))
PAGE = (DOCS / "metrics.md").read_text("utf-8")

# What Prometheus adds to every series, and of Prometheus's language what is used.
ADDED = {"instance", "job"}
FUNCTIONS = {"count", "deriv", "histogram_quantile", "increase", "max", "max_over_time", "min", "min_over_time", "rate"}
WORDS = FUNCTIONS | {"and", "by", "label_values", "on", "sum", "time", "up"}
GRAFANA = {
    "$__rate_interval": "5m",
    "$__range": "1h",
    "$window": "5m",
    "$instance": ".*",
    "$model": ".*",
    "$group": ".*",
}
SELECTOR = re.compile(r"\b([a-z]+_[a-z_]+)(?:\{(.*?)\})?(?=[\s\[),]|$)")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')


@functools.cache
def exported() -> dict[str, dict[str, set[str]]]:
    """Of every series its labels, with their values."""
    series: dict[str, dict[str, set[str]]] = {}
    for family in families().values():
        for sample in family.samples:
            labels = series.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return series


def mistakes(query: str, *, legend: str = "") -> list[str]:
    """What a query, or the legend of what it finds, names that there is not."""
    found: list[str] = []
    common = set.union(*[{*labels} for labels in exported().values()]) | ADDED
    names = [(name, matchers) for name, matchers in SELECTOR.findall(query) if name not in WORDS]
    if not names and not query.startswith("up{"):
        found.append("no metric")
    for name, matchers in names:
        if name not in exported():
            found.append(f"no metric {name}")
            continue
        labels = exported()[name]
        common &= {*labels} | ADDED
        for label, operator, value in MATCHER.findall(matchers):
            if label not in labels and label not in ADDED:
                found.append(f"{name} has no label {label}")
            elif not value.startswith(("$", ".*")) and label not in ADDED:
                values = {value} if operator in ("=", "!=") else set(value.split("|"))
                found += [f"{name} has no {label} {each}" for each in values - labels[label]]
    grouped = [each.strip() for by in re.findall(r"\b(?:by|on) \((.*?)\)", query) for each in by.split(",")]
    legends = re.findall(r"\{\{(\w+)\}\}", legend)
    found += [f"not all have a label {label}" for label in (*grouped, *legends) if label not in common]
    if legends and grouped:
        found += [f"{label} is summed away" for label in legends if label not in grouped]
    bare = re.sub(r"\{.*?\}|\[.*?\]", "", SELECTOR.sub("", re.sub(r"\b(?:by|on) \(.*?\)", "", query)))
    return found + [f"no function {word}" for word in re.findall(r"[a-z_]+", bare) if word not in WORDS]


def panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            yield panel


QUERIES = [(panel["title"], target) for panel in panels() for target in panel["targets"]]


@pytest.mark.parametrize(("title", "target"), QUERIES, ids=[f"{title} {target['refId']}" for title, target in QUERIES])
def test_a_panel_shows_what_there_is(title: str, target: dict[str, Any]) -> None:
    assert mistakes(target["expr"], legend=target["legendFormat"]) == []


@pytest.mark.parametrize(
    ("query", "mistake"),
    [
        ("sum(rate(jaxserve_request_total[5m]))", "no metric jaxserve_request_total"),
        ('jaxserve_requests_total{outcome="ok"}', "jaxserve_requests_total has no outcome ok"),
        ('jaxserve_requests_total{outcome=~"served|ok"}', "jaxserve_requests_total has no outcome ok"),
        ('jaxserve_requests_total{group="0"}', "jaxserve_requests_total has no label group"),
        ("sum by (group) (rate(jaxserve_requests_total[5m]))", "not all have a label group"),
        ("rates(jaxserve_requests_total[5m])", "no function rates"),
        ("rate(jaxserve_prediction_error_seconds_sum[5m])", "no metric jaxserve_prediction_error_seconds_sum"),
    ],
)
def test_mistakes_are_found(query: str, mistake: str) -> None:
    assert mistakes(query) == [mistake]


def test_variables_and_sources_hang_together() -> None:
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert {*variables} == {"datasource", *(name.removeprefix("$") for name in GRAFANA if "__" not in name)}
    source = {"type": "prometheus", "uid": "${datasource}"}
    for variable in variables.values():
        if variable["type"] == "query":
            assert variable["datasource"] == source
            assert mistakes(re.sub(r", \w+\)$", ")", variable["definition"])) == []
            assert variable["definition"] == variable["query"]["query"]
    text = json.dumps(DASHBOARD)
    assert set(re.findall(r"\$\w+", text)) <= {*GRAFANA, "$__all"}
    assert re.findall(r"\$\{(\w+)\}", text) == ["datasource"] * text.count("${")
    for panel in panels():
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])
        assert panel["description"]
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEF")[: len(panel["targets"])]


def test_panels_have_places_of_their_own() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


def test_the_page_lists_every_metric_with_its_labels() -> None:
    rows = re.findall(
        r"^\| `(jaxserve_\w+)` \| (.*?) ?\| (gauge|counter|histogram)\b.*\| `(.*)` \|$", PAGE, re.MULTILINE
    )
    listed = {name: ({*re.findall(r"`(\w+)`", labels)}, kind) for name, labels, kind, _ in rows}
    assert len(listed) == len(rows)
    expected: dict[str, tuple[set[str], str]] = {}
    for name, family in families().items():
        if name.startswith("jaxserve"):
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            expected[f"{name}_total" if family.type == "counter" else name] = (labels, family.type)
    assert listed == expected
    for name, _, _, query in rows:
        assert mistakes(query.replace("\\|", "|")) == []
        assert name in query


def rules() -> str:
    (found,) = re.findall(r"```yaml\n(groups:\n.*?)```", PAGE, re.DOTALL)
    return found


def test_the_page_s_other_queries_and_alerts_name_what_there_is() -> None:
    folded = re.sub(r">-\n\s+(.*)\n\s+(.*)", r"\1 \2", rules())
    expressions = re.findall(r"expr: (.*)", folded)
    assert len(expressions) == folded.count("alert: ") >= 8
    queries = [query.replace("\n", " ") for query in re.findall(r"```promql\n(.*?)\n```", PAGE, re.DOTALL)]
    for query in [*expressions, *queries]:
        assert mistakes(query) == [], query
    names = set(re.findall(r"`((?:jaxserve|process|python)_\w+)`", PAGE)) - {"jaxserve_total"}
    bases = {re.sub("_(bucket|sum|count)$", "", name) for name in exported()}
    assert {name for name in names if name not in bases and not name.endswith("_")} == set()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: apt install prometheus")
def test_promtool_can_read_all_queries(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    lines = [rules(), "  - name: dashboard", "    rules:"]
    for number, (_, target) in enumerate(QUERIES):
        query = target["expr"]
        for name, value in GRAFANA.items():
            query = query.replace(name, value)
        lines += [f"      - record: dashboard:{number}", f"        expr: {json.dumps(query)}"]
    file.write_text("\n".join(lines) + "\n", "utf-8")
    checked = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, b"")
    assert f"{len(QUERIES) + rules().count('alert: ')} rules found" in checked.stdout.decode()
