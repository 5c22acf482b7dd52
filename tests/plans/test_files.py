"""Profiles, fleets and placements: round trips, and errors that name the field."""

import copy
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from jaxserve.errors import ConfigError, FileFormatError, PlacementError
from jaxserve.plans import (
    Fleet,
    FleetModel,
    Group,
    ParallelConfig,
    Placement,
    Profile,
    Profiles,
    Segment,
    write_text,
)

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
        (Fleet, FLEET, ["models", 0, "slo_s"], float("nan"), r"models\[0\].slo_s is NaN"),
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
        (Placement, SEGMENTS, ["segments", 1, "start_s"], 0.0, r"file\.json: segments must be in ascending order"),
        (
            Placement,
            SEGMENTS,
            ["segments", 1, "groups"],
            GROUPS * 2,
            r"file\.json: segments\[1\].groups\[1\].devices has 0 a second time",
        ),
        (
            Profiles,
            PROFILES,
            ["models", "bert-1.3b"],
            [ROW, ROW],
            r"file\.json: models.bert-1.3b\[1\] has the intra_op, inter_op, batch_size and length of an earlier row",
        ),
        (Profiles, PROFILES, ["models", "bert-1.3b", 0, "intra_op"], 2**30, "intra_op is 1073741824, but .* at most"),
        (Profiles, PROFILES, ["models", "bert-1.3b", 0, "batch_size"], 2**31, "batch_size is 2147483648, but .* most"),
        (Fleet, FLEET, ["cluster", "devices"], 10**20, "cluster.devices is 1.*0, but must be at most 1000000"),
        (Fleet, FLEET, ["cluster", "devices"], 1e308, r"cluster.devices is 1e\+308, but must be at most 1000000"),
        (Fleet, FLEET, ["models", 0, "name"], "\ud800", r'models\[0\].name is "\\ud800", but must be text'),
        (Fleet, FLEET, ["models", 0, "profile"], "a\0", r'models\[0\].profile is "a\\u0000", but must be text'),
        (Profiles, PROFILES, ["models"], {"\udfff": []}, r'models has the name "\\udfff", but must be text'),
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


@pytest.mark.parametrize(
    ("kind", "content", "place"),
    [
        (Profiles, PROFILES, ["models", "bert-1.3b", 0, "intra_op"]),
        (Profiles, PROFILES, ["models", "bert-1.3b", 0, "inter_op"]),
        (Profiles, PROFILES, ["models", "bert-1.3b", 0, "batch_size"]),
        (Profiles, PROFILES, ["models", "bert-1.3b", 0, "stage_latency_s", 1]),
        (Profiles, PROFILES, ["device", "memory_bytes"]),
        (Fleet, FLEET, ["cluster", "devices"]),
        (Fleet, FLEET, ["cluster", "devices_per_host"]),
        (Fleet, FLEET, ["cluster", "memory_bytes"]),
        (Fleet, FLEET, ["models", 0, "slo_s"]),
        (Placement, PLACEMENT, ["groups", 0, "intra_op"]),
        (Placement, PLACEMENT, ["groups", 0, "devices", 1]),
        (Placement, SEGMENTS, ["segments", 1, "start_s"]),
    ],
)
@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "1e999", "1" + "0" * 400, "-1" + "0" * 400, "1" * 5000])
def test_numbers_beyond_floats(
    tmp_path: Path, kind: type[Any], content: dict[str, Any], place: list[Any], number: str
) -> None:
    changed: Any = copy.deepcopy(content)
    *parents, last = place
    node = changed
    for parent in parents:
        node = node[parent]
    node[last] = "HERE"
    path = tmp_path / "file.json"
    path.write_text(json.dumps(changed).replace('"HERE"', number))
    shown = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).lstrip(".")
    with pytest.raises(FileFormatError, match=rf"file\.json: {re.escape(shown)} is -?Infinity, but must be") as raised:
        kind.load(path)
    assert "\n" not in str(raised.value)


def test_values_refuse_themselves() -> None:
    one = Group(devices=(0,), models=("a",))
    for groups, problem in (
        ((one, one), r"groups\[1\].devices has 0 a second time"),
        (
            (Group(intra_op=2, devices=(0,), models=()),),
            r"groups\[0\].devices lists 1 .* intra_op 2 x inter_op 1 needs 2",
        ),
        ((Group(devices=(-1,), models=()),), r"groups\[0\].devices\[0\] is -1, but must be a whole number"),
        ((Group(intra_op=0, devices=(), models=()),), r"groups\[0\].intra_op is 0, but must be a whole number"),
        ((Group(devices=(0,), models=("a", "a")),), r"groups\[0\].models has 'a' a second time"),
    ):
        with pytest.raises(PlacementError, match=problem):
            Placement(groups=groups)
        with pytest.raises(PlacementError, match=rf"segments\[0\].{problem}"):
            Placement(groups=(), segments=(Segment(start_s=0.0, groups=groups),))
    for starts in ((1.0, 0.0), (0.0, 0.0), (-1.0,), (float("nan"),)):
        with pytest.raises(PlacementError, match="segments must be in ascending order"):
            Placement(groups=(), segments=tuple(Segment(start_s=start_s, groups=()) for start_s in starts))
    model = FleetModel(name="a", profile="p", slo_s=1.0)
    with pytest.raises(ConfigError, match=r"models\[1\].name is 'a', which an earlier model has"):
        Fleet(devices=1, devices_per_host=1, memory_bytes=1.0, models=(model, model))
    row = Profile(
        intra_op=1,
        inter_op=1,
        batch_size=1,
        stage_latency_s=(1.0,),
        stage_weight_bytes=(1.0,),
        stage_activation_bytes=(1.0,),
    )
    with pytest.raises(ConfigError, match=r"models.p\[1\] has the intra_op.* of an earlier row; take one of them out"):
        Profiles(device_kind="test", memory_bytes=1.0, models={"p": (row, row)})


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
    with pytest.raises(FileFormatError, match=r"cannot be read .*null byte"):
        Fleet.load("a\0.json")


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
