"""The parts of Stable Diffusion 3 here and in diffusers and transformers, on the same weights."""

import importlib
import importlib.util

import jax
import numpy as np
import pytest

from gimlax.models import (
    FlowMatching,
    clip_apply,
    decode_apply,
    denoise_apply,
    encode_apply,
    load_huggingface,
    load_prompt_tokenizer,
    load_prompt_tokenizers,
    load_stable_diffusion,
    mmdit_apply,
    t5_apply,
    vae_apply,
)
from gimlax.models.flow_matching import euler_step
from gimlax.serving import ImageModel, make_images
from tests.models.diffusion_folder import write_tokenizers

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
RELATIVE_BFLOAT16 = 0.03  # of the largest number, bfloat16 here against float32 there
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


def narrow(apply, config, params, *inputs):
    """What `apply` gives in bfloat16."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, "bfloat16"), params)
    return jax.jit(apply(config.with_dtype("bfloat16")))(params, *inputs)


def assert_near(found, expected):
    apart = np.abs(np.asarray(found, np.float32) - expected.numpy()).max()
    assert apart < RELATIVE_BFLOAT16 * np.abs(expected.numpy()).max()


def test_bfloat16_follows_the_reference(tmp_path):
    make = {
        "clip": (clip_of, CLIPS["as G"]),
        "t5": (t5_of, T5S["narrow heads"]),
        "vae": (vae_of, VAES["as that of 3"]),
        "transformer": (transformer_of, TRANSFORMERS["3.5 medium"]),
    }
    models = {name: seeded(*given) for name, given in make.items()}
    read = {name: by_way_of_files(model, tmp_path / name) for name, model in models.items()}
    tokens = tokens_ending(77, 60)
    latents = normal(2, 16, 4, 6)
    config = read["transformer"][0]
    text, pooled = normal(2, 9, config.text_width), normal(2, config.pooled_width)
    time = np.array([1000, 17.5], np.float32)
    with torch().no_grad():
        ids = torch().tensor(tokens).long()
        whole = models["clip"](ids).text_embeds
        hidden = models["t5"](ids).last_hidden_state
        pixels = models["vae"].decode(torch().tensor(latents) / 1.5305 + 0.0609).sample
        velocity = models["transformer"](
            hidden_states=torch().tensor(latents),
            timestep=torch().tensor(time),
            encoder_hidden_states=torch().tensor(text),
            pooled_projections=torch().tensor(pooled),
        ).sample
    assert_near(narrow(clip_apply, *read["clip"], tokens)[1], whole)
    assert_near(narrow(t5_apply, *read["t5"], tokens), hidden)
    assert_near(narrow(vae_apply, *read["vae"], latents).transpose(0, 3, 1, 2), pixels)
    given = (latents, time, text, pooled)
    assert_near(narrow(mmdit_apply, *read["transformer"], *given), velocity)


@pytest.mark.parametrize("num_steps", [1, 2, 28, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.7])
def test_sigmas_and_steps_are_those_of_diffusers(num_steps, shift):
    diffusers = importlib.import_module("diffusers")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    theirs.set_timesteps(num_steps)
    schedule = FlowMatching(shift=shift)
    sigmas = schedule.sigmas(num_steps)
    np.testing.assert_array_equal(sigmas, theirs.sigmas.numpy())
    told = sigmas[:-1] * np.float32(schedule.num_times)  # as `denoise` tells its model
    np.testing.assert_array_equal(told, theirs.timesteps.numpy())
    latents = normal(1, 4, 3, 2)
    expected = torch().tensor(latents)
    for index, time in enumerate(theirs.timesteps):
        velocity = normal(index + 1, 4, 3, 2)[:1]
        expected = theirs.step(torch().tensor(velocity), time, expected).prev_sample
        latents = euler_step(latents, velocity, sigmas[index], sigmas[index + 1])
    np.testing.assert_allclose(latents, expected.numpy(), atol=ABSOLUTE, rtol=0)


@pytest.fixture(scope="module", name="pipeline")
def pipeline_fixture(tmp_path_factory):
    """(their pipeline with all three encoders, the folder that it saved)"""
    diffusers, transformers = (importlib.import_module(n) for n in ("diffusers", "transformers"))
    words = tmp_path_factory.mktemp("words")
    write_tokenizers(words)
    clip = {"num_attention_heads": 3, "intermediate_size": 20, "hidden_size": 12, "eos_token_id": 2}
    t5 = {"d_model": 28, "d_kv": 4, "num_heads": 3, "d_ff": 20}
    vae = {"block_out_channels": (6, 9), "layers_per_block": 1, "norm_num_groups": 3}
    vae |= {"shift_factor": 0.0609, "scaling_factor": 1.5305}
    transformer = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
    transformer |= {"in_channels": 4, "out_channels": 4, "dual_attention_layers": (0,)}
    transformer |= {"qk_norm": "rms_norm", "pooled_projection_dim": 12}
    theirs = diffusers.StableDiffusion3Pipeline(
        text_encoder=seeded(clip_of, clip | {"projection_dim": 7}),
        text_encoder_2=seeded(clip_of, clip | {"projection_dim": 5, "hidden_act": "gelu"}),
        text_encoder_3=seeded(t5_of, t5),
        transformer=seeded(transformer_of, transformer),
        vae=seeded(vae_of, vae),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(words / "tokenizer"),
        tokenizer_2=transformers.CLIPTokenizer.from_pretrained(words / "tokenizer_2"),
        tokenizer_3=transformers.AutoTokenizer.from_pretrained(words / "tokenizer_3"),
    )
    theirs.set_progress_bar_config(disable=True)
    folder = tmp_path_factory.mktemp("saved")
    theirs.save_pretrained(folder)
    return theirs, folder


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_images_are_those_of_diffusers(pipeline, guidance):
    theirs, folder = pipeline
    config, params = load_stable_diffusion(folder)
    tokenizers = load_prompt_tokenizers(folder)
    guided = guidance > 1
    model = ImageModel(
        encode=encode_apply(config),
        denoise=denoise_apply(config),
        decode=decode_apply(config),
        params=params,
        token_lengths=(77, 77, 20),
        latent_shape=config.latent_shape(8, 16),
        guided=guided,
    )
    texts = ["a dog", "the fox!"][not guided :]
    tokens = [
        tokenizers[name].encode(texts, length=length)
        for name, length in zip(("clip_l", "clip_g", "t5"), model.token_lengths, strict=True)
    ]
    (found,) = make_images(
        model.uncut(),
        params,
        tokens,
        noise=model.noise(1),
        sigmas=config.schedule.sigmas(4),
        guidance=guidance,
    )
    (expected,) = theirs(
        prompt="the fox!",
        negative_prompt="a dog",
        height=8,
        width=16,
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=torch().tensor(model.noise(1)),
        max_sequence_length=20,
        output_type="np",
    ).images
    assert 0.05 < expected.std()
    np.testing.assert_allclose(found, expected, atol=ABSOLUTE, rtol=0)


def test_ids_of_prompts_are_those_of_transformers(tmp_path):
    transformers = importlib.import_module("transformers")
    write_tokenizers(tmp_path)
    texts = ["The  FOX!", "", " the fox!! it's\n\t42 Größe thefox", "fox " * 99]
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        expected = theirs(texts, padding="max_length", max_length=77, truncation=True)
        found = load_prompt_tokenizer(tmp_path / name).encode(texts, length=77)
        np.testing.assert_array_equal(found, expected["input_ids"])
