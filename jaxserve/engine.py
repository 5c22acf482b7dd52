"""The engine: the asyncio driver of the scheduler. It owns every promise.

One request, from `submit` to its answer:

1. the model is found, the deadline and the inputs are checked, the bucket is chosen (for a model with host-side
   preprocessing, in a thread of the engine's pool);
2. the scheduler admits it to a group or rejects it; what cannot be in time is answered at once;
3. when its batch begins, the cluster gets the inputs of all that are in it, runs them as one, stage after stage, and
   reports each end;
4. its outputs, or its error, go to `on_settled`, once, on the loop.

A request is in `_pending` until it is settled. Whatever ends it (an answer, an error, its deadline, a cancellation, a
lost group, the engine's stop) takes it out and settles it; a second end finds nothing. The engine installs no signal
handlers and keeps nothing outside itself. It has one timer, for the earliest deadline or, for emulated groups, the
earliest end of a stage; and one for each deadline in step 1.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import math
import reprlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from jaxserve.cluster import Cluster, Job, Loaded, LocalCluster, Work
from jaxserve.cluster.default import check_names, default_placement
from jaxserve.cluster.host import host_latencies_s
from jaxserve.cluster.uninterrupted import uninterrupted
from jaxserve.errors import (
    ConfigError,
    DeadlineExceeded,
    DeadlineRefused,
    EngineStopped,
    GroupFailed,
    InferenceError,
    InvalidInput,
    ModelError,
    ModelNotFound,
    PlacementError,
    QueueFull,
    RequestCancelled,
    model_failed,
    not_readable,
    too_late,
)
from jaxserve.metrics import (
    GroupMetrics,
    GroupObservation,
    ModelMetrics,
    ModelObservation,
    Observation,
    Timeline,
)
from jaxserve.model import Model
from jaxserve.plans import Placement
from jaxserve.request import (
    Done,
    Failed,
    FailReason,
    RefuseReason,
    Rejected,
    Request,
    check_deadline,
    check_priority,
    check_tenant,
)
from jaxserve.scheduling import ALONE, DISPATCHES, Grid, Policy, Scheduler, Spare

_log = logging.getLogger("jaxserve.engine")
Outputs = dict[str, Any]
OnSettled = Callable[[Outputs | InferenceError], None]
_Prepared = tuple[Mapping[str, Any], Mapping[str, int], int]
"""Inputs of the module, sizes of the variable dimensions, index of the bucket."""
_POOL_THREADS = 4


@dataclasses.dataclass(slots=True, eq=False)
class _Pending:
    """A request that is not settled."""

    model: Model
    metrics: ModelMetrics
    on_settled: OnSettled
    arrival_s: float
    slo_s: float
    priority: int
    tenant: str
    timeline: Timeline | None
    decided_s: float = math.nan
    job: Job | None = None
    work: Work | None = None
    group: int = -1
    rows: int = 0
    predicted_finish_s: float = 0.0
    preparation: "asyncio.Future[_Prepared] | None" = None
    expiry: asyncio.TimerHandle | None = None


class Engine:
    """Serves models in this process: `async with Engine([model]) as engine: await engine.infer(...)`.

    Args:
        models: what to load first; others can be loaded and unloaded while it runs.
        placement: the groups and which models each holds. By default one group for each device, each with as many of
            the models as its memory takes.
        devices: the devices that the placement's indices mean; by default all that jax has.
        cluster: where the groups live instead of on `devices`; takes the groups' place in `placement` order.
        dispatch: how a request's group is chosen.
        overhead_s: added to every predicted finish.
        max_batch: requests of one model that wait on one group are merged into batches of up to so many rows, where
            that keeps every deadline; by default up to the model's largest batch size, 1 for never.
        max_queue: how many requests may wait for a group, and how many for pre-processing; more are refused.
        max_overtakings: how often a request that waits may be overtaken by ones of higher priority for its model; 0 if
            priorities are to count for nothing.
        shares: weights of tenants, 1 for those who are not named: by these they share what cannot serve all; None if
            tenants are to count for nothing.
        spare_bytes: what the weights of spares, which the placement's groups load on demand, may take of each device.
        stuck_after_s: a stage that runs for longer than this, and than ten times what it keeps 99 of 100 times, is
            stuck: its group takes nobody in until it ends, and a warning is logged.
        progress: told in a few words what is being loaded; may be called from other threads.
        clock: seconds. Where it goes back it is taken to stand still until it has caught up.

    Raises:
        PlacementError, ConfigError, ModelError: what was given does not fit together.
    """

    def __init__(
        self,
        models: Iterable[Model] = (),
        *,
        placement: Placement | None = None,
        devices: Sequence[Any] | None = None,
        cluster: Cluster | None = None,
        dispatch: str = "earliest-finish",
        overhead_s: float = 0.0,
        max_batch: int | None = None,
        max_queue: int = 10_000,
        max_overtakings: int = 0,
        shares: Mapping[str, float] | None = None,
        spare_bytes: float | None = None,
        stuck_after_s: float = 10.0,
        progress: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if dispatch not in DISPATCHES:
            raise ConfigError(f"dispatch is {dispatch!r}, but must be one of {', '.join(DISPATCHES)}")
        if not 0 <= overhead_s < math.inf:
            raise ConfigError(f"overhead_s is {overhead_s}, but must be finite and not negative")
        for name, value in (("max_batch", max_batch), ("max_queue", max_queue)):
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} is {value!r}, but must be a whole number of at least 1")
        if not 0 < stuck_after_s <= math.inf:
            raise ConfigError(f"stuck_after_s is {stuck_after_s}, but must be greater than 0; math.inf for never")
        if isinstance(models, Model):
            raise ConfigError("models is one model, but must be a list of them: Engine([model])")
        models = list(models)
        if not all(isinstance(model, Model) for model in models):
            raise ConfigError("models must be a list of jaxserve.Model; make them with Model.from_linen and its like")
        if placement is not None and placement.segments:
            raise PlacementError(
                "the placement has segments; an engine takes one without, as it does not re-place models"
            )
        if spare_bytes is not None and not 0 <= spare_bytes < math.inf:
            raise ConfigError(f"spare_bytes is {spare_bytes}, but must be finite and not negative")
        has_spares = placement is not None and any(group.spares for group in placement.groups)
        if has_spares != (spare_bytes is not None):
            what = "has spares" if has_spares else "has no spares"
            raise ConfigError(
                f"spare_bytes is {spare_bytes}, but the placement {what}; give spare_bytes, what they may take of each "
                f"device, where there are spares, and only there"
            )
        self._first = models
        check_names(self._first, placement)
        if placement is None:
            placement = default_placement(self._first, jax.devices() if devices is None else devices)
        self._placement = placement
        clock = clock if clock is time.monotonic else _never_back(clock)
        self._cluster: Cluster = cluster or LocalCluster(
            placement.groups, devices=devices, progress=progress, clock=clock
        )
        if len(self._cluster.stages) != len(placement.groups):
            raise PlacementError(
                f"the cluster has {len(self._cluster.stages)} groups, but the placement has {len(placement.groups)}"
            )
        self._clock = clock
        self._scheduler = Scheduler(
            dispatch=DISPATCHES[dispatch],
            overhead_s=overhead_s,
            max_queue=max_queue,
            policy=Policy(max_overtakings=max_overtakings, shares=shares),
        )
        self._max_queue = max_queue
        self._stuck_after_s = stuck_after_s
        self._watchdog: asyncio.TimerHandle | None = None
        self._group_metrics: list[GroupMetrics] = []
        for stages in self._cluster.stages:
            spares = None if spare_bytes is None else [spare_bytes] * stages
            self._scheduler.add_group(stages, spare_bytes=spares)
            self._group_metrics.append(GroupMetrics(stages=stages))
        self._host_metrics = GroupMetrics(stages=1)  # of models that need no device
        self._overhead_s = overhead_s
        self._max_batch = max_batch or sys.maxsize
        for model in models:
            self._grid(model)
        self._models: dict[str, Model] = {}
        self._metrics: dict[str, ModelMetrics] = {}
        self._volumes: dict[str, Sequence[int]] = {}
        self._descriptions: dict[str, dict[str, Any]] = {}
        self._weights: dict[tuple[int, str], Sequence[float]] = {}
        self._probes = ModelMetrics()  # what is only asked to see whether it is answered is counted apart
        self._groups_of: dict[str, list[int]] = {}
        self._spares: dict[str, Model] = {}
        self._host_latency_s: dict[str, Sequence[float]] = {}  # of models that need no device, by bucket
        self._pending: dict[int, _Pending] = {}
        self._next_id = 0
        self._preparing = 0  # requests that are in the pool or wait for it
        self._prepare_s = 0.0  # what one takes there, of late
        self._accepting = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = math.inf
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loading = asyncio.Lock()
        self._idle = asyncio.Event()
        self._pool: ThreadPoolExecutor | None = None
        self._opened_s = 0.0
        self._ended = False
        self._unloading: set[asyncio.Task[None]] = set()

    # ----------------------------------------------------------------------------------------------- start and stop

    async def __aenter__(self) -> Self:
        """Loads the models and begins to accept requests."""
        if self._loop is not None:
            raise EngineStopped("this engine was started before; make a new one")
        self._loop = asyncio.get_running_loop()
        self._opened_s = self._clock()
        try:
            await self._cluster.open(self)
            for model in self._first:
                await self.load(model)
        except BaseException:
            await self._close()
            raise
        self._accepting = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops: what is not answered gets `EngineStopped`, every thread ends, every device buffer is given back."""
        await self._close()

    async def drain(self, grace_s: float = math.inf) -> None:
        """Accepts nothing more and waits until everything is answered, `grace_s` seconds at most."""
        self._accepting = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if grace_s == math.inf else grace_s):
                await self._until(lambda: not self._pending)

    async def _close(self) -> None:
        self._accepting = False
        for ticket in list(self._pending):
            if ticket in self._pending:  # not where the answer of another one has had it cancelled
                self._settle_early(ticket, FailReason.STOPPED)
        for timer in (self._timer, self._watchdog):
            if timer is not None:
                timer.cancel()
        _, cancelled = await uninterrupted(self._end())
        if cancelled:
            raise asyncio.CancelledError

    async def _end(self) -> None:
        self._ended = True
        await self._cluster.close()
        self._idle.set()
        await asyncio.gather(*self._unloading, return_exceptions=True)
        if self._pool is not None:
            await asyncio.to_thread(self._pool.shutdown)
        self._models.clear()

    # ------------------------------------------------------------------------------------------------------- models

    async def load(self, model: Model) -> None:
        """Loads one more model, onto the groups where the placement has it, or onto all if it has it nowhere.

        Raises:
            ModelError: a model of this name is loaded.
            PlacementError: it does not fit.
        """
        async with self._loading:
            if self._loop is None or self._ended:
                raise EngineStopped("the engine is not running; load models inside its `async with` block")
            if model.name in self._models:
                raise ModelError(f"a model named {model.name!r} is loaded; unload it first, or choose another name")
            placed: list[int] = []
            fastest_s = math.inf
            if model.on_host:
                self._host_latency_s[model.name] = host_latencies_s(model)
                fastest_s = self._host_latency_s[model.name][0]
            grid = self._grid(model)
            try:
                for group in self._groups_for(model):
                    loaded = await self._load_on(group, model)
                    placed.append(group)
                    self._weights[group, model.name] = loaded.weight_bytes
                    self._scheduler.place(
                        group,
                        model.name,
                        loaded.latency_s,
                        grid,
                        max_wait_s=model.max_wait_s,
                        spare=Spare.of(loaded.weight_bytes, loaded.restore_s) if loaded.restore_s else None,
                    )
                    fastest_s = min(fastest_s, sum(loaded.latency_s[0]))
            except BaseException:
                for group in placed:
                    await self._withdraw(group, model)
                raise
            self._groups_of[model.name] = placed
            self._metrics[model.name] = ModelMetrics()
            self._volumes[model.name] = [math.prod(bucket.sizes.values()) for bucket in model.buckets]
            self._descriptions[model.name] = model.describe() | {"latency_s": fastest_s, "groups": list(placed)}
            self._models[model.name] = model

    async def _load_on(self, group: int, model: Model) -> Loaded:
        spare = model.name in self._placement.groups[group].spares
        if spare:
            self._spares[model.name] = model
        return await self._cluster.load(group, model, spare=spare)

    async def unload(self, name: str) -> None:
        """Takes a model out: no new requests, waits for those inside, then gives its memory back.

        Goes on to its end even where the caller is cancelled.

        Raises:
            ModelNotFound: no such model.
        """
        task = asyncio.get_running_loop().create_task(self._unload(name))
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)
        await asyncio.shield(task)

    async def _unload(self, name: str) -> None:
        async with self._loading:
            model = self._model(name)
            del self._models[name], self._descriptions[name]
            await self._until(lambda: all(pending.model is not model for pending in self._pending.values()))
            for group in self._groups_of.pop(name):
                await self._withdraw(group, model)
            del self._metrics[name], self._volumes[name]
            self._spares.pop(name, None)
            self._host_latency_s.pop(name, None)

    async def _withdraw(self, group: int, model: Model) -> None:
        self._scheduler.withdraw(group, model.name)
        await self._until(lambda: self._ended or not self._scheduler.groups[group].holds(model.name))
        del self._weights[group, model.name]
        await self._cluster.unload(group, model.name)

    def _grid(self, model: Model) -> Grid:
        if model.on_host:
            return ALONE
        if model.max_wait_s > 0 and self._max_batch == 1:
            raise ConfigError(
                f"model {model.name!r} waits for company, max_wait_s is {model.max_wait_s:g}, but with max_batch=1 "
                f"nobody can join; take one of the two away"
            )
        batch_sizes, *others = model.bucket_axes
        return Grid(batch_sizes, [len(sizes) for sizes in others], max_batch=self._max_batch)

    def _groups_for(self, model: Model) -> list[int]:
        if model.on_host:
            return []
        groups = self._placement.groups
        named = [index for index, group in enumerate(groups) if model.name in (*group.models, *group.spares)]
        return named or list(range(len(groups)))

    def _model(self, name: str) -> Model:
        model = self._models.get(name) if isinstance(name, str) else None
        if model is None:
            there = ", ".join(sorted(self._models)) or "none"
            raise ModelNotFound(f"no model {reprlib.repr(name)} is served; there are {there}")
        return model

    # ----------------------------------------------------------------------------------------------------- requests

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        deadline_s: float | None = None,
        priority: int = 0,
        tenant: str = "",
    ) -> Outputs:
        """Runs one request; returns its outputs by name, as numpy arrays, which may be read-only.

        Args:
            model: name of the model.
            inputs: arrays (or lists) by name, with the batch first.
            deadline_s: seconds from now within which the answer is wanted; by default the model's.
            priority: of those who wait for one model, the higher goes first, where the engine has `max_overtakings`;
                from -10 to 10.
            tenant: whose request it is, where the engine has `shares`.

        Raises:
            ModelNotFound, InvalidInput: the call is wrong.
            DeadlineRefused: it could not have been in time; says when it would have finished, and when to try again.
            QueueFull: too many wait already, or too much of the tenant; says when to try again.
            DeadlineExceeded: it was admitted, but was not in time.
            ModelFailed: the model raised.
            GroupFailed: its group was lost.
            EngineStopped: the engine stops.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not None and loop is not self._loop:
            raise EngineStopped(
                "this engine runs on another event loop; call it there (asyncio.run_coroutine_threadsafe), or use a "
                "server and a jaxserve.Client"
            )
        answer: asyncio.Future[Outputs] = loop.create_future()
        if isinstance(inputs, Mapping):  # the caller may fill its arrays anew before these have been read
            inputs = {name: value.copy() if type(value) is np.ndarray else value for name, value in inputs.items()}
        ticket = self.submit(
            model,
            inputs,
            deadline_s=deadline_s,
            on_settled=functools.partial(_fulfil, answer),
            priority=priority,
            tenant=tenant,
        )
        try:
            return await answer
        except asyncio.CancelledError:
            self.cancel(ticket)
            raise
        finally:
            del answer, inputs  # else an error, its traceback and this frame would keep each other alive

    def submit(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        deadline_s: float | None,
        on_settled: OnSettled,
        priority: int = 0,
        tenant: str = "",
        timeline: Timeline | None = None,
        is_probe: bool = False,
    ) -> int:
        """Starts one request; `on_settled` gets its outputs or its error, exactly once, on the loop's thread.

        It may get them before this returns, and nothing is raised. Call it on the engine's loop, and leave the arrays
        unchanged until then: they are not copied. Returns a ticket for `cancel`; -1 where the request is settled
        already. A `timeline` is filled in before `on_settled` is called. A probe is counted in no metrics, but moves
        the model's `last_served_s`.
        """
        now_s = self._clock()
        if not self._accepting:
            # refused=1: it was never taken in, so a client may send it elsewhere
            on_settled(EngineStopped("the engine is not running, or is stopping; send to another one", refused=1))
            return -1
        try:
            served = self._model(model)
        except InferenceError as error:
            on_settled(error)
            return -1
        metrics = self._probes if is_probe else self._metrics[model]
        try:
            slo_s = _slo_s(deadline_s, served)
            priority, tenant = check_priority(priority), check_tenant(tenant)
            pending = _Pending(served, metrics, on_settled, now_s, slo_s, priority, tenant, timeline)
            prepared = None if served.preprocess is not None else _prepare(served, inputs)
        except Exception as error:  # what is no array may raise anything as it is made one
            metrics.invalid += 1
            on_settled(error if isinstance(error, InferenceError) else not_readable(error))
            return -1
        metrics.requests += 1
        ticket = self._next_id
        self._next_id = ticket + 1
        if prepared is None:
            return self._prepare_in_pool(ticket, pending, inputs)
        if served.on_host:
            return self._serve_on_host(ticket, pending, prepared, now_s)
        return self._decide(ticket, pending, prepared, now_s)

    def cancel(self, ticket: int) -> None:
        """Gives a request up: it leaves its queue at once, and is settled with `RequestCancelled`."""
        self.advance(self._clock())
        if ticket in self._pending:
            self._settle_early(ticket, FailReason.CANCELLED)

    def _prepare_in_pool(self, ticket: int, pending: _Pending, inputs: Mapping[str, Any]) -> int:
        """Checks and preprocesses in the pool, then decides."""
        assert self._loop is not None
        model, metrics = pending.model, pending.metrics

        def prepare() -> _Prepared:
            began_s = time.perf_counter()
            result = _prepare(model, inputs)
            self._prepare_s += (time.perf_counter() - began_s - self._prepare_s) / 8
            return result

        def prepared(work: asyncio.Future[_Prepared]) -> None:
            self._preparing -= 1
            if work.cancelled():
                return  # settled before
            error = work.exception()
            if ticket not in self._pending:
                return
            if pending.expiry is not None:
                pending.expiry.cancel()
            pending.preparation = pending.expiry = None
            if error is None:
                decide = self._serve_on_host if model.on_host else self._decide
                decide(ticket, pending, work.result(), self._clock())
            elif isinstance(error, InvalidInput):
                metrics.invalid += 1
                metrics.requests -= 1
                self._settle(ticket, error)
            else:
                metrics.fail(self._clock())
                self._settle(ticket, model_failed(model.name, error))

        self._pending[ticket] = pending
        fastest_s = self._descriptions[model.name]["latency_s"]
        if fastest_s > pending.slo_s:  # refused without the pool: no group is that quick
            metrics.refuse(RefuseReason.LATE, pending.arrival_s)
            self._settle(ticket, too_late(fastest_s, pending.slo_s, math.inf))
            return -1
        if self._preparing >= self._max_queue:
            metrics.refuse(RefuseReason.FULL, pending.arrival_s)
            retry_after_s = self._preparing * self._prepare_s / _POOL_THREADS
            self._settle(
                ticket, QueueFull("too many requests wait for pre-processing; send less", retry_after_s=retry_after_s)
            )
            return -1
        self._preparing += 1
        if pending.slo_s < math.inf:
            pending.expiry = self._loop.call_later(pending.slo_s, self._expire_off_groups, ticket, "preprocessed")
        pending.preparation = self._loop.run_in_executor(self._threads(), prepare)
        pending.preparation.add_done_callback(prepared)
        return ticket

    def _expire_off_groups(self, ticket: int, what: str) -> None:
        """Settles a request whose deadline passes while it is in no group's hands."""
        pending = self._pending.get(ticket)
        if pending is not None:
            self._note_late(pending)
            self._settle_expired(ticket, f"its deadline of {pending.slo_s:g} s passed as it was {what}")

    def _decide(self, ticket: int, pending: _Pending, prepared: _Prepared, now_s: float) -> int:
        if now_s >= self._timer_s:
            self.advance(now_s)
        model = pending.model
        inputs, sizes, bucket = prepared
        request = Request(
            id=ticket,
            model=model.name,
            arrival_s=pending.arrival_s,
            slo_s=pending.slo_s,
            bucket=bucket,
            rows=sizes["batch"],
            priority=pending.priority,
            tenant=pending.tenant,
        )
        decision = self._scheduler.submit(request, now_s=now_s)
        pending.decided_s = now_s
        if isinstance(decision, Rejected):
            pending.metrics.refuse(decision.reason, now_s)
            self._pending[ticket] = pending
            self._settle(ticket, _refused(request, decision))
            if decision.reason is RefuseReason.COLD:
                for group, batch_id in self._scheduler.preload(model.name, now_s=now_s):
                    self._begin(group, 0, batch_id, now_s)
                    self._arm()
            return -1
        pending.group = decision.group
        pending.predicted_finish_s = decision.predicted_finish_s
        pending.job = Job(request, inputs, sizes)
        pending.rows = request.rows
        self._pending[ticket] = pending
        if decision.begins is not None:
            self._begin(decision.group, 0, decision.begins, now_s)
        if min(request.deadline_s, self._cluster.next_end_s, self._scheduler.next_release_s) < self._timer_s:
            self._arm()
        return ticket

    # ---------------------------------------------------------------------------------------- what a cluster reports

    def stage_ended(self, group: int, stage: int, work: Work, now_s: float) -> None:
        """See `Listener`."""
        work.stages.append(self._group_metrics[group].end(stage, now_s))
        step = self._scheduler.stage_done(group, stage, work.batch_id, now_s=now_s, failed=work.error is not None)
        for next_stage, batch_id in step.begins:
            self._begin(group, next_stage, batch_id, now_s)
        if work.leaving is not None and work.error is not None:
            _log.warning("model %s could not be brought to group %d: %s", work.model.name, group, work.error)
        if stage + 1 == self._cluster.stages[group] and work.leaving is None and work.error is None and work.counted:
            metrics = self._metrics[work.model.name]
            metrics.end(sum(job.request.rows for job in work.jobs), work.counted, now_s - work.stages[0][0])
        for outcome in step.outcomes:
            self._finish(work.model, outcome, work.error, now_s)
        self._idle.set()

    def group_failed(self, group: int, reason: str, now_s: float) -> None:
        """See `Listener`."""
        for failed in self._scheduler.fail_group(group, now_s=now_s):
            pending = self._pending.get(failed.id)
            if pending is None:
                continue  # the answer of another one has had it cancelled
            pending.metrics.fail(now_s)
            self._settle(failed.id, GroupFailed(f"group {group} was lost: {reason}", group=group))
        self._group_metrics[group].clear(now_s)
        self._idle.set()  # an unload may wait for what was abandoned there

    def _begin(self, group: int, stage: int, batch_id: int, now_s: float) -> None:
        batch = self._scheduler.groups[group].batch(batch_id)
        self._group_metrics[group].begin(stage, batch.model, now_s)
        self._arm_watchdog()
        work = batch.carries
        if work is None and batch.leaving is not None:
            work = batch.carries = Work(batch_id, self._spares[batch.model], 0, (), batch.leaving)
        elif work is None:
            pending = [self._pending[member.id] for member in batch.members]
            jobs = [each.job for each in pending if each.job is not None]
            work = batch.carries = Work(batch_id, pending[0].model, batch.bucket, jobs)
            for each in pending:
                if each.work is None:  # not where its batch failed and is run again in parts
                    each.metrics.preparation.observe(each.decided_s - each.arrival_s)
                    each.metrics.queue.observe(now_s - each.decided_s)
                each.work = work
            work.begun_s = now_s
            work.counted = sum(each.metrics is not self._probes for each in pending)
            if work.counted:
                self._metrics[batch.model].begin(
                    rows=batch.rows,
                    volume=self._volumes[batch.model][batch.bucket],
                    used=sum(math.prod(job.sizes.values()) for job in jobs),
                )
        self._cluster.begin(group, stage, work, now_s)

    def _serve_on_host(self, ticket: int, pending: _Pending, prepared: _Prepared, began_s: float) -> int:
        """Runs a model that needs no device here and now: nobody else is waiting, so there is nothing to schedule."""
        model, metrics, slo_s = pending.model, pending.metrics, pending.slo_s
        inputs, sizes, bucket = prepared
        takes_s = self._host_latency_s[model.name][bucket] + self._overhead_s
        pending.decided_s = began_s
        pending.group = len(self._group_metrics)
        pending.rows = rows = sizes["batch"]
        pending.predicted_finish_s = began_s + takes_s
        self._pending.pop(ticket, None)  # it is there where it was preprocessed
        late_s = began_s - pending.arrival_s + takes_s - slo_s
        if late_s > 0.0:
            metrics.refuse(RefuseReason.LATE, began_s)
            self._give(pending, too_late(slo_s + late_s, slo_s, math.inf if takes_s > slo_s else late_s))
            return -1
        try:
            outputs = model.call_on_host(inputs)
        except Exception as error:  # whatever a model raises is the answer to its request
            metrics.fail(self._clock())
            self._give(pending, model_failed(model.name, error))
            return -1
        now_s = self._clock()
        took_s = now_s - began_s
        self._host_metrics.run_on_host(took_s)
        metrics.run_on_host(rows, took_s)
        if pending.timeline is not None:
            pending.timeline.begun_s = began_s
            pending.timeline.stages.append((began_s, now_s))
            pending.timeline.rows = rows
        if model.postprocess is not None:
            self._pending[ticket] = pending
            self._postprocess(ticket, pending, outputs, sizes)
            return ticket
        self._count(pending, now_s)
        self._give(pending, outputs)
        return -1

    def _finish(self, model: Model, outcome: Done | Failed, error: Exception | None, now_s: float) -> None:
        ticket = outcome.id
        if ticket not in self._pending:
            return  # the answer of another one has had it cancelled
        pending = self._pending[ticket]
        if isinstance(outcome, Failed):
            pending.metrics.fail(now_s)
            assert error is not None
            self._settle(ticket, model_failed(model.name, error))
            return
        assert pending.job is not None
        assert pending.job.outputs is not None
        if model.postprocess is not None:
            self._postprocess(ticket, pending, pending.job.outputs, pending.job.sizes)
            return
        self._count(pending, now_s)
        self._settle(ticket, pending.job.outputs)

    def _postprocess(self, ticket: int, pending: _Pending, outputs: Outputs, sizes: Mapping[str, int]) -> None:
        assert self._loop is not None
        model = pending.model

        def done(work: asyncio.Future[Outputs]) -> None:
            error = work.exception()
            if ticket not in self._pending:
                return
            if error is None:
                self._count(pending, self._clock())
                self._settle(ticket, work.result())
            else:
                pending.metrics.fail(self._clock())
                self._settle(ticket, model_failed(model.name, error))

        if pending.slo_s < math.inf:
            left_s = max(0.0, pending.arrival_s + pending.slo_s - self._clock())
            pending.expiry = self._loop.call_later(left_s, self._expire_off_groups, ticket, "postprocessed")
        work = self._loop.run_in_executor(self._threads(), model.finish, outputs, sizes)
        work.add_done_callback(done)

    # ---------------------------------------------------------------------------------------------------------- time

    def advance(self, now_s: float) -> None:
        """Lets happen what is due: at each instant ends of stages, then ends of waiting for company, then deadlines."""
        while True:
            end_s = self._cluster.next_end_s
            release_s = self._scheduler.next_release_s
            deadline_s = self._scheduler.next_deadline_s
            next_s = min(end_s, release_s, deadline_s)
            if next_s > now_s:
                return
            if end_s == next_s:
                self._cluster.report_next()
                continue
            if release_s == next_s:
                for group, batch_id in self._scheduler.release(now_s=release_s):
                    self._begin(group, 0, batch_id, release_s)
                continue
            for failed in self._scheduler.expire(now_s=deadline_s):
                if failed.id in self._pending:
                    self._settle_expired(failed.id)

    def _arm(self) -> None:
        """Sets the one timer to what is due next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        scheduler = self._scheduler
        self._timer_s = min(self._cluster.next_end_s, scheduler.next_release_s, scheduler.next_deadline_s)
        if self._timer_s < math.inf and self._loop is not None:
            self._timer = self._loop.call_later(max(0.0, self._timer_s - self._clock()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.advance(self._clock())
        self._arm()

    def _arm_watchdog(self) -> None:
        if self._watchdog is None and self._stuck_after_s < math.inf and self._loop is not None:
            self._watchdog = self._loop.call_later(self._stuck_after_s / 4, self._watch)

    def _watch(self) -> None:
        """Looks for stuck stages, and again later for as long as anything is inside."""
        self._watchdog = None
        for group, stage in self._scheduler.find_stuck(now_s=self._clock(), stuck_after_s=self._stuck_after_s):
            _log.warning("stage %d of group %d is stuck: the group takes nobody in until it ends", stage, group)
        if not all(state.is_idle for state in self._scheduler.groups):
            self._arm_watchdog()

    # ------------------------------------------------------------------------------------------------------ settling

    def _settle_early(self, ticket: int, reason: FailReason) -> None:
        """Settles a request that was cancelled or that the engine stops under."""
        pending = self._pending[ticket]
        self._scheduler.cancel(ticket, reason=reason)
        if reason is FailReason.CANCELLED:
            pending.metrics.cancelled += 1
            error: InferenceError = RequestCancelled("the request was cancelled by its caller")
        else:
            pending.metrics.fail(self._clock())
            error = EngineStopped("the engine stopped before the request was answered")
        self._settle(ticket, error)

    def _settle_expired(self, ticket: int, message: str | None = None) -> None:
        pending = self._pending[ticket]
        pending.metrics.expire(self._clock())
        message = message or f"not answered within its deadline of {pending.slo_s:g} s, though it was admitted"
        self._settle(ticket, DeadlineExceeded(message, deadline_s=pending.slo_s))

    def _settle(self, ticket: int, result: Outputs | InferenceError) -> None:
        self._give(self._pending.pop(ticket), result)

    def _give(self, pending: _Pending, result: Outputs | InferenceError) -> None:
        """Gives a request that is pending no more its result."""
        if pending.expiry is not None:
            pending.expiry.cancel()
        if isinstance(result, InferenceError):
            if pending.job is not None:
                pending.job.abandoned = True
            if pending.preparation is not None:
                pending.preparation.cancel()  # where its turn in the pool has not come, it is not done
            if not isinstance(result, InvalidInput):
                pending.metrics.unserved_s += self._clock() - pending.arrival_s
        if pending.timeline is not None:
            self._fill(pending.timeline, pending)
        self._idle.set()
        try:
            pending.on_settled(result)
        except Exception as error:  # a caller's mistake must not cost other callers their answers
            assert self._loop is not None
            self._loop.call_exception_handler({"message": "on_settled raised", "exception": error})

    def _note_late(self, pending: _Pending) -> None:
        name, now_s = pending.model.name, self._clock()
        self._scheduler.note_late(pending.group, name, arrival_s=pending.arrival_s, now_s=now_s)

    def _count(self, pending: _Pending, now_s: float) -> None:
        in_time = pending.metrics.answer(
            pending.arrival_s,
            pending.slo_s,
            pending.predicted_finish_s,
            now_s if pending.work is None else pending.work.stages[-1][1],
            pending.rows,
            now_s,
        )
        if pending.metrics is self._probes and pending.model.name in self._metrics:
            self._metrics[pending.model.name].last_served_s = now_s
        if not in_time and not pending.model.on_host:
            self._note_late(pending)

    def _fill(self, timeline: Timeline, pending: _Pending) -> None:
        timeline.arrival_s = pending.arrival_s
        timeline.decided_s = pending.decided_s
        timeline.group = pending.group
        timeline.predicted_finish_s = pending.predicted_finish_s
        timeline.settled_s = self._clock()
        if pending.work is not None:
            timeline.begun_s = pending.work.begun_s
            timeline.stages = list(pending.work.stages)
            timeline.rows = sum(job.request.rows for job in pending.work.jobs)

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Waits until something holds; looked at whenever a stage ends or a request is settled."""
        while not holds():
            self._idle.clear()
            await self._idle.wait()

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_POOL_THREADS, thread_name_prefix="jaxserve-host")
        return self._pool

    # -------------------------------------------------------------------------------------------------------- status

    @property
    def models(self) -> Mapping[str, Model]:
        """The models that are served, by name."""
        return self._models

    def now_s(self) -> float:
        """The engine's clock."""
        return self._clock()

    def status(self) -> dict[str, Any]:
        """Counters of models and groups, as plain values."""
        return self.observe().to_json()

    def observe(self) -> Observation:
        """The state of everything at this moment."""
        now_s = self._clock()
        held: list[list[str]] = [[] for _ in self._scheduler.groups]
        for name, holders in self._groups_of.items():
            for group in holders:
                held[group].append(name)
        weight_bytes = self._weight_bytes()
        groups = [
            GroupObservation(
                metrics=metrics,
                intra_op=config.intra_op,
                devices=config.devices,
                models=held[index],
                resident_spares=state.residency.resident,
                healthy=state.healthy and state.stuck is None,
                stuck=state.stuck is not None,
                queue=state.queue_length,
                in_flight=state.in_flight,
                weight_bytes=weight_bytes[index],
            )
            for index, (state, metrics, config) in enumerate(
                zip(self._scheduler.groups, self._group_metrics, self._placement.groups, strict=True)
            )
        ]
        return Observation(
            now_s=now_s,
            uptime_s=max(now_s - self._opened_s, 1e-9),
            accepting=self._accepting,
            in_flight=len(self._pending),
            models={
                name: ModelObservation(
                    metrics=metrics,
                    drift=self._scheduler.drift(name),
                    groups=self._groups_of[name],
                )
                for name, metrics in self._metrics.items()
            },
            groups=groups,
            host=GroupObservation.of_host(self._host_metrics, list(self._host_latency_s)),
            memory=self._cluster.memory(),
        )

    def _weight_bytes(self) -> list[list[float]]:
        """Of each group, what all models take on each device of each stage; of spares, those that are there."""
        groups = self._scheduler.groups
        totals = [[0.0] * group.stages for group in groups]
        for (index, name), weight_bytes in self._weights.items():
            residency = groups[index].residency
            if not residency.has(name) or name in residency.resident:
                totals[index] = [one + other for one, other in zip(totals[index], weight_bytes, strict=True)]
        return totals

    def describe(self) -> list[dict[str, Any]]:
        """What each model takes and returns, as plain values.

        `latency_s` is what the smallest bucket takes on an idle group, on the fastest of the model's groups.
        """
        return list(self._descriptions.values())

    def description(self, name: str) -> dict[str, Any] | None:
        """What one model takes and returns, as in `describe`; None where there is no such model."""
        return self._descriptions.get(name)


def _never_back(clock: Callable[[], float]) -> Callable[[], float]:
    """A clock like this one that never says less than before."""
    latest_s = -math.inf

    def now() -> float:
        nonlocal latest_s
        latest_s = max(latest_s, clock())
        return latest_s

    return now


def _slo_s(deadline_s: float | None, model: Model) -> float:
    if deadline_s is not None:
        return check_deadline(deadline_s)
    return math.inf if model.deadline_s is None else model.deadline_s


def _prepare(model: Model, inputs: Mapping[str, Any]) -> _Prepared:
    arrays, sizes = model.prepare(inputs)
    return arrays, sizes, model.bucket_index(sizes)


def _fulfil(answer: "asyncio.Future[Outputs]", result: Outputs | InferenceError) -> None:
    if answer.done():
        return  # cancelled
    if isinstance(result, InferenceError):
        answer.set_exception(result)
    else:
        answer.set_result(result)


def _refused(request: Request, rejected: Rejected) -> DeadlineRefused | QueueFull | GroupFailed:
    if rejected.reason is RefuseReason.FULL:
        return QueueFull(
            f"as many requests wait as are allowed to; try again in {rejected.retry_after_s:.2g} s",
            retry_after_s=rejected.retry_after_s,
        )
    if rejected.reason is RefuseReason.SHARE:
        return QueueFull(
            f"tenant {request.tenant!r} has as much waiting as its share allows; try again in "
            f"{rejected.retry_after_s:.2g} s",
            retry_after_s=rejected.retry_after_s,
            tenant=request.tenant,
        )
    if rejected.reason is RefuseReason.DOWN:
        return GroupFailed(f"no healthy group holds model {request.model!r} at present; try again later")
    return too_late(rejected.predicted_finish_s - request.arrival_s, request.slo_s, rejected.retry_after_s)
