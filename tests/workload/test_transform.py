"""Transformations: what they keep, what they change, what they refuse."""

import dataclasses
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxserve.errors import ConfigError
from jaxserve.workload import (
    Workload,
    aligned,
    between,
    combine,
    merge,
    only,
    rename,
    scale_cv,
    scale_rate,
    scale_slo,
    synthetic,
    windows,
    with_priority,
    with_slo,
    with_tenant,
)

Row = tuple[float, str, float, int, str]


def rows_of(workload: Workload) -> list[Row]:
    """Requests as (arrival, name, SLO, priority, tenant)."""
    names = [workload.model_names[index] for index in workload.model]
    tenants = [workload.tenant_names[index] for index in workload.tenant]
    times, slos, priorities = (each.tolist() for each in (workload.arrival_s, workload.slo_s, workload.priority))
    return list(zip(times, names, slos, priorities, tenants, strict=True))


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    names = draw(st.lists(st.sampled_from("abcdef"), min_size=1, unique=True))
    arrivals = sorted(draw(st.lists(st.integers(0, 40).map(lambda each: each / 4), max_size=20)))
    some = st.lists(st.integers(0, len(names) - 1), min_size=len(arrivals), max_size=len(arrivals))
    model = np.array(draw(some), np.int32)
    workload = Workload(
        arrival_s=np.array(arrivals), model=model, model_names=tuple(names), slo_s=1.0 + np.arange(len(arrivals))
    )
    if draw(st.booleans()):
        priority = st.lists(st.integers(-10, 10), min_size=len(arrivals), max_size=len(arrivals))
        workload = dataclasses.replace(workload, priority=np.array(draw(priority), np.int32))
    if draw(st.booleans()):
        tenants = draw(st.lists(st.sampled_from(("", "x", "y", "z")), min_size=1, unique=True))
        index = st.lists(st.integers(0, len(tenants) - 1), min_size=len(arrivals), max_size=len(arrivals))
        workload = dataclasses.replace(workload, tenant=np.array(draw(index), np.int32), tenant_names=tuple(tenants))
    return workload


@given(st.lists(workloads(), max_size=4))
def test_combine_keeps_every_request(parts: list[Workload]) -> None:
    combined = combine(parts)
    assert rows_of(combined) == sorted((row for part in parts for row in rows_of(part)), key=lambda row: row[0])
    assert set(combined.model_names) == {name for part in parts for name in part.model_names}
    assert len(set(combined.tenant_names)) == len(combined.tenant_names)


@example(Workload(arrival_s=np.array([4.5]), model=np.zeros(1, np.int32), model_names=("a",), slo_s=np.ones(1)), 0.9)
@given(workloads(), st.floats(0.25, 20))
def test_windows_are_the_workload_in_pieces(workload: Workload, window_s: float) -> None:
    pieces = windows(workload, window_s)
    found = [
        (arrival_s + index * window_s, *more)
        for index, piece in enumerate(pieces)
        for arrival_s, *more in rows_of(piece)
    ]
    assert [row[1:] for row in found] == [row[1:] for row in rows_of(workload)]
    np.testing.assert_allclose([row[0] for row in found], workload.arrival_s, atol=1e-9)
    assert all((piece.arrival_s < window_s * (1 + 1e-9)).all() for piece in pieces)
    assert not pieces or len(pieces[-1])


@given(workloads(), st.integers(0, 40), st.integers(1, 40))
def test_between(workload: Workload, start: int, length: int) -> None:
    start_s, end_s = start / 4, (start + length) / 4
    expected = [row for row in rows_of(workload) if start_s <= row[0] < end_s]
    assert rows_of(between(workload, start_s, end_s, from_zero=False)) == expected
    shifted = between(workload, start_s, end_s)
    assert rows_of(shifted) == [(arrival_s - start_s, *more) for arrival_s, *more in expected]


@given(workloads(), st.sampled_from((0.5, 2.0, 4.0)))
def test_scales(workload: Workload, factor: float) -> None:
    rows = rows_of(workload)
    assert rows_of(scale_rate(workload, factor)) == [(at_s / factor, *more) for at_s, *more in rows]
    assert rows_of(scale_slo(workload, factor)) == [
        (at_s, name, slo_s * factor, *marks) for at_s, name, slo_s, *marks in rows
    ]


@given(workloads(), st.randoms(use_true_random=False))
def test_names(workload: Workload, random: Random) -> None:
    rows = rows_of(workload)
    names = list(workload.model_names)
    random.shuffle(names)
    assert rows_of(aligned(workload, ["other", *names])) == rows
    assert aligned(workload, names).model_names == tuple(names)
    kept = names[: len(names) // 2 + 1]
    assert rows_of(only(workload, kept)) == [row for row in rows if row[1] in kept]
    assert only(workload, kept).model_names == tuple(kept)
    renamed = rename(workload, {names[0]: "new"})
    assert rows_of(renamed) == [(at_s, "new" if name == names[0] else name, *more) for at_s, name, *more in rows]
    told = with_slo(workload, {name: 1.0 + index for index, name in enumerate(names)})
    assert rows_of(told) == [(at_s, name, 1.0 + names.index(name), *marks) for at_s, name, _, *marks in rows]


@given(workloads(), st.integers(-10, 10), st.sampled_from(("", "x", "new")))
def test_one_priority_and_one_tenant_for_all(workload: Workload, priority: int, tenant: str) -> None:
    rows = rows_of(workload)
    assert rows_of(with_priority(workload, priority)) == [(*row[:3], priority, row[4]) for row in rows]
    assert rows_of(with_tenant(workload, tenant)) == [(*row[:4], tenant) for row in rows]
    assert with_tenant(workload, tenant).tenant_names == (tenant,)


def test_scale_cv_draws_burstier_requests_at_the_same_rate() -> None:
    calm = synthetic(model_names=("a",), slo_s=2.0, rate=20.0, cv=1.0, duration_s=2000.0, rng=np.random.default_rng(0))
    bursty = scale_cv(calm, 3.0, rng=np.random.default_rng(1))
    gaps = np.diff(bursty.arrival_s)
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.1)
    assert len(bursty) == pytest.approx(len(calm), rel=0.1)
    assert (bursty.slo_s == 2.0).all()


TWO = Workload(arrival_s=np.array([0.0, 1.0]), model=np.array([0, 1]), model_names=("a", "b"), slo_s=np.ones(2))


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: between(TWO, 2.0, 1.0), "from 2.0 s to 1.0 s was asked for, but 0 <= start < end must hold"),
        (lambda: between(TWO, -1.0), "from -1.0 s"),
        (lambda: windows(TWO, 0.0), "window_s is 0.0"),
        (lambda: scale_rate(TWO, 0.0), "factor is 0.0"),
        (lambda: scale_slo(TWO, np.nan), "factor is nan"),
        (lambda: rename(TWO, {"c": "d"}), r"there is no model 'c'; choose from \('a', 'b'\)"),
        (lambda: rename(TWO, {"a": "b"}), "every name must be its own"),
        (lambda: only(TWO, ["c"]), "there is no model 'c'"),
        (lambda: aligned(TWO, ["b"]), r"model 'a' has requests, but is not among \('b',\)"),
        (lambda: with_slo(TWO, {"a": 1.0}), r"model 'b' has no SLO among \['a'\]"),
        (lambda: with_priority(TWO, 11), "priority is 11, but must be a whole number from -10 to 10"),
        (lambda: with_priority(TWO, 0.5), "priority is 0.5"),
        (lambda: with_tenant(TWO, "x" * 129), "tenant is 'xxx.*, of 129 characters, but must be text of at most 128"),
        (lambda: with_tenant(TWO, "\0"), "without NUL"),
    ],
)
def test_refusals(call: Callable[[], object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        call()


def test_more_windows_than_can_be_kept_are_refused() -> None:
    sparse = merge([np.array([0.0, 1e9])], model_names=("a",), slo_s=(1.0,))
    with pytest.raises(
        ConfigError, match=r"1e\+09 s in windows of 1 s are too many windows to keep; make them at least"
    ):
        windows(sparse, 1.0)
