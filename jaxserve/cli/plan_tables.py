"""Plans, sizings and sweeps as tables."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from jaxserve.cli.show import percent, table_of
from jaxserve.placement import PlanResult, Sizing, Sweep
from jaxserve.plans import Fleet

_BINDING = {
    "latency": ", as some SLOs are too short",
    "memory": ", for lack of memory",
    "capacity": ", for lack of time",
}


def plan_tables(result: PlanResult, fleet: Fleet) -> RenderableType:
    """A plan: what it attains, its groups, its models, and why some are on no group."""
    parts: list[RenderableType] = [
        *_headline(result),
        f"policy {escape(result.policy)}, {result.simulations} simulations in {result.search_s:.1f} s",
        "",
        _groups(result),
        "",
        _models(result, fleet),
    ]
    if result.unplaced:
        alike: dict[str, list[str]] = {}
        for each in result.unplaced:
            alike.setdefault(f"({each.cause}): {each.why}", []).append(each.model)
        parts += [
            "",
            "on no group, or in vain:",
            *(_indented(f"{', '.join(names)} {why}") for why, names in alike.items()),
        ]
    return Group(*parts)


def sizing_table(sizing: Sizing) -> RenderableType:
    """The numbers of devices that were tried, ascending, and the answer."""
    table = table_of([], ["devices", "SLO %", "bound %", "reached"])
    table.add_column("")
    for each in sorted(sizing.tried, key=lambda tried: tried.devices):
        attained, bound = percent(each.slo_attainment), percent(each.bound)
        table.add_row(str(each.devices), attained, bound, "yes" if each.reached else "no", escape(each.why))
    if sizing.devices is None:
        return Group(table, "")
    return Group(
        f"{counted(sizing.devices)} attain {percent(sizing.target)} %: the smallest number tried that does. Attainment "
        f"does not grow with every device, so one that was not tried may do as well.",
        "",
        table,
        "",
    )


def sweep_tables(found: Sweep) -> RenderableType:
    """Attainment in percent: a row for each value, a column for each policy and one for the bound."""
    policies = list(dict.fromkeys(point.policy for point in found.points))
    table = table_of([], [found.axis, *map(escape, policies), "bound"])
    for value in dict.fromkeys(point.value for point in found.points):
        own = {point.policy: point for point in found.points if point.value == value}
        bound = next((point.bound for point in own.values() if point.bound is not None), None)
        attained = [percent(own[policy].slo_attainment) if policy in own else "-" for policy in policies]
        table.add_row(f"{value:g}", *attained, percent(bound))
    missing = [_indented(f"{point.policy} at {point.value:g}: {point.why}") for point in found.points if point.why]
    parts: list[RenderableType] = ["SLO attainment in %", "", table]
    return Group(*parts, *(["", "no plan:", *missing] if missing else []))


def _headline(result: PlanResult) -> list[str]:
    attained, bound = result.slo_attainment, result.bound
    if bound is None:
        return [f"SLO attainment {percent(attained)} %"]
    most, moving = percent(bound.slo_attainment), "that stands still " if result.placement.segments else ""
    first = f"SLO attainment {percent(attained)} %; no placement {moving}on these devices exceeds {most} %"
    if moving:
        return [first]
    if bound.slo_attainment - attained < 5e-4:
        return [first, "nothing is left to gain"]
    second = f"at most {100 * (bound.slo_attainment - attained):.1f} points are left to gain"
    if bound.slo_attainment < 1:
        missed = (1 - bound.slo_attainment) / (1 - attained)
        second += f"; {percent(missed)} % of what is missed would be under any placement"
    return [f"{first}{_BINDING.get(bound.binding, '')}", second]


def _groups(result: PlanResult) -> Table:
    table = table_of(["group", "devices", "config", "models"], ["requests", "busy %"])
    segments = result.placement.segments
    groups = [group for segment in segments for group in segment.groups] or result.placement.groups
    for number, (group, report) in enumerate(zip(groups, result.per_group, strict=True)):
        table.add_row(
            str(number),
            ranges(group.devices),
            f"({group.intra_op}, {group.inter_op})",
            escape(", ".join(group.models)) or "-",
            str(report.requests),
            percent(report.utilization),
        )
    return table


def _models(result: PlanResult, fleet: Fleet) -> Table:
    below = {each.model: each.min_attainment for each in result.shortfalls}
    table = table_of(["model"], ["requests", "SLO %"])
    table.add_column("groups")
    if below:
        table.add_column("must reach")
    for name, report in result.per_model.items():
        row = [
            escape(name),
            str(report.requests),
            percent(report.slo_attainment) if report.requests else "-",
            ranges(report.groups) or "none",
        ]
        table.add_row(*row, *([f"{percent(below[name])} %" if name in below else ""] if below else []))
    return table


def _indented(text: str) -> Padding:
    return Padding(escape(text), (0, 0, 0, 2), expand=False)


def counted(devices: int) -> str:
    """How many devices, to read."""
    return f"{devices} {'device' if devices == 1 else 'devices'}"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, to read: `0-3, 6`."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
