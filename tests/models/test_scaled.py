"""Weights of 8 and 4 bits with scales: the numbers are those of numpy and ml_dtypes."""

import jax
import ml_dtypes
import numpy as np
import pytest

from gimlax.errors import SpecError
from gimlax.models import load_huggingface, open_huggingface, scaled
from tests.models.gguf_files import TINY, TINY_EXPERTS
from tests.models.safetensors_files import config_of, entry, file_of, tensors_of, write_folder

E4M3, E5M2 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)
E8M0, FP4 = np.dtype(ml_dtypes.float8_e8m0fnu), np.dtype(ml_dtypes.float4_e2m1fn)
QUANTISED = "model.layers.1.mlp.down_proj"  # [16, 24]
SHAPE = (16, 24)


def floats(dtype, seed=0):
    return (np.random.default_rng(seed).normal(size=SHAPE) * 2).astype(dtype)


def scales(shape, dtype=np.float32, seed=1):
    return np.exp2(np.random.default_rng(seed).uniform(-3, 3, shape)).astype(dtype)


def spread(scale, blocks):
    """A scale for each number: the slow way."""
    rows = [
        [scale[i // blocks[0]][j // blocks[1]] for j in range(SHAPE[1])] for i in range(SHAPE[0])
    ]
    return np.array(rows).astype(np.float32)


def packed(values):
    """Two in a byte, the first in its lower half."""
    raw = values.view(np.uint8).reshape(SHAPE[0], -1, 2)
    return raw[..., 0] | raw[..., 1] << 4


def case(method, tensors, factors, weight, **more):
    """Config, tensors by the end of their names, and what comes out."""
    return {"quant_method": method, **more}, tensors, weight.astype(np.float32) * factors


def cases():
    weight, small = floats(E4M3), floats(FP4)
    blocks, rows, sixteens = scales((4, 4)), scales((16, 1)), scales((16, 3), E8M0)
    nv = scales((16, 3), E4M3)
    whole = np.float32(0.37)
    yield (
        "blocks",
        case(
            "fp8",
            {"weight": weight, "weight_scale_inv": blocks},
            spread(blocks, (5, 7)),
            weight,
            weight_block_size=[5, 7],
            activation_scheme="dynamic",
        ),
    )
    narrow = blocks.astype(ml_dtypes.bfloat16)
    yield (
        "blocks whose size follows",
        case("fp8", {"weight": weight, "weight_scale_inv": narrow}, spread(narrow, (4, 6)), weight),
    )
    yield (
        "one",
        case(
            "modelopt",
            {"weight": weight, "weight_scale": whole, "input_scale": whole},
            whole,
            weight,
        ),
    )
    yield (
        "one of one dim",
        case(
            "compressed-tensors",
            {"weight": floats(E5M2), "weight_scale": whole.reshape(1)},
            whole,
            floats(E5M2),
            format="float-quantized",
        ),
    )
    yield (
        "rows",
        case(
            "fbgemm_fp8",
            {"weight": weight, "weight_scale": rows, "input_scale_ub": whole.reshape(1)},
            rows,
            weight,
        ),
    )
    yield (
        "rows of one dim",
        case("fbgemm_fp8", {"weight": weight, "weight_scale": rows[:, 0]}, rows, weight),
    )
    yield (
        "nvfp4, divided",
        case(
            "compressed-tensors",
            {
                "weight_packed": packed(small),
                "weight_scale": nv,
                "weight_global_scale": whole.reshape(1),
                "input_global_scale": whole.reshape(1),
            },
            spread(nv.astype(np.float32) / whole, (1, 8)),
            small,
            format="nvfp4-pack-quantized",
        ),
    )
    yield (
        "nvfp4, times",
        case(
            "modelopt",
            {"weight": packed(small), "weight_scale": nv, "weight_scale_2": whole},
            spread(nv.astype(np.float32) * whole, (1, 8)),
            small,
            quant_algo="NVFP4",
        ),
    )
    yield (
        "mxfp4",
        case(
            "compressed-tensors",
            {"weight_packed": packed(small), "weight_scale": sixteens.view(np.uint8)},
            spread(sixteens.astype(np.float32), (1, 8)),
            small,
            format="mxfp4-pack-quantized",
        ),
    )
    yield (
        "powers of two by name",
        case(
            "fp8",
            {"weight": weight, "weight_scale_inv": scales((4, 4), E8M0)},
            spread(scales((4, 4), E8M0).astype(np.float32), (4, 6)),
            weight,
        ),
    )


CASES = dict(cases())


def folder(tmp_path, method, changed):
    """A model one of whose weights is replaced by tensors, by the end of their names."""
    tensors, params = tensors_of(TINY)
    del tensors[f"{QUANTISED}.weight"]
    tensors |= {f"{QUANTISED}.{kind}": np.asarray(of) for kind, of in changed.items()}
    path = tmp_path / "m"
    config = config_of(TINY, quantization_config=method)
    return write_folder(path, config, {"model.safetensors": tensors}), params


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_are_those_of_numpy(tmp_path, name, dtype, monkeypatch):
    monkeypatch.setattr(scaled, "CHUNK", 100)  # a few rows at once
    method, tensors, expected = CASES[name]
    path, params = folder(tmp_path, method, tensors)
    _, found = load_huggingface(path, dtype=dtype)
    params["layers"][1]["mlp"]["down"] = expected
    assert np.abs(expected).max() > 1
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, np.asarray(b).astype(a.dtype)), found, params
    )


@pytest.mark.parametrize("name", CASES)
def test_a_part_is_that_part_of_the_whole(tmp_path, name):
    method, tensors, expected = CASES[name]
    path, _ = folder(tmp_path, method, tensors)
    leaves = {leaf.path: leaf for leaf in open_huggingface(path).leaves}
    leaf = leaves["layers", 1, "mlp", "down"]
    for part in (
        (slice(3, 11),),
        (slice(None), slice(5, 22)),
        (slice(9, 10), slice(0, 1)),
        (slice(2, 15, 3), slice(1, 24, 5)),
        (slice(4, 4),),
    ):
        np.testing.assert_array_equal(leaf.read(part), expected[part])


def test_two_float4_of_the_format_itself(tmp_path):
    """F4 has a name in safetensors, and its shape counts numbers."""
    values, scale = floats(FP4), scales((16, 3), E4M3)
    tensors, _ = tensors_of(TINY)
    del tensors[f"{QUANTISED}.weight"]
    header, data = {}, b""
    for name, array in tensors.items():
        header[name] = entry("F32", list(array.shape), len(data), len(data) + array.nbytes)
        data += array.tobytes()
    for name, kind, shape, raw in (
        ("weight", "F4", SHAPE, packed(values)),
        ("weight_scale", "F8_E4M3", scale.shape, scale),
    ):
        header[f"{QUANTISED}.{name}"] = entry(kind, list(shape), len(data), len(data) + raw.nbytes)
        data += raw.tobytes()
    config = config_of(TINY, quantization_config={"quant_method": "modelopt"})
    path = write_folder(tmp_path / "m", config, {})
    (path / "model.safetensors").write_bytes(file_of(header, data))
    _, found = load_huggingface(path)
    expected = values.astype(np.float32) * spread(scale.astype(np.float32), (1, 8))
    np.testing.assert_array_equal(found["layers"][1]["mlp"]["down"], expected)


def test_each_expert_has_its_own_scale(tmp_path):
    tensors, _ = tensors_of(TINY_EXPERTS)
    for number, name in enumerate(sorted(name for name in tensors if "experts" in name)):
        tensors[name] = tensors[name].astype(E4M3)
        tensors[f"{name}_scale_inv"] = np.float32(number + 1)
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        weight = name.removesuffix("_scale_inv")
        assert weight in tensors
    config = config_of(TINY_EXPERTS, quantization_config={"quant_method": "fp8"})
    path = write_folder(tmp_path / "m", config, {"model.safetensors": tensors})
    _, found = load_huggingface(path)
    names = [f"model.layers.1.block_sparse_moe.experts.{n}.w3.weight" for n in range(3)]
    expected = [tensors[n].astype(np.float32) * tensors[f"{n}_scale_inv"] for n in names]
    np.testing.assert_array_equal(found["layers"][1]["mlp"]["up"], expected)


WEIGHT = floats(E4M3)
FP8 = {"quant_method": "fp8"}
REFUSED = {
    "no weight": ({"weight_scale": np.float32(1)}, FP8, "belongs to no weight"),
    "two weights": (
        {"weight": WEIGHT, "weight_packed": packed(floats(FP4)), "weight_scale": np.float32(1)},
        FP8,
        "down_proj.weight and .*down_proj.weight_packed",
    ),
    "two scales": (
        {"weight": WEIGHT, "weight_scale": np.float32(1), "weight_scale_inv": np.float32(1)},
        FP8,
        "weight_scale_inv and .*weight_scale to it; one of each",
    ),
    "whole numbers": (
        {"weight": np.ones(SHAPE, np.int8), "weight_scale": np.float32(1)},
        FP8,
        r"weight\) is I8 and has a scale; supported are F8_E4M3",
    ),
    "scale of whole numbers": (
        {"weight": WEIGHT, "weight_scale": np.ones((16, 1), np.int32)},
        FP8,
        r"weight_scale\) is I32; supported are F32",
    ),
    "powers for eight bits": (
        {"weight": WEIGHT, "weight_scale": np.ones((16, 1), np.uint8)},
        FP8,
        r"weight_scale\) is U8",
    ),
    "shape": (
        {"weight": WEIGHT, "weight_scale": np.ones((5, 24), np.float32)},
        FP8,
        r"has shape \(16, 24\), and .*weight_scale\) \(5, 24\)",
    ),
    "dims": (
        {"weight": WEIGHT, "weight_scale": np.ones((4, 4, 2), np.float32)},
        FP8,
        r"\(4, 4, 2\), which are not scales of it",
    ),
    "none": ({"weight": WEIGHT, "weight_scale": np.ones((0, 4), np.float32)}, FP8, r"\(0, 4\)"),
    "blocks": (
        {"weight": WEIGHT, "weight_scale_inv": np.ones((4, 4), np.float32)},
        FP8 | {"weight_block_size": [8, 8]},
        r"in blocks of \[8, 8\], and .*\(4, 4\)",
    ),
    "whole": (
        {
            "weight": packed(floats(FP4)),
            "weight_scale": np.ones((16, 3), E4M3),
            "weight_scale_2": np.ones(16, np.float32),
        },
        {"quant_method": "modelopt"},
        "weight_scale_2.* is no single F32",
    ),
    "packed shape": (
        {"weight": packed(floats(FP4))[:, :8], "weight_scale": np.ones((16, 2), E4M3)},
        {"quant_method": "modelopt"},
        r"model \(16, 24\), file \(16, 16\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_belong_together_is_refused(tmp_path, name):
    tensors, method, words = REFUSED[name]
    path, _ = folder(tmp_path, method, tensors)
    with pytest.raises(SpecError, match=words) as caught:
        open_huggingface(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_scale_that_is_not_finite_is_refused_when_it_is_read(tmp_path, value):
    path, _ = folder(tmp_path, FP8, {"weight": WEIGHT, "weight_scale": np.float32(value)})
    with pytest.raises(SpecError, match=r"weight_scale\) has scales that are not finite"):
        load_huggingface(path)


def test_scales_without_a_word_of_the_config_are_extra(tmp_path):
    tensors, _ = tensors_of(TINY)
    tensors[f"{QUANTISED}.weight_scale"] = np.float32(2)
    path = write_folder(tmp_path / "m", config_of(TINY), {"model.safetensors": tensors})
    with pytest.raises(SpecError, match=r"weight_scale\): model nothing"):
        open_huggingface(path)
