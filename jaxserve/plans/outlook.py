"""What a plan expects of its placement: of what `jaxserve plan --json` has printed, the part that a server shows."""

import dataclasses
import os
from collections.abc import Mapping

from jaxserve.plans.fields import in_file, read_object
from jaxserve.plans.placement import Placement


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """A placement, and what its plan expects of it.

    Attributes:
        placement: the placement.
        policy: that found it.
        slo_attainment: of all requests of the workload that it was planned for.
        per_model: of those of each model, by name.
        utilization: of each group, in the placement's order.
    """

    placement: Placement
    policy: str
    slo_attainment: float
    per_model: Mapping[str, float]
    utilization: tuple[float, ...]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Outlook":
        """Reads the file.

        Raises:
            FileFormatError: it is not what `jaxserve plan --json` prints; the message names the field.
        """
        fields = read_object(path, wanted="a file of what `jaxserve plan --json` has printed")
        models = fields["per_model"]
        with in_file(path):
            return cls(
                placement=Placement.read(fields["placement"]),
                policy=fields["policy"].text(),
                slo_attainment=fields["slo_attainment"].number(),
                per_model={name: models[name]["slo_attainment"].number() for name in models.names()},
                utilization=fields["per_group"].list_of(lambda group: group["utilization"].number()),
            )
