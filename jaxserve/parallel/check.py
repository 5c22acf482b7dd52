"""Whether a compiled stage sends what it was planned to: the plan's collectives beside those in its HLO.

XLA's partitioner is free to do otherwise than planned, and often does the same in other words: an all-gather as a
permutation of two devices, two small all-gathers as one, where the backend has no reduce-scatter an all-reduce and a
slice. So what is compared is not the list but the *wire bytes*: what a device sends in a ring, of an array of b bytes
among n devices

    all_reduce                                      2 (n - 1) / n b
    all_gather, reduce_scatter, all_to_all            (n - 1) / n b
    collective_permute, collective_broadcast                      b

with b as in `layout.Transfer` and `hlo.Collective`: the result of an all-gather, the operand of the others.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping

from jaxserve.parallel.devices import COLLECTIVES, DEVICES
from jaxserve.parallel.hlo import collectives
from jaxserve.parallel.plan import StagePlan

TOLERANCE = 0.05
"""Of the larger of the two byte counts: what they may differ by and still agree."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """The collectives of one kind in one program.

    Attributes:
        count: how many.
        nbytes: of their arrays on one device, as `layout.Transfer` counts them.
        wire_bytes: what a device sends for them.
    """

    count: int
    nbytes: float
    wire_bytes: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One stage at one bucket, as planned and as compiled.

    Attributes:
        bucket: sizes of the bucket, to read.
        stage: number of the stage.
        planned: by kind.
        compiled: by kind; what runs in a loop counts once.
        planned_bytes: on the wire, from one device, with what the backend makes of collectives that it lacks.
        compiled_bytes: on the wire, from one device.
        missing: planned kinds that the backend lacks.
        in_loops: how many of the compiled ones run in a loop, maybe many times.
        tolerance: see `TOLERANCE`.
    """

    bucket: str
    stage: int
    planned: Mapping[str, Traffic]
    compiled: Mapping[str, Traffic]
    planned_bytes: float
    compiled_bytes: float
    missing: tuple[str, ...]
    in_loops: int
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether as many bytes are sent as planned, but for the tolerance; no fewer either."""
        larger = max(self.planned_bytes, self.compiled_bytes)
        return abs(self.planned_bytes - self.compiled_bytes) <= self.tolerance * larger

    def lines(self) -> tuple[str, ...]:
        """The verdict, then a line for each kind that is not the same on both sides."""
        planned, compiled = _bytes(self.planned_bytes), _bytes(self.compiled_bytes)
        where = f"{self.bucket}, stage {self.stage}"
        if self.agrees:
            lines = [f"{where}: as planned, each device sends {compiled}"]
        else:
            times = f", {self.compiled_bytes / self.planned_bytes:.2f} times as much" if self.planned_bytes else ""
            lines = [f"{where}: DIFFERS, each device was to send {planned} and sends {compiled}{times}"]
        nothing = Traffic(count=0, nbytes=0.0, wire_bytes=0.0)
        for kind in dict.fromkeys((*self.planned, *self.compiled)):
            ours, theirs = self.planned.get(kind, nothing), self.compiled.get(kind, nothing)
            if ours != theirs:
                instead = " (this backend has all_reduce and slice instead)" if kind in self.missing else ""
                lines.append(
                    f"  {kind}: planned {ours.count} ({_bytes(ours.nbytes)}), "
                    f"compiled {theirs.count} ({_bytes(theirs.nbytes)}){instead}"
                )
        if self.in_loops:
            lines.append(f"  {self.in_loops} of the compiled ones run in a loop and are counted once")
        return tuple(lines)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_json(self) -> dict[str, object]:
        """For `jaxserve explain --check --json`."""
        return {"agrees": self.agrees, **dataclasses.asdict(self)}


def wire_bytes(kind: str, nbytes: float, devices: int) -> float:
    """What one device sends for a collective in a ring; see the head of this file."""
    if devices <= 1:
        return 0.0
    if kind in ("collective_permute", "collective_broadcast"):
        return nbytes
    rounds = 2 if kind == "all_reduce" else 1
    return rounds * (devices - 1) / devices * nbytes


def compare(
    plan: StagePlan, text: str, *, platform: str, bucket: str = "", stage: int = 0, tolerance: float = TOLERANCE
) -> Comparison:
    """A planned stage beside what became of it.

    Args:
        plan: the stage.
        text: its optimised HLO: `compiled.as_text()`.
        platform: for which it was compiled, as `jax.Device.platform` has it.
        bucket: to say which it is.
        stage: likewise.
        tolerance: see `TOLERANCE`.
    """
    known = DEVICES.get(platform)
    lacking = {"reduce_scatter"} - (COLLECTIVES if known is None else known.collectives)
    transfers = list(plan.transfers.elements())
    found = collectives(text)
    compiled = _by_kind((each.kind, each.nbytes, each.group_size) for each in found)
    return Comparison(
        bucket=bucket,
        stage=stage,
        planned=_by_kind((each.kind, each.nbytes, each.devices) for each in transfers),
        compiled=compiled,
        planned_bytes=math.fsum(
            wire_bytes("all_reduce" if each.kind in lacking else each.kind, each.nbytes, each.devices)
            for each in transfers
        ),
        compiled_bytes=math.fsum(each.wire_bytes for each in compiled.values()),
        missing=tuple(sorted(lacking & {each.kind for each in transfers})),
        in_loops=sum(each.in_loop for each in found),
        tolerance=tolerance,
    )


def _by_kind(moves: Iterable[tuple[str, float, int]]) -> dict[str, Traffic]:
    grouped: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    for kind, nbytes, devices in moves:
        if devices > 1:
            grouped[kind].append((nbytes, wire_bytes(kind, nbytes, devices)))
    return {
        kind: Traffic(
            count=len(each), nbytes=float(sum(size for size, _ in each)), wire_bytes=math.fsum(sent for _, sent in each)
        )
        for kind, each in sorted(grouped.items())
    }


def _bytes(count: float) -> str:
    """To read: three digits and a unit."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.2f} GB"
