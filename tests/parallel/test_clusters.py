"""Programs are cut into clusters where few bytes are alive: between layers, wherever layers are fine enough."""

import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend import core

from jaxserve import models
from jaxserve.errors import PlacementError
from jaxserve.model import TensorSpec
from jaxserve.models.bert import TINY as TINY_BERT
from jaxserve.models.gpt import TINY as TINY_GPT
from jaxserve.models.moe import TINY as TINY_MOE
from jaxserve.models.vit import SMALL as SMALL_VIT
from jaxserve.parallel.clusters import cluster, cluster_at
from jaxserve.parallel.inter_op import choose, pareto
from jaxserve.parallel.trace import trace
from jaxserve.parallel.work import flops

X = {"x": TensorSpec(("batch", 8), "float32")}


def variables(atoms):
    return {atom for atom in atoms if not isinstance(atom, core.Literal)}


def fixed_of(graph):
    fixed = {*graph.params, *graph.constants}
    for eqn in graph.eqns:
        if not eqn.effects and variables(eqn.invars) <= fixed:
            fixed.update(eqn.outvars)
    return fixed


def seconds_of(graph):
    """A device that starts an operation in the time of 100 flops."""
    fixed = fixed_of(graph)
    return [0.0 if set(eqn.outvars) <= fixed else 1e-9 * (100 + flops(eqn)) for eqn in graph.eqns]


def clusters_of(graph, **options):
    return cluster(graph, seconds_of(graph), fixed=fixed_of(graph), **options)


def graph_of(function, params=None, inputs=X):
    """The graph of a function that is no model: its outputs may have any shape."""

    def apply(params, inputs):
        return function(*inputs.values()) if params is None else function(params, *inputs.values())

    abstract = jax.eval_shape(lambda: params)
    leaves, structure = jax.tree.flatten(abstract)
    shapes = [jax.ShapeDtypeStruct(spec.resolve({"batch": 2}), spec.dtype) for spec in inputs.values()]

    def flat(leaves, values):
        return jax.tree.leaves(apply(structure.unflatten(leaves), dict(zip(inputs, values, strict=True))))

    program = jax.make_jaxpr(flat)(leaves, shapes)
    model = types.SimpleNamespace(abstract_params=abstract, trace=lambda bucket: program)
    return trace(model, types.SimpleNamespace(batch_size=2))


def layer_of(path):
    """The layer that an equation belongs to, by the name that a cut may use."""
    return next((name for name in path if name.startswith("layers_")), None)


def live_bytes(graph, place):
    """By definition: of the values that are there at a place and are needed behind it."""
    fixed = fixed_of(graph)
    needed = variables(graph.outputs) - fixed
    used = {var: len(graph.eqns) for var in needed - set(graph.inputs)}
    for index, eqn in reversed(list(enumerate(graph.eqns))):
        if needed & set(eqn.outvars):
            needed |= variables(eqn.invars) - fixed
            for var in variables(eqn.invars) - fixed:
                used[var] = max(used.get(var, 0), index)
    made = dict.fromkeys(graph.inputs, -1)
    made.update((var, index) for index, eqn in enumerate(graph.eqns) for var in eqn.outvars)
    return sum(int(np.prod(var.aval.shape)) * var.aval.dtype.itemsize for var in used if made[var] < place <= used[var])


def weights_read(graph, eqns):
    makers = {var: eqn for eqn in graph.eqns for var in eqn.outvars}
    fixed, found, pending = fixed_of(graph), set(), set().union(*(variables(eqn.invars) for eqn in eqns))
    while pending:
        var = pending.pop()
        if var in graph.params:
            found.add(graph.params.index(var))
        elif var in makers and var in fixed:
            pending |= variables(makers[var].invars)
    return found


TRANSFORMERS = {
    "bert": lambda: models.bert(dataclasses.replace(TINY_BERT, layers=16), batch_sizes=(2,), lengths=(32,)),
    "gpt": lambda: models.gpt(dataclasses.replace(TINY_GPT, layers=16), batch_sizes=(2,), lengths=(32,)),
    "vit": lambda: models.vit(dataclasses.replace(SMALL_VIT, layers=16), batch_sizes=(2,)),
    "moe": lambda: models.moe(dataclasses.replace(TINY_MOE, layers=16), batch_sizes=(2,), lengths=(32,)),
}


@pytest.fixture(scope="module", params=TRANSFORMERS)
def transformer(request):
    model = TRANSFORMERS[request.param]()
    return trace(model, model.buckets[-1])


def test_a_transformer_may_be_cut_between_its_layers_and_nowhere_else(transformer):
    found = clusters_of(transformer)
    layers = list(dict.fromkeys(filter(None, map(layer_of, transformer.paths))))
    # What stands behind a place belongs to a new layer; embeddings and a head may have clusters of their own.
    behind = [layer_of(transformer.paths[place]) for place in found.places]
    assert [layer for layer in behind if layer and layer != layers[0]] == layers[1:]
    assert all(
        layer_of(transformer.paths[place - 1]) != layer for place, layer in zip(found.places, behind, strict=True)
    )
    between = [alive for alive, layer in zip(found.live_bytes, behind, strict=True) if layer in layers[1:]]
    assert max(between) == min(between[:-1])  # behind the last attention a mask is used no more


@pytest.mark.parametrize("stages", [2, 4, 8])
def test_stages_of_a_transformer_are_even(transformer, stages):
    found = clusters_of(transformer)
    cuttings = pareto(found, stages=stages, transfer_s=[0.0] * len(found.places))
    fastest, lightest = (choose(cuttings, objective=objective) for objective in ("latency", "memory"))
    assert fastest.slowest_s <= 1.1 * fastest.total_s / stages
    layer = max(sum(found.weight_bytes[weight] for weight in weights) for weights in found.weights)
    assert lightest.heaviest_bytes <= sum(lightest.stage_weight_bytes) / stages + layer


def test_few_layers_are_cut_inside():
    model = models.bert(
        dataclasses.replace(TINY_BERT, layers=3, hidden_size=64, feed_forward_size=256), batch_sizes=(2,)
    )
    graph = trace(model, model.buckets[-1])
    found = clusters_of(graph)
    behind = {layer_of(graph.paths[place]) for place in found.places}
    assert {"layers_0", "layers_1", "layers_2"} <= behind
    assert len(found.places) >= 8
    (cutting, *_) = pareto(found, stages=4, transfer_s=[0.0] * len(found.places))
    assert cutting.slowest_s <= cutting.total_s / 4 + max(found.seconds)


KINDS = ("add", "weight", "only weights", "sum")


def random_program(data, *, among=KINDS, most=9):
    """A graph of operations that read random earlier values and weights, at random costs, in random modules."""
    count = data.draw(st.integers(1, most))
    reads = [data.draw(st.sets(st.integers(0, index), min_size=1, max_size=2)) for index in range(count)]
    kinds = [data.draw(st.sampled_from(among)) for _ in range(count)]
    returned = data.draw(st.lists(st.integers(0, count), min_size=1, max_size=2))

    def function(params, x):
        values = [x]
        for index in range(count):
            first, *rest = (values[each] for each in sorted(reads[index]))
            weight = params[index % 3]
            match kinds[index]:
                case "weight":
                    made = first * jnp.tanh(weight)
                case "only weights":
                    made = weight * 2.0
                case "sum":
                    made = jnp.sum(first)
                case _:
                    made = sum(rest, first) + 1.0
            values.append(made)
        return [values[each] for each in returned]

    params = [np.ones(8, np.float32) for _ in range(3)]
    graph = graph_of(function, params)
    names = data.draw(st.lists(st.sampled_from("ab"), min_size=len(graph.eqns), max_size=len(graph.eqns)))
    depths = data.draw(st.lists(st.integers(0, 2), min_size=len(graph.eqns), max_size=len(graph.eqns)))
    paths = tuple((name,) * depth for name, depth in zip(names, depths, strict=True))
    fixed = fixed_of(graph)
    seconds = [
        0.0 if set(eqn.outvars) <= fixed else float(data.draw(st.sampled_from([0, 1, 1, 2, 9]))) for eqn in graph.eqns
    ]
    return dataclasses.replace(graph, paths=paths), seconds, fixed


def moving_of(graph, fixed):
    needed, moving = variables(graph.outputs), []
    for index, eqn in reversed(list(enumerate(graph.eqns))):
        if needed & set(eqn.outvars):
            needed |= variables(eqn.invars)
            if not set(eqn.outvars) <= fixed:
                moving.append(index)
    return moving[::-1]


def check(graph, seconds, fixed, found):
    """What holds for any clusters of any program."""
    bounds = [0, *found.places, len(graph.eqns)]
    moving = set(moving_of(graph, fixed))
    outputs = weights_read(graph, [dataclasses.make_dataclass("Outputs", ["invars"])(graph.outputs)])
    assert len(bounds) == len(set(bounds)) or not found.places
    assert bounds == sorted(bounds)
    for index, (start, end) in enumerate(itertools.pairwise(bounds)):
        inside = [place for place in range(start, end) if place in moving]
        assert inside or not found.places, "no slice is empty"
        assert found.seconds[index] == sum(seconds[place] for place in inside)
        read = weights_read(graph, [graph.eqns[place] for place in inside])
        assert found.weights[index] == (read | outputs if end == bounds[-1] else read)
    assert found.live_bytes == tuple(live_bytes(graph, place) for place in found.places)
    assert found.weight_bytes == (32, 32, 32)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_clusters_of_any_program(data):
    graph, seconds, fixed = random_program(data)
    at_least, at_most = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 8))
    found = cluster(graph, seconds, fixed=fixed, at_least=at_least, at_most=at_most, slack=0.5)
    check(graph, seconds, fixed, found)
    assert len(found.seconds) <= at_most


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_clusters_at_any_places(data):
    graph, seconds, fixed = random_program(data)
    places = data.draw(st.lists(st.integers(0, len(graph.eqns)), max_size=4))
    found = cluster_at(graph, seconds, places, fixed=fixed)
    check(graph, seconds, fixed, found)
    assert set(found.places) <= set(places)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_place_is_wider_than_the_bound_needs(data):
    """Against all choices of places: the widest is no wider than in the best of those that keep the bound."""
    # Without weights, so that seconds alone are bounded.
    graph, seconds, fixed = random_program(data, among=("add", "sum"), most=5)
    at_least = data.draw(st.integers(2, 4))
    moving = moving_of(graph, fixed)
    total = max(sum(seconds[place] for place in moving), 1e-9)
    alive = {place: live_bytes(graph, place) for place in moving[1:]}

    def keeps_bound(places):
        for start, end in itertools.pairwise([0, *places, len(graph.eqns)]):
            shares = [seconds[place] / total for place in moving if start <= place < end]
            large = [share for share in shares if share > 1.5 / at_least + 1e-6]
            if len(large) > 1 or sum(shares) - sum(large) > 1.5 / at_least + 1e-6:
                return False
        return True

    choices = itertools.chain.from_iterable(itertools.combinations(alive, count) for count in range(len(alive) + 1))
    width = min(max((alive[place] for place in places), default=0) for places in filter(keeps_bound, choices))
    found = cluster(graph, seconds, fixed=fixed, at_least=at_least, at_most=1000)
    assert keeps_bound(found.places)
    # Where no cut is needed at all, those that cost least may be there.
    assert max(found.live_bytes, default=0) <= max(width, min(alive.values(), default=0))


def test_a_loop_that_is_nearly_the_whole_program():
    def function(params, x):
        with jax.named_scope("before"):
            x = jnp.tanh(x @ params["before"])
        with jax.named_scope("loop"):
            x = jax.lax.while_loop(lambda x: x.sum() < 0, lambda x: jnp.tanh(x @ params["loop"]), x)
        with jax.named_scope("after"):
            return jnp.sum(x @ params["after"], axis=-1)

    graph = graph_of(function, {name: np.ones((8, 8), np.float32) for name in ("before", "loop", "after")})
    seconds = [99.0 if eqn.primitive.name == "while" else 0.1 for eqn in graph.eqns]
    found = cluster(graph, seconds, fixed=fixed_of(graph))
    assert [graph.paths[place] for place in found.places] == [("loop",), ("after",)]
    assert found.seconds == pytest.approx((0.2, 99, 0.2))
    assert found.weights == (frozenset({1}), frozenset({2}), frozenset({0}))


def test_two_equations_above_the_bound_are_parted():
    graph = graph_of(lambda x: jnp.sin(jnp.cos(jnp.tanh(x))))
    found = cluster(graph, [50.0, 1.0, 50.0], fixed=fixed_of(graph), at_least=16)
    assert len(found.places) == 1
    assert sorted(found.seconds) in ([50.0, 51.0],)


@pytest.mark.parametrize("at_least", [1, 2, 16])
@pytest.mark.parametrize(
    ("function", "most"),
    [
        (lambda x: x, 1),
        (lambda x: x + 1, 1),
        (lambda x: jnp.tanh(x) * 2, 2),
        (lambda x: jnp.tanh(jnp.sin(x)) * 2, 3),
        (lambda x: jnp.zeros(()), 1),
    ],
)
def test_tiny_programs(function, most, at_least):
    found = clusters_of(graph_of(function), at_least=at_least)
    assert 1 <= len(found.seconds) <= most
    assert len(found.seconds) == len(found.weights) == len(found.places) + 1


def test_a_program_on_params_alone_is_one_cluster_that_takes_no_time():
    graph = graph_of(lambda params, x: params["w"] @ params["w"] + 1, {"w": np.ones((8, 8), np.float32)})
    found = clusters_of(graph)
    assert (found.places, found.seconds, found.weights) == ((), (0.0,), (frozenset({0}),))
    (cutting,) = pareto(found, stages=1, transfer_s=())
    assert (cutting.slowest_s, cutting.heaviest_bytes) == (0.0, 256)


def test_what_nobody_needs_takes_no_time():
    def function(x):
        jnp.exp(jnp.sin(x))
        return jnp.tanh(x)

    found = clusters_of(graph_of(function))
    assert (found.places, found.seconds) == ((), (1e-9 * (100 + 16),))


def test_a_net_with_skips_over_its_middle_is_cut_between_its_blocks():
    """No place in a U-Net is narrow: each skip is alive from its block of the way down to that of the way up."""

    def block(name, x):
        with jax.named_scope(name):
            for _ in range(3):
                x = jnp.tanh(x @ jnp.ones((x.shape[-1], x.shape[-1]), x.dtype)) + 1
            return x

    def function(x):
        skips = []
        for depth in range(4):
            x = block(f"down_{depth}", x)
            skips.append(x)
            x = x[:, ::2]
        x = block("middle", x)
        for depth in reversed(range(4)):
            x = jnp.repeat(x, 2, axis=1) + skips.pop()
            x = block(f"up_{depth}", x)
        return x

    graph = graph_of(function, inputs={"x": TensorSpec(("batch", 64, 16), "float32")})
    found = clusters_of(graph)
    assert len(found.places) >= 6
    (cutting, *_) = pareto(found, stages=4, transfer_s=[0.0] * len(found.places))
    assert cutting.slowest_s <= 1.4 * cutting.total_s / 4
    check_live = [live_bytes(graph, place) for place in found.places]
    assert list(found.live_bytes) == check_live


def test_a_program_without_modules_is_cut_where_little_is_alive():
    def function(params, x):
        for up, down in params:
            x = jnp.tanh(x @ up) @ down
        return x

    params = [(np.ones((8, 32), np.float32), np.ones((32, 8), np.float32)) for _ in range(40)]
    found = clusters_of(graph_of(function, params))
    assert set(found.live_bytes) == {2 * 8 * 4}
    assert len(found.places) == 39
    assert len(clusters_of(graph_of(function, params), at_most=12).seconds) <= 12


def test_named_places_that_leave_nothing_to_run_are_left_out():
    def function(params, x):
        y = jnp.tanh(x)
        weight = params["w"].T @ params["w"]
        return jnp.sin(y @ weight)

    graph = graph_of(function, {"w": np.ones((8, 8), np.float32)})
    names = [eqn.primitive.name for eqn in graph.eqns]
    assert names == ["tanh", "transpose", "dot_general", "dot_general", "sin"]
    fixed, seconds = fixed_of(graph), [1.0, 0.0, 0.0, 2.0, 4.0]
    found = cluster_at(graph, seconds, [5, 3, 0, 1, 4, 4], fixed=fixed)
    assert (found.places, found.seconds) == ((1, 4), (1.0, 2.0, 4.0))
    assert found.weights == (frozenset(), frozenset({0}), frozenset())
    assert cluster_at(graph, seconds, [], fixed=fixed).seconds == (7.0,)
    with pytest.raises(PlacementError, match="cut before equation 6, but the program has 5: 0 is its first"):
        cluster_at(graph, seconds, [6], fixed=fixed)
