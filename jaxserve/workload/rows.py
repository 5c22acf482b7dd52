"""Rows of published trace files, read one by one."""

import dataclasses
import os
from collections.abc import Iterator

from jaxserve.errors import FileFormatError

_TOLD = 5
_LONGEST_HEADER = 1 << 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Rows that were left out because they are broken.

    Attributes:
        count: how many.
        first: what is wrong with the first five, each with its path and line.
    """

    count: int
    first: tuple[str, ...]


class BrokenRows:
    """Takes note of broken rows, or refuses the first of them if `strict`."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._count = 0
        self._first: list[str] = []

    def add(self, path: str | os.PathLike[str], line: int, problem: str) -> None:
        """Notes that a line is broken.

        Raises:
            FileFormatError: always if strict; it names the path, the line and the problem.
        """
        told = f"{os.fspath(path)}: line {line} {problem}"
        if self._strict:
            raise FileFormatError(f"{told}; mend it, or read the file without strict=True to leave such lines out")
        self._count += 1
        if len(self._first) < _TOLD:
            self._first.append(told)

    def skipped(self) -> Skipped:
        """All that was noted."""
        return Skipped(count=self._count, first=tuple(self._first))


def rows_of(path: str | os.PathLike[str], *, header: str, shown: str | None = None) -> Iterator[tuple[int, str]]:
    """The line number and text of each line behind the header; empty lines are left out.

    Args:
        path: a text file; bytes that are not UTF-8 become replacement characters.
        header: what line 1 must be.
        shown: what a message gives as the header, where that is too long.

    Raises:
        FileFormatError: the file cannot be read, or has another header.
    """
    expected = repr(shown or header)
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            first = file.readline(_LONGEST_HEADER).rstrip("\n")
            if first.rstrip() != header:
                given = first if len(first) <= 80 else f"{first[:80]}..."
                raise FileFormatError(
                    f"{path}: line 1 is {given!r}, but must be {expected}; give the file as it was published"
                )
            for number, line in enumerate(file, start=2):
                text = line.rstrip()
                if text:
                    yield number, text
    except OSError as error:
        raise FileFormatError(
            f"{path}: cannot be read ({error.strerror}); give a file that begins with {expected}"
        ) from error
