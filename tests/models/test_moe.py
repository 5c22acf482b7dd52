"""GShard's routing, against the same thing token by token, and the layer of experts that it feeds."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.models.moe import MixtureOfExperts, MoeConfig, route

GROUPS, TOKENS, EXPERTS, CAPACITY = 3, 7, 4, 5

CONFIG = MoeConfig(
    layers=2, hidden_size=8, heads=1, feed_forward_size=6, experts=4, vocabulary=8, max_length=32, capacity_factor=1.0
)

routed = jax.jit(route, static_argnames="capacity")


def probabilities_of(rng: np.random.Generator) -> np.ndarray:
    values = rng.random((GROUPS, TOKENS, EXPERTS)) ** 3  # uneven, so that some experts are wanted by all
    return (values / values.sum(axis=-1, keepdims=True)).astype(np.float32)


def route_one_by_one(probabilities, valid, limit):
    """Arrays as `route` returns them: first choices of all tokens in order, then second choices."""
    dispatch = np.zeros((GROUPS, TOKENS, EXPERTS, CAPACITY), bool)
    combine = np.zeros(dispatch.shape, np.float32)
    for group in range(GROUPS):
        wanted = [0] * EXPERTS
        for choice in (0, 1):
            for token in np.flatnonzero(valid[group]):
                best = np.argsort(-probabilities[group, token], kind="stable")[:2]
                expert, place = best[choice], wanted[best[choice]]
                wanted[expert] += 1
                if place < limit[group]:
                    dispatch[group, token, expert, place] = True
                    combine[group, token, expert, place] = (
                        probabilities[group, token, expert] / probabilities[group, token, best].sum()
                    )
    return dispatch, combine


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lowest_limit=st.integers(0, CAPACITY))
def test_routing_is_gshards(seed, lowest_limit):
    rng = np.random.default_rng(seed)
    probabilities = probabilities_of(rng)
    valid = rng.random((GROUPS, TOKENS)) < 0.8
    limit = rng.integers(lowest_limit, CAPACITY + 1, GROUPS).astype(np.int32)
    dispatch, combine = map(np.asarray, routed(probabilities, valid, limit, capacity=CAPACITY))
    expected_dispatch, expected_combine = route_one_by_one(probabilities, valid, limit)
    np.testing.assert_array_equal(dispatch, expected_dispatch)
    np.testing.assert_allclose(combine, expected_combine, atol=1e-6)
    # What follows from it, said once more in words.
    assert (dispatch.sum(axis=1) <= 1).all(), "a place of an expert has one token"
    assert (dispatch.sum(axis=(1, 3)) <= limit[:, None]).all(), "no expert takes more than its capacity"
    assert not dispatch[~valid].any(), "padding is routed nowhere"
    assert not combine[~dispatch].any(), "weights stand at places only"
    both = dispatch.sum(axis=(2, 3)) == 2
    np.testing.assert_allclose(combine.sum(axis=(2, 3))[both], 1, atol=1e-6)


def test_another_group_changes_no_routing():
    rng = np.random.default_rng(1)
    probabilities, valid = probabilities_of(rng), np.ones((GROUPS, TOKENS), bool)
    limit = np.full(GROUPS, 2, np.int32)
    dispatch, combine = routed(probabilities, valid, limit, capacity=CAPACITY)
    probabilities[1:] = probabilities_of(rng)[1:]
    dispatch_again, combine_again = routed(probabilities, valid, limit, capacity=CAPACITY)
    np.testing.assert_array_equal(dispatch[0], dispatch_again[0])
    np.testing.assert_array_equal(combine[0], combine_again[0])


@pytest.mark.parametrize(("tokens", "places"), [(0, 0), (1, 1), (2, 1), (3, 2), (32, 16)])
def test_capacity_follows_the_tokens(tokens, places):
    config = MoeConfig(
        layers=2,
        hidden_size=8,
        heads=1,
        feed_forward_size=8,
        experts=4,
        vocabulary=8,
        max_length=32,
        capacity_factor=1.0,
    )
    assert config.capacity(tokens) == places


def layer_of_experts(*, capacity_factor: float):
    """A compiled layer of four experts, as a function of (hidden, mask), and its params."""
    rng = np.random.default_rng(2)
    config = dataclasses.replace(CONFIG, capacity_factor=capacity_factor)
    shapes = {"up": (4, 8, 6), "down": (4, 6, 8), "router": (8, 4)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    variables = {"params": {**params, "router": {"kernel": params["router"]}}}
    return functools.partial(jax.jit(MixtureOfExperts(config).apply), variables), params


def test_experts_with_room_for_all_are_a_weighted_sum_of_two():
    hidden = np.random.default_rng(3).normal(size=(2, 5, 8)).astype(np.float32)
    layer, params = layer_of_experts(capacity_factor=2.0)
    expected = np.zeros_like(hidden)
    for index in np.ndindex(2, 5):
        scores = np.exp(hidden[index] @ params["router"])
        best = np.argsort(-scores)[:2]
        for expert in best:
            within = hidden[index] @ params["up"][expert]
            within = within * np.vectorize(math.erfc)(-within / math.sqrt(2)) / 2  # gelu
            expected[index] += scores[expert] / scores[best].sum() * (within @ params["down"][expert])
    np.testing.assert_allclose(layer(hidden, np.ones((2, 5), bool)), expected, atol=1e-4)


def test_padding_and_tokens_without_a_place_get_nothing_from_the_experts():
    hidden = np.ones((1, 8, 8), np.float32)  # all tokens choose the same two experts
    mask = np.arange(8)[None] < 6
    layer, _ = layer_of_experts(capacity_factor=1.0)
    found = np.asarray(layer(hidden, mask))
    assert found[0, :3].any(axis=-1).all()  # 2 * 6 tokens / 4 experts: three places
    assert not found[0, 3:].any()
