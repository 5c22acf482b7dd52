"""The default policy: annealing over which groups there are and what they hold, on several traces.

1. *Starts.* AlpaServe's placement, which is the baseline; and for each parallel config, groups of it throughout, filled
   by who is served worst (`starts`).
2. *Shapes.* The best of them are annealed for a while, with some steps that reshape, split and merge groups: what a
   shape is worth shows only once its models are well chosen.
3. *Models.* The best two are annealed for the rest of the time, each on a core.
4. *Verdict.* The best are compared once more, on traces that nothing was fitted to. Only one that is reliably better
   than the baseline takes its place: its mean gain must be 0.2 points, and more than what the gain differs from trace
   to trace (one standard deviation). Where all good placements are about as good as each other, which of them serves
   tomorrow's traffic best is a matter of luck; then it is not worth leaving the plain one. Where no chain is clearly
   better, one of them looks for a placement that gains on each trace. For fairness or floors single models count, which
   have few requests in one trace: the gain differs from trace to trace by more than there is to gain. There its mean
   must be more than the mean's own standard error.

Where requests may be merged, runs take many times longer, and a placement that serves them well one by one is a good
one to begin with. So the first three stages run without batches; then the best placements are annealed on with them.

The steps are those of `moves`, judged as `anneal` says, on the traces of `training`. Chains share nothing, so the
result of a given number of simulations depends on the seed only, however many cores there are. The search ends early
when nothing is missed that any group could serve in time.
"""

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from jaxserve.errors import PlacementError
from jaxserve.placement.alpaserve import variant
from jaxserve.placement.anneal import Chain, Judge, Verdict
from jaxserve.placement.bound import in_time
from jaxserve.placement.moves import Moves
from jaxserve.placement.problem import Effort, Plan, Problem, Progress
from jaxserve.placement.starts import fill_by_need, uniform_groups
from jaxserve.placement.training import fresh_traces, training_traces
from jaxserve.simulator import FleetTables, Scorer, Traffic

_CORES = 2  # chains at a time
_SHAPED, _ANNEALED = 0.35, 0.97  # shares of the effort after which the second and the third stage end
_ALONE, _MERGED = 0.6, 0.9  # where requests are merged: shares after which the search without and with batches end
_RESHAPE_OFTEN, _RESHAPE_RARELY = 0.1, 0.02  # shares of steps that change the groups
_KEPT = 6  # starts that are annealed
_CLOSE = 0.02  # a second shape whose value is so close to the best is annealed to the end as well
_QUICK_LOOK = 3  # traces that starts are filled by
_POLL_S = 0.1
_BASELINE = 0.15  # share of the effort that the baseline may take
_CLEAR = 2.0  # standard deviations by which a gain over the baseline is clear
_COMPARED = 4  # placements that come to the verdict
_FRESH = 24  # traces for the verdict
_WORTHWHILE = 0.002  # gain over the baseline below which the baseline stays


def search(problem: Problem, effort: Effort) -> Plan:
    """The best placement that is found within the effort (see this module).

    Raises:
        PlacementError: no model fits any group.
    """
    return _Search(problem, effort).run()


class _Search:
    """One search; see the module."""

    def __init__(self, problem: Problem, effort: Effort) -> None:
        self._problem = problem
        self._effort = effort
        self._seeds = np.random.SeedSequence(effort.seed)
        self._began_s = effort.clock()
        self._ended = False
        self._baseline_simulations = 0
        self._judges: list[Judge] = []
        self._chains: list[Chain] = []
        self._best: Verdict | None = None
        self._alone = problem
        if problem.max_batch > 1:
            tables = FleetTables.of(problem.fleet, problem.profiles)
            self._alone = dataclasses.replace(problem, max_batch=1, tables=tables)
        self._traces = training_traces(problem.workload, problem.fleet, self._rng())
        self._reachable = reachable(problem, self._traces)

    def run(self) -> Plan:
        """All stages; the best of what was found when it is stopped."""
        problem = self._problem
        moves = Moves(self._alone, reshape=_RESHAPE_OFTEN)
        groups = uniform_groups(problem, moves)
        if not groups:
            raise PlacementError("no model of the fleet fits any group; see what each lacks with `jaxserve plan`")
        pool = concurrent.futures.ThreadPoolExecutor(_CORES)
        try:
            baseline, *started = self._gather(
                pool,
                [
                    self._alpaserve(groups[0], buckets=False),
                    self._alpaserve(groups[0], buckets=True),
                    *(self._start(moves, each) for each in groups),
                ],
            )
            share = 1.0 if self._alone is problem else _ALONE
            chains = [self._chain(moves, verdict) for verdict in (baseline, *_ranked(started)[:_KEPT])]
            shaped = self._gather(pool, self._annealing(chains, share * _SHAPED, in_turns=True))
            first, *others = _ranked(shaped)
            second = others[0] if others and others[0].value > first.value - _CLOSE else first
            moves = Moves(self._alone, reshape=_RESHAPE_RARELY)
            gains = first.values - baseline.values
            if gains.mean() > _CLEAR * self._doubt(gains):
                chains = [self._chain(moves, verdict) for verdict in (first, second)]
            else:
                chains = [self._chain(moves, first), self._chain(moves, baseline, rival=baseline)]
            found = self._gather(pool, self._annealing(chains, share * _ANNEALED, in_turns=False))
            found += _ranked(shaped)[:_COMPARED]
            if self._alone is not problem:
                quick, judge = (
                    self._judge(traces, merging=True) for traces in (self._traces[:_QUICK_LOOK], self._traces)
                )
                baseline = judge.verdict(baseline.shape)
                best = _ranked(quick.verdict(each.shape) for each in (*found, *started))[:_CORES]
                chains = [self._chain(moves, judge.verdict(each.shape), merging=True) for each in best]
                found = self._gather(pool, self._annealing(chains, _MERGED, in_turns=False))
        finally:
            self._ended = True
            pool.shutdown()
        best = self._decide(baseline, found)
        return Plan(placement=problem.placement(best.shape), simulations=self._simulations)

    def _alpaserve(self, groups: Sequence[int], *, buckets: bool) -> Callable[[], Verdict]:
        effort, judge = self._effort, self._judge(self._traces)
        part = dataclasses.replace(
            effort,
            seconds=effort.seconds * _BASELINE,
            simulations=None if effort.simulations is None else int(effort.simulations * _BASELINE),
            report=lambda progress: None,
            stop=lambda: self._ended,
        )

        def place() -> Verdict:
            try:
                plan = variant(buckets=buckets)(self._alone, part)
            except PlacementError:  # none of the configs that it tries is there: anything is better than nothing
                return judge.verdict(self._problem.empty(groups))
            self._baseline_simulations += plan.simulations
            return judge.verdict(self._problem.shape(plan.placement, spare=2))

        return place

    def _start(self, moves: Moves, groups: Sequence[int]) -> Callable[[], Verdict]:
        quick, judge = self._judge(self._traces[:_QUICK_LOOK]), self._judge(self._traces)
        return lambda: judge.verdict(fill_by_need(quick, moves, self._problem, groups).shape)

    def _chain(self, moves: Moves, start: Verdict, *, rival: Verdict | None = None, merging: bool = False) -> Chain:
        chain = Chain(self._judge(self._traces, rival=rival, merging=merging), moves, start, self._rng())
        self._chains.append(chain)
        return chain

    def _annealing(self, chains: Sequence[Chain], until: float, *, in_turns: bool) -> list[Callable[[], Verdict]]:
        """Runs of these chains that together use up the effort up to a share of it."""
        effort = self._effort
        if effort.simulations is not None:
            quota = max(0.0, effort.simulations * until - self._simulations) / len(chains)
        else:
            quota = max(0.0, self._began_s + effort.seconds * until - effort.clock())
            if in_turns:
                quota *= min(_CORES, len(chains)) / len(chains)
        return [lambda chain=chain: chain.run(self._part_done(chain, quota)) for chain in chains]

    def _part_done(self, chain: Chain, quota: float) -> Callable[[], float]:
        """How much of its part of the effort a chain has used since this was first asked; 1 where it is to end."""
        first: list[float] = []

        def done() -> float:
            if self._ended or self._is_perfect(chain.best):
                return 1.0
            now = self._effort.clock() if self._effort.simulations is None else float(chain.judge.simulations)
            first.append(now)
            del first[1:]
            return (now - first[0]) / quota if quota > 0 else 1.0

        return done

    def _gather(self, pool: concurrent.futures.Executor, tasks: Iterable[Callable[[], Verdict]]) -> list[Verdict]:
        """What the tasks return, in their order; those that have begun, where the search is told to stop."""
        futures = [pool.submit(task) for task in tasks]
        waiting = set(futures)
        while waiting:
            try:
                done, waiting = concurrent.futures.wait(waiting, timeout=_POLL_S)
                for future in done:
                    self._note(future.result())
                self._report()
                if self._effort.stop():
                    self._ended = True
            except KeyboardInterrupt:
                self._ended = True
            if self._ended:
                waiting = {future for future in waiting if not future.cancel()}
        return [future.result() for future in futures if not future.cancelled()]

    def _decide(self, baseline: Verdict, others: Sequence[Verdict]) -> Verdict:
        """The best that is reliably no worse than the baseline, else the baseline."""
        fresh = fresh_traces(self._problem.workload, self._problem.fleet, self._rng(), resamples=_FRESH)
        judge = self._judge(fresh or self._traces, merging=True)  # of very few requests all draws may be empty
        expected = judge.verdict(baseline.shape)
        best, most = baseline, self._over_all(baseline, expected)
        for each in others:
            seen = judge.verdict(each.shape)
            gains = seen.values - expected.values
            reliable = gains.mean() >= max(_WORTHWHILE, self._doubt(gains))
            if reliable and self._over_all(each, seen) > most:
                best, most = each, self._over_all(each, seen)
        return best

    def _doubt(self, gains: npt.NDArray[np.float64]) -> float:
        """How unsure the mean of the gains on several traces is (see this module)."""
        return float(gains.std()) / (1.0 if self._problem.objective.is_total else math.sqrt(len(gains)))

    @staticmethod
    def _over_all(fitted: Verdict, fresh: Verdict) -> float:
        """The mean over the traces that a placement was fitted to and those that it was not."""
        return len(fitted.values) * fitted.value + len(fresh.values) * fresh.value

    def _judge(self, traces: Sequence[Traffic], *, rival: Verdict | None = None, merging: bool = False) -> Judge:
        problem = self._problem if merging else self._alone
        scorers = [Scorer(problem.tables, traffic, overhead_s=problem.overhead_s) for traffic in traces]
        judge = Judge(scorers, problem.objective, rival=None if rival is None else rival.values)
        self._judges.append(judge)
        return judge

    def _rng(self) -> np.random.Generator:
        """A generator of its own for each part, in the order in which they are made."""
        return np.random.default_rng(self._seeds.spawn(1)[0])

    @property
    def _simulations(self) -> int:
        return self._baseline_simulations + sum(judge.simulations for judge in self._judges)

    def _note(self, verdict: Verdict) -> None:
        if self._best is None or verdict.value > self._best.value:
            self._best = verdict

    def _report(self) -> None:
        effort = self._effort
        served = [int(each.served.sum()) for each in (self._best, *(chain.best for chain in self._chains)) if each]
        if effort.simulations is not None:
            done = self._simulations / max(effort.simulations, 1)
        else:
            done = (effort.clock() - self._began_s) / effort.seconds
        attainment = max(served, default=0) / sum(traffic.requests for traffic in self._traces)
        effort.report(Progress(done=min(done, 1.0), simulations=self._simulations, slo_attainment=attainment))

    def _is_perfect(self, verdict: Verdict) -> bool:
        return self._problem.objective.is_total and int(verdict.served.sum()) >= self._reachable


def _ranked(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Best first; of equals the earlier."""
    return sorted(verdicts, key=lambda verdict: -verdict.value)


def reachable(problem: Problem, traces: Iterable[Traffic]) -> int:
    """Requests that some config serves in time when it is idle: no placement serves more."""
    tables = problem.tables
    fits = (tables.weight_bytes <= problem.fleet.memory_bytes).all(axis=2)
    alone_s = np.where(fits, tables.latency_s[..., 0].sum(axis=2), np.inf).min(axis=0, initial=np.inf)
    return sum(int(in_time(problem, traffic, alone_s).sum()) for traffic in traces)
