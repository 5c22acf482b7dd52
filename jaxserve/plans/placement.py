"""Which groups exist, on which devices, with which models: a `jaxserve-placement/1` file."""

import dataclasses
import os
from collections.abc import Iterable

from jaxserve.plans.fields import Fields, read_json, write_json
from jaxserve.plans.profile import ParallelConfig

FORMAT = "jaxserve-placement/1"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One mesh group.

    Attributes:
        intra_op: devices per stage.
        inter_op: number of stages.
        devices: indices of its devices; stage k has the k-th run of `intra_op` of them.
        models: names of the models that it holds.
    """

    intra_op: int = 1
    inter_op: int = 1
    devices: tuple[int, ...]
    models: tuple[str, ...]

    @property
    def config(self) -> ParallelConfig:
        """The group's parallel config."""
        return ParallelConfig(self.intra_op, self.inter_op)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """The groups from `start_s` on."""

    start_s: float
    groups: tuple[Group, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The list of groups; or, where it changes over time, of segments with groups each.

    Attributes:
        groups: the groups, or those of the first segment.
        segments: what holds from when; empty where the placement never changes.
    """

    groups: tuple[Group, ...]
    segments: tuple[Segment, ...] = ()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, object]:
        """The file's content."""
        if not self.segments:
            return {"format": FORMAT, "groups": [dataclasses.asdict(group) for group in self.groups]}
        return {"format": FORMAT, "segments": [dataclasses.asdict(segment) for segment in self.segments]}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Placement":
        """Reads the file.

        Raises:
            FileFormatError: it is not a placement file; the message names the field.
        """
        fields = read_json(path, format_name=FORMAT)
        if not fields.has("segments"):
            return cls(groups=_groups(fields["groups"]))
        if fields.has("groups"):
            raise fields["segments"].wrong("stands beside groups; give one or the other")
        segments = fields["segments"].list_of(
            lambda item: Segment(start_s=item["start_s"].number(), groups=_groups(item["groups"]))
        )
        starts = [segment.start_s for segment in segments]
        if not starts or starts != sorted(set(starts)):
            raise fields["segments"].wrong("must be at least one, in ascending order of start_s")
        return cls(groups=segments[0].groups, segments=segments)


def _groups(fields: Fields) -> tuple[Group, ...]:
    used: set[int] = set()
    groups: list[Group] = []
    for item in fields.items():
        intra_op = item["intra_op"].integer(at_least=1)
        inter_op = item["inter_op"].integer(at_least=1)
        devices = item["devices"].list_of(Fields.integer)
        models = item["models"].list_of(Fields.text)
        if len(devices) != intra_op * inter_op:
            raise item["devices"].wrong(
                f"lists {len(devices)} devices, but intra_op {intra_op} x inter_op {inter_op} needs "
                f"{intra_op * inter_op}"
            )
        _refuse_repeats(item["devices"], (*used, *devices))
        _refuse_repeats(item["models"], models)
        used.update(devices)
        groups.append(Group(intra_op=intra_op, inter_op=inter_op, devices=devices, models=models))
    return tuple(groups)


def _refuse_repeats(fields: Fields, values: Iterable[int | str]) -> None:
    seen: set[int | str] = set()
    for value in values:
        if value in seen:
            raise fields.wrong(f"has {value!r} a second time; each may be used once")
        seen.add(value)
