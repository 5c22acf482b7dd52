"""Pictures of plans, by matplotlib: a placement, and attainment against what was swept.

Both can be read without colours: loads are shades of one colour with their numbers beside the names, and policies
differ in markers and line styles.
"""

import io
from pathlib import Path
from typing import Any

from jaxserve.cli.output import check_output
from jaxserve.errors import ConfigError, MissingExtra
from jaxserve.placement import PlanResult, Sweep
from jaxserve.plans import Fleet, Group, Profiles, write_bytes

SUFFIXES = (".png", ".svg")
MARKERS = "osD^vP*X"
STYLES = ("-", "--", "-.", ":")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Okabe and Ito's, which stay apart in most kinds of colour blindness."""

AXIS_LABELS = {
    "devices": "devices",
    "rate": "rate, times that of the workload",
    "cv": "CV, times that of the workload",
    "slo": "SLO, times that of the workload",
}
_LARGEST = 60  # rows of groups that are drawn with names; of more, the tiles alone are
_CHARACTER, _LINE = 0.0085, 0.012  # what a character and a line of a tile's name take of the width
_TALLEST = 4  # characters of a name that stands upright
_DARK = 0.6  # shade from which on names are white


def check_plot(path: Path | None) -> None:
    """Checks, before anything takes long, that a picture can be drawn and written.

    Raises:
        ConfigError: a suffix that is not drawn, or a file that cannot be written.
        MissingExtra: matplotlib is not installed.
    """
    if path is None:
        return
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--plot {path} has the suffix {path.suffix!r}, but pictures are {' or '.join(SUFFIXES)}")
    check_output("--plot", path, example="plan.svg")
    _matplotlib()


def draw_placement(result: PlanResult, fleet: Fleet, profiles: Profiles, path: Path) -> None:
    """Groups as rows and models as tiles: as wide as the memory that they take, as dark as the load that they are.

    Of a placement with segments, the first is drawn.
    """
    matplotlib, figure_of = _matplotlib()
    groups = result.placement.groups
    named = len(groups) <= _LARGEST
    figure = figure_of(figsize=(10, max(2.0, 1.2 + (0.4 if named else 0.06) * len(groups))), layout="constrained")
    axes = figure.add_subplot()
    shades = matplotlib.colormaps["Blues"]
    most = max((load for report in result.per_group for load in report.load.values()), default=0.0) or 1.0
    for row, (group, report) in enumerate(zip(groups, result.per_group, strict=False)):
        left = 0.0
        for name in group.models:
            width = _memory_share(name, group, fleet, profiles)
            shade = report.load[name] / most
            colour = shades(0.05 + 0.85 * shade)
            axes.barh(row, width, left=left, height=0.9, color=colour, edgecolor="black", linewidth=0.5 * named)
            if named:
                labels = f"{name}: {100 * report.load[name]:.0f}", name
                label = next((each for each in labels if width > _CHARACTER * len(each)), "")
                upright = not label and width > _LINE and len(name) <= _TALLEST
                axes.text(
                    left + width / 2,
                    row,
                    name if upright else label,
                    rotation=90 if upright else 0,
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="white" if shade > _DARK else "black",
                    parse_math=False,
                )
            left += width
    axes.set_xlim(0, 1)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlabel("weights, share of what the group's devices may hold")
    axes.set_ylabel("group, config, busy" if named else "group")
    if named:
        axes.set_yticks(range(len(groups)), [_row_label(result, row) for row in range(len(groups))], fontsize=8)
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 100 * most), shades)
    figure.colorbar(scale, ax=axes, label="load of the model, %")
    segments = f", the first of {len(result.placement.segments)} segments" if result.placement.segments else ""
    title = f"{result.policy}: SLO attainment {100 * result.slo_attainment:.1f} % on {fleet.devices} devices{segments}"
    axes.set_title(title, fontsize=10, parse_math=False)
    _write(figure, path)


def draw_sweep(found: Sweep, path: Path) -> None:
    """A line for each policy, and a dotted one for the bound."""
    _, figure_of = _matplotlib()
    figure = figure_of(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for index, policy in enumerate(dict.fromkeys(point.policy for point in found.points)):
        own = [point for point in found.points if point.policy == policy and point.slo_attainment is not None]
        axes.plot(
            [point.value for point in own],
            [100 * point.slo_attainment for point in own if point.slo_attainment is not None],
            label=policy,
            marker=MARKERS[index % len(MARKERS)],
            linestyle=STYLES[index % len(STYLES)],
            color=COLOURS[index % len(COLOURS)],
        )
    bounds = {point.value: point.bound for point in found.points if point.bound is not None}
    if bounds:
        values = [100 * bound for bound in bounds.values()]
        axes.plot(list(bounds), values, label="no placement exceeds", linestyle=(0, (1, 2)), color="0.4")
    axes.set_xlabel(AXIS_LABELS[found.axis])
    axes.set_ylabel("SLO attainment, %")
    axes.grid(visible=True, linewidth=0.3)
    axes.legend()
    _write(figure, path)


def _row_label(result: PlanResult, row: int) -> str:
    group = result.placement.groups[row]
    return f"{row}  ({group.intra_op}, {group.inter_op})  {100 * result.per_group[row].utilization:.0f} %"


def _memory_share(name: str, group: Group, fleet: Fleet, profiles: Profiles) -> float:
    """What a model takes of the memory of a group's stages, in the mean."""
    profile = next(model.profile for model in fleet.models if model.name == name)
    row = profiles.find(profile, group.config)
    if row is None or not fleet.memory_bytes:
        return 1 / len(group.models)
    return sum(row.stage_weight_bytes) / len(row.stage_weight_bytes) / fleet.memory_bytes


def _matplotlib() -> tuple[Any, Any]:
    """The package, and its class of figures, which needs no display."""
    try:
        import matplotlib
        import matplotlib.cm
        import matplotlib.colors
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("--plot needs matplotlib, which is not installed; pip install 'jaxserve[plot]'") from error
    return matplotlib, Figure


def _write(figure: Any, path: Path) -> None:
    matplotlib, _ = _matplotlib()
    data = io.BytesIO()
    kind = path.suffix[1:]
    with matplotlib.rc_context({"svg.hashsalt": "jaxserve"}):  # so that one plan is one file, byte by byte
        figure.savefig(data, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    try:
        write_bytes(path, data.getvalue())
    except OSError as error:
        raise ConfigError(f"--plot {path} cannot be written: {error}") from error
