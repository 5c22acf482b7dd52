"""What the two passes take, and what they find: solve times, plan costs, collectives and the balance of the stages.

Planning needs no device: the zoo's planning models and a transformer of 48 layers are planned for a kind of device by
its cost model. Targets: from module to plan in under 5 s for the 48 layers on a 2 x 4 mesh, with and without a memory
budget, and in under 60 s for all configs of a host of 8 devices; a slowest stage of at most 1.1 times the mean. The
last table is measured on fake CPU devices: what a call of one compiled stage costs beside its work.

    python bench/passes.py [--device-kind H100] [--models bert-1.3b ...] [-o FILE]
"""

import argparse
import dataclasses
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from record import circumstances, write

from jaxserve import Model, ParallelConfig, TensorSpec, models
from jaxserve.cli.devices import use_cpu_devices
from jaxserve.models import planning_model
from jaxserve.models.bert import PLANNED, Bert
from jaxserve.parallel import Device, Limits, Plan, cut, device_kind, hoist, plan_model, trace
from jaxserve.parallel.atoms import nbytes
from jaxserve.parallel.clusters import cluster
from jaxserve.parallel.collectives import collective_s
from jaxserve.parallel.inter_op import pareto
from jaxserve.parallel.intra_op import shard
from jaxserve.parallel.layout import LogicalMesh
from jaxserve.parallel.nodes import divide
from jaxserve.runtime import load
from jaxserve.runtime.weights import STACK_BELOW_BYTES

CONFIGS = ((1, 1), (1, 2), (2, 1), (1, 4), (2, 2), (4, 1), (1, 8), (2, 4), (4, 2), (8, 1))
MESHES = ((2,), (4,), (2, 2), (8,), (2, 4))
LAYERS = 48
TOKENS = {
    "input_ids": TensorSpec(("batch", "length"), "int32"),
    "attention_mask": TensorSpec(("batch", "length"), "int32"),
}


def planned(model: Model, config: ParallelConfig, device: Device, limits: Limits | None = None) -> tuple[Plan, float]:
    """A plan, solved anew, and the seconds of processor time that it took."""
    start = time.process_time()
    plan = plan_model(model, config, device, limits=limits)
    return plan, time.process_time() - start


def balance(values: list[float]) -> float:
    """The largest over the mean."""
    return max(values) / statistics.mean(values)


def row(name: str, plan: Plan, seconds: float) -> dict[str, Any]:
    """One line of the table."""
    stages = plan.stages[-1]
    sent: dict[str, float] = {}
    for stage in stages:
        for each, count in stage.transfers.items():
            sent[each.kind] = sent.get(each.kind, 0.0) + each.nbytes * count
    return {
        "model": name,
        "config": [plan.config.intra_op, plan.config.inter_op],
        "mesh": list(plan.mesh_shape),
        "plan_s": seconds,
        "status": sorted(set(plan.statuses)),
        "latency_s": sum(stage.seconds for stage in stages),
        "slowest_to_mean": balance([stage.seconds for stage in stages]),
        "heaviest_to_mean": balance([stage.weight_bytes for stage in stages]),
        "collective_bytes": sent,
    }


def print_row(entry: dict[str, Any]) -> None:
    """Prints it."""
    sent = ", ".join(f"{kind} {nbytes / 1e6:.1f}" for kind, nbytes in sorted(entry["collective_bytes"].items()))
    config = "({}, {})".format(*entry["config"])
    mesh = "x".join(map(str, entry["mesh"]))
    print(
        f"{entry['model']:10} {config:7} {mesh:4} {entry['plan_s']:7.2f} {1000 * entry['latency_s']:9.3f} "
        f"{entry['slowest_to_mean']:8.2f} {entry['heaviest_to_mean']:8.2f}  {sent or '-'}"
    )


def phases(name: str, model: Model, device: Device) -> dict[str, Any]:
    """Processor seconds of each step on the way to a plan: the first pass on each mesh, the second for 8 stages."""
    clock = [time.process_time()]

    def lap_s() -> float:
        clock.append(time.process_time())
        return clock[-1] - clock[-2]

    traced, trace_s = trace(model, model.buckets[-1]), lap_s()
    (graph,), hoist_s = hoist([traced])[0], lap_s()
    (stage,) = cut(graph, ()).stages
    jaxpr, (params, constants, _) = stage.program.jaxpr, stage.arguments
    nodes, nodes_s = divide(jaxpr, weights=params, constants=constants), lap_s()
    shard_s: dict[str, float] = {}
    sharding = None
    for shape in MESHES:
        mesh = LogicalMesh(shape=shape, device=device)
        budget = 1.1 * sum(map(nbytes, nodes.weights)) / mesh.size
        sharding = shard(nodes, mesh, budget_bytes=budget, soft=True)
        shard_s["x".join(map(str, shape))] = lap_s()
    assert sharding is not None
    seconds_of = {id(jaxpr.eqns[step.place]): step.seconds for step in sharding.steps}
    seconds = [seconds_of.get(id(eqn), 0.0) for eqn in graph.eqns]
    clusters, cluster_s = cluster(graph, seconds, fixed=graph.fixed, at_least=24), lap_s()
    transfer_s = [collective_s(device, "collective_permute", size, 2) for size in clusters.live_bytes]
    pareto(clusters, stages=8, transfer_s=transfer_s)
    return {
        "model": name,
        "equations": len(graph.eqns),
        "classes": len(set(nodes.classes)),
        "trace_s": trace_s,
        "hoist_s": hoist_s,
        "nodes_s": nodes_s,
        "intra_op_s": shard_s,
        "cluster_s": cluster_s,
        "inter_op_s": lap_s(),
    }


def print_phases(entry: dict[str, Any]) -> None:
    """Prints them."""
    steps = " ".join(f"{entry[step]:7.2f}" for step in ("trace_s", "hoist_s", "nodes_s"))
    shards = " ".join(f"{seconds:6.2f}" for seconds in entry["intra_op_s"].values())
    print(
        f"{entry['model']:10} {entry['equations']:6} {entry['classes']:8} {steps} {shards} "
        f"{entry['cluster_s']:8.2f} {entry['inter_op_s']:8.2f}"
    )


def deep_transformer() -> tuple[nn.Module, Any]:
    """A BERT of 48 layers and the shapes of its params."""
    module = Bert(dataclasses.replace(PLANNED["bert-1.3b"], layers=LAYERS))
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    params = jax.eval_shape(lambda ids: module.init(jax.random.key(0), input_ids=ids, attention_mask=ids), ids)
    return module, params


def from_module(module: nn.Module, params: Any, device: Device, limits: Limits) -> dict[str, float]:
    """Processor seconds from the module to the plan on 8 devices."""
    start = time.process_time()
    length = PLANNED["bert-1.3b"].max_length
    model = Model.from_linen("deep", module, params, inputs=TOKENS, buckets={"length": (length,)})
    made_s = time.process_time() - start
    plan, plan_s = planned(model, ParallelConfig(8, 1), device, limits)
    return {"model_s": made_s, "plan_s": plan_s, "mesh": list(plan.mesh_shape), "total_s": made_s + plan_s}  # type: ignore[dict-item]


def all_configs(model: Model, device: Device) -> float:
    """Processor seconds to plan for all configs of a host of 8 devices."""
    return sum(planned(model, ParallelConfig(*config), device)[1] for config in CONFIGS)


def many_params(weights: int) -> Callable[..., Any]:
    """A function of many weights that XLA makes one kernel of."""

    def function(params: Any, x: Any) -> Any:
        for place in range(weights):
            x = x + params[f"w{place}"]
        return x

    return function


def dispatch_us(devices: int, weights: int, stack_below_bytes: int, repeats: int = 300) -> float:
    """Microseconds of a call of one stage with this many vectors as weights and no collectives, median."""
    params = {f"w{place}": np.zeros(16, np.float32) for place in range(weights)}
    spec = {"x": TensorSpec(("batch", 16), "float32")}
    model = Model.from_function("many", many_params(weights), params, inputs=spec, batch_sizes=(devices,))
    pipeline = load(
        model,
        ParallelConfig(devices, 1),
        jax.devices()[:devices],
        repeats=1,
        limits=Limits(weight_budget_bytes=math.inf),
        stack_below_bytes=stack_below_bytes,
    )
    values = pipeline.put(0, {"x": np.ones((devices, 16), np.float32)})
    took: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        pipeline.run(0, 0, values)
        took.append(time.perf_counter() - start)
    pipeline.close()
    return 1e6 * statistics.median(took)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device-kind", default="H100")
    parser.add_argument("--models", nargs="+", default=["bert-1.3b", "bert-6.7b", "moe-1.3b", "moe-5.3b"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    use_cpu_devices(4)
    os.environ["JAXSERVE_PLANS"] = "off"  # every plan is solved anew
    device = device_kind(arguments.device_kind)

    zoo = {name: getattr(models, name)() for name in ("bert", "gpt", "moe", "vit", "resnet")}
    planning = {name: planning_model(name) for name in arguments.models}
    print("processor seconds of each step; of the first pass by mesh, of the second for 8 stages")
    meshes = " ".join(f"{'x'.join(map(str, shape)):>6}" for shape in MESHES)
    print(
        f"{'model':10} {'eqns':>6} {'classes':>8} {'trace':>7} {'hoist':>7} {'nodes':>7} {meshes} "
        f"{'clusters':>8} {'inter-op':>8}"
    )
    steps: list[dict[str, Any]] = []
    for name, model in {**zoo, **planning}.items():
        steps.append(phases(name, model, device))
        print_phases(steps[-1])

    print(f"\nplans for {device.kind}; processor seconds from the model, MB of each device by collective")
    print(f"{'model':10} {'config':7} {'mesh':4} {'plan s':>7} {'ms':>9} {'slowest':>8} {'heaviest':>8}  MB sent")
    rows: list[dict[str, Any]] = []
    for name, model in {**zoo, **planning}.items():
        for config in ((1, 8), (2, 4), (4, 2), (8, 1)) if name in arguments.models else ((1, 4), (2, 2), (4, 1)):
            rows.append(row(name, *planned(model, ParallelConfig(*config), device)))
            print_row(rows[-1])

    module, params = deep_transformer()
    limits = {"even share": Limits(), "no budget": Limits(weight_budget_bytes=math.inf)}
    deep: dict[str, list[dict[str, float]]] = {name: [] for name in limits}
    for _ in range(arguments.repeats):
        for name, limit in limits.items():
            deep[name].append(from_module(module, params, device, limit))
    print(f"\na transformer of {LAYERS} layers on 8 devices, from module to plan (target: under 5 s)")
    for name, runs in deep.items():
        total_s = statistics.median(run["total_s"] for run in runs)
        made_s = statistics.median(run["model_s"] for run in runs)
        print(
            f"{name:12} {total_s:5.2f} s, of which {made_s:.2f} s to make and check the model; mesh {runs[-1]['mesh']}"
        )
    every_s = all_configs(planning_model("bert-1.3b"), device)
    print(f"all {len(CONFIGS)} configs of 8 devices, bert-1.3b: {every_s:.1f} s (target: under 60 s)")

    print(
        "\na call of one compiled stage, us: small weights as arrays of their own, and stacked as they are by default"
    )
    print(f"{'devices':>7} {'weights':>8} {'apart':>8} {'stacked':>8}")
    dispatch: list[dict[str, float]] = []
    for devices in (1, 2, 4):
        for weights in (1, 50, 200):
            apart, stacked = (dispatch_us(devices, weights, below) for below in (0, STACK_BELOW_BYTES))
            dispatch.append({"devices": devices, "weights": weights, "apart_us": apart, "stacked_us": stacked})
            print(f"{devices:7} {weights:8} {apart:8.1f} {stacked:8.1f}")
    results = {"phases": steps, "plans": rows, "deep": deep, "all_configs_s": every_s, "dispatch": dispatch}
    write(arguments.output, {"benchmark": "passes", "device_kind": device.kind, **circumstances(), **results})


if __name__ == "__main__":
    main()
