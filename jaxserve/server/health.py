"""Who is ready: a model is where an inference of it, a client's or our own, was answered lately.

Every model that was not asked for a while is asked by the server itself, with its example, at most every third of
`ready_within_s`. So a model whose groups hang is not ready `ready_within_s` after its last answer, or sooner, where the
engine's watchdog finds that all its groups are stuck or lost. Where there are so many or such slow models that asking
them all would take more than a hundredth of the groups' time, it is done less often, and the time within which they
must have answered grows in proportion.
"""

import asyncio
import contextlib
import functools
import itertools
import logging
import math
from collections.abc import Mapping

from jaxserve.errors import InferenceError, QueueFull
from jaxserve.metrics import Observation
from jaxserve.model import Model
from jaxserve.server.seam import Outputs, ServedEngine

_log = logging.getLogger("jaxserve.server")
_SHARE = 0.01
"""Of the groups' time, what asking may take."""


class Health:
    """Asks models whether they answer; an async context manager.

    Args:
        engine: that holds them.
        ready_within_s: seconds within which a model must have answered to be ready.
    """

    def __init__(self, engine: ServedEngine, *, ready_within_s: float = 10.0) -> None:
        self._engine = engine
        self._ready_within_s = ready_within_s
        self._loop = asyncio.get_running_loop()
        self._within_s = ready_within_s
        self._answer_came = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._questions = itertools.count()
        self._asked: dict[int, tuple[str, int]] = {}  # question -> model and ticket, of what is not answered
        self._asked_s: dict[str, float] = {}  # model -> when it was last asked
        self._wrong: dict[str, str] = {}
        self._draining = False

    async def __aenter__(self) -> "Health":
        self._ask()
        with contextlib.suppress(TimeoutError):  # who has not answered by then is not ready
            async with asyncio.timeout(self._within_s):
                while self._asked:
                    self._answer_came.clear()
                    await self._answer_came.wait()
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._draining = True
        for _, asked in list(self._asked.values()):
            self._engine.cancel(asked)

    async def ask(self, model: str) -> None:
        """Asks a model that has just been loaded, and waits for its answer, for as long as it may take to be ready."""
        self._asked_s.pop(model, None)
        served = self._engine.models.get(model)
        if served is not None:
            question = self._ask_one(model, served, self._engine.now_s())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._within_s):
                    while question in self._asked:
                        self._answer_came.clear()
                        await self._answer_came.wait()

    @property
    def is_draining(self) -> bool:
        """Whether nothing new is taken any more."""
        return self._draining

    def drain(self) -> None:
        """From now on nothing is ready."""
        self._draining = True

    def is_ready(self) -> bool:
        """Whether the server takes requests, and every model is ready."""
        observed = self._engine.observe()
        return not self._draining and observed.accepting and all(self.readiness(observed).values())

    def is_model_ready(self, model: str) -> bool:
        """Whether a model was answered lately; False for one that is not served."""
        return self.readiness().get(model, False)

    def readiness(self, observed: Observation | None = None) -> Mapping[str, bool]:
        """Of every model, whether it is ready; by what was observed just now, if anything was."""
        observed = self._engine.observe() if observed is None else observed
        return {
            name: not self._draining
            and observed.accepting
            and observed.now_s - model.metrics.last_served_s <= self._within_s
            and (not model.groups or any(observed.groups[group].healthy for group in model.groups))
            for name, model in observed.models.items()
        }

    def reasons(self) -> Mapping[str, str]:
        """Of models whose last question was not answered with outputs, what was said instead."""
        return self._wrong

    def _ask(self) -> None:
        """Asks every model that was not answered lately, and comes back later."""
        observed = self._engine.observe()
        asking_s = sum(description["latency_s"] for description in self._engine.describe())
        self._within_s = max(self._ready_within_s, 3 * asking_s / max(1, len(observed.groups)) / _SHARE)
        every_s = self._within_s / 3
        for name, model in self._engine.models.items():
            latest_s = max(
                self._asked_s.get(name, -math.inf), observed.models[name].metrics.last_served_s
            )  # which may be NaN
            if (
                not observed.now_s - latest_s < every_s
            ):  # what has not answered is asked again: by another group perhaps
                self._ask_one(name, model, observed.now_s)
        self._timer = self._loop.call_later(every_s / 2, self._ask)

    def _ask_one(self, name: str, model: Model, now_s: float) -> int:
        question = next(self._questions)
        self._asked[question] = (name, -1)
        self._asked_s[name] = now_s
        ticket = self._engine.submit(
            name,
            model.example,
            deadline_s=self._within_s,
            on_settled=functools.partial(self._answered, question),
            is_probe=True,
        )
        if question in self._asked:
            self._asked[question] = (name, ticket)
        return question

    def _answered(self, question: int, result: Outputs | InferenceError) -> None:
        model, _ = self._asked.pop(question)
        self._answer_came.set()
        if not isinstance(result, InferenceError):
            if self._wrong.pop(model, None) is not None:
                _log.info("model %s answers again", model)
        elif not self._draining and not isinstance(result, QueueFull):  # who has much to do is not ill
            if model not in self._wrong:
                _log.warning("model %s does not answer its example: %s", model, result)
            self._wrong[model] = str(result)
