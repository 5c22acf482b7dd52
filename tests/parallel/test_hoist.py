"""What is computed of params alone is a weight, made at load time: the same results, never more bytes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend import core

from jaxserve.model import Model
from jaxserve.parallel import cut, hoist, trace
from jaxserve.runtime.evaluate import evaluate
from tests.model.toys import WIDTH, X, encoder, nnx_net
from tests.parallel import loops


def hoisted(model):
    """The graphs of all buckets on weights, and how these are made; both are checked."""
    graphs, derived = hoist([trace(model, bucket) for bucket in model.buckets])
    for graph in graphs:
        core.check_jaxpr(graph.jaxpr)
        assert len(graph.paths) == len(graph.eqns)
        assert [(var.aval.shape, var.aval.dtype) for var in graph.params] == [
            (each.shape.shape, each.shape.dtype) for each in derived
        ]
    for each in derived:
        assert list(each.leaves) == sorted(set(each.leaves))
        if each.program is not None:
            core.check_jaxpr(each.program.jaxpr)
    return graphs, derived


def weights_of(derived, leaves):
    return [
        leaves[each.leaves[0]]
        if each.program is None
        else evaluate(each.program, [np.asarray(leaves[leaf]) for leaf in each.leaves])
        for each in derived
    ]


def nbytes(shapes):
    return sum(math.prod(shape.shape) * shape.dtype.itemsize for shape in shapes)


def assert_hoisted_equals(model, inputs_of, *, tolerance=1e-5):
    """Every bucket returns what the model returns, on weights that take no more memory than their leaves."""
    graphs, derived = hoisted(model)
    leaves = jax.tree.leaves(model.load_params())
    weights = weights_of(derived, leaves)
    assert [(each.shape, each.dtype) for each in weights] == [(each.shape.shape, each.shape.dtype) for each in derived]
    used = {leaf for each in derived for leaf in each.leaves}
    assert nbytes(each.shape for each in derived) <= nbytes(leaves[leaf] for leaf in used)
    for graph, bucket in zip(graphs, model.buckets, strict=True):
        inputs = inputs_of(bucket)
        program = core.ClosedJaxpr(graph.jaxpr, list(graph.constants.values()))
        found = jax.jit(core.jaxpr_as_fun(program))(*weights, *inputs.values())
        expected = jax.tree.leaves(jax.jit(model.apply)(model.load_params(), inputs))
        for mine, whole in zip(found, expected, strict=True):
            np.testing.assert_allclose(
                np.asarray(mine, np.float32), np.asarray(whole, np.float32), rtol=tolerance, atol=tolerance
            )
    return graphs, derived


def drawn_inputs(model):
    def draw(bucket):
        generator = np.random.default_rng(0)
        return {
            name: generator.integers(0, 16, spec.resolve(bucket.sizes)).astype(spec.dtype)
            if spec.dtype == "int32"
            else generator.normal(size=spec.resolve(bucket.sizes)).astype(spec.dtype)
            for name, spec in model.inputs.items()
        }

    return draw


def names(graph):
    return [eqn.primitive.name for eqn in graph.eqns]


MODELS = {
    "linen scan": lambda: loops.of_linen(loops.LinenStack()),
    "linen scan in bfloat16": lambda: loops.of_linen(loops.LinenStack(remat=True, dtype=jnp.bfloat16)),
    "nnx scan": loops.of_nnx,
    "backwards": loops.backwards,
    "nested": loops.nested,
    "stacked in the program": loops.stacked_in_the_program,
    "joined in the program": loops.joined_in_the_program,
    "recurrent": loops.recurrent,
    "looping": loops.looping,
    "tied": loops.tied,
    "of length": loops.of_length,
    "encoder": lambda: encoder(batch_sizes=(1, 4), buckets={"length": (4,)})[0],
    "batch norm": lambda: nnx_net()[0],
}


@pytest.mark.parametrize("kind", MODELS)
def test_weights_give_the_same_results(kind):
    model = MODELS[kind]()
    rough = kind in ("linen scan in bfloat16", "stacked in the program", "tied", "of length")
    assert_hoisted_equals(model, drawn_inputs(model), tolerance=2e-2 if rough else 1e-5)


def test_stacked_layers_become_weights_of_one_layer_each():
    model = loops.of_linen(loops.LinenStack(), cuts=("stack_2",))
    graphs, derived = hoisted(model)
    shapes = [each.shape.shape for each in derived if each.program is not None]
    assert sorted(set(shapes)) == [(WIDTH,), (WIDTH, WIDTH)]
    assert shapes.count((WIDTH, WIDTH)) == loops.LAYERS
    assert not {"slice", "squeeze"} & set(names(graphs[0]))
    stages = cut(graphs[0], model.cuts).stages
    assert not set(stages[0].params) & set(stages[1].params)
    first, second = (nbytes(derived[index].shape for index in stage.params) for stage in stages)
    before, after = WIDTH * (WIDTH + 1) * 4, (WIDTH + 1) * 2 * 4
    assert first - before == second - after == loops.LAYERS / 2 * (WIDTH + 3) * WIDTH * 4


def test_layers_that_lay_apart_stay_apart():
    _, derived = hoisted(loops.stacked_in_the_program())
    assert [each.leaves for each in derived] == [(leaf,) for leaf in range(6)]
    assert {each.shape.dtype for each in derived} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_tied_table_is_one_weight_and_casts_are_made_once(dtype):
    model = loops.tied(dtype)
    graphs, derived = hoisted(model)
    assert [each.leaves for each in derived] == [(0,), (1,), (2,)]
    assert {each.shape.dtype for each in derived} == {jnp.dtype(dtype)}
    (table,) = [var for var in graphs[0].params if var.aval.shape == (16, WIDTH)]
    assert sum(table in eqn.invars for eqn in graphs[0].eqns) == 2


def test_what_buckets_use_differently_stays_in_their_programs():
    model = loops.of_length()
    graphs, derived = hoisted(model)
    assert [each.shape.shape for each in derived] == [(WIDTH, WIDTH), (16, WIDTH)]
    assert {each.shape.dtype for each in derived} == {jnp.dtype(jnp.bfloat16)}, "the cast is common to all"
    assert all("slice" in names(graph) for graph in graphs)
    # with one bucket nobody needs the other rows
    graphs, derived = hoisted(loops.of_length(buckets={"length": (4,)}))
    assert [each.shape.shape for each in derived] == [(WIDTH, WIDTH), (4, WIDTH)]


def of(function, params, **options):
    return Model.from_function("f", function, params, inputs=X, **({"batch_sizes": (1, 2)} | options))


VECTOR, SQUARE = np.linspace(1, 2, WIDTH, dtype=np.float32), np.eye(WIDTH, dtype=np.float32)


def cast_and_whole(p, x):
    return x @ p + (x.astype(jnp.bfloat16) @ p.astype(jnp.bfloat16)).astype(jnp.float32)


def norm(p, x):
    return x @ (p / jnp.linalg.norm(p, axis=0))


def callback_on_params(p, x):
    return x + jax.pure_callback(lambda p: np.asarray(p) * 2, jax.ShapeDtypeStruct(p.shape, p.dtype), p)


def random_of_params(p, x):
    return x + jax.random.normal(jax.random.key(jnp.sum(p).astype(jnp.int32)), (WIDTH,))


def loop_on_params(p, x):
    return x @ jax.lax.fori_loop(0, 3, lambda _, power: power @ p, p)


@pytest.mark.parametrize(
    ("function", "params", "shapes"),
    [
        pytest.param(lambda p, x: x @ p.T, SQUARE, None, id="views stay"),
        pytest.param(lambda p, x: x * (p * 2), VECTOR, [(WIDTH,)], id="arithmetic"),
        pytest.param(lambda p, x: x * (p * 2).reshape(2, -1).reshape(-1), VECTOR, [(WIDTH,)], id="views at the end"),
        pytest.param(lambda p, x: x @ (p["a"] + p["b"]), {"a": SQUARE, "b": SQUARE}, [(8, 8)], id="a sum"),
        pytest.param(lambda p, x: x @ jnp.outer(p["a"], p["b"]), {"a": VECTOR, "b": VECTOR}, None, id="a product"),
        pytest.param(lambda p, x: x @ jnp.outer(p * 2, p * 3), VECTOR, None, id="a product of sums"),
        pytest.param(cast_and_whole, SQUARE, None, id="a cast of what is needed whole"),
        pytest.param(lambda p, x: x @ p + x * p.sum(axis=0), SQUARE, None, id="a sum of what is needed whole"),
        pytest.param(lambda p, x: x * p[0] + p[1] * p[2], np.stack([VECTOR] * 3), [(8,), (8,)], id="rows"),
        pytest.param(norm, SQUARE, [(WIDTH, WIDTH)], id="a norm"),
        pytest.param(callback_on_params, VECTOR, None, id="a callback"),
        pytest.param(random_of_params, VECTOR, [()], id="random numbers"),
        pytest.param(loop_on_params, SQUARE, [(WIDTH, WIDTH)], id="a loop"),
        pytest.param(lambda p, x: (x, p * 2 + jnp.zeros_like(x[:, :1])), VECTOR, [(8,)], id="an output"),
        pytest.param(lambda p, x: x + jnp.arange(8.0), VECTOR, [], id="constants"),
        pytest.param(lambda p, x: x + jnp.stack([p * 3, jnp.arange(8.0)])[0], VECTOR, [(8,)], id="with constants"),
    ],
)
def test_what_is_hoisted(function, params, shapes):
    """`shapes` are those of the derived weights; None, where all weights are leaves."""
    model = of(function, params)
    _, derived = assert_hoisted_equals(model, drawn_inputs(model))
    assert [each.shape.shape for each in derived if each.program is not None] == (shapes or [])


def test_equal_expressions_are_one_weight():
    table = np.arange(WIDTH, dtype=np.float32)

    def function(p, x):
        return (x * (p + table)) @ SQUARE + (p + table) + (p + jnp.asarray(table.copy()))

    graphs, derived = hoisted(of(function, VECTOR))
    assert len(derived) == 1
    assert all(sum(graph.params[0] in eqn.invars for eqn in graph.eqns) >= 2 for graph in graphs)


def test_some_results_of_one_operation():
    def function(p, x):
        first, second = jnp.split(p, 2)
        return x @ jnp.outer(first, second) + second[0] + x * (first * 2)[0]

    model = of(lambda p, x: jnp.pad(function(p, x[:, :4]), ((0, 0), (0, 4))), VECTOR)
    assert_hoisted_equals(model, drawn_inputs(model))


def test_modules_without_equations_can_still_be_cut_at():
    def function(p, x):
        with jax.named_scope("first"):
            x = jnp.tanh(x @ p["a"])
        with jax.named_scope("made"):
            made = jnp.sin(p["b"])
        with jax.named_scope("unused"):
            jnp.cos(x)
        with jax.named_scope("last"):
            return x @ made

    model = of(function, {"a": SQUARE, "b": SQUARE}, cuts=("made", "unused", "last"))
    (graph, *_), _ = hoisted(model)
    assert set(graph.emptied) == {("made",), ("unused",)}
    for name in model.cuts:
        stages = cut(graph, (name,)).stages
        assert [stage.program.jaxpr.eqns[-1].primitive.name for stage in stages] == ["tanh", "dot_general"]


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_program(data):
    """Random operations on leaves, read at random by what depends on the inputs, differently in two buckets."""
    leaves = [SQUARE * (index + 1) + 0.1 for index in range(3)]
    unary = {
        "cast": lambda a: a.astype(jnp.bfloat16).astype(jnp.float32),
        "transpose": lambda a: a.T,
        "row": lambda a: jnp.broadcast_to(a[:1], a.shape),
        "tanh": jnp.tanh,
        "half": lambda a: jnp.concatenate([a[:4], a[:4]]),
    }
    binary = {"add": jnp.add, "outer": lambda a, b: a[0][:, None] * b[1], "product": jnp.matmul}
    operations = []
    for index in range(3, 3 + data.draw(st.integers(1, 6))):
        name = data.draw(st.sampled_from([*unary, *binary]))
        operations.append((name, [data.draw(st.integers(0, index - 1)) for _ in range(1 + (name in binary))]))
    read = [
        data.draw(st.sets(st.integers(0, 2 + len(operations)), min_size=1, max_size=3), label="read") for _ in range(2)
    ]

    def function(params, x):
        values = list(params)
        for name, operands in operations:
            values.append({**unary, **binary}[name](*(values[operand] for operand in operands)))
        for place in sorted(read[x.shape[0] - 1]):
            x = jnp.tanh(x @ values[place])
        return x

    model = of(function, leaves)
    assert_hoisted_equals(model, drawn_inputs(model), tolerance=2e-2)


def test_leaves_that_nobody_uses_are_no_weights():
    _, derived = hoisted(of(lambda p, x: x * p["used"], {"used": VECTOR, "unused": VECTOR}))
    assert [each.leaves for each in derived] == [(1,)]


def test_large_constants_are_compared_by_identity():
    table = np.ones((4096, WIDTH), np.float32)

    def function(p, x):
        return x * (p + jnp.sum(table, axis=0)) + (p + jnp.sum(table, axis=0))

    model = of(function, VECTOR)
    _, derived = assert_hoisted_equals(model, drawn_inputs(model), tolerance=1e-4)
    assert [each.program is None for each in derived] == [False]
