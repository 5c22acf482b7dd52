"""The commands: results on standard output, one line of what is wrong on standard error, the exit code."""

import asyncio
import dataclasses
import io
import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from jaxserve.cli import demo
from jaxserve.cli.main import run
from jaxserve.cli.show import status_tables
from jaxserve.config import cache_directory
from jaxserve.errors import ConfigError, ModelError
from jaxserve.plans import Group, Placement
from jaxserve.workload import Workload
from tests.cli.refusals import refused

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
    lines = capsys.readouterr().out.splitlines()
    assert "SLO attainment" in lines[0]
    assert any(line.split() == ["group", "requests", "busy", "%"] for line in lines)
    assert max(map(len, lines)) <= 80


def test_simulate_tells_priorities_and_tenants_apart(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "workload.npz"
    recorded = Workload.load(CASE / "workload.npz")
    turn = np.arange(len(recorded)) % 4
    dataclasses.replace(
        recorded,
        slo_s=20 * recorded.slo_s,
        priority=np.where(turn == 0, 5, 0),
        tenant=np.where(turn < 2, 0, 1),
        tenant_names=("a", "b"),
    ).save(path)

    def result(*options: str) -> dict[str, Any]:
        assert run(simulate("--json", *options, workload=str(path))) == 0
        return json.loads(capsys.readouterr().out)

    first_come, by_priority = result(), result("--max-overtakings", "1000")
    assert first_come["served"] >= json.loads((CASE / "expected.json").read_text())["served"]
    assert first_come["per_priority"]["5"]["requests"] == by_priority["per_priority"]["5"]["requests"]
    assert by_priority["per_priority"]["5"]["latency_p50_s"] < first_come["per_priority"]["5"]["latency_p50_s"]
    assert by_priority["per_priority"]["0"]["latency_p50_s"] > first_come["per_priority"]["0"]["latency_p50_s"]
    shared = result("--shares", "a=9,b=0.1")
    assert shared["per_tenant"]["a"]["slo_attainment"] > shared["per_tenant"]["b"]["slo_attainment"] + 0.1
    assert run(simulate("--shares", "equal", workload=str(path))) == 0
    lines = capsys.readouterr().out.splitlines()
    for head in ("priority", "tenant"):
        assert any(line.split() == [head, "requests", "SLO", "%", "p50", "ms"] for line in lines)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["simulate"], "Missing option '--profiles'"),
        (simulate("--dispatch", "best"), "dispatch is 'best', but must be one of alpaserve"),
        (simulate("--overhead-s", "nan"), "overhead_s is nan"),
        (simulate("--max-batch", "0"), "max_batch is 0, but must be at least 1"),
        (simulate("--max-overtakings", "-1"), "max_overtakings is -1, but must be a whole number of at least 0"),
        (simulate("--shares", "a=0"), "the share of tenant 'a' is 0.0, but must be a number from 0.001 to 1000"),
        (simulate("--shares", "a=1,a=2"), "--shares is 'a=1,a=2', but must be `equal`, or a weight for each tenant"),
        (simulate("--shares", "a"), "--shares is 'a', but must be `equal`"),
        (["serve", "tests.cli.served:double", "--port=0", "--max-queue=0"], "--max-queue is 0"),
        (["serve", "tests.cli.served:double", "--port=0", "--shares", "a=x"], "--shares is 'a=x'"),
        (["serve", "tests.cli.served:double", "--port=0", "--spare-bytes=1"], "but the placement has no spares"),
        (simulate("--engine", "slow"), "'slow' is not one of 'fast', 'reference'"),
        (simulate("--per-request", "/no/such/directory/x.npz"), "cannot be written"),
        (simulate(workload="/none.npz"), "/none.npz: cannot be read as a workload"),
        (["serv"], "No such command 'serv'"),
        (["serve", "nonsense"], "'nonsense' is not MODULE:ATTRIBUTE"),
        (["serve", "no_such_module_anywhere:x"], "there is no module 'no_such_module_anywhere'"),
        (
            ["serve", "tests.cli.served:missing"],
            "'tests.cli.served' has no 'missing'; it has double, blocking, raises, interrupts, "
            "stopped_while_loading, on_host, mixed",
        ),
        (["serve", "tests.cli.served:double.x"], "'tests.cli.served:double' has no 'x'; it has nothing that could"),
        (["serve", "tests.cli.served:double", "--host", "nohost.invalid"], "choose another --host"),
        (["serve", "tests.cli.served:double", "--host", "192.0.2.1", "--insecure"], "choose another --host"),
        (["serve", "tests.cli.served:double", "--host", "0.0.0.0"], "give --tokens FILE"),
        (["serve", "tests.cli.served:double", "--port=0", "--unix", "/tmp"], "cannot listen on /tmp"),
        (["profile", "tests.cli.served:on_host"], "there is nothing to measure: on_host run on the host"),
        (["profile", "tests.cli.served:double", "-o", "/tmp"], "-o /tmp is a directory; name a file"),
        (["serve", "tests.cli.served:nothing"], "is a int, but must be a jaxserve.Model"),
        (["serve", "tests.cli.served:raises"], "raised OSError: no such weights"),
        (["serve", "tests.cli.served:double", "--port", "99999999"], "but must be a port from 1 to 65535"),
        (["serve", "tests.cli.served:double", "--placement", "/none.json"], "/none.json: cannot be read"),
        (["serve", "tests.cli.served:double", "--grace-s", "-1"], "--grace-s is -1.0"),
        (["profile", "tests.cli.served:double", "--inter-op", "0"], "inter_op is 0"),
        (["profile", "tests.cli.served:double", "--inter-op", "99"], "needs 99 devices, but there are 8"),
        (["profile", "tests.cli.served:double", "-o", "/no/such/x.json"], "there is no directory /no/such"),
        (["demo", "--seconds", "0"], "--seconds is 0.0"),
    ],
)
def test_wrong_arguments(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(arguments, problem, capsys)


@pytest.mark.parametrize("command", [["serve", "tests.cli.served:double"], ["profile", "tests.cli.served:double"]])
def test_a_cache_that_cannot_be_used(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    (tmp_path / "file_inside" / "programs").parent.mkdir(mode=0o700)
    (tmp_path / "file_inside" / "programs").touch()
    for path, problem in (
        (tmp_path / "file", "cannot be made"),
        (Path("/proc/x"), "cannot be made"),
        (tmp_path / "file_inside", "cannot be made"),
        (tmp_path / "shared", "others may write to it"),
    ):
        monkeypatch.setenv("JAXSERVE_CACHE", str(path))
        assert run([*command, "--port=0"] if command[0] == "serve" else command) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("jaxserve: the cache ")
        assert str(path) in line
        assert problem in line


def test_a_cache_that_is_not_writable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may be run by root, who may write anywhere
    with pytest.raises(ConfigError, match="cannot be written to; make it writable"):
        cache_directory()


def test_a_placement_that_does_not_fit_is_found_before_loading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "placement.json"
    Placement(groups=(Group(devices=(0,), models=("other",)),)).save(path)
    assert run(["serve", "tests.cli.served:double", "--port=0", "--placement", str(path)]) == 2
    [problem] = capsys.readouterr().err.splitlines()
    assert "other" in problem


def test_serve_stopped_while_loading(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "tests.cli.served:stopped_while_loading", "--port=0"]) == 1
    assert capsys.readouterr().err.splitlines() == ["loading ...", "stopping ...", "stopped while loading"]


def test_interrupted_before_the_loop(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "tests.cli.served:interrupts", "--port=0"]) == 1
    assert capsys.readouterr().err.splitlines() == ["jaxserve: interrupted"]


def test_help_does_not_start_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--help"]) == 0
    assert capsys.readouterr().err == ""


def test_demo_without_weights(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_network(**_: object) -> None:
        raise ModelError("the weights of minilm could not be fetched")

    monkeypatch.setattr(demo, "use_cpu_devices", lambda count: None)
    monkeypatch.setattr(demo, "minilm", no_network)
    assert run(["demo"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "jaxserve: the weights of minilm could not be fetched"


def test_demo_stopped_before_its_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async def stopped(*_: object, **__: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(demo, "use_cpu_devices", lambda count: None)
    monkeypatch.setattr(demo, "_demo", stopped)
    assert run(["demo"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1] == "stopped before there was a report"


def test_demo_takes_a_free_port_where_the_default_was_taken_meanwhile(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        monkeypatch.setattr(demo, "DEFAULT_PORT", taken)
        assert demo._doors((None, 0, 0)).port == 0
        assert capsys.readouterr().err == f"port {taken} is taken; using a free one\n"
        assert demo._doors((taken, 0, 0)).port == taken  # which is then said to be taken
        assert capsys.readouterr().err == ""


def test_status_fits_80_columns() -> None:
    names = ("minilm", "gpt", "moe", "vit")
    counted = {
        **dict.fromkeys(("requests", "served", "refused", "expired", "failed"), 123456),
        "latency_p50_s": 1.2345,
        "latency_p99_s": 12.3456,
        "slo_attainment": 1.0,
    }
    group = {"healthy": False, "stages": 2, "models": names, "requests": 123456, "queue": 12, "in_flight": 2}
    status = {
        "uptime_s": 100.0,
        "models": dict.fromkeys(names, counted),
        "groups": [group | {"utilization": 0.5}] * 2,
    }
    console = Console(width=80, file=io.StringIO())
    with console.capture() as captured:
        console.print(status_tables(status))
    lines = [line.rstrip() for line in captured.get().splitlines()]
    assert len(lines) == (2 + 4) + 1 + (2 + 2)  # no line was broken
    assert " ".join(lines[0].split()) == "model rate/s served refused expired failed p50 ms p99 ms SLO %"
    assert "0 (down)  minilm, gpt, moe, vit" in lines[9]


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "unix:/no/such/socket"]) == 1
    assert "/no/such/socket" in capsys.readouterr().err


def test_profile_leaves_out_what_runs_on_the_host(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", "tests.cli.served:mixed", "--json"]) == 0
    printed = capsys.readouterr()
    assert list(json.loads(printed.out)["models"]) == ["double"]
    assert "not measured, as they run on the host: on_host" in printed.err


def test_profile_writes_a_profiles_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "profiles.json"
    assert run(["profile", "tests.cli.served:double", "-o", str(path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(path.read_text())
    assert [row["batch_size"] for row in printed["models"]["double"]] == [1, 2]
    assert all(row["stage_latency_s"][0] > 0 for row in printed["models"]["double"])
