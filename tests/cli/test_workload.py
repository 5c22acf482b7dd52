"""`jaxserve workload`: what it writes and prints, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxserve.cli import workload as module
from jaxserve.cli.main import run
from jaxserve.plans import Group, Placement
from jaxserve.workload import (
    Workload,
    combine,
    fit,
    merge,
    read_azure_2019,
    read_azure_2021,
    read_azure_llm,
    scale_rate,
    synthetic,
)
from tests.cli.refusals import refused

FLEET = Path(__file__).parents[2] / "examples" / "plan" / "fleet.json"
NAMES = [model["name"] for model in json.loads(FLEET.read_text())["models"]]
SLOS = [model["slo_s"] for model in json.loads(FLEET.read_text())["models"]]
AB = ("--models=a,b", "--slo-s=1,2")
HEADERS = {
    "2019.csv": "HashOwner,HashApp,HashFunction,Trigger," + ",".join(map(str, range(1, 1441))),
    "2021.txt": "app,func,end_timestamp,duration",
    "code.csv": "TIMESTAMP,ContextTokens,GeneratedTokens",
    "chat.csv": "TIMESTAMP,ContextTokens,GeneratedTokens",
}
ROWS = {
    "2019.csv": [f"o,a,f{i},timer," + ",".join(["2"] * 60 + ["0"] * 1380) for i in range(3)],
    "2021.txt": [f"a,f{i % 3},{10 + 0.7 * i},0.5" for i in range(30)],
    "code.csv": [f"2023-11-16 18:17:{second:02}.5000000,100,10" for second in range(0, 60, 3)],
    "chat.csv": [f"2023-11-16 18:17:{second:02},100,10" for second in range(60)],
}
BROKEN = {"2019.csv": "o,a,f,timer,1,2", "2021.txt": "a,f,soon,1.0", "code.csv": "yesterday,1,2"}


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a tiny file of each trace and a workload in it."""
    monkeypatch.chdir(tmp_path)
    for name, header in HEADERS.items():
        (tmp_path / name).write_text("\n".join([header, *ROWS[name], ""]))
    regular = [np.arange(0.0, 100.0, 0.5), np.arange(0.0, 100.0, 1.0)]
    merge(regular, model_names=("a", "b"), slo_s=(1.0, 2.0)).save("w.npz")
    return tmp_path


def made(capsys: pytest.CaptureFixture[str], *arguments: str) -> Workload:
    """The workload that a command writes; what it prints about it must be true."""
    assert run(["workload", *arguments, "--output=out.npz", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    workload = Workload.load("out.npz")
    assert (told["output"], told["requests"], told["duration_s"]) == (
        "out.npz",
        len(workload),
        workload.arrival_s[-1],
    )
    counts = np.bincount(workload.model, minlength=len(workload.model_names))
    assert {name: model["requests"] for name, model in told["per_model"].items()} == dict(
        zip(workload.model_names, counts, strict=True)
    )
    return workload


def assert_same(given: Workload, expected: Workload) -> None:
    assert given.model_names == expected.model_names
    np.testing.assert_array_equal(given.arrival_s, expected.arrival_s)
    np.testing.assert_array_equal(given.model, expected.model)
    np.testing.assert_array_equal(given.slo_s, expected.slo_s)
    np.testing.assert_array_equal(given.priority, expected.priority)
    np.testing.assert_array_equal(given.tenant, expected.tenant)
    assert given.tenant_names == expected.tenant_names


def test_synthetic(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--rate=40", "--cv=3", "--duration-s=30", "--split=power-law:0.5", "--shift-s=10", "--seed=5"]
    given = made(capsys, "synthetic", f"--fleet={FLEET}", *options)
    expected = synthetic(
        model_names=NAMES,
        slo_s=SLOS,
        rate=40.0,
        cv=3.0,
        duration_s=30.0,
        split="power-law:0.5",
        shift_s=10.0,
        rng=np.random.default_rng(5),
    )
    assert_same(given, expected)
    named = made(capsys, "synthetic", *AB, "--rate=40", "--cv=1", "--duration-s=30")
    assert {(named.model_names[model], slo) for model, slo in zip(named.model, named.slo_s, strict=True)} == {
        ("a", 1.0),
        ("b", 2.0),
    }
    alike = made(capsys, "synthetic", "--models=a,b", "--slo-s=3", "--rate=40", "--cv=1", "--duration-s=30")
    assert set(alike.slo_s) == {3.0}


def test_a_written_workload_can_be_simulated(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Placement(groups=(Group(devices=(0,), models=("search-bert", "mail-bert")),)).save("placement.json")
    for name in ("w.npz", "w.csv"):
        arguments = ["--rate=9", "--cv=2", "--duration-s=20", "-o", name]
        assert run(["workload", "synthetic", f"--fleet={FLEET}", *arguments]) == 0
        assert capsys.readouterr().out.startswith(f"{name}: ")
        files = [f"--fleet={FLEET}", f"--profiles={FLEET.with_name('profiles.json')}", "--placement=placement.json"]
        assert run(["simulate", *files, f"--workload={name}", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["served"] > 0


def test_azure_2019(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--window-s=120", "--rate-scale=3", "--cv=2", "--start-s=600", "--end-s=3000", "--deal=round_robin"]
    given = made(capsys, "azure-2019", "2019.csv", "2019.csv", *AB, *options, "--seed=1")
    trace = read_azure_2019(["2019.csv", "2019.csv"], start_s=600.0, end_s=3000.0)
    fitted = trace.fitted(model_names=("a", "b"), slo_s=(1.0, 2.0), window_s=120.0, deal="round_robin")
    assert_same(given, fitted.sample(np.random.default_rng(1), rate_scale=3.0, cv_scale=2.0))
    assert len(made(capsys, "azure-2019", "2019.csv", *AB)) == pytest.approx(360, rel=0.2)


def test_azure_2021(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    came = read_azure_2021("2021.txt").workload(model_names=("a", "b"), slo_s=(1.0, 2.0))
    assert_same(made(capsys, "azure-2021", "2021.txt", *AB), came)
    part = made(capsys, "azure-2021", "2021.txt", *AB, "--start-s=12", "--end-s=20", "--deal=round_robin")
    trace = read_azure_2021("2021.txt", start_s=12.0, end_s=20.0)
    assert_same(part, trace.workload(model_names=("a", "b"), slo_s=(1.0, 2.0), deal="round_robin"))
    drawn = made(
        capsys, "azure-2021", "2021.txt", *AB, "--refit-window-s=10", "--rate-scale=2", "--cv-scale=3", "--seed=4"
    )
    fitted = fit(came, window_s=10.0)
    assert_same(drawn, fitted.sample(np.random.default_rng(4), rate_scale=2.0, cv_scale=3.0))
    for option in ("--refit-window-s=10", "--rate-scale=1", "--cv-scale=1"):
        assert not np.array_equal(made(capsys, "azure-2021", "2021.txt", *AB, option).arrival_s, came.arrival_s)


def test_azure_llm(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["chat=chat.csv", "code=code.csv"]
    trace = read_azure_llm({"chat": "chat.csv", "code": "code.csv"}, end_s=30.0)
    assert_same(made(capsys, "azure-llm", *files, "--slo-s=1,2", "--end-s=30"), trace.workload(slo_s=(1.0, 2.0)))
    of_fleet = made(capsys, "azure-llm", "tutor-bert=chat.csv", f"--fleet={FLEET}")
    assert (of_fleet.model_names, set(of_fleet.slo_s)) == (("tutor-bert",), {2.0})
    assert len(made(capsys, "azure-llm", *files, "--slo-s=1", "--rate-scale=10")) == pytest.approx(800, rel=0.3)


@pytest.mark.parametrize("trace", BROKEN)
def test_broken_rows(inside: Path, capsys: pytest.CaptureFixture[str], trace: str) -> None:
    command = {"2019.csv": ["azure-2019", trace], "2021.txt": ["azure-2021", trace], "code.csv": ["azure-llm"]}[trace]
    arguments = [*command, *AB] if len(command) > 1 else ["azure-llm", f"a={trace}", "--slo-s=1"]
    lines = (inside / trace).read_text().splitlines()
    for count, told in ((1, 2), (8, 7)):
        (inside / trace).write_text("\n".join([lines[0], *[BROKEN[trace] + "x" * 999] * count, *lines[1:]]))
        assert run(["workload", *arguments, "-o", "out.npz", "--json"]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)["skipped_rows"] == count
        broken = printed.err.splitlines()
        assert broken[0] == f"{count} broken {'row was' if count == 1 else 'rows were'} left out:"
        assert broken[1].startswith(f"  {trace}: line 2 has ")
        assert len(broken) == told
        assert max(map(len, broken)) < 310
        (inside / "out.npz").unlink()
        line = refused(["workload", *arguments, "-o", "out.npz", "--strict"], f"{trace}: line 2 has ", capsys)
        assert line.endswith(
            f"; mend {'this row' if count == 1 else f'the {count} broken rows'}, or leave out --strict to go on without"
        )
        assert not (inside / "out.npz").exists()


def test_strict_minds_nothing_where_all_rows_are_right(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(made(capsys, "azure-2021", "2021.txt", *AB, "--strict")) == 30
    assert json.loads(capsys.readouterr().out or "null") is None


def test_resample(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = Workload.load("w.npz")
    drawn = made(capsys, "resample", "w.npz", "--window-s=20", "--rate-scale=2", "--cv-scale=50", "--seed=7")
    fitted = fit(given, window_s=20.0)
    assert_same(drawn, fitted.sample(np.random.default_rng(7), rate_scale=2.0, cv_scale=50.0))
    posterior = made(capsys, "resample", "w.npz", "--posterior")
    assert_same(posterior, fit(given).sample(np.random.default_rng(0), posterior=True))


def test_scale_and_cut(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = Workload.load("w.npz")
    faster = made(capsys, "scale", "w.npz", "--rate-scale=4", "--slo-scale=0.5")
    np.testing.assert_array_equal(faster.arrival_s, scale_rate(given, 4.0).arrival_s)
    np.testing.assert_array_equal(faster.slo_s, 0.5 * given.slo_s)
    part = made(capsys, "cut", "w.npz", "--start-s=10", "--end-s=20", "--models=b")
    np.testing.assert_array_equal(part.arrival_s, np.arange(0.0, 10.0))
    assert part.model_names == ("b",)
    assert run(["workload", "cut", "w.npz", "-o", "w.csv"]) == 0
    assert_same(Workload.load("w.csv"), given)
    assert run(["workload", "cut", "w.csv", "--end-s=50", "-o", "w.csv"]) == 0
    assert len(Workload.load("w.csv")) == 150


def test_mixed_traffic_is_merged(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["workload", "cut", "w.npz", "--models=a", "--priority=5", "--tenant=acme [inc]", "-o", "a.npz"]) == 0
    assert run(["workload", "scale", "w.npz", "--rate-scale=2", "--tenant=other", "-o", "b.csv"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "a.npz: 200 requests of 1 model in 99.5 s, 2.01 per second"
    given = made(capsys, "merge", "a.npz", "b.csv", "w.npz")
    assert_same(given, combine([Workload.load(name) for name in ("a.npz", "b.csv", "w.npz")]))
    assert run(["workload", "show", "out.npz"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[-11:] == [
        *("", "priority requests", lines[-9], "5 200", "0 600"),
        *("", "tenant requests", lines[-4], "acme [inc] 200", "other 300", "- 300"),
    ]
    assert run(["workload", "show", "out.npz", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["per_priority"] == {"5": {"requests": 200}, "0": {"requests": 600}}
    assert told["per_tenant"] == {name: {"requests": n} for name, n in (("acme [inc]", 200), ("other", 300), ("", 300))}
    drawn = made(capsys, "resample", "out.npz", "--rate-scale=5")
    assert drawn.requests_by_tenant() == pytest.approx({"acme [inc]": 1000, "other": 1500, "": 1500}, rel=0.2)
    again = made(capsys, "merge", "out.npz", "--priority=0", "--tenant=")
    assert (again.requests_by_priority(), again.requests_by_tenant()) == ({0: len(drawn)}, {"": len(drawn)})


def test_show(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["workload", "show", "w.npz"]) == 0
    printed = capsys.readouterr()
    lines = [" ".join(line.split()) for line in printed.out.splitlines()]
    assert lines[0] == "w.npz: 300 requests of 2 models in 99.5 s, 3.015 per second"
    assert "model requests rate/s CV SLO s" in lines
    assert "a 200 2.01 0 1" in lines
    assert printed.err == ""
    assert run(["workload", "show", "w.npz", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["per_model"]["b"] == {"requests": 100, "rate": 100 / 99.5, "cv": 0.0, "slo_s": [2.0, 2.0]}


def test_show_what_few_requests_tell(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Workload(
        arrival_s=np.array([0.0, 0.0, 0.0, 2000.5]),
        model=np.array([1, 1, 1, 2]),
        model_names=("never", "at [once]", "once"),
        slo_s=np.array([1.0, 2.0, np.inf, 1.0]),
    ).save("few.npz")
    assert run(["workload", "show", "few.npz"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "few.npz: 4 requests of 3 models in 2000 s, 0.002 per second"
    assert lines[-3:] == ["never 0 0 -", "at [once] 3 0.0015 - 1 to -", "once 1 0.0004999 - 1"]
    Workload(arrival_s=np.zeros(0), model=np.zeros(0, int), model_names=(), slo_s=np.zeros(0)).save("none.npz")
    assert run(["workload", "show", "none.npz", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"requests": 0, "rate": None, "cv": None, "duration_s": 0.0, "per_model": {}}


def test_cv_is_that_of_the_gaps_of_each_model(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--rate=2000", "--cv=2", "--duration-s=20", "-o", "w.npz", "--json"]
    assert run(["workload", "synthetic", *AB, *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [model["cv"] for model in told["per_model"].values()] == pytest.approx([2.0, 2.0], rel=0.1)
    assert [model["rate"] for model in told["per_model"].values()] == pytest.approx([1000.0, 1000.0], rel=0.1)


def test_what_takes_long_is_announced(
    inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    redraw = ["workload", "azure-2021", "2021.txt", *AB, "--rate-scale=2", "-o", "out.npz"]
    assert run(redraw) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "_MANY_REQUESTS", 5)
    assert run(redraw) == 0
    done = ["reading the trace ...", "fitting the traffic ...", "drawing requests ...", "writing out.npz ..."]
    assert capsys.readouterr().err.splitlines() == done
    assert run(["workload", *SYNTHETIC]) == 0
    assert capsys.readouterr().err.splitlines() == done[2:]
    assert run(["workload", "show", "out.npz"]) == 0
    assert capsys.readouterr().err == "reading the workload ...\n"


SYNTHETIC = ["synthetic", *AB, "--rate=5", "--cv=1", "--duration-s=20", "-o", "out.npz"]
OUT = ["-o", "out.npz"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "Missing command"),
        (["syntetic"], "No such command 'syntetic'"),
        ([*SYNTHETIC, "--rate=0"], "'--rate': 0 is given, but it must be a number greater than 0"),
        ([*SYNTHETIC, "--rate=nan"], "'--rate': nan is given"),
        ([*SYNTHETIC, "--rate=many"], "'--rate': many is given"),
        ([*SYNTHETIC, "--rate=inf"], "'--rate': inf is given"),
        ([*SYNTHETIC, "--rate=1e9"], "about 2e+10 requests would be drawn, but 5e+07 are the most; lower the rate"),
        ([*SYNTHETIC, "--rate=1e-9"], "no requests came of it, so out.npz was not written; ask for more time or rate"),
        ([*SYNTHETIC, "--cv=0"], "'--cv': 0 is given, but it must be a number from 0.001 to 1000; 1 is Poisson"),
        ([*SYNTHETIC, "--cv=1e9"], "'--cv': 1e9 is given"),
        ([*SYNTHETIC, "--duration-s=-1"], "'--duration-s': -1 is given"),
        ([*SYNTHETIC, "--split=zipf"], "split is 'zipf', but must be 'uniform' or 'power-law:EXPONENT'"),
        ([*SYNTHETIC, "--shift-s=0"], "'--shift-s': 0 is given"),
        ([*SYNTHETIC, "--shift-s=1e-9"], "too many windows to keep; make them at least 2.1e-06 s long"),
        ([*SYNTHETIC, "--seed=-1"], "'--seed': -1 is not in the range"),
        ([*SYNTHETIC, "--models=a,,b"], "--models is 'a,,b', but must be names with commas between"),
        ([*SYNTHETIC, "--models=a,a"], "--models is 'a,a', but must be names with commas between, each once"),
        ([*SYNTHETIC, "--slo-s=soon"], "--slo-s is 'soon', but must be seconds greater than 0"),
        ([*SYNTHETIC, "--slo-s=0"], "--slo-s is '0', but must be seconds greater than 0"),
        ([*SYNTHETIC, "--slo-s=1,2,3"], "--slo-s has 3 values, but there are 2 models; give one, or one for each"),
        ([*SYNTHETIC, f"--fleet={FLEET}"], "--fleet has the names and SLOs; leave out --models and --slo-s"),
        ([*SYNTHETIC[:1], *SYNTHETIC[3:]], "which models there are is not said; give --fleet FILE, or --models A,B"),
        ([*SYNTHETIC[:2], *SYNTHETIC[3:]], "which models there are is not said"),
        ([*SYNTHETIC[:1], *SYNTHETIC[3:], "--fleet=no.json"], "no.json: cannot be read"),
        ([*SYNTHETIC[:1], *SYNTHETIC[3:], "--fleet=empty.json"], "empty.json: models is empty; add the models"),
        ([*SYNTHETIC, "--priority=11"], "'--priority': 11 is not in the range -10<=x<=10"),
        ([*SYNTHETIC, "--tenant=" + "x" * 129], "of 129 characters, but must be text of at most 128, without NUL"),
        ([*SYNTHETIC, "--tenant=\udcff"], "tenant is '\\udcff', of 1 characters, but must be text"),
        (["merge", *OUT], "Missing argument 'WORKLOAD...'"),
        (["merge", "w.npz", "empty.npz", *OUT], "empty.npz: cannot be read as a workload"),
        ([*SYNTHETIC[:-2]], "Missing option '-o' / '--output'"),
        ([*SYNTHETIC, "-o", "out.txt"], "-o out.txt ends in neither .npz nor .csv, which say its format; add one"),
        ([*SYNTHETIC, "-o", "no/out.npz"], "-o no/out.npz: there is no directory no; make it first"),
        ([*SYNTHETIC, "-o", "directory.csv"], "-o directory.csv is a directory; name a file"),
        (["azure-2019", *AB, *OUT], "Missing argument 'FILE...'"),
        (["azure-2019", "none.csv", *AB, *OUT], "File 'none.csv' does not exist"),
        (["azure-2019", "directory.csv", *AB, *OUT], "File 'directory.csv' is a directory"),
        (["azure-2019", "2021.txt", *AB, *OUT], "2021.txt: line 1 is 'app,func,end_timestamp,duration', but must be"),
        (["azure-2019", "2019.csv", *AB, "--window-s=90", *OUT], "--window-s is 90, but calls are counted per minute"),
        (["azure-2019", "2019.csv", *AB, "--cv=0", *OUT], "'--cv': 0 is given"),
        (["azure-2019", "2019.csv", *AB, "--rate-scale=0", *OUT], "'--rate-scale': 0 is given"),
        (["azure-2019", "2019.csv", *AB, "--rate-scale=1e6", *OUT], "give a rate scale of at most 1.3e+05"),
        (["azure-2019", "2019.csv", *AB, "--rate-scale=1e-6", *OUT], "no requests came of it"),
        (["azure-2019", "2019.csv", *AB, "--start-s=7200", *OUT], "2019.csv: no requests from 7200 s to the end; give"),
        (["azure-2019", "2019.csv", *AB, "--start-s=30", *OUT], "the range must be of whole minutes"),
        (["azure-2019", "2019.csv", *AB, "--end-s=1e6", *OUT], "the range must be of whole minutes up to 86400.0 s"),
        (["azure-2019", "2019.csv", f"--fleet={FLEET}", *OUT], "3 functions with arrivals are dealt to 12 models"),
        (["azure-2019", "2019.csv", *AB, "--deal=random", *OUT], "'random' is not one of 'stripe', 'round_robin'"),
        (["azure-2019", "2019.csv", *AB, "-o", "2019.csv"], "-o 2019.csv is the trace itself, which would be lost"),
        (["azure-2021", "code.csv", *AB, *OUT], "code.csv: line 1 is 'TIMESTAMP,ContextTokens,GeneratedTokens', but"),
        (["azure-2021", "2021.txt", *AB, "--start-s=9", "--end-s=8", *OUT], "from 9.0 s to 8.0 s was asked for, but 0"),
        (["azure-2021", "2021.txt", *AB, "--end-s=1", *OUT], "2021.txt: no requests from 0 s to 1 s; give a range"),
        (["azure-2021", "2021.txt", f"--fleet={FLEET}", *OUT], "3 functions with arrivals are dealt to 12 models"),
        (["azure-2021", "2021.txt", *AB, "--cv-scale=0", *OUT], "'--cv-scale': 0 is given"),
        (["azure-2021", "2021.txt", *AB, "--refit-window-s=0", *OUT], "'--refit-window-s': 0 is given"),
        (["azure-2021", "2021.txt", *AB, "--refit-window-s=1e-9", *OUT], "too many windows to keep; make them at"),
        (["azure-llm", "code.csv", "--slo-s=1", *OUT], "'code.csv' is not MODEL=FILE; write it as in chat=Azure"),
        (["azure-llm", "a=code.csv", "a=chat.csv", "--slo-s=1", *OUT], "'a' has two files, code.csv and chat.csv"),
        (["azure-llm", "a=code.csv", *OUT], "the SLOs must come from one place; give either --fleet FILE or --slo-s"),
        (["azure-llm", "a=code.csv", f"--fleet={FLEET}", "--slo-s=1", *OUT], "the SLOs must come from one place"),
        (["azure-llm", "a=code.csv", f"--fleet={FLEET}", *OUT], "has no model 'a'; name one of search-bert, code-moe"),
        (["azure-llm", "a=none.csv", "--slo-s=1", *OUT], "none.csv: cannot be read (No such file or directory)"),
        (["azure-llm", "a=2021.txt", "--slo-s=1", *OUT], "2021.txt: line 1 is 'app,func,end_timestamp,duration', but"),
        (["azure-llm", "a=chat.csv", "--slo-s=1", "-o", "chat.csv"], "-o chat.csv is the trace itself"),
        (["resample", "none.npz", *OUT], "File 'none.npz' does not exist"),
        (["resample", "2021.txt", *OUT], "2021.txt ends in neither .npz nor .csv, as workloads do; give one that does"),
        (["resample", "code.csv", *OUT], "code.csv: line 1 is 'TIMESTAMP,ContextTokens,GeneratedTokens', but must be"),
        (["resample", "empty.csv", *OUT], "empty.csv: has no requests to fit; give a workload that has some"),
        (["resample", "unsorted.csv", *OUT], "unsorted.csv: line 3: not a workload: arrival_s[1] is 1.0, which is"),
        (["resample", "bursty.csv", "--cv-scale=900", *OUT], "none above 1000 is drawn; give at most "),
        (["resample", "w.npz", "--window-s=1e-9", *OUT], "99.83 s in windows of 1e-09 s for 2 models are too many"),
        (["scale", "w.npz", "--rate-scale=0", *OUT], "'--rate-scale': 0 is given, but it must be a number from 1e-06"),
        (["scale", "w.npz", "--slo-scale=-1", *OUT], "'--slo-scale': -1 is given"),
        (["cut", "w.npz", "--start-s=200", *OUT], "no requests came of it, so out.npz was not written"),
        (["cut", "w.npz", "--start-s=-1", *OUT], "'--start-s': -1 is given, but it must be a number from 0"),
        (["cut", "w.npz", "--start-s=5", "--end-s=5", *OUT], "0 <= start < end must hold"),
        (["cut", "w.npz", "--models=c", *OUT], "there is no model 'c'; choose from ('a', 'b')"),
        (["show", "empty.npz"], "empty.npz: cannot be read as a workload"),
    ],
)
def test_wrong_arguments(arguments: list[str], problem: str, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = '"cluster": {"devices": 1, "devices_per_host": 1, "memory_bytes": 1}'
    (inside / "empty.json").write_text(f'{{"format": "jaxserve-fleet/1", {cluster}, "models": []}}')
    (inside / "empty.csv").write_text("arrival_s,model,slo_s\n")
    (inside / "empty.npz").touch()
    (inside / "unsorted.csv").write_text("arrival_s,model,slo_s\n2.0,a,1.0\n1.0,a,1.0\n")
    bursts = [f"{at_s},a,1.0" for at_s in (0.0, 1e-5, 2e-5, 50.0, 50.00001, 50.00002, 99.0)]
    (inside / "bursty.csv").write_text("\n".join(["arrival_s,model,slo_s", *bursts, ""]))
    (inside / "directory.csv").mkdir()
    before = {path.name: path.read_bytes() for path in inside.iterdir() if path.is_file()}
    refused(["workload", *arguments], problem, capsys)
    assert before == {path.name: path.read_bytes() for path in inside.iterdir() if path.is_file()}


def test_an_output_that_cannot_be_written_is_found_before_the_trace_is_read(
    inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (inside / "2021.txt").write_text("no trace")
    refused(["workload", "azure-2021", "2021.txt", *AB, "-o", "no/out.npz"], "there is no directory no", capsys)

    def full(self: Workload, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Workload, "save", full)
    refused(["workload", *SYNTHETIC], "-o out.npz cannot be written: [Errno 28] No space left on device", capsys)
