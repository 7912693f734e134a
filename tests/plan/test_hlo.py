"""Reading compiled programs: loops by trips, FLOPs, traffic, and collectives with textbook bytes."""

from pathlib import Path

import pytest

from pretrain.plan.chips import parse_pod
from pretrain.plan.collectives import KINDS, axes_of, find_collectives, first_group, sent
from pretrain.plan.hlo import Array, Program, arrays
from pretrain.plan.roofline import roofline

# A loop of 6 turns around a fused product [64, 32] x [32, 16] and an all-gather; after it an all-reduce of 4 KiB.
LOOP = """
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p0: bf16[64,32], p1: bf16[6,32,16], p2: s32[]) -> f32[64,16] {
  %p0 = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[6,32,16]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %one_layer = bf16[1,32,16]{2,1,0} dynamic-slice(%p1, %p2, %zero, %zero), dynamic_slice_sizes={1,32,16}
  %layer = bf16[32,16]{1,0} bitcast(%one_layer)
  ROOT %dot = f32[64,16]{1,0} dot(%p0, %layer), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (state: (s32[], bf16[64,32], bf16[6,32,16])) -> (s32[], bf16[64,32], bf16[6,32,16]) {
  %state = (s32[], bf16[64,32]{1,0}, bf16[6,32,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[64,32]{1,0} get-tuple-element(%state), index=1
  %w = bf16[6,32,16]{2,1,0} get-tuple-element(%state), index=2
  %y = f32[64,16]{1,0} fusion(%x, %w, %i), kind=kOutput, calls=%fused, metadata={op_name="jit(step)/while/dot"}
  %cut = bf16[16,32]{1,0} slice(%x), slice={[0:16], [0:32]}
  %whole = bf16[64,32]{1,0} all-gather(%cut), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %next = (s32[], bf16[64,32]{1,0}, bf16[6,32,16]{2,1,0}) tuple(%i, %whole, %w)
}

%condition (state: (s32[], bf16[64,32], bf16[6,32,16])) -> pred[] {
  %state.1 = (s32[], bf16[64,32]{1,0}, bf16[6,32,16]{2,1,0}) parameter(0)
  %j = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(6)
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (x: bf16[64,32], w: bf16[6,32,16]) -> f32[1024] {
  %x0 = bf16[64,32]{1,0} parameter(0), metadata={op_name="x"}
  %w0 = bf16[6,32,16]{2,1,0} parameter(1), metadata={op_name="state.params[\\'w\\']"}
  %start = s32[] constant(0)
  %first = (s32[], bf16[64,32]{1,0}, bf16[6,32,16]{2,1,0}) tuple(%start, %x0, %w0)
  %loop = (s32[], bf16[64,32]{1,0}, bf16[6,32,16]{2,1,0}) while(%first), condition=%condition, body=%body
  %flat = f32[1024]{0} custom-call(%loop#1), custom_call_target="Other"
  ROOT %total = f32[1024]{0} all-reduce(%flat), channel_id=2, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
}
"""
MESH = {"data": 2, "fsdp": 4}
POD = parse_pod("v5e:2x4")


def test_computations_run_as_often_as_loops_turn():
    program = Program(LOOP)
    assert program.entry == "main"
    assert program.runs["body"] == 6 and program.runs["fused"] == 6 and program.runs["main"] == 1
    assert not program.unknown_loops
    assert program.computations["main"]["w0"].op_name == "state.params['w']"


def test_a_trip_count_that_is_written_down_comes_first():
    written = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"9"}}')
    assert Program(written).runs["body"] == 9


def test_a_counter_that_goes_up_by_two_turns_half_as_often():
    """What the compiler makes of products over a ring of chips, two parts a turn."""
    by_two = LOOP.replace("  ROOT %next", "  %two = s32[] constant(2)\n  %after = s32[] add(%i, %two)\n  ROOT %next")
    by_two = by_two.replace("tuple(%i, %whole, %w)", "tuple(%after, %whole, %w)")
    assert Program(by_two).runs["body"] == 3
    assert Program(by_two.replace("s32[] constant(6)", "s32[] constant(7)")).runs["body"] == 4


def test_a_loop_without_a_count_is_named():
    program = Program(LOOP.replace("%limit = s32[] constant(6)", "%limit = s32[] get-tuple-element(%state.1), index=0"))
    assert program.runs["body"] == 1
    assert program.unknown_loops == ["loop"]


def test_flops_and_traffic_of_the_loop():
    program = Program(LOOP)
    times = roofline(program, find_collectives(program, MESH, POD), POD)
    assert times.hardware_flops == 6 * (2 * 64 * 32 * 16) * 8
    # x, one layer of w, the product; the slice read and written; two counters and a comparison; then the custom call.
    each_turn = 64 * 32 * 2 + 32 * 16 * 2 + 64 * 16 * 4 + 2 * 16 * 32 * 2 + 4 + 9
    assert times.memory_bytes == 6 * each_turn + 64 * 32 * 2 + 4096
    assert times.step_seconds == max(times.kernel_seconds, times.collective_seconds)


def test_collectives_by_kind_axis_count_and_bytes():
    found = {c.kind: c for c in find_collectives(Program(LOOP), MESH, POD)}
    gather, reduce = found["all-gather"], found["all-reduce"]
    assert (gather.axes, gather.size, gather.count) == ("fsdp", 4, 6)
    assert gather.bytes == 6 * 64 * 32 * 2 and gather.sent_bytes == gather.bytes * 3 / 4
    assert (reduce.axes, reduce.size, reduce.count) == ("data", 2, 1)
    assert reduce.bytes == 4096 and reduce.sent_bytes == 2 * 4096 / 2


@pytest.mark.parametrize(
    "sending",
    ["ROOT %y = bf16[64]{0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}",
     "%p = (bf16[64]{0}, bf16[64]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}\n"
     "  ROOT %y = bf16[64]{0} collective-permute-done(%p)",
     "ROOT %y = bf16[64]{0} ragged-all-to-all(%x, %x, %x, %x, %x, %x), replica_groups={{0,1}}",
     "%p = bf16[64]{0} all-reduce-start(%x), replica_groups={{0,1}}\n  ROOT %y = bf16[64]{0} all-reduce-done(%p)"],
)  # fmt: skip
def test_what_is_sent_is_no_kernels_work(sending):
    text = f"ENTRY %main (x: bf16[64]) -> bf16[64] {{\n  %x = bf16[64]{{0}} parameter(0)\n  {sending}\n}}\n"
    program = Program(text)
    times = roofline(program, find_collectives(program, {"data": 1, "fsdp": 8}, POD), POD)
    assert times.memory_bytes == times.kernel_seconds == 0 < times.collective_seconds == times.step_seconds


def test_what_goes_between_slices_is_the_collective_that_it_does():
    """As libtpu 0.0.42 writes a gradient's sum over 2 slices of 4 chips: through the host, on the slow network."""
    handler = '_xla_host_transfer_handler_name="xla_megascale_runtime"'
    does = f'frontend_attributes={{{handler},_xla_megascale_transfer_type="ALL_REDUCE"}}, backend_config={{}}'
    text = (
        "ENTRY %main (x: f32[256,8,128]) -> f32[256,8,128] {\n  %x = f32[256,8,128]{2,1,0} parameter(0)\n"
        "  %t = token[] after-all()\n"
        f"  %s = (f32[256,8,128]{{2,1,0}}, u32[], token[]) send(%x, %t), channel_id=2, is_host_transfer=true, {does}\n"
        f"  %r = (f32[256,8,128]{{2,1,0}}, u32[], token[]) recv(%t), channel_id=1, is_host_transfer=true, {does}\n"
        "  %sd = token[] send-done(%s), channel_id=2, is_host_transfer=true\n"
        "  %rd = (f32[256,8,128]{2,1,0}, token[]) recv-done(%r), channel_id=1, is_host_transfer=true\n"
        "  ROOT %y = f32[256,8,128]{2,1,0} get-tuple-element(%rd), index=0\n}\n"
    )
    pod, program = parse_pod("v5p:2x2x1", slices=2), Program(text)
    (found,) = find_collectives(program, {"data": 2, "fsdp": 4}, pod)
    size = 256 * 8 * 128 * 4
    assert (found.kind, found.axes, found.size, found.count) == ("all-reduce", "data", 2, 1)
    assert found.bytes == found.sent_bytes == size and found.seconds == pytest.approx(size / pod.chip.slow_links)
    assert roofline(program, [found], pod).memory_bytes == 0


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("all-gather", 750), ("reduce-scatter", 75), ("all-reduce", 150), ("all-to-all", 75), ("collective-permute", 100)],
)
def test_bytes_that_a_chip_sends_are_the_textbooks(kind, expected):
    assert kind in KINDS
    assert sent(kind, 4, operand=100, result=1000) == expected


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,2},{1,3}}", [0, 2]),
        ("replica_groups=[4,2]<=[8], dimensions={0}", [0, 1]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, use_global_device_ids=true", [0, 1, 2, 3]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", [0, 4]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_0'}", [0, 1]),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}", [0, 1, 2, 3]),
        ("source_target_pairs={{0,0},{1,2},{2,4},{4,7},{7,1},{3,6},{6,3},{5,5}}", [1, 2, 4, 7]),  # into zig-zag order
        ("source_target_pairs={{0,7}}", [0, 7]),
        ("no groups at all", list(range(8))),
    ],
)
def test_groups_in_every_notation(text, group):
    assert first_group(text, 8) == group


def test_groups_are_named_by_the_axes_they_span():
    assert axes_of([0, 4], MESH) == "data"
    assert axes_of([0, 1, 2, 3], MESH) == "fsdp"
    assert axes_of(list(range(8)), MESH) == "data+fsdp"
    assert axes_of([0, 1], MESH) == "?"


def test_arrays_know_their_size_and_place():
    shape = "(f32[2,3]{1,0:T(8,128)S(1)}, s32[], bf16[8]{0})"
    assert arrays(shape) == (Array("f32", (2, 3), True), Array("s32", ()), Array("bf16", (8,)))
    assert [array.bytes for array in arrays(shape)] == [24, 4, 16]


def test_a_step_as_libtpu_compiled_it():
    """h <- tanh(h w_i) over 6 layers of 512 x 512, rematerialised, weights over fsdp, 1,024 rows over data and fsdp."""
    program = Program((Path(__file__).parent / "programs" / "scan_v5e_2x2.txt").read_text())
    pod, mesh = parse_pod("v5e:2x2"), {"data": 2, "fsdp": 2}
    found = {(c.kind, c.axes): c for c in find_collectives(program, mesh, pod)}
    layer = 512 * 512
    # A layer is gathered for each pass in bfloat16; its gradient is scattered in float32, then summed over replicas.
    assert {key: (c.count, c.bytes) for key, c in found.items()} == {
        ("all-gather", "fsdp"): (12, 12 * layer * 2),
        ("reduce-scatter", "fsdp"): (6, 6 * layer * 4),
        ("all-reduce", "data"): (6, 6 * layer // 2 * 4),
    }
    # Forward once and again, and two products of the backward pass.
    assert roofline(program, list(found.values()), pod).hardware_flops == 6 * 4 * 2 * 1024 * layer
    assert not program.unknown_loops


def test_products_that_tpus_write_as_convolutions():
    """32 heads as a window of 32 places, of which one meets the input: B L D H Q multiply-adds, not 32 times that."""
    text = """
ENTRY %main (x: bf16[64,16,1], w: bf16[16,32,8]) -> bf16[64,32,8] {
  %x = bf16[64,16,1]{2,1,0} parameter(0)
  %w = bf16[16,32,8]{2,1,0} parameter(1)
  ROOT %y = bf16[64,32,8]{2,1,0} convolution(%x, %w), window={size=32 pad=31_31 rhs_reversal=1}, dim_labels=bf0_i0o->b0f
}
"""
    assert roofline(Program(text), [], POD).hardware_flops == 2 * 64 * 16 * 32 * 8 * POD.chips


@pytest.mark.parametrize(("name", "products"), [("fwd", 2), ("dkv", 4), ("dq", 3)])
def test_flash_attention_kernels_count(name, products):
    text = f"""
ENTRY %main (q: bf16[2,8,256,64]) -> bf16[2,8,256,64] {{
  %q = bf16[2,8,256,64]{{3,2,1,0}} parameter(0)
  ROOT %splash_mha_{name}_segmented.1 = bf16[2,8,256,64]{{3,2,1,0}} custom-call(%q, %q, %q), \
custom_call_target="tpu_custom_call", operand_layout_constraints={{s8[1,2,2]{{2,1,0}}, bf16[2,8,256,64]{{3,2,1,0}}, \
bf16[2,2,256,64]{{3,2,1,0}}, bf16[2,2,256,64]{{3,2,1,0}}, s32[256,128]{{1,0}}}}
}}
"""
    assert Program(text).pallas_kernels() == {f"splash_mha_{name}_segmented": 1}
    causal = roofline(Program(text), [], POD).hardware_flops / POD.chips
    assert causal == products * 2 * 2 * 8 * 256 * 256 * 64 / 2
    full = text.replace(", s32[256,128]{1,0}", "")
    assert roofline(Program(full), [], POD).hardware_flops / POD.chips == 2 * causal


@pytest.mark.parametrize(("places", "share"), [(", s32[256,128]{1,0}", 0.5), ("", 1.0)])
def test_flash_attention_of_one_row_whose_batch_is_dropped(places, share):
    text = f"""
ENTRY %main (q: bf16[8,256,64]) -> bf16[8,256,64] {{
  %q = bf16[8,256,64]{{2,1,0}} parameter(0)
  ROOT %splash_mha_fwd_segmented.1 = bf16[8,256,64]{{2,1,0}} custom-call(%q, %q, %q), \
custom_call_target="tpu_custom_call", operand_layout_constraints={{s8[1,2,2]{{2,1,0}}, bf16[8,256,64]{{2,1,0}}, \
bf16[2,256,64]{{2,1,0}}, bf16[2,256,64]{{2,1,0}}, s32[256,128]{{1,0}}, s32[8,256]{{1,0}}{places}}}
}}
"""
    flops = roofline(Program(text), [], POD).hardware_flops / POD.chips
    assert flops == share * 2 * 2 * 8 * 256 * 256 * 64
