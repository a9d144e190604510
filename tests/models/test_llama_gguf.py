"""A Llama written to a file and read back, and every way in which it may not fit."""

import dataclasses

import jax
import numpy as np
import pytest

from gimlax.errors import SpecError
from gimlax.models import (
    RopeScaling,
    abstract_params,
    iter_llama,
    llama_config,
    load_llama,
    open_gguf,
    read_gguf,
)
from tests.models.gguf_files import (
    STRING,
    TINY,
    TINY_EXPERTS,
    TYPE_F32,
    U32,
    field,
    file_bytes,
    float_tensors,
    llama_fields,
    llama_file,
    llama_tensors,
    tensor_info,
)


@pytest.fixture(name="write")
def write_fixture(tmp_path):
    def write(content):
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_come_back_with_their_rows_in_order(write, tied):
    config = dataclasses.replace(TINY, tied=tied)
    read, params = load_llama(write(llama_file(config)))
    assert dataclasses.replace(read, norm_eps=config.norm_eps) == config
    assert read.norm_eps == pytest.approx(config.norm_eps)
    expected = llama_tensors(config)[1]
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert jax.tree.structure(params) == jax.tree.structure(abstract_params(config))


def test_a_dtype_is_that_of_parameters_computation_and_cache(write):
    config, params = load_llama(write(llama_file()), dtype="bfloat16")
    assert config == llama_config(read_gguf(write(llama_file())), dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    assert (config.param_dtype, config.compute_dtype, config.cache_dtype) == ("bfloat16",) * 3


def test_progress_counts_the_bytes_of_the_file(write):
    file = read_gguf(write(llama_file()))
    calls = []
    load_llama(file, progress=lambda done, total: calls.append((done, total)))
    total = sum(info.num_bytes for info in file.tensors.values())
    assert len(calls) == len(file.tensors)
    assert calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_parameters_are_read_one_by_one(write, monkeypatch):
    file = read_gguf(write(llama_file()))
    read = []
    dequantize = type(file).dequantize
    monkeypatch.setattr(
        type(file),
        "dequantize",
        lambda self, name, *rest: read.append(name) or dequantize(self, name, *rest),
    )
    parameters = iter_llama(file, llama_config(file))
    next(parameters)
    assert len(read) == 1


def test_weights_that_do_not_fit_are_listed_with_both_shapes(write):
    tensors, _ = llama_tensors(TINY)
    tensors["blk.1.attn_q.weight"] = np.zeros((8, 16), np.float32)
    tensors["blk.0.extra.weight"] = np.zeros((3,), np.float32)
    del tensors["blk.0.ffn_up.weight"]
    path = write(file_bytes(llama_fields(TINY), *float_tensors(tensors)))
    with pytest.raises(SpecError) as caught:
        load_llama(path)
    message = str(caught.value)
    assert (
        "['layers'][1]['attention']['query'] (blk.1.attn_q.weight): model (16, 16), file (8, 16)"
        in message
    )
    assert (
        "['layers'][0]['mlp']['up'] (blk.0.ffn_up.weight): model (24, 16), file nothing" in message
    )
    assert "(blk.0.extra.weight): model nothing, file (3,)" in message


def test_at_most_ten_are_listed(write):
    wide = dataclasses.replace(TINY, width=32, head_size=8)
    infos, data = float_tensors(llama_tensors(TINY)[0])
    with pytest.raises(SpecError, match=r"and 10 more") as caught:
        load_llama(write(file_bytes(llama_fields(wide), infos, data)))
    assert str(caught.value).count("model (") == 10


def test_nothing_is_read_before_everything_is_checked(write, monkeypatch):
    tensors, _ = llama_tensors(TINY)
    infos, data = float_tensors(tensors)
    last = next(reversed(tensors))
    data += b"\0" * (-len(data) % 32)
    infos[-1] = tensor_info(last, tensors[last].shape[::-1], 24, len(data))  # I8
    file = read_gguf(write(file_bytes(llama_fields(TINY), infos, data + b"\0" * 4096)))
    monkeypatch.setattr(type(file), "dequantize", lambda *_: pytest.fail("read too early"))
    with pytest.raises(SpecError, match=f"'{last}' is quantised as I8"):
        load_llama(file)


REFUSED = {
    "architecture": (field("general.architecture", STRING, "mamba"), "architecture 'mamba'"),
    "block_count": (field("llama.block_count", U32, 1 << 31), "announces 2147483648 layers"),
    "experts": (field("llama.expert_count", U32, 8), "num_chosen is 0"),
    "scaling": (field("llama.rope.scaling.type", STRING, "yarn"), "scaling.type is 'yarn'"),
    "rotated": (field("llama.rope.dimension_count", U32, 2), "dimension_count is 2, only 4 is"),
    "value_length": (field("llama.attention.value_length", U32, 2), "value_length is 2"),
    "head_count_kv": (field("llama.attention.head_count_kv", U32, 3), "num_kv_heads 3"),
    "head_count": (field("llama.attention.head_count", U32, 0), "num_heads is 0"),
    "embedding_length": (field("llama.embedding_length", STRING, "16"), "embedding_length.* a str"),
    "context_length": (None, "no metadata key 'llama.context_length'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_computed_is_refused(write, name):
    content, words = REFUSED[name]
    path = write(llama_file(**{name: content}))
    with pytest.raises(SpecError, match=words) as caught:
        load_llama(path)
    assert str(path) in str(caught.value)


def test_a_file_of_something_else_is_refused(write):
    path = write(file_bytes([], [tensor_info("t", (4,), TYPE_F32, 0)], b"\0" * 16))
    with pytest.raises(SpecError, match=r"general.architecture"):
        load_llama(path)


@pytest.mark.parametrize("single", [False, True])
def test_experts_come_stacked_or_one_by_one(write, single):
    read, params = load_llama(write(llama_file(TINY_EXPERTS, single=single)))
    assert dataclasses.replace(read, norm_eps=TINY_EXPERTS.norm_eps) == TINY_EXPERTS
    expected = llama_tensors(TINY_EXPERTS)[1]
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("single", [False, True])
def test_a_part_of_a_parameter_is_read_alone(write, single, monkeypatch):
    file = read_gguf(write(llama_file(TINY_EXPERTS, single=single)))
    expected = llama_tensors(TINY_EXPERTS)[1]["layers"][1]["mlp"]["up"]
    (leaf,) = (x for x in open_gguf(file).leaves if x.path == ("layers", 1, "mlp", "up"))
    read = []
    dequantize = type(file).dequantize
    monkeypatch.setattr(
        type(file),
        "dequantize",
        lambda self, name, *rest: read.append(name) or dequantize(self, name, *rest),
    )
    part = (slice(1, 3), slice(4, 9))
    np.testing.assert_array_equal(leaf.read(part), expected[part])
    assert len(read) == (2 if single else 1)
    assert (leaf.shape, leaf.dtype) == (expected.shape, np.float32)


def test_more_experts_than_there_are_tensors_are_refused(write):
    many = field("llama.expert_count", U32, 1 << 31)
    with pytest.raises(SpecError, match=r"announces 2147483648 experts in 2 layers and has"):
        load_llama(write(llama_file(TINY_EXPERTS, single=True, experts=many)))
    with pytest.raises(SpecError, match=r"model \(2147483648, 24, 16\), file \(3, 24, 16\)"):
        load_llama(write(llama_file(TINY_EXPERTS, experts=many)))


def with_frequencies(config, divisors):
    tensors, _ = llama_tensors(config)
    tensors["rope_freqs.weight"] = np.asarray(divisors, np.float32)
    return file_bytes(llama_fields(config), *float_tensors(tensors))


def test_a_scaling_of_rotary_frequencies_is_recognised_by_its_divisors(write):
    config = dataclasses.replace(TINY, rope_theta=500000.0, head_size=16)
    divisors = [1.0, 1.0, 1.0, 1.0, 3.0935, 8.0, 8.0, 8.0]
    frequency = 500000.0 ** (-4 / 8)
    smooth = (8192 * frequency / (2 * np.pi) - 1) / 3
    divisors[4] = 1 / ((1 - smooth) / 8 + smooth)
    read = llama_config(read_gguf(write(with_frequencies(config, divisors))))
    assert read.rope_scaling == RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192
    )
    divisors[4] = 2.0
    with pytest.raises(SpecError, match=r"rope_freqs.weight\) divides .* in another way"):
        llama_config(read_gguf(write(with_frequencies(config, divisors))))
    with pytest.raises(SpecError, match=r"rope_freqs.weight\) has shape \(3,\).* \(8,\)"):
        llama_config(read_gguf(write(with_frequencies(config, divisors[:3]))))
