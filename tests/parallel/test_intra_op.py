"""The intra-op pass finds the known plans, keeps its limits, and costs what it says."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxserve.errors import PlacementError
from jaxserve.model import Model, TensorSpec
from jaxserve.parallel import Limits
from jaxserve.parallel.atoms import shape
from jaxserve.parallel.devices import DEVICES
from jaxserve.parallel.intra_op import _Builder, price, shard
from jaxserve.parallel.layout import LogicalMesh, fits
from jaxserve.parallel.rules import NONE
from jaxserve.parallel.selection import select
from jaxserve.plans import ParallelConfig
from jaxserve.runtime import load
from tests.parallel.programs import CPU, H100, bert, gpt, moe, of_function, program

COLUMN, ROW = 3, 0  # the factors of `x @ kernel` for x [batch, length, features]


def mlp(layers=2, *, size=256, **options):
    def function(params, x):
        for kernel in params:
            x = jax.nn.relu(x @ kernel)
        return x

    return of_function(function, [(size, size)] * layers, x=(size,), **options)


def steps_of(plan):
    return {step.place: step for step in plan.steps}


def split(program, plan, name):
    """The factors that the one heavy operation of a module splits."""
    (place,) = program.heads(name)
    return steps_of(plan)[place].factors


@pytest.mark.parametrize(
    ("kind", "shape"), [("h100", (1,)), ("cpu", (8,)), ("h100", (2, 4))], ids=["h100-1", "cpu-8", "h100-2x4"]
)
@pytest.mark.parametrize("make", [bert, gpt, moe])
def test_steps_take_what_the_selection_costs(make, kind, shape):
    program = make(layers=4, batch=4)
    builder = _Builder(program.nodes, LogicalMesh(shape=shape, device=DEVICES[kind]), {})
    selection = builder.selection()
    for budget in (math.inf, 1.1 * selection.least_bytes):
        choice = select(selection, budget_bytes=budget, time_limit_s=0)
        plan = builder.extract(choice)
        assert plan.seconds == pytest.approx(selection.cost(choice.options), rel=1e-9)
        assert plan.weight_bytes == pytest.approx(selection.bytes(choice.options).max())
        assert plan.weight_bytes <= budget


@pytest.mark.parametrize("make", [bert, gpt])
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_megatrons_plan_is_found(make, devices):
    """Shoeybi et al. 2019 (arXiv 1909.08053), section 3: columns, then rows, one sum behind each half of a layer."""
    program = make(hidden_size=512, length=128)
    plan = program.shard(devices)
    assert plan.status == "optimal"
    feed_forward = "layers_1/feed_forward" if make is bert else "layers_1"
    for name in (*(f"layers_1/attention/{each}" for each in ("query", "key", "value")), f"{feed_forward}/up"):
        assert split(program, plan, name) == (COLUMN,)
    for name in ("layers_1/attention/output", f"{feed_forward}/down"):
        assert split(program, plan, name) == (ROW,)
        (place,) = program.heads(name)
        (summed,) = steps_of(plan)[place].after
        assert summed.kind in ("all_reduce", "reduce_scatter")
    assert plan.weight_bytes <= program.even_bytes(devices)


@pytest.mark.parametrize("options", [{"length": 256}, {"length": 128, "batch": 8}], ids=str)
def test_experts_are_spread(options):
    """As GShard does (Lepikhin et al. 2020, section 3.1)."""
    program = moe(hidden_size=256, **options)
    plan = program.shard(8)
    for name in ("egcm,emh->egch", "egch,ehm->egcm"):
        (place,) = program.heads(name)
        (head,) = (node.head for node in program.nodes.nodes if node.head is not None and node.head.place == place)
        assert program.eqns[place].invars[1].aval.shape[0] == 8, "the experts come first"
        assert steps_of(plan)[place].factors == (head.rule.operands[1][0],)
    # A batch is split over the devices as the experts are: tokens travel to them.
    assert ("all_to_all" in {each.kind for each in plan.transfers}) == ("batch" in options)


def test_large_batches_are_split_over_one_axis_and_weights_over_the_other():
    program = bert(hidden_size=1024, length=128, batch=16, vocabulary=4096)
    plan = program.shard(2, 4, budget=program.weight_bytes / 3)
    for name in ("query", "key", "value", "output"):
        factors = split(program, plan, f"layers_1/attention/{name}")
        assert 1 in factors, "the batch"
        assert {COLUMN, ROW} & set(factors)
    whole = program.shard(2, 4, budget=math.inf)
    assert {step.factors for place, step in steps_of(whole).items() if place in program.heads("query")} == {(1, 1)}
    assert not whole.transfers


def test_without_a_budget_what_costs_more_than_it_saves_stays_whole():
    program = mlp(8, size=64)
    plan = program.shard(8, budget=math.inf)
    assert not plan.transfers
    assert plan.seconds <= program.shard(1, budget=math.inf).seconds


@pytest.mark.parametrize("shape", [(4,), (2, 2)], ids=str)
def test_given_specs_are_kept(shape):
    program = mlp()
    mesh = LogicalMesh(shape=shape, device=H100)
    for spec in ((0,) * len(shape), (1,) * len(shape), mesh.replicated):
        plan = program.shard(*shape, budget=math.inf, weights={0: spec})
        assert plan.weights[0] == spec
    pinned = program.shard(*shape, budget=math.inf, weights={0: mesh.replicated, 1: mesh.replicated})
    assert pinned.weight_bytes == program.weight_bytes
    assert pinned.seconds >= program.shard(*shape, budget=math.inf).seconds * (1 - 1e-9)


def test_a_weight_that_lies_wrong_is_paid_for():
    program = of_function(lambda kernel, x: x @ kernel, (256, 256), x=(256,), batch=3)
    free = program.shard(4, budget=math.inf)
    assert (free.weights, free.takes, program.gives(free)) == (((1,),), ((NONE,),), ((1,),))
    wrong = program.shard(4, budget=math.inf, weights={0: (0,)})
    assert wrong.seconds > free.seconds
    assert wrong.transfers


@pytest.mark.parametrize("device", [H100, CPU], ids=lambda device: device.kind)
def test_a_budget_is_kept_and_costs_time(device):
    program = bert(hidden_size=256)
    seconds = []
    for share in (1.0, 0.6, 0.4, 0.3):
        plan = program.shard(4, device=device, budget=share * program.weight_bytes)
        assert plan.weight_bytes <= share * program.weight_bytes
        seconds.append(plan.seconds)
    assert seconds == sorted(seconds)


def test_every_stage_has_a_budget():
    program = mlp(4)
    budget = 1.1 * program.weight_bytes / 4
    plan = program.shard(2, budget=budget, stages=[[0, 1], [2, 3]])
    assert all(spec != (NONE,) for spec in plan.weights)
    with pytest.raises(PlacementError, match=r"the weights take at least 0\.393 MB on each of 2 devices"):
        program.shard(2, budget=budget, stages=[[0], [1, 2, 3]])


def test_too_small_a_budget_tells_how_much_is_missing():
    program = mlp(4, size=512)
    with pytest.raises(
        PlacementError,
        match=r"the weights take at least 1\.049 MB on each of 4 devices, but 1\.000 MB fit: 0\.049 MB are missing; "
        r"use more devices, or more stages",
    ):
        program.shard(4, budget=1e6)
    plan = program.shard(4, budget=1e6, soft=True)
    assert plan.weight_bytes == program.weight_bytes / 4


@pytest.mark.parametrize("make", [bert, gpt, moe])
def test_specs_fit(make):
    """Whatever is split divides, wherever a plan says that it is."""
    program = make(layers=3, heads=4, hidden_size=96, length=48, vocabulary=100, batch=3)
    for sizes in ((2,), (8,), (2, 4)):
        mesh = LogicalMesh(shape=sizes, device=H100)
        plan = program.shard(*sizes, time_limit_s=0)
        for step in plan.steps:
            for var, spec in zip(program.eqns[step.place].outvars, step.results, strict=True):
                assert fits(mesh, shape(var), spec)
        for var, spec in zip(program.stage.arguments.params, plan.weights, strict=True):
            assert fits(mesh, shape(var), spec)
        for atom, spec in zip(program.stage.program.jaxpr.outvars, program.gives(plan), strict=True):
            assert fits(mesh, shape(atom), spec)


def test_one_device_needs_no_collectives():
    program = bert()
    plan = program.shard(1)
    assert not plan.transfers
    assert plan.weight_bytes == program.weight_bytes
    assert len(plan.steps) == len({step.place for step in plan.steps})


def test_a_plan_may_be_asked_for():
    """`price` with what the best plan gives costs as much; with anything else, no less."""
    program = mlp(size=512, batch=1)
    budget = 0.3 * program.weight_bytes
    mesh = LogicalMesh(shape=(4,), device=H100)
    best = program.shard(4, budget=budget)
    same = price(program.nodes, mesh, {place: steps_of(best)[place].results for place in best.heavy})
    assert same.seconds <= best.seconds * (1 + 1e-9)
    with pytest.raises(ValueError, match="has no strategy that gives any of"):
        price(program.nodes, mesh, {min(best.heavy): [(7,)]})


def unknown(params, x):
    """A triangular solve has no rule."""
    x = jnp.tanh(x @ params["first"])
    matrix = params["matrix"] + 0 * x[:1].T @ x[:1]
    x = lax.linalg.triangular_solve(matrix, x, lower=True)
    return x @ params["second"]


def unknown_model():
    random = np.random.default_rng(0)
    params = {
        "first": random.standard_normal((32, 32)).astype(np.float32),
        "matrix": np.eye(32, dtype=np.float32) + 0.1 * np.tril(random.standard_normal((32, 32))).astype(np.float32),
        "second": random.standard_normal((32, 32)).astype(np.float32),
    }
    inputs = {"x": TensorSpec(("batch", 32), "float32")}
    return Model.from_function("unknown", unknown, params, inputs=inputs, batch_sizes=(4,)), params


def test_an_operation_without_a_rule_is_replicated_and_reported():
    model, params = unknown_model()
    its = program(model)
    plan = its.shard(4)
    assert plan.replicated == {"triangular_solve": 1}
    (place,) = (place for place, eqn in enumerate(its.eqns) if eqn.primitive.name == "triangular_solve")
    assert steps_of(plan)[place].factors == (NONE,)
    pipeline = load(model, ParallelConfig(intra_op=4), repeats=1)
    assert pipeline.plan.replicated == {"triangular_solve": 1}
    x = np.linspace(-1, 1, 4 * 32, dtype=np.float32).reshape(4, 32)
    np.testing.assert_allclose(pipeline({"x": x}), unknown(params, x), rtol=1e-4, atol=1e-4)


def test_without_time_a_plan_is_found_by_descent():
    program = bert(layers=4)
    best, quick = (program.shard(4, time_limit_s=limit_s) for limit_s in (10.0, 0.0))
    assert (best.status, quick.status) == ("optimal", "descent")
    assert best.seconds <= quick.seconds * (1 + 1e-6)
    assert quick.weight_bytes <= program.even_bytes(4)


def test_a_plan_by_descent_is_correct():
    model, params = unknown_model()
    pipeline = load(model, ParallelConfig(intra_op=4), repeats=1, limits=Limits(solver_s=0))
    assert pipeline.plan.statuses == ("descent",)
    x = np.linspace(-1, 1, 4 * 32, dtype=np.float32).reshape(4, 32)
    np.testing.assert_allclose(pipeline({"x": x}), unknown(params, x), rtol=1e-4, atol=1e-4)


def test_plans_do_not_depend_on_chance():
    program = moe()
    first, second = (program.shard(2, 4) for _ in range(2))
    for field in dataclasses.fields(first):
        assert getattr(first, field.name) == getattr(second, field.name)


def test_what_a_program_only_passes_on():
    """An input as an output is no business of the devices, nor is an input that nothing reads."""
    program = of_function(lambda kernel, x, unused: (x, x, x @ kernel), (8, 8), x=(8,), unused=(4,))
    plan = shard(program.nodes, LogicalMesh(shape=(4,), device=H100))
    assert len(plan.takes) == len(program.gives(plan)) == 1
    assert all(spec in ((NONE,), (0,), (1,)) for spec in program.gives(plan))
