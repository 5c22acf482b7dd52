"""Collectives are read out of compiled programs, whatever backend wrote their text."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding

from jaxserve.parallel.hlo import Collective, collectives

P = jax.P


def compiled_text(function, shapes, inputs, output, dtype="float32"):
    """A program on the eight devices, two by four."""
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    jitted = jax.jit(
        lambda *args: function(mesh, *args),
        in_shardings=[NamedSharding(mesh, spec) for spec in inputs],
        out_shardings=NamedSharding(mesh, output),
    )
    return jitted.lower(*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)).compile().as_text()


def scatter(mesh, x):
    body = lambda x: jax.lax.psum_scatter(x, "y", tiled=True)  # noqa: E731
    return jax.shard_map(body, mesh=mesh, in_specs=P("y"), out_specs=P("y"))(x)


def reduce_in_a_loop(mesh, a, b):
    replicated = NamedSharding(mesh, P())
    body = lambda _, x: jax.lax.with_sharding_constraint((x @ b) @ b.T, replicated)  # noqa: E731
    return jax.lax.fori_loop(0, 5, body, a)


@pytest.mark.parametrize(
    ("function", "shapes", "inputs", "output", "expected", "name"),
    [
        pytest.param(
            lambda mesh, a, b: a @ b,
            [(8, 16), (16, 32)],
            [P(None, "y"), P("y")],
            P(),
            [("all_reduce", 8 * 32 * 4, 4)],
            "dot_general",
            id="all_reduce",
        ),
        pytest.param(
            lambda mesh, x: x * 2,
            [(8, 16)],
            [P("x", "y")],
            P("x"),
            [("all_gather", 4 * 16 * 4, 4)],
            "",
            id="all_gather",
        ),
        pytest.param(
            scatter,
            [(16, 16)],
            [P("y")],
            P("y"),
            [("reduce_scatter", 4 * 16 * 4, 4)],
            "shard_map/reduce_scatter",
            id="reduce_scatter",
        ),
        pytest.param(
            lambda mesh, x: x * 2,
            [(8, 16)],
            [P("y", None)],
            P(None, "y"),
            [("all_to_all", 2 * 16 * 4, 4)],
            "mul",
            id="all_to_all",
        ),
        pytest.param(
            lambda mesh, x: jnp.roll(x, 1, 0),
            [(8, 16)],
            [P("y")],
            P("y"),
            [("collective_permute", 16 * 4, 4)],
            "concatenate",
            id="collective_permute",
        ),
        pytest.param(
            reduce_in_a_loop,
            [(8, 16), (16, 32)],
            [P(), P(None, "y")],
            P(),
            [("all_reduce", 8 * 16 * 4, 4)],
            "while/body",
            id="loop",
        ),
    ],
)
def test_real_programs(function, shapes, inputs, output, expected, name):
    found = collectives(compiled_text(function, shapes, inputs, output))
    assert [(each.kind, each.nbytes, each.group_size) for each in found] == expected
    assert all(name in each.name for each in found)
    assert [each.in_loop for each in found] == [function is reduce_in_a_loop] * len(found)


def test_collectives_that_xla_combined_count_all_their_arrays():
    def function(mesh, x):
        body = lambda x: (jax.lax.psum(x, "y"), jax.lax.psum(x[0], "y"))  # noqa: E731
        first, second = jax.shard_map(body, mesh=mesh, in_specs=P("y"), out_specs=P())(x)
        return first + second

    found = collectives(compiled_text(function, [(16, 16)], [P("y")], P()))
    assert {each.kind for each in found} == {"all_reduce"}
    assert sum(each.nbytes for each in found) == (4 * 16 + 16) * 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int32", "bool", "complex64"])
def test_real_dtypes(dtype):
    text = compiled_text(lambda mesh, x: x, [(8, 16)], [P("x", "y")], P("x"), dtype)
    (found,) = collectives(text)
    # The CPU may send a narrow type as a wider one.
    assert found.nbytes in {4 * 16 * size for size in (jnp.dtype(dtype).itemsize, 2, 4)}
    assert found.kind == "all_gather"


def test_one_device_exchanges_nothing():
    text = jax.jit(lambda x: jnp.sum(jnp.tanh(x) @ x.T)).lower(jnp.ones((4, 4))).compile().as_text()
    assert collectives(text) == ()


HEADER = "HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}, num_partitions=8\n\n"
ADD = """%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%x, %y)
}

"""


def program(*lines):
    return HEADER + ADD + "ENTRY %main.9_spmd (p: f32[8]) -> f32[8] {\n  " + "\n  ".join(lines) + "\n}\n"


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", 2),
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups={{0},{1,2,3}}", 3),
        ("replica_groups={}", 8),
        ("replica_groups=[4,2]<=[8]", 2),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups=[1,8]<=[8]", 8),
        ("replica_groups=mesh['x'=2,'y'=4] {'y'}", 4),
        ("replica_groups=mesh['x'=2,'y'=4] {'x','y'}", 8),
        ("replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_1'}", 4),
        ("replica_groups=mesh['x'=2,'y'=4], device_ids=(0,1,2,3,7,6,5,4) {'x'}", 2),
        ("replica_groups=mesh['x'=8] {'x':(2)2}", 2),
        ("replica_groups=mesh['x'=2,'y'=4] {'x','y':(1)2}", 4),
        ("use_global_device_ids=true", 8),
    ],
)
def test_groups(groups, size):
    attributes = f'channel_id=1, {groups}, to_apply=%add, metadata={{op_name="jit(f)/{{0,1}}"}}'
    (found,) = collectives(program(f"ROOT %all-reduce = f32[8]{{0}} all-reduce(%p), {attributes}"))
    assert found == Collective(kind="all_reduce", nbytes=32, group_size=size, name="jit(f)/{0,1}", in_loop=False)


@pytest.mark.parametrize(
    ("pairs", "size"),
    [
        ("{{0,1},{1,0},{2,3},{3,2}}", 2),
        ("{{0,1},{1,2},{2,3}}", 4),
        ("{{0,3},{4,7},{3,4}}", 4),
        ("{{0,1},{4,5},{1,2},{5,6},{2,3},{6,7},{3,0},{7,4}}", 4),
    ],
)
def test_permutes_connect_devices(pairs, size):
    line = f"ROOT %cp = bf16[3,5]{{1,0}} collective-permute(%p), channel_id=1, source_target_pairs={pairs}"
    (found,) = collectives(program(line))
    assert (found.kind, found.nbytes, found.group_size, found.name) == ("collective_permute", 30, size, "")


@pytest.mark.parametrize(
    ("shape", "nbytes"),
    [
        ("f32[]", 4),
        ("pred[3]{0}", 3),
        ("s4[3,3]{1,0:E(4)}", 5),
        ("u8[7]{0}", 7),
        ("bf16[2,3]{1,0:T(8,128)(2,1)S(1)}", 12),
        ("f8e4m3fn[10]{0}", 10),
        ("f8e5m2[10]{0}", 10),
        ("f4e2m1fn[10]{0}", 5),
        ("c64[2]{0}", 16),
        ("c128[2]{0}", 32),
        ("s64[0,4]{1,0}", 0),
        ("f16[<=8,2]{1,0}", 32),
        ("(f32[4]{0}, bf16[2,2]{1,0:T(4,128)(2,1)}, /*index=2*/pred[])", 25),
    ],
)
def test_shapes(shape, nbytes):
    line = f"ROOT %all-reduce = {shape} all-reduce(%a, %b, /*index=2*/%c), replica_groups={{}}, to_apply=%add"
    assert [(each.kind, each.nbytes) for each in collectives(program(line))] == [("all_reduce", nbytes)]


# In the forms that XLA prints for GPUs and TPUs, with operands renamed; written by hand.
ASYNCHRONOUS = program(
    "%ag-start = (f32[4,16]{1,0}, f32[32,16]{1,0}) all-gather-start(%p), channel_id=1, replica_groups=[1,8]<=[8], "
    'dimensions={0}, metadata={op_name="jit(f)/layers_0/up/dot_general" source_file="f.py"}, '
    'backend_config={"collective_backend_config":{"is_sync":false}}',
    "%ag-done = f32[32,16]{1,0} all-gather-done(%ag-start)",
    "%ag2-start = ((bf16[4]{0}, bf16[2,2]{1,0}), (bf16[32]{0}, bf16[16,2]{1,0})) all-gather-start(%p, %q), "
    "replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}",
    "%ag2-done = (bf16[32]{0}, bf16[16,2]{1,0}) all-gather-done(%ag2-start)",
    "%ar-start = (f32[10]{0}, f32[6]{0}) all-reduce-start(%p, %q), replica_groups={}, to_apply=%add",
    "%ar-done = (f32[10]{0}, f32[6]{0}) all-reduce-done(%ar-start)",
    "%cp-start = (f32[8]{0:T(256)}, f32[8]{0:T(256)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), "
    "source_target_pairs={{0,1},{1,0}}",
    "%cp-done = f32[8]{0:T(256)} collective-permute-done(%cp-start)",
    "%rs-start = ((f32[64]{0}), f32[8]{0}) reduce-scatter-start(%p), replica_groups={}, dimensions={0}, to_apply=%add",
    "%rs-done = f32[8]{0} reduce-scatter-done(%rs-start)",
    "%a2a-start = ((f32[4]{0}, f32[4]{0}), (f32[4]{0}, f32[4]{0}), u32[]{:S(2)}) all-to-all-start(%p, %q), "
    "replica_groups={{0,1}}",
    "%a2a-done = (f32[4]{0}, f32[4]{0}) all-to-all-done(%a2a-start)",
    "%cb = f32[5]{0} collective-broadcast(%p), replica_groups={{0,1}}",
)


def test_pairs_of_start_and_done_count_once():
    found = collectives(ASYNCHRONOUS)
    assert [(each.kind, each.nbytes, each.group_size) for each in found] == [
        ("all_gather", 2048, 8),
        ("all_gather", 128, 8),
        ("all_reduce", 64, 8),
        ("collective_permute", 32, 2),
        ("reduce_scatter", 256, 8),
        ("all_to_all", 32, 2),
        ("collective_broadcast", 20, 2),
    ]
    assert found[0].name == "jit(f)/layers_0/up/dot_general"


WRAPPED = (
    HEADER
    + ADD
    + """%async_computation (param: f32[64]) -> f32[8] {
  %param = f32[64]{0} parameter(0)
  ROOT %rs.1 = f32[8]{0} reduce-scatter(%param), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}

%all-reduce-scatter.2 (param.1: bf16[64,128]) -> bf16[8,128] {
  %param.1 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.5 = bf16[64,128]{1,0:T(8,128)(2,1)} all-reduce(%param.1), replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %dynamic-slice = bf16[8,128]{1,0} dynamic-slice(%all-reduce.5, %o, %z), dynamic_slice_sizes={8,128}
}

ENTRY %main (p: f32[64]) -> f32[8] {
  %rs = ((f32[64]{0}), f32[8]{0}, s32[]) async-start(%p), calls=%async_computation
  %rs2 = ((f32[64]{0}), f32[8]{0}, s32[]) reduce-scatter-start(%p), replica_groups={}, calls=%async_computation
  %f = bf16[8,128]{1,0} fusion(%q), kind=kCustom, calls=%all-reduce-scatter.2
  ROOT %done = f32[8]{0} async-done(%rs), calls=%async_computation
}
"""
)


def test_what_is_wrapped_in_a_computation_counts_there():
    found = collectives(WRAPPED)
    assert [(each.kind, each.nbytes, each.group_size) for each in found] == [
        ("reduce_scatter", 256, 8),
        ("reduce_scatter", 64 * 128 * 2, 8),
    ]


LOOP = (
    HEADER
    + ADD
    + """%called (a: f32[8]) -> f32[8] {
  ROOT %permute = f32[8]{0} collective-permute(%a), source_target_pairs={{0,1}}
}

%branch_1 (b: f32[8]) -> f32[8] {
  ROOT %to-all = f32[8]{0} all-to-all(%b), replica_groups={{0,1}}, dimensions={0}
}

%branch_2 (c: f32[8]) -> f32[8] {
  ROOT %c = f32[8]{0} parameter(0)
}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %call = f32[8]{0} call(%x), to_apply=%called
  %conditional = f32[8]{0} conditional(%i, %x, %x), branch_computations={%branch_1, %branch_2}
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %conditional)
}

%condition (s.1: (s32[], f32[8])) -> pred[] {
  ROOT %all = pred[] all-reduce(%less), replica_groups={}, to_apply=%add
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %while.3 = (s32[], f32[8]{0}) while(%tuple), condition=%condition, body=%body
  ROOT %outside = f32[16]{0} all-gather(%x), replica_groups={{0,1}}, dimensions={0}
}
"""
)


def test_what_a_loop_calls_is_in_it_and_counts_once():
    assert [(each.kind, each.in_loop) for each in collectives(LOOP)] == [
        ("collective_permute", True),
        ("all_to_all", True),
        ("all_reduce", True),
        ("all_gather", False),
    ]


def test_old_text_without_sigils_and_with_shapes_of_operands():
    text = (
        "HloModule f, replica_count=2, num_partitions=3\n\nENTRY main {\n  p = f32[8]{0} parameter(0)\n"
        "  ROOT ar.1 = f32[8]{0} all-reduce(f32[8]{0} p), replica_groups={}, to_apply=add\n}\n"
    )
    (found,) = collectives(text)
    assert (found.nbytes, found.group_size) == (32, 6)


def test_names_that_look_like_collectives_are_none():
    lines = (
        "%all-reduce.1 = f32[8]{0} parameter(0)",
        '%x = f32[8]{0} add(%p, %p), metadata={op_name="jit(f)/all-reduce(x)"}',
        "%all-gather-done = f32[8]{0} copy-done(%p)",
    )
    assert collectives(program(*lines)) == ()
