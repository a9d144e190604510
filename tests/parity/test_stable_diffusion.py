"""The parts of Stable Diffusion 3 here and in diffusers and transformers, on the same weights."""

import importlib
import importlib.util

import jax
import numpy as np
import pytest

from gimlax.models import clip_apply, load_huggingface, mmdit_apply, t5_apply, vae_apply
from gimlax.models.flow_matching import FlowMatching, euler_step

missing = [
    name
    for name in ("torch", "transformers", "diffusers")
    if importlib.util.find_spec(name) is None
]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"parity needs {', '.join(missing)}: `make parity`"),
    pytest.mark.filterwarnings("ignore"),  # what theirs warn of is theirs
]

ABSOLUTE = 1e-4
TRANSFORMERS = {
    "3 medium": {"num_layers": 2, "num_attention_heads": 3, "attention_head_dim": 8},
    "3.5 medium": {
        "num_layers": 3,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "qk_norm": "rms_norm",
        "dual_attention_layers": (0, 1),
        "pos_embed_max_size": 16,
    },
    "3.5 large": {
        "num_layers": 2,
        "num_attention_heads": 5,
        "attention_head_dim": 4,
        "qk_norm": "rms_norm",
        "in_channels": 5,
        "out_channels": 5,
    },
    "one block, one pixel a patch": {
        "num_layers": 1,
        "num_attention_heads": 1,
        "attention_head_dim": 20,
        "patch_size": 1,
        "sample_size": 6,
    },
}
CLIPS = {
    "as L": {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40},
    "as G": {
        "hidden_size": 20,
        "num_attention_heads": 5,
        "intermediate_size": 33,
        "hidden_act": "gelu",
        "num_hidden_layers": 3,
        "projection_dim": 20,
    },
    "one layer, with an end of its own": {
        "hidden_size": 14,
        "num_attention_heads": 1,
        "intermediate_size": 9,
        "num_hidden_layers": 1,
        "eos_token_id": 60,
        "layer_norm_eps": 1e-3,
    },
}
T5S = {
    "heads as wide as the model": {"d_model": 24, "d_kv": 8, "num_heads": 3, "d_ff": 50},
    "narrow heads": {"d_model": 17, "d_kv": 4, "num_heads": 5, "d_ff": 31, "num_layers": 3},
    "few buckets": {
        "d_model": 10,
        "d_kv": 16,
        "num_heads": 1,
        "d_ff": 12,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 20,
    },
}
VAES = {
    "two levels": {"block_out_channels": (6, 12), "layers_per_block": 1, "norm_num_groups": 3},
    "as that of 3": {
        "block_out_channels": (4, 8, 12),
        "norm_num_groups": 2,
        "layers_per_block": 2,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
        "shift_factor": 0.0609,
        "scaling_factor": 1.5305,
        "latent_channels": 16,
    },
    "without attention": {
        "block_out_channels": (8,),
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
    },
}


def torch():
    return importlib.import_module("torch")


def disturbed(model):
    """The model in evaluation, with parameters off their zeros and ones, which would hide where
    they go."""
    with torch().no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch().randn_like(parameter))
    return model.eval()


def by_way_of_files(model, folder):
    model.save_pretrained(folder)
    return load_huggingface(folder)


def normal(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def tokens_ending(length, end):
    """Two rows of ids below `end`, which ends them at different places, and padding behind."""
    rows = np.random.default_rng(length).integers(3, end, (2, length)).astype(np.int32)
    for row, place in enumerate((length - 1, length // 2)):
        rows[row, place] = end
        rows[row, place + 1 :] = 1
    return rows


def seeded(make, settings):
    torch().manual_seed(1)
    return disturbed(make(settings))


def transformer_of(settings):
    diffusers = importlib.import_module("diffusers")
    width = settings["num_attention_heads"] * settings["attention_head_dim"]
    sizes = {"sample_size": 8, "joint_attention_dim": 28, "pooled_projection_dim": 18}
    sizes |= {"pos_embed_max_size": 8, "caption_projection_dim": width} | settings
    return diffusers.SD3Transformer2DModel(**sizes)


def clip_of(settings):
    transformers = importlib.import_module("transformers")
    sizes = {"vocab_size": 61, "num_hidden_layers": 2, "projection_dim": 11, "eos_token_id": 2}
    sizes |= {"bos_token_id": 0, "pad_token_id": 1} | settings
    return transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**sizes))


def t5_of(settings):
    transformers = importlib.import_module("transformers")
    sizes = {"vocab_size": 61, "num_layers": 2, "feed_forward_proj": "gated-gelu"} | settings
    return transformers.T5EncoderModel(transformers.T5Config(**sizes))


def vae_of(settings):
    diffusers = importlib.import_module("diffusers")
    levels = len(settings["block_out_channels"])
    sizes = {"latent_channels": 4, "down_block_types": ("DownEncoderBlock2D",) * levels}
    sizes |= {"up_block_types": ("UpDecoderBlock2D",) * levels} | settings
    return diffusers.AutoencoderKL(**sizes)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_velocities_are_those_of_diffusers(name, tmp_path):
    theirs = seeded(transformer_of, TRANSFORMERS[name])
    config, params = by_way_of_files(theirs, tmp_path)
    size, patch = theirs.config.sample_size, config.patch
    apply = jax.jit(mmdit_apply(config))
    for rows, columns, length in ((size, size, 9), (2 * patch, 3 * patch, 1)):
        latents = normal(2, config.channels, rows, columns)
        time = np.array([1000, 17.5], np.float32)
        text, pooled = normal(2, length, config.text_width), normal(2, config.pooled_width)
        with torch().no_grad():
            expected = theirs(
                hidden_states=torch().tensor(latents),
                timestep=torch().tensor(time),
                encoder_hidden_states=torch().tensor(text),
                pooled_projections=torch().tensor(pooled),
            ).sample.numpy()
        assert np.abs(expected).max() > 0.3
        found = apply(params, latents, time, text, pooled)
        np.testing.assert_allclose(found, expected, atol=ABSOLUTE, rtol=0)


@pytest.mark.parametrize("name", CLIPS)
def test_texts_are_those_of_clip(name, tmp_path):
    theirs = seeded(clip_of, CLIPS[name])
    config, params = by_way_of_files(theirs, tmp_path)
    apply = jax.jit(clip_apply(config))
    for length in (4, 77):
        tokens = tokens_ending(length, 60)
        with torch().no_grad():
            expected = theirs(torch().tensor(tokens).long(), output_hidden_states=True)
        hidden, whole = apply(params, tokens)
        last = expected.hidden_states[-2].numpy()
        np.testing.assert_allclose(hidden, last, atol=ABSOLUTE, rtol=0)
        np.testing.assert_allclose(whole, expected.text_embeds.numpy(), atol=ABSOLUTE, rtol=0)


@pytest.mark.parametrize("name", T5S)
def test_texts_are_those_of_t5(name, tmp_path):
    theirs = seeded(t5_of, T5S[name])
    config, params = by_way_of_files(theirs, tmp_path)
    apply = jax.jit(t5_apply(config))
    for length in (3, 256):
        tokens = np.random.default_rng(length).integers(0, 61, (2, length)).astype(np.int32)
        with torch().no_grad():
            expected = theirs(torch().tensor(tokens).long()).last_hidden_state.numpy()
        np.testing.assert_allclose(apply(params, tokens), expected, atol=ABSOLUTE, rtol=0)


@pytest.mark.parametrize("name", VAES)
def test_pixels_are_those_of_diffusers(name, tmp_path):
    theirs = seeded(vae_of, VAES[name])
    config, params = by_way_of_files(theirs, tmp_path)
    latents = normal(2, config.channels, 4, 6)
    with torch().no_grad():
        inside = torch().tensor(latents) / theirs.config.scaling_factor
        expected = theirs.decode(inside + (theirs.config.shift_factor or 0)).sample.numpy()
    found = np.asarray(jax.jit(vae_apply(config))(params, latents))
    assert found.shape == (2, 4 * config.upscaling, 6 * config.upscaling, 3)
    np.testing.assert_allclose(found.transpose(0, 3, 1, 2), expected, atol=ABSOLUTE, rtol=0)


@pytest.mark.parametrize("num_steps", [1, 2, 28, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.7])
def test_sigmas_and_steps_are_those_of_diffusers(num_steps, shift):
    diffusers = importlib.import_module("diffusers")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    theirs.set_timesteps(num_steps)
    schedule = FlowMatching(shift=shift)
    sigmas = schedule.sigmas(num_steps)
    np.testing.assert_array_equal(sigmas, theirs.sigmas.numpy())
    np.testing.assert_array_equal(schedule.times(sigmas), theirs.timesteps.numpy())
    latents = normal(1, 4, 3, 2)
    expected = torch().tensor(latents)
    for index, time in enumerate(theirs.timesteps):
        velocity = normal(index + 1, 4, 3, 2)[:1]
        expected = theirs.step(torch().tensor(velocity), time, expected).prev_sample
        latents = euler_step(latents, velocity, sigmas[index], sigmas[index + 1])
    np.testing.assert_allclose(latents, expected.numpy(), atol=ABSOLUTE, rtol=0)
