"""A plan's collectives beside those of a compiled program."""

import dataclasses

import jax
import pytest

from jaxserve import ParallelConfig, models, parallelize
from jaxserve.errors import PlacementError
from jaxserve.models.bert import TINY
from jaxserve.parallel import StagePlan, device_kind, plan_model
from jaxserve.parallel.check import Comparison, compare, wire_bytes
from jaxserve.parallel.intra_op import Step
from jaxserve.parallel.layout import Transfer
from jaxserve.runtime.checking import check

BERT = models.bert(TINY, batch_sizes=(2,), lengths=(16,))
STAGE = plan_model(BERT, ParallelConfig(), device_kind("cpu")).stages[0][0]

HLO = """HloModule jit__program, entry_computation_layout={{()->f32[]}}, num_partitions={devices}

ENTRY %main (p: f32[1024]) -> f32[1024] {{
{lines}
}}
"""
ALL_REDUCE = "  %r{0} = f32[1024]{{0}} all-reduce(%p), channel_id={0}, replica_groups={{{{0,1}}}}, to_apply=%add"
ALL_GATHER = "  %g{0} = f32[1024]{{0}} all-gather(%p), channel_id={0}, replica_groups={{{{0,1}}}}, dimensions={{0}}"
PERMUTE = "  %c{0} = f32[512]{{0}} collective-permute(%p), channel_id={0}, source_target_pairs={{{{0,1}},{{1,0}}}}"
LOOP = """%body (p: f32[1024]) -> f32[1024] {
  %r = f32[1024]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1}}, to_apply=%add
}

ENTRY %main (p: f32[1024]) -> f32[1024] {
  %w = f32[1024]{0} while(%p), condition=%condition, body=%body
}
"""


def planned(*transfers: Transfer) -> StagePlan:
    step = Step(place=0, factors=(), before=transfers[:1], after=transfers[1:], seconds=0.0, operands=(), results=())
    return dataclasses.replace(STAGE, steps={0: step})


def transfer(kind: str, *, nbytes: float = 4096.0, devices: int = 2) -> Transfer:
    return Transfer(kind=kind, nbytes=nbytes, devices=devices)


def compiled(*lines: str) -> str:
    return HLO.format(devices=2, lines="\n".join(line.format(number) for number, line in enumerate(lines, 1)))


def judged(stage: StagePlan, text: str, platform: str = "gpu") -> Comparison:
    return compare(stage, text, platform=platform, bucket="batch 2", stage=1)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("all_reduce", 1500.0),
        ("all_gather", 750.0),
        ("reduce_scatter", 750.0),
        ("all_to_all", 750.0),
        ("collective_permute", 1000.0),
    ],
)
def test_bytes_that_a_ring_of_four_sends(kind: str, expected: float) -> None:
    assert wire_bytes(kind, 1000.0, 4) == expected
    assert wire_bytes(kind, 1000.0, 1) == 0


def test_as_planned() -> None:
    found = judged(planned(transfer("all_reduce"), transfer("all_gather")), compiled(ALL_REDUCE, ALL_GATHER))
    assert found.agrees
    assert found.planned == found.compiled
    assert str(found) == "batch 2, stage 1: as planned, each device sends 6.14 kB"


def test_a_difference_is_told_with_both_byte_counts() -> None:
    found = judged(planned(transfer("all_gather")), compiled(ALL_GATHER, ALL_REDUCE))
    assert not found.agrees
    assert found.lines() == (
        "batch 2, stage 1: DIFFERS, each device was to send 2.05 kB and sends 6.14 kB, 3.00 times as much",
        "  all_reduce: planned 0 (0 B), compiled 1 (4.1 kB)",
    )


def test_fewer_bytes_than_planned_differ_too_and_so_does_what_was_not_planned() -> None:
    assert not judged(planned(transfer("all_reduce")), compiled()).agrees
    unplanned = judged(planned(), compiled(ALL_GATHER))
    assert not unplanned.agrees
    assert unplanned.lines()[0].endswith("was to send 0 B and sends 2.05 kB")
    assert judged(planned(), compiled()).agrees


def test_a_permutation_of_two_is_as_good_as_a_gather() -> None:
    found = judged(planned(transfer("all_gather")), compiled(PERMUTE))
    assert found.agrees
    assert found.lines()[1:] == (
        "  all_gather: planned 1 (4.1 kB), compiled 0 (0 B)",
        "  collective_permute: planned 0 (0 B), compiled 1 (2.05 kB)",
    )


def test_an_all_reduce_stands_for_a_reduce_scatter_only_where_the_backend_has_none() -> None:
    stage, text = planned(transfer("reduce_scatter")), compiled(ALL_REDUCE)
    on_cpu = judged(stage, text, "cpu")
    assert on_cpu.agrees
    assert "all_reduce and slice instead" in str(on_cpu)
    assert not judged(stage, text, "gpu").agrees


def test_bytes_may_differ_by_the_tolerance() -> None:
    text = compiled(ALL_REDUCE)
    assert judged(planned(transfer("all_reduce", nbytes=4000.0)), text).agrees
    assert not judged(planned(transfer("all_reduce", nbytes=3800.0)), text).agrees


def test_what_runs_in_a_loop_is_said_to_count_once() -> None:
    found = judged(planned(transfer("all_reduce")), LOOP)
    assert found.agrees
    assert found.lines()[-1].strip().startswith("1 of the compiled ones run in a loop")


def test_a_loaded_model_is_compared_stage_by_stage() -> None:
    pipeline = parallelize(BERT, ParallelConfig(2, 2), devices=jax.devices()[:4])
    found = pipeline.check()
    pipeline.close()
    assert [(each.bucket, each.stage) for each in found] == [("batch 2, length 16", stage) for stage in (0, 1)]
    assert all(each.compiled for each in found)
    assert all(each.agrees for each in found), "\n".join(map(str, found))
    with pytest.raises(RuntimeError, match="is closed"):
        pipeline.check()


def test_shapes_of_params_are_enough() -> None:
    model = models.planning_model("bert-1.3b", lengths=(8,))
    plan = plan_model(model, ParallelConfig(1, 24), device_kind("H100"))
    with pytest.raises(PlacementError, match="is for 24 devices, but there are 8"):
        check(plan, model, jax.devices())
    first = dataclasses.replace(plan, config=ParallelConfig(), stages=tuple(row[1:2] for row in plan.stages))
    (found,) = check(first, model, jax.devices())
    assert found.agrees
    assert found.stage == 0
