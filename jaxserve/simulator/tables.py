"""A fleet, its profiles and a workload as arrays: what compiled code works on, made once for many placements."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jaxserve.errors import ConfigError
from jaxserve.plans import Fleet, ParallelConfig, Profile, Profiles
from jaxserve.workload import Workload


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FleetTables:
    """What each model of a fleet costs under each parallel config (M models, C configs, S most stages, B sizes).

    Attributes:
        fleet: the fleet.
        configs: every config that some model of the fleet has a profile for, ascending.
        stages: int32 [C], stages of each config.
        devices: int32 [C], devices of a group of each config.
        batch_sizes: int32 [B], ascending from 1.
        latency_s: float64 [C, M, S, B]; infinite where the profile has no row, 0 beyond the config's stages.
        weight_bytes: float64 [C, M, S]; infinite where the profile has no row, 0 beyond the config's stages.
    """

    fleet: Fleet
    configs: tuple[ParallelConfig, ...]
    stages: npt.NDArray[np.int32]
    devices: npt.NDArray[np.int32]
    batch_sizes: npt.NDArray[np.int32]
    latency_s: npt.NDArray[np.float64]
    weight_bytes: npt.NDArray[np.float64]

    @property
    def has_row(self) -> npt.NDArray[np.bool_]:
        """Whether a model has a profile under a config at batch size 1: bool [C, M]."""
        return np.isfinite(self.weight_bytes[:, :, 0])

    @property
    def most_stages(self) -> int:
        """Stages of the longest config."""
        return self.latency_s.shape[2]

    @property
    def has_batches(self) -> bool:
        """Whether some model has a row of more than one batch size."""
        return len(self.batch_sizes) > 1

    @property
    def without_batches(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32], int]:
        """Latencies at batch size 1, stages and most stages, as `loop` and `trajectory` take them."""
        return np.ascontiguousarray(self.latency_s[..., 0]).ravel(), self.stages, self.most_stages

    @property
    def with_batches(
        self,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32], int]:
        """Latencies, which size holds how many, stages, the sizes and most stages, as `batches` takes them."""
        latency_s = np.ascontiguousarray(self.latency_s.swapaxes(2, 3)).ravel()
        return latency_s, self.size_of, self.stages, self.batch_sizes, self.most_stages

    @property
    def size_of(self) -> npt.NDArray[np.int32]:
        """int32 [C, M, N]: at n - 1 the index of the smallest batch size with a row that holds n requests; -1 for none.

        N is the largest batch size.
        """
        has_size = np.isfinite(self.latency_s[:, :, 0, :])
        size_of = np.full((*has_size.shape[:2], self.batch_sizes[-1]), -1, np.int32)
        for b in range(len(self.batch_sizes) - 1, -1, -1):
            size_of[has_size[:, :, b], : self.batch_sizes[b]] = b
        return size_of

    @classmethod
    def of(cls, fleet: Fleet, profiles: Profiles, *, max_batch: int = 1) -> "FleetTables":
        """The tables of a fleet.

        Args:
            fleet: the models and the cluster.
            profiles: must have the profile that each model names.
            max_batch: the largest batch that requests may be merged into.

        Raises:
            ConfigError: a model's profile is not in `profiles`; or `max_batch` is less than 1.
        """
        if max_batch < 1:
            raise ConfigError(f"max_batch is {max_batch}, but must be at least 1")
        missing = sorted({model.profile for model in fleet.models} - set(profiles.models))
        if missing:
            raise ConfigError(
                f"the fleet names the profile {missing[0]!r}, which the profiles file lacks; it has "
                f"{', '.join(sorted(profiles.models)) or 'none'}: run `jaxserve profile` for it"
            )
        names = list(dict.fromkeys(model.profile for model in fleet.models))
        rows = {name: _rows(profiles.models[name], max_batch) for name in names}
        configs = sorted({config for found in rows.values() for config in found})
        sizes = sorted({1}.union(*(sizes for found in rows.values() for sizes in found.values())))
        most = max((config.inter_op for config in configs), default=1)
        latency_s = np.full((len(configs), len(names), most, len(sizes)), np.inf)
        weight_bytes = np.full((len(configs), len(names), most), np.inf)
        for c, config in enumerate(configs):
            for p, name in enumerate(names):
                for size, row in rows[name].get(config, {}).items():
                    latency_s[c, p, :, sizes.index(size)] = _padded(row.stage_latency_s, most)
                    if size == 1:
                        weight_bytes[c, p] = _padded(row.stage_weight_bytes, most)
        of_model = np.array([names.index(model.profile) for model in fleet.models], np.int64)
        return cls(
            fleet=fleet,
            configs=tuple(configs),
            stages=np.array([config.inter_op for config in configs], np.int32),
            devices=np.array([config.devices for config in configs], np.int32),
            batch_sizes=np.array(sizes, np.int32),
            latency_s=np.ascontiguousarray(latency_s[:, of_model]),
            weight_bytes=np.ascontiguousarray(weight_bytes[:, of_model]),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traffic:
    """A workload as a fleet sees it (R requests of models that are in the fleet).

    Attributes:
        requests: how many the workload has, those of unknown models included.
        arrival_s: float64 [R], ascending.
        slo_s: float64 [R].
        model: int32 [R], index of a model of the fleet.
        per_model: int64 [M], requests of each.
    """

    requests: int
    arrival_s: npt.NDArray[np.float64]
    slo_s: npt.NDArray[np.float64]
    model: npt.NDArray[np.int32]
    per_model: npt.NDArray[np.int64]

    @classmethod
    def of(cls, workload: Workload, fleet: Fleet) -> "Traffic":
        """The requests whose model is in the fleet; the others count as missed."""
        model = fleet_index(workload, fleet)
        known = model >= 0
        return cls(
            requests=len(workload),
            arrival_s=np.ascontiguousarray(workload.arrival_s[known]),
            slo_s=np.ascontiguousarray(workload.slo_s[known]),
            model=np.ascontiguousarray(model[known]),
            per_model=np.bincount(model[known], minlength=len(fleet.models)),
        )


def fleet_index(workload: Workload, fleet: Fleet) -> npt.NDArray[np.int32]:
    """int32 [requests]: the index of each request's model in the fleet, -1 where it is in none."""
    index_of = {model.name: index for index, model in enumerate(fleet.models)}
    of_name = np.array([index_of.get(name, -1) for name in workload.model_names], np.int32)
    return of_name[workload.model] if len(workload) else np.zeros(0, np.int32)


def _rows(rows: Sequence[Profile], max_batch: int) -> dict[ParallelConfig, dict[int, Profile]]:
    """The row of each config and batch size, of the length of the longest row of size 1, as `Profiles.find` has it."""
    found: dict[ParallelConfig, dict[int, Profile]] = {}
    for row in rows:
        if row.batch_size == 1:
            longest = found.setdefault(row.config, {1: row})
            if (row.length or 0) > (longest[1].length or 0):
                longest[1] = row
    for row in rows:
        sizes = found.get(row.config)
        if sizes is not None and 1 < row.batch_size <= max_batch and row.length == sizes[1].length:
            sizes.setdefault(row.batch_size, row)
    return found


def _padded(values: Sequence[float], length: int) -> npt.NDArray[np.float64]:
    padded = np.zeros(length)
    padded[: len(values)] = values
    return padded
