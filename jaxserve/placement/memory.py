"""The memory rule of AlpaServe's own policies, which is stricter than that of a placement.

What a placement may hold is limited for every stage of a group by itself: its weights over the group's models must fit
on one device (DESIGN.md, "Fleet"). AlpaServe counts each model by its heaviest stage: the sum of these over the group's
models must fit. What fits by this rule fits by the other.
"""

import numpy as np
import numpy.typing as npt

from jaxserve.simulator import FleetTables


def heaviest_stage_bytes(tables: FleetTables) -> npt.NDArray[np.float64]:
    """float64 [C, M]: what each model counts for on a group of each config; infinite where it has no profile."""
    return tables.weight_bytes.max(axis=2, initial=0.0)
