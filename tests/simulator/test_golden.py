"""Both simulators against AlpaServe's own: every decision and every finish time, to the last bit."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxserve.cli.main import run
from jaxserve.plans import Fleet, Placement, Profiles
from jaxserve.simulator import ENGINES, simulate
from jaxserve.simulator.simulate import SERVED
from jaxserve.workload import Workload

CASES = sorted((Path(__file__).parents[1] / "golden" / "simulator").iterdir())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden(case: Path, engine: str) -> None:
    expected = json.loads((case / "expected.json").read_text())
    decisions = np.load(case / "expected.npz")
    result = simulate(
        profiles=Profiles.load(case / "profiles.json"),
        fleet=Fleet.load(case / "fleet.json"),
        placement=Placement.load(case / "placement.json"),
        workload=Workload.load(case / "workload.npz"),
        overhead_s=expected["overhead_s"],
        engine=engine,
    )
    np.testing.assert_array_equal(result.outcome == SERVED, decisions["served"])
    np.testing.assert_array_equal(result.finish_s, decisions["finish_s"])
    assert result.slo_attainment == expected["slo_attainment"]
    assert result.to_json()["served"] == expected["served"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden_by_command(case: Path, engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = json.loads((case / "expected.json").read_text())
    files = [f"--{name}={case / name}.json" for name in ("profiles", "fleet", "placement")]
    out = tmp_path / "each.npz"
    options = [f"--overhead-s={expected['overhead_s']}", f"--engine={engine}", f"--per-request={out}", "--json"]
    assert run(["simulate", *files, f"--workload={case / 'workload.npz'}", *options]) == 0
    assert json.loads(capsys.readouterr().out)["slo_attainment"] == expected["slo_attainment"]
    each, decisions = np.load(out), np.load(case / "expected.npz")
    np.testing.assert_array_equal(each["outcome"] == SERVED, decisions["served"])
    np.testing.assert_array_equal(each["finish_s"], decisions["finish_s"])


def test_there_are_cases() -> None:
    assert len(CASES) == 13
