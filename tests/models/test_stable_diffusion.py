"""Stable Diffusion 3: sizes as published, guidance, the schedule, and the folder that it is in."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from gimlax import models
from gimlax.errors import SpecError
from gimlax.models.t5 import distance_buckets
from tests import specimens
from tests.models import diffusion_folder

PUBLISHED = {  # parameters; of a transformer without its table of positions, which is not trained
    "SD3_MEDIUM": 2_028_328_000,
    "SD35_MEDIUM": 2_243_171_520,
    "SD35_LARGE": 8_056_627_520,
    "CLIP_L": 123_650_304,
    "CLIP_G": 694_659_840,
    "T5_XXL": 4_762_310_656,
    "SD3_VAE": 49_545_475,
}
ABSOLUTE = 5e-6


@pytest.fixture(scope="module", name="written")
def written_fixture(tmp_path_factory):
    """(folder, the model in it)"""
    folder = tmp_path_factory.mktemp("written")
    return folder, diffusion_folder.write(folder)


@pytest.fixture(name="changed")
def changed_fixture(written, tmp_path):
    """Makes a folder of links in which one JSON file has other fields."""

    def change(name, **fields):
        for path in written[0].rglob("*"):
            if path.is_file():
                link = tmp_path / path.relative_to(written[0])
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
        found = json.loads((tmp_path / name).read_text()) | fields
        (tmp_path / name).unlink()
        (tmp_path / name).write_text(json.dumps(found))
        return tmp_path

    return change


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name):
    shapes = models.abstract_params(getattr(models, name))
    shapes.pop("positions" if isinstance(getattr(models, name), models.MMDiTConfig) else "", None)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PUBLISHED[name]


def test_a_folder_gives_the_model_back(written):
    folder, model = written
    config, params = models.load_stable_diffusion(folder)
    assert config == model.config
    jax.tree.map(np.testing.assert_array_equal, params, model.params)


def test_without_t5_the_context_ends_in_zeros(written, changed):
    _, model = written
    folder = changed("model_index.json", text_encoder_3=[None, None])
    config, params = models.load_stable_diffusion(folder)
    assert config.t5 is None and "t5" not in params
    tokens = np.ones((2, 5), np.int32)
    long = np.ones((2, 6), np.int32)
    text, pooled = jax.jit(models.encode_apply(config))(params, tokens, tokens, long)
    encode = jax.jit(models.encode_apply(model.config))
    whole, same = encode(model.params, tokens, tokens, long)
    assert text.shape == whole.shape
    np.testing.assert_array_equal(text[:, 5:], 0)
    np.testing.assert_allclose(text[:, :5], whole[:, :5], atol=ABSOLUTE)
    np.testing.assert_allclose(pooled, same, atol=ABSOLUTE)


def test_a_part_may_be_there_in_other_forms(changed):
    folder = changed("model_index.json")
    inside = folder / "text_encoder"
    (inside / "model.fp16.safetensors").write_bytes(b"which nobody opens")
    models.open_stable_diffusion(folder)
    (inside / "other.safetensors").write_bytes(b"which may be it")
    with pytest.raises(SpecError, match="has 3 safetensors files"):
        models.open_stable_diffusion(folder)


def test_guidance_goes_on_from_what_is_not_wanted():
    model = specimens.diffusion_model()
    small = dataclasses.replace(model.config.transformer, num_layers=1, dual_layers=())
    config = dataclasses.replace(model.config, transformer=small)
    params = specimens.drawn(models.abstract_diffusion_params(config))
    denoise = jax.jit(models.denoise_apply(config))
    rng = np.random.default_rng(1)
    latents, text, pooled = (
        rng.normal(size=x.shape).astype(np.float32) for x in model.inputs["denoise"][:3]
    )
    sigma, after, guidance = np.float32([0.8, 0.5, 3.0])
    both = denoise(params, latents, text, pooled, sigma, after, guidance)
    without, having = (
        denoise(params, latents, text[i : i + 1], pooled[i : i + 1], sigma, after, guidance)
        - latents
        for i in range(2)
    )
    expected = latents + without + guidance * (having - without)
    np.testing.assert_allclose(both, expected, atol=ABSOLUTE)
    assert np.abs(having - without).max() > 0.01


def test_sigmas_are_shifted_at_the_ends_and_once_more():
    sigmas = models.FlowMatching(shift=3.0).sigmas(3)
    lowest = 3 / 1000 / (1 + 2 / 1000)
    even = np.array([1, (1 + lowest) / 2, lowest])
    np.testing.assert_allclose(sigmas, [*(3 * even / (1 + 2 * even)), 0], rtol=1e-6)
    np.testing.assert_allclose(models.FlowMatching(shift=1).sigmas(2), [1, 0.001, 0], rtol=1e-6)


def test_near_distances_are_exact_and_far_ones_share_a_bucket():
    buckets = distance_buckets(300, 32, 128)
    assert buckets[0, :9].tolist() == [0, *range(17, 25)]
    assert buckets[8, :9].tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert set(buckets[0, 128:]) == {31} and set(buckets[299, :171]) == {15}
    assert (np.diff(buckets[0, 1:]) >= 0).all()


def test_prompts_become_ids_of_one_length(written):
    pytest.importorskip("tokenizers")
    found = models.load_prompt_tokenizers(written[0])
    ids = json.loads((written[0] / "tokenizer" / "vocab.json").read_text())
    start, end = ids["<|startoftext|>"], ids["<|endoftext|>"]
    words = [ids["the</w>"], ids["fox</w>"], ids["!</w>"]]
    texts = ["The  fox!", "", "the fox!! the fox"]
    first = found["clip_l"].encode(texts, length=7)
    assert first.dtype == np.int32
    assert first.tolist() == [
        [start, *words, end, end, end],
        [start, *[end] * 6],
        [start, *words[:2], ids["!"], words[2], words[0], end],
    ]
    assert found["clip_g"].encode(texts[:1], length=7).tolist() == [
        [start, *words[:2], ids["!"], end, ids["!"], ids["!"]]
    ]
    assert found["t5"].encode(["ab"], length=5).tolist() == [[3, 4, 5, 1, 0]]
    assert found["t5"].encode(["abcdefgh"], length=5).tolist() == [[3, 4, 5, 6, 1]]
    with pytest.raises(SpecError, match="length is 2, of which 2 stand around"):
        found["clip_l"].encode(texts, length=2)
    with pytest.raises(SpecError, match="prompt 1 has the lone surrogate"):
        found["clip_l"].encode(["a", "\ud800"], length=7)


@pytest.mark.parametrize(
    ("name", "fields", "fault"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "FluxPipeline.*not supported"),
        ("model_index.json", {"text_encoder": [None, None]}, "'text_encoder' is .*None"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderTiny"]}, "AutoencoderTiny"),
        ("model_index.json", {"scheduler": ["diffusers", "DDIM"]}, "DDIM"),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True}, "dynamic_shifting"),
        ("scheduler/scheduler_config.json", {"shift_terminal": 0.02}, "shift_terminal"),
        ("scheduler/scheduler_config.json", {"shift": 0.0}, "shift is 0"),
        ("transformer/config.json", {"qk_norm": "layer_norm"}, "'qk_norm' is 'layer_norm'"),
        ("transformer/config.json", {"caption_projection_dim": 13}, "caption_projection_dim.*12"),
        ("transformer/config.json", {"dual_attention_layers": [2]}, r"\[2\].*0 to 1"),
        ("transformer/config.json", {"dual_attention_layers": [True]}, "whole numbers"),
        ("transformer/config.json", {"qk_norm": None}, "norm_q.*model nothing"),
        ("transformer/config.json", {"pos_embed_max_size": 9}, r"\(1, 81, 12\).*\(1, 64, 12\)"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "'hidden_act' is 'relu'"),
        ("text_encoder_3/config.json", {"feed_forward_proj": "relu"}, "feed_forward_proj"),
        ("text_encoder_3/config.json", {"relative_attention_num_buckets": 6}, "num_buckets is 6"),
        ("vae/config.json", {"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types"),
        ("vae/config.json", {"norm_num_groups": 5}, r"widths has \[6, 9\]"),
    ],
)
def test_what_does_not_fit_is_said(changed, name, fields, fault):
    with pytest.raises(SpecError, match=fault):
        models.open_stable_diffusion(changed(name, **fields))


@pytest.mark.parametrize(
    ("name", "fields", "fault"),
    [
        ("tokenizer/tokenizer_config.json", {"pad_token": "<pad>"}, "'<pad>', no token"),
        ("tokenizer/tokenizer_config.json", {"pad_token": None}, "no 'pad_token'"),
        ("tokenizer_3/tokenizer.json", {"model": {}}, "no tokenizer that can be read"),
    ],
)
def test_faults_of_tokenizers_are_said(changed, name, fields, fault):
    with pytest.raises(SpecError, match=fault):
        models.load_prompt_tokenizers(changed(name, **fields))


def test_parts_that_do_not_fit_each_other_are_said():
    config = specimens.diffusion_model().config
    wide = dataclasses.replace(config.clip_l, projection_width=8, width=24)
    other = dataclasses.replace(config.vae, channels=5)
    with pytest.raises(SpecError, match=r"12 numbers, and both CLIPs give 13.*28.*give 36.*5"):
        dataclasses.replace(config, clip_l=wide, vae=other)
    with pytest.raises(SpecError, match="8 × 10 pixels cannot be made; give multiples of 4 up to"):
        config.latent_shape(8, 10)
    latents = jax.ShapeDtypeStruct((1, 4, 3, 4), "float32")
    text, pooled = jax.ShapeDtypeStruct((1, 2, 28), "f4"), jax.ShapeDtypeStruct((1, 12), "f4")
    time = jax.ShapeDtypeStruct((1,), "float32")
    apply = models.mmdit_apply(config.transformer)
    shapes = models.abstract_params(config.transformer)
    with pytest.raises(SpecError, match="latents are 3 × 4; the model takes multiples of 2"):
        jax.eval_shape(apply, shapes, latents, time, text, pooled)
