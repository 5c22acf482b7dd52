"""Params come from trees, functions, safetensors and Orbax, leaf by leaf and straight to their devices."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as orbax
import pytest
import safetensors.numpy
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxserve.errors import ModelError
from jaxserve.model import Model
from jaxserve.model.params import open_source
from tests.model.toys import IDS, Encoder, NnxNet, X, encoder_variables, make_nnx_net, perceptron, perceptron_params


def flat(tree):
    return {
        "/".join(str(key.key) for key in keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def load(model):
    return jax.tree.map(np.asarray, model.load_params())


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The encoder's variables in every kind of file, and a network of nnx."""
    root = tmp_path_factory.mktemp("params")
    variables = jax.tree.map(np.asarray, encoder_variables(1))
    safetensors.numpy.save_file(flat(variables["params"]), root / "slashes.safetensors")
    dotted = {f"params.{name.replace('/', '.')}": leaf for name, leaf in flat(variables["params"]).items()}
    safetensors.numpy.save_file(dotted, root / "dots.safetensors")
    state = nnx.state(make_nnx_net(), nnx.Not(nnx.RngState))
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(root / "full", variables)
        checkpointer.save(root / "bare", variables["params"])
        checkpointer.save(root / "nnx_state", state)
        checkpointer.save(root / "nnx_pure", nnx.to_pure_dict(state))
    with orbax.CheckpointManager(root / "manager") as manager:
        manager.save(3, args=orbax.args.StandardSave(variables))
    return root


@pytest.mark.parametrize("name", ["slashes.safetensors", "dots.safetensors", "full", "bare", "manager/3"])
def test_linen_params_from_files(stored, name):
    model = Model.from_linen("m", Encoder(1), stored / name, inputs=IDS, buckets={"length": (4,)})
    jax.tree.map(np.testing.assert_array_equal, load(model), jax.tree.map(np.asarray, encoder_variables(1)))


@pytest.mark.parametrize("name", ["nnx_state", "nnx_pure"])
def test_nnx_params_from_files(stored, name):
    abstract = nnx.eval_shape(lambda: NnxNet(nnx.Rngs(0)))
    model = Model.from_nnx("m", abstract, str(stored / name), inputs=IDS, buckets={"length": (4,)})
    own = Model.from_nnx("m", make_nnx_net(), inputs=IDS, buckets={"length": (4,)})
    jax.tree.map(np.testing.assert_array_equal, load(model), load(own))


def test_function_params_from_a_file_are_nested_dicts(tmp_path):
    layer = perceptron_params(1)[0]
    safetensors.numpy.save_file({f"layer.{name}": leaf for name, leaf in layer.items()}, tmp_path / "p.safetensors")
    model = Model.from_function(
        "f", lambda params, x: perceptron([params["layer"]], x), tmp_path / "p.safetensors", inputs=X
    )
    np.testing.assert_array_equal(load(model)["layer"]["kernel"], layer["kernel"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "uint16", "bool"])
def test_safetensors_dtypes(tmp_path, dtype):
    values = np.arange(4).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    safetensors.numpy.save_file({"a": values}, tmp_path / "p.safetensors")
    source, _ = open_source(tmp_path / "p.safetensors", lambda tree: tree)
    (leaf,) = source.read([("a", SingleDeviceSharding(jax.devices()[0]))])
    assert source.shapes["a"].dtype == leaf.dtype == values.dtype
    np.testing.assert_array_equal(leaf, values)


def test_bad_files(tmp_path, stored):
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    for path, message in (
        (tmp_path / "broken.safetensors", r"is no \.safetensors file"),
        (tmp_path, "is no Orbax checkpoint: it has no _METADATA file"),
        (stored / "manager", "it has the steps 3: give the directory of one"),
    ):
        with pytest.raises(ModelError, match=message):
            Model.from_linen("m", Encoder(1), path, inputs=IDS, buckets={"length": (4,)})


@pytest.mark.parametrize("kind", ["tree", "callable", "safetensors", "orbax"])
def test_leaves_arrive_with_the_sharding_asked_for(stored, kind):
    variables = jax.tree.map(np.asarray, encoder_variables(1))["params"]
    forms = {
        "tree": variables,
        "callable": lambda: variables,
        "safetensors": stored / "slashes.safetensors",
        "orbax": stored / "bare",
    }
    source, _ = open_source(forms[kind], lambda tree: tree)
    mesh = Mesh(np.array(jax.devices()[2:4]), ("data",), axis_types=(AxisType.Auto,))
    targets = [
        ("embed/embedding", NamedSharding(mesh, PartitionSpec("data"))),
        ("layers_0/up/bias", NamedSharding(mesh, PartitionSpec())),
        ("embed/embedding", SingleDeviceSharding(jax.devices()[5])),
    ]
    leaves = list(source.read(targets))
    for leaf, (path, sharding) in zip(leaves, targets, strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        np.testing.assert_array_equal(leaf, flat(variables)[path])


def test_a_callable_runs_once_for_each_load_and_not_when_the_model_is_made():
    calls = []

    def make():
        calls.append(isinstance(jnp.ones(3) * 1, jax.core.Tracer))
        return {"w": jnp.ones(8)}

    model = Model.from_function("f", lambda params, x: x * params["w"], make, inputs=X)
    assert calls == [True]
    load(model)
    assert calls == [True, False]


MEMORY = """
import gc, resource, sys, weakref
import jax, jax.numpy as jnp, numpy as np
from jaxserve import runtime
from jaxserve.model import Model, TensorSpec

LEAVES, SHAPE = 48, (1024, 1024)
alive, most = 0, 0

def freed():
    global alive
    alive -= 1

class Lazy:
    shape, dtype = SHAPE, np.dtype("float32")
    def __array__(self, dtype=None, copy=None):
        global alive, most
        alive, most = alive + 1, max(most, alive + 1)
        array = np.full(SHAPE, 0.5, np.float32)
        weakref.finalize(array, freed)
        return array

def chain(params, x):
    for leaf in params:
        x = x + x @ leaf
    return x

params = [Lazy() for _ in range(LEAVES)]
if sys.argv[1] == "callable":
    params = lambda: [np.full(SHAPE, 0.5, np.float32) for _ in range(LEAVES)]
model = Model.from_function("chain", chain, params, inputs={"x": TensorSpec(("batch", 1024), "float32")})
runtime.load(Model.from_function("warm", lambda x: x + 1, inputs=dict(model.inputs)), repeats=1).close()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pipeline = runtime.load(model, repeats=1)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(grown / model.weight_bytes, most)
"""


@pytest.mark.parametrize("kind", ["lazy", "callable"])
def test_a_model_is_never_in_memory_twice(kind):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", MEMORY, kind], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    grown, most_alive = map(float, done.stdout.split())
    assert grown < 1.5
    assert most_alive <= 6  # of 48 leaves; two would do, but the collector takes its time
