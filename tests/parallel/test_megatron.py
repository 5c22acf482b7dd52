"""Plans are no worse than what a hand would write, by the cost model and in what XLA makes of them.

The hand's plan of a transformer is Megatron's (Shoeybi et al. 2019, arXiv 1909.08053, section 3): the projections to
queries, keys and values and the first dense layer are split by columns, hence attention by heads; the projection behind
attention and the second dense layer by rows, and their results are summed. Embeddings are whole, or split by words.
"""

import functools

import pytest

from jaxserve.parallel.devices import DEVICES
from jaxserve.parallel.intra_op import price
from jaxserve.parallel.layout import LogicalMesh
from jaxserve.parallel.rules import NONE
from tests.parallel.programs import bert, compiled_collectives, gpt, wire_bytes

COLUMNS = ("attention/query", "attention/key", "attention/value", "up")
HEADS = ("attention/bqhd,bkhd->bhqk", "attention/bhqk,bkhd->bqhd")
SUMMED = ("attention/output", "down", "embeddings/word")

MODELS = {"bert": functools.partial(bert, length=32), "gpt": functools.partial(gpt, length=32)}
CASES = [(model, devices, device) for model in MODELS for devices in (2, 4, 8) for device in ("h100", "cpu")]

cases = pytest.mark.parametrize(("model", "devices", "device"), CASES)


@functools.cache
def plans(model, devices, device):
    """The program, Megatron's plan, and ours in no more memory than that takes, or a plan takes by default."""
    program = MODELS[model]()
    wanted = {
        **{place: [(2,)] for name in COLUMNS for place in program.heads(name)},
        **{place: [(1,)] for name in HEADS for place in program.heads(name)},
        **{place: [(NONE,)] for name in SUMMED for place in program.heads(name)},
    }
    assert len(wanted) == 1 + 8 * 2, "an embedding, and eight heavy operations in each of two layers"
    mesh = LogicalMesh(shape=(devices,), device=DEVICES[device])
    megatron = price(program.nodes, mesh, wanted)
    budget = max(program.even_bytes(devices), megatron.weight_bytes)
    return program, megatron, program.shard(devices, device=DEVICES[device], budget=budget)


@cases
def test_a_plan_costs_no_more_than_megatrons(model, devices, device):
    _, megatron, ours = plans(model, devices, device)
    assert ours.seconds <= megatron.seconds * (1 + 1e-6)


@cases
def test_a_plan_sends_no_more_than_megatrons(model, devices, device):
    _, megatron, ours = plans(model, devices, device)
    assert wire_bytes(ours.transfers) <= wire_bytes(megatron.transfers)


@pytest.mark.parametrize(("model", "devices"), [(model, devices) for model in MODELS for devices in (2, 4, 8)])
def test_a_compiled_plan_sends_no_more_than_megatrons(model, devices):
    program, megatron, ours = plans(model, devices, "cpu")
    sent, by_hand = (wire_bytes(compiled_collectives(program, plan)) for plan in (ours, megatron))
    assert sent <= by_hand


@pytest.mark.parametrize("shape", [(2,), (8,), (2, 4)], ids=str)
@pytest.mark.parametrize("device", ["h100", "cpu"])
def test_xla_sends_no_more_than_is_planned(shape, device):
    """A plan that XLA does not follow is worth little, and its cost is wrong."""
    program = bert(hidden_size=256)
    plan = program.shard(*shape, device=DEVICES[device], budget=0.6 * program.weight_bytes)
    sent = wire_bytes(compiled_collectives(program, plan))
    slack = 1.0 if len(shape) == 1 else 1.1
    assert sent <= slack * wire_bytes(plan.transfers, scatter="all_reduce")
