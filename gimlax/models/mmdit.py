"""MMDiT (Esser et al. 2024), the transformer of Stable Diffusion 3 and 3.5, in Flax NNX.

Two streams, patches of a noisy image and tokens of a prompt, each with its own weights, attend to
each other as one sequence. What time it is and what the prompt says as a whole (the *condition*)
scales, shifts and gates every part. The last block needs no text behind it. In 3.5 queries and keys
are normed, and in some blocks of the medium model the image attends to itself a second time.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gimlax.errors import SpecError
from gimlax.models.composites import bidirectional_attention, mlp, modulated_norm, rms_norm
from gimlax.models.decoder import DType, Params, weight
from gimlax.models.layers import Dense, filled, size_faults

NORM_EPS = 1e-6
TIME_WIDTH = 256  # sines and cosines of the time
LONGEST_PERIOD = 10000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MMDiTConfig:
    """Sizes of an MMDiT, and the dtype of its parameters and of its arithmetic.

    Attributes:
        head_size: of each head; all heads make the width.
        text_width: of the prompt's tokens.
        pooled_width: of the prompt as a whole.
        channels: of latents.
        sample_size: rows of the latents that it was made for.
        patch: rows and columns of latents that make one token.
        max_size: rows and columns of patches that there are positions for.
        qk_norm: whether queries and keys are normed.
        dual_layers: blocks whose image stream attends to itself as well.
    """

    num_layers: int
    num_heads: int
    head_size: int = 64
    text_width: int = 4096
    pooled_width: int = 2048
    channels: int = 16
    sample_size: int = 128
    patch: int = 2
    max_size: int = 192
    qk_norm: bool = False
    dual_layers: tuple[int, ...] = ()
    param_dtype: DType = "float32"
    compute_dtype: DType = "float32"

    def __post_init__(self) -> None:
        faults = size_faults(self)
        beyond = [layer for layer in self.dual_layers if not 0 <= layer < self.num_layers]
        if beyond:
            faults.append(
                f"dual_layers has {beyond}, and layers are numbered 0 to {self.num_layers - 1}"
            )
        if faults:
            raise SpecError("MMDiTConfig: " + "; ".join(faults))

    @property
    def width(self) -> int:
        """Of both streams."""
        return self.num_heads * self.head_size

    def build(self, *, rngs: nnx.Rngs | None) -> "MMDiT":
        """The model of these sizes; without `rngs` its parameters are shapes."""
        return MMDiT(self, rngs=rngs)

    def with_dtype(self, dtype: DType) -> "MMDiTConfig":
        """The same model with parameters and computation in `dtype`."""
        return dataclasses.replace(self, param_dtype=dtype, compute_dtype=dtype)


SD3_MEDIUM = MMDiTConfig(num_layers=24, num_heads=24)
SD35_MEDIUM = MMDiTConfig(
    num_layers=24, num_heads=24, max_size=384, qk_norm=True, dual_layers=tuple(range(13))
)
SD35_LARGE = MMDiTConfig(num_layers=38, num_heads=38, qk_norm=True)


def time_waves(time: jax.Array) -> jax.Array:
    """Vaswani et al. 2017 for a time in [0, 1000]: `[batch]` -> cosines, then sines, [batch, 256].

    Frequencies are rounded as the reference rounds them: at time 1000 an error of their last bit
    would show.
    """
    half = TIME_WIDTH // 2
    exponents = -math.log(LONGEST_PERIOD) * np.arange(half, dtype=np.float32) / np.float32(half)
    angles = time.astype(jnp.float32)[:, None] * np.exp(exponents.astype(np.float32))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TwoDense(nnx.Module):
    """SiLU between two projections."""

    def __init__(self, dtype: DType, width: int, out: int, *, rngs: nnx.Rngs | None) -> None:
        self.up = Dense(dtype, width, out, rngs=rngs)
        self.down = Dense(dtype, out, out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.up(x)))


class Heads(nnx.Module):
    """Queries, keys and values of one stream, and what becomes of what they found.

    Of a stream that ends here there is no `output`.
    """

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs | None, ends: bool = False) -> None:
        self.config = config
        dtype, width = config.param_dtype, config.width
        square = functools.partial(Dense, dtype, width, width, rngs=rngs)
        self.query, self.key, self.value = square(), square(), square()
        if not ends:
            self.output = square()
        if config.qk_norm:
            self.query_norm = filled(rngs, dtype, config.head_size, value=1)
            self.key_norm = filled(rngs, dtype, config.head_size, value=1)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Three [batch, token, head, size] of `x [batch, token, width]`."""
        shape = (*x.shape[:2], self.config.num_heads, self.config.head_size)
        query, key, value = (of(x).reshape(shape) for of in (self.query, self.key, self.value))
        if self.config.qk_norm:
            query = rms_norm(query, self.query_norm[...], eps=NORM_EPS)
            key = rms_norm(key, self.key_norm[...], eps=NORM_EPS)
        return query, key, value


class Stream(nnx.Module):
    """One stream's part of a block: its modulation, its heads, and its MLP unless it ends here."""

    def __init__(
        self, config: MMDiTConfig, *, rngs: nnx.Rngs | None, ends: bool = False, dual: bool = False
    ) -> None:
        self.dual, self.ends = dual, ends
        dtype, width = config.param_dtype, config.width
        self.num_parts = 2 if ends else 9 if dual else 6
        self.modulate = Dense(dtype, width, self.num_parts * width, rngs=rngs)
        self.heads = Heads(config, rngs=rngs, ends=ends)
        if dual:
            self.dual_heads = Heads(config, rngs=rngs)
        if not ends:
            self.up = Dense(dtype, width, 4 * width, rngs=rngs)
            self.down = Dense(dtype, 4 * width, width, rngs=rngs)

    def parts(self, condition: jax.Array) -> list[jax.Array]:
        """What the condition makes of itself: shifts, scales and gates, [batch, 1, width] each."""
        return jnp.split(self.modulate(condition)[:, None], self.num_parts, axis=-1)

    def behind_attention(self, x: jax.Array, mixed: jax.Array, parts: list[jax.Array]) -> jax.Array:
        """The stream with what was found added to it, and then its MLP."""
        _, _, gate, shift, scale, mlp_gate, *second = parts
        found = gate * self.heads.output(mixed)
        if self.dual:
            second_shift, second_scale, second_gate = second
            own = modulated_norm(x, second_scale, second_shift, eps=NORM_EPS)
            own = bidirectional_attention(*self.dual_heads(own))
            found += second_gate * self.dual_heads.output(own)
        x = x + found
        hidden = modulated_norm(x, scale, shift, eps=NORM_EPS)
        dense = (*self.up.cast(x.dtype), *self.down.cast(x.dtype))
        return x + mlp_gate * mlp(hidden, *dense, activation="gelu_tanh")


class Block(nnx.Module):
    """Joint attention of both streams, and what follows it in each."""

    def __init__(self, config: MMDiTConfig, index: int, *, rngs: nnx.Rngs | None) -> None:
        self.image = Stream(config, rngs=rngs, dual=index in config.dual_layers)
        self.text = Stream(config, rngs=rngs, ends=index == config.num_layers - 1)

    def __call__(
        self, image: jax.Array, text: jax.Array, condition: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        num_patches = image.shape[1]
        image_parts, text_parts = self.image.parts(condition), self.text.parts(condition)
        shift, scale = image_parts[:2]
        of_image = self.image.heads(modulated_norm(image, scale, shift, eps=NORM_EPS))
        # A stream that ends has its scale in front.
        shift, scale = text_parts[:2] if not self.text.ends else text_parts[1::-1]
        of_text = self.text.heads(modulated_norm(text, scale, shift, eps=NORM_EPS))
        both = (jnp.concatenate(pair, axis=1) for pair in zip(of_image, of_text, strict=True))
        mixed = bidirectional_attention(*both)
        image = self.image.behind_attention(image, mixed[:, :num_patches], image_parts)
        if not self.text.ends:
            text = self.text.behind_attention(text, mixed[:, num_patches:], text_parts)
        return image, text


class MMDiT(nnx.Module):
    """The whole transformer; with `rngs=None` its parameters are shapes and cost no memory."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs | None) -> None:
        self.config = config
        dtype, width, patch = config.param_dtype, config.width, config.patch
        self.patch = weight(rngs, dtype, width, config.channels, patch, patch)
        self.patch_bias = filled(rngs, dtype, width)
        self.positions = weight(rngs, dtype, 1, config.max_size * config.max_size, width)
        self.time = TwoDense(dtype, TIME_WIDTH, width, rngs=rngs)
        self.pooled = TwoDense(dtype, config.pooled_width, width, rngs=rngs)
        self.text = Dense(dtype, config.text_width, width, rngs=rngs)
        self.layers = nnx.List([Block(config, i, rngs=rngs) for i in range(config.num_layers)])
        self.modulate = Dense(dtype, width, 2 * width, rngs=rngs)
        self.output = Dense(dtype, width, patch * patch * config.channels, rngs=rngs)

    def __call__(
        self, latents: jax.Array, time: jax.Array, text: jax.Array, pooled: jax.Array
    ) -> jax.Array:
        """The velocity of `latents`; see `mmdit_apply` for shapes."""
        self._check(latents.shape)
        dtype = self.config.compute_dtype
        with jax.named_scope("embed"):
            condition = self.time(time_waves(time).astype(dtype)) + self.pooled(
                pooled.astype(dtype)
            )
            condition = jax.nn.silu(condition)
            prompt = self.text(text.astype(dtype))
            image = self._patches(latents.astype(dtype))
        for index, block in enumerate(self.layers):
            with jax.named_scope(f"layers.{index}"):
                image, prompt = block(image, prompt, condition)
        with jax.named_scope("head"):
            scale, shift = jnp.split(self.modulate(condition)[:, None], 2, axis=-1)
            image = self.output(modulated_norm(image, scale, shift, eps=NORM_EPS))
            return self._unpatched(image.astype(jnp.float32), latents.shape)

    def _check(self, shape: tuple[int, ...]) -> None:
        patch, most = self.config.patch, self.config.max_size
        if any(size % patch or size // patch > most for size in shape[2:]):
            raise SpecError(
                f"latents are {shape[2]} × {shape[3]}; the model takes multiples of {patch} up to "
                f"{patch * most}"
            )

    def _patches(self, latents: jax.Array) -> jax.Array:
        """`[batch, channel, row, column]` as tokens at their place: [batch, token, width]."""
        batch, channels, height, width = latents.shape
        patch = self.config.patch
        rows, columns = height // patch, width // patch
        pixels = latents.reshape(batch, channels, rows, patch, columns, patch)
        pixels = pixels.transpose(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)
        dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        kernel = self.patch[...].reshape(self.config.width, -1).astype(latents.dtype)
        found = dot("btp,wp->btw", pixels, kernel) + self.patch_bias[...].astype(jnp.float32)
        most = self.config.max_size
        table = self.positions[...].reshape(most, most, -1)
        top, left = (most - rows) // 2, (most - columns) // 2  # the middle of what was learned
        middle = table[top : top + rows, left : left + columns]
        found += middle.reshape(1, rows * columns, -1).astype(jnp.float32)
        return found.astype(latents.dtype)

    def _unpatched(self, tokens: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        batch, channels, height, width = shape
        patch = self.config.patch
        pixels = tokens.reshape(batch, height // patch, width // patch, patch, patch, channels)
        return pixels.transpose(0, 5, 1, 3, 2, 4).reshape(shape)


def mmdit_apply(config: MMDiTConfig) -> Callable[..., jax.Array]:
    """The model as `apply(params, latents, time, text, pooled) -> velocity`.

    Its arguments:
      params: as `abstract_params` describes them.
      latents: [batch, channel, row, column].
      time: float32 [batch], 0 (image) to 1000 (noise).
      text: [batch, token, text_width].
      pooled: [batch, pooled_width].

    It returns float32 like `latents`: noise minus image.
    """
    graphdef = nnx.graphdef(config.build(rngs=None))

    def mmdit(
        params: Params, latents: jax.Array, time: jax.Array, text: jax.Array, pooled: jax.Array
    ) -> jax.Array:
        return nnx.merge(graphdef, params)(latents, time, text, pooled)

    return mmdit
