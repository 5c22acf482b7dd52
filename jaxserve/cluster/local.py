"""Groups in this process: real stages on the devices that jax has, one thread for each stage.

A batch enters at stage 0 when the engine says so; from there the threads of its group hand it on by themselves, so no
stage waits for the event loop. Each end of a stage is reported to the loop as it happens. A batch that nobody waits for
any more is run no further; every stage that was given one reports its end all the same, so the scheduler never waits
for a report that does not come.
"""

import asyncio
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxserve.cluster.seam import DeviceMemory, Listener, Loaded, Work
from jaxserve.cluster.uninterrupted import uninterrupted
from jaxserve.errors import EngineStopped, PlacementError
from jaxserve.model import Model
from jaxserve.plans import Group, ParallelConfig
from jaxserve.runtime import Pipeline, load
from jaxserve.runtime.pipeline import Values

Progress = Callable[[str], None]


class LocalCluster:
    """Groups on devices of this process.

    Args:
        groups: the groups of a placement; their device indices point into `devices`.
        devices: by default all that jax has.
        progress: told in a few words what is being loaded; called from other threads.
        clock: seconds.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        devices: Sequence[Any] | None = None,
        progress: Progress | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        available = list(jax.devices() if devices is None else devices)
        self.stages = tuple(group.inter_op for group in groups)
        self._groups = [
            _LocalGroup(index, group.config, _pick(index, group.devices, available), clock)
            for index, group in enumerate(groups)
        ]
        self._progress = progress
        used = sorted({device for group in groups for device in group.devices})
        self._devices = {index: available[index] for index in used}

    async def open(self, listener: Listener) -> None:
        """See `Cluster`."""
        loop = asyncio.get_running_loop()
        for group in self._groups:
            group.start(loop, listener)

    async def load(self, group: int, model: Model, *, spare: bool = False) -> Loaded:
        """See `Cluster`: compiles, loads, warms and times every bucket, in another thread."""
        loading = asyncio.to_thread(self._groups[group].load, model, self._progress, spare=spare)
        loaded, cancelled = await uninterrupted(loading)
        if cancelled:
            await self.unload(group, model.name)
            raise asyncio.CancelledError
        return loaded

    async def unload(self, group: int, model: str) -> None:
        """See `Cluster`."""
        await asyncio.to_thread(self._groups[group].unload, model)

    def begin(self, group: int, stage: int, work: Work, now_s: float) -> None:
        """See `Cluster`: only stage 0 has to be begun; the others pass a batch on among themselves."""
        if stage == 0:
            self._groups[group].enter(work)

    @property
    def next_end_s(self) -> float:
        """See `Cluster`: ends are reported as they happen."""
        return math.inf

    def report_next(self) -> None:
        """See `Cluster`."""
        raise AssertionError("a local cluster reports by itself")

    def memory(self) -> list[DeviceMemory]:
        """See `Cluster`."""
        told = {index: device.memory_stats() for index, device in self._devices.items()}
        return [
            DeviceMemory(device=index, in_use_bytes=stats["bytes_in_use"], limit_bytes=stats["bytes_limit"])
            for index, stats in told.items()
            if stats and "bytes_in_use" in stats and "bytes_limit" in stats
        ]

    async def close(self) -> None:
        """See `Cluster`: waits for the stage that each thread is in."""
        await asyncio.to_thread(lambda: [group.stop() for group in self._groups])


class _LocalGroup:
    """One group: its pipelines by model, its threads, an inbox for each."""

    def __init__(self, index: int, config: ParallelConfig, devices: Sequence[Any], clock: Callable[[], float]) -> None:
        self._index = index
        self._config = config
        self._devices = devices
        self._clock = clock
        self._pipelines: dict[str, Pipeline] = {}
        self._inboxes = [queue.SimpleQueue[tuple[Work, Values | None] | None]() for _ in range(config.inter_op)]
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()  # a model may be loaded while the group stops
        self._stopped = False
        self._report: Callable[[int, Work], None] | None = None

    def start(self, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        clock, index = self._clock, self._index

        def ended(stage: int, work: Work) -> None:
            listener.stage_ended(index, stage, work, clock())

        def report(stage: int, work: Work) -> None:
            try:
                loop.call_soon_threadsafe(ended, stage, work)
            except RuntimeError:
                if not loop.is_closed():  # closed by somebody who left the engine running: nobody waits any more
                    raise

        self._report = report
        for stage in range(self._config.inter_op):
            name = f"jaxserve-group{index}-stage{stage}"
            thread = threading.Thread(target=self._serve, args=(stage,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def load(self, model: Model, progress: Progress | None, *, spare: bool) -> Loaded:
        def report(what: str, done: int, total: int) -> None:
            if progress is not None:
                progress(f"{model.name} on group {self._index}: {what} {done} of {total}")

        pipeline = load(model, self._config, self._devices, progress=report, spare=spare)
        if spare:
            for stage in range(pipeline.num_stages):
                pipeline.evict(stage)
        with self._lock:
            if not self._stopped:
                self._pipelines[model.name] = pipeline
                return Loaded(
                    latency_s=tuple(row.stage_latency_s for row in pipeline.profiles),
                    weight_bytes=pipeline.profiles[0].stage_weight_bytes,
                    restore_s=pipeline.restore_s,
                )
        pipeline.close()
        raise EngineStopped(f"the engine stopped while model {model.name!r} was being loaded")

    def unload(self, model: str) -> None:
        with self._lock:
            pipeline = self._pipelines.pop(model, None)
        if pipeline is not None:  # not where the group stopped meanwhile
            pipeline.close()

    def enter(self, work: Work) -> None:
        self._inboxes[0].put((work, None))

    def stop(self) -> None:
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join()
        with self._lock:
            self._stopped = True
        for name in list(self._pipelines):
            self.unload(name)

    def _serve(self, stage: int) -> None:
        """What the thread of a stage does."""
        inbox = self._inboxes[stage]
        onward = self._inboxes[stage + 1] if stage + 1 < len(self._inboxes) else None
        assert self._report is not None
        while (item := inbox.get()) is not None:
            work, values = item
            del item
            values = None if work.abandoned else self._run(stage, work, values, last=onward is None)
            self._report(stage, work)  # before the next stage can: its report must come second
            if values is not None and onward is not None:
                onward.put((work, values))
            del work, values  # while the thread waits, it keeps no activations alive

    def _run(self, stage: int, work: Work, values: Values | None, *, last: bool) -> Values | None:
        """Runs one stage; None where the model raised, and after the last stage."""
        model, bucket = work.model, work.bucket
        try:
            pipeline = self._pipelines[model.name]
            if work.leaving is not None:
                return self._bring(stage, work, values, last=last)
            if stage == 0:
                values = pipeline.put(bucket, model.stack([job.inputs for job in work.jobs], bucket))
            assert values is not None
            values = pipeline.run(stage, bucket, values)
            if not last:
                return values
            outputs = pipeline.fetch(bucket, values)
            row = 0
            for job in work.jobs:
                job.outputs = model.unpad(outputs, job.sizes, first_row=row)
                row += job.request.rows
        except Exception as error:  # whatever a model raises is the answer to its requests
            work.error = error
        return None

    def _bring(self, stage: int, work: Work, values: Values | None, *, last: bool) -> Values | None:
        """Brings a spare to a stage, unless that has failed on an earlier one; values are what went wrong there."""
        for name in work.leaving or ():
            if (other := self._pipelines.get(name)) is not None:  # not where it was unloaded meanwhile
                other.evict(stage)
        wrong = list(values or ())
        if not wrong:
            try:
                self._pipelines[work.model.name].restore(stage)
            except Exception as error:  # such as too little memory; those who leave must leave the other stages, too
                wrong = [error]
        if last and wrong:
            work.error = wrong[0]
        return None if last else wrong


def _pick(index: int, wanted: Sequence[int], available: Sequence[Any]) -> list[Any]:
    beyond = [device for device in wanted if device >= len(available)]
    if beyond:
        raise PlacementError(
            f"group {index} uses device {beyond[0]}, but there are {len(available)} devices, numbered from 0; change "
            f"the placement, or start with more devices (on CPU: XLA_FLAGS=--xla_force_host_platform_device_count=N)"
        )
    return [available[device] for device in wanted]
