"""What the command says to arguments that it refuses."""

from collections.abc import Sequence

import pytest

from jaxserve.cli.main import run


def refused(arguments: Sequence[str], problem: str, capsys: pytest.CaptureFixture[str], *, code: int = 2) -> str:
    """Nothing on standard output, and one last line on standard error that says so; it is returned."""
    assert run(arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    line = printed.err.splitlines()[-1]
    assert line.startswith("jaxserve: ")
    assert problem in line
    return line
