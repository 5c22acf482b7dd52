"""A sequence of requests: when each arrives, for which model, with which SLO; and its files."""

import collections
import csv
import dataclasses
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxserve.errors import FileFormatError
from jaxserve.plans import is_text, write_bytes, write_text

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
_KINDS = {"arrival_s": "f", "model": "iu", "model_names": "U", "slo_s": "f"}
_ARRAYS = ", ".join(_KINDS)


class _NotAWorkload(ValueError):
    """What is wrong, and at which request, where it is wrong at one."""

    def __init__(self, problem: str, *, request: int | None = None) -> None:
        super().__init__(f"not a workload: {problem}")
        self.request = request


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """Requests in order of arrival.

    Attributes:
        arrival_s: float64 [requests], ascending, from 0.
        model: int32 [requests], index into `model_names`.
        model_names: names of the models.
        slo_s: float64 [requests], seconds from arrival to deadline; infinite where there is none.
    """

    arrival_s: Floats
    model: Ints
    model_names: tuple[str, ...]
    slo_s: Floats

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrival_s", np.asarray(self.arrival_s, np.float64))
        object.__setattr__(self, "model", np.asarray(self.model))
        object.__setattr__(self, "slo_s", np.asarray(self.slo_s, np.float64))
        object.__setattr__(self, "model_names", tuple(str(name) for name in self.model_names))
        _check(self)
        object.__setattr__(self, "model", self.model.astype(np.int32, copy=False))

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.arrival_s)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an `.npz` file, or a `.csv` file with the header `arrival_s,model,slo_s`."""
        if Path(path).suffix == ".csv":
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(("arrival_s", "model", "slo_s"))
            models: list[int] = self.model.tolist()
            for arrival_s, model, slo_s in zip(self.arrival_s, models, self.slo_s, strict=True):
                writer.writerow((repr(float(arrival_s)), self.model_names[model], repr(float(slo_s))))
            write_text(path, text.getvalue())
            return
        data = io.BytesIO()
        names = np.array(self.model_names, dtype=np.str_)
        np.savez(data, arrival_s=self.arrival_s, model=self.model, model_names=names, slo_s=self.slo_s)
        write_bytes(path, data.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Workload":
        """Reads an `.npz` or `.csv` file.

        Raises:
            FileFormatError: it is not a workload file; the message names the array or the line.
        """
        try:
            return _load_csv(path) if Path(path).suffix == ".csv" else _load_npz(path)
        except (OSError, csv.Error) as error:
            raise FileFormatError(
                f"{path}: cannot be read as a workload ({error}); give an .npz or .csv file"
            ) from error
        except ValueError as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(f"{path}: {error}") from error


def _check(workload: Workload) -> None:
    arrival_s, model, slo_s = workload.arrival_s, workload.model, workload.slo_s
    if not arrival_s.ndim == model.ndim == slo_s.ndim == 1 or not len(arrival_s) == len(model) == len(slo_s):
        shapes = f"{arrival_s.shape}, {model.shape} and {slo_s.shape}"
        raise _NotAWorkload(
            f"arrival_s, model and slo_s have shapes {shapes}, but must be as long as each other, in one dimension"
        )
    if model.size and model.dtype.kind not in "iu":
        raise _NotAWorkload(f"model has dtype {model.dtype}, but must hold whole numbers")
    twice = [name for name, count in collections.Counter(workload.model_names).items() if count > 1]
    if twice:
        raise _NotAWorkload(f"model_names has a name twice, {twice[0]!r}; every name must be its own")
    unfit = [name for name in workload.model_names if not is_text(name)]
    if unfit:
        raise _NotAWorkload(f"model_names has {unfit[0]!a}; a name must be text without NUL and lone surrogates")
    checks = (
        ("arrival_s", ~np.isfinite(arrival_s) | (arrival_s < 0), "must be finite and not negative"),
        ("arrival_s", np.diff(arrival_s, prepend=0.0) < 0, "is before the one ahead of it; sort the arrivals"),
        ("model", (model < 0) | (model >= len(workload.model_names)), "is no index into model_names"),
        ("slo_s", ~(slo_s > 0), "must be greater than 0"),
    )
    for name, wrong, rule in checks:
        if wrong.any():
            index = int(np.argmax(wrong))
            raise _NotAWorkload(f"{name}[{index}] is {getattr(workload, name)[index]}, which {rule}", request=index)


def _load_npz(path: str | os.PathLike[str]) -> Workload:
    try:
        file = zipfile.ZipFile(path)
    except OSError:
        raise
    except Exception as error:  # zipfile has no one error for damaged bytes
        raise FileFormatError(
            f"{path}: cannot be read as a workload (it is no .npz file: {error}); give an .npz file with {_ARRAYS}, as "
            f"np.savez writes it, or a .csv file"
        ) from error
    with file:
        return Workload(**{name: _array(file, name, path) for name in _KINDS})


def _array(file: zipfile.ZipFile, name: str, path: str | os.PathLike[str]) -> Any:
    if f"{name}.npy" not in file.namelist():
        raise FileFormatError(f"{path}: {name} is missing; a workload has {_ARRAYS}")
    try:
        with file.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(member)
            # Looked at before the content, lest objects be refused with a hint at allow_pickle.
            if dtype.kind not in _KINDS[name]:
                raise FileFormatError(f"{path}: {name} has dtype {dtype}, but must be of kind {_KINDS[name]!r}")
            if len(shape) != 1:
                raise FileFormatError(f"{path}: {name} has shape {shape}, but must have one dimension")
            member.seek(0)
            array = np.lib.format.read_array(member, allow_pickle=False)
            return tuple(array.tolist()) if dtype.kind == "U" else array  # tolist refuses what is no character
    except FileFormatError:
        raise
    except Exception as error:  # zipfile, its decompressors and numpy have no one error for damaged bytes
        raise FileFormatError(f"{path}: {name} cannot be read as an array ({error}); write it with np.savez") from error


def _load_csv(path: str | os.PathLike[str]) -> Workload:
    arrivals: list[float] = []
    slos: list[float] = []
    models: list[int] = []
    lines: list[int] = []
    index_of: dict[str, int] = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        header = next(reader, list[str]())
        if header != ["arrival_s", "model", "slo_s"]:
            raise FileFormatError(f"{path}: line 1 is {','.join(header)!r}, but must be 'arrival_s,model,slo_s'")
        for row in reader:
            try:
                arrival, name, slo = row
                arrivals.append(float(arrival))
                slos.append(float(slo))
            except ValueError as error:
                raise FileFormatError(f"{path}: line {reader.line_num} is not number,name,number: {row}") from error
            models.append(index_of.setdefault(name, len(index_of)))
            lines.append(reader.line_num)
    try:
        return Workload(
            arrival_s=np.array(arrivals, np.float64),
            model=np.array(models, np.int32),
            model_names=tuple(index_of),
            slo_s=np.array(slos, np.float64),
        )
    except _NotAWorkload as error:
        place = "" if error.request is None else f"line {lines[error.request]}: "
        raise FileFormatError(f"{path}: {place}{error}") from error
