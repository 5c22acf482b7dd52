"""Workloads: what is refused, and round trips."""

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxserve.errors import FileFormatError
from jaxserve.workload import Workload

GOOD: dict[str, Any] = {
    "arrival_s": np.array([0.0, 0.1, 1 / 3]),
    "model": np.array([1, 0, 1], np.int32),
    "model_names": ("a", "b"),
    "slo_s": np.array([1.0, np.inf, 0.1]),
}
PRIORITIES: dict[str, Any] = {"priority": np.array([10, 0, -10], np.int32)}
TENANTS: dict[str, Any] = {"tenant": np.array([2, 1, 2], np.int32), "tenant_names": ("never", "", "x, " * 42)}


def arrays_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """As `np.savez` takes them."""
    names = {name: np.array(value) for name, value in arguments.items() if name.endswith("_names")}
    return arguments | names


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


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
@pytest.mark.parametrize("more", [{}, PRIORITIES, TENANTS, PRIORITIES | TENANTS])
def test_round_trip_of_priorities_and_tenants(tmp_path: Path, more: dict[str, Any], suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    before = Workload(**(GOOD | more))
    before.save(path)
    after = Workload.load(path)
    for workload in (before, after):
        assert workload.priority.dtype == workload.tenant.dtype == np.int32
        assert workload.priority.tolist() == more.get("priority", np.zeros(3)).tolist()
        names = ["x, " * 42, "", "x, " * 42] if "tenant" in more else ["", "", ""]
        assert [workload.tenant_names[i] for i in workload.tenant] == names
    if suffix == ".csv":
        further = [name for name in ("priority", "tenant") if name in more]
        assert path.read_text().splitlines()[0] == ",".join(["arrival_s,model,slo_s", *further])
    else:
        with zipfile.ZipFile(path) as file:
            assert file.namelist() == [f"{name}.npy" for name in (*GOOD, *more)]


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_files_without_priorities_and_tenants_are_what_they_were(tmp_path: Path, suffix: str) -> None:
    unused = {"priority": np.zeros(3, np.int8), "tenant": np.ones(3, int), "tenant_names": ("never", "")}
    Workload(**GOOD).save(tmp_path / f"new{suffix}")
    Workload(**(GOOD | unused)).save(tmp_path / f"unused{suffix}")
    if suffix == ".npz":
        np.savez(tmp_path / "old.npz", **arrays_of(GOOD))
    else:
        (tmp_path / "old.csv").write_bytes(b"arrival_s,model,slo_s\n0.0,b,1.0\n0.1,a,inf\n0.3333333333333333,b,0.1\n")
    old = (tmp_path / f"old{suffix}").read_bytes()
    assert (tmp_path / f"new{suffix}").read_bytes() == (tmp_path / f"unused{suffix}").read_bytes() == old


def test_one_priority_and_one_tenant_stand_for_all() -> None:
    alike = Workload(**GOOD, priority=np.array(-3), tenant_names=("one",))
    assert alike.priority.tolist() == [-3, -3, -3]
    assert (alike.requests_by_priority(), alike.requests_by_tenant()) == ({-3: 3}, {"one": 3})
    with pytest.raises(ValueError, match=r"priority\[0\] is 11, which must be from -10 to 10"):
        Workload(**GOOD, priority=np.array(11))
    nothing = Workload(arrival_s=np.zeros(0), model=np.zeros(0, int), model_names=(), slo_s=np.zeros(0))
    assert (nothing.requests_by_priority(), nothing.requests_by_tenant()) == ({}, {})


def test_requests_are_counted_by_priority_and_tenant() -> None:
    workload = Workload(**GOOD, **PRIORITIES, **TENANTS)
    assert list(workload.requests_by_priority().items()) == [(10, 1), (0, 1), (-10, 1)]
    assert list(workload.requests_by_tenant().items()) == [("", 1), ("x, " * 42, 2)]


def test_take() -> None:
    workload = Workload(**GOOD, **PRIORITIES, **TENANTS)
    for which in (slice(1, None), np.array([False, True, True])):
        taken = workload.take(which, start_s=0.1)
        assert taken.arrival_s.tolist() == [0.0, 1 / 3 - 0.1]
        assert (taken.model.tolist(), taken.slo_s.tolist()) == ([0, 1], [np.inf, 0.1])
        assert (taken.priority.tolist(), taken.tenant.tolist()) == ([0, -10], [1, 2])
        assert (taken.model_names, taken.tenant_names) == (workload.model_names, workload.tenant_names)
    assert Workload(**GOOD).take(slice(1)).priority.tolist() == [0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"arrival_s": np.array([0.0, 2.0, 1.0])}, r"arrival_s\[2\] is 1.0, which is before the one ahead of it; sort"),
        ({"arrival_s": np.array([0.0, np.nan, 1.0])}, r"arrival_s\[1\] is nan"),
        ({"arrival_s": np.array([-1.0, 0.0, 1.0])}, r"arrival_s\[0\] is -1.0"),
        ({"arrival_s": np.array([0.0, 1.0])}, r"shapes \(2,\), \(3,\) and \(3,\)"),
        ({"model": np.array([0, 2, 1], np.int32)}, r"model\[1\] is 2, which is no index"),
        ({"slo_s": np.array([1.0, 0.0, 1.0])}, r"slo_s\[1\] is 0.0, which must be greater than 0"),
        ({"model_names": ("a", "a")}, "a name twice, 'a'"),
        ({"priority": np.array([0, 0, 11])}, r"priority\[2\] is 11, which must be from -10 to 10"),
        ({"priority": np.array([0, -11, 0])}, r"priority\[1\] is -11, which must be"),
        ({"priority": np.array([2**32, 0, 0])}, r"priority\[0\] is 4294967296, which must be"),
        ({"priority": np.array([1, 0])}, r"priority has shape \(2,\), but must be as long as arrival_s, \(3,\)"),
        ({"priority": np.array([1.0, 0, 0])}, "priority has dtype float64, but must"),
        (TENANTS | {"tenant": np.array([1, 3, 0])}, r"tenant\[1\] is 3, which is no index into tenant_names"),
        (TENANTS | {"tenant": np.array([1, 1, -1])}, r"tenant\[2\] is -1, which is no index into tenant_names"),
        (TENANTS | {"tenant": np.array([1])}, r"tenant has shape \(1,\), but must be as long as"),
        (TENANTS | {"tenant": np.array([1.0, 0, 0])}, "tenant has dtype float64, but must"),
        (TENANTS | {"tenant_names": ("a", "b", "b")}, "tenant_names has a name twice, 'b'"),
        (TENANTS | {"tenant_names": ("a", "b", "\ud800")}, r"tenant_names has '\\ud800'; a name must be text"),
        (TENANTS | {"tenant_names": ("a", "b", "x" * 129)}, "tenant_names has 'xxx.* of 129 characters; .* have 128"),
    ],
)
def test_what_is_no_workload(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    arrays = GOOD | change
    with pytest.raises(ValueError, match=problem):
        Workload(**arrays)
    path = tmp_path / "w.npz"
    np.savez(path, **arrays_of(arrays))
    with pytest.raises(FileFormatError, match=problem):
        Workload.load(path)


@pytest.mark.parametrize(
    ("further", "problem"),
    [
        ({"tenant": np.zeros(3, int)}, "tenant_names is missing; a workload has both tenant and tenant_names, or none"),
        ({"tenant_names": np.array(["a"])}, "tenant is missing; a workload has both tenant and tenant_names, or none"),
        ({"priority": np.array(["1", "2", "3"])}, "priority has dtype <U1, but must be of kind 'iu'"),
        ({"priority": np.array(1)}, r"priority has shape \(\), but must have one dimension"),
        ({"tenant": np.zeros(3, int), "tenant_names": np.zeros(1)}, "tenant_names has dtype float64, but must be of"),
    ],
)
def test_npz_files_with_further_arrays_that_are_wrong(tmp_path: Path, further: dict[str, Any], problem: str) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, **(arrays_of(GOOD) | further))
    with pytest.raises(FileFormatError, match=rf"w\.npz: {problem}"):
        Workload.load(path)


@pytest.mark.parametrize(
    ("header", "row", "problem"),
    [
        ("tenant,priority", "a,0", "line 1 is 'arrival_s,model,slo_s,tenant,priority', but must be .*,tenant' or both"),
        ("priority", "", r"line 2 is not number,name,number,whole number: "),
        ("priority", "1,a", "line 2 is not number,name,number,whole number: "),
        ("priority", "0.5", "line 2 is not number,name,number,whole number: "),
        ("priority", "1" * 30, "line 2 is not number,name,number,whole number: "),
        ("priority", "11", r"line 2: not a workload: priority\[0\] is 11, which must be from -10 to 10"),
        ("priority,tenant", "1", "line 2 is not number,name,number,whole number,name: "),
        ("tenant", "a\0", r"line 2: not a workload: tenant_names has 'a\\x00'; a name must be text"),
        ("tenant", "x" * 129, "line 2: not a workload: tenant_names has .* of 129 characters; a name may have 128"),
    ],
)
def test_csv_files_with_further_columns_that_are_wrong(tmp_path: Path, header: str, row: str, problem: str) -> None:
    path = tmp_path / "w.csv"
    path.write_text(f"arrival_s,model,slo_s,{header}\n0.5,m,1.0,{row}\n")
    with pytest.raises(FileFormatError, match=rf"w\.csv: {problem}"):
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
    with pytest.raises(FileFormatError, match=r"w\.npz: model_names has dtype object, but must be of kind 'U'"):
        Workload.load(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "line 1 is '', but must be 'arrival_s,model,slo_s'"),
        (b"arrival_s,model,slo_s\n1.0,a,1.0\n\n0.5,b,1.0\n", r"line 3 is not number,name,number: \[\]"),
        (b"arrival_s,model,slo_s\n1.0,a,1.0\n0.5,b,1.0\n", r"line 3: .*arrival_s\[1\] is 0.5, which is before"),
        (b"arrival_s,model,slo_s\n1.0,a,nan\n", r"line 2: .*slo_s\[0\] is nan, which must be greater than 0"),
        (b"arrival_s,model,slo_s\n" + b"1" * 200_000, "field larger than field limit"),
    ],
)
def test_a_csv_file_is_refused_with_its_line(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "w.csv"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=problem) as raised:
        Workload.load(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_npz_files_that_hold_something_else(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(
        FileFormatError, match=r"it is no .npz file: .*give an .npz file with arrival_s, model, model_names, slo_s"
    ):
        Workload.load(path)
    path.write_bytes(b"")
    with pytest.raises(FileFormatError, match="cannot be read as a workload"):
        Workload.load(path)
    np.savez(path, **(GOOD | {"model": np.array([2**32, 0, 1]), "model_names": np.array(["a", "b"])}))
    with pytest.raises(FileFormatError, match=r"model\[0\] is 4294967296, which is no index"):
        Workload.load(path)
    np.savez(path, **(GOOD | {"model_names": np.array("ab")}))
    with pytest.raises(FileFormatError, match=r"model_names has shape \(\), but must have one dimension"):
        Workload.load(path)
    np.savez_compressed(path, **(GOOD | {"arrival_s": np.arange(3.0), "model_names": np.array(["a", "b"])}))
    whole = path.read_bytes()
    at = whole.index(b"arrival_s.npy") + 60
    path.write_bytes(whole[:at] + bytes(255 - byte for byte in whole[at : at + 8]) + whole[at + 8 :])
    with pytest.raises(FileFormatError, match=r"w\.npz"):
        Workload.load(path)


def _npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


_SHAPE = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s,), }"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        _npy("{'descr': (((, 'shape'"),
        _npy("'" * 3),
        _npy("{[]: 1}"),
        _npy(_SHAPE % "9999999999999"),
        _npy(_SHAPE % 10**40),
        _npy(_SHAPE % -1),
        _npy(_SHAPE % 3),
    ],
)
def test_npz_members_that_are_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.npz"
    _save(path, {"arrival_s": content})
    with pytest.raises(
        FileFormatError, match=r"w\.npz: arrival_s cannot be read as an array .* write it with np.savez"
    ):
        Workload.load(path)


def _save(path: Path, members: dict[str, bytes]) -> None:
    """A good workload, but for these members."""
    with zipfile.ZipFile(path, "w") as file:
        for name, value in (GOOD | {"model_names": np.array(GOOD["model_names"])}).items():
            whole = io.BytesIO()
            np.save(whole, value)
            file.writestr(f"{name}.npy", members.get(name, whole.getvalue()))


@pytest.mark.parametrize(
    ("offset", "value", "problem"),
    [
        (6, 99, r"w\.npz: cannot be read as a workload \(it is no .npz file: zip file version 9.9\)"),
        (8, 1, r"w\.npz: arrival_s cannot be read as an array .*encrypted"),
        (10, 99, r"w\.npz: arrival_s cannot be read as an array .*compression method is not supported"),
    ],
)
def test_zip_files_that_python_cannot_read(tmp_path: Path, offset: int, value: int, problem: str) -> None:
    path = tmp_path / "w.npz"
    _save(path, {})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + offset] = value  # in the directory at the end, whose first entry is arrival_s
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=problem):
        Workload.load(path)


@pytest.mark.parametrize(
    "content",
    [b"# jaxserve\n", np.random.default_rng(0).bytes(300), json.dumps(_SHAPE).encode(), b"", _npy(_SHAPE % 0)],
)
def test_what_is_no_npz_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.npz"
    path.write_bytes(content)
    with pytest.raises(
        FileFormatError, match=r"w\.npz: .*it is no .npz file: .*; give an .npz file with arr"
    ) as raised:
        Workload.load(path)
    assert "pickle" not in str(raised.value)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_names_that_no_file_can_hold(tmp_path: Path, name: str) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, **(GOOD | {"model_names": np.array(["a", name])}))
    with pytest.raises(FileFormatError, match=r"w\.npz: .*model_names has .*without NUL and lone surrogates"):
        Workload.load(path)
    names = np.array(["a", "b"]).view(np.uint32) | 0x110000  # beyond all characters
    np.savez(path, **(GOOD | {"model_names": names.view("U1")}))
    with pytest.raises(FileFormatError, match="model_names cannot be read as an array"):
        Workload.load(path)


def test_a_csv_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "w.csv"
    path.write_bytes(b"\xef\xbb\xbfarrival_s,model,slo_s\n0.5,a,1.0\n")
    assert Workload.load(path).arrival_s.tolist() == [0.5]


def test_models_are_whole_numbers() -> None:
    with pytest.raises(ValueError, match="model has dtype float64, but must hold whole numbers"):
        Workload(**(GOOD | {"model": np.array([0.5, 0, 1])}))
    assert Workload(**(GOOD | {"model": np.array([0, 0, 1], np.int64)})).model.dtype == np.int32
