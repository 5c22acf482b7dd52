"""Everything about a model is checked when it is made, without a device; then it pads, cuts back and converts."""

import gc
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.errors import InvalidInput, ModelError, ModelFailed
from jaxserve.model import Model, TensorSpec
from tests.model.toys import (
    IDS,
    WIDTH,
    Encoder,
    NnxNet,
    X,
    encoder,
    encoder_variables,
    ids_of,
    make_nnx_net,
    nnx_net,
    perceptron,
    perceptron_params,
)

DENSE = nn.Dense(3)
DENSE_PARAMS = {"kernel": np.ones((WIDTH, 3), np.float32), "bias": np.zeros(3, np.float32)}


def dense(name="dense", params=None, **options):
    return Model.from_linen(name, DENSE, params or DENSE_PARAMS, **({"inputs": {"inputs": X["x"]}} | options))


def function(body, **options):
    return Model.from_function("f", body, **({"inputs": X} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "name is '', but must be a non-empty str"),
        ({"name": 3}, "must be a non-empty str"),
        ({"name": "a/b"}, "must hold no '/' and no control characters"),
        ({"name": "a\nb"}, "no control characters"),
        ({"name": "a\u202eb"}, "no control characters"),
        ({"deadline_s": 0}, "deadline_s is 0, but must be greater than 0"),
        ({"deadline_s": -1.0}, "must be greater than 0"),
        ({"deadline_s": float("nan")}, "must be greater than 0"),
        ({"deadline_s": "1"}, "must be a number of seconds"),
        ({"deadline_s": True}, "must be a number of seconds"),
        ({"max_wait_s": -0.1}, "max_wait_s is -0.1, but must be at least 0 and finite"),
        ({"max_wait_s": math.nan, "batch_sizes": (1, 2)}, "max_wait_s is nan, but must be at least 0 and finite"),
        ({"max_wait_s": 0.5, "deadline_s": 0.5}, "at least 0 and less than deadline_s, which is 0.5"),
        ({"max_wait_s": "1"}, "max_wait_s is '1', but must be a number of seconds"),
        ({"max_wait_s": 0.1}, "never merged, as its largest batch size is 1; leave it out, or change that"),
        ({"batch_sizes": ()}, "model 'dense': batch_sizes is"),
        ({"batch_sizes": (4, 2)}, "sizes must ascend"),
        ({"inputs": {}}, "must name at least one TensorSpec"),
        ({"inputs": {"inputs": TensorSpec(("batch", WIDTH), "float64")}}, "declare float32, or set jax_enable_x64"),
        ({"inputs": {"x": X["x"]}}, "inputs reach it as keyword arguments of their names"),
        (
            {"inputs": {"inputs": TensorSpec(("batch", 5), "float32")}},
            r"'params/kernel' has shape \(8, 3\).*needs \(5, 3\)",
        ),
        ({"params": {"kernel": DENSE_PARAMS["kernel"]}}, "the params lack 'params/bias'; give exactly those"),
        ({"params": {**DENSE_PARAMS, "scale": np.ones(3)}}, "have 'params/scale', which the module does not use"),
        (
            {"params": {**DENSE_PARAMS, "bias": np.ones(4)}},
            r"'params/bias' has shape \(4,\), but the module needs \(3,\)",
        ),
        ({"params": {**DENSE_PARAMS, "bias": "zeros"}}, "params leaf 'bias' is a str, but must be an array"),
        (
            {"params": {"params": DENSE_PARAMS, "cache": {"x": np.ones(1)}}},
            "hold the collection 'cache', but the module",
        ),
        ({"params": "/nowhere/params.safetensors"}, "does not exist; give a .safetensors file or an Orbax directory"),
        ({"params": __file__}, "is neither a .safetensors file nor a directory"),
        ({"params": [1.0]}, "params are a list, but must be a dict as module.init returns it"),
        ({"params": lambda: 1 / 0}, "the params callable raised ZeroDivisionError"),
        ({"cuts": "kernel"}, "must be a tuple of names of modules"),
        ({"cuts": ("Dense", "Dense")}, "names a module twice"),
        ({"cuts": ("layers_0",)}, "cut 'layers_0' names no module; the modules are Dense"),
        ({"accepts": X}, "accepts is given, but no preprocess"),
        ({"preprocess": 3}, "preprocess is a int, but must be a function"),
        ({"postprocess": lambda outputs: outputs}, "postprocess is given without returns"),
        ({"returns": X}, "returns is given without postprocess"),
        ({"returns": X, "postprocess": 3}, "postprocess is a int, but must be a function"),
    ],
)
def test_a_model_that_cannot_be_made(options, message):
    with pytest.raises(ModelError, match=message):
        dense(**options)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda x: x.sum(), "output 'output' is a scalar, so it has no batch dimension"),
        (lambda x: {"y": x.sum(0)}, r"output 'y' of shape \(8,\) has no batch dimension"),
        (lambda x: x.T, "has no batch dimension: its first dimension, and no other"),
        (
            lambda x: (x, jnp.concatenate([x, x])),
            "dimension 0 of output 'output_1' goes from 2 to 4 as batch goes from 1 to 2",
        ),
        (lambda x: (x, 3), "output 'output_1' is a scalar"),
        (lambda x: (), "returns nothing"),
        (lambda x: {"a": {"b": x}, "a/b": x}, "two outputs have one name"),
        (lambda x: x if x.shape[0] > 1 else (x, x), "it returns another structure at batch 2 than at 1"),
        (lambda x: jax.random.split(jax.random.key(0), x.shape[:1]), "output 'output': dtype 'key<fry>' is unknown"),
        (lambda x: x if x.sum() > 0 else -x, "its apply cannot be traced at batch 1: TracerBoolConversionError"),
    ],
)
def test_outputs_that_make_no_sense(body, message):
    with pytest.raises(ModelError, match=message):
        function(body)


def test_the_error_of_apply_is_chained():
    with pytest.raises(ModelError, match="cannot be traced") as raised:
        function(lambda x: x @ jnp.ones((3, 3)))
    assert isinstance(raised.value.__cause__, TypeError)


def test_wrong_kinds_of_module():
    with pytest.raises(ModelError, match=r"must be a flax\.linen\.Module"):
        Model.from_linen("m", lambda x: x, {}, inputs=X)
    with pytest.raises(ModelError, match=r"must be a flax\.nnx\.Module"):
        Model.from_nnx("m", DENSE, inputs=X)
    with pytest.raises(ModelError, match="must be callable"):
        Model.from_function("m", 3, inputs=X)
    with pytest.raises(TypeError, match="batchsizes"):
        dense(batchsizes=(1,))


def test_nothing_is_allocated_when_a_model_is_made():
    gc.collect()
    before = {id(array) for array in jax.live_arrays()}
    model = Model.from_linen(
        "large",
        nn.Dense(1 << 20),
        lambda: nn.Dense(1 << 20).init(jax.random.key(0), jnp.ones((1, 1 << 20))),
        inputs={"inputs": TensorSpec(("batch", 1 << 20), "float32")},
    )
    abstract = nnx.eval_shape(lambda: nnx.Linear(1 << 20, 1 << 20, rngs=nnx.Rngs(0)))
    Model.from_nnx("large", abstract, inputs={"inputs": TensorSpec(("batch", 1 << 20), "float32")})
    assert {id(array) for array in jax.live_arrays()} <= before
    assert model.weight_bytes == 4 * (1 << 40) + 4 * (1 << 20)


def test_dimensions_are_found_by_tracing_at_two_sizes():
    model, _, _ = encoder()
    assert model.outputs == {
        "early/0": TensorSpec(("batch", "length", WIDTH), "float32"),
        "early/1": TensorSpec(("batch", "length"), "int32"),
        "features": TensorSpec(("batch", "length", WIDTH), "float32"),
        "logits": TensorSpec(("batch", "length", 16), "float32"),
    }
    assert [bucket.shape for bucket in model.buckets] == [(1, 4), (1, 8), (2, 4), (2, 8), (4, 4), (4, 8)]
    assert model.bucket_index({"batch": 3, "length": 4}) == 4
    assert model.accepts is model.inputs
    assert model.returns == model.outputs


def test_a_dimension_of_the_same_size_is_not_taken_for_a_variable_one():
    model = function(
        lambda x: {"square": x[:, :, None] * x[:, None, :], "fixed": jnp.ones((1, 3)) * x[:, :1]},
        inputs={"x": TensorSpec(("batch", "n"), "float32")},
        batch_sizes=(3,),
        buckets={"n": (3,)},
    )
    assert model.outputs["square"].shape == ("batch", "n", "n")
    assert model.outputs["fixed"].shape == ("batch", 3)


def test_a_size_that_is_no_bucket_need_not_be_possible():
    def positions(x):
        assert x.shape[:2] == (2, 4), "these sizes and no others"
        return {"pooled": (x + jnp.arange(4.0)[:, None]).mean(1)}

    model = function(
        positions, inputs={"x": TensorSpec(("batch", "n", 3), "float32")}, batch_sizes=(2,), buckets={"n": (4,)}
    )
    assert model.outputs["pooled"].shape == ("batch", 3)
    with pytest.raises(ModelError, match="cannot be traced with n 8: AssertionError: these sizes"):
        function(
            positions, inputs={"x": TensorSpec(("batch", "n", 3), "float32")}, batch_sizes=(2,), buckets={"n": (4, 8)}
        )


def test_an_output_that_follows_a_dimension_in_another_way():
    with pytest.raises(ModelError, match="dimension 1 of output 'output' goes from 2 to 4 as n goes from 4 to 8"):
        function(lambda x: x[:, ::2], inputs={"x": TensorSpec(("batch", "n"), "float32")}, buckets={"n": (4, 8)})


@pytest.mark.parametrize("given_params", ["variables", "params", "callable", "frozen"])
def test_linen_params_in_every_form(given_params):
    module = Encoder(layers=1)
    variables = encoder_variables(1)
    forms = {
        "variables": variables,
        "params": variables["params"],
        "callable": lambda: jax.jit(module.init)(jax.random.key(0), jnp.ones((1, 4), jnp.int32)),
        "frozen": nn.FrozenDict(variables),
    }
    model = Model.from_linen("m", module, forms[given_params], inputs=IDS, buckets={"length": (4,)})
    ids = ids_of(1, 4)
    expected = jax.jit(module.apply)(variables, ids)
    found = jax.jit(model.apply)(model.load_params(), {"ids": ids})
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_linen_batch_stats_boxed_params_method_and_kwargs():
    class Net(nn.Module):
        @nn.compact
        def scores(self, x, *, train):
            boxed = nn.with_partitioning(nn.initializers.ones, (None, "model"))
            x = nn.Dense(4, kernel_init=boxed)(x)
            x = nn.BatchNorm(use_running_average=not train)(x)
            return nn.Dropout(0.5, deterministic=not train)(x)

    module = Net()
    variables = module.init(jax.random.key(0), jnp.ones((1, WIDTH)), train=False, method="scores")
    model = Model.from_linen(
        "m", module, variables, inputs=X, apply_kwargs={"train": False}, method="scores", batch_sizes=(1, 2)
    )
    x = np.ones((2, WIDTH), np.float32)
    assert {path.split("/")[0] for path in model.param_paths} == {"params", "batch_stats"}
    np.testing.assert_allclose(
        model.apply(model.load_params(), {"x": x}), module.apply(variables, x, train=False, method="scores")
    )


def test_nnx_in_evaluation_mode_leaves_the_module_alone():
    model, module = nnx_net()
    reference = nnx.clone(module)
    reference.eval()
    ids = ids_of(2, 4)
    found = jax.jit(model.apply)(model.load_params(), {"ids": ids})
    np.testing.assert_allclose(found, nnx.jit(lambda module, ids: module(ids))(reference, ids), rtol=1e-5, atol=1e-6)
    assert not module.trunk.layers[0].dropout.deterministic
    assert type(module.trunk.layers[0]).__call__ is type(reference.trunk.layers[0]).__call__
    assert type(module.embed) is nnx.Embed


@pytest.mark.parametrize("given_params", ["state", "pure", "callable"])
def test_nnx_abstract_module_with_params(given_params):
    module = make_nnx_net()
    forms = {
        "state": nnx.state(module),
        "pure": nnx.to_pure_dict(nnx.state(module)),
        "callable": lambda: nnx.state(make_nnx_net()),
    }
    abstract = nnx.eval_shape(lambda: NnxNet(nnx.Rngs(0)))
    model = Model.from_nnx("m", abstract, forms[given_params], inputs=IDS, buckets={"length": (4,)})
    own = Model.from_nnx("own", module, inputs=IDS, buckets={"length": (4,)})
    jax.tree.map(np.testing.assert_array_equal, model.load_params(), own.load_params())


def test_nnx_errors():
    abstract = nnx.eval_shape(lambda: nnx.Linear(WIDTH, 3, rngs=nnx.Rngs(0)))
    inputs = {"inputs": X["x"]}
    with pytest.raises(ModelError, match="lack 'bias'"):
        Model.from_nnx("m", abstract, {"kernel": np.ones((WIDTH, 3))}, inputs=inputs)
    with pytest.raises(ModelError, match=r"'kernel' has shape \(2, 3\), but the module needs \(8, 3\)"):
        Model.from_nnx("m", abstract, {"kernel": np.ones((2, 3)), "bias": np.ones(3)}, inputs=inputs)
    model = Model.from_nnx("m", abstract, inputs=inputs)
    with pytest.raises(ModelError, match="params leaf 'bias' is abstract, so there is nothing to load"):
        model.load_params()


def test_nnx_method():
    module = make_nnx_net()
    model = Model.from_nnx("m", module.embed, inputs={"query": X["x"]}, method="attend")
    x = np.ones((1, WIDTH), np.float32)
    np.testing.assert_allclose(model.apply(model.load_params(), {"query": x}), module.embed.attend(x))
    other = Model.from_nnx("m", module.embed, inputs={"query": X["x"]}, method=lambda m, query: m.attend(query) * 2)
    np.testing.assert_allclose(other.apply(other.load_params(), {"query": x}), module.embed.attend(x) * 2)


def test_function_with_and_without_params():
    params = perceptron_params(2)
    model = Model.from_function("f", perceptron, params, inputs=X)
    assert model.param_paths == ("0/bias", "0/kernel", "1/bias", "1/kernel")
    x = np.ones((1, WIDTH), np.float32)
    np.testing.assert_allclose(model.apply(model.load_params(), {"x": x}), perceptron(params, x), rtol=1e-6)
    assert function(lambda x: x * 2).apply((), {"x": 3}) == 6
    assert function(lambda params, x: x * 2).apply(None, {"x": 3}) == 6


sizes = st.fixed_dictionaries({"batch": st.integers(1, 4), "length": st.integers(1, 8)})


@settings(max_examples=30, deadline=None)
@given(sizes=sizes)
def test_pad_and_unpad_are_inverse(sizes):
    model = PADDED
    ids = ids_of(sizes["batch"], sizes["length"])
    arrays, found = model.prepare({"ids": ids})
    assert found == sizes
    bucket = model.bucket_index(found)
    padded = model.pad(arrays, bucket)
    assert padded["ids"].shape == model.buckets[bucket].shape
    assert padded["ids"].sum() == ids.sum()
    np.testing.assert_array_equal(model.unpad({"output": padded["ids"]}, found)["output"], ids)


PADDED = Model.from_function("f", lambda ids: ids, inputs=IDS, batch_sizes=(1, 2, 4), buckets={"length": (4, 8)})


def test_what_fits_is_not_copied():
    ids = ids_of(2, 8)
    padded = PADDED.pad({"ids": ids}, PADDED.bucket_index({"batch": 2, "length": 8}))
    assert padded["ids"] is ids
    assert PADDED.unpad({"output": ids}, {"batch": 2, "length": 8})["output"] is ids


def text_model(**options):
    """Words to lengths: strings in, numbers out."""
    defaults = {
        "preprocess": lambda inputs: {
            "x": np.array([[float(len(word))] * WIDTH for word in inputs["text"]], np.float32)
        },
        "accepts": {"text": TensorSpec(("batch",), "string")},
        "postprocess": lambda outputs: {"length": outputs["output"][:, 0]},
        "returns": {"length": TensorSpec(("batch",), "float32")},
        "batch_sizes": (4,),
    }
    return function(lambda x: x * 1, **(defaults | options))


def test_pre_and_postprocessing():
    model = text_model()
    assert model.validate({"text": ["a", "bcd"]}) == ({"text": ["a", "bcd"]}, {"batch": 2})
    arrays, found = model.prepare({"text": ["a", "bcd"]})
    assert (arrays["x"].shape, found) == ((2, WIDTH), {"batch": 2})
    padded = model.pad(arrays, 0)
    np.testing.assert_array_equal(model.finish({"output": padded["x"]}, found)["length"], [1, 3])
    assert model.returns == {"length": TensorSpec(("batch",), "float32")}
    with pytest.raises(InvalidInput, match="lack 'text' and have 'x'"):
        model.prepare({"x": np.ones((1, WIDTH), np.float32)})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preprocess": lambda inputs: inputs["nothing"]}, ModelFailed, "the preprocess of 'f' raised KeyError"),
        (
            {"preprocess": lambda inputs: {"x": np.ones((1, 2), np.float32)}},
            ModelFailed,
            "returned what its module does not",
        ),
        ({"postprocess": lambda outputs: 1 / 0}, ModelFailed, "the postprocess of 'f' raised ZeroDivisionError"),
    ],
)
def test_pre_and_postprocessing_that_fails(options, error, message):
    model = text_model(**options)
    with pytest.raises(error, match=message):
        model.finish({"output": np.ones((4, WIDTH), np.float32)}, model.prepare({"text": ["a"]})[1])


def test_a_preprocess_may_refuse_the_input():
    def refuse(inputs):
        raise InvalidInput("text holds a bad word")

    with pytest.raises(InvalidInput, match="bad word"):
        text_model(preprocess=refuse).prepare({"text": ["a"]})


def test_on_host():
    model = Model.from_function(
        "host",
        lambda params, x: {"y": x + params["shift"], "n": np.full(len(x), 2**40)},
        {"shift": np.float64(1.5)},
        inputs={"x": TensorSpec(("batch", "n"), "float64")},
        batch_sizes=(1, 8),
        buckets={"n": (2, 4)},
        on_host=True,
    )
    assert model.outputs == {"n": TensorSpec(("batch",), "int64"), "y": TensorSpec(("batch", "n"), "float64")}
    arrays, found = model.prepare({"x": [[1.0, 2.0, 3.0]]})
    outputs = model.finish(model.call_on_host(model.pad(arrays, model.bucket_index(found))), found)
    np.testing.assert_array_equal(outputs["y"], [[2.5, 3.5, 4.5]])
    assert outputs["n"].tolist() == [2**40]
    with pytest.raises(ModelFailed, match="'host' raised"):
        model.call_on_host({"x": np.array(["a"])})
    with pytest.raises(ModelError, match="runs in one piece"):
        Model.from_function("host", lambda x: x, inputs=X, on_host=True, cuts=("a",))
