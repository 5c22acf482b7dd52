"""A sequence of requests: when each arrives, for which model, with which SLO, for whom; and its files."""

import array
import collections
import csv
import dataclasses
import io
import math
import os
import reprlib
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxserve.errors import FileFormatError
from jaxserve.plans import is_text, write_bytes, write_text
from jaxserve.request import HIGHEST_PRIORITY, LONGEST_TENANT, LOWEST_PRIORITY

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
_KINDS = {"arrival_s": "f", "model": "iu", "model_names": "U", "slo_s": "f"}
_OPTIONAL_KINDS = {"priority": "iu", "tenant": "iu", "tenant_names": "U"}
_ARRAYS = ", ".join(_KINDS)
_PER_REQUEST = ("arrival_s", "model", "slo_s", "priority", "tenant")
_COLUMNS = {"arrival_s": "number", "model": "name", "slo_s": "number", "priority": "whole number", "tenant": "name"}
_HEADERS = [["arrival_s", "model", "slo_s", *more] for more in ([], ["priority"], ["tenant"], ["priority", "tenant"])]


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
        priority: int32 [requests], from -10 to 10; the higher goes first. One value, [], stands for all; 0 by default.
        tenant: int32 [requests], index into `tenant_names`. One value, [], stands for all; 0 by default.
        tenant_names: names of the tenants, of 128 characters at most; by default the one that is no tenant, "".

    What stands for all may be a read-only view of the one value, which takes no memory.
    """

    arrival_s: Floats
    model: Ints
    model_names: tuple[str, ...]
    slo_s: Floats
    priority: Ints = dataclasses.field(default_factory=lambda: np.zeros((), np.int32))
    tenant: Ints = dataclasses.field(default_factory=lambda: np.zeros((), np.int32))
    tenant_names: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrival_s", np.asarray(self.arrival_s, np.float64))
        object.__setattr__(self, "model", np.asarray(self.model))
        object.__setattr__(self, "slo_s", np.asarray(self.slo_s, np.float64))
        for name in ("priority", "tenant"):
            given = np.asarray(getattr(self, name))
            object.__setattr__(self, name, np.broadcast_to(given, self.arrival_s.shape) if given.ndim == 0 else given)
        for name in ("model_names", "tenant_names"):
            object.__setattr__(self, name, tuple(str(each) for each in getattr(self, name)))
        _check(self)
        for name in ("model", "priority", "tenant"):
            object.__setattr__(self, name, getattr(self, name).astype(np.int32, copy=False))

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.arrival_s)

    def take(self, which: slice | npt.NDArray[np.bool_], *, start_s: float = 0.0) -> "Workload":
        """Some of the requests, by a slice or a mask, bool [requests], with `start_s` as the new 0."""
        taken = {name: getattr(self, name)[which] for name in _PER_REQUEST}
        if start_s:
            taken["arrival_s"] = taken["arrival_s"] - start_s
        return dataclasses.replace(self, **taken)

    def requests_by_priority(self) -> dict[int, int]:
        """How many requests each priority has that some have, the highest first."""
        counts: list[int] = np.bincount(self.priority - LOWEST_PRIORITY).tolist()
        return {LOWEST_PRIORITY + at: counts[at] for at in reversed(range(len(counts))) if counts[at]}

    def requests_by_tenant(self) -> dict[str, int]:
        """How many requests each tenant has that has some, in the order of `tenant_names`."""
        counts: list[int] = np.bincount(self.tenant, minlength=len(self.tenant_names)).tolist()
        return {name: count for name, count in zip(self.tenant_names, counts, strict=True) if count}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an `.npz` file, or a `.csv` file with the header `arrival_s,model,slo_s`.

        Priorities and tenants are written where some request has one: as further arrays, or as further columns
        `priority` and `tenant`.
        """
        prioritized = bool(self.priority.any())
        tenanted = self.tenant_names != ("",) and bool(self.requests_by_tenant().keys() - {""})
        if Path(path).suffix == ".csv":
            write_text(path, self._csv(prioritized=prioritized, tenanted=tenanted))
            return
        arrays: dict[str, Any] = {
            "arrival_s": self.arrival_s,
            "model": self.model,
            "model_names": np.array(self.model_names, dtype=np.str_),
            "slo_s": self.slo_s,
        }
        if prioritized:
            arrays |= {"priority": self.priority}
        if tenanted:
            arrays |= {"tenant": self.tenant, "tenant_names": np.array(self.tenant_names, dtype=np.str_)}
        data = io.BytesIO()
        np.savez(data, **arrays)
        write_bytes(path, data.getvalue())

    def _csv(self, *, prioritized: bool, tenanted: bool) -> str:
        columns: dict[str, Iterable[object]] = {
            "arrival_s": map(repr, map(float, self.arrival_s)),
            "model": map(self.model_names.__getitem__, self.model.tolist()),
            "slo_s": map(repr, map(float, self.slo_s)),
        }
        if prioritized:
            columns["priority"] = self.priority.tolist()
        if tenanted:
            columns["tenant"] = map(self.tenant_names.__getitem__, self.tenant.tolist())
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue()

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
    for name in ("priority", "tenant"):
        if (shape := getattr(workload, name).shape) != arrival_s.shape:
            raise _NotAWorkload(f"{name} has shape {shape}, but must be as long as arrival_s, {arrival_s.shape}")
    for name in ("model", "priority", "tenant"):
        values = getattr(workload, name)
        if values.size and values.dtype.kind not in "iu":
            raise _NotAWorkload(f"{name} has dtype {values.dtype}, but must hold whole numbers")
    _check_names("model_names", workload.model_names, workload.model)
    _check_names("tenant_names", workload.tenant_names, workload.tenant, longest=LONGEST_TENANT)
    priority, tenant = _distinct(workload.priority), _distinct(workload.tenant)
    not_a_priority = (priority < LOWEST_PRIORITY) | (priority > HIGHEST_PRIORITY)
    checks = (
        ("arrival_s", ~np.isfinite(arrival_s) | (arrival_s < 0), "must be finite and not negative"),
        ("arrival_s", np.diff(arrival_s, prepend=0.0) < 0, "is before the one ahead of it; sort the arrivals"),
        ("model", (model < 0) | (model >= len(workload.model_names)), "is no index into model_names"),
        ("slo_s", ~(slo_s > 0), "must be greater than 0"),
        ("priority", not_a_priority, f"must be from {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}"),
        ("tenant", (tenant < 0) | (tenant >= len(workload.tenant_names)), "is no index into tenant_names"),
    )
    for name, wrong, rule in checks:
        if wrong.any():
            index = int(np.argmax(wrong))
            raise _NotAWorkload(f"{name}[{index}] is {getattr(workload, name)[index]}, which {rule}", request=index)


def _distinct(values: Ints) -> Ints:
    """The values, or the one of them where it stands for all."""
    return values[:1] if values.strides == (0,) else values


def _check_names(field: str, names: tuple[str, ...], index: Ints, *, longest: float = math.inf) -> None:
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise _NotAWorkload(f"{field} has a name twice, {twice[0]!r}; every name must be its own")
    for place, name in enumerate(names):
        if not is_text(name):
            problem = f"{field} has {name!a}; a name must be text without NUL and lone surrogates"
        elif len(name) > longest:
            problem = f"{field} has {reprlib.repr(name)} of {len(name)} characters; a name may have {longest}"
        else:
            continue
        requests = np.flatnonzero(index == place)
        raise _NotAWorkload(problem, request=int(requests[0]) if requests.size else None)


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
        further = [name for name in _OPTIONAL_KINDS if f"{name}.npy" in file.namelist()]
        if ("tenant" in further) != ("tenant_names" in further):
            missing = "tenant_names" if "tenant" in further else "tenant"
            raise FileFormatError(f"{path}: {missing} is missing; a workload has both tenant and tenant_names, or none")
        kinds = _KINDS | {name: _OPTIONAL_KINDS[name] for name in further}
        return Workload(**{name: _array(file, name, path, kind=kind) for name, kind in kinds.items()})


def _array(file: zipfile.ZipFile, name: str, path: str | os.PathLike[str], *, kind: str) -> Any:
    if f"{name}.npy" not in file.namelist():
        raise FileFormatError(f"{path}: {name} is missing; a workload has {_ARRAYS}")
    try:
        with file.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(member)
            # Looked at before the content, lest objects be refused with a hint at allow_pickle.
            if dtype.kind not in kind:
                raise FileFormatError(f"{path}: {name} has dtype {dtype}, but must be of kind {kind!r}")
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
    priorities = array.array("q")
    tenants: list[int] = []
    lines: list[int] = []
    index_of: dict[str, int] = {}
    tenant_of: dict[str, int] = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        header = next(reader, list[str]())
        if header not in _HEADERS:
            raise FileFormatError(
                f"{path}: line 1 is {','.join(header)!r}, but must be 'arrival_s,model,slo_s', which "
                f"',priority', ',tenant' or both may follow"
            )
        columns, prioritized, tenanted = len(header), "priority" in header, "tenant" in header
        for row in reader:
            try:
                if len(row) != columns:
                    raise ValueError
                arrivals.append(float(row[0]))
                slos.append(float(row[2]))
                if prioritized:
                    priorities.append(int(row[3]))
            except (ValueError, OverflowError) as error:
                needed = ",".join(_COLUMNS[column] for column in header)
                raise FileFormatError(f"{path}: line {reader.line_num} is not {needed}: {row}") from error
            models.append(index_of.setdefault(row[1], len(index_of)))
            if tenanted:
                tenants.append(tenant_of.setdefault(row[-1], len(tenant_of)))
            lines.append(reader.line_num)
    try:
        return Workload(
            arrival_s=np.array(arrivals, np.float64),
            model=np.array(models, np.int32),
            model_names=tuple(index_of),
            slo_s=np.array(slos, np.float64),
            priority=np.array(priorities) if prioritized else np.zeros((), np.int32),
            tenant=np.array(tenants if tenanted else 0, np.int32),
            tenant_names=tuple(tenant_of) if tenanted else ("",),
        )
    except _NotAWorkload as error:
        place = "" if error.request is None else f"line {lines[error.request]}: "
        raise FileFormatError(f"{path}: {place}{error}") from error
