"""`jaxserve profile` over configs: measured, or estimated without a device; what takes long says how long."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from jaxserve import ParallelConfig
from jaxserve.cli import profile, show
from jaxserve.cli.main import run
from jaxserve.plans import Profile, Profiles

TINY = "tests.cli.explained:tiny"
HUGE = "tests.cli.explained:huge"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What commands keep between runs is kept away from the user's."""
    monkeypatch.setenv("JAXSERVE_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_every_config_estimated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "profiles.json"
    assert run(["profile", TINY, "--all-configs", "--device-kind=H100", "--devices=4", "--json", "-o", str(path)]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads(path.read_text())
    found = Profiles.load(path)
    assert (found.device_kind, found.memory_bytes) == ("h100", 80 * 2**30)
    rows = found.models["tiny"]
    every = [ParallelConfig(*each) for each in ((1, 1), (1, 2), (2, 1), (1, 4), (2, 2), (4, 1))]
    assert [row.config for row in rows] == [config for config in every for _ in range(2)]
    assert {row.source for row in rows} == {"estimated"}
    assert [row.batch_size for row in rows[:2]] == [1, 2]
    for row in rows:
        assert min(*row.stage_latency_s, *row.stage_weight_bytes, *row.stage_activation_bytes) > 0
    lines = printed.err.splitlines()
    assert lines[1] == "profiling tiny (1, 1): 1 of 6"
    assert lines[6].startswith("profiling tiny (4, 1): 6 of 6, about ")


def test_configs_that_cannot_be_are_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", HUGE, "--all-configs", "--device-kind=tpu-v5p", "--devices=8", "--json"]) == 0
    printed = capsys.readouterr()
    rows = json.loads(printed.out)["models"]["huge"]
    assert {(row["intra_op"], row["inter_op"]) for row in rows} == {
        (1, 2),
        (2, 1),
        (1, 4),
        (2, 2),
        (4, 1),
        (1, 8),
        (2, 4),
        (4, 2),
    }
    left_out = [line for line in printed.err.splitlines() if line.startswith("left out")]
    assert len(left_out) == 2
    assert left_out[0].startswith("left out (1, 1): model 'huge': (1, 1) needs at least 160,000.000 MB")
    assert "hosts of tpu-v5p have 4" in left_out[-1]


def test_measured_on_the_devices_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", TINY, "--all-configs", "--devices=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "measured on cpu"
    assert [line.split()[1:3] for line in lines[3:9:2]] == [["(1,", "1)"], ["(1,", "2)"], ["(2,", "1)"]]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([TINY, "--all-configs", "--intra-op", "2"], "--all-configs covers every --intra-op"),
        ([TINY, "--device-kind", "H100", "--cpu-devices", "2"], "give one of them"),
        ([TINY, "--device-kind", "abacus"], "no device of kind 'abacus'"),
        ([TINY, "--devices", "0"], "--devices is 0"),
        ([TINY, "--devices", "9"], "--devices is 9, but there are 8; try --cpu-devices 9"),
        ([TINY, "--device-kind", "H100", "--inter-op", "4", "--devices", "2"], "there are 2; try --devices 4"),
        ([HUGE, "--all-configs", "--device-kind", "V100", "--devices", "2"], "MB are missing; (8, 2) would do"),
        ([TINY, "--weight-budget-gb", "nan"], "--weight-budget-gb is nan"),
    ],
)
def test_wrong_arguments(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert problem in printed.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (1, [(1, 1)]),
        (3, [(1, 1), (1, 2), (2, 1)]),
        (4, [(1, 1), (1, 2), (2, 1), (1, 4), (2, 2), (4, 1)]),
    ],
)
def test_every_config(devices: int, expected: list[tuple[int, int]]) -> None:
    assert [(each.intra_op, each.inter_op) for each in profile.every_config(devices)] == expected


def test_time_left_and_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(show, "stderr", Console(file=out, force_terminal=True, width=80))
    now_s = 100.0

    def clock() -> float:
        return now_s

    with profile.Remaining(4, clock=clock) as remaining:
        remaining.begin("tiny (1, 1)")
        assert remaining.left(0.0) == ""
        now_s = 110.0
        assert remaining.left(0.5) == "about 70 s left"
        remaining.report("compile 1 of 2", 0.5)
        remaining.end()
        assert remaining.left(0.0) == "about 30 s left"
        now_s = 300.0
        assert remaining.left(0.0) == "about 10 min left"
    assert "profiling tiny (1, 1) compile 1 of 2" in out.getvalue()


def test_the_table_fits_80_columns() -> None:
    row = Profile(
        intra_op=8,
        inter_op=16,
        batch_size=64,
        length=2048,
        stage_latency_s=(1.2345,) * 16,
        stage_latency_p99_s=(1.2345,) * 16,
        stage_weight_bytes=(12.3456e9,) * 16,
        stage_activation_bytes=(1.23456e9,) * 16,
    )
    profiles = Profiles(device_kind="NVIDIA V100-SXM2-16GB", memory_bytes=0, models={"bert-104b": (row,)})
    console = Console(width=80, file=io.StringIO())
    with console.capture() as captured:
        console.print(profile.table(profiles, "measured on"))
    lines = [line for line in captured.get().splitlines() if line.startswith("bert")]
    assert [line.split() for line in lines] == [
        ["bert-104b", "(8,", "16)", "64", "2048", "19,752", "1,234", "1,234", "12,346", "1,235"]
    ]
