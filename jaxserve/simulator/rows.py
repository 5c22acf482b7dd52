"""Which rows of the profiles a placement's groups run by, and whether the groups fit the fleet."""

from collections.abc import Sequence

from jaxserve.errors import PlacementError
from jaxserve.plans import Fleet, Group, Profile, Profiles

Rows = dict[str, tuple[Profile, ...]]
"""The buckets of each model and spare of a group: what a batch of each size takes, in order of size, size 1 first."""


def rows_of(groups: Sequence[Group], *, fleet: Fleet, profiles: Profiles, max_batch: int) -> list[Rows]:
    """The rows of each group's models.

    Raises:
        PlacementError: the groups do not fit the fleet, its cluster or the profiles.
    """
    profile_of = {model.name: model.profile for model in fleet.models}
    found: list[Rows] = []
    for index, group in enumerate(groups):
        wrong = [device for device in group.devices if device >= fleet.devices]
        if wrong:
            raise PlacementError(
                f"group {index} uses device {wrong[0]}, but the fleet's cluster has {fleet.devices}, numbered from 0"
            )
        used = [0.0] * group.inter_op
        held: Rows = {}
        if group.spares and fleet.restore_bytes_per_s is None:
            raise PlacementError(
                f"group {index} has spares, but how fast weights go to its devices is not known; give the fleet's "
                f"cluster a restore_bytes_per_s"
            )
        for name in (*group.models, *group.spares):
            if name not in profile_of:
                raise PlacementError(f"group {index} holds {name!r}, which is not in the fleet; add it or take it out")
            row = profiles.find(profile_of[name], group.config)
            if row is None:
                rows = profiles.models.get(profile_of[name], ())
                configs = sorted({each.config for each in rows if each.batch_size == 1})
                listed = ", ".join(f"({each.intra_op}, {each.inter_op})" for each in configs)
                raise PlacementError(
                    f"group {index} holds {name!r} as ({group.intra_op}, {group.inter_op}), but its profile "
                    f"{profile_of[name]!r} has no such row at batch size 1; run `jaxserve profile` for one"
                    f"{listed and f', or choose one of {listed}'}"
                )
            held[name] = (row, *_larger(row, profiles.models[profile_of[name]], max_batch))
            if name in group.models:
                used = [before + more for before, more in zip(used, row.stage_weight_bytes, strict=True)]
        heaviest = max(used)
        if heaviest > fleet.memory_bytes:
            raise PlacementError(
                f"group {index} needs {heaviest:.4g} bytes of weights on each device of stage {used.index(heaviest)}, "
                f"but a device may hold {fleet.memory_bytes:.4g}; take a model out or use a config of more stages"
            )
        found.append(held)
    return found


def _larger(single: Profile, rows: Sequence[Profile], max_batch: int) -> list[Profile]:
    """Of these rows, those of larger batches than `single` that are otherwise alike, in order of size."""
    alike = [row for row in rows if row.config == single.config and row.length == single.length]
    return sorted((row for row in alike if 1 < row.batch_size <= max_batch), key=lambda row: row.batch_size)
