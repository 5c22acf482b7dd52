"""What is to be served, on what: a `jaxserve-fleet/1` file."""

import dataclasses
import os

from jaxserve.errors import ConfigError
from jaxserve.plans.fields import Fields, in_file, read_json, write_json

FORMAT = "jaxserve-fleet/1"
MOST_DEVICES = 1_000_000  # a plan has a group for each, at worst


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FleetModel:
    """One model of a fleet.

    Attributes:
        name: its name.
        profile: name of the profile that it has.
        slo_s: seconds from the arrival of a request to its deadline.
        min_attainment: SLO attainment that a plan must give it, 0 to 1; None where the file says nothing.
        max_wait_s: seconds for which a request that finds its devices free may wait for company; None for not at all.
    """

    name: str
    profile: str
    slo_s: float
    min_attainment: float | None = None
    max_wait_s: float | None = None

    def to_json(self) -> dict[str, object]:
        """This model as it stands in a fleet file."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The models to serve and the cluster to serve them on.

    Attributes:
        devices: devices of the cluster.
        devices_per_host: devices of each host.
        memory_bytes: what one device may hold of weights.
        models: in the order of the file.
        restore_bytes_per_s: how fast weights go from a host's memory to a device; None where the file says nothing.

    Raises:
        ConfigError: two models have one name.
    """

    devices: int
    devices_per_host: int
    memory_bytes: float
    models: tuple[FleetModel, ...]
    restore_bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for index, model in enumerate(self.models):
            if model.name in seen:
                raise ConfigError(
                    f"models[{index}].name is {model.name!r}, which an earlier model has; every name must be its own"
                )
            seen.add(model.name)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file."""
        cluster = {
            "devices": self.devices,
            "devices_per_host": self.devices_per_host,
            "memory_bytes": self.memory_bytes,
        }
        if self.restore_bytes_per_s is not None:
            cluster["restore_bytes_per_s"] = self.restore_bytes_per_s
        write_json(path, {"format": FORMAT, "cluster": cluster, "models": [model.to_json() for model in self.models]})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Fleet":
        """Reads the file.

        Raises:
            FileFormatError: it is not a fleet file; the message names the field.
        """
        fields = read_json(path, format_name=FORMAT)
        cluster = fields["cluster"]
        with in_file(path):
            return cls(
                devices=cluster["devices"].integer(at_least=1, at_most=MOST_DEVICES),
                devices_per_host=cluster["devices_per_host"].integer(at_least=1),
                memory_bytes=cluster["memory_bytes"].number(),
                models=fields["models"].list_of(_model),
                restore_bytes_per_s=(
                    cluster["restore_bytes_per_s"].number(above=0) if cluster.has("restore_bytes_per_s") else None
                ),
            )


def _model(fields: Fields) -> FleetModel:
    return FleetModel(
        name=fields["name"].text(),
        profile=fields["profile"].text(),
        slo_s=fields["slo_s"].number(above=0),
        min_attainment=_share(fields["min_attainment"]) if fields.has("min_attainment") else None,
        max_wait_s=fields["max_wait_s"].number() if fields.has("max_wait_s") else None,
    )


def _share(fields: Fields) -> float:
    value = fields.number()
    if value > 1:
        raise fields.wrong(f"is {value:g}, but must be at most 1: it is a share of the model's requests")
    return value
