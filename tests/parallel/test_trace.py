"""Calls are opened and loops over layers unrolled, by equations that compute the same; other loops stay whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from jaxserve.errors import ModelError
from jaxserve.model.flat import MOST_ITERATIONS
from jaxserve.model.modules import match_module
from jaxserve.parallel import trace
from tests.model.toys import WIDTH, X
from tests.parallel import loops


def traced(model):
    graph = trace(model, model.buckets[-1])
    core.check_jaxpr(graph.jaxpr)
    assert len(graph.paths) == len(graph.eqns)
    return graph


def assert_traced_equals(model, inputs, *, tolerance=1e-5):
    graph = traced(model)
    program = core.ClosedJaxpr(graph.jaxpr, list(graph.constants.values()))
    leaves = jax.tree.leaves(model.load_params())
    found = jax.jit(core.jaxpr_as_fun(program))(*leaves, *inputs.values())
    expected = jax.tree.leaves(jax.jit(model.apply)(model.load_params(), inputs))
    assert [each.shape for each in found] == [each.shape for each in expected]
    for mine, whole in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(mine), np.asarray(whole), rtol=tolerance, atol=tolerance)
    return graph


def names(graph):
    return {eqn.primitive.name for eqn in graph.eqns}


UNROLLED = {
    "linen": lambda: loops.of_linen(loops.LinenStack()),
    "linen with remat": lambda: loops.of_linen(loops.LinenStack(remat=True)),
    "nnx": loops.of_nnx,
    "nnx with remat": functools.partial(loops.of_nnx, remat=True),
    "backwards": loops.backwards,
    "nested": loops.nested,
    "stacked in the program": loops.stacked_in_the_program,
    "joined in the program": loops.joined_in_the_program,
}


@pytest.mark.parametrize("kind", UNROLLED)
def test_loops_over_layers_are_unrolled(kind):
    # what lies in bfloat16 between two layers, XLA rounds only where it writes it to memory
    tolerance = 1e-2 if kind == "stacked in the program" else 1e-5
    graph = assert_traced_equals(UNROLLED[kind](), loops.rows(), tolerance=tolerance)
    assert not names(graph) & {"scan", "jit", "remat2", "checkpoint", "custom_jvp_call"}


@pytest.mark.parametrize(
    ("model", "module"),
    [
        (lambda: loops.of_linen(loops.LinenStack()), ("LinenStack", "stack_{}", "dense")),
        (lambda: loops.of_linen(loops.LinenStack(remat=True)), ("LinenStack", "stack_{}", "norm")),
        (loops.of_nnx, ("trunk.run", "layers_{}", "dense")),
        (functools.partial(loops.of_nnx, remat=True), ("trunk.run", "layers_{}", "norm")),
        (loops.backwards, ("layer_{}",)),
        (loops.joined_in_the_program, ("scan_{}",)),
    ],
)
def test_modules_of_a_layer_have_its_number(model, module):
    graph = traced(model())
    for layer in range(loops.LAYERS):
        path = tuple(name.format(layer) for name in module)
        assert any(each[-len(path) :] == path for each in graph.paths), (path, set(graph.paths))
    assert not any("stack" in path or "layers" in path for path in graph.paths)


def test_numbers_of_a_loop_in_a_loop():
    graph = traced(loops.nested())
    found = {path for path in graph.paths if path[-1].startswith("layer_")}
    assert found == {(f"block_{block}", f"layer_{layer}") for block in range(2) for layer in range(3)}


def test_name_stacks_stay():
    graph = traced(loops.of_linen(loops.LinenStack(remat=True)))
    stacks = {str(eqn.source_info.name_stack) for eqn in graph.eqns if eqn.primitive.name == "dot_general"}
    assert stacks == {"LinenStack/before", "LinenStack/stack/dense", "LinenStack/after"}


def test_rows_of_what_was_stacked_for_the_loop_are_the_params_themselves():
    assert not names(traced(loops.stacked_in_the_program())) & {"slice", "dynamic_slice", "squeeze"}
    graph = traced(loops.joined_in_the_program())
    sliced = [eqn.invars[0] for eqn in graph.eqns if eqn.primitive.name == "slice"]
    assert sliced == [graph.params[0]] * 2 + [graph.params[2]] * 2


def test_what_a_loop_stacks_is_stacked_only_where_it_is_used():
    graph = traced(loops.backwards())
    assert [eqn.primitive.name for eqn in graph.eqns].count("stack") <= 1  # before jax 0.10 it was concatenated


def test_loops_over_time_and_opaque_loops_stay_whole():
    graph = assert_traced_equals(loops.recurrent(), {"x": np.ones((2, 5, WIDTH), np.float32)})
    assert [eqn.primitive.name for eqn in graph.eqns].count("scan") == 1
    graph = assert_traced_equals(loops.looping(), loops.rows())
    assert {"while", "cond"} <= names(graph)


@pytest.mark.parametrize(("length", "unrolled"), [(MOST_ITERATIONS + 1, False), (3, True)])
def test_a_loop_over_the_rows_of_a_table_stays_whole(length, unrolled):
    def function(params, x):
        return jax.lax.scan(lambda x, row: (jnp.tanh(x + row), None), x, params)[0]

    model = loops.of_function(function, np.ones((length, WIDTH), np.float32))
    assert ("scan" not in names(traced(model))) == unrolled


def test_a_loop_of_no_layers():
    def function(params, x):
        return jax.lax.scan(lambda x, row: (x + row, x), x, params)[0]

    model = loops.of_function(function, np.ones((0, WIDTH), np.float32))
    assert "scan" in names(assert_traced_equals(model, loops.rows()))


def test_a_call_with_its_own_batching_rule_is_opened():
    @jax.custom_batching.custom_vmap
    def doubled(x):
        with jax.named_scope("doubled"):
            return x * 2

    doubled.def_vmap(lambda size, batched, x: (doubled(x), batched[0]))
    model = loops.of_function(lambda x: doubled(x) + 1, None)
    assert names(assert_traced_equals(model, loops.rows())) == {"mul", "add"}


def test_names_for_a_policy_of_remat_are_gone():
    def function(x):
        policy = jax.checkpoint_policies.save_only_these_names("tanh")
        return jax.checkpoint(lambda x: checkpoint_name(jnp.tanh(x), "tanh") * 2, policy=policy)(x)

    assert names(assert_traced_equals(loops.of_function(function, None), loops.rows())) == {"tanh", "mul"}


def test_cuts_inside_a_loop_over_layers():
    for cuts in (("stack_1", "stack_3/dense", "after"), ("stack", "LinenStack/stack_2")):
        assert loops.of_linen(loops.LinenStack(), cuts=cuts).cuts == cuts
    assert loops.of_nnx(cuts=("layers_1", "layers/2")).cuts
    with pytest.raises(ModelError, match=r"cut 'stack_4' names no module; the modules are .*LinenStack/stack_3/norm"):
        loops.of_linen(loops.LinenStack(), cuts=("stack_4",))
    with pytest.raises(ModelError, match=r"cut 'dense' names LinenStack/stack_0/dense, .*give a longer path"):
        loops.of_linen(loops.LinenStack(), cuts=("dense",))
    with pytest.raises(ModelError, match="cut 'ii' lies inside a `scan`, which runs as one operation"):
        loops.recurrent(cuts=("ii",))
    assert loops.recurrent(cuts=("rnn", "LSTMCell_0", "after")).cuts


def test_the_name_of_a_row_of_modules_stands_for_its_first():
    modules = [("net", "layers_0"), ("net", "layers_1"), ("net", "layers_0", "up")]
    assert match_module("layers", modules) == ("net", "layers_0")
    assert match_module("net/layers", modules) == ("net", "layers_0")
    assert match_module("layers", [*modules, ("net", "layers")]) == ("net", "layers")
    with pytest.raises(ModelError, match="'up_1' names no module"):
        match_module("up_1", modules)


def test_effects_in_a_loop_keep_their_order():
    seen = []

    def function(params, x):
        def layer(x, weight):
            jax.debug.callback(lambda value: seen.append(float(value)), weight[0], ordered=True)
            return x * weight, None

        return jax.lax.scan(layer, x, params)[0]

    params = np.arange(1.0, 4.0, dtype=np.float32)[:, None] * np.ones(WIDTH, np.float32)
    model = loops.of_function(function, params, inputs=X)
    graph = traced(model)
    program = core.ClosedJaxpr(graph.jaxpr, [])
    core.jaxpr_as_fun(program)(jnp.asarray(params), jnp.ones((2, WIDTH)))
    jax.effects_barrier()
    assert seen == [1.0, 2.0, 3.0]
