"""The drawing: valid XML, true to scale, readable without colour."""

import dataclasses
from xml.etree import ElementTree

import pytest

from jaxserve.parallel.explain import ExplainedStage, Explanation
from jaxserve.parallel.svg import draw

NAMESPACE = "{http://www.w3.org/2000/svg}"


def stage(number: int, **changes: object) -> ExplainedStage:
    plain = ExplainedStage(
        devices=(2 * number, 2 * number + 1),
        layers=(f"layers_{number}",),
        flops=2e9,
        weight_bytes=1e9,
        out_bytes=3e6,
        seconds=0.01,
        sent={},
        operations=(),
        light_seconds=0.0,
    )
    return dataclasses.replace(plain, **changes)


def explanation(*stages: ExplainedStage, model: str = "bert") -> Explanation:
    return Explanation(
        model=model,
        device_kind="h100",
        intra_op=2,
        inter_op=len(stages),
        mesh={"x": 2},
        bucket={"batch": 4},
        stages=stages,
        trade_offs=(),
        without_rule={},
        status="optimal",
    )


def parsed(drawn: str) -> ElementTree.Element:
    return ElementTree.fromstring(drawn)


def texts(root: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in root.iter(f"{NAMESPACE}text")]


def boxes(root: ElementTree.Element) -> list[tuple[float, float]]:
    """Height of each stage's box, and width of the bar in it."""
    groups = [group.findall(f"{NAMESPACE}rect") for group in root.iter(f"{NAMESPACE}g")]
    return [(float(box.attrib["height"]), float(bar.attrib["width"])) for box, bar in groups]


def test_heights_are_latencies_and_bars_are_weights() -> None:
    root = parsed(draw(explanation(stage(0), stage(1, seconds=0.005, weight_bytes=5e8))))
    (high, wide), (low, narrow) = boxes(root)
    assert low == pytest.approx(high / 2, abs=1)
    assert narrow == pytest.approx(wide / 2, abs=1)


def test_everything_is_written_too() -> None:
    written = texts(parsed(draw(explanation(stage(0), stage(1), stage(2)))))
    for expected in ("Stage 0 on devices 0, 1", "10 ms, 0 ms of it sending", "1.00 GB of weights each", "layers_2"):
        assert expected in written
    assert written.count("3 MB") == 2  # on the arrows
    assert written[0] == "bert: 3 stages of 2 devices of kind h100"
    assert "batch 4" in written[1]


def test_it_is_a_file_of_its_own_on_any_background() -> None:
    drawn = draw(explanation(stage(0)))
    assert all(word not in drawn for word in ("<script", "href=", "@import", "<image"))
    root = parsed(drawn)
    panel = root.find(f"{NAMESPACE}rect")
    assert panel is not None
    assert (panel.attrib["width"], panel.attrib["height"]) == (root.attrib["width"], root.attrib["height"])
    assert panel.attrib["fill"] == "#ffffff"


@pytest.mark.parametrize(
    "name", ["a & b", "<script>alert(1)</script>", "\"quotes' \x00 \x1b[31m", "длинное имя " * 9, "]]>"]
)
def test_any_name_leaves_it_valid(name: str) -> None:
    root = parsed(draw(explanation(stage(0, layers=(name, *map(str, range(99)))), model=name)))
    assert all("\x00" not in text for text in texts(root))
    (height,) = {float(root.attrib["height"])}
    assert max(float(text.attrib["y"]) for text in root.iter(f"{NAMESPACE}text")) < height


def test_stages_that_take_no_time() -> None:
    root = parsed(draw(explanation(stage(0, seconds=0.0, weight_bytes=0.0))))
    ((height, width),) = boxes(root)
    assert height > 0
    assert width > 0
