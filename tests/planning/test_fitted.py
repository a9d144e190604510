"""Rates from fitted coefficients: few of them, finite, never decreasing."""

import dataclasses
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from gimlax.devices.catalogue import catalogue
from gimlax.graph.operations import ATTENTION, ELEMENTWISE, GROUPED, MATMUL, ROUTED, Operation
from gimlax.partition import ALL_GATHER, ALL_REDUCE, Collective
from gimlax.planning.rates import (
    CARD,
    FITTED,
    Fitted,
    Roofline,
    collectives_for,
    kernels,
    rates_for,
)
from gimlax.planning.rates.collectives import Ring, by_kind
from gimlax.planning.rates.decodes import decode_attention_s
from gimlax.planning.rates.fitted import accelerators, coefficients, find_coefficients
from tests.planning.cases import cluster_of

KINDS = {kind.name: kind for kind in catalogue()}
LISTED = sorted(set(accelerators()) & set(KINDS))
SIZES = st.integers(1, 40_000)


def product(m, n, k, dtype="bfloat16", itemsize=2):
    return Operation(
        kind=MATMUL,
        dims=(1, m, n, k),
        dtype=dtype,
        flops=2.0 * m * n * k,
        bytes_read=float(itemsize * (m * k + n * k)),
        bytes_written=2.0 * m * n,
    )


def attention(batch, heads, key_heads, queries, keys, size, dtype="bfloat16"):
    return Operation(
        kind=ATTENTION,
        dims=(batch, heads, key_heads, queries, keys, size),
        dtype=dtype,
        flops=4.0 * batch * heads * queries * keys * size,
        bytes_read=4.0 * batch * key_heads * keys * size,
        bytes_written=2.0 * batch * heads * queries * size,
    )


def fitted(name):
    rates = Fitted.of(KINDS[name])
    assert rates is not None
    return rates


def test_there_are_at_most_200_coefficients_and_all_are_positive():
    values = [
        v for law in coefficients().values() for groups in law.values() for v in groups.values()
    ]
    assert 100 < len(values) <= 200
    assert all(math.isfinite(value) and value > 0 for value in values)


@pytest.mark.parametrize("name", LISTED)
def test_figures_that_the_card_has_too_are_the_same(name):
    accelerator, kind = accelerators()[name], KINDS[name]
    assert accelerator.memory_bytes_per_s == kind.memory_bytes_per_s
    for dtype in set(accelerator.peak_flops_per_s) & set(dict(kind.peak_flops_per_s)):
        assert accelerator.peak_flops_per_s[dtype] == pytest.approx(kind.peak(dtype), rel=1e-3)


@given(name=st.sampled_from(LISTED), m=SIZES, n=SIZES, k=SIZES, which=st.integers(0, 2))
def test_a_larger_product_never_takes_less(name, m, n, k, which):
    rates, more = fitted(name), [m, n, k]
    more[which] += 1 + more[which] // 7
    for dtype in ("bfloat16", "float8_e4m3fn", "float4_e2m1fn"):
        small, large = (rates.seconds(product(*dims, dtype)) for dims in ((m, n, k), more))
        assert 0 < small <= large * (1 + 1e-9) < math.inf


@given(name=st.sampled_from(LISTED), batch=st.integers(1, 64), keys=st.integers(2, 20_000))
def test_prompts_of_more_tokens_never_take_less(name, batch, keys):
    rates = fitted(name)
    small, large = (rates.seconds(attention(batch, 32, 8, n, n, 128)) for n in (keys, keys * 2))
    assert 0 < small <= large * (1 + 1e-9) < math.inf


@given(name=st.sampled_from(LISTED), batch=st.integers(1, 64), keys=st.integers(2, 20_000))
def test_decodes_over_many_times_the_keys_never_take_less(name, batch, keys):
    """Over twice as many they may, where a better way to cut them begins; so they do measured."""
    rates = fitted(name)
    small, large = (rates.seconds(attention(batch, 32, 8, 1, n, 128)) for n in (keys, keys * 16))
    assert 0 < small <= large * (1 + 1e-9) < math.inf


@given(name=st.sampled_from(LISTED), m=SIZES, n=SIZES, k=SIZES)
def test_cold_products_hardly_beat_the_roofline(name, m, n, k):
    """No measurement does, so the laws may only by what they miss: a quarter."""
    operation = product(m, n, k)
    assert fitted(name).seconds(operation) > 0.75 * Roofline(KINDS[name]).seconds(operation)


def test_what_no_law_is_for_takes_the_roofline_at_fitted_bandwidth():
    kind = KINDS["H100 SXM"]
    chain = Operation(
        kind=ELEMENTWISE,
        dims=(10**8,),
        dtype="float32",
        flops=1e8,
        bytes_read=4e8,
        bytes_written=4e8,
    )
    bare_s, seconds = Roofline(kind).seconds(chain), fitted("H100 SXM").seconds(chain)
    assert bare_s < seconds < 1.6 * bare_s


def test_a_short_format_that_a_device_lacks_is_worked_in_a_wider_one():
    short, wide = (product(512, 4096, 4096, d) for d in ("float8_e4m3fn", "bfloat16"))
    ampere = fitted("A100 SXM 80GB")
    assert ampere.seconds(short) == ampere.seconds(wide)


def test_kinds_without_measurements_keep_their_card():
    assert Fitted.of(KINDS["TPU v5e"]) is None


def test_a_mesh_of_a_measured_kind_is_priced_by_its_coefficients():
    cluster = cluster_of((KINDS["H100 SXM"], KINDS["A100 SXM 80GB"]))
    assert [rates_for(cluster, mesh.name).source for mesh in cluster.meshes] == [FITTED, FITTED]


def grouped(groups, rows, n, k, dtype="bfloat16", itemsize=2):
    return Operation(
        kind=GROUPED,
        dims=(groups, rows, n, k),
        dtype=dtype,
        flops=2.0 * rows * n * k,
        bytes_read=float(itemsize * (rows * k + min(groups, rows) * n * k)),
        bytes_written=2.0 * rows * n,
    )


# Hidden, inner, experts and how many of them a token has, of models that are public.
EXPERTS = ((4096, 14336, 8, 2), (7168, 2048, 256, 8), (2048, 768, 128, 8), (2880, 2880, 128, 4))


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize(("hidden", "inner", "experts", "chosen"), EXPERTS)
def test_three_grouped_products_take_as_long_as_the_layer_of_experts_that_was_fitted(
    name, hidden, inner, experts, chosen
):
    for tokens in (1, 16, 256, 4096):
        rows = tokens * chosen
        up, down = grouped(experts, rows, inner, hidden), grouped(experts, rows, hidden, inner)
        seconds = 2 * fitted(name).seconds(up) + fitted(name).seconds(down)
        layer_s = experts_s(name, tokens, hidden, inner, experts, chosen)
        assert seconds == pytest.approx(layer_s, rel=0.06)


def test_a_token_pays_for_the_experts_that_it_meets():
    rates, wide = fitted("H100 SXM"), (2048, 7168)
    one_s = rates.seconds(grouped(256, 8, *wide))
    assert one_s < 0.1 * rates.seconds(grouped(256, 2048, *wide))
    assert one_s < rates.seconds(product(8, 256 * 2048, 7168)) / 10


def test_a_product_of_a_layer_of_experts_has_the_law_of_grouped_products():
    product_of_groups = grouped(8, 64, 14336, 4096)
    routed = dataclasses.replace(
        product_of_groups, kind=ROUTED, dims=(*product_of_groups.dims, 8, 8, 8)
    )
    rates = fitted("H100 SXM")
    assert rates.seconds(routed) == rates.seconds(product_of_groups)


def test_grouped_products_in_float32_have_no_law_and_take_the_roofline():
    operation = grouped(8, 64, 4096, 4096, "float32", 4)
    bare_s = Roofline(KINDS["H100 SXM"]).seconds(operation)
    assert bare_s < fitted("H100 SXM").seconds(operation) < 2 * bare_s


def reduced(num_bytes, num_devices=8, kind=ALL_REDUCE):
    return Collective(kind=kind, num_bytes=num_bytes, axis="model", num_devices=num_devices)


@pytest.mark.parametrize("name", LISTED)
def test_sums_of_a_measured_kind_have_a_law_and_the_rest_goes_on_the_ring(name):
    kind = KINDS[name]
    found, ring = by_kind(kind), Ring(kind.interconnect.bytes_per_s)
    assert found.source == FITTED and ring.source == CARD
    c = find_coefficients("all_reduce", accelerators()[name].groups("bfloat16"))
    device = accelerators()[name].figures()
    last_s = 0.0
    for num_bytes in (2**10, 2**16, 2**22, 2**28):
        law_s = kernels.all_reduce_s(np, c, device, {"num_devices": 8, "num_bytes": num_bytes})
        assert found.seconds(reduced(num_bytes)) == pytest.approx(law_s) and law_s > last_s
        gathered = reduced(num_bytes, kind=ALL_GATHER)
        assert found.seconds(gathered) == ring.seconds(gathered)
        last_s = law_s
    assert found.seconds(reduced(2**20, num_devices=1)) == 0


def test_a_short_sum_on_hopper_is_faster_than_on_a_ring():
    found = by_kind(KINDS["H100 SXM"])
    ring_s = Ring(KINDS["H100 SXM"].interconnect.bytes_per_s).seconds(reduced(2**14))
    assert 2e-6 < found.seconds(reduced(2**14)) < ring_s / 2


def test_collectives_are_those_of_the_kind_where_a_mesh_has_several_devices():
    made = cluster_of((KINDS["H100 SXM"], KINDS["TPU v5e"], KINDS["Inferentia2"]))
    many = dataclasses.replace(
        made, meshes=tuple(dataclasses.replace(m, num_devices=4, axes=()) for m in made.meshes)
    )
    assert collectives_for(made, "H100 SXM") is None
    found = [collectives_for(many, mesh.name) for mesh in many.meshes[:2]]
    assert [each.source for each in found] == [FITTED, CARD]


# Measured times in bfloat16 that nothing was fitted to, drawn at random from those held out of the
# measurements in aiconfigurator-core 0.12.0 (Apache-2.0), and what the laws made of them.
HELD_OUT = (
    ("matmul", "A100 SXM 80GB", (2, 2048, 7168), 22.9, 23.34),
    ("matmul", "H100 SXM", (192, 4096, 2048), 10.02, 11.22),
    ("matmul", "B200 SXM", (32768, 3584, 6144), 922.12, 883.98),
    ("matmul", "L40S", (3072, 1536, 2048), 110.32, 108.72),
    ("context_attention", "A100 SXM 80GB", (32, 8, 1, 2048, 128), 2315.61, 2300.77),
    ("context_attention", "H100 SXM", (64, 32, 4, 1, 128), 54.3, 61.21),
    ("context_attention", "B200 SXM", (16, 32, 8, 1, 128), 25.49, 24.84),
    ("context_attention", "L40S", (16, 16, 4, 128, 128), 35.16, 32.39),
    ("decode_attention", "A100 SXM 80GB", (128, 8, 1, 256, 128), 27.14, 31.8),
    ("decode_attention", "H100 SXM", (8, 32, 8, 512, 128), 18.85, 18.79),
    ("decode_attention", "B200 SXM", (8, 16, 1, 16, 128), 10.89, 11.68),
    ("decode_attention", "L40S", (16, 16, 4, 2, 128), 8.73, 9.18),
)


@pytest.mark.parametrize(("law", "name", "sizes", "measured_us", "predicted_us"), HELD_OUT)
def test_predictions_of_held_out_times_stay_as_they_were(
    law, name, sizes, measured_us, predicted_us
):
    assert law_us(law, name, sizes) == pytest.approx(predicted_us, rel=1e-2)
    assert 0.5 < predicted_us / measured_us < 2


def test_most_held_out_times_are_met():
    missed = [abs(predicted / measured - 1) for *_, measured, predicted in HELD_OUT]
    assert np.median(missed) < 0.15


def experts_s(name, tokens, hidden, inner, experts, chosen):
    """Seconds of a layer of experts by its law, loads even, on one device."""
    accelerator = accelerators()[name]
    device = accelerator.figures() | {
        "peak_flops_per_s": accelerator.peak_flops_per_s["bfloat16"],
    }
    work = {
        "tokens": tokens,
        "hidden": hidden,
        "inner": inner,
        "experts": experts,
        "chosen": chosen,
        "devices": 1,
        "exponent": 0.0,
        "itemsize": 2.0,
        "warm": 0.0,
    }
    c = find_coefficients("experts", accelerator.groups("bfloat16"))
    tiles = np.array(kernels.EXPERT_TILES, float).T
    return float(np.min(kernels.experts_s(np, c, device, work, tiles)))


def prompt_c(**others):
    """Coefficients of prompts, of which nothing but pairs takes time but for some."""
    ones = "other narrow middle wide efficiency bandwidth cache cached"
    nones = "launch_s lone_s spared wave_s extra round tail beyond least hidden"
    c = dict.fromkeys(ones.split(), 1.0) | dict.fromkeys(nones.split(), 0.0)
    return c | {"bandwidth": 1e9, "cached": 1e9} | others


DEVICE = {
    "peak_flops_per_s": 1e14,
    "memory_bytes_per_s": 1e12,
    "processors": 100,
    "cache_bytes": 5e7,
    "clock_hz": 2e9,
}
PROMPTS = {"batch": 4, "heads": 8, "key_heads": 8, "queries": 1024, "keys": 1024, "size": 128}
PROMPTS |= {"window": 0, "causal": 1.0, "itemsize": 2.0}


def test_a_prompt_costs_what_its_pairs_do_beyond_launch_and_memory():
    """Each tile of queries meets the keys up to its own last one."""
    pairs = sum(128 * (tile + 1) * 128 for tile in range(8))
    expected_s = 4 * 8 * pairs * 4 * 128 / 1e14
    found_s = kernels.context_attention_s(np, prompt_c(), DEVICE, PROMPTS)
    assert found_s == pytest.approx(expected_s, rel=1e-3)


def test_tiles_of_prompts_run_in_whole_waves_where_they_are_rounded():
    """4 × 8 × 8 tiles are 2.56 waves of 100 processors."""
    part_s, whole_s = (
        kernels.context_attention_s(np, prompt_c(round=each), DEVICE, PROMPTS) for each in (0, 1)
    )
    assert whole_s / part_s == pytest.approx(3 / 2.56, rel=1e-3)


def test_keys_beyond_a_window_cost_only_where_there_is_one():
    for window, more in ((0, False), (2048, False), (256, True)):
        bare_s, beyond_s = (
            kernels.context_attention_s(
                np, prompt_c(beyond=each), DEVICE, PROMPTS | {"window": window}
            )
            for each in (0.0, 100.0)
        )
        assert (beyond_s > bare_s) == more


def test_one_key_head_pays_its_own_call_and_one_token_is_spared_a_share():
    c = prompt_c(launch_s=4.0, lone_s=2.0, spared=0.25)
    found = [
        kernels.context_attention_s(np, c, DEVICE, PROMPTS | more)
        for more in ({}, {"key_heads": 1}, {"queries": 1, "keys": 1})
    ]
    assert found == pytest.approx([4.0, 6.0, 3.0], rel=1e-3)


def test_more_than_two_devices_on_a_bus_cross_it():
    c = {"launch_s": 0.0, "hop_s": 0.0, "peer_s": 0.0, "bus_peer_s": 0.0, "crossed": 3.0}
    c |= {"efficiency": 1.0, "reading": 0.1, "bus_efficiency": 0.5, "bus_reading": 0.1}

    def seconds(bus, num_devices):
        device = {"link_bytes_per_s": 1e9, "bus": bus}
        return kernels.all_reduce_s(np, c, device, {"num_devices": num_devices, "num_bytes": 1e9})

    assert [seconds(0.0, n) for n in (2, 4)] == pytest.approx([1.0, 1.5])
    assert [seconds(1.0, n) for n in (2, 4)] == pytest.approx([2.0, 12.0])


@given(
    tokens=st.integers(1, 20_000),
    chosen=st.integers(1, 8),
    experts=st.sampled_from((8, 64, 256)),
    exponent=st.sampled_from((0.0, 1.0, 1.01, 1.2)),
)
def test_loads_of_experts_sum_to_all_their_tokens(tokens, chosen, experts, exponent):
    work = {"tokens": tokens, "chosen": chosen, "experts": experts, "exponent": exponent}
    loads = kernels._expert_loads(np, work)
    assert loads.mean() * experts == pytest.approx(tokens * chosen)
    assert np.all(np.diff(loads[:, 0]) >= 0)


def test_a_steeper_power_law_of_loads_has_fuller_experts():
    work = {"tokens": 4096, "chosen": 8, "experts": 256}
    fullest = [
        kernels._expert_loads(np, work | {"exponent": each})[-1, 0] for each in (0.0, 1.01, 1.2)
    ]
    assert fullest == sorted(fullest)
    assert fullest[0] == 128 < fullest[1] < fullest[2]


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float4_e2m1fn"])
def test_attention_has_a_time_in_every_dtype_on_every_accelerator(name, dtype):
    for queries in (1, 512):
        operation = attention(2, 32, 8, queries, 512, 128, dtype)
        assert 1e-6 < fitted(name).seconds(operation) < 1e-2


def law_us(law, name, sizes):
    """Microseconds by a law, with the fastest of its tiles."""
    accelerator = accelerators()[name]
    names, seconds, tiles = LAWS[law]
    device = accelerator.figures() | {
        "peak_flops_per_s": accelerator.peak_flops_per_s["bfloat16"],
    }
    work = dict(zip(names.split(), sizes)) | {"itemsize": 2, "warm": 1, "causal": 1, "window": 0}
    work = {"batch": 1, "keys": work.get("queries"), **work}
    c = find_coefficients(law, accelerator.groups("bfloat16"))
    tile = (np.array(tiles, float).T,) if tiles else ()
    return 1e6 * float(np.min(seconds(np, c, device, work, *tile)))


LAWS = {
    "matmul": ("m n k", kernels.matmul_s, kernels.MATMUL_TILES),
    "context_attention": (
        "batch heads key_heads queries size",
        kernels.context_attention_s,
        (),
    ),
    "decode_attention": (
        "batch heads key_heads keys size",
        decode_attention_s,
        (),
    ),
}
