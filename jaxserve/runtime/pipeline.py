"""A model on its devices: stages on submeshes, and the way of a batch through them.

Each stage may be run by its own thread; nothing here changes once the pipeline is made. Values travel as a list: what a
stage does not use it hands on untouched, still on the submesh that made it, so a value moves once, to where it is used.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxserve.model import Model
from jaxserve.parallel import Plan
from jaxserve.parallel.check import Comparison, compare
from jaxserve.plans import Profile
from jaxserve.runtime.compiled import Executable
from jaxserve.runtime.weights import LoadedWeights

Values = Sequence[Any]  # jax arrays, and numpy arrays of inputs that no stage has used yet


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One stage at one bucket, with positions in the list of values in place of numbers of values.

    Attributes:
        call: the compiled stage.
        arguments: weights and constants.
        takes: positions of what it takes.
        moves: of these, the places that are made on another submesh, and the sharding to move them to.
        keeps: positions of what is handed on untouched.
    """

    call: Any
    arguments: tuple[jax.Array, ...]
    takes: tuple[int, ...]
    moves: tuple[tuple[int, Any], ...]
    keeps: tuple[int, ...]

    def run(self, values: Values) -> list[Any]:
        """What is left of the values, followed by what the stage gives."""
        taken = [values[position] for position in self.takes]
        if self.moves:
            arriving = jax.device_put([taken[place] for place, _ in self.moves], [target for _, target in self.moves])
            for (place, _), value in zip(self.moves, arriving, strict=True):
                taken[place] = value
        given = self.call(*self.arguments, *taken)
        if given:  # a stage may have nothing to do but to hand on what it was given
            given[-1].block_until_ready()  # one program makes them all at once
        return [*(values[position] for position in self.keeps), *given]


class Pipeline:
    """A loaded model. Made by `jaxserve.runtime.load`.

    Attributes:
        model: the model.
        plan: how it is cut and sharded.
        config: devices per stage, and stages.
        profiles: measured latencies and memory, one row for each bucket, in the order of the model's buckets.
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        weights: Sequence[LoadedWeights],
        executables: Sequence[Sequence[Executable]],
    ) -> None:
        """Puts it together.

        Args:
            model: the model.
            plan: how it is cut and sharded.
            weights: of each stage.
            executables: for each bucket, one for each stage.
        """
        self.model = model
        self.plan = plan
        self.config = plan.config
        self.profiles: tuple[Profile, ...] = ()
        self._weights = [each.arrays for each in weights]
        self._owned = [array for each in weights for array in each.owned]
        made = [
            _steps(model, stages, arguments=self._weights, outputs=graph.outputs)
            for stages, graph in zip(executables, plan.graphs, strict=True)
        ]
        self._steps = [steps for steps, _ in made]
        self._outputs = [positions for _, positions in made]
        self._closed = False

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return self.config.inter_op

    @property
    def num_arrays(self) -> int:
        """Number of arrays that hold the weights: what each call of the stages passes besides its values."""
        return sum(map(len, self._weights))

    def put(self, bucket: int, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Values:
        """Takes padded inputs; they go to the first stage's devices when it runs, as one with its dispatch."""
        return [inputs[name] for name in self.model.inputs]

    def run(self, stage: int, bucket: int, values: Values) -> Values:
        """Runs one stage and waits for its end; may be called by a thread for each stage at once."""
        if self._closed:
            raise RuntimeError(f"the pipeline of {self.model.name!r} is closed; load the model again")
        return self._steps[bucket][stage].run(values)

    def fetch(self, bucket: int, values: Values) -> dict[str, np.ndarray[Any, Any]]:
        """The named outputs on the host, padded as they are."""
        return {
            name: np.asarray(values[position])
            for name, position in zip(self.model.outputs, self._outputs[bucket], strict=True)
        }

    def __call__(self, inputs: Mapping[str, Any]) -> Any:
        """The module's own result for module inputs of any size that a bucket holds; no pre- or postprocessing.

        Raises:
            InvalidInput: the inputs do not fit the module's signature or any bucket.
        """
        arrays, sizes = self.model.inputs.check(inputs)
        bucket = self.model.bucket_index(sizes)
        values = self.put(bucket, self.model.pad(arrays, bucket))  # type: ignore[arg-type]  (no strings here)
        for stage in range(self.num_stages):
            values = self.run(stage, bucket, values)
        return self.model.restore(self.model.unpad(self.fetch(bucket, values), sizes))

    def check(self) -> tuple[Comparison, ...]:
        """For each bucket and each of its stages, what its devices send beside what was planned: see `Comparison`.

        `[each for each in pipeline.check() if not each.agrees]` are the differences.
        """
        if self._closed:
            raise RuntimeError(f"the pipeline of {self.model.name!r} is closed; load the model again")
        return tuple(
            compare(
                plan,
                step.call.as_text(),
                platform=step.call.runtime_executable().local_devices()[0].platform,
                bucket=str(bucket),
                stage=stage,
            )
            for bucket, plans, steps in zip(self.model.buckets, self.plan.stages, self._steps, strict=True)
            for stage, (plan, step) in enumerate(zip(plans, steps, strict=True))
        )

    def close(self) -> None:
        """Gives the memory back. Call it when no stage is running; after it the pipeline cannot run."""
        if self._closed:
            return
        self._closed = True
        for array in self._owned:
            array.delete()
        self._steps, self._weights, self._owned = [], [], []


def _steps(
    model: Model, stages: Sequence[Executable], *, arguments: Sequence[Sequence[jax.Array]], outputs: Sequence[int]
) -> tuple[tuple[_Step, ...], tuple[int, ...]]:
    """Works out where each value stands in the list at each stage: the steps, and the positions of the outputs."""
    at_hand = list(range(len(model.inputs)))
    steps: list[_Step] = []
    for number, (stage, weights) in enumerate(zip(stages, arguments, strict=True)):
        later = {value for other in stages[number + 1 :] for value in other.takes} | set(outputs)
        kept = [value for value in at_hand if value in later]
        moves = [
            (place, sharding)
            for place, (value, sharding) in enumerate(zip(stage.takes, stage.take_shardings, strict=True))
            if value >= len(model.inputs)  # inputs are on the host: the compiled call brings them itself
        ]
        steps.append(
            _Step(
                call=stage.call,
                arguments=(*weights, *stage.constants),
                takes=tuple(at_hand.index(value) for value in stage.takes),
                moves=tuple(moves),
                keeps=tuple(at_hand.index(value) for value in kept),
            )
        )
        at_hand = [*kept, *stage.gives]
    return tuple(steps), tuple(at_hand.index(value) for value in outputs)
