"""The reference simulator against AlpaServe's own: every decision and every finish time, to the last bit."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxserve.plans import Fleet, Placement, Profiles
from jaxserve.simulator import simulate
from jaxserve.simulator.simulate import SERVED
from jaxserve.workload import Workload

CASES = sorted((Path(__file__).parents[1] / "golden" / "simulator").iterdir())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden(case: Path) -> None:
    expected = json.loads((case / "expected.json").read_text())
    decisions = np.load(case / "expected.npz")
    result = simulate(
        profiles=Profiles.load(case / "profiles.json"),
        fleet=Fleet.load(case / "fleet.json"),
        placement=Placement.load(case / "placement.json"),
        workload=Workload.load(case / "workload.npz"),
        overhead_s=expected["overhead_s"],
    )
    np.testing.assert_array_equal(result.outcome == SERVED, decisions["served"])
    np.testing.assert_array_equal(result.finish_s, decisions["finish_s"])
    assert result.slo_attainment == expected["slo_attainment"]
    assert result.to_json()["served"] == expected["served"]


def test_there_are_cases() -> None:
    assert len(CASES) == 13
