"""BERT, GPT and MoE as they are served: padding changes nothing, and attention is the kernels' own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxserve_kernels import attention as kernels

from jaxserve import models
from jaxserve.errors import ModelError
from jaxserve.models.bert import TINY as TINY_BERT
from jaxserve.models.bert import EmbeddingHead
from jaxserve.models.gpt import TINY as TINY_GPT
from jaxserve.models.moe import TINY as TINY_MOE
from jaxserve.models.vit import TINY as TINY_VIT
from jaxserve.parallel import trace

LENGTHS = {"lengths": (8, 32)}
TRANSFORMERS = {
    "bert": lambda: models.bert(TINY_BERT, **LENGTHS),
    "bert that embeds": lambda: models.bert(dataclasses.replace(TINY_BERT, head="embedding"), **LENGTHS),
    "gpt": lambda: models.gpt(TINY_GPT, **LENGTHS),
    "gpt that classifies": lambda: models.gpt(dataclasses.replace(TINY_GPT, classes=3), **LENGTHS),
    "moe": lambda: models.moe(TINY_MOE, **LENGTHS),
    "moe with too little room": lambda: models.moe(dataclasses.replace(TINY_MOE, capacity_factor=0.5), **LENGTHS),
}


@pytest.fixture(scope="module", params=TRANSFORMERS)
def answer(request):
    """A compiled model as a function of (input_ids, attention_mask)."""
    model = TRANSFORMERS[request.param]()
    params, apply = model.load_params(), jax.jit(model.apply)

    def answer(input_ids, attention_mask):
        (output,) = apply(params, {"input_ids": input_ids, "attention_mask": attention_mask}).values()
        assert output.dtype == jnp.float32
        return np.asarray(output)

    return answer


def test_padding_changes_no_answer(answer):
    # Padding holds arbitrary words. One row has one token, the last has none.
    input_ids = np.random.default_rng(0).integers(0, 64, (4, 32)).astype(np.int32)
    lengths = np.array([6, 6, 1, 0])
    padded = answer(input_ids, (np.arange(32) < lengths[:, None]).astype(np.int32))
    alone = answer(input_ids[:2, :6], np.ones((2, 6), np.int32))
    assert np.isfinite(padded).all()
    np.testing.assert_allclose(padded[:2], alone, atol=2e-5)


def test_an_answer_depends_on_every_token(answer):
    input_ids = np.tile(np.arange(32, dtype=np.int32), (4, 1))
    input_ids[[1, 2, 3], [0, 20, 31]] = 63
    answers = answer(input_ids, np.ones_like(input_ids))
    assert (np.abs(answers[1:] - answers[0]).max(axis=1) > 1e-4).all()


@pytest.mark.parametrize("factory", [models.bert, models.gpt, models.moe])
def test_a_length_without_positions_is_refused(factory):
    with pytest.raises(ModelError, match="128 tokens, but the model has 64 positions: use shorter buckets"):
        factory({"bert": TINY_BERT, "gpt": TINY_GPT, "moe": TINY_MOE}[factory.__name__], lengths=(128,))


def test_gpt_scores_the_next_word_or_the_class():
    assert models.gpt(TINY_GPT).outputs["logits"].shape == ("batch", 64)
    assert models.gpt(dataclasses.replace(TINY_GPT, classes=3)).outputs["logits"].shape == ("batch", 3)


@pytest.mark.parametrize(("scan", "remat"), [(True, False), (False, True), (True, True)])
def test_a_gpt_that_is_scanned_or_rematerialised_has_the_same_answers(scan, remat):
    inputs = {
        "input_ids": np.random.default_rng(0).integers(0, 64, (4, 8)).astype(np.int32),
        "attention_mask": (np.arange(8) < np.array([[8], [5], [1], [0]])).astype(np.int32),
    }
    plain, other = models.gpt(TINY_GPT), models.gpt(TINY_GPT, scan=scan, remat=remat)
    answers = [jax.jit(model.apply)(model.load_params(), inputs)["logits"] for model in (plain, other)]
    np.testing.assert_allclose(*answers, atol=1e-6)
    text = str(jax.make_jaxpr(other.apply)(other.abstract_params, inputs))
    assert ("scan[" in text, "remat2[" in text) == (scan, remat)
    # The stacked layers are the same numbers, one after the other.
    stacked = dict(zip(other.param_paths, jax.tree.leaves(other.load_params()), strict=True))
    for path, leaf in zip(plain.param_paths, jax.tree.leaves(plain.load_params()), strict=True):
        first, second, *rest = path.split("/")
        same = stacked["/".join((first, *rest))][int(second)] if scan and first == "layers" else stacked[path]
        np.testing.assert_array_equal(same, leaf)


@pytest.mark.parametrize(("scan", "remat"), [(False, False), (True, False), (False, True), (True, True)])
def test_the_layers_of_a_gpt_have_their_names_however_they_run(scan, remat):
    model = models.gpt(TINY_GPT, scan=scan, remat=remat)
    paths = trace(model, model.buckets[0]).paths
    names = {path[:depth] for path in paths for depth in (1, 2)} - {()}
    assert {("embeddings", "word"), ("head", "scores")} <= names
    for layer in ("layers_0", "layers_1"):
        assert {
            (layer, "attention"),
            (layer, "attention_norm"),
            (layer, "norm"),
            (layer, "up"),
            (layer, "down"),
        } <= names


def test_embeddings_have_length_1_and_a_row_without_tokens_is_zero():
    hidden = np.random.default_rng(0).normal(size=(2, 3, 8))
    mask = np.array([[True, True, False], [False, False, False]])
    embedding = jax.jit(EmbeddingHead().apply)({}, hidden, mask)
    mean = hidden[0, :2].mean(axis=0)
    np.testing.assert_allclose(embedding, [mean / np.linalg.norm(mean), np.zeros(8)], atol=1e-6)


@pytest.mark.parametrize(
    ("make", "causal"),
    [
        (lambda: models.bert(TINY_BERT), False),
        (lambda: models.gpt(TINY_GPT), True),
        (lambda: models.moe(TINY_MOE), False),
        (lambda: models.vit(TINY_VIT), False),
    ],
)
def test_all_attention_goes_through_the_kernels(monkeypatch, make, causal):
    here = jax.devices()[0].device_kind
    regime = kernels.Regime(device_kind=here, dtype="float32", head_dim=16, causal=causal, min_length=1, max_length=999)
    monkeypatch.setattr(kernels, "MEASURED_FASTER", (regime,))
    model = make()
    inputs = {
        name: jax.ShapeDtypeStruct(spec.resolve(model.buckets[0].sizes), spec.dtype)
        for name, spec in model.inputs.items()
    }
    program = jax.jit(model.apply).trace(model.abstract_params, inputs).lower(lowering_platforms=("cuda",)).as_text()
    assert program.count("@mosaic_gpu") == 2  # one for each layer
