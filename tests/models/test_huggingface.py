"""Folders of Hugging Face: one file or many, and every way in which they may not fit."""

import dataclasses
import json
import pickle

import jax
import numpy as np
import pytest

from gimlax.errors import SpecError
from gimlax.models import RopeScaling, load_huggingface, open_huggingface
from gimlax.models.safetensors import Safetensors
from tests.models.gguf_files import TINY, TINY_EXPERTS
from tests.models.safetensors_files import config_of, tensors_of, write_folder

ONE = "model.safetensors"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
CONFIGS = {
    "llama, tied": TINY,
    "llama, untied": dataclasses.replace(TINY, tied=False, norm_eps=1e-6),
    "mixtral": dataclasses.replace(TINY_EXPERTS, sliding_window=5),
    "one expert": dataclasses.replace(TINY_EXPERTS, num_experts=1, num_chosen=1),
}


@pytest.fixture(name="folder")
def folder_fixture(tmp_path):
    """A folder that can be made wrong: config keys and tensors that are changed or (None) left
    out."""

    def write(config=TINY, tensors=None, **changes):
        held = tensors_of(config)[0] | (tensors or {})
        held = {name: values for name, values in held.items() if values is not None}
        return write_folder(tmp_path / "model", config_of(config, **changes), {ONE: held})

    return write


@pytest.fixture(name="sharded")
def sharded_fixture(tmp_path):
    """A folder of two files with an index that can be made wrong."""

    def write(config=TINY_EXPERTS, more=None, **index):
        tensors = tensors_of(config)[0]
        shards = {FIRST: {}, SECOND: {}}
        for number, (name, values) in enumerate(tensors.items()):
            shards[(FIRST, SECOND)[number % 2]][name] = values
        where = {name: file for file, held in shards.items() for name in held} | index
        where = {name: file for name, file in where.items() if file is not None}
        for file, held in (more or {}).items():
            shards[file] = shards.get(file, {}) | held
        return write_folder(tmp_path / "model", config_of(config), shards, index=where)

    return write


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_comes_back(folder, name):
    config = CONFIGS[name]
    read, params = load_huggingface(folder(config))
    assert read == config
    jax.tree.map(np.testing.assert_array_equal, params, tensors_of(config)[1])


def test_a_model_comes_back_from_two_files(sharded):
    read, params = load_huggingface(sharded())
    assert read == TINY_EXPERTS
    jax.tree.map(np.testing.assert_array_equal, params, tensors_of(TINY_EXPERTS)[1])


def test_a_dtype_is_that_of_parameters_computation_and_cache(folder):
    config, params = load_huggingface(folder(), dtype="bfloat16")
    assert config == TINY.with_dtype("bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_weights_of_any_float_become_those_of_the_model(folder, kind):
    narrow = {name: values.astype(kind) for name, values in tensors_of(TINY)[0].items()}
    _, params = load_huggingface(folder(tensors=narrow))
    expected = jax.tree.map(
        lambda leaf: np.asarray(leaf).astype(kind).astype(np.float32), tensors_of(TINY)[1]
    )
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_opening_reads_no_weights_and_a_leaf_gives_the_part_that_is_asked_for(sharded, monkeypatch):
    read = []
    whole = Safetensors.read
    monkeypatch.setattr(Safetensors, "read", lambda self, n: read.append(n) or whole(self, n))
    leaves = {leaf.path: leaf for leaf in open_huggingface(sharded()).leaves}
    assert read == []
    up = leaves["layers", 1, "mlp", "up"]
    expected = tensors_of(TINY_EXPERTS)[1]["layers"][1]["mlp"]["up"]
    part = (slice(1, 2), slice(3, 7), slice(0, 5))
    np.testing.assert_array_equal(up.read(part), expected[part])
    assert read == ["model.layers.1.block_sparse_moe.experts.1.w3.weight"]
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = jax.make_array_from_callback(up.shape, sharding, up.read)
    np.testing.assert_array_equal(placed, expected)
    assert up.num_bytes == expected.nbytes


def test_progress_counts_the_bytes_of_the_files(folder):
    calls = []
    _, params = load_huggingface(folder(), progress=lambda done, total: calls.append((done, total)))
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert len(calls) == len(jax.tree.leaves(params))
    assert calls[-1] == (total, total)


LLAMA3 = {
    "factor": 8,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=16)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": LLAMA3 | {"rope_type": "llama3"}},
        {"rope_scaling": LLAMA3 | {"type": "llama3"}},
        {
            "rope_theta": None,
            "rope_parameters": LLAMA3 | {"rope_type": "llama3", "rope_theta": 1e4},
        },
    ],
)
def test_a_scaling_of_rotary_frequencies_is_read_as_files_of_any_age_have_it(folder, changes):
    config = open_huggingface(folder(**changes)).config
    assert config == dataclasses.replace(TINY, rope_scaling=SCALING)


def test_what_a_config_leaves_out_is_what_transformers_takes(folder):
    config = dataclasses.replace(TINY, num_kv_heads=4, tied=False, norm_eps=1e-6)
    absent = dict.fromkeys(("head_dim", "num_key_value_heads", "rope_theta", "rms_norm_eps"))
    assert open_huggingface(folder(config, tie_word_embeddings=None, **absent)).config == config


def test_tensors_that_follow_from_the_config_may_be_there(folder):
    tensors = {
        "lm_head.weight": np.ones((TINY.vocab_size, TINY.width), np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32),
    }
    assert load_huggingface(folder(tensors=tensors))[0] == TINY


QUERY, UP = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"
UNFIT = {
    "missing": (
        {UP: None},
        r"\['layers'\]\[0\]\['mlp'\]\['up'\] \(model.layers.0.mlp.up_proj.*"
        r"model \(24, 16\), file nothing",
    ),
    "extra": ({"x.weight": np.ones(3, np.float32)}, r"\(x.weight\): model nothing, file \(3,\)"),
    "transposed": (
        {UP: np.ones((16, 24), np.float32)},
        r"model \(24, 16\), file \(16, 24\), transposed",
    ),
    "other shape": ({QUERY: np.ones((8, 16), np.float32)}, r"model \(16, 16\), file \(8, 16\)"),
    "whole numbers": (
        {UP: np.ones((24, 16), np.int32)},
        r"model floats \(24, 16\), file I32 \(24, 16\)",
    ),
    "no head": ({"model.norm.weight": None}, r"\['norm'\]\['scale'\]"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_weights_that_do_not_fit_are_listed_with_both_shapes(folder, name):
    tensors, words = UNFIT[name]
    path = folder(tensors=tensors)
    with pytest.raises(SpecError, match=words) as caught:
        open_huggingface(path)
    assert str(path) in str(caught.value)


def test_a_missing_expert_is_named_with_its_row(folder):
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    with pytest.raises(SpecError, match=r"\['mlp'\]\['down'\]\[2\] .* model \(16, 24\), file noth"):
        open_huggingface(folder(TINY_EXPERTS, tensors={name: None}))


def test_at_most_ten_are_listed(folder):
    with pytest.raises(SpecError, match=r"and 10 more") as caught:
        open_huggingface(folder(hidden_size=32, head_dim=8))
    assert str(caught.value).count("model (") == 10


REFUSED = {
    "architecture": ({"model_type": "gpt2"}, "type 'gpt2', which is not .*llama.*mixtral"),
    "no architecture": ({"model_type": None}, "no 'model_type'"),
    "quantised": ({"quantization_config": {"bits": 4}}, "no 'quant_method', which is needed"),
    "quantised by": (
        {"quantization_config": {"quant_method": "gptq"}},
        r"quantised by 'gptq', which is not supported; supported are fp8, .*compressed-tensors \(",
    ),
    "quantised to": (
        {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
        "by 'compressed-tensors', format 'pack-quantized', which is not supported",
    ),
    "blocks": (
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 0.5]}},
        "'weight_block_size' is .*needed are whole numbers",
    ),
    "activation": ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu', only 'silu' is"),
    "bias": ({"attention_bias": True}, "'attention_bias' is True, only False"),
    "text": ({"hidden_size": "16"}, "'hidden_size' is '16', needed is a int"),
    "bool": ({"hidden_size": True}, "'hidden_size' is True, needed is a int"),
    "lacking": ({"intermediate_size": None}, "no 'intermediate_size', which is needed"),
    "zero": ({"num_attention_heads": 0}, "num_heads is 0"),
    "layers": ({"num_hidden_layers": 1 << 40}, "announces a model of 9895604649984 tensors"),
    "yarn": ({"rope_scaling": {"rope_type": "yarn"}}, "scaled by 'yarn'.*default, llama3"),
    "no factor": ({"rope_scaling": {"rope_type": "llama3"}}, "no 'factor', which is needed"),
    "scaling": ({"rope_scaling": [1]}, r"'rope_scaling' is \[1\], needed is a dict"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_config_that_cannot_be_computed_is_refused(folder, name):
    changes, words = REFUSED[name]
    path = folder(**changes)
    with pytest.raises(SpecError, match=words) as caught:
        open_huggingface(path)
    assert str(path / "config.json") in str(caught.value)


def test_many_experts_are_refused_before_anything_is_made_of_them(folder):
    with pytest.raises(SpecError, match=r"announces a model of 6442450956 tensors or more"):
        open_huggingface(folder(TINY_EXPERTS, num_local_experts=1 << 30))


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "no sound JSON"), ("[]", "holds a list"), ("[" * 100000, "nests too deep")],
)
def test_a_config_that_is_none_is_refused(folder, text, words):
    path = folder()
    (path / "config.json").write_text(text)
    with pytest.raises(SpecError, match=words):
        open_huggingface(path)


EXTRA = {"x.weight": np.ones(3, np.float32)}
NORM = "model.norm.weight"
MISFITS = {
    "outside": ({NORM: "../other.safetensors"}, r"names '../other.safetensors', which is no file"),
    "absolute": ({NORM: "/etc/passwd"}, r"names '/etc/passwd', which is no file of its own"),
    "backslash": ({NORM: "a\\b"}, r"which is no file of its own"),
    "parent": ({NORM: ".."}, r"names '..', which is no file"),
    "missing shard": ({NORM: "model-3.safetensors"}, r"lacks 1 of the 3 .*'model-3.safetensors'"),
    "missing tensor": (
        {"x.weight": FIRST},
        r"00001-of-00002.safetensors' has no tensor 'x.weight'",
    ),
    "other file": ({NORM: SECOND}, r"00002-of-00002.safetensors' has no tensor 'model.norm"),
    "not named": ({NORM: None}, r"has tensor 'model.norm.weight', which .* does not name"),
    "number": ({NORM: 3}, "no 'weight_map' from tensors to files"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_an_index_that_does_not_fit_is_refused(sharded, name):
    index, words = MISFITS[name]
    with pytest.raises(SpecError, match=words):
        open_huggingface(sharded(**index))


def test_a_tensor_in_two_files_is_named_with_both(sharded):
    more = {FIRST: EXTRA, SECOND: EXTRA}
    with pytest.raises(SpecError, match=rf"'x.weight' is in '.*{FIRST}' and in '.*{SECOND}'"):
        open_huggingface(sharded(more=more, **{"x.weight": FIRST}))


def test_several_files_without_an_index_are_refused(sharded):
    path = sharded()
    (path / "model.safetensors.index.json").unlink()
    with pytest.raises(SpecError, match=r"has 2 safetensors files .* no index"):
        open_huggingface(path)


def test_two_indexes_are_refused(sharded):
    path = sharded()
    (path / "other.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(SpecError, match=r"several indexes"):
        open_huggingface(path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", ONE])
def test_a_pickle_is_refused_with_the_advice_to_convert(folder, name):
    path = folder()
    (path / ONE).unlink()
    (path / name).write_bytes(pickle.dumps({"a": [1]}, protocol=2))
    with pytest.raises(SpecError, match=rf"{name}' is a pickle.*convert it"):
        open_huggingface(path)


def test_a_folder_without_weights_says_what_to_give(folder):
    path = folder()
    (path / ONE).unlink()
    with pytest.raises(SpecError, match=r"no safetensors file; give a folder"):
        open_huggingface(path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"config '.*absent/config.json' cannot be read"):
        open_huggingface(tmp_path / "absent")
