"""What the scripts plan and verify, from shapes alone: language models and makers of images."""

from collections.abc import Callable
from typing import Any

import jax

import gimlax as gx
from gimlax import models, serving

MODELS = {
    "smollm2-135m": models.SMOLLM2_135M,
    "llama3.2-1b": models.LLAMA32_1B,
    "llama3.2-3b": models.LLAMA32_3B,
    "llama3-8b": models.LLAMA3_8B,
    "llama3-70b": models.LLAMA3_70B,
    "llama3.1-8b": models.LLAMA31_8B,
    "llama3.1-405b": models.LLAMA31_405B,
    "mixtral-8x7b": models.MIXTRAL_8X7B,
    "mixtral-8x22b": models.MIXTRAL_8X22B,
}

RECURRENT = {
    "mamba-130m": models.MAMBA_130M,
    "mamba-370m": models.MAMBA_370M,
    "mamba-790m": models.MAMBA_790M,
    "mamba-1.4b": models.MAMBA_1_4B,
    "mamba-2.8b": models.MAMBA_2_8B,
    "mamba2-130m": models.MAMBA2_130M,
    "mamba2-370m": models.MAMBA2_370M,
    "mamba2-780m": models.MAMBA2_780M,
    "mamba2-1.3b": models.MAMBA2_1_3B,
    "mamba2-2.7b": models.MAMBA2_2_7B,
    "codestral-mamba-7b": models.CODESTRAL_MAMBA_7B,
}

T5_TOKENS = 256  # of a prompt, by default
IMAGES = {
    "sd3-medium": models.STABLE_DIFFUSION_3_MEDIUM,
    "sd3.5-medium": models.STABLE_DIFFUSION_35_MEDIUM,
    "sd3.5-large": models.STABLE_DIFFUSION_35_LARGE,
}


def decoder_workload(
    config: models.DecoderConfig, *, batch: int, prompt_tokens: int, new_tokens: int, context: int
) -> gx.Workload:
    """Prefill and decode of a decoder.

    Args:
        config: sizes and dtypes.
        batch: sequences in one pass.
        prompt_tokens: of each sequence.
        new_tokens: decoded for each prompt.
        context: positions of the cache.

    Raises:
        SpecError: prompt and new tokens do not fit the context.
    """
    if prompt_tokens + new_tokens > context:
        raise gx.SpecError(
            f"a prompt of {prompt_tokens} and {new_tokens} new tokens do not fit the "
            f"context of {context}; raise --context or shorten them"
        )
    apply, cache = models.decoder_apply(config), models.abstract_cache(config, batch, context)
    return _workload(apply, config, cache, batch, prompt_tokens, new_tokens)


def recurrent_workload(
    config: models.StateSpaceConfig, *, batch: int, prompt_tokens: int, new_tokens: int
) -> gx.Workload:
    """Prefill and decode of a Mamba or Mamba-2, whose state has no length; see above."""
    apply, state = models.state_space_apply(config), models.abstract_state(config, batch)
    return _workload(apply, config, state, batch, prompt_tokens, new_tokens)


def image_workload(
    config: models.StableDiffusionConfig, *, batch: int, pixels: int, num_steps: int
) -> gx.Workload:
    """Encoding, denoising and decoding of a batch of square images, with guidance.

    Args:
        config: sizes and dtypes.
        batch: images in one pass.
        pixels: rows and columns of an image.
        num_steps: from noise to an image.
    """
    model = serving.ImageModel(
        encode=models.encode_apply(config),
        denoise=models.denoise_apply(config),
        decode=models.decode_apply(config),
        params=models.abstract_diffusion_params(config),
        token_lengths=(config.clip_l.max_context, config.clip_g.max_context, T5_TOKENS),
        latent_shape=config.latent_shape(pixels, pixels),
        num_images=batch,
    )
    return model.workload(num_steps=num_steps)


def _workload(
    apply: Callable[..., Any],
    config: models.DecoderConfig | models.StateSpaceConfig,
    cache: Any,
    batch: int,
    prompt_tokens: int,
    new_tokens: int,
) -> gx.Workload:
    params = models.abstract_params(config)
    position = jax.ShapeDtypeStruct((), "int32")
    prompt = jax.ShapeDtypeStruct((batch, prompt_tokens), "int32")
    token = jax.ShapeDtypeStruct((batch, 1), "int32")
    prefill = gx.trace(apply, params, cache, prompt, position, position, carried={1: 1})
    decode = gx.trace(apply, params, cache, token, position, carried={1: 1})
    return gx.Workload(
        {"prefill": prefill, "decode": decode}, calls={"prefill": 1, "decode": new_tokens}
    )
