"""Programs become nodes: heavy operations with what follows them, and layers that repeat are one decision."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend import core

from jaxserve.parallel.nodes import HEAVY, divide
from tests.parallel.programs import bert, gpt, moe, of_function


def nodes_of(function, *shapes, weights=0):
    """Of a function whose first arguments are weights."""
    jaxpr = jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)).jaxpr
    return divide(jaxpr, weights=jaxpr.invars[:weights], constants=jaxpr.constvars)


def names(nodes):
    """For each node its head and its members."""
    return [
        (
            None if node.head is None else nodes.eqns[node.head.place].primitive.name,
            [nodes.eqns[member.place].primitive.name for member in node.members],
        )
        for node in nodes.nodes
    ]


def mlp(layers):
    def function(params, x):
        for kernel in params:
            x = jnp.tanh(x @ kernel)
        return x

    return of_function(function, [(64, 64)] * layers, x=(64,))


@pytest.mark.parametrize(("make", "depths"), [(bert, (12, 48)), (gpt, (6, 12)), (moe, (8, 16))])
def test_layers_are_tied_however_many_there_are(make, depths):
    few, many = (make(layers=layers, hidden_size=32, length=16).nodes for layers in depths)
    assert len(many.nodes) > 1.8 * len(few.nodes)
    assert len(set(few.classes)) == len(set(many.classes)) < len(many.nodes) / 2


def test_tied_nodes_are_alike():
    nodes = bert(layers=12, hidden_size=32, length=16).nodes
    first = {}
    for node, number in zip(nodes.nodes, nodes.classes, strict=True):
        assert first.setdefault(number, node.signature) == node.signature


def test_equal_layers_may_alternate():
    """Column and row splits take turns, so a class for all would be wrong."""
    classes = mlp(16).nodes.classes
    layers = classes[1:]
    assert all(one != other for one, other in itertools.pairwise(layers))
    assert len(set(layers)) < len(layers) / 2
    assert len(set(mlp(64).nodes.classes)) == len(set(classes))


def test_layers_of_different_sizes_are_not_tied():
    def function(params, x):
        for kernel in params:
            x = jnp.tanh(x @ kernel)
        return x

    sizes = (8, 16, 24, 32, 40, 48, 56, 64)
    nodes = of_function(function, list(itertools.pairwise(sizes)), x=(8,)).nodes
    assert len(set(nodes.classes)) == len(nodes.nodes)


def test_light_operations_follow_their_largest_operand():
    def function(kernel, wide, narrow):
        small = jnp.sum(narrow, axis=1)
        grown = wide @ kernel
        return jnp.tanh(grown) + small[:, None]

    nodes = nodes_of(function, (8, 32), (4, 8), (4, 2), weights=1)
    assert names(nodes) == [
        (None, []),
        (None, ["reduce_sum", "broadcast_in_dim"]),
        ("dot_general", ["tanh", "add"]),
    ]
    add = nodes.nodes[2].members[1]
    assert add.follows == 0
    assert (add.operands[1].node, add.operands[1].value) == (1, 2)


def test_of_equally_large_operands_the_youngest_is_followed():
    nodes = nodes_of(lambda w, v, x: x @ w + (x @ v) * 2, (8, 8), (8, 8), (4, 8), weights=2)
    assert names(nodes) == [(None, []), ("dot_general", []), ("dot_general", ["mul", "add"])]
    nodes = nodes_of(lambda w, v, x: (x @ v) * 2 + x @ w, (8, 8), (8, 8), (4, 8), weights=2)
    assert names(nodes) == [(None, []), ("dot_general", ["mul"]), ("dot_general", ["add"])]


def test_what_is_heavy_or_unknown_is_a_head():
    def function(table, kernel, image, ids, matrix):
        found = table[ids.astype(jnp.int32)]
        image = lax.conv_general_dilated(image, kernel, (1, 1), "SAME")
        return found, lax.cond(image.sum() > 0, jnp.sin, jnp.cos, image), lax.linalg.triangular_solve(matrix, matrix)

    nodes = nodes_of(function, (6, 4), (2, 2, 3, 3), (1, 2, 4, 4), (3,), (4, 4), weights=2)
    heads = [node.head for node in nodes.nodes if node.head is not None]
    known = {nodes.eqns[head.place].primitive.name: head.rule.known for head in heads}
    assert known == {"cond": True, "conv_general_dilated": True, "gather": True, "triangular_solve": False}


def test_every_equation_has_one_place():
    program = bert()
    nodes = program.nodes
    places = [each.place for node in nodes.nodes for each in (*([node.head] if node.head else []), *node.members)]
    assert sorted(places) == sorted(set(places))
    assert set(places) == {
        place for place, eqn in enumerate(nodes.eqns) if not all(var in nodes.maker for var in eqn.outvars)
    }
    values = [var for node in nodes.nodes for var in node.values]
    assert len(values) == len(set(values))
    heavy = {place for place, eqn in enumerate(nodes.eqns) if eqn.primitive.name in HEAVY}
    assert heavy <= {node.head.place for node in nodes.nodes if node.head is not None}


def test_what_is_made_of_weights_alone_has_no_node():
    def function(kernel, scale, x):
        scaled = kernel * scale[None, :]
        return x @ scaled

    nodes = nodes_of(function, (8, 8), (8,), (4, 8), weights=2)
    assert names(nodes) == [(None, []), ("dot_general", [])]
    (head,) = [node.head for node in nodes.nodes if node.head is not None]
    fixed = head.operands[1].fixed
    assert fixed in nodes.maker
    assert all(fixed not in node.values for node in nodes.nodes)
    assert nodes.heavy_weights() == {0, 1}


def test_a_weight_that_is_only_added_is_not_heavy():
    nodes = nodes_of(lambda kernel, bias, x: x @ kernel + bias, (8, 8), (8,), (4, 8), weights=2)
    assert nodes.heavy_weights() == {0}


def test_literals_and_constants():
    table = jnp.arange(8.0)
    nodes = nodes_of(lambda x: x * 2.0 + table, (4, 8))
    assert names(nodes) == [(None, ["mul", "add"])]
    multiply, add = nodes.nodes[0].members
    literal = multiply.operands[1]
    assert (literal.own, literal.node, literal.value, literal.fixed) == (None,) * 4
    assert isinstance(add.operands[1].fixed, core.Var)
