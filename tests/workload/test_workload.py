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
        ({"model_names": ("a", "a")}, "a name twice, 'a'"),
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
