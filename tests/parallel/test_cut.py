"""Programs are flattened with their module names, and cut into stages that compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend import core

from jaxserve.errors import ModelError
from jaxserve.model import Model, TensorSpec
from jaxserve.parallel import cut, trace
from tests.model.toys import WIDTH, X, encoder, ids_of, nnx_net, perceptron, perceptron_params


def run(model, names, inputs):
    """The model's outputs by name, computed stage by stage, each stage from what it takes alone."""
    bucket = model.buckets[model.bucket_index({"batch": 1, "length": 1, **model.inputs.check(inputs)[1]})]
    graph = trace(model, bucket)
    staged = cut(graph, names)
    leaves = jax.tree.leaves(model.load_params())
    values = dict(enumerate(inputs.values()))
    assert len(staged.stages) == len(names) + 1
    for stage in staged.stages:
        core.check_jaxpr(stage.program.jaxpr)
        arguments = [
            *(leaves[index] for index in stage.params),
            *stage.constants,
            *(values[value] for value in stage.takes),
        ]
        given = jax.jit(core.jaxpr_as_fun(stage.program))(*arguments)
        assert not set(values) & set(stage.gives), "a value is made once"
        values.update(zip(stage.gives, given, strict=True))
    return dict(zip(model.outputs, (values[value] for value in staged.outputs), strict=True)), staged


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def whole(model, inputs):
    returned = jax.jit(model.apply)(model.load_params(), inputs)
    return dict(zip(model.outputs, jax.tree.leaves(returned), strict=True))


@pytest.mark.parametrize(
    "names",
    [(), ("layers_2",), ("layers_1", "layers_3"), ("Encoder/layers_1/attention", "layers_1/up", "embed.attend")],
)
def test_linen_with_tied_weights_skips_remat_and_early_outputs(names):
    model, _, _ = encoder()
    inputs = {"ids": ids_of(2, 8)}
    found, staged = run(model, names, inputs)
    assert_same(found, whole(model, inputs))
    if names == ("layers_1", "layers_3"):
        first, _, last = staged.stages
        (tied,) = set(first.params) & set(last.params)
        assert model.param_paths[tied].endswith("embed/embedding")


@pytest.mark.parametrize(
    "names", [("trunk/layers_1",), ("layers_1", "layers/2"), ("layers_0/up", "embed.attend"), ("layers_2/norm",)]
)
def test_nnx_names_come_from_graph_paths(names):
    model, _ = nnx_net(cuts=names)
    inputs = {"ids": ids_of(2, 4)}
    found, staged = run(model, names, inputs)
    assert_same(found, whole(model, inputs))
    for stage in staged.stages:
        assert len(stage.params) < len(model.param_paths)


def test_function_with_named_scopes():
    model = Model.from_function("f", perceptron, perceptron_params(4), inputs=X, batch_sizes=(2,))
    inputs = {"x": np.ones((2, WIDTH), np.float32)}
    found, staged = run(model, ("layer_1", "layer_3"), inputs)
    assert_same(found, whole(model, inputs))
    assert [stage.params for stage in staged.stages] == [(0, 1), (2, 3, 4, 5), (6, 7)]
    assert [(stage.takes, stage.gives) for stage in staged.stages] == [((0,), (1,)), ((1,), (2,)), ((2,), (3,))]


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_cuts_of_any_graph(data):
    """A random graph of layers that read random earlier values and weights, cut anywhere."""
    layers = data.draw(st.integers(2, 6))
    reads = [data.draw(st.sets(st.integers(0, layer), min_size=1, max_size=3)) for layer in range(layers)]
    weights = [data.draw(st.integers(0, 2)) for _ in range(layers)]
    returned = data.draw(st.lists(st.integers(0, layers), min_size=1, max_size=3))
    names = data.draw(st.sets(st.integers(1, layers - 1)).map(sorted))

    def function(params, x):
        values = [x]
        for layer in range(layers):
            with jax.named_scope(f"layer_{layer}"):
                weight = params[weights[layer]].T
                values.append(jnp.tanh(sum(values[place] for place in reads[layer]) @ weight))
        return [values[place] for place in returned]

    params = [layer["kernel"] for layer in perceptron_params(3)]
    model = Model.from_function("f", function, params, inputs=X, batch_sizes=(2,))
    inputs = {"x": np.linspace(-1, 1, 2 * WIDTH, dtype=np.float32).reshape(2, WIDTH)}
    found, _ = run(model, [f"layer_{name}" for name in names], inputs)
    assert_same(found, whole(model, inputs))


def test_outputs_that_no_stage_makes():
    """An input, the same one twice, a constant, a weight of the batch's size, a value made of weights alone."""
    big, small = np.arange(4096.0, dtype=np.float32).reshape(2, 2048), jnp.ones((2, 1))

    def function(params, x):
        with jax.named_scope("first"):
            y = x * params["w"]
        with jax.named_scope("second"):
            z = y + small + big[:, :WIDTH]
        batch = jnp.zeros_like(x[:, :1])
        return {"in": x, "again": x, "y": y, "z": z, "made": params["w"] * 2 + batch, "zero": batch}

    model = Model.from_function("f", function, {"w": np.full(WIDTH, 3.0, np.float32)}, inputs=X, batch_sizes=(2,))
    inputs = {"x": np.ones((2, WIDTH), np.float32)}
    found, staged = run(model, ("second",), inputs)
    assert_same(found, whole(model, inputs))
    assert not staged.stages[0].constants


def test_calls_of_every_kind_are_inlined():
    @jax.custom_vjp
    def vjp(x):
        with jax.named_scope("in_vjp"):
            return jnp.sin(x)

    vjp.defvjp(lambda x: (vjp(x), x), lambda x, g: (g * jnp.cos(x),))

    @jax.custom_jvp
    def jvp(x):
        with jax.named_scope("in_jvp"):
            return jnp.cos(x) + x

    jvp.defjvps(lambda g, _, x: g)

    def function(params, x):
        def inner(x):
            with jax.named_scope("in_jit"):
                return jnp.tanh(x) + params["w"]

        with jax.named_scope("outer"):
            x = jax.checkpoint(jax.named_scope("in_remat")(inner))(jax.jit(inner)(x))
        return jvp(vjp(x))

    model = Model.from_function("f", function, {"w": np.ones(WIDTH, np.float32)}, inputs=X, batch_sizes=(2,))
    graph = trace(model, model.buckets[0])
    names = {eqn.primitive.name for eqn in graph.eqns}
    assert names <= {"tanh", "add", "sin", "cos", "broadcast_in_dim", "reshape"}
    assert ("outer", "in_remat", "in_jit") in graph.paths
    inputs = {"x": np.ones((2, WIDTH), np.float32)}
    found, _ = run(model, ("in_remat", "in_vjp", "in_jvp"), inputs)
    assert_same(found, whole(model, inputs))


def scanned_model(**options):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.Dense(WIDTH, name="dense")(nn.LayerNorm(name="norm")(x)), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            x, _ = stack(name="stack")(nn.Dense(WIDTH, name="before")(x), None)
            return nn.Dense(2, name="after")(x)

    module = Net()
    variables = jax.jit(module.init)(jax.random.key(0), jnp.ones((1, WIDTH)))
    return Model.from_linen("scanned", module, variables, inputs=X, batch_sizes=(2,), **options)


def test_a_loop_over_layers_is_cut_between_them():
    names = ("stack", "stack_1/dense", "after")
    model = scanned_model(cuts=names)
    inputs = {"x": np.ones((2, WIDTH), np.float32)}
    found, _ = run(model, names, inputs)
    assert_same(found, whole(model, inputs))


def test_cuts_that_name_nothing_or_too_much():
    with pytest.raises(
        ModelError, match=r"cut 'layers_9' names no module; the modules are .*Encoder/layers_0/attention"
    ):
        encoder(cuts=("layers_9",))
    with pytest.raises(
        ModelError, match=r"cut 'up' names Encoder/layers_0/up, Encoder/layers_1/up.*give a longer path"
    ):
        encoder(cuts=("up",))
    with pytest.raises(ModelError, match=r"names no module; the modules are \(none: name some\)"):
        Model.from_function("f", lambda x: x + 1, inputs=X, cuts=("a",))


def test_params_that_are_only_added_are_told_from_those_that_are_multiplied():
    model, _, _ = encoder()
    staged = cut(trace(model, model.buckets[0]), ())
    (stage,) = staged.stages
    added = {model.param_paths[index].split("/")[-1] for index in stage.added}
    others = {model.param_paths[index].split("/")[-1] for index in stage.params if index not in stage.added}
    assert (added, others) == ({"bias", "scale"}, {"embedding", "kernel"})


def test_nnx_transforms_keep_names():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
            self.second = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

        def __call__(self, x):
            return nnx.remat(lambda module, x: module(x))(
                self.second, nnx.jit(lambda module, x: module(x))(self.first, x)
            )

    model = Model.from_nnx("m", Net(nnx.Rngs(0)), inputs=X, batch_sizes=(2,), cuts=("second",))
    inputs = {"x": np.ones((2, WIDTH), np.float32)}
    found, staged = run(model, ("second",), inputs)
    assert_same(found, whole(model, inputs))
    assert [len(stage.params) for stage in staged.stages] == [2, 2]


def test_a_class_that_cannot_be_subclassed_stays_without_a_name():
    class Final(nnx.Module):
        def __init_subclass__(cls, **kwargs):
            raise TypeError("final")

        def __init__(self, rngs):
            self.dense = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

        def __call__(self, x):
            return self.dense(x)

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = Final(rngs), Final(rngs)

        def __call__(self, x):
            return self.second(self.first(x))

    model = Model.from_nnx("m", Net(nnx.Rngs(0)), inputs=X, batch_sizes=(2,), cuts=("second/dense",))
    inputs = {"x": np.ones((2, WIDTH), np.float32)}
    found, _ = run(model, ("second/dense",), inputs)
    assert_same(found, whole(model, inputs))


def test_several_inputs_and_one_that_only_the_last_stage_uses():
    specs = {"x": X["x"], "shift": TensorSpec(("batch", 1), "float32")}

    def function(params, x, shift):
        return {"sum": perceptron(params, x) + shift}

    model = Model.from_function("f", function, perceptron_params(2), inputs=specs, batch_sizes=(2,))
    inputs = {"x": np.ones((2, WIDTH), np.float32), "shift": np.full((2, 1), 3.0, np.float32)}
    found, staged = run(model, ("layer_1",), inputs)
    assert_same(found, whole(model, inputs))
    assert [stage.takes for stage in staged.stages] == [(0,), (2, 1)]
