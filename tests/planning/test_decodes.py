"""How a decode is cut over the processors of a device, and what that takes."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from gimlax.planning.rates.decodes import decode_attention_s, fill, run_alone, share
from gimlax.planning.rates.fitted import accelerators

HOPPER = accelerators()["H100 SXM"].figures()
CLOCK = {
    "memory_bytes_per_s": 1e12,
    "cache_bytes": 5e7,
    "clock_hz": 2e9,
    "fills": 0.0,
    "joins": 0.0,
}
WORKS = st.builds(
    lambda batch, key_heads, shared, keys, size: work(
        batch, key_heads * shared, key_heads, keys, size
    ),
    batch=st.sampled_from((1, 2, 3, 4, 9, 32, 100, 2000)),
    key_heads=st.sampled_from((1, 2, 3, 4, 8, 24, 96)),
    shared=st.sampled_from((1, 2, 3, 4, 5, 6, 8, 12, 16, 32, 64)),
    keys=st.integers(1, 5000) | st.integers(1, 140_000),
    size=st.sampled_from((64, 96, 128, 192, 256)),
)
PROCESSORS = st.integers(100, 200)


def work(batch, heads, key_heads, keys, size=128, itemsize=2.0, window=0, warm=0.0):
    return {
        "batch": batch,
        "heads": heads,
        "key_heads": key_heads,
        "keys": keys,
        "size": size,
        "itemsize": itemsize,
        "window": window,
        "warm": warm,
    }


def coefficients(**others):
    """All that take time take none, but for some; memory is as fast as the card says."""
    names = "launch_s prepare_s lone_s convert_s wave_s step_s crowd alone_s pass_s loop_s merge_s"
    names += " alone_merge_s global_s"
    rates = {"bandwidth": 1.0, "cache": 1.0, "cached": 1e9, "sharpness": 1e3}
    return dict.fromkeys(names.split(), 0.0) | rates | others


@given(w=WORKS, processors=PROCESSORS)
def test_a_library_that_fills_cuts_into_as_many_parts_as_run_at_once(w, processors):
    cut, rows = fill(np, {"processors": processors}, w, w["keys"])
    groups = w["batch"] * w["key_heads"] * max(1, w["heads"] // w["key_heads"] / rows)
    parts = 1
    while (parts + 1) * groups <= processors and parts * 256 < w["keys"]:
        parts += 1
    assert (cut.parts, cut.blocks) == (parts, parts * groups)


@given(w=WORKS, processors=PROCESSORS)
def test_a_library_that_shares_cuts_into_few_waves_and_few_parts(w, processors):
    cut, shares = share(np, HOPPER | {"processors": processors}, w, w["keys"])
    groups = w["batch"] * w["key_heads"]
    most = max(1, w["keys"] // 128)
    wanted = parts = 1
    while wanted < most and (wanted + 0.5) ** 2 <= 8 * most:
        wanted += 1
    while parts < wanted and (parts + 1) * groups <= 8 * processors:
        parts += 1
    while parts > 1 and parts * w["batch"] > 6000:
        parts -= 1
    assert cut.parts == parts and cut.at_once == 1
    shared = w["heads"] // w["key_heads"]
    assert shares == (2 <= shared <= 32 and 4 * groups * most >= processors)


@given(w=WORKS, processors=PROCESSORS)
def test_blocks_alone_have_the_more_threads_the_fewer_they_are(w, processors):
    cut, each_pass = run_alone(np, {"processors": processors}, w)
    heads = w["batch"] * w["heads"]
    threads = 256
    while threads < 1024 and heads * threads < 4 * 256 * processors:
        threads += 256
    threads = 512 if threads == 768 else threads
    padded = next(size for size in (64, 128, 256) if size >= w["size"])
    parts = 1
    while parts * heads < processors and parts * 8 * each_pass < w["keys"] + 1:
        parts += 1
    assert cut.at_once * threads == 1024
    assert each_pass == threads * 8 / padded
    assert cut.parts == parts


def test_another_kernel_begins_where_a_quarter_of_the_processors_has_a_part():
    """48 query heads of 4 key heads on 132 processors: 4 × 8 parts are too few, 4 × 16 are not."""
    found = [share(np, HOPPER, work(1, 48, 4, keys), keys) for keys in (1024, 2048)]
    assert [bool(shares) for _, shares in found] == [False, True]
    assert found[1][0].parts == 11  # √(8 × 16), of 16
    c = coefficients(alone_s=1e-5, wave_s=1e-6)
    alone_s, sharing_s = (
        decode_attention_s(np, c, HOPPER, work(1, 48, 4, keys)) for keys in (1024, 2048)
    )
    assert alone_s > 5 * sharing_s


@pytest.mark.parametrize(("joins", "parts"), [(0.0, 1), (1.0, 11)])
def test_caches_of_8_bits_are_cut_only_where_they_have_a_kernel(joins, parts):
    device = HOPPER | {"joins": joins}
    for keys in (16, 2048):
        cut, shares = share(np, device, work(1, 48, 4, keys, itemsize=1.0), keys)
        assert shares  # however few they are
    assert cut.parts == parts


def test_parts_before_the_window_have_nothing_to_do():
    cut, _ = share(np, HOPPER, work(4, 32, 8, 8192, window=128), 128)
    whole, _ = share(np, HOPPER, work(4, 32, 8, 8192), 8192)
    assert cut.parts == whole.parts > 2
    assert cut.blocks == 2 * 4 * 8


@pytest.mark.parametrize(("fills", "heads", "key_heads", "alone"), [
    (0.0, 8, 8, True),  # nothing is shared
    (0.0, 64, 1, True),  # more than a block takes
    (0.0, 8, 1, False),
    (1.0, 8, 8, False),
    (1.0, 64, 1, True),
])  # fmt: skip
def test_which_decodes_run_alone(fills, heads, key_heads, alone):
    c = coefficients(alone_s=1.0)
    seconds = decode_attention_s(np, c, HOPPER | {"fills": fills}, work(128, heads, key_heads, 64))
    assert (seconds > 1e-2) == alone


def test_blocks_run_in_whole_waves():
    """128 sequences of 2 key heads are 256 blocks, on 100 processors 3 waves, and of 3 4."""
    device = CLOCK | {"processors": 100}
    c = coefficients(wave_s=1e-3, launch_s=1e-4)
    for key_heads, waves in ((2, 3), (3, 4)):
        w = work(128, 4 * key_heads, key_heads, 64)
        assert decode_attention_s(np, c, device, w) == pytest.approx(1e-4 + waves * 1e-3, rel=1e-3)


def test_cycles_take_longer_at_a_slower_clock():
    device = CLOCK | {"processors": 100}
    c, w = coefficients(wave_s=1e-3, launch_s=1e-4), work(64, 8, 2, 64)
    fast_s, slow_s = (decode_attention_s(np, c, device | {"clock_hz": hz}, w) for hz in (2e9, 1e9))
    assert slow_s == pytest.approx(2 * fast_s, rel=1e-3)


@pytest.mark.parametrize(("keys", "warm", "from_memory"), [
    (500, 1.0, 0.0), (4000, 1.0, 1.0), (500, 0.0, 1.0),
])  # fmt: skip
def test_a_cache_that_is_read_round_and_round_holds_all_or_nothing(keys, warm, from_memory):
    """64 sequences of 500 keys are 16 MB, of 4,000 131 MB, and the cache is of 50 MB."""
    device = CLOCK | {"processors": 100}
    w = work(64, 2, 1, keys, warm=warm)
    num_bytes = 64 * (keys * 128 * 4 + 4 * 2 * 128)
    seconds = decode_attention_s(np, coefficients(cached=10.0), device, w)
    expected_s = num_bytes * (0.1 + from_memory) / 1e12
    assert seconds == pytest.approx(expected_s, rel=0.02)
