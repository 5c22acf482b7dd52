"""What is to be served, on what: a `jaxserve-fleet/1` file."""

import dataclasses
import os

from jaxserve.plans.fields import Fields, read_json, write_json

FORMAT = "jaxserve-fleet/1"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FleetModel:
    """One model of a fleet: its name, the profile that it has, and its SLO in seconds."""

    name: str
    profile: str
    slo_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The models to serve and the cluster to serve them on.

    Attributes:
        devices: devices of the cluster.
        devices_per_host: devices of each host.
        memory_bytes: what one device may hold of weights.
        models: in the order of the file.
    """

    devices: int
    devices_per_host: int
    memory_bytes: float
    models: tuple[FleetModel, ...]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file."""
        cluster = {
            "devices": self.devices,
            "devices_per_host": self.devices_per_host,
            "memory_bytes": self.memory_bytes,
        }
        models = [dataclasses.asdict(model) for model in self.models]
        write_json(path, {"format": FORMAT, "cluster": cluster, "models": models})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Fleet":
        """Reads the file.

        Raises:
            FileFormatError: it is not a fleet file; the message names the field.
        """
        fields = read_json(path, format_name=FORMAT)
        cluster = fields["cluster"]
        return cls(
            devices=cluster["devices"].integer(at_least=1),
            devices_per_host=cluster["devices_per_host"].integer(at_least=1),
            memory_bytes=cluster["memory_bytes"].number(),
            models=_models(fields["models"]),
        )


def _models(fields: Fields) -> tuple[FleetModel, ...]:
    seen: set[str] = set()
    models: list[FleetModel] = []
    for item in fields.items():
        name = item["name"].text()
        if name in seen:
            raise item["name"].wrong(f"is {name!r}, which an earlier model has; every name must be its own")
        seen.add(name)
        models.append(FleetModel(name=name, profile=item["profile"].text(), slo_s=item["slo_s"].number(above=0)))
    return tuple(models)
