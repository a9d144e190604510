"""The decoder of a variational autoencoder (Rombach et al. 2022) in Flax NNX: latents to pixels.

Convolutions with residual sums, an attention of all places to each other at the lowest resolution,
and a doubling of rows and columns behind each level but the last. Inside, channels come last, which
convolutions of all backends take; kernels are `[out, in, row, column]`, as files have them.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from gimlax.errors import SpecError
from gimlax.models.composites import bidirectional_attention
from gimlax.models.decoder import DType, Params, weight
from gimlax.models.layers import Dense, filled, size_faults

NORM_EPS = 1e-6
DIMS = ("NHWC", "OIHW", "NHWC")


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeConfig:
    """Sizes of a decoder, and the dtype of its parameters and of its arithmetic.

    Attributes:
        widths: channels of each level, from that of the pixels to that of the latents.
        channels: of latents.
        blocks_per_level: that the encoder has; the decoder has one more.
        num_groups: that channels are normed in.
        scaling: latents are divided by it; then `shift` is added.
        attends: whether there is an attention.
        post_conv: whether latents go through a convolution of their own first.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    channels: int = 16
    blocks_per_level: int = 2
    num_groups: int = 32
    scaling: float = 1.5305
    shift: float = 0.0609
    attends: bool = True
    post_conv: bool = False
    param_dtype: DType = "float32"
    compute_dtype: DType = "float32"

    def __post_init__(self) -> None:
        faults = [fault for fault in size_faults(self) if not fault.startswith("shift")]
        if not self.widths:
            faults.append("widths is empty; give the channels of each level")
        if uneven := [w for w in self.widths if w < 1 or w % max(self.num_groups, 1)]:
            faults.append(f"widths has {uneven}, no multiples of num_groups {self.num_groups}")
        if faults:
            raise SpecError("VaeConfig: " + "; ".join(faults))

    @property
    def upscaling(self) -> int:
        """Rows of pixels for one row of latents."""
        return 2 ** (len(self.widths) - 1)

    def build(self, *, rngs: nnx.Rngs | None) -> "Vae":
        """The decoder of these sizes; without `rngs` its parameters are shapes."""
        return Vae(self, rngs=rngs)

    def with_dtype(self, dtype: DType) -> "VaeConfig":
        """The same model with parameters and computation in `dtype`."""
        return dataclasses.replace(self, param_dtype=dtype, compute_dtype=dtype)


SD3_VAE = VaeConfig()


@functools.partial(jax.lax.composite, name="gimlax.group_norm", version=1)
def group_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, num_groups: int, eps: float
) -> jax.Array:
    """Wu and He 2018, in float32: `x [batch, row, column, channel]`, `scale`, `bias` [channel]."""
    wide = x.astype(jnp.float32).reshape(*x.shape[:3], num_groups, -1)
    centred = wide - jnp.mean(wide, axis=(1, 2, 4), keepdims=True)
    variance = jnp.mean(centred * centred, axis=(1, 2, 4), keepdims=True)
    normed = (centred * jax.lax.rsqrt(variance + eps)).reshape(x.shape)
    return (normed * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


class Conv(nnx.Module):
    """A convolution over `size` × `size` places that keeps rows and columns."""

    def __init__(
        self, dtype: DType, width: int, out: int, *, rngs: nnx.Rngs | None, size: int = 3
    ) -> None:
        self.weight = weight(rngs, dtype, out, width, size, size)
        self.bias = filled(rngs, dtype, out)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.weight[...].astype(x.dtype)
        found = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=DIMS, preferred_element_type=jnp.float32
        )
        return (found + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class GroupNorm(nnx.Module):
    """A learned scale and shift of channels, ones and zeros at the start."""

    def __init__(self, config: VaeConfig, width: int, *, rngs: nnx.Rngs | None) -> None:
        self.num_groups = config.num_groups
        self.scale = filled(rngs, config.param_dtype, width, value=1)
        self.bias = filled(rngs, config.param_dtype, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = self.scale[...], self.bias[...]
        return group_norm(x, scale, bias, num_groups=self.num_groups, eps=NORM_EPS)


class Residual(nnx.Module):
    """Two convolutions, added to what came in."""

    def __init__(self, config: VaeConfig, width: int, out: int, *, rngs: nnx.Rngs | None) -> None:
        conv = functools.partial(Conv, config.param_dtype, rngs=rngs)
        self.first_norm = GroupNorm(config, width, rngs=rngs)
        self.first = conv(width, out)
        self.second_norm = GroupNorm(config, out, rngs=rngs)
        self.second = conv(out, out)
        self.widens = width != out
        if self.widens:
            self.shortcut = conv(width, out, size=1)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.first(jax.nn.silu(self.first_norm(x)))
        hidden = self.second(jax.nn.silu(self.second_norm(hidden)))
        return (self.shortcut(x) if self.widens else x) + hidden


class PlaceAttention(nnx.Module):
    """Attention of all places to each other, with one head, added to what came in."""

    def __init__(self, config: VaeConfig, width: int, *, rngs: nnx.Rngs | None) -> None:
        square = functools.partial(Dense, config.param_dtype, width, width, rngs=rngs)
        self.norm = GroupNorm(config, width, rngs=rngs)
        self.query, self.key, self.value, self.output = square(), square(), square(), square()

    def __call__(self, x: jax.Array) -> jax.Array:
        places = self.norm(x).reshape(x.shape[0], -1, 1, x.shape[-1])
        projected = (of(places) for of in (self.query, self.key, self.value))
        return x + self.output(bidirectional_attention(*projected)).reshape(x.shape)


class Level(nnx.Module):
    """Residual blocks of one resolution, and a doubling of it unless it is the last."""

    def __init__(
        self, config: VaeConfig, width: int, out: int, *, rngs: nnx.Rngs | None, doubles: bool
    ) -> None:
        widths = [width] + [out] * config.blocks_per_level
        self.blocks = nnx.List([Residual(config, w, out, rngs=rngs) for w in widths])
        self.doubles = doubles
        if doubles:
            self.double = Conv(config.param_dtype, out, out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for index, block in enumerate(self.blocks):
            with jax.named_scope(f"blocks.{index}"):
                x = block(x)
        if not self.doubles:
            return x
        with jax.named_scope("double"):
            batch, rows, columns, width = x.shape
            x = jnp.broadcast_to(
                x[:, :, None, :, None], (batch, rows, 2, columns, 2, width)
            )  # each place four times
            return self.double(x.reshape(batch, 2 * rows, 2 * columns, width))


class Vae(nnx.Module):
    """The decoder; with `rngs=None` its parameters are shapes and cost no memory."""

    def __init__(self, config: VaeConfig, *, rngs: nnx.Rngs | None) -> None:
        self.config = config
        conv = functools.partial(Conv, config.param_dtype, rngs=rngs)
        widths = config.widths[::-1]
        if config.post_conv:
            self.post = conv(config.channels, config.channels, size=1)
        self.input = conv(config.channels, widths[0])
        square = functools.partial(Residual, config, widths[0], widths[0], rngs=rngs)
        self.before, self.after = square(), square()
        if config.attends:
            self.attention = PlaceAttention(config, widths[0], rngs=rngs)
        pairs = list(zip((widths[0], *widths), widths))
        self.levels = nnx.List(
            [
                Level(config, *pair, rngs=rngs, doubles=index < len(pairs) - 1)
                for index, pair in enumerate(pairs)
            ]
        )
        self.norm = GroupNorm(config, widths[-1], rngs=rngs)
        self.output = conv(widths[-1], 3)

    def __call__(self, latents: jax.Array) -> jax.Array:
        """Decodes `latents`; see `vae_apply` for shapes."""
        config = self.config
        with jax.named_scope("input"):
            x = latents / config.scaling + config.shift
            x = x.astype(config.compute_dtype).transpose(0, 2, 3, 1)
            x = self.input(self.post(x) if config.post_conv else x)
        with jax.named_scope("before"):
            x = self.before(x)
        if config.attends:
            with jax.named_scope("attention"):
                x = self.attention(x)
        with jax.named_scope("after"):
            x = self.after(x)
        for index, level in enumerate(self.levels):
            with jax.named_scope(f"levels.{index}"):
                x = level(x)
        with jax.named_scope("output"):
            return self.output(jax.nn.silu(self.norm(x))).astype(jnp.float32)


def vae_apply(config: VaeConfig) -> Callable[..., jax.Array]:
    """The decoder as `apply(params, latents) -> pixels`.

    `params` are as `abstract_params` describes them, `latents` float32 [batch, channel, row,
    column] as the transformer knows them. It returns float32 [batch, row, column, 3], -1 to 1 and
    sometimes a little beyond.
    """
    graphdef = nnx.graphdef(config.build(rngs=None))

    def vae(params: Params, latents: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params)(latents)

    return vae
