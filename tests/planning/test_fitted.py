"""Rates from fitted coefficients: few of them, finite, never decreasing."""

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gimlax.devices.catalogue import catalogue
from gimlax.graph.operations import ATTENTION, ELEMENTWISE, MATMUL, Operation
from gimlax.planning.rates import CARD, FITTED, Fitted, Roofline, rates_for
from gimlax.planning.rates.fitted import accelerators, coefficients
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


def attention(batch, heads, key_heads, queries, keys, size):
    return Operation(
        kind=ATTENTION,
        dims=(batch, heads, key_heads, queries, keys, size),
        dtype="bfloat16",
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


@given(
    name=st.sampled_from(LISTED),
    batch=st.integers(1, 64),
    keys=st.integers(2, 20_000),
    prompt=st.booleans(),
)
def test_attention_over_more_keys_never_takes_less(name, batch, keys, prompt):
    rates = fitted(name)
    small, large = (
        rates.seconds(attention(batch, 32, 8, n if prompt else 1, n, 128)) for n in (keys, keys * 2)
    )
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
    cluster = cluster_of((KINDS["H100 SXM"], KINDS["TPU v5e"]))
    assert [rates_for(cluster, mesh.name).source for mesh in cluster.meshes] == [FITTED, CARD]
