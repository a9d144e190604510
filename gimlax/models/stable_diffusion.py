"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): three text encoders, a transformer, a decoder.

From prompt to image it is three functions, which share nothing but the tree of parameters: *encode*
makes a context of tokens, *denoise* takes latents one step from noise to an image, *decode* makes
pixels of them. Under guidance a context is two, that of what is not wanted in front of that of what
is, and both are computed as one batch.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gimlax.errors import SpecError
from gimlax.models.clip import CLIP_G, CLIP_L, ClipConfig, clip_apply
from gimlax.models.decoder import DType, Params, abstract_params, init_params
from gimlax.models.flow_matching import FlowMatching, euler_step, guided
from gimlax.models.mmdit import SD3_MEDIUM, SD35_LARGE, SD35_MEDIUM, MMDiTConfig, mmdit_apply
from gimlax.models.t5 import T5_XXL, T5Config, t5_apply
from gimlax.models.vae import SD3_VAE, VaeConfig, vae_apply

PARTS = ("clip_l", "clip_g", "t5", "transformer", "vae")


@dataclass(frozen=True, slots=True, kw_only=True)
class StableDiffusionConfig:
    """The sizes of all parts; without `t5` the context ends in zeros in its place.

    Raises `SpecError` with everything that does not fit together.
    """

    transformer: MMDiTConfig
    clip_l: ClipConfig = CLIP_L
    clip_g: ClipConfig = CLIP_G
    t5: T5Config | None = T5_XXL
    vae: VaeConfig = SD3_VAE
    schedule: FlowMatching = dataclasses.field(default_factory=FlowMatching)

    def __post_init__(self) -> None:
        faults = []
        both = self.clip_l.projection_width + self.clip_g.projection_width
        if both != self.transformer.pooled_width:
            faults.append(
                f"the transformer takes prompts as {self.transformer.pooled_width} numbers, "
                f"and both CLIPs give {both}"
            )
        wide, most = self.clip_l.width + self.clip_g.width, self.transformer.text_width
        if wide > most:
            faults.append(
                f"the transformer takes tokens of {most} numbers, and both CLIPs give {wide}"
            )
        if self.t5 is not None and self.t5.width != most:
            faults.append(
                f"the transformer takes tokens of {most} numbers, and T5 gives {self.t5.width}"
            )
        if self.transformer.channels != self.vae.channels:
            faults.append(
                f"the transformer has latents of {self.transformer.channels} channels, and the "
                f"decoder of {self.vae.channels}"
            )
        if faults:
            raise SpecError("StableDiffusionConfig: " + "; ".join(faults))

    @property
    def parts(self) -> dict[str, Any]:
        """The config of each part that has parameters."""
        found = {name: getattr(self, name) for name in PARTS}
        return {name: config for name, config in found.items() if config is not None}

    def with_dtype(self, dtype: DType) -> "StableDiffusionConfig":
        """The same model with parameters and computation in `dtype`."""
        narrow = {name: config.with_dtype(dtype) for name, config in self.parts.items()}
        return dataclasses.replace(self, **narrow)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Of the latents of one image of `height` × `width` pixels.

        Raises `SpecError` if they cannot be cut into patches, or are too many.
        """
        step = self.vae.upscaling * self.transformer.patch
        most = step * self.transformer.max_size
        if any(size % step or not 0 < size <= most for size in (height, width)):
            raise SpecError(
                f"an image of {height} × {width} pixels cannot be made; give multiples of {step} "
                f"up to {most}"
            )
        rows, columns = (size // self.vae.upscaling for size in (height, width))
        return self.transformer.channels, rows, columns


STABLE_DIFFUSION_3_MEDIUM = StableDiffusionConfig(transformer=SD3_MEDIUM)
STABLE_DIFFUSION_35_MEDIUM = StableDiffusionConfig(transformer=SD35_MEDIUM)
STABLE_DIFFUSION_35_LARGE = StableDiffusionConfig(transformer=SD35_LARGE)


def abstract_diffusion_params(config: StableDiffusionConfig) -> Params:
    """Shapes and dtypes of all parameters: those of each part under its name."""
    return {name: abstract_params(part) for name, part in config.parts.items()}


def init_diffusion_params(config: StableDiffusionConfig, *, seed: int = 0) -> Params:
    """Random parameters, as `abstract_diffusion_params` describes them."""
    parts = config.parts.items()
    return {name: init_params(part, seed=seed + index) for index, (name, part) in enumerate(parts)}


def encode_apply(config: StableDiffusionConfig) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Prompts to what denoising asks for: `encode(params, clip_l, clip_g, t5) -> (text, pooled)`.

    Tokens are int32 [batch, length], those of both CLIPs of one length. It returns float32 [batch,
    length of CLIP and of T5, text_width] and [batch, pooled_width].
    """
    clip_l, clip_g = clip_apply(config.clip_l), clip_apply(config.clip_g)
    t5 = None if config.t5 is None else t5_apply(config.t5)
    text_width = config.transformer.text_width

    def encode(
        params: Params, clip_l_tokens: jax.Array, clip_g_tokens: jax.Array, t5_tokens: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        with jax.named_scope("clip_l"):
            hidden_l, whole_l = clip_l(params["clip_l"], clip_l_tokens)
        with jax.named_scope("clip_g"):
            hidden_g, whole_g = clip_g(params["clip_g"], clip_g_tokens)
        hidden = jnp.concatenate([hidden_l, hidden_g], axis=-1)
        hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, text_width - hidden.shape[-1])))
        if t5 is None:
            long = jnp.zeros((*t5_tokens.shape, text_width), jnp.float32)
        else:
            with jax.named_scope("t5"):
                long = t5(params["t5"], t5_tokens)
        text = jnp.concatenate([hidden, long], axis=1)
        return text, jnp.concatenate([whole_l, whole_g], axis=-1)

    return encode


def denoise_apply(config: StableDiffusionConfig) -> Callable[..., jax.Array]:
    """One step: `denoise(params, latents, text, pooled, sigma, next_sigma, guidance) -> latents`.

    Latents are float32 [batch, channel, row, column], the other numbers float32 []. With guidance
    `text` and `pooled` are of twice the batch, first what is not wanted; without, `guidance` is
    not looked at.
    """
    transformer = mmdit_apply(config.transformer)
    num_times = config.schedule.num_times

    def denoise(
        params: Params,
        latents: jax.Array,
        text: jax.Array,
        pooled: jax.Array,
        sigma: jax.Array,
        next_sigma: jax.Array,
        guidance: jax.Array,
    ) -> jax.Array:
        copies = text.shape[0] // latents.shape[0]
        time = jnp.broadcast_to(sigma * num_times, text.shape[:1])
        many = jnp.concatenate([latents] * copies)
        velocity = transformer(params["transformer"], many, time, text, pooled)
        if copies == 2:
            without, having = jnp.split(velocity, 2)
            velocity = guided(without, having, guidance)
        return euler_step(latents, velocity, sigma, next_sigma)

    return denoise


def decode_apply(config: StableDiffusionConfig) -> Callable[..., jax.Array]:
    """Latents to pixels: `decode(params, latents) -> float32 [batch, row, column, 3]`, 0 to 1."""
    vae = vae_apply(config.vae)

    def decode(params: Params, latents: jax.Array) -> jax.Array:
        return jnp.clip(vae(params["vae"], latents) / 2 + 0.5, 0, 1)

    return decode
