"""A text-to-image model as serving sees it: prompts are encoded, noise is denoised step by step.

The three phases share nothing but the tree of parameters, so each may sit on meshes of its own;
what goes from one to the next is small and goes by way of the host. The same record also gives the
uncut model, plain `jax.jit` on one device, to compare with.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gimlax.errors import SpecError
from gimlax.graph import Workload, trace

ImagePhases = Mapping[str, Callable[..., Any]]  # compiled, by name
ENCODE, DENOISE, DECODE = PHASES = ("encode", "denoise", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageModel:
    """What serving needs to know of a text-to-image model.

    Attributes:
      encode: (params, *tokens) -> context, a tuple of arrays [prompt, ...].
      denoise: (params, latents, *context, sigma, next_sigma, guidance) -> latents.
      decode: (params, latents) -> float32 [image, row, column, 3], 0 to 1.
      params: parameters, or their `jax.ShapeDtypeStruct`s where only a plan is wanted.
      token_lengths: of the tokens of each encoder.
      latent_shape: of one image's latents.
      num_images: in one pass.
      guided: whether a context is two, that of what is not wanted first.
    """

    encode: Callable[..., tuple[Any, ...]]
    denoise: Callable[..., Any]
    decode: Callable[..., Any]
    params: Any
    token_lengths: tuple[int, ...]
    latent_shape: tuple[int, int, int]
    num_images: int = 1
    guided: bool = True

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise SpecError(f"num_images is {self.num_images}; give 1 or more")

    def workload(self, *, num_steps: int) -> Workload:
        """All phases traced; an image is encoded once, denoised in so many steps, decoded once."""
        prompts = self.num_images * (1 + self.guided)
        tokens = [
            jax.ShapeDtypeStruct((prompts, length), np.int32) for length in self.token_lengths
        ]
        latents = jax.ShapeDtypeStruct((self.num_images, *self.latent_shape), np.float32)
        context = jax.eval_shape(self.encode, self.params, *tokens)
        numbers = (np.float32(0),) * 3
        inputs = (tokens, (latents, *context, *numbers), (latents,))
        functions = (self.encode, self.denoise, self.decode)
        return Workload(
            {
                name: trace(fn, self.params, *given, resident=(0,), name=name)
                for name, fn, given in zip(PHASES, functions, inputs, strict=True)
            },
            calls={DENOISE: num_steps},
        )

    def noise(self, seed: int) -> np.ndarray:
        """The latents to start from: a function of the seed and their shape alone."""
        if seed < 0:
            raise SpecError(f"seed is {seed}; give 0 or more")
        shape = (self.num_images, *self.latent_shape)
        return np.random.default_rng(seed).normal(size=shape).astype(np.float32)

    def uncut(self) -> ImagePhases:
        """Each phase as a `jax.jit` on JAX's default device."""
        functions = (self.encode, self.denoise, self.decode)
        return {name: jax.jit(fn) for name, fn in zip(PHASES, functions, strict=True)}


def make_images(
    phases: ImagePhases,
    params: Any,
    tokens: Sequence[np.ndarray],
    *,
    noise: np.ndarray,
    sigmas: np.ndarray,
    guidance: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Images of prompts.

    Args:
      phases: compiled phases by name.
      params: as the phases take them.
      tokens: int32 [prompt, length] of each encoder; under guidance the prompts that are not wanted
        come first.
      noise: to start from, float32 [image, ...].
      sigmas: the share of noise before each step, and behind the last.
      guidance: how far to go away from what is not wanted; 1 is not at all.
      progress: is called with steps done and steps in all.

    Returns:
      float32 [image, row, column, 3], 0 to 1.
    """
    context = [np.asarray(x) for x in phases[ENCODE](params, *tokens)]
    latents = noise
    num_steps = len(sigmas) - 1
    for step in range(num_steps):
        numbers = (sigmas[step], sigmas[step + 1], np.float32(guidance))
        latents = np.asarray(phases[DENOISE](params, latents, *context, *numbers))
        progress(step + 1, num_steps)
    return np.asarray(phases[DECODE](params, latents))
