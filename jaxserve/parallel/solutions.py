"""Solutions of the integer program on disk, so that a plan that was made before is loaded without solving.

The key is a digest of the whole problem: every cost, every byte, the budget. So it covers what they are made from: the
program, the mesh, the kind of device and its constants; a plan is never taken for another one's.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxserve.parallel.selection import Choice, Selection

FORMAT = "jaxserve-solution/1"

Solve = Callable[[Selection, float], Choice]


class Solutions:
    """A directory of solutions, one small JSON file each. Several processes may share it.

    Attributes:
        directory: where they are; made on demand.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def choice(self, selection: Selection, budget_bytes: float, solve: Solve) -> Choice:
        """The known solution, or that of `solve`, which is kept if it is known to be the best."""
        path = self.directory / f"{_digest(selection, budget_bytes)}.json"
        known = _read(path, selection)
        if known is not None:
            return known
        choice = solve(selection, budget_bytes)
        if choice.status == "optimal":
            self._write(path, choice)
        return choice

    def _write(self, path: Path, choice: Choice) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = json.dumps({"format": FORMAT, "options": choice.options, "status": choice.status})
        handle, temporary = tempfile.mkstemp(dir=self.directory, suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def _read(path: Path, selection: Selection) -> Choice | None:
    """None for what is not there or is no solution of this problem: it is solved and written again."""
    try:
        stored = json.loads(path.read_bytes())
        options = tuple(stored["options"])
        fits = stored["format"] == FORMAT and len(options) == len(selection.costs)
        if fits and all(0 <= option < len(cost) for option, cost in zip(options, selection.costs, strict=True)):
            return Choice(options=options, status=stored["status"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return None


def _digest(selection: Selection, budget_bytes: float) -> str:
    digest = hashlib.sha256(f"{FORMAT} {float(budget_bytes)!r}".encode())
    for arrays in (selection.costs, selection.memory):
        for array in arrays:
            _add(digest, array)
    for pair in selection.pairs:
        digest.update(f"{pair.first} {pair.second}".encode())
        for array in (pair.rows, pair.columns, pair.cost):
            _add(digest, array)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", array: np.ndarray) -> None:
    digest.update(f"{array.dtype} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
