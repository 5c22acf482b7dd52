"""What a model's and a group's counters say after what they were told."""

import math

import pytest

from jaxserve.metrics import GroupMetrics, ModelMetrics
from jaxserve.request import RefuseReason


def test_an_answer_is_late_where_it_took_longer_than_its_deadline() -> None:
    metrics = ModelMetrics()
    for now_s, slo_s, in_time in ((2.0, 1.0, True), (2.5, 1.0, False), (9.0, math.inf, True)):
        assert in_time is metrics.answer(
            arrival_s=1.0, slo_s=slo_s, predicted_finish_s=1.75, computed_s=now_s - 0.25, rows=3, now_s=now_s
        )
    assert (metrics.served, metrics.late, metrics.rows_served, metrics.last_served_s) == (3, 1, 9, 9.0)
    assert (metrics.latency.count, metrics.latency.sum) == (3, 1.0 + 1.5 + 8.0)
    assert (metrics.error.count, metrics.error.sum) == (3, 0.25 + 0.75 + 7.25)
    assert metrics.output_s == 0.75
    assert metrics.attainment.over(60.0, 9.0) == 2 / 3


def test_everything_that_ends_counts_against_attainment_but_what_is_cancelled() -> None:
    metrics = ModelMetrics(requests=4, cancelled=1)
    metrics.answer(arrival_s=0.0, slo_s=1.0, predicted_finish_s=1.0, computed_s=1.0, rows=1, now_s=1.0)
    metrics.refuse(RefuseReason.FULL, 2.0)
    metrics.expire(3.0)
    metrics.fail(4.0)
    told = metrics.to_json(5.0)
    assert told["slo_attainment"] == 0.25
    assert told["recent_attainment"] == {"1m": 0.25, "5m": 0.25, "1h": 0.25}
    assert told["refusals"] == {"late": 0, "cold": 0, "full": 1, "share": 0, "down": 0}


def test_nothing_has_no_attainment_and_no_percentiles() -> None:
    told = ModelMetrics(requests=1, cancelled=1).to_json(1.0)
    assert told["slo_attainment"] is None
    assert told["recent_attainment"] == {"1m": None, "5m": None, "1h": None}
    assert told["latency_p99_s"] is None


def test_batches_are_counted_with_their_padding_and_by_their_rows() -> None:
    metrics = ModelMetrics()
    for rows, volume, used in ((3, 4, 3), (4, 4, 4), (3, 16, 5)):
        metrics.begin(rows=rows, volume=volume, used=used)
        metrics.end(rows=rows, requests=2, compute_s=0.5)
    assert (metrics.batches, metrics.rows.count, metrics.rows.sum) == (3, 3, 10.0)
    assert (metrics.volume, metrics.padding) == (24, 12)
    assert (metrics.computed, metrics.compute_s) == (6, 3.0)
    assert {rows: (times.count, times.compute_s) for rows, times in metrics.batch_times.items()} == {
        3: (2, 1.0),
        4: (1, 0.5),
    }


def test_stages_are_busy_while_they_run() -> None:
    group = GroupMetrics(stages=2)
    group.begin(0, "m", 1.0)
    assert group.busy_until(1.5) == [0.5, 0.0]
    assert group.end(0, 2.0) == (1.0, 2.0)
    group.begin(1, "m", 2.0)
    group.begin(0, "n", 2.25)
    assert group.requests == 2
    assert [stage.running for stage in group.stages] == ["n", "m"]
    assert group.busy_until(3.0) == [1.75, 1.0]
    group.clear(4.0)
    assert group.busy_until(9.0) == [2.75, 2.0]
    assert [stage.duration.sum for stage in group.stages] == [2.75, 2.0]
    assert group.end(1, 10.0) == (10.0, 10.0), "what was cleared ends no more"
    assert group.busy_until(10.0) == [2.75, 2.0]


def test_busy_seconds_never_go_down_though_an_end_is_told_late() -> None:
    group = GroupMetrics(stages=1)
    group.begin(0, "m", 0.0)
    assert group.busy_until(1.25) == [1.25]
    group.end(0, 1.0)
    assert group.busy_until(2.0) == [1.25]
    group.begin(0, "m", 2.0)
    assert group.busy_until(2.5) == [pytest.approx(1.5)]
