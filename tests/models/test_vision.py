"""ViT and ResNet as they are served: a row's answer is its own, and batch norms use their running averages."""

import jax
import numpy as np
import pytest

from jaxserve import models
from jaxserve.models.resnet import TINY as TINY_RESNET
from jaxserve.models.resnet import Resnet
from jaxserve.models.vit import TINY as TINY_VIT


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 32, 32, 3)).astype(np.float32)


@pytest.mark.parametrize("make", [lambda: models.vit(TINY_VIT), lambda: models.resnet(TINY_RESNET)])
def test_a_row_does_not_depend_on_its_batch(make):
    model = make()
    params, apply = model.load_params(), jax.jit(model.apply)
    image = images(4)
    together = apply(params, {"image": image})["logits"]
    assert together.shape == (4, 10)
    assert np.abs(together - together[:1]).max() > 1e-3
    for index in range(4):
        alone = apply(params, {"image": image[index : index + 1]})["logits"]
        np.testing.assert_allclose(together[index], alone[0], atol=1e-4)


def test_batch_norms_use_the_running_averages_that_training_kept():
    module, image = Resnet(TINY_RESNET), images(8) * 3 + 1
    variables = models.resnet(TINY_RESNET).load_params()
    train = jax.jit(lambda variables: module.apply(variables, image=image, train=True, mutable=["batch_stats"]))
    trained = dict(variables)
    for _ in range(60):  # the averages forget 0.9 ** 60 of their start
        in_training, updated = train(trained)
        trained.update(updated)
    serve = jax.jit(lambda variables: module.apply(variables, image=image)["logits"])
    assert np.abs(serve(variables) - in_training["logits"]).max() > 0.1
    np.testing.assert_allclose(serve(trained), in_training["logits"], atol=1e-2)


def test_the_served_model_takes_its_averages_from_batch_stats():
    model = models.resnet(TINY_RESNET)
    params, image = model.load_params(), {"image": images(1)}
    apply = jax.jit(model.apply)
    shifted = {**params, "batch_stats": jax.tree.map(lambda leaf: leaf + 0.5, params["batch_stats"])}
    assert np.abs(apply(params, image)["logits"] - apply(shifted, image)["logits"]).max() > 1e-3
