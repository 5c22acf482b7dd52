"""`jaxserve explain`: one JSON object or tables on standard output, a drawing, one line of what is wrong."""

import dataclasses
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from jaxserve.cli.explain import short
from jaxserve.cli.main import run
from jaxserve.parallel import device_kind
from tests.cli.refusals import refused

TINY = "tests.cli.explained:tiny"
PLANNED = "tests.cli.explained:planned"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What commands keep between runs is kept away from the user's."""
    monkeypatch.setenv("JAXSERVE_CACHE", str(tmp_path_factory.mktemp("cache")))


def explained(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run(["explain", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_model_that_has_only_shapes_on_devices_that_are_not_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    drawing = tmp_path / "pipeline.svg"
    config = ["--intra-op", "2", "--inter-op", "4"]
    assert run(["explain", PLANNED, *config, "--device-kind", "NVIDIA H100", "--svg", str(drawing)]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith("bert-1.3b as (2, 4) on h100, batch 1, length 512: ")
    assert any(line.startswith("0 ") and "embeddings, layers_0 ... layers_5" in line for line in lines)
    layer = next(place for place, line in enumerate(lines) if line.strip() == "layers_0 ... layers_5")
    assert any(line.split()[:3] == ["feed_forward/up", "dot", "column"] for line in lines[layer:])
    assert printed.err.splitlines() == ["starting ...", "planning ..."]
    assert ElementTree.parse(drawing).getroot().tag.endswith("svg")


def test_json_with_a_check(capsys: pytest.CaptureFixture[str]) -> None:
    found = explained(capsys, TINY, "--intra-op=2", "--inter-op=2", "--check")
    assert found["device_kind"] == "cpu"  # what is attached
    assert found["bucket"] == {"batch": 2, "length": 16}
    assert [stage["devices"] for stage in found["stages"]] == [[0, 1], [2, 3]]
    assert [each["stage"] for each in found["check"]] == [0, 1]
    for each in found["check"]:
        assert each["agrees"], each


def test_the_comparison_is_printed_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", TINY, "--intra-op=2", "--check"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("batch 2, length 16, stage 0: as planned, each device sends")


def test_attached_devices_are_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    slow = dataclasses.replace(device_kind("cpu"), overhead_s=1.0)  # what to measure is tested by itself
    monkeypatch.setattr("jaxserve.cli.explain.calibrate", lambda devices: slow)
    assert explained(capsys, TINY, "--calibrate")["seconds"] > 10 > explained(capsys, TINY)["seconds"]


def test_a_bucket_and_a_model_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    found = explained(capsys, "tests.cli.explained:several", "--model=tiny", "--batch-size=1")
    assert (found["model"], found["bucket"]) == ("tiny", {"batch": 1, "length": 16})
    assert "check" not in found


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "Missing argument 'MODULE:ATTRIBUTE'"),
        ([TINY, "--intra-op", "0"], "intra_op is 0"),
        ([TINY, "--inter-op", "999"], "999 stages"),
        ([TINY, "--device-kind", "abacus"], "no device of kind 'abacus' is described; choose one of"),
        ([TINY, "--weight-budget-gb", "-1"], "--weight-budget-gb is -1, but must be positive"),
        ([TINY, "--weight-budget-gb", "1e-6"], "are missing; no config would do"),
        ([TINY, "--batch-size", "3"], "has no such bucket; choose --batch-size and --length among batch 1, length 16"),
        ([TINY, "--model", "other"], "there is no model 'other': choose one by --model, of tiny"),
        (["tests.cli.explained:several"], "several models are given: choose one by --model, of tiny, on_host"),
        (["tests.cli.explained:on_host"], "runs on the host"),
        (["tests.cli.explained:huge", "--device-kind", "H100"], "MB are missing; (4, 1) would do"),
        ([TINY, "--calibrate", "--device-kind", "H100"], "--device-kind names another; give one of them"),
        ([TINY, "--svg", "/no/such/x.svg"], "there is no directory /no/such"),
        ([TINY, "--svg", "/tmp"], "--svg /tmp is a directory; name a file"),
        ([TINY, "--check", "--inter-op", "16"], "there are 8; try --cpu-devices 16"),
    ],
)
def test_wrong_arguments(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["explain", *arguments], problem, capsys)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "0"),
        (1234.5, "1,234"),
        (123.4, "123"),
        (9.876, "9.88"),
        (0.1, "0.100"),
        (0.00123, "0.00123"),
        (2e-5, "2e-05"),
    ],
)
def test_short_numbers(number: float, expected: str) -> None:
    assert short(number) == expected
