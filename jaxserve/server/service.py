"""What every standard protocol serves: one engine, for those who may use it.

The servers turn bytes into calls of this and what comes back into bytes; what is decided, counted and logged for all of
them is decided, counted and logged here. Answers other than tensors are plain values in the Open Inference Protocol's
field names (v2_forms.py).
"""

import asyncio
import itertools
import logging
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from jaxserve.errors import (
    AdministrationOff,
    EngineStopped,
    GroupFailed,
    InferenceError,
    ModelFailed,
    ModelNotFound,
    PermissionDenied,
    TooManyInFlight,
)
from jaxserve.metrics import Timeline
from jaxserve.model import Model
from jaxserve.server import v2_forms
from jaxserve.server.access import Access, Identity
from jaxserve.server.health import Health
from jaxserve.server.limits import Limits
from jaxserve.server.seam import Outputs, ServedEngine
from jaxserve.server.tracing import NOT_TRACED, Tracing

_log = logging.getLogger("jaxserve.service")
_requests = logging.getLogger("jaxserve.requests")
"""With a line for each request, where that is asked for."""


class _Answer:
    """What `on_settled` brings; most often it is there before anybody has to wait for it."""

    __slots__ = ("_waiter", "result")

    def __init__(self) -> None:
        self.result: Outputs | InferenceError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __call__(self, result: Outputs | InferenceError) -> None:
        if self.result is None:
            self.result = result
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Waits for it."""
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter


class Service:
    """One engine, as the servers of standard protocols see it.

    Args:
        engine: what serves the requests; it must be running.
        health: who is ready.
        access: who may do what.
        known: models that may be loaded again once they were unloaded.
        limits: what strangers may cost.
        administers: whether models may be loaded and unloaded through public doors, by those whose token says so.
        logs_requests: whether every request gets a line in the log, not only those that went wrong.
        tracing: where spans go.
    """

    def __init__(
        self,
        engine: ServedEngine,
        *,
        health: Health,
        access: Access,
        known: Iterable[Model] = (),
        limits: Limits,
        logs_requests: bool = False,
        tracing: Tracing = NOT_TRACED,
    ) -> None:
        self.engine = engine
        self.health = health
        self.access = access
        self.limits = limits
        self._known = {model.name: model for model in known}
        self._logs_requests = logs_requests
        self._tracing = tracing
        self._in_flight: dict[str, int] = {}
        self._waiting: dict[int, tuple[str, _Answer]] = {}  # ticket -> protocol and answer
        self._left = asyncio.Event()  # one waits no longer
        self._administering = asyncio.Lock()
        self._busy: dict[str, str] = {}  # models that are being loaded or unloaded
        self._wrong: dict[str, str] = {}  # models that could not be loaded
        self.turned_away: Counter[tuple[str, str]] = Counter()
        """Requests that no engine has seen, by protocol and the error's code."""
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    # ----------------------------------------------------------------------------------------------------- inference

    def new_request_id(self) -> str:
        """An id for a request that came without one."""
        return f"{self._prefix}-{next(self._numbers):x}"

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        identity: Identity,
        protocol: str,
        client: str = "",
        version: str = "",
        deadline_s: float | None = None,
        priority: int = 0,
        tenant: str = "",
        request_id: str = "",
        traceparent: str | None = None,
    ) -> Outputs:
        """Runs one request; cancelling this cancels it.

        Args:
            model: its name.
            inputs: arrays, nested lists or lists of str, by name.
            identity: who asks.
            protocol: for the log, such as "http".
            client: the address of who asks, by which unanswered requests are counted where there is no token.
            version: of the model; empty for the latest.
            deadline_s: seconds from now; None for the model's default.
            priority: see `Engine.infer`.
            tenant: for whom, where nobody has shown a token; else that of the token.
            request_id: for the log.
            traceparent: of W3C Trace Context, as it came.

        Raises:
            InferenceError: every reason why there are no outputs.
        """
        if not identity.may_infer(model):
            error = identity.cannot_infer(model)
            self._turn_away(error, model, request_id, protocol, identity)
            raise error
        who = identity.name or client
        if self._in_flight.get(who, 0) >= self.limits.max_in_flight_per_client:
            error = TooManyInFlight(
                f"{who or 'this client'} has {self._in_flight[who]} requests unanswered, as many as it may; wait for "
                f"answers before sending more",
                retry_after_s=1.0,
            )
            self._turn_away(error, model, request_id, protocol, identity)
            raise error
        if version and version != v2_forms.MODEL_VERSION:
            error = _no_version(model, version)
            self._turn_away(error, model, request_id, protocol, identity)
            raise error
        timeline = Timeline() if self._logs_requests or self._tracing.is_on else None
        answer = _Answer()
        ticket = self.engine.submit(
            model,
            inputs,
            deadline_s=deadline_s,
            on_settled=answer,
            priority=priority,
            tenant=identity.tenant(tenant),
            timeline=timeline,
        )
        if answer.result is None:
            self._waiting[ticket] = protocol, answer
            self._in_flight[who] = self._in_flight.get(who, 0) + 1
            try:
                await answer.wait()
            except asyncio.CancelledError:
                self.engine.cancel(ticket)
                if timeline is not None and answer.result is not None:
                    self._trace(timeline, answer.result, model, request_id, protocol, identity, traceparent)
                raise
            finally:
                del self._waiting[ticket]
                self._left.set()
                left = self._in_flight[who] = self._in_flight[who] - 1
                if not left:
                    del self._in_flight[who]
        result = answer.result
        assert result is not None
        if timeline is not None:
            self._trace(timeline, result, model, request_id, protocol, identity, traceparent)
        if isinstance(result, InferenceError):
            if isinstance(result, ModelNotFound):
                result = self._no_model(model, identity)
                self.turned_away[protocol, result.code] += 1
            self._tell(result, model, request_id, protocol, identity)
            raise result
        return result

    def _trace(
        self,
        timeline: Timeline,
        result: Outputs | InferenceError,
        model: str,
        request_id: str,
        protocol: str,
        identity: Identity,
        traceparent: str | None,
    ) -> None:
        code = result.code if isinstance(result, InferenceError) else "served"
        if self._tracing.is_on:
            self._tracing.record(
                timeline,
                now_s=self.engine.now_s(),
                model=model,
                code=code,
                request_id=request_id,
                protocol=protocol,
                traceparent=traceparent,
            )
        if self._logs_requests and code == "served":
            _requests.info(
                "request served",
                extra={
                    "model": model,
                    "request_id": request_id,
                    "protocol": protocol,
                    "client": identity.name,
                    "group": timeline.group,
                    "rows": timeline.rows,
                    "seconds": round(timeline.settled_s - timeline.arrival_s, 6),
                },
            )

    def _turn_away(self, error: InferenceError, model: str, request_id: str, protocol: str, identity: Identity) -> None:
        self.turned_away[protocol, error.code] += 1
        self._tell(error, model, request_id, protocol, identity)

    def _tell(self, error: InferenceError, model: str, request_id: str, protocol: str, identity: Identity) -> None:
        """Logs a request that was not served; what a model has raised, with all that it says of itself."""
        error.is_told = True
        log = _requests if self._logs_requests else _log
        level = logging.WARNING if isinstance(error, GroupFailed | PermissionDenied) else logging.INFO
        if log.isEnabledFor(level):
            log.log(
                level,
                f"request not served: {error.code}",  # one message for each code, for the log to leave out repetitions
                extra={
                    "model": str(model)[:200],
                    "request_id": request_id,
                    "protocol": protocol,
                    "client": identity.name,
                    "why": str(error)[:500],
                },
                exc_info=error.__cause__ if isinstance(error, ModelFailed) else None,
            )

    def stop_in_flight(self, protocol: str) -> None:
        """Answers what still waits of a protocol with `EngineStopped`."""
        error = EngineStopped("the server stopped before the request was answered")
        for ticket, (spoken, answer) in list(self._waiting.items()):
            if spoken == protocol:
                answer(error)
                self.engine.cancel(ticket)

    def in_flight(self, protocol: str) -> int:
        """Requests of a protocol that wait for their answer."""
        return sum(spoken == protocol for spoken, _ in self._waiting.values())

    async def until_idle(self, protocol: str) -> None:
        """Waits until none of a protocol waits for its answer."""
        while self.in_flight(protocol):
            self._left.clear()
            await self._left.wait()

    # -------------------------------------------------------------------------------------------------------- health

    def identify(self, authorization: str | None) -> Identity:
        """Who shows this header.

        Raises:
            Unauthenticated: a token is wanted, and there is none that is known.
        """
        return self.access.identify(authorization)

    def is_live(self) -> bool:
        """Whether the process does its work; that it answers shows it."""
        return True

    def is_ready(self) -> bool:
        """Whether requests are taken and every model is ready."""
        return self.health.is_ready()

    def has(self, model: str, version: str = "") -> bool:
        """Whether a model is served."""
        return model in self.engine.models and version in ("", v2_forms.MODEL_VERSION)

    def is_model_ready(self, model: str, version: str = "") -> bool:
        """Whether an inference of a model was answered lately; False for one that is unknown."""
        return version in ("", v2_forms.MODEL_VERSION) and self.health.is_model_ready(model)

    # -------------------------------------------------------------------------------------------------- descriptions

    def server_metadata(self) -> dict[str, Any]:
        """What the server is."""
        return v2_forms.server_metadata()

    def description(self, model: str, version: str = "", *, identity: Identity) -> dict[str, Any]:
        """What a model takes and returns, as the engine gives it, for somebody who may use or administer it.

        Raises:
            PermissionDenied: the identity may not.
            ModelNotFound: there is no such model, or version.
        """
        if not _may_see(identity, model):
            raise identity.cannot_infer(model)
        description = self.engine.description(model)
        if description is None:
            raise self._no_model(model, identity)
        if version not in ("", v2_forms.MODEL_VERSION):
            raise _no_version(model, version)
        return description

    def visible(self, identity: Identity) -> list[str]:
        """The models that are served and that the identity may use or administer."""
        return [name for name in self.engine.models if _may_see(identity, name)]

    def _no_model(self, model: str, identity: Identity) -> ModelNotFound:
        there = ", ".join(sorted(self.visible(identity))) or "none"
        return ModelNotFound(f"no model {model!r:.200} is served; there are {there:.1000}")

    def output_names(self, model: str) -> Iterable[str]:
        """The names of a model's outputs.

        Raises:
            ModelNotFound: there is no such model.
        """
        served = self.engine.models.get(model)
        if served is None:
            raise ModelNotFound(f"no model {model!r:.200} is served")
        return served.returns

    def model_metadata(self, model: str, version: str = "", *, identity: Identity) -> dict[str, Any]:
        """What a model takes and returns."""
        return v2_forms.model_metadata(self.description(model, version, identity=identity))

    def model_config(self, model: str, version: str = "", *, identity: Identity) -> dict[str, Any]:
        """How a model is served."""
        return v2_forms.model_config(self.description(model, version, identity=identity))

    def statistics(self, model: str = "", version: str = "", *, identity: Identity) -> dict[str, Any]:
        """What one model has done, or each that the identity may see."""
        if model:
            self.description(model, version, identity=identity)
        observed = self.engine.observe()
        since_1970_s = time.time() - observed.now_s
        statistics = [
            v2_forms.model_statistics(
                name,
                each,
                last_inference_ms=round(1000 * (since_1970_s + each.metrics.last_answer_s))
                if each.metrics.served
                else 0,
            )
            for name, each in observed.models.items()
            if model in ("", name) and _may_see(identity, name)
        ]
        return {"model_stats": statistics}

    # ------------------------------------------------------------------------------------------------ administration

    def repository_index(self, *, identity: Identity, ready_only: bool = False) -> list[dict[str, Any]]:
        """The models that are known and that the identity may see, and what state they are in."""
        readiness = self.health.readiness()
        index: list[dict[str, Any]] = []
        for name in dict.fromkeys((*self.engine.models, *self._known)):
            if not _may_see(identity, name):
                continue
            if name in self._busy:
                state, reason = self._busy[name], ""
            elif readiness.get(name, False):
                state, reason = "READY", ""
            elif name in self.engine.models:
                state, reason = "UNAVAILABLE", self.health.reasons().get(name, "it has not answered lately")
            else:
                state, reason = "UNAVAILABLE", self._wrong.get(name, "unloaded")
            if state == "READY" or not ready_only:
                index.append({"name": name, "version": v2_forms.MODEL_VERSION, "state": state, "reason": reason})
        return index

    async def load(self, model: str, *, identity: Identity) -> None:
        """Loads a model that is known, and sees that it answers; does nothing where it is loaded.

        Raises:
            AdministrationOff, PermissionDenied: the identity may not.
            ModelNotFound: it is not known.
            JaxserveError: it could not be loaded.
        """
        self._check_administers(identity, model)
        async with self._administering:
            if model in self.engine.models:
                return
            if model not in self._known:
                there = ", ".join(sorted(name for name in self._known if _may_see(identity, name)))
                raise ModelNotFound(f"no model {model!r:.200} is known; there are {there:.1000}")
            self._busy[model] = "LOADING"
            try:
                await self.engine.load(self._known[model])
                await self.health.ask(model)
            except Exception as error:
                self._wrong[model] = f"it could not be loaded: {error}"
                raise
            finally:
                del self._busy[model]
            self._wrong.pop(model, None)
            _log.info("model loaded", extra={"model": model, "client": identity.name})

    async def unload(self, model: str, *, identity: Identity) -> None:
        """Takes a model out once what is inside is answered.

        Raises:
            AdministrationOff, PermissionDenied: the identity may not.
            ModelNotFound: it is not loaded.
        """
        self._check_administers(identity, model)
        async with self._administering:
            if model not in self.engine.models:
                raise self._no_model(model, identity)
            self._known.setdefault(model, self.engine.models[model])
            self._busy[model] = "UNLOADING"
            try:
                await self.engine.unload(model)
            finally:
                del self._busy[model]
            _log.info("model unloaded", extra={"model": model, "client": identity.name})

    def _check_administers(self, identity: Identity, model: str) -> None:
        if not identity.admin:
            raise AdministrationOff(
                "models are not loaded and unloaded through this door; use the administration socket (--admin-unix), "
                "or a token that has `admin`"
            )
        if not identity.may_administer(model):
            raise identity.cannot_administer(model)


def _may_see(identity: Identity, model: str) -> bool:
    return identity.may_infer(model) or identity.may_administer(model)


def _no_version(model: str, version: str) -> ModelNotFound:
    return ModelNotFound(
        f"model {model!r:.200} has no version {version!r:.80}; there is only {v2_forms.MODEL_VERSION!r}"
    )
