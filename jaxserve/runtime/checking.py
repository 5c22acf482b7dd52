"""Whether the compiled stages of a plan send what was planned, without weights: shapes are enough."""

from collections.abc import Sequence
from typing import Any

from jaxserve.errors import PlacementError
from jaxserve.model import Model
from jaxserve.parallel import Plan
from jaxserve.parallel.check import Comparison, compare
from jaxserve.runtime.compiled import lower_alone


def check(plan: Plan, model: Model, devices: Sequence[Any], *, bucket: int = -1) -> tuple[Comparison, ...]:
    """Compiles every stage of a plan at one bucket, and compares its collectives with the plan's.

    Args:
        plan: made by `plan_model`.
        model: for which it was made; it may be one that has only the shapes of its params.
        devices: as many as the plan has, or more; of any kind, but what XLA makes of a plan differs between backends.
        bucket: index among the model's buckets; the largest unless given.

    Raises:
        PlacementError: there are too few devices.
    """
    needed = plan.config.devices
    if len(devices) < needed:
        raise PlacementError(
            f"the plan of {model.name!r} is for {needed} devices, but there are {len(devices)}; "
            f"give that many, or make a plan for fewer"
        )
    size = plan.config.intra_op
    return tuple(
        compare(
            stage,
            lower_alone(stage, devices[number * size : (number + 1) * size]).compile().call.as_text(),
            platform=devices[0].platform,
            bucket=str(model.buckets[bucket]),
            stage=number,
        )
        for number, stage in enumerate(plan.stages[bucket])
    )
