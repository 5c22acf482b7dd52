"""Programs that the passes are tested on, plans for them on one mesh, and what XLA makes of a plan."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.extend import core
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxserve.model import Model, TensorSpec
from jaxserve.models.bert import Bert, BertConfig
from jaxserve.models.gpt import Gpt, GptConfig
from jaxserve.models.moe import Moe, MoeConfig
from jaxserve.parallel import StagePlan, constrained, cut, hoist, sharded, trace
from jaxserve.parallel.atoms import nbytes
from jaxserve.parallel.cut import Stage
from jaxserve.parallel.devices import DEVICES, Device
from jaxserve.parallel.hlo import Collective, collectives
from jaxserve.parallel.intra_op import IntraOp, shard
from jaxserve.parallel.layout import AXES, LogicalMesh, Spec, Transfer
from jaxserve.parallel.nodes import Nodes, divide
from jaxserve.parallel.plan import EVEN_SLACK
from jaxserve.parallel.rules import NONE

H100 = DEVICES["h100"]
CPU = DEVICES["cpu"]

TOKENS = {
    "input_ids": TensorSpec(("batch", "length"), "int32"),
    "attention_mask": TensorSpec(("batch", "length"), "int32"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """A whole model at one bucket, before the passes.

    Attributes:
        stage: the program.
        nodes: what the intra-op pass decides on.
        leaves: for each weight, the path of the leaf that it is made of.
        paths: for each equation, the path of its module.
    """

    stage: Stage
    nodes: Nodes
    leaves: tuple[str, ...]
    paths: tuple[str, ...]

    @property
    def eqns(self) -> Sequence[Any]:
        return self.nodes.eqns

    def gives(self, plan: IntraOp) -> tuple[Spec, ...]:
        """The specs of the outputs under a plan of the whole."""
        specs: dict[Any, Spec] = dict(zip(self.stage.arguments.takes, plan.takes, strict=True))
        for step in plan.steps:
            specs.update(zip(self.eqns[step.place].outvars, step.results, strict=True))
        whole = (NONE,) * len(plan.mesh_shape)
        return tuple(
            whole if isinstance(atom, core.Literal) else specs.get(atom, whole)
            for atom in self.stage.program.jaxpr.outvars
        )

    @property
    def weight_bytes(self) -> float:
        return sum(map(nbytes, self.nodes.weights))

    def even_bytes(self, devices: int) -> float:
        """The weight budget of a plan to which none was given."""
        heavy = self.nodes.heavy_weights()
        return sum(
            nbytes(var) * (EVEN_SLACK / devices if index in heavy else 1) for var, index in self.nodes.weights.items()
        )

    def heads(self, name: str) -> list[int]:
        """Places of the heavy operations in the modules of this name."""
        return [
            node.head.place
            for node in self.nodes.nodes
            if node.head is not None and self.paths[node.head.place].endswith(name)
        ]

    def weight(self, leaf: str) -> int:
        """Index of the one weight that is made of the leaf whose path ends like this."""
        (index,) = (index for index, each in enumerate(self.leaves) if each.endswith(leaf))
        return index

    def shard(self, *shape: int, device: Device = H100, budget: float | None = None, **options: Any) -> IntraOp:
        """The plan on a mesh; within the budget that a plan has to which none was given, unless one is given."""
        mesh = LogicalMesh(shape=shape, device=device)
        if budget is None:
            options.update(soft=True)
            budget = self.even_bytes(mesh.size)
        return shard(self.nodes, mesh, budget_bytes=budget, **options)


def program(model: Model, *, bucket: int = 0) -> Program:
    (graph,), weights = hoist([trace(model, model.buckets[bucket])])
    (stage,) = cut(graph, ()).stages
    path_of = {id(eqn): "/".join(path) for eqn, path in zip(graph.eqns, graph.paths, strict=True)}
    params, constants, _ = stage.arguments
    return Program(
        stage=stage,
        nodes=divide(stage.program.jaxpr, weights=params, constants=constants),
        leaves=tuple(model.param_paths[weights[index].leaves[0]] for index in stage.params),
        paths=tuple(path_of[id(eqn)] for eqn in stage.program.jaxpr.eqns),
    )


def of_function(function: Any, params: Any, *, batch: int = 4, **inputs: Sequence[Any]) -> Program:
    """The program of a function of float32 inputs, whose first dimension is the batch; params are shapes."""
    shapes = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, "float32"), params, is_leaf=_is_shape)
    specs = {name: TensorSpec(("batch", *shape), "float32") for name, shape in inputs.items()}
    return program(Model.from_function("f", function, shapes, inputs=specs, batch_sizes=(batch,)))


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, tuple) and all(isinstance(size, int) for size in leaf)


@functools.cache
def bert_model(*, batch: int | Sequence[int] = 1, length: int = 64, cuts: Sequence[str] = (), **sizes: Any) -> Model:
    config = BertConfig(**_sizes(length, sizes))
    return _of_linen("bert", Bert(config), batch, length, cuts)


@functools.cache
def gpt_model(*, batch: int | Sequence[int] = 1, length: int = 64, **sizes: Any) -> Model:
    config = GptConfig(**_sizes(length, sizes))
    module = nnx.eval_shape(lambda: Gpt(config, rngs=nnx.Rngs(0)))
    batches = (batch,) if isinstance(batch, int) else batch
    return Model.from_nnx("gpt", module, inputs=TOKENS, batch_sizes=batches, buckets={"length": (length,)})


@functools.cache
def moe_model(*, batch: int | Sequence[int] = 1, length: int = 64, **sizes: Any) -> Model:
    config = MoeConfig(**_sizes(length, {"experts": 8, **sizes}))
    return _of_linen("moe", Moe(config), batch, length)


@functools.cache
def bert(**options: Any) -> Program:
    return program(bert_model(**options))


@functools.cache
def gpt(**options: Any) -> Program:
    return program(gpt_model(**options))


@functools.cache
def moe(**options: Any) -> Program:
    return program(moe_model(**options))


def _sizes(length: int, sizes: Mapping[str, Any]) -> dict[str, Any]:
    size = sizes.get("hidden_size", 128)
    return {
        "layers": 2,
        "hidden_size": size,
        "heads": 8,
        "feed_forward_size": 4 * size,
        "vocabulary": 1024,
        "max_length": length,
        **sizes,
    }


def _of_linen(name: str, module: Any, batch: int | Sequence[int], length: int, cuts: Sequence[str] = ()) -> Model:
    """A model with shapes in place of params: to be planned, not to be loaded."""
    batches = (batch,) if isinstance(batch, int) else batch
    inputs = {key: jax.ShapeDtypeStruct((1, length), "int32") for key in TOKENS}
    params = jax.eval_shape(lambda inputs: module.init(jax.random.key(0), **inputs), inputs)
    return Model.from_linen(
        name, module, params, inputs=TOKENS, batch_sizes=batches, buckets={"length": (length,)}, cuts=cuts
    )


def wire_bytes(exchanges: Iterable[Transfer | Collective], *, scatter: str = "reduce_scatter") -> float:
    """What one device sends for collectives, by the algorithms of `collectives`.

    With `scatter="all_reduce"`, where there is no reduce-scatter and XLA makes an all-reduce and a slice of it.
    """
    total = 0.0
    for each in exchanges:
        devices = each.devices if isinstance(each, Transfer) else each.group_size
        kind = scatter if each.kind == "reduce_scatter" else each.kind
        share = 1.0 if kind == "collective_permute" else (devices - 1) / devices
        total += each.nbytes * share * (2 if kind == "all_reduce" else 1)
    return total


def compiled_collectives(program: Program, plan: IntraOp) -> tuple[Collective, ...]:
    """What XLA makes of a plan, told to it as the runtime does."""
    specs = sharded(
        StagePlan(
            stage=program.stage,
            mesh_shape=plan.mesh_shape,
            weights=plan.weights,
            takes=plan.takes,
            gives=program.gives(plan),
            steps={step.place: step for step in plan.steps},
            heavy=plan.heavy,
            seconds=plan.seconds,
            weight_bytes=plan.weight_bytes,
        )
    )
    shape = plan.mesh_shape
    devices = np.array(jax.devices()[: math.prod(shape)]).reshape(shape)
    mesh = Mesh(devices, AXES[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))
    taken = (*specs.params, *(PartitionSpec() for _ in program.stage.constants), *specs.takes)
    shapes = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in program.stage.program.jaxpr.invars]
    jitted = jax.jit(
        constrained(program.stage.program, specs.constraints, mesh, arrivals=specs.arrivals),
        in_shardings=tuple(NamedSharding(mesh, spec) for spec in taken),
        out_shardings=[NamedSharding(mesh, spec) for spec in specs.gives],
    )
    return collectives(jitted.lower(*shapes).compile().as_text() or "")
