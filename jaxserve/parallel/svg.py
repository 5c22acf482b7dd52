"""A pipeline as a drawing: stages from left to right, as high as they take long.

One file without scripts, fonts or links, on a panel of its own, so that it reads the same on light and dark pages. What
colours and heights say is also written.
"""

import re
from xml.sax.saxutils import escape, quoteattr

from jaxserve.parallel.explain import ExplainedStage, Explanation

_BOX_WIDTH = 190
_GAP = 110
_MARGIN = 24
_TOP = 84  # where the highest box begins
_HIGHEST = 180
_LOWEST = 30  # what the bar of weights needs
_LINE = 17
_LONGEST = 28  # characters that a line below a box holds
_MOST_LINES = 10  # below a box; all layers are in the title of the box
_BAR = 12

_INK, _FAINT, _PANEL = "#1b1f24", "#57606a", "#ffffff"
_BOX, _EDGE, _WEIGHT, _WEIGHT_EDGE = "#d6e4f5", "#3b6ea8", "#f0b429", "#8a5a00"

# What XML 1.0 does not allow, and would make the file unreadable.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def draw(explanation: Explanation) -> str:
    """The SVG of a plan."""
    stages = explanation.stages
    below = [_below(number, stage) for number, stage in enumerate(stages)]
    width = 2 * _MARGIN + len(stages) * _BOX_WIDTH + (len(stages) - 1) * _GAP
    width = max(width, 2 * _MARGIN + 10 * len(_title(explanation)), 2 * _MARGIN + 8 * len(_summary(explanation)))
    height = _TOP + _HIGHEST + _LINE * (max(map(len, below)) + 1) + _MARGIN + _LINE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img" aria-label={quoteattr(_clean(_title(explanation)))}'
        ' font-family="system-ui, sans-serif" font-size="13">',
        f"<title>{_text_of(_title(explanation))}</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{_INK}"/></marker></defs>',
        f'<rect width="{width}" height="{height}" rx="8" fill="{_PANEL}" stroke="{_FAINT}"/>',
        _text(_MARGIN, 30, _title(explanation), weight=600, size=16),
        _text(_MARGIN, 52, _summary(explanation), fill=_FAINT),
    ]
    heaviest = max((stage.weight_bytes for stage in stages), default=0) or 1.0
    slowest = explanation.slowest_s or 1.0
    bottom = _TOP + _HIGHEST
    for number, stage in enumerate(stages):
        left = _MARGIN + number * (_BOX_WIDTH + _GAP)
        tall = max(_LOWEST, round(_HIGHEST * stage.seconds / slowest))
        parts += _box(left, bottom, tall, stage, stage.weight_bytes / heaviest)
        parts += [_text(left, bottom + _LINE * (line + 1), text) for line, text in enumerate(below[number])]
        if number + 1 < len(stages):
            parts += _arrow(left + _BOX_WIDTH, bottom - _LOWEST / 2, stage.out_bytes)
    legend = "Height of a box: latency of the stage. Bar in it: weights on each of its devices."
    parts += [_text(_MARGIN, height - _MARGIN / 2, legend, fill=_FAINT, size=12), "</svg>"]
    return "\n".join(parts) + "\n"


def _title(explanation: Explanation) -> str:
    stages = "1 stage" if explanation.inter_op == 1 else f"{explanation.inter_op} stages"
    devices = "1 device" if explanation.intra_op == 1 else f"{explanation.intra_op} devices"
    return f"{_cut(explanation.model, 60)}: {stages} of {devices} of kind {explanation.device_kind}"


def _summary(explanation: Explanation) -> str:
    bucket = ", ".join(f"{name} {size}" for name, size in explanation.bucket.items())
    mesh = ", ".join(f"{axis} = {size}" for axis, size in explanation.mesh.items())
    return (
        f"{bucket}: {_milliseconds(explanation.seconds)} in all, "
        f"slowest stage {_milliseconds(explanation.slowest_s)}; mesh of a stage {mesh}"
    )


def _below(number: int, stage: ExplainedStage) -> list[str]:
    """The lines under the box of a stage."""
    devices = [str(device) for device in stage.devices]
    named = ", ".join(devices) if len(devices) < 5 else f"{devices[0]} ... {devices[-1]}"
    lines = [
        f"Stage {number} on device{'s' if len(devices) > 1 else ''} {named}",
        f"{_milliseconds(stage.seconds)}, {_milliseconds(stage.sending_seconds)} of it sending",
        f"{stage.flops / 1e9:,.2f} GFLOPs",
        f"{_megabytes(stage.weight_bytes)} of weights each",
    ]
    for layer in stage.layers:
        joined = f"{lines[-1]}, {layer}"
        if len(lines) > 4 and len(joined) <= _LONGEST:
            lines[-1] = joined
        else:
            lines.append(_cut(layer, _LONGEST))
    return lines if len(lines) <= _MOST_LINES else [*lines[: _MOST_LINES - 1], "…"]


def _box(left: int, bottom: int, tall: int, stage: ExplainedStage, share: float) -> list[str]:
    bar = max(1, round((_BOX_WIDTH - 20) * share))
    label = ", ".join(stage.layers)
    return [
        f"<g><title>{_text_of(label)}</title>",
        f'<rect x="{left}" y="{bottom - tall}" width="{_BOX_WIDTH}" height="{tall}" rx="3" fill="{_BOX}"'
        f' stroke="{_EDGE}" stroke-width="1.5"/>',
        f'<rect x="{left + 10}" y="{bottom - _BAR - 8}" width="{bar}" height="{_BAR}" fill="{_WEIGHT}"'
        f' stroke="{_WEIGHT_EDGE}"/>',
        "</g>",
    ]


def _arrow(start: float, y: float, nbytes: float) -> list[str]:
    return [
        f'<line x1="{start + 6}" y1="{y}" x2="{start + _GAP - 6}" y2="{y}" stroke="{_INK}" stroke-width="1.5"'
        ' marker-end="url(#head)"/>',
        _text(start + _GAP / 2, y - 8, _megabytes(nbytes), anchor="middle"),
    ]


def _text(
    x: float, y: float, text: str, *, fill: str = _INK, weight: int = 400, size: int = 13, anchor: str = "start"
) -> str:
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{fill}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{_text_of(text)}</text>'


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _text_of(text: str) -> str:
    return escape(_clean(text))


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _megabytes(nbytes: float) -> str:
    return f"{nbytes / 1e6:,.3g} MB" if nbytes < 1e9 else f"{nbytes / 1e9:,.2f} GB"
