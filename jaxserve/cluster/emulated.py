"""Groups without devices: stages that take their profiled time.

For tests, benches and plans for devices that are not attached. An emulated model returns, for each output, rows filled
with a checksum of the request's own row of inputs (`emulated_outputs`), so that a caller can tell whether the right
answer came back.
"""

import dataclasses
import heapq
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxserve.cluster.seam import DeviceMemory, Inputs, Listener, Loaded, Outputs, Work
from jaxserve.errors import PlacementError
from jaxserve.model import Model
from jaxserve.model.signature import numpy_dtype
from jaxserve.plans import Group, Profiles
from jaxserve.simulator import StageTime, as_profiled


class EmulatedCluster:
    """Emulated groups.

    Args:
        groups: the groups of a placement.
        profiles: what each model's stages take; every bucket of every model needs its row.
        profile_of: name of the profile of a model, where it is not the model's own name.
        restore_bytes_per_s: how fast the weights of spares go from a host's memory to a device.
        stage_time: what a stage takes in truth and whether the model raises there; by default what is profiled.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        profiles: Profiles,
        *,
        profile_of: Mapping[str, str] | None = None,
        restore_bytes_per_s: float | None = None,
        stage_time: StageTime = as_profiled,
    ) -> None:
        self.stages = tuple(group.inter_op for group in groups)
        self._groups = tuple(groups)
        self._profiles = profiles
        self._profile_of = profile_of or {}
        self._restore_bytes_per_s = restore_bytes_per_s
        self._stage_time = stage_time
        self._loaded: dict[tuple[int, str], Loaded] = {}
        self._ends: list[tuple[float, int, int, int, Work]] = []  # (time, group, batch id, stage, work): a heap
        self._listener: Listener | None = None

    async def open(self, listener: Listener) -> None:
        """See `Cluster`."""
        self._listener = listener

    async def load(self, group: int, model: Model, *, spare: bool = False) -> Loaded:
        """See `Cluster`."""
        name = self._profile_of.get(model.name, model.name)
        config = self._groups[group].config
        rows = {
            (row.batch_size, row.length): row for row in self._profiles.models.get(name, ()) if row.config == config
        }
        for bucket in model.buckets:
            if (bucket.batch_size, bucket.length) not in rows:
                raise PlacementError(
                    f"group {group} holds {model.name!r} as ({config.intra_op}, {config.inter_op}), but profile "
                    f"{name!r} has no row for {bucket}; run `jaxserve profile` for it, or drop that bucket"
                )
        held = [rows[bucket.batch_size, bucket.length] for bucket in model.buckets]
        weight_bytes = held[0].stage_weight_bytes
        loaded = Loaded(latency_s=tuple(row.stage_latency_s for row in held), weight_bytes=weight_bytes)
        if spare:
            if self._restore_bytes_per_s is None:
                raise PlacementError(
                    f"group {group} has a spare, {model.name!r}, but how fast weights go to its devices is not known; "
                    f"give EmulatedCluster a restore_bytes_per_s"
                )
            restore_s = tuple(each / self._restore_bytes_per_s for each in weight_bytes)
            loaded = dataclasses.replace(loaded, restore_s=restore_s)
        self._loaded[group, model.name] = loaded
        return loaded

    async def unload(self, group: int, model: str) -> None:
        """See `Cluster`."""
        del self._loaded[group, model]

    def begin(self, group: int, stage: int, work: Work, now_s: float) -> None:
        """See `Cluster`."""
        loaded = self._loaded[group, work.model.name]
        if work.leaving is not None:
            takes_s, raises = loaded.restore_s[stage], False
        else:
            requests = [job.request for job in work.jobs if not job.abandoned]
            takes_s, raises = self._stage_time(requests, group, stage, loaded.latency_s[work.bucket][stage])
        if raises:
            work.error = RuntimeError(f"emulated failure on stage {stage}")
        heapq.heappush(self._ends, (now_s + takes_s, group, work.batch_id, stage, work))

    @property
    def next_end_s(self) -> float:
        """See `Cluster`."""
        return self._ends[0][0] if self._ends else math.inf

    def report_next(self) -> None:
        """See `Cluster`."""
        end_s, group, _, stage, work = heapq.heappop(self._ends)
        if work.error is None and stage + 1 == self.stages[group]:
            for job in work.jobs:
                if not job.abandoned:
                    job.outputs = emulated_outputs(work.model, job.inputs, job.sizes)
        assert self._listener is not None
        self._listener.stage_ended(group, stage, work, end_s)

    def fail_group(self, group: int, now_s: float) -> None:
        """Loses a group with everything inside, as when its process dies."""
        assert self._listener is not None
        self._listener.advance(now_s)
        self._ends = [end for end in self._ends if end[1] != group]
        heapq.heapify(self._ends)
        self._listener.group_failed(group, "the emulated group was made to fail", now_s)

    def memory(self) -> list[DeviceMemory]:
        """See `Cluster`: there are no devices."""
        return []

    async def close(self) -> None:
        """See `Cluster`."""
        self._ends.clear()


def emulated_outputs(model: Model, inputs: Inputs, sizes: Mapping[str, int]) -> Outputs:
    """What an emulated `model` answers: row i of every output is filled with a checksum of row i of the inputs.

    The checksum is the CRC-32 of the bytes of the rows, inputs in order of name, modulo 97: exact in every dtype but
    bool.
    """
    rows = sizes["batch"]
    arrays = [np.ascontiguousarray(inputs[name]) for name in sorted(inputs)]
    sums = np.array([checksum([array[row] for array in arrays]) for row in range(rows)])
    outputs: Outputs = {}
    for name, spec in model.outputs.items():
        shape = spec.resolve(sizes)
        column = sums.reshape(-1, *[1] * (len(shape) - 1))
        outputs[name] = np.broadcast_to(column, shape).astype(numpy_dtype(spec.dtype))
    return outputs


def checksum(rows: Sequence[np.ndarray[Any, Any]]) -> int:
    """CRC-32 of the bytes of these arrays, one after another, modulo 97."""
    crc = 0
    for row in rows:
        crc = zlib.crc32(np.ascontiguousarray(row).tobytes(), crc)
    return crc % 97
