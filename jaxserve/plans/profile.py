"""What a model costs on a shape of group: parallel configs, profiles and their file."""

import dataclasses
import os
from collections.abc import Mapping

from jaxserve.errors import ConfigError
from jaxserve.plans.fields import MOST, Fields, in_file, read_json, write_json

FORMAT = "jaxserve-profiles/1"
SOURCES = ("measured", "estimated", "published")


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class ParallelConfig:
    """How a model is spread over a group.

    Attributes:
        intra_op: devices per stage.
        inter_op: number of stages.
    """

    intra_op: int = 1
    inter_op: int = 1

    def __post_init__(self) -> None:
        for name in ("intra_op", "inter_op"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}, but must be a whole number of at least 1")

    @property
    def devices(self) -> int:
        """Devices of a group of this shape."""
        return self.intra_op * self.inter_op


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One model, under one parallel config, on one bucket.

    Attributes:
        intra_op: devices per stage.
        inter_op: number of stages.
        batch_size: the bucket's batch size.
        length: the bucket's padded length, for a model with a variable length.
        stage_latency_s: median seconds of each stage.
        stage_latency_p99_s: 99th percentile of each stage, where it was measured.
        stage_weight_bytes: weights on each device of each stage.
        stage_activation_bytes: temporary memory on each device of each stage.
        source: `measured`, `estimated` or `published`.
    """

    intra_op: int
    inter_op: int
    batch_size: int
    length: int | None = None
    stage_latency_s: tuple[float, ...]
    stage_latency_p99_s: tuple[float, ...] | None = None
    stage_weight_bytes: tuple[float, ...]
    stage_activation_bytes: tuple[float, ...]
    source: str = "measured"

    @property
    def config(self) -> ParallelConfig:
        """The parallel config of this row."""
        return ParallelConfig(self.intra_op, self.inter_op)

    @property
    def latency_s(self) -> float:
        """Seconds through all stages of an idle group."""
        return sum(self.stage_latency_s)

    def to_json(self) -> dict[str, object]:
        """This row as it stands in a profiles file."""
        row = dataclasses.asdict(self)
        return {name: value for name, value in row.items() if value is not None}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Profile":
        """The row that stands in a profiles file."""
        inter_op = fields["inter_op"].integer(at_least=1)

        def per_stage(name: str) -> tuple[float, ...]:
            values = fields[name].list_of(Fields.number)
            if len(values) != inter_op:
                raise fields[name].wrong(f"has {len(values)} numbers, but inter_op is {inter_op}: one for each stage")
            return values

        source = fields["source"].text()
        if source not in SOURCES:
            raise fields["source"].wrong(f"is {source!r}, but must be one of {', '.join(SOURCES)}")
        return cls(
            intra_op=fields["intra_op"].integer(at_least=1, at_most=MOST // inter_op),
            inter_op=inter_op,
            batch_size=fields["batch_size"].integer(at_least=1),
            length=fields["length"].integer(at_least=1) if fields.has("length") else None,
            stage_latency_s=per_stage("stage_latency_s"),
            stage_latency_p99_s=per_stage("stage_latency_p99_s") if fields.has("stage_latency_p99_s") else None,
            stage_weight_bytes=per_stage("stage_weight_bytes"),
            stage_activation_bytes=per_stage("stage_activation_bytes"),
            source=source,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Profiles:
    """The profiles of many models on one kind of device: a `jaxserve-profiles/1` file.

    Attributes:
        device_kind: the device that they were measured or estimated on.
        memory_bytes: memory of one such device.
        models: rows by the model's name.

    Raises:
        ConfigError: a model has two rows for one config, batch size and length.
    """

    device_kind: str
    memory_bytes: float
    models: Mapping[str, tuple[Profile, ...]]

    def __post_init__(self) -> None:
        for name, rows in self.models.items():
            seen: set[tuple[ParallelConfig, int, int | None]] = set()
            for index, row in enumerate(rows):
                bucket = (row.config, row.batch_size, row.length)
                if bucket in seen:
                    raise ConfigError(
                        f"models.{name}[{index}] has the intra_op, inter_op, batch_size and length of an earlier row; "
                        f"take one of them out"
                    )
                seen.add(bucket)

    def find(self, model: str, config: ParallelConfig, *, batch_size: int = 1) -> Profile | None:
        """The row of a model under a config; of several lengths the longest."""
        rows = [row for row in self.models.get(model, ()) if row.config == config and row.batch_size == batch_size]
        return max(rows, key=lambda row: row.length or 0, default=None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, object]:
        """The file's content."""
        return {
            "format": FORMAT,
            "device": {"kind": self.device_kind, "memory_bytes": self.memory_bytes},
            "models": {name: [row.to_json() for row in rows] for name, rows in self.models.items()},
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Profiles":
        """Reads the file.

        Raises:
            FileFormatError: it is not a profiles file; the message names the field.
        """
        fields = read_json(path, format_name=FORMAT)
        models = fields["models"]
        with in_file(path):
            return cls(
                device_kind=fields["device"]["kind"].text(),
                memory_bytes=fields["device"]["memory_bytes"].number(),
                models={name: models[name].list_of(Profile.from_fields) for name in models.names()},
            )
