"""One stage at one bucket, compiled ahead of time for its submesh."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxserve.parallel import Sharded, Stage, StagePlan, constrained, sharded
from jaxserve.runtime.weights import Layout, Weight, lay_out

# A constant that the model closed over is written into the program up to this size, and passed to it above.
EMBED_UP_TO_BYTES = 4096


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Executable:
    """A compiled stage.

    Attributes:
        call: takes weights, large constants and values; returns a list of arrays.
        constants: the large constants, not on the stage's submesh yet.
        constant_sharding: where it wants them.
        takes: indices of the values that it takes.
        gives: indices of the values that it gives.
        take_shardings: where it wants the values that it takes.
        activation_bytes: memory on each device besides weights, while it runs.
    """

    call: Any
    constants: tuple[Any, ...]
    constant_sharding: NamedSharding
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    take_shardings: tuple[NamedSharding, ...]
    activation_bytes: int


def make_mesh(devices: Sequence[Any], axes: dict[str, int]) -> Mesh:
    """The submesh of a stage. Its axes are `Auto`: XLA propagates the shardings that the stage does not state."""
    return Mesh(np.array(devices).reshape(tuple(axes.values())), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


class LoweredStage:
    """A stage on its way to an `Executable`: lowered, not yet compiled.

    Attributes:
        arguments: shape and sharding of each argument.
    """

    def __init__(self, stage: Stage, specs: Sharded, layout: Layout, mesh: Mesh) -> None:
        self._stage = stage
        self._layout = layout
        self._run = constrained(stage.program, specs.constraints, mesh, arrivals=specs.arrivals)
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._takes = tuple(NamedSharding(mesh, spec) for spec in specs.takes)
        self._passed = [constant for constant in stage.constants if constant.nbytes > EMBED_UP_TO_BYTES]
        shapes = [
            *(slot.shape for slot in layout.slots),
            *(jax.ShapeDtypeStruct(constant.shape, constant.dtype) for constant in self._passed),
            *map(_shape, stage.arguments.takes),
        ]
        shardings = (
            *(slot.sharding for slot in layout.slots),
            *((self._replicated,) * len(self._passed)),
            *self._takes,
        )
        self.arguments = tuple(zip(shapes, shardings, strict=True))
        gives = tuple(NamedSharding(mesh, spec) for spec in specs.gives)
        self._lowered = jax.jit(self._program, in_shardings=shardings, out_shardings=list(gives)).lower(*shapes)

    def _program(self, *arguments: jax.Array) -> list[jax.Array]:
        slots = len(self._layout.slots)
        weights = self._layout.unpack(arguments[:slots])
        passed = iter(arguments[slots : slots + len(self._passed)])
        constants = [
            next(passed) if constant.nbytes > EMBED_UP_TO_BYTES else constant for constant in self._stage.constants
        ]
        values = arguments[slots + len(self._passed) :]
        params = [weights[index] for index in self._stage.params]
        return self._run(*params, *constants, *values)

    @property
    def text(self) -> str:
        """The lowered program: the same for stages that compute the same on submeshes of one shape."""
        return self._lowered.as_text()

    def compile(self) -> Executable:
        """Compiles it, or takes it from the compilation cache; any thread may do so."""
        compiled = self._lowered.compile()
        return Executable(
            call=compiled,
            constants=tuple(self._passed),
            constant_sharding=self._replicated,
            takes=self._stage.takes,
            gives=self._stage.gives,
            take_shardings=self._takes,
            activation_bytes=_activation_bytes(compiled, self._layout.bytes_per_device),
        )


def lower_alone(plan: StagePlan, devices: Sequence[Any]) -> LoweredStage:
    """A planned stage, or a slice of the program, whose weights are laid out for it alone; it needs none of them."""
    stage, specs = plan.stage, sharded(plan)
    mesh = make_mesh(devices, specs.mesh)
    weights = [
        Weight(index=index, shape=_shape(var), spec=spec, added=index in stage.added)
        for index, var, spec in zip(stage.params, stage.arguments.params, specs.params, strict=True)
    ]
    return LoweredStage(stage, specs, lay_out(weights, mesh), mesh)


def _shape(var: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype)


def _activation_bytes(compiled: Any, weight_bytes: int) -> int:
    """Temporaries, arguments and results on each device, less the weights."""
    memory = compiled.memory_analysis()
    if memory is None:  # a backend that cannot say
        return 0
    arguments = max(0, memory.argument_size_in_bytes - weight_bytes)
    return int(arguments + memory.output_size_in_bytes + memory.temp_size_in_bytes - memory.alias_size_in_bytes)
