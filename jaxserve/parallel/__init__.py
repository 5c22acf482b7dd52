"""From a model to stages: its flat program, where it is cut, and how each stage is sharded."""

from jaxserve.parallel.cut import Stage, StageGraph, choose_cuts, cut
from jaxserve.parallel.shard import Sharded, shard_batch
from jaxserve.parallel.trace import Graph, calls_back, trace

__all__ = [
    "Graph",
    "Sharded",
    "Stage",
    "StageGraph",
    "calls_back",
    "choose_cuts",
    "cut",
    "shard_batch",
    "trace",
]
