"""Both passes together: stages are even, agree on what passes between them, and share their weights over buckets."""

import dataclasses
import itertools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.errors import PlacementError
from jaxserve.model import Model, TensorSpec
from jaxserve.parallel import Limits, plan_model, trace
from jaxserve.parallel.atoms import nbytes
from jaxserve.parallel.layout import LogicalMesh, fits
from jaxserve.parallel.plan import corresponding
from jaxserve.plans import ParallelConfig
from tests.parallel.programs import CPU, H100, bert_model, gpt_model, moe_model

TINY = {"hidden_size": 64, "length": 32, "vocabulary": 128}


def planned(model, intra_op, inter_op, device=H100, **limits):
    return plan_model(model, ParallelConfig(intra_op=intra_op, inter_op=inter_op), device, limits=Limits(**limits))


def mlp_model(layers=4, *, size=64, batch=(4,), **options):
    def function(params, x):
        for place, kernel in enumerate(params):
            with jax.named_scope(f"layer_{place}"):
                x = jnp.tanh(x @ kernel)
        return x

    params = [jax.ShapeDtypeStruct((size, size), "float32")] * layers
    inputs = {"x": TensorSpec(("batch", size), "float32")}
    return Model.from_function("mlp", function, params, inputs=inputs, batch_sizes=batch, **options)


@pytest.mark.parametrize("make", [bert_model, gpt_model])
@pytest.mark.parametrize(("intra_op", "inter_op"), [(1, 2), (2, 4)])
def test_equal_layers_make_even_stages(make, intra_op, inter_op):
    model = make(layers=12, hidden_size=128, length=32, vocabulary=64)  # embeddings are small, but there
    seconds = [stage.seconds for stage in planned(model, intra_op, inter_op, objective="latency").stages[0]]
    assert max(seconds) <= 1.1 * statistics.mean(seconds)
    weights = [stage.weight_bytes for stage in planned(model, intra_op, inter_op, objective="memory").stages[0]]
    assert max(weights) <= 1.05 * statistics.mean(weights)


def test_the_cutting_in_the_middle_is_fast_enough_and_light():
    model = bert_model(layers=12, **TINY)
    fast, light, both = (
        planned(model, 1, 4, objective=objective).cutting for objective in ("latency", "memory", "balance")
    )
    assert both.slowest_s <= 1.05 * fast.slowest_s
    assert light.heaviest_bytes <= both.heaviest_bytes <= fast.heaviest_bytes


@pytest.mark.parametrize(
    ("make", "intra_op", "inter_op"), [(bert_model, 1, 4), (bert_model, 4, 2), (moe_model, 2, 2), (moe_model, 4, 1)]
)
def test_stages_agree(make, intra_op, inter_op):
    """A value has one spec on both sides of a cut, a weight one in all buckets, and every spec fits."""
    plan = planned(make(batch=(1, 8), **TINY), intra_op, inter_op, device=CPU)
    assert len(plan.stages) == len(plan.graphs) == len(plan.statuses) == 2
    mesh = LogicalMesh(shape=plan.mesh_shape, device=CPU)
    assert mesh.size == intra_op
    lies = {}
    for row in plan.stages:
        assert len(row) == inter_op
        assert {stage.mesh_shape for stage in row} == {plan.mesh_shape}
        specs = {}
        for place, stage in enumerate(row):
            params = stage.stage.arguments.params
            for value, spec in (
                *zip(stage.stage.takes, stage.takes, strict=True),
                *zip(stage.stage.gives, stage.gives, strict=True),
            ):
                assert specs.setdefault(value, spec) == spec
            for weight, var, spec in zip(stage.stage.params, params, stage.weights, strict=True):
                assert lies.setdefault((place, weight), spec) == spec
                assert fits(mesh, var.aval.shape, spec)
            for var, spec in zip(stage.stage.program.jaxpr.outvars, stage.gives, strict=True):
                assert fits(mesh, var.aval.shape, spec)
            assert stage.seconds > 0
            lying = zip(params, stage.weights, strict=True)
            expected = sum(nbytes(var) / mesh.shards(spec) for var, spec in lying)
            assert stage.weight_bytes == pytest.approx(expected)


def test_stages_together_are_the_whole():
    whole, parts = (planned(bert_model(layers=4, **TINY), 2, inter_op) for inter_op in (1, 2))
    (stage,) = whole.stages[0]
    passing_s = sum(part.seconds for part in parts.stages[0]) - stage.seconds
    assert 0 < passing_s < 0.1 * stage.seconds
    assert sum(len(part.steps) for part in parts.stages[0]) == len(stage.steps)
    assert sum((part.transfers for part in parts.stages[0]), start=type(stage.transfers)()) == stage.transfers


def test_programs_of_two_buckets_are_cut_alike():
    """At batch 1 the program has another equation in each layer."""

    def function(params, x):
        for place, kernel in enumerate(params):
            with jax.named_scope(f"layer_{place}"):
                if x.shape[0] == 1:
                    x = jnp.sin(x)
                x = jnp.tanh(x @ kernel)
        return x

    params = [jax.ShapeDtypeStruct((8, 8), "float32")] * 4
    inputs = {"x": TensorSpec(("batch", 8), "float32")}
    model = Model.from_function("f", function, params, inputs=inputs, batch_sizes=(1, 4))
    small, large = (trace(model, bucket) for bucket in model.buckets)
    assert len(small.eqns) == len(large.eqns) + 4
    for layer in range(1, 4):
        place = next(index for index, path in enumerate(large.paths) if path == (f"layer_{layer}",))
        (found,) = corresponding(large, small, [place])
        before, after = small.paths[found - 1], small.paths[found]
        assert (before, after) in {
            ((f"layer_{layer - 1}",), (f"layer_{layer}",)),
            ((f"layer_{layer}",), (f"layer_{layer}",)),  # behind the sine
        }
    assert corresponding(large, large, [3, 5]) == [3, 5]
    assert corresponding(large, small, [len(large.eqns)]) == [len(small.eqns)]
    plan = planned(model, 1, 2)
    used = [[stage.stage.params for stage in row] for row in plan.stages]
    assert used[0] == used[1]


def test_cuts_that_a_user_names_are_the_only_ones():
    model = mlp_model(8, cuts=("layer_3", "layer_5"))
    used = [stage.stage.params for stage in planned(model, 1, 3).stages[0]]
    assert used == [(0, 1, 2), (3, 4), (5, 6, 7)]
    used = [stage.stage.params for stage in planned(model, 1, 2).stages[0]]
    assert used in ([(0, 1, 2), (3, 4, 5, 6, 7)], [(0, 1, 2, 3, 4), (5, 6, 7)])
    with pytest.raises(PlacementError, match=r"model 'mlp': 4 stages were asked for, .*use at most 3"):
        planned(model, 1, 4)


def test_more_stages_than_there_is_to_do():
    with pytest.raises(PlacementError, match=r"model 'mlp': 4 stages were asked for, .*use at most \d"):
        planned(mlp_model(1), 1, 4)


def test_weights_that_do_not_fit_tell_a_config_that_would_do():
    model = mlp_model(8, size=256)  # 2.1 MB
    with pytest.raises(
        PlacementError,
        match=r"model 'mlp': \(2, 1\) needs at least 1\.049 MB of weights on each of 2 devices, but 0\.600 MB fit: "
        r"0\.449 MB are missing; \(4, 1\) would do",
    ):
        planned(model, 2, 1, memory_bytes=6e5)
    plan = planned(model, 4, 1, memory_bytes=6e5)
    assert plan.stages[0][0].weight_bytes <= 6e5
    with pytest.raises(PlacementError, match=r"\(8, 4\) would do"):
        planned(model, 2, 1, memory_bytes=1e5)


@pytest.mark.parametrize(("intra_op", "inter_op"), [(4, 1), (2, 2), (1, 4)])
def test_memory_is_kept_by_every_stage(intra_op, inter_op):
    model = mlp_model(8, size=256)
    plan = planned(model, intra_op, inter_op, memory_bytes=6e5, weight_budget_bytes=np.inf)
    assert all(stage.weight_bytes <= 6e5 for stage in plan.stages[0])
    roomy = planned(model, intra_op, inter_op, weight_budget_bytes=np.inf)
    assert sum(stage.seconds for stage in roomy.stages[0]) <= sum(stage.seconds for stage in plan.stages[0]) * (
        1 + 1e-9
    )


def test_a_budget_of_bytes_is_kept():
    model = bert_model(layers=4, **TINY)
    (whole,) = planned(model, 4, 1, weight_budget_bytes=np.inf).stages[0]
    (half,) = planned(model, 4, 1, weight_budget_bytes=0.5 * whole.weight_bytes).stages[0]
    assert half.weight_bytes <= 0.5 * whole.weight_bytes
    assert half.seconds >= whole.seconds


def test_twice_the_devices_take_half_the_memory():
    model = bert_model(layers=2, hidden_size=256, length=32, vocabulary=512)
    memory = [planned(model, devices, 1).stages[0][0].weight_bytes for devices in (1, 2, 4, 8)]
    for more, less in itertools.pairwise(memory):
        assert less <= 0.6 * more


@pytest.mark.parametrize("make", [bert_model, moe_model])
def test_plans_do_not_depend_on_chance(make):
    first, second = (planned(make(layers=4, batch=(1, 4), **TINY), 2, 2) for _ in range(2))
    assert first.cutting == second.cutting
    assert first.statuses == second.statuses
    for one, other in zip(sum(first.stages, ()), sum(second.stages, ()), strict=True):
        for field in dataclasses.fields(one):
            if field.name != "stage":
                assert getattr(one, field.name) == getattr(other, field.name)


def test_what_was_planned_for_what():
    plan = planned(mlp_model(), 2, 2, device=CPU)
    assert plan.config == ParallelConfig(intra_op=2, inter_op=2)
    assert plan.device is CPU
    assert plan.cutting in plan.cuttings
    assert plan.replicated == {}
    assert set(plan.statuses) == {"optimal"}
