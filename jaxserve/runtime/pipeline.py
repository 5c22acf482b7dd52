"""A model on its devices: stages on submeshes, and the way of a batch through them.

Each stage may be run by its own thread. Once the pipeline is made, nothing changes but whether a stage's weights are on
its devices, and only that stage's thread changes it. Values travel as a list: what a stage does not use it hands on
untouched, still on the submesh that made it, so a value moves once, to where it is used.
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
from jaxserve.runtime.residence import StageArrays

Values = Sequence[Any]  # jax arrays, and numpy arrays of inputs that no stage has used yet


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One stage at one bucket, with positions in the list of values in place of numbers of values.

    Attributes:
        call: the compiled stage.
        takes: positions of what it takes.
        moves: of these, the places that are made on another submesh, and the sharding to move them to.
        keeps: positions of what is handed on untouched.
    """

    call: Any
    takes: tuple[int, ...]
    moves: tuple[tuple[int, Any], ...]
    keeps: tuple[int, ...]

    def run(self, arguments: tuple[jax.Array, ...], values: Values) -> list[Any]:
        """What is left of the values, followed by what the stage gives; the arguments are weights and constants."""
        taken = [values[position] for position in self.takes]
        if self.moves:
            arriving = jax.device_put([taken[place] for place, _ in self.moves], [target for _, target in self.moves])
            for (place, _), value in zip(self.moves, arriving, strict=True):
                taken[place] = value
        given = self.call(*arguments, *taken)
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
        num_arrays: number of arrays that hold the weights: what each call of the stages passes besides its values.
        restore_s: of a spare, the measured seconds in which each stage is put back onto its devices; empty otherwise.
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        stages: Sequence[StageArrays],
        executables: Sequence[Sequence[Executable]],
    ) -> None:
        """Puts it together.

        Args:
            model: the model.
            plan: how it is cut and sharded.
            stages: the weights and constants of each stage.
            executables: for each bucket, one for each stage.
        """
        self.model = model
        self.plan = plan
        self.config = plan.config
        self.profiles: tuple[Profile, ...] = ()
        self.restore_s: tuple[float, ...] = ()
        self.num_arrays = sum(len(stage.weights) for stage in stages)
        self._stages = stages
        made = [_steps(model, row, graph.outputs) for row, graph in zip(executables, plan.graphs, strict=True)]
        self._steps = [steps for steps, _ in made]
        self._outputs = [positions for _, positions in made]
        self._closed = False

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return self.config.inter_op

    def put(self, bucket: int, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Values:
        """Takes padded inputs; they go to the first stage's devices when it runs, as one with its dispatch."""
        return [inputs[name] for name in self.model.inputs]

    def run(self, stage: int, bucket: int, values: Values) -> Values:
        """Runs one stage and waits for its end; may be called by a thread for each stage at once.

        Raises:
            RuntimeError: the stage is not on its devices, or the pipeline is closed.
        """
        arguments = self._stages[stage].arguments
        if arguments is None:
            self._require_open()
            raise RuntimeError(
                f"stage {stage} of {self.model.name!r} is not on its devices; call restore({stage}) before it runs"
            )
        return self._steps[bucket][stage].run(arguments[bucket], values)

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
        self._require_open()
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

    def resident(self, stage: int) -> bool:
        """Whether a stage's weights are on its devices, so that it can run."""
        return self._stages[stage].arguments is not None

    def evict(self, stage: int) -> None:
        """Takes the weights of a stage off its devices; does nothing where they are not there.

        Constants that its programs are passed, as they are too large to be written into them, go with them. The
        programs stay, and so do params that the model's owner holds on a device. A CPU device is the host itself: there
        an array and its copy may be the same memory, and then nothing is freed here, and nothing copied to restore it.

        `evict`, `restore` and `run` of one stage must not be called at once; those of different stages may.

        Raises:
            RuntimeError: the model was not loaded with `spare=True`.
        """
        if not self.resident(stage):
            return
        if not self._stages[stage].spare:
            raise RuntimeError(f"{self.model.name!r} has no copy of its weights to restore; load it with spare=True")
        self._stages[stage].evict()

    def restore(self, stage: int) -> None:
        """Puts the weights of a stage back onto its devices, and waits until they are there; nothing where they are.

        Raises:
            RuntimeError: the pipeline is closed.
            jax.errors.JaxRuntimeError: the devices have too little memory; the stage is off them as before.
        """
        self._require_open()
        self._stages[stage].restore()

    def close(self) -> None:
        """Gives the memory back, also that of copies. Call it when no stage is running; after it none can run."""
        self._closed = True
        for stage in self._stages:
            stage.close()
        self._steps = []

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"the pipeline of {self.model.name!r} is closed; load the model again")


def _steps(
    model: Model, stages: Sequence[Executable], outputs: Sequence[int]
) -> tuple[tuple[_Step, ...], tuple[int, ...]]:
    """Works out where each value stands in the list at each stage: the steps, and the positions of the outputs."""
    at_hand = list(range(len(model.inputs)))
    steps: list[_Step] = []
    for number, stage in enumerate(stages):
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
                takes=tuple(at_hand.index(value) for value in stage.takes),
                moves=tuple(moves),
                keeps=tuple(at_hand.index(value) for value in kept),
            )
        )
        at_hand = [*kept, *stage.gives]
    return tuple(steps), tuple(at_hand.index(value) for value in outputs)
