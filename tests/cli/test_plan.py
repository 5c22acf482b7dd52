"""`jaxserve plan`: what it prints and writes, what it refuses, and how it is stopped."""

import builtins
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from jaxserve.cli import show
from jaxserve.cli.main import run
from jaxserve.cli.plan_tables import ranges
from jaxserve.cli.signals import FirstInterrupt
from jaxserve.plans import Fleet, Placement
from jaxserve.workload import Workload
from tests.cli.refusals import refused

ROOT = Path(__file__).parents[2]
FILES = ROOT / "examples" / "plan"
SUFFIXES = {"profiles": "json", "fleet": "json", "workload": "csv"}


def plan(*more: str, **files: Path | str) -> list[str]:
    given = {name: files.get(name, FILES / f"{name}.{suffix}") for name, suffix in SUFFIXES.items()}
    return ["plan", *(f"--{name}={path}" for name, path in given.items()), "--simulations=300", *more]


def changed_fleet(tmp_path: Path, **changes: Any) -> Path:
    """The example's fleet with other values of the cluster, or other fields of its first model."""
    content = json.loads((FILES / "fleet.json").read_text())
    for name, value in changes.items():
        (content["cluster"] if name in content["cluster"] else content["models"][0])[name] = value
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps(content))
    return path


def test_json_and_the_placement_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "placement.json"
    assert run(plan("--json", "-o", str(out))) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["placement"] == json.loads(out.read_text())
    assert result["groups"] == len(Placement.load(out).groups)
    assert result["slo_attainment"] <= result["bound"]["slo_attainment"]
    assert printed.err.splitlines()[0] == "planning, at most 300 simulations ..."
    files = [f"--{name}={FILES / f'{name}.{suffix}'}" for name, suffix in SUFFIXES.items()]
    assert run(["simulate", *files, f"--placement={out}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["slo_attainment"] == result["slo_attainment"]


def test_tables(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fleet = changed_fleet(tmp_path, memory_bytes=6.5e8)
    assert run(plan(fleet=fleet)) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("SLO attainment ")
    assert "no placement on these devices exceeds" in lines[0]
    assert any(line.startswith("policy search, ") for line in lines)
    assert "group devices config models requests busy %" in lines
    assert "model requests SLO % groups" in lines
    assert sum(line.startswith("law-bert ") and line.endswith(" 0.0 none") for line in lines) == 1
    assert "law-bert, bio-bert, tax-bert (memory): at its lightest, as (8, 1), it needs" in (" ".join(lines))


def test_no_bound(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(plan("--no-bound", "--policy", "round-robin")) == 0
    assert "exceeds" not in capsys.readouterr().out


@pytest.mark.parametrize("policy", ["alpaserve", "selective-replication", "round-robin", "greedy-2", "clockwork++"])
def test_policies_by_name(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(plan("--policy", policy, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["policy"] == policy


def test_a_policy_of_ones_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_policy.py").write_text(
        "from jaxserve.placement import Effort, Plan, Problem\n"
        "def first_only(problem: Problem, effort: Effort) -> Plan:\n"
        "    shape = problem.empty([0])\n"
        "    shape.held[0, 0] = 1\n"
        "    return Plan(placement=problem.placement(shape), simulations=0)\n"
        "number = 1\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert run(plan("--policy", "my_policy:first_only", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["policy"] == "my_policy:first_only"
    assert [group["models"] for group in result["placement"]["groups"]] == [["search-bert"]]
    for wrong, problem in (
        ("my_policy:second", "'my_policy' has no 'second'; it has first_only"),
        ("my_policy:number", "'my_policy:number' is a int, but a policy is a function"),
        ("no_such_policy_anywhere:x", "there is no module 'no_such_policy_anywhere'"),
    ):
        assert run(plan("--policy", wrong)) == 2
        assert problem in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        ("(one, one)", "groups[1].devices has 0 a second time"),
        ("()", ""),
    ],
)
def test_placements_of_a_policy_of_ones_own(
    groups: str, problem: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"policy_{'wrong' if problem else 'empty'}"
    (tmp_path / f"{module}.py").write_text(
        "from jaxserve.placement import Effort, Plan, Problem\n"
        "from jaxserve.plans import Group, Placement\n"
        "one = Group(devices=(0,), models=('search-bert',))\n"
        "def policy(problem: Problem, effort: Effort) -> Plan:\n"
        f"    return Plan(placement=Placement(groups={groups}), simulations=0)\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    out = tmp_path / "placement.json"
    asked = plan("--policy", f"{module}:policy", "-o", str(out), "--json")
    if problem:
        refused(asked, problem, capsys)
        assert not out.exists()
    else:
        assert run(asked) == 0
        assert json.loads(capsys.readouterr().out)["slo_attainment"] == 0.0
        assert Placement.load(out).groups == ()


def test_the_example_of_a_policy(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert run(plan("--policy", "examples.plan_policy:most_requested_first", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["groups"] == 8


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["plan"], "Missing option '--profiles'"),
        (plan("--policy", "best"), "policy is 'best', but must be one of search, alpaserve, selective-replication"),
        (plan("--policy", "greedy-0"), "greedy-0 was asked for, but a pipeline has at least 1 stage"),
        (plan("--policy", "greedy-16"), "greedy-16 needs the config (1, 16)"),
        (plan("--dispatch", "best"), "dispatch is 'best', but must be one of alpaserve"),
        (plan("--seconds", "-1"), "seconds is -1, but a search needs a finite time greater than 0"),
        (plan("--simulations", "0"), "simulations is 0"),
        (plan("--seed", "-1"), "seed is -1"),
        (plan("--overhead-s", "-0.1"), "overhead_s is -0.1, but must be finite and not negative"),
        (plan("--overhead-s", "nan"), "overhead_s is nan"),
        (plan("--max-batch", "0"), "max_batch is 0"),
        (plan("--min-attainment", "1.1"), "min_attainment is 1.1, but must be a share of a model's requests, 0 to 1"),
        (plan("--min-attainment", "-0.1"), "min_attainment is -0.1"),
        (plan("--policy", "alpaserve", "--fairness"), "the policy alpaserve only maximises the total; choose search"),
        (plan("-o", "/no/such/placement.json"), "-o /no/such/placement.json: there is no directory /no/such"),
        (plan("-o", "/tmp"), "-o /tmp is a directory; name a file, such as /tmp/placement.json"),
        (plan("-o", "/proc/x"), "-o /proc/x cannot be written"),
        (plan("--plot", "plan.pdf"), "--plot plan.pdf has the suffix '.pdf', but pictures are .png or .svg"),
        (plan("--plot", "/no/such/plan.svg"), "--plot /no/such/plan.svg: there is no directory /no/such"),
        (plan("--devices-for", "1.5"), "an attainment of 1.5 was asked for"),
        (plan("--devices-for", "0.9", "--most-devices", "0"), "most_devices is 0"),
        (plan("--most-devices", "4"), "--most-devices is of --devices-for"),
        (plan("--values", "1,2"), "--values and --policies are of a sweep"),
        (plan("--policy", "search,alpaserve"), "--policy is 'search,alpaserve', but a plan is by one policy; name one"),
        (plan("--sweep", "size", "--values", "1"), "must be of one of devices, rate, cv, slo"),
        (plan("--sweep", "rate"), "a sweep of rate needs values"),
        (plan("--sweep", "rate", "--values", "1,x"), "--values is '1,x', but must be numbers"),
        (plan("--sweep", "rate", "--values", "0"), "a sweep of rate has the value 0"),
        (plan("--sweep", "rate", "--values", "1", "--policies", "round-robin,best"), "policy is 'best'"),
        (plan("--sweep", "rate", "--values", "1", "-o", "x.json"), "--sweep makes many plans"),
        (plan(profiles="/none.json"), "/none.json: cannot be read"),
        (plan(fleet="/none.json"), "/none.json: cannot be read"),
        (plan(workload="/none.npz"), "/none.npz: cannot be read as a workload"),
    ],
)
def test_wrong_arguments(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    if problem.startswith("-o /proc"):  # found only when it is written, after the plan was printed
        assert run([*arguments, "--policy", "round-robin"]) == 2
        assert problem in capsys.readouterr().err
        return
    refused(arguments, problem, capsys)


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("profiles", "jaxserve-profiles/1", "jaxserve-profiles/9", "profiles.json: format is 'jaxserve-profiles/9'"),
        ("profiles", '"batch_size": 1', '"batch_size": 0', "models.bert-1.3b[0].batch_size is 0"),
        (
            "profiles",
            '"stage_latency_s": [',
            '"stage_latency_s": [-1, ',
            "models.bert-1.3b[0].stage_latency_s[0] is -1",
        ),
        ("profiles", '"stage_weight_bytes"', '"weights"', "models.bert-1.3b[0].stage_weight_bytes is missing"),
        ("profiles", '"bert-1.3b": [', '"bert": [', "the fleet names the profile 'bert-1.3b', which the profiles file"),
        ("fleet", '"devices": 8', '"devices": 0', "cluster.devices is 0, but must be at least 1"),
        ("fleet", '"memory_bytes": ', '"memory_bytes": -', "cluster.memory_bytes is -13958643712"),
        ("fleet", '"slo_s": 0.75', '"slo_s": "x"', 'models[0].slo_s is "x", but must be a number'),
        ("fleet", '"code-moe"', '"search-bert"', "models[1].name is 'search-bert', which an earlier model has"),
        (
            "fleet",
            '"slo_s": 0.75}',
            '"slo_s": 0.75, "min_attainment": 2}',
            "models[0].min_attainment is 2, but must be",
        ),
        ("fleet", '"devices": 8', '"devices": 8,,', "fleet.json: is not JSON"),
        ("workload", "arrival_s,model", "time,model", "workload.csv: line 1 is 'time,model,slo_s'"),
        ("workload", "0.75\n", "0\n", "must be greater than 0"),
        ("workload", "\n", "\n99999,search-bert,1.0\n", "is before the one ahead of it; sort the arrivals"),
        ("workload", "0.75\n", "0.75\nx,search-bert,1.0\n", "is not number,name,number"),
    ],
)
def test_malformed_files(
    file: str, old: str, new: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{file}.{SUFFIXES[file]}"
    text = (FILES / name).read_text()
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new, 1))
    refused(plan(**{file: tmp_path / name}), problem, capsys)


@pytest.mark.parametrize(
    ("names", "model", "problem"),
    [
        ([], [], "the workload has no requests"),
        (["p", "q"], [0, 1], "the workload's requests are for p, q, but the fleet's models are search-bert, code-moe"),
        (["p", "p"], [0, 1], "model_names has a name twice, 'p'"),
    ],
)
def test_workloads_that_cannot_be_planned_for(
    names: list[str], model: list[int], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "workload.npz"
    count = len(model)
    np.savez(
        path,
        arrival_s=np.arange(count) * 1.0,
        model=np.array(model, np.int32),
        model_names=np.array(names, np.str_),
        slo_s=np.ones(count),
    )
    refused(plan(workload=path), problem, capsys)


def test_no_model_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = changed_fleet(tmp_path, memory_bytes=1e8)
    refused(plan(fleet=fleet), "may hold 0.1 GB: 0.254 GB are missing", capsys)


def test_a_model_that_fits_nowhere_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = changed_fleet(tmp_path, memory_bytes=5e8)
    assert run(plan("--json", fleet=fleet)) == 0
    result = json.loads(capsys.readouterr().out)
    assert {each["cause"] for each in result["unplaced"]} >= {"memory"}
    assert result["slo_attainment"] > 0


def test_a_floor_that_is_not_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "placement.json"
    assert run(plan("--min-attainment", "1", "-o", str(out), "--json")) == 1
    printed = capsys.readouterr()
    shortfalls = json.loads(printed.out)["shortfalls"]
    line = printed.err.splitlines()[-1]
    worst = shortfalls[0]
    assert f"{worst['model']} reaches {100 * worst['slo_attainment']:.1f} of 100.0 %" in line
    assert f"{out} was not written" in line
    assert not out.exists()


def test_a_floor_that_is_reached(tmp_path: Path) -> None:
    out = tmp_path / "placement.json"
    assert run(plan("--min-attainment", "0.1", "-o", str(out))) == 0
    assert out.exists()


def test_a_floor_of_the_fleet_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = changed_fleet(tmp_path, min_attainment=1.0)
    assert run(plan(fleet=fleet)) == 1
    printed = capsys.readouterr()
    assert "must reach" in printed.out
    assert "below their min_attainment: search-bert reaches" in printed.err


def test_devices_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "placement.json"
    asked = plan("--policy", "round-robin", "--devices-for", "0.9", "-o", str(out))
    assert run([*asked, "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    devices = result["devices_for"]["devices"]
    assert result["slo_attainment"] >= 0.9
    assert [each["reached"] for each in result["devices_for"]["tried"] if each["devices"] == devices] == [True]
    assert result["placement"] == json.loads(out.read_text())
    assert f"{devices} devices ..." in printed.err.splitlines()
    assert run(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{devices} devices attain 90.0 %: the smallest number tried that does")
    assert any(line.split() == ["devices", "SLO", "%", "bound", "%", "reached"] for line in lines)


@pytest.mark.parametrize(
    ("target", "most", "problem"),
    [
        ("0.99", "1", "99.0 % is out of reach: on 1 device no placement exceeds"),
        ("0.95", "7", "no plan on up to 7 devices attains 95.0 %, the best "),
    ],
)
def test_devices_for_out_of_reach(target: str, most: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = plan("--policy", "selective-replication", "--devices-for", target, "--most-devices", most)
    assert run([*asked, "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["devices_for"]["devices"] is None
    assert problem in printed.err.splitlines()[-1]


def test_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "sweep.svg"
    asked = plan("--sweep", "devices", "--values", "1,4,8", "--policies", "round-robin,greedy-2", "--plot", str(plot))
    assert run([*asked, "--json"]) == 0
    swept = json.loads(capsys.readouterr().out)["sweep"]
    assert swept["axis"] == "devices"
    assert [point["value"] for point in swept["points"]] == [1, 1, 4, 4, 8, 8]
    drawn = plot.read_text()
    assert drawn.startswith("<?xml")
    assert run(asked) == 0
    assert plot.read_text() == drawn
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["devices", "round-robin", "greedy-2", "bound"] for line in lines)
    assert any("greedy-2 at 1: greedy-2 needs pipelines of 2 devices" in line for line in lines)


def test_a_picture_of_the_placement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix, begins in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        path = tmp_path / f"plan.{suffix}"
        assert run(plan("--policy", "round-robin", "--plot", str(path))) == 0
        assert path.read_bytes().startswith(begins)
    assert "SLO attainment" in capsys.readouterr().out


def test_a_picture_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import_module = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return import_module(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(plan("--plot", str(tmp_path / "x.png")), "pip install 'jaxserve[plot]'", capsys)


def test_interrupted_it_prints_the_best_so_far(tmp_path: Path) -> None:
    out = tmp_path / "placement.json"
    files = [f"--{name}={FILES / f'{name}.{suffix}'}" for name, suffix in SUFFIXES.items()]
    command = [sys.executable, "-m", "jaxserve", "plan", *files, "--seconds=3600", "--json", "-o", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "planning, at most 3600 s ...\n"
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert said.splitlines() == ["stopping with the best so far ..."]
    result = json.loads(printed)
    assert result["placement"] == json.loads(out.read_text())
    assert result["slo_attainment"] > 0


def test_the_second_interrupt_interrupts(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with FirstInterrupt("stopping ...") as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before
    assert capsys.readouterr().err == "stopping ...\n"


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(show, "stderr", console)
    with show.Searching() as searching:
        for what in ("4 devices", "8 devices"):
            searching.begin(what)
            searching.report(0.5, 0.917)
    assert isinstance(console.file, io.StringIO)
    assert "8 devices" in console.file.getvalue()
    assert "best 91.7 %" in console.file.getvalue()


def test_progress_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with show.Searching() as searching:
        searching.begin("planning")
        for done in (0.1, 0.2, 0.3, 0.4, 1.0):
            searching.report(done, 0.5)
    assert capsys.readouterr().err.splitlines() == [
        "planning ...",
        "planning: 30.0 % done, best 50.0 %",
        "planning: 100.0 % done, best 50.0 %",
    ]


@pytest.mark.parametrize(
    ("numbers", "shown"), [((), ""), ((3,), "3"), ((0, 1, 2, 3), "0-3"), ((0, 1, 4, 6, 7), "0-1, 4, 6-7")]
)
def test_ranges(numbers: tuple[int, ...], shown: str) -> None:
    assert ranges(numbers) == shown


def test_the_example_files_are_what_they_say() -> None:
    fleet = Fleet.load(FILES / "fleet.json")
    workload = Workload.load(FILES / "workload.csv")
    assert set(workload.model_names) <= {model.name for model in fleet.models}
    assert os.path.getsize(FILES / "workload.csv") < 100_000
