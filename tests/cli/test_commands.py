"""The commands: results on standard output, one line of what is wrong on standard error, the exit code."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxserve.cli.main import run
from jaxserve.workload import Workload

CASE = Path(__file__).parents[1] / "golden" / "simulator" / "g05_8dev_op2pp4_slo1"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What commands keep between runs is kept away from the user's."""
    monkeypatch.setenv("JAXSERVE_CACHE", str(tmp_path_factory.mktemp("cache")))


def simulate(*more: str, workload: str = str(CASE / "workload.npz")) -> list[str]:
    files = [f"--{name}={CASE / name}.json" for name in ("profiles", "fleet", "placement")]
    return ["simulate", *files, f"--workload={workload}", "--overhead-s=0.011", *more]


def test_simulate_prints_one_json_object(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "each.npz"
    assert run(simulate("--json", "--per-request", str(out))) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    expected = json.loads((CASE / "expected.json").read_text())
    assert (result["requests"], result["served"]) == (expected["requests"], expected["served"])
    assert result["slo_attainment"] == expected["slo_attainment"]
    each, decided = np.load(out), np.load(CASE / "expected.npz")
    np.testing.assert_array_equal(each["finish_s"], decided["finish_s"])
    np.testing.assert_array_equal(each["outcome"] == 0, decided["served"])
    assert set(each["group"][each["outcome"] == 1]) <= {-1}


def test_simulate_reads_csv_and_prints_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "workload.csv"
    Workload.load(CASE / "workload.npz").save(path)
    assert run(simulate(workload=str(path))) == 0
    assert "SLO attainment" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["simulate"], "Missing option '--profiles'"),
        (simulate("--dispatch", "best"), "dispatch is 'best', but must be one of alpaserve"),
        (simulate("--overhead-s", "nan"), "overhead_s is nan"),
        (simulate("--max-batch", "2"), "--max-batch is 2"),
        (simulate("--engine", "fast"), "'fast' is not 'reference'"),
        (simulate("--per-request", "/no/such/directory/x.npz"), "cannot be written"),
        (simulate(workload="/none.npz"), "/none.npz: cannot be read as a workload"),
        (["serv"], "No such command 'serv'"),
        (["serve", "nonsense"], "'nonsense' is not MODULE:ATTRIBUTE"),
        (["serve", "no_such_module_anywhere:x"], "there is no module 'no_such_module_anywhere'"),
        (["serve", "tests.cli.served:missing"], "'tests.cli.served' has no 'missing'; it has"),
        (["serve", "tests.cli.served:nothing"], "is a int, but must be a jaxserve.Model"),
        (["serve", "tests.cli.served:raises"], "raised OSError: no such weights"),
        (["serve", "tests.cli.served:double", "--port", "99999999"], "cannot listen on 127.0.0.1:99999999"),
        (["serve", "tests.cli.served:double", "--placement", "/none.json"], "/none.json: cannot be read"),
        (["serve", "tests.cli.served:double", "--grace-s", "-1"], "--grace-s is -1.0"),
        (["profile", "tests.cli.served:double", "--inter-op", "0"], "inter_op is 0"),
        (["profile", "tests.cli.served:double", "--inter-op", "99"], "needs 99 devices, but there are 8"),
        (["profile", "tests.cli.served:double", "-o", "/no/such/x.json"], "there is no directory /no/such"),
        (["demo", "--seconds", "0"], "--seconds is 0.0"),
    ],
)
def test_wrong_arguments(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    line = printed.err.splitlines()[-1]
    assert line.startswith("jaxserve: ")
    assert problem in line


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "unix:/no/such/socket"]) == 1
    assert "/no/such/socket" in capsys.readouterr().err


def test_profile_writes_a_profiles_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "profiles.json"
    assert run(["profile", "tests.cli.served:double", "-o", str(path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(path.read_text())
    assert [row["batch_size"] for row in printed["models"]["double"]] == [1, 2]
    assert all(row["stage_latency_s"][0] > 0 for row in printed["models"]["double"])
