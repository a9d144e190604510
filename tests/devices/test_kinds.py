"""The catalogue of device kinds, and what a kind answers."""

import dataclasses

import pytest

from gimlax.devices import DeviceKind, catalogue, load_kind
from gimlax.devices.kinds import FIGURES
from gimlax.errors import SpecError

PLAIN = DeviceKind(
    name="plain",
    vendor="nobody",
    memory_bytes=10,
    memory_bytes_per_s=1.0,
    peak_flops_per_s=(("float32", 4.0), ("bfloat16", 8.0)),
)


@pytest.mark.parametrize(
    ("reported", "name", "bfloat16"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM", 989e12),
        ("NVIDIA H200", "H200 SXM", 989e12),
        ("NVIDIA B200", "B200 SXM", 2250e12),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB", 312e12),
        ("NVIDIA L4", "L4", 121e12),
        ("AMD Instinct MI300X", "MI300X", 1307e12),
        ("Gaudi 3", "Gaudi 3", 1835e12),
        ("TPU v5 lite", "TPU v5e", 197e12),
        ("TPU v5", "TPU v5p", 459e12),
        ("TPU v6 lite", "TPU v6e", 918e12),
        ("TPU7x", "TPU7x", 2307e12 / 2),
        ("EPYC 9654", "EPYC 9654", 14.7e12),
        ("cpu", "cpu", 412e9),
    ],
)
def test_a_kind_is_found_by_what_pjrt_reports(reported, name, bfloat16):
    kind = load_kind(reported)
    assert kind.name == name
    assert kind.peak("bfloat16") == bfloat16


def test_a_part_of_a_name_finds_nothing_and_the_error_names_the_folder():
    for unknown in ("H100", "NVIDIA H100", "TPU v5 litepod", "", "CPU"):
        with pytest.raises(SpecError, match=r"'H100 SXM'.*gimlax/devices/catalogue/kinds"):
            load_kind(unknown)


@pytest.mark.parametrize("kind", catalogue(), ids=lambda kind: kind.name)
def test_every_figure_has_a_source_and_a_date(kind):
    figures = {"memory_bytes", "memory_bytes_per_s", *dict(kind.peak_flops_per_s)}
    figures |= {figure for figure in FIGURES if getattr(kind, figure) is not None}
    if kind.interconnect:
        figures.add("interconnect.bytes_per_s")
        figures |= {"interconnect.num_devices"} if kind.interconnect.num_devices else set()
    assert set(dict(kind.sources)) == figures
    for figure, source in kind.sources:
        assert source.rpartition(", ")[0], figure
        assert source.rpartition(", ")[2] >= "2026", figure


def test_names_and_aliases_mean_one_kind():
    names = [kind.name for kind in catalogue()]
    assert len(names) == len(set(names))
    aliases = [alias for kind in catalogue() for alias in kind.aliases]
    for alias in aliases:
        assert aliases.count(alias) == 1
        assert alias not in names or load_kind(alias).name == alias


@pytest.mark.parametrize(
    ("dtype", "rate"),
    [
        ("float32", 4.0),
        ("bfloat16", 8.0),
        ("float16", 8.0),
        ("float8_e4m3fn", 8.0),
        ("float4_e2m1fn", 8.0),
        ("int8", 8.0),
        ("uint4", 8.0),
        ("int32", 4.0),
        ("uint32", 4.0),
        ("bool", 4.0),
    ],
)
def test_what_stands_in_for_a_dtype_without_a_figure(dtype, rate):
    assert PLAIN.peak(dtype) == rate


def test_a_listed_dtype_goes_before_a_stand_in():
    rates = (*PLAIN.peak_flops_per_s, ("float8", 16.0), ("int8", 32.0), ("float64", 2.0))
    kind = dataclasses.replace(PLAIN, peak_flops_per_s=rates)
    assert kind.peak("float4_e2m1fn") == kind.peak("float6_e2m3fn") == 16.0
    four = dataclasses.replace(PLAIN, peak_flops_per_s=(*rates, ("float4", 64.0)))
    assert four.peak("float4_e2m1fn") == 64.0
    assert [kind.peak(d) for d in ("float8_e5m2", "int4", "float64")] == [16.0, 32.0, 2.0]


def test_a_dtype_that_nothing_stands_in_for_is_an_error():
    with pytest.raises(SpecError, match=r"'plain' lists no rate for float64, only float32, bf"):
        PLAIN.peak("float64")
    with pytest.raises(SpecError, match="complex64"):
        PLAIN.peak("complex64")


def test_a_kind_refuses_figures_that_cannot_be():
    with pytest.raises(SpecError) as error:
        DeviceKind(
            name="x",
            vendor="v",
            memory_bytes=0,
            memory_bytes_per_s=float("nan"),
            tdp_watts=-1.0,
            peak_flops_per_s=(("bfloat16", 0.0),),
        )
    for part in ("'x'", "memory_bytes is 0", "nan", "tdp_watts is -1", "bfloat16 is 0", "float32"):
        assert part in str(error.value)
