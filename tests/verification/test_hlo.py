"""Collectives are read from compiled text in every way that a backend writes them."""

import pytest

from gimlax.verification.hlo import emitted

HEADER = "HloModule jit_f, is_scheduled=true, num_partitions=4\n"


def module(*lines, others=()):
    body = "\n".join(f"  {line}" for line in lines)
    return f"{HEADER}\n{''.join(others)}\nENTRY %main (p0: f32[8]) -> f32[8] {{\n{body}\n}}\n"


SUM = "channel_id=1, replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=%add"
CASES = {
    "a sum": (
        f"%all-reduce.1 = f32[2000,1024]{{1,0:T(8,128)}} all-reduce(%fusion), {SUM}",
        {"all_reduce": (1, 2000 * 1024 * 4)},
    ),
    "several sums in one": (
        f"%all-reduce = (bf16[8,4]{{1,0}}, f32[3]{{0}}) all-reduce(%a, %b), {SUM}",
        {"all_reduce": (1, 8 * 4 * 2 + 12)},
    ),
    "a sum that is started": (
        f"%all-reduce-start = f32[16]{{0}} all-reduce-start(%a), {SUM}",
        {"all_reduce": (1, 64)},
    ),
    "a gather that is started": (
        "%ag = (bf16[2,8]{1,0:T(8,128)(2,1)}, bf16[8,8]{1,0:T(8,128)(2,1)S(1)}) "
        "all-gather-start(%a), channel_id=3, replica_groups=[1,4]<=[4], dimensions={0}",
        {"all_gather": (1, 8 * 8 * 2)},
    ),
    "several gathers that are started": (
        "%ag = ((f32[2]{0}, f32[4]{0}), (f32[8]{0}, f32[16]{0})) all-gather-start(%a, %b), "
        "channel_id=3, replica_groups=[1,4]<=[4], dimensions={0}",
        {"all_gather": (1, 32 + 64)},
    ),
    "a scattered sum": (
        "%rs = f32[2000,256]{1,0} reduce-scatter(%a), channel_id=2, "
        "replica_groups={{0,1,2,3}}, dimensions={1}, to_apply=%add",
        {"reduce_scatter": (1, 2000 * 1024 * 4)},
    ),
    "a scattered sum over named axes": (
        "%rs = f32[2000,256]{1,0} reduce-scatter(%a), channel_id=2, "
        "replica_groups=mesh['data'=2,'model'=2] {'model'}, dimensions={1}, to_apply=%add",
        {"reduce_scatter": (1, 2000 * 512 * 4)},
    ),
    "a scattered sum over all": (
        "%rs = f32[2]{0} reduce-scatter(%a), channel_id=2, replica_groups={}, dimensions={0}",
        {"reduce_scatter": (1, 32)},
    ),
    "a scattered sum that is started": (
        "%rs = ((f32[2000,1024]{0,1}), f32[2000,256]{0,1}) reduce-scatter-start(%a), "
        "channel_id=2, replica_groups=mesh['axis_0'=1,'axis_1'=4] {'axis_1'}, dimensions={1}",
        {"reduce_scatter": (1, 2000 * 1024 * 4)},
    ),
    "a permutation that is started": (
        "%cp = (s8[64]{0}, s8[64]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%a), "
        "channel_id=5, source_target_pairs={{0,1},{1,0}}",
        {"permute": (1, 64)},
    ),
    "the end of a start": (
        "%all-gather-done = f32[8]{0} all-gather-done(%ag), channel_id=3",
        {},
    ),
    "what only asks who it is": ("%id = u32[] partition-id()", {}),
    "what is not known": (
        "%x = f32[4]{0} all-confer(%a), channel_id=3, replica_groups={{0,1}}",
        {"all-confer": (1, 16)},
    ),
    "four bits": (
        f"%x = s4[7]{{0}} all-reduce(%a), {SUM}",
        {"all_reduce": (1, 4)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_collective_counts_once_with_its_bytes(case):
    line, expected = CASES[case]
    assert emitted(module(line)) == expected
    assert emitted(module(f"ROOT {line}")) == expected


def test_a_fusion_that_sums_and_slices_is_a_scattered_sum():
    fused = (
        "%all-reduce-scatter.3 (input: f32[8,4]) -> f32[8,1] {\n"
        f"  %all-reduce.1 = f32[8,4]{{1,0}} all-reduce(%input), {SUM}\n"
        "  ROOT %slice = f32[8,1]{1,0} dynamic-slice(%all-reduce.1, %c, %i)\n}\n"
    )
    text = module(
        "%fusion = f32[8,1]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.3",
        others=[fused],
    )
    assert emitted(text) == {"reduce_scatter": (1, 128)}


def test_a_loop_counts_its_trips():
    body = (
        "%body (p: (f32[4])) -> (f32[4]) {\n"
        f"  %all-reduce = f32[4]{{0}} all-reduce(%x), {SUM}\n}}\n"
    )
    for trips, times in (('{"n":"5"}', 5), (None, 1)):
        config = f', backend_config={{"known_trip_count":{trips}}}' if trips else ""
        loop = "%while = (f32[4]{0}) while(%t), condition=%cond, body=%body"
        text = module(f'{loop}, metadata={{op_name="while"}}{config}', others=[body])
        assert emitted(text) == {"all_reduce": (times, times * 16)}


def test_a_computation_that_is_called_twice_counts_twice():
    called = (
        "%wrapped (p: f32[4]) -> f32[4] {\n"
        f"  ROOT %all-reduce = f32[4]{{0}} all-reduce(%p), {SUM}\n}}\n"
    )
    calls = [f"%c{i} = f32[4]{{0}} call(%a), to_apply=%add, calls=%wrapped" for i in range(2)]
    assert emitted(module(*calls, others=[called])) == {"all_reduce": (2, 32)}


def test_text_without_an_entry_sends_nothing():
    assert emitted("") == {}
