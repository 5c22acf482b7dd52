"""What a plan does, told in numbers and names."""

import dataclasses
import json
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve import Model, ParallelConfig, TensorSpec, models
from jaxserve.models.bert import TINY
from jaxserve.parallel import Limits, device_kind, plan_model
from jaxserve.parallel.explain import NO_MODULE, Explanation, compact, explain, laid_out
from tests.parallel.loops import looping, recurrent

BERT = models.bert(dataclasses.replace(TINY, layers=6), batch_sizes=(1, 4), lengths=(16,))
H100 = device_kind("H100")


@pytest.fixture(scope="module")
def explained() -> Explanation:
    limits = Limits(weight_budget_bytes=math.inf)
    return explain(plan_model(BERT, ParallelConfig(2, 2), H100, limits=limits), BERT)


def test_stages(explained: Explanation) -> None:
    assert (explained.model, explained.device_kind, explained.mesh) == ("bert", "h100", {"x": 2})
    assert explained.bucket == {"batch": 4, "length": 16}
    first, second = explained.stages
    assert (first.devices, second.devices) == ((0, 1), (2, 3))
    assert (first.layers[0], second.layers[-1]) == ("embeddings", "head")
    assert explained.seconds == pytest.approx(first.seconds + second.seconds)
    assert explained.slowest_s == max(first.seconds, second.seconds)
    # between layers pass the hidden vectors and maybe the mask; at the end there are scores of 5 classes
    assert 4 * 16 * 32 * 4 <= first.out_bytes <= 4 * 16 * 32 * 4 + 4 * 16 * 4
    assert second.out_bytes == 4 * 5 * 4


def test_every_second_is_accounted_for(explained: Explanation) -> None:
    computed = [
        sum(each.count * each.seconds for each in stage.operations) + stage.light_seconds for stage in explained.stages
    ]
    assert explained.stages[0].seconds == pytest.approx(computed[0])
    assert explained.stages[1].seconds > computed[1]  # values are on their way to it


def test_layers_that_repeat_are_one(explained: Explanation) -> None:
    every = [each for stage in explained.stages for each in stage.operations]
    queries = [each for each in every if each.module.endswith("attention/query")]
    assert sum(each.count for each in queries) == 6
    assert len(queries) <= 4
    assert {each.primitive for each in queries} == {"dot_general"}
    for each in every:
        assert len(each.strategy) == 1
        split = "/x" in "".join((*each.operands, each.result))
        assert split == (each.strategy != ("replicated",)), each


def test_it_can_be_written_as_json(explained: Explanation) -> None:
    written = json.loads(json.dumps(explained.to_json()))
    assert written["stages"][0]["devices"] == [0, 1]
    assert sum(each["chosen"] for each in written["trade_offs"]) == 1
    assert written["slowest_s"] == explained.slowest_s


def test_another_bucket() -> None:
    plan = plan_model(BERT, ParallelConfig(), H100)
    assert explain(plan, BERT, 0).bucket == {"batch": 1, "length": 16}
    (stage,) = explain(plan, BERT, 0).stages
    assert stage.layers == ("embeddings", "layers_0 ... layers_5", "head")
    assert not stage.sent
    assert {each.strategy for each in stage.operations} == {("replicated",)}
    counts = {each.module: each.count for each in stage.operations}
    assert counts["layers_0 ... layers_5/feed_forward/up"] == 6


class _Alternating(nn.Module):
    """Layers of two kinds, which take turns."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in range(6):
            x = nn.Dense(16 if layer % 2 else 8, name=f"layers_{layer}")(x)
        return x


def alternating(cuts: tuple[str, ...] = ()) -> Model:
    module = _Alternating()
    params = module.init(jax.random.key(0), jnp.zeros((1, 16)))
    return Model.from_linen(
        "alternating", module, params, inputs={"x": TensorSpec(("batch", 16), "float32")}, cuts=cuts
    )


def test_layers_that_take_turns() -> None:
    model = alternating()
    (stage,) = explain(plan_model(model, ParallelConfig(), H100), model).stages
    assert [each.module for each in stage.operations] == [
        "layers_0, layers_2 ... layers_4",
        "layers_1, layers_3 ... layers_5",
    ]
    assert stage.layers == ("layers_0 ... layers_5",)


def test_a_layer_in_two_stages_is_marked() -> None:
    model = alternating()
    plan = plan_model(model, ParallelConfig(), H100)
    (row,) = plan.stages
    twice = dataclasses.replace(plan, config=ParallelConfig(1, 2), stages=((row[0], row[0]),))
    assert explain(twice, model).stages[0].layers == tuple(f"layers_{layer} (part)" for layer in range(6))


def _decomposes(params: Any, x: jax.Array) -> jax.Array:
    return jnp.linalg.qr(x)[0] @ params


def test_what_has_no_rule_and_no_module() -> None:
    inputs = {"x": TensorSpec(("batch", 4, 4), "float32")}
    model = Model.from_function("strange", _decomposes, np.ones((4, 4), np.float32), inputs=inputs, batch_sizes=(2,))
    explanation = explain(plan_model(model, ParallelConfig(2, 1), H100), model)
    assert sum(explanation.without_rule.values()) > 0
    (stage,) = explanation.stages
    assert stage.layers == (NO_MODULE,)
    unknown = [each for each in stage.operations if each.primitive in explanation.without_rule]
    assert unknown
    assert {each.strategy for each in unknown} == {("replicated",)}


@pytest.mark.parametrize(
    ("model", "primitive", "values", "result", "expected"),
    [
        (recurrent(), "scan", ("[2/x,8]", "[2/x,8]", "[5,2/x,8]"), "[2/x,8]", "batch"),  # the carry, and the steps
        (looping(), "cond", ("[8,8/x]", "[8,8/x]", "[2,8]"), "[2,8/x]", "column"),  # a weight of each branch
    ],
    ids=["lstm", "branches"],
)
def test_loops_and_branches(model: Model, primitive: str, values: tuple[str, ...], result: str, expected: str) -> None:
    (stage,) = explain(plan_model(model, ParallelConfig(2, 1), H100), model).stages
    (each,) = (each for each in stage.operations if each.primitive == primitive)
    assert (each.result, each.strategy) == (result, (expected,))
    assert each.operands[-3:] == values
    assert not any("/x" in operand for operand in each.operands[:-3])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "layers_0", "layers_1", "layers_2", "b"], ("a", "layers_0 ... layers_2", "b")),
        (["layers_0", "layers_1"], ("layers_0", "layers_1")),
        (["layers_9", "layers_10", "layers_11"], ("layers_9 ... layers_11",)),
        (["layers_0", "layers_2", "layers_3"], ("layers_0", "layers_2", "layers_3")),
        (["a", "b", "a"], ("a", "b")),
        ([], ()),
    ],
)
def test_compact(names: list[str], expected: tuple[str, ...]) -> None:
    assert compact(names) == expected


@pytest.mark.parametrize(
    ("spec", "expected"), [((-1, -1), "[8,4]"), ((0, 1), "[8/x,4/y]"), ((1, 1), "[8,4/x/y]"), ((-1,), "[8,4]")]
)
def test_laid_out(spec: tuple[int, ...], expected: str) -> None:
    assert laid_out((8, 4), spec) == expected
