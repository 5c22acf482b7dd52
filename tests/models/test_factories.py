"""What the factories promise: signatures, seeds; and planning models that are shapes only."""

import math

import jax
import numpy as np
import pytest

from jaxserve import models
from jaxserve.errors import ConfigError, ModelError
from jaxserve.models.bert import PLANNED as PLANNED_BERTS
from jaxserve.models.bert import Bert
from jaxserve.models.moe import PLANNED as PLANNED_MOES
from jaxserve.models.moe import Moe
from jaxserve.models.vit import TINY as TINY_VIT

FACTORIES = {"bert": 5, "gpt": 1024, "moe": 5, "vit": 10, "resnet": 10}


@pytest.mark.parametrize(("name", "scores"), FACTORIES.items())
def test_a_factory_needs_no_arguments(name, scores):
    model = getattr(models, name)()
    assert model.name == name
    assert model.outputs["logits"].shape == ("batch", scores)
    assert list(model.inputs) == (["image"] if name in ("vit", "resnet") else ["input_ids", "attention_mask"])
    assert model.deadline_s is not None
    assert model.weight_bytes < 8e6


def test_a_seed_makes_the_params():
    first, again, other = (models.gpt(seed=seed).load_params() for seed in (0, 0, 1))
    for one, same, different in zip(*map(jax.tree.leaves, (first, again, other)), strict=True):
        np.testing.assert_array_equal(one, same)
        assert np.ptp(one) == 0 or not np.array_equal(one, different)


def test_a_factory_takes_another_configuration():
    model = models.vit(TINY_VIT, name="small", batch_sizes=(1, 2), deadline_s=None, seed=3)
    assert (model.name, model.deadline_s, len(model.buckets)) == ("small", None, 2)


def parameters(shapes) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", models.PLANNING_MODELS)
def test_a_planned_configuration_has_the_parameters_that_its_name_says(name):
    module = Bert(PLANNED_BERTS[name]) if name in PLANNED_BERTS else Moe(PLANNED_MOES[name])
    tokens = jax.ShapeDtypeStruct((1, 1), np.int32)
    shapes = jax.eval_shape(
        lambda tokens: module.init(jax.random.key(0), input_ids=tokens, attention_mask=tokens), tokens
    )
    said = float(name.partition("-")[2].removesuffix("b")) * 1e9
    assert parameters(shapes) == pytest.approx(said, rel=0.04)


@pytest.mark.parametrize("name", ["bert-1.3b", "moe-1.3b"])
def test_a_planning_model_is_shapes_only(name):
    model = models.planning_model(name)
    assert model.weight_bytes == pytest.approx(2 * 1.3e9, rel=0.04)  # float16
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model.abstract_params))
    assert model.buckets[0].length == {"bert-1.3b": 2048, "moe-1.3b": 1024}[name]
    with pytest.raises(ModelError, match="abstract"):
        model.load_params()


def test_an_unknown_planning_model_is_refused():
    with pytest.raises(ConfigError, match=r"no planning model 'bert-9b'; choose one of bert-1.3b, "):
        models.planning_model("bert-9b")
