"""Profiles, fleets and placements: round trips, and errors that name the field."""

import copy
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from jaxserve.errors import FileFormatError
from jaxserve.plans import Fleet, Group, ParallelConfig, Placement, Profiles, write_text

ROW = {
    "intra_op": 1,
    "inter_op": 2,
    "batch_size": 1,
    "stage_latency_s": [0.076, 0.077],
    "stage_weight_bytes": [1.3e9, 1.3e9],
    "stage_activation_bytes": [1e8, 1e8],
    "source": "measured",
}
PROFILES = {
    "format": "jaxserve-profiles/1",
    "device": {"kind": "NVIDIA V100-SXM2-16GB", "memory_bytes": 17179869184},
    "models": {"bert-1.3b": [ROW, ROW | {"length": 512, "stage_latency_p99_s": [0.08, 0.081]}]},
}
FLEET = {
    "format": "jaxserve-fleet/1",
    "cluster": {"devices": 8, "devices_per_host": 8, "memory_bytes": 13958643712},
    "models": [{"name": "m0", "profile": "bert-1.3b", "slo_s": 0.755}],
}
GROUPS = [{"intra_op": 1, "inter_op": 2, "devices": [0, 1], "models": ["m0", "m3"]}]
PLACEMENT = {"format": "jaxserve-placement/1", "groups": GROUPS}
SEGMENTS = {
    "format": "jaxserve-placement/1",
    "segments": [{"start_s": 0.0, "groups": GROUPS}, {"start_s": 30.5, "groups": []}],
}
FLOOR = FLEET | {"models": [{"name": "m0", "profile": "bert-1.3b", "slo_s": 0.755, "min_attainment": 0.5}]}
KINDS: list[tuple[type[Any], dict[str, Any]]] = [
    (Profiles, PROFILES),
    (Fleet, FLEET),
    (Fleet, FLOOR),
    (Placement, PLACEMENT),
    (Placement, SEGMENTS),
]


@pytest.mark.parametrize(("kind", "content"), KINDS)
def test_round_trip(tmp_path: Path, kind: type[Any], content: dict[str, Any]) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    value = kind.load(path)
    value.save(path)
    assert kind.load(path) == value
    assert json.loads(path.read_text()) == content
    assert os.listdir(tmp_path) == ["file.json"]


@pytest.mark.parametrize(
    ("kind", "content", "place", "value", "problem"),
    [
        (Profiles, PROFILES, ["format"], "jaxserve-profiles/2", "format is 'jaxserve-profiles/2'"),
        (Profiles, PROFILES, ["format"], None, "format is missing"),
        (Profiles, PROFILES, ["device", "kind"], None, "device.kind is missing"),
        (Profiles, PROFILES, ["models", "bert-1.3b", 0, "stage_latency_s", 1], -1, r"\[0\].stage_latency_s\[1\] is -1"),
        (Profiles, PROFILES, ["models", "bert-1.3b", 0, "stage_latency_s"], [1], r"stage_latency_s has 1 numbers"),
        (Profiles, PROFILES, ["models", "bert-1.3b", 0, "stage_latency_s", 0], "x", 'is "x", but must be a number'),
        (Profiles, PROFILES, ["models", "bert-1.3b", 1, "source"], "guessed", r"\[1\].source is 'guessed'"),
        (Profiles, PROFILES, ["models", "bert-1.3b", 0, "intra_op"], 0, "intra_op is 0, but must be at least 1"),
        (Profiles, PROFILES, ["models", "bert-1.3b", 0, "batch_size"], 1.5, "batch_size is 1.5.*whole number"),
        (Profiles, PROFILES, ["models", "bert-1.3b", 0, "batch_size"], True, "batch_size is true"),
        (Profiles, PROFILES, ["models"], [], "models is .*an object"),
        (Fleet, FLEET, ["models", 0, "slo_s"], 0, r"models\[0\].slo_s is 0, but must be greater than 0"),
        (Fleet, FLEET, ["models", 0, "slo_s"], float("nan"), r"models\[0\].slo_s is nan"),
        (Fleet, FLEET, ["models", 0, "min_attainment"], 90, r"models\[0\].min_attainment is 90, but must be at most 1"),
        (Fleet, FLEET, ["models", 0, "min_attainment"], -0.1, r"models\[0\].min_attainment is -0.1"),
        (
            Fleet,
            FLEET,
            ["models", 0, "min_attainment"],
            "x",
            r'models\[0\].min_attainment is "x", but must be a number',
        ),
        (Fleet, FLEET, ["models"], FLEET["models"] * 2, r"models\[1\].name is 'm0', which an earlier"),  # type: ignore[operator]
        (Fleet, FLEET, ["cluster", "devices"], -8, "cluster.devices is -8"),
        (Placement, PLACEMENT, ["groups", 0, "devices"], [0], r"groups\[0\].devices lists 1 devices"),
        (Placement, PLACEMENT, ["groups", 0, "devices"], [0, 0], r"groups\[0\].devices has 0 a second time"),
        (Placement, PLACEMENT, ["groups"], GROUPS * 2, r"groups\[1\].devices has 0 a second time"),
        (Placement, PLACEMENT, ["groups", 0, "models"], ["m0", "m0"], r"groups\[0\].models has 'm0' a second time"),
        (Placement, PLACEMENT, ["groups", 0, "models"], "m0", r"groups\[0\].models is \"m0\", but must be an array"),
        (Placement, PLACEMENT, ["segments"], [], "segments stands beside groups"),
        (Placement, SEGMENTS, ["segments", 1, "start_s"], 0.0, "segments must be at least one, in ascending order"),
        (Placement, SEGMENTS, ["segments"], [], "segments must be at least one"),
    ],
)
def test_errors_name_the_field(
    tmp_path: Path, kind: type[Any], content: dict[str, Any], place: list[Any], value: Any, problem: str
) -> None:
    changed: Any = copy.deepcopy(content)
    *parents, last = place
    node = changed
    for parent in parents:
        node = node[parent]
    if value is None:
        del node[last]
    else:
        node[last] = value
    path = tmp_path / "file.json"
    path.write_text(json.dumps(changed))
    with pytest.raises(FileFormatError, match=problem):
        kind.load(path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("kind", [Profiles, Fleet, Placement])
def test_no_json_object(tmp_path: Path, kind: type[Any], content: bytes) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"file\.json: "):
        kind.load(path)


def test_a_name_that_stands_twice_in_an_object(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(PROFILES).replace('"models": {', '"models": {"bert-1.3b": [], '))
    with pytest.raises(FileFormatError, match=r"file\.json: an object has 'bert-1\.3b' twice"):
        Profiles.load(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"none\.json: cannot be read"):
        Fleet.load(tmp_path / "none.json")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_written_file_can_be_read_by_others(tmp_path: Path) -> None:
    write_text(tmp_path / "written", "")
    (tmp_path / "made").touch()
    assert stat.S_IMODE((tmp_path / "written").stat().st_mode) == stat.S_IMODE((tmp_path / "made").stat().st_mode)


@pytest.mark.parametrize("wrong", [0, -1, 1.0, True, "2"])
def test_parallel_config_refuses(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"inter_op is .*whole number"):
        ParallelConfig(1, wrong)


def test_a_config_knows_its_devices() -> None:
    assert ParallelConfig(intra_op=2, inter_op=3).devices == 6
    assert Group(intra_op=2, inter_op=1, devices=(0, 1), models=()).config == ParallelConfig(2, 1)
