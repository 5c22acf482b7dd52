"""Which groups exist, on which devices, with which models: a `jaxserve-placement/1` file."""

import dataclasses
import math
import os
from collections.abc import Sequence

from jaxserve.errors import PlacementError
from jaxserve.plans.fields import Fields, in_file, read_json, write_json
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
        spares: names of models that it loads on demand, into the memory that is left.
    """

    intra_op: int = 1
    inter_op: int = 1
    devices: tuple[int, ...]
    models: tuple[str, ...]
    spares: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """This group as it stands in a placement file."""
        fields = dataclasses.asdict(self)
        if not self.spares:
            del fields["spares"]
        return fields

    @property
    def config(self) -> ParallelConfig:
        """The group's parallel config."""
        return ParallelConfig(self.intra_op, self.inter_op)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """The groups from `start_s` on."""

    start_s: float
    groups: tuple[Group, ...]

    def to_json(self) -> dict[str, object]:
        """This segment as it stands in a placement file."""
        return {"start_s": self.start_s, "groups": [group.to_json() for group in self.groups]}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The list of groups; or, where it changes over time, of segments with groups each.

    Attributes:
        groups: the groups, or those of the first segment.
        segments: what holds from when; empty where the placement never changes.

    Raises:
        PlacementError: a group has not as many devices as its config needs, or no device numbers; a device or a model
            is used twice; or the segments are not in order. The message names the field as in a file.
    """

    groups: tuple[Group, ...]
    segments: tuple[Segment, ...] = ()

    def __post_init__(self) -> None:
        starts = [segment.start_s for segment in self.segments]
        if not all(0 <= start_s < math.inf for start_s in starts) or starts != sorted(set(starts)):
            raise PlacementError("segments must be in ascending order of start_s, which is finite and not negative")
        for index, segment in enumerate(self.segments):
            _check(segment.groups, f"segments[{index}].groups")
        _check(self.groups, "groups")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, object]:
        """The file's content."""
        if not self.segments:
            return {"format": FORMAT, "groups": [group.to_json() for group in self.groups]}
        return {"format": FORMAT, "segments": [segment.to_json() for segment in self.segments]}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Placement":
        """Reads the file.

        Raises:
            FileFormatError: it is not a placement file; the message names the field.
        """
        with in_file(path):
            return cls.read(read_json(path, format_name=FORMAT))

    @classmethod
    def read(cls, fields: Fields) -> "Placement":
        """The placement that stands in a file.

        Raises:
            FileFormatError: it is none; the message names the field.
            PlacementError: its groups do not go together.
        """
        if not fields.has("segments"):
            return cls(groups=fields["groups"].list_of(_group))
        if fields.has("groups"):
            raise fields["segments"].wrong("stands beside groups; give one or the other")
        segments = fields["segments"].list_of(
            lambda item: Segment(start_s=item["start_s"].number(), groups=item["groups"].list_of(_group))
        )
        if not segments:
            raise fields["segments"].wrong("must be at least one")
        return cls(groups=segments[0].groups, segments=segments)


def _group(fields: Fields) -> Group:
    return Group(
        intra_op=fields["intra_op"].integer(at_least=1),
        inter_op=fields["inter_op"].integer(at_least=1),
        devices=fields["devices"].list_of(Fields.integer),
        models=fields["models"].list_of(Fields.text),
        spares=fields["spares"].list_of(Fields.text) if fields.has("spares") else (),
    )


def _check(groups: Sequence[Group], path: str) -> None:
    used: set[object] = set()
    for index, group in enumerate(groups):
        place = f"{path}[{index}]"
        try:
            needed = group.config.devices
        except ValueError as error:
            raise PlacementError(f"{place}.{error}") from error
        if len(group.devices) != needed:
            raise PlacementError(
                f"{place}.devices lists {len(group.devices)} devices, but intra_op {group.intra_op} x inter_op "
                f"{group.inter_op} needs {needed}"
            )
        for at, device in enumerate(group.devices):
            if not _is_index(device):
                raise PlacementError(f"{place}.devices[{at}] is {device!r}, but must be a whole number of at least 0")
        _refuse_repeats(f"{place}.devices", group.devices, used)
        held: set[object] = set()
        _refuse_repeats(f"{place}.models", group.models, held)
        _refuse_repeats(f"{place}.spares", group.spares, held)


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _refuse_repeats(place: str, values: Sequence[object], seen: set[object]) -> None:
    for value in values:
        if value in seen:
            raise PlacementError(f"{place} has {value!r} a second time; each may be used once")
        seen.add(value)
