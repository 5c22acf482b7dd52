"""Programs that the passes are tested on, and the plans of one stage for them."""

import collections
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from jax.extend import core
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxserve.model import Model, TensorSpec
from jaxserve.models.bert import Bert, BertConfig
from jaxserve.models.gpt import Gpt, GptConfig
from jaxserve.models.moe import Moe, MoeConfig
from jaxserve.parallel import hoist, trace
from jaxserve.parallel.collectives import collective_s
from jaxserve.parallel.cut import cut_before
from jaxserve.parallel.devices import DEVICES, Device
from jaxserve.parallel.hlo import Collective, collectives
from jaxserve.parallel.intra_op import IntraOp
from jaxserve.parallel.layout import AXES, LogicalMesh, Transfer, partition_spec
from jaxserve.parallel.lowering import constrained
from jaxserve.parallel.nodes import Nodes, divide, nbytes
from jaxserve.parallel.plan import EVEN_SLACK

H100 = DEVICES["h100"]
CPU = DEVICES["cpu"]

TOKENS = {
    "input_ids": TensorSpec(("batch", "length"), "int32"),
    "attention_mask": TensorSpec(("batch", "length"), "int32"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """A model at one bucket, before the passes.

    Attributes:
        closed: takes weights, constants and inputs.
        names: of the weights: the path of the leaf that it is, or "".
        constants: arrays that the model closed over.
        paths: for each equation the path of its module.
        nodes: what the intra-op pass decides on.
    """

    closed: core.ClosedJaxpr
    names: tuple[str, ...]
    constants: tuple[Any, ...]
    paths: tuple[tuple[str, ...], ...]
    nodes: Nodes

    @property
    def outputs(self) -> Sequence[Any]:
        return self.closed.jaxpr.outvars

    @property
    def weight_bytes(self) -> float:
        return sum(map(nbytes, self.nodes.weights))

    def even_bytes(self, devices: int) -> float:
        """The budget that a plan has unless one is given, for a program of one stage."""
        heavy = self.nodes.heavy_weights()
        return sum(
            nbytes(var) * (EVEN_SLACK / devices if index in heavy else 1) for var, index in self.nodes.weights.items()
        )


def program(model: Model, *, bucket: int = 0) -> Program:
    (graph,), weights = hoist([trace(model, model.buckets[bucket])])
    (stage,) = cut_before(graph, ()).stages
    path_of = {id(eqn): path for eqn, path in zip(graph.eqns, graph.paths, strict=True)}
    jaxpr = stage.program.jaxpr
    params, constants = len(stage.params), len(stage.constants)
    leaves = model.param_paths
    return Program(
        closed=stage.program,
        names=tuple(
            leaves[weights[index].leaves[0]] if weights[index].program is None else "" for index in stage.params
        ),
        constants=stage.constants,
        paths=tuple(path_of[id(eqn)] for eqn in jaxpr.eqns),
        nodes=divide(jaxpr, weights=jaxpr.invars[:params], constants=jaxpr.invars[params : params + constants]),
    )


def of_jaxpr(closed: core.ClosedJaxpr, *, weights: int = 0) -> Program:
    """A traced function, of which the first arguments are weights."""
    jaxpr = closed.jaxpr.replace(constvars=[], invars=[*closed.jaxpr.invars[:weights], *closed.jaxpr.constvars,
                                                       *closed.jaxpr.invars[weights:]])
    return Program(
        closed=core.ClosedJaxpr(jaxpr, []),
        names=("",) * weights,
        constants=tuple(closed.consts),
        paths=((),) * len(jaxpr.eqns),
        nodes=divide(jaxpr, weights=jaxpr.invars[:weights], constants=closed.jaxpr.constvars),
    )


def shapes_only(name: str, module: nn.Module, *, batch: int, length: int) -> Model:
    """A model of a linen module on tokens, to be planned: it has no params."""
    inputs = {key: jax.ShapeDtypeStruct((batch, length), "int32") for key in TOKENS}
    params = jax.eval_shape(lambda inputs: module.init(jax.random.key(0), **inputs), inputs)
    return Model.from_linen(name, module, params, inputs=TOKENS, batch_sizes=(batch,), buckets={"length": (length,)})


def bert(*, layers: int = 4, size: int = 256, heads: int = 8, batch: int = 1, length: int = 128, **options: Any):
    config = BertConfig(layers=layers, hidden_size=size, heads=heads, feed_forward_size=4 * size, vocabulary=1024,
                        max_length=length, **options)
    return shapes_only("bert", Bert(config), batch=batch, length=length)
