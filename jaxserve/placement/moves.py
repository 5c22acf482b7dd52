"""The steps from one placement to the next: which models a group holds, and which groups there are.

A state is a `Shape` with some empty slots (config -1), into which groups are split. After each step the groups that it
touched are brought within their memory by dropping models and filled up again: a replica more rarely does harm.
"""

import numpy as np
import numpy.typing as npt

from jaxserve.errors import PlacementError
from jaxserve.placement.devices import assign_devices
from jaxserve.placement.problem import Problem
from jaxserve.simulator import Shape

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Moves:
    """Random steps within the memory and the devices of a problem.

    Args:
        problem: the problem.
        reshape: share of the steps that change which groups there are.
    """

    def __init__(self, problem: Problem, *, reshape: float) -> None:
        tables, fleet = problem.tables, problem.fleet
        self._fleet = fleet
        self._configs = tables.configs
        self._weights = tables.weight_bytes
        self._budget = fleet.memory_bytes
        self.fits = worth_holding(problem)
        self._reshape = reshape
        wide_enough = np.array([config.intra_op <= fleet.devices_per_host for config in tables.configs], bool)
        useful = self.fits.any(axis=1) & wide_enough
        self._of_size: dict[int, Ints] = {}
        for size in sorted(set(tables.devices.tolist())):
            configs = np.flatnonzero((tables.devices == size) & useful)
            if len(configs):
                self._of_size[size] = configs
        self._size = tables.devices

    def fill(self, shape: Shape, group: int, order: npt.ArrayLike) -> None:
        """Adds models to a group, in this order, as far as its memory goes."""
        config, held = int(shape.config[group]), shape.held[group]
        used = self._used(config, held)
        weights = self._weights[config]
        smallest = weights[self.fits[config]].sum(axis=1).min(initial=np.inf)
        for m in np.asarray(order):
            if not held[m] and self.fits[config, m] and (used + weights[m] <= self._budget).all():
                held[m] = 1
                used = self._used(config, held)
                if self._budget * len(used) - used.sum() < smallest:
                    return

    def most_wanted(self, shape: Shape, group: int, wanted: Floats) -> int | None:
        """Of the models that a group has room for, the one that is wanted most."""
        config, held = int(shape.config[group]), shape.held[group]
        room = (self._weights[config] + self._used(config, held) <= self._budget).all(axis=1)
        open_to = np.flatnonzero(room & self.fits[config] & (held == 0))
        return int(open_to[np.argmax(wanted[open_to])]) if len(open_to) else None

    def step(self, shape: Shape, wanted: Floats, rng: np.random.Generator) -> Shape | None:
        """A neighbour of a placement; None where the step that was drawn cannot be taken.

        Args:
            shape: the placement; left as it is.
            wanted: float64 [models], how much each is wanted: requests that are not served.
            rng: source of every draw.
        """
        odds = wanted + 0.02 * wanted.mean() + 1e-9
        odds = odds / odds.sum()
        changed = Shape(config=shape.config.copy(), held=shape.held.copy())
        groups = np.flatnonzero(shape.config >= 0)
        if rng.random() < self._reshape:
            touched = self._change_groups(changed, groups, rng)
        else:
            touched = self._change_models(changed, groups, odds, rng)
        return changed if touched and self._settle(changed, touched, odds, rng) else None

    def _change_models(self, shape: Shape, groups: Ints, odds: Floats, rng: np.random.Generator) -> dict[int, int]:
        """Replicates, moves, swaps or drops a model; returns the groups that changed, with what each must keep."""
        kind = rng.random()
        group = int(rng.choice(groups))
        held = shape.held[group]
        if kind < 0.6:  # one more replica of a model that is wanted
            model = int(rng.choice(len(odds), p=odds))
            if held[model] or not self.fits[shape.config[group], model]:
                return {}
            held[model] = 1
            return {group: model}
        own = np.flatnonzero(held)
        if not len(own):
            return {}
        if kind > 0.85:
            held[rng.choice(own)] = 0
            return {group: -1}
        other = int(rng.choice(groups))
        there = shape.held[other]
        movable = own[(there[own] == 0) & self.fits[shape.config[other], own]]
        if not len(movable):
            return {}
        given = int(rng.choice(movable))
        held[given], there[given] = 0, 1
        back = np.flatnonzero(there & (held == 0) & self.fits[shape.config[group]])
        back = back[back != given]
        if not len(back):
            return {group: -1, other: given}
        taken = int(rng.choice(back))
        there[taken], held[taken] = 0, 1
        return {group: taken, other: given}

    def _change_groups(self, shape: Shape, groups: Ints, rng: np.random.Generator) -> dict[int, int]:
        """Gives a group another config of as many devices, splits it in two, or merges it with another."""
        kind = rng.random()
        group = int(rng.choice(groups))
        size = int(self._size[shape.config[group]])
        if kind < 0.4:
            others = self._of_size[size]
            others = others[others != shape.config[group]]
            if not len(others):
                return {}
            shape.config[group] = rng.choice(others)
            touched = {group: -1}
        elif kind < 0.7:
            empty = np.flatnonzero(shape.config < 0)
            if size // 2 not in self._of_size or size % 2 or not len(empty):
                return {}
            half = self._of_size[size // 2]
            second = int(empty[0])
            shape.config[group], shape.config[second] = rng.choice(half), rng.choice(half)
            shape.held[second] = shape.held[group]
            touched = {group: -1, second: -1}
        else:
            partners = groups[(groups != group) & (self._size[shape.config[groups]] == size)]
            if not len(partners) or 2 * size not in self._of_size:
                return {}
            partner = int(rng.choice(partners))
            shape.config[group] = rng.choice(self._of_size[2 * size])
            shape.held[group] |= shape.held[partner]
            shape.config[partner], shape.held[partner] = -1, 0
            touched = {group: -1}
        return touched if self._can_be_placed(shape) else {}

    def _settle(self, shape: Shape, touched: dict[int, int], odds: Floats, rng: np.random.Generator) -> bool:
        """Brings the groups within their memory and fills them up; False where one cannot keep what it must."""
        order = np.argsort(-np.log(odds) - rng.gumbel(size=len(odds)))  # a draw without replacement by the odds
        for group, keep in touched.items():
            config, held = int(shape.config[group]), shape.held[group]
            held[~self.fits[config]] = 0
            while (self._used(config, held) > self._budget).any():
                droppable = np.flatnonzero(held)
                droppable = droppable[droppable != keep]
                if not len(droppable):
                    return False
                held[rng.choice(droppable)] = 0
            self.fill(shape, group, order)
        return True

    def _used(self, config: int, held: npt.NDArray[np.uint8]) -> Floats:
        """Bytes of weights on a device of each stage, added in the order in which a placement names the models."""
        return self._weights[config][held.astype(bool)].sum(axis=0)

    def _can_be_placed(self, shape: Shape) -> bool:
        configs = [self._configs[config] for config in shape.config if config >= 0]
        try:
            assign_devices(configs, devices=self._fleet.devices, devices_per_host=self._fleet.devices_per_host)
        except PlacementError:
            return False
        return True


def worth_holding(problem: Problem) -> npt.NDArray[np.bool_]:
    """[C, M]: whether a model fits a group of a config by itself, and answers in time when the group is idle.

    In time by the longest SLO among the model's requests and its own in the fleet.
    """
    tables, fleet, workload = problem.tables, problem.fleet, problem.workload
    longest_s = np.array([model.slo_s for model in fleet.models])
    index_of = {model.name: index for index, model in enumerate(fleet.models)}
    for position, name in enumerate(workload.model_names):
        own = workload.slo_s[workload.model == position]
        if name in index_of and len(own):
            longest_s[index_of[name]] = max(longest_s[index_of[name]], own.max())
    alone_s = tables.latency_s[..., 0].sum(axis=2) + problem.overhead_s
    fits = (tables.weight_bytes <= fleet.memory_bytes).all(axis=2)
    return fits & (alone_s <= longest_s)
