"""Workloads: what is refused, round trips, and the statistics of the Gamma process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.errors import FileFormatError
from jaxserve.workload import Workload, gamma, merge

GOOD: dict[str, Any] = {
    "arrival_s": np.array([0.0, 0.1, 1 / 3]),
    "model": np.array([1, 0, 1], np.int32),
    "model_names": ("a", "b"),
    "slo_s": np.array([1.0, np.inf, 0.1]),
}


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    before = Workload(**GOOD)
    before.save(path)
    after = Workload.load(path)
    np.testing.assert_array_equal(after.arrival_s, before.arrival_s)
    np.testing.assert_array_equal(after.slo_s, before.slo_s)
    assert [after.model_names[i] for i in after.model] == [before.model_names[i] for i in before.model]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"arrival_s": np.array([0.0, 2.0, 1.0])}, r"arrival_s\[2\] is 1.0, which is before the one ahead of it; sort"),
        ({"arrival_s": np.array([0.0, np.nan, 1.0])}, r"arrival_s\[1\] is nan"),
        ({"arrival_s": np.array([-1.0, 0.0, 1.0])}, r"arrival_s\[0\] is -1.0"),
        ({"arrival_s": np.array([0.0, 1.0])}, r"shapes \(2,\), \(3,\) and \(3,\)"),
        ({"model": np.array([0, 2, 1], np.int32)}, r"model\[1\] is 2, which is no index"),
        ({"slo_s": np.array([1.0, 0.0, 1.0])}, r"slo_s\[1\] is 0.0, which must be greater than 0"),
        ({"model_names": ("a", "a")}, "a name twice"),
    ],
)
def test_what_is_no_workload(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    arrays = GOOD | change
    with pytest.raises(ValueError, match=problem):
        Workload(**arrays)
    path = tmp_path / "w.npz"
    np.savez(path, **(arrays | {"model_names": np.array(arrays["model_names"])}))
    with pytest.raises(FileFormatError, match=problem):
        Workload.load(path)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("w.npz", b"no zip", "cannot be read as a workload|w.npz"),
        ("w.csv", b"time,model,slo\n", "line 1 is 'time,model,slo'"),
        ("w.csv", b"arrival_s,model,slo_s\n0.0,a,1.0\n1.0,a\n", "line 3 is not number,name,number"),
        ("w.csv", b"arrival_s,model,slo_s\nnan,a,1.0\n", r"arrival_s\[0\] is nan"),
        ("w.csv", b"\xff\xfe", "w.csv"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=problem):
        Workload.load(path)


def test_a_missing_array_and_a_wrong_dtype(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, arrival_s=np.zeros(1))
    with pytest.raises(FileFormatError, match="model is missing"):
        Workload.load(path)
    np.savez(path, **(GOOD | {"model": np.zeros(3), "model_names": np.array(["a", "b"])}))
    with pytest.raises(FileFormatError, match="model has dtype float64"):
        Workload.load(path)
    np.savez(path, **(GOOD | {"model_names": np.array(["a", "b"], object)}))
    with pytest.raises(FileFormatError, match=r"w\.npz"):
        Workload.load(path)


@given(rate=st.floats(1, 50), cv=st.sampled_from((0.5, 1.0, 4.0)), seed=st.integers(0, 2**32))
def test_gamma_arrivals_ascend_within_the_duration(rate: float, cv: float, seed: int) -> None:
    arrivals = gamma(rate=rate, cv=cv, duration_s=5.0, rng=np.random.default_rng(seed))
    assert (np.diff(arrivals) >= 0).all()
    assert ((arrivals >= 0) & (arrivals < 5.0)).all()


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gamma_has_the_rate_and_the_cv_asked_for(cv: float) -> None:
    gaps = np.diff(gamma(rate=20.0, cv=cv, duration_s=10_000.0, rng=np.random.default_rng(0)))
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"cv": 0.0}, {"duration_s": np.inf}, {"rate": np.nan}])
def test_gamma_refuses(wrong: dict[str, float]) -> None:
    good = {"rate": 1.0, "cv": 1.0, "duration_s": 1.0}
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*greater than 0"):
        gamma(**(good | wrong), rng=np.random.default_rng(0))


def test_merge_sorts_and_keeps_each_models_slo() -> None:
    merged = merge([np.array([0.0, 2.0]), np.array([1.0])], model_names=("a", "b"), slo_s=(3.0, 4.0))
    np.testing.assert_array_equal(merged.arrival_s, [0, 1, 2])
    np.testing.assert_array_equal(merged.model, [0, 1, 0])
    np.testing.assert_array_equal(merged.slo_s, [3, 4, 3])
