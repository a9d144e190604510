"""Models that a cost model is scored on: written as users write them, in Linen, NNX and plain JAX.

Every one is a function, its arguments as shapes and what is carried; no weights are needed to plan
them, and random ones are as fast as trained ones.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from gimlax import models
from gimlax.models.decoder import DType


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Specimen:
    """A function and the shapes of its arguments; `family` is the model that it is a case of."""

    family: str
    case: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    carried: Mapping[int, int] = dataclasses.field(default_factory=dict)


def specimens() -> Iterator[Specimen]:
    """All cases of all models."""
    yield from decoders()
    yield from perceptrons()
    yield from convolutional()
    yield from encoders()
    yield from recurrent()
    yield from mixers()
    yield from vision_transformers()
    yield from mixtures()


def shape(*dims: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, dtype)


def decoders() -> Iterator[Specimen]:
    """Llamas and a Mixtral in two dtypes, at several batch sizes, in prefill and in decode."""
    small = models.LlamaConfig(
        vocab_size=8192,
        width=384,
        num_layers=3,
        num_heads=6,
        num_kv_heads=6,
        head_size=64,
        mlp_width=1024,
        max_context=1024,
    )
    middle = dataclasses.replace(
        small, width=576, num_layers=4, num_heads=9, num_kv_heads=3, mlp_width=1536, tied=True
    )
    large = dataclasses.replace(
        small, width=1024, num_layers=3, num_heads=16, num_kv_heads=4, mlp_width=2816
    )
    experts = models.MixtralConfig(
        vocab_size=4096,
        width=512,
        num_layers=2,
        num_heads=8,
        num_kv_heads=4,
        head_size=64,
        mlp_width=1152,
        max_context=1024,
        num_experts=8,
        num_chosen=2,
    )
    rows: tuple[tuple[str, models.DecoderConfig, DType, int, tuple[tuple[int, int], ...]], ...] = (
        ("llama 384", small, "float32", 256, ((1, 96), (4, 48), (2, 112), (8, 1), (1, 1), (40, 1))),
        (
            "llama 576",
            middle,
            "bfloat16",
            512,
            ((1, 192), (2, 80), (1, 40), (16, 1), (2, 1), (6, 1)),
        ),
        (
            "llama 576",
            middle,
            "float32",
            384,
            ((1, 160), (3, 64), (1, 24), (1, 1), (6, 1), (24, 1)),
        ),
        (
            "llama 1024",
            large,
            "float32",
            256,
            ((1, 72), (2, 40), (1, 200), (1, 1), (5, 1), (12, 1)),
        ),
        ("llama 1024", large, "bfloat16", 256, ((3, 56), (1, 120), (1, 1), (9, 1), (20, 1))),
        ("mixtral", experts, "float32", 256, ((1, 1), (6, 1), (1, 64), (1, 224), (3, 160))),
        ("mixtral", experts, "bfloat16", 256, ((1, 1), (12, 1), (1, 144))),
    )
    for name, config, dtype, context, cases in rows:
        config = config.with_dtype(dtype)
        for batch, length in cases:
            yield Specimen(
                family=name,
                case=f"{dtype} batch {batch} x {length} tokens",
                function=models.decoder_apply(config),
                args=(
                    models.abstract_params(config),
                    models.abstract_cache(config, batch, context),
                    shape(batch, length, dtype=jnp.int32),
                    shape(dtype=jnp.int32),
                ),
                carried={1: 1},
            )


class Perceptron(nn.Module):
    """Dense layers of different widths with different activations."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        activations = (nn.relu, nn.gelu, nn.tanh, nn.silu)
        for i, width in enumerate((1536, 768, 1200, 900, 1800, 640)):
            x = activations[i % 4](nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(10, dtype=self.dtype)(x)


def perceptrons() -> Iterator[Specimen]:
    for batch in (24, 60, 100, 250, 400, 1000):
        yield linen(Perceptron(jnp.float32), "Linen MLP", f"batch {batch}", shape(batch, 784))


def linen(module: nn.Module, family: str, case: str, *inputs: Any) -> Specimen:
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return Specimen(family=family, case=case, function=module.apply, args=(variables, *inputs))


class Convolutional(nnx.Module):
    """Convolutions with batch statistics that halve the image three times."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        widths = (3, 48, 48, 96, 96, 192, 192)
        self.convs = nnx.List(
            nnx.Conv(a, b, (3, 3), strides=1 + i % 2, rngs=rngs)
            for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False))
        )
        self.norms = nnx.List(
            nnx.BatchNorm(width, use_running_average=True, rngs=rngs) for width in widths[1:]
        )
        self.head = nnx.Linear(192, 100, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.head(x.mean(axis=(1, 2)))


def convolutional() -> Iterator[Specimen]:
    for batch, size in ((2, 48), (6, 40), (16, 32), (24, 24), (4, 64), (1, 96)):
        yield of_nnx(
            Convolutional, "NNX CNN", f"batch {batch} x {size} pixels", shape(batch, size, size, 3)
        )


def of_nnx(
    make: Callable[[nnx.Rngs], nnx.Module], family: str, case: str, *inputs: Any
) -> Specimen:
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def apply(state: Any, *inputs: Any) -> Any:
        return nnx.merge(graphdef, state)(*inputs)

    return Specimen(family=family, case=case, function=apply, args=(state, *inputs))


class EncoderBlock(nnx.Module):
    """Attention in both directions and a GELU layer, normed before."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        self.norms = nnx.List(nnx.LayerNorm(width, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(
            num_heads=heads, in_features=width, decode=False, rngs=rngs
        )
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norms[0](x))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class Encoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, width: int = 320, heads: int = 5, depth: int = 4) -> None:
        self.embed = nnx.Embed(4000, width, rngs=rngs)
        self.blocks = nnx.List(EncoderBlock(width, heads, rngs) for _ in range(depth))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 300, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def encoders() -> Iterator[Specimen]:
    for batch, length in ((1, 96), (3, 128), (8, 40), (2, 256), (1, 320), (5, 64), (12, 24)):
        yield of_nnx(
            Encoder,
            "NNX encoder",
            f"batch {batch} x {length} tokens",
            shape(batch, length, dtype=jnp.int32),
        )


def recurrent() -> Iterator[Specimen]:
    """Stacked LSTMs of different widths, each a scan over time."""
    widths = (192, 256, 160, 320, 224)

    def lstms(params: Any, x: jax.Array) -> jax.Array:  # [time, batch, width]
        for layer in params["layers"]:

            def step(state: Any, row: jax.Array, layer: Any = layer) -> tuple[Any, jax.Array]:
                hidden, cell = state
                gates = row @ layer["x"] + hidden @ layer["h"] + layer["bias"]
                i, f, g, o = jnp.split(gates, 4, axis=-1)
                cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
                hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
                return (hidden, cell), hidden

            zeros = jnp.zeros((x.shape[1], layer["h"].shape[0]))
            _, x = jax.lax.scan(step, (zeros, zeros), x)
        return x @ params["head"]

    layers = [
        {"x": shape(before, 4 * width), "h": shape(width, 4 * width), "bias": shape(4 * width)}
        for before, width in zip(widths, widths[1:], strict=False)
    ]
    params = {"layers": layers, "head": shape(widths[-1], 64)}
    for time, batch in ((24, 16), (40, 48), (16, 128), (32, 6)):
        yield Specimen(
            family="LSTM",
            case=f"{time} steps, batch {batch}",
            function=lstms,
            args=(params, shape(time, batch, widths[0])),
        )


class MixerBlock(nn.Module):
    """Tolstikhin et al. 2021: an MLP over tokens, then one over channels."""

    tokens: int
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.LayerNorm()(x).swapaxes(1, 2)
        y = nn.Dense(x.shape[1])(nn.gelu(nn.Dense(self.tokens)(y)))
        x = x + y.swapaxes(1, 2)
        y = nn.Dense(self.channels)(nn.LayerNorm()(x))
        return x + nn.Dense(x.shape[-1])(nn.gelu(y))


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        x = nn.Conv(256, (8, 8), strides=8)(image)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for _ in range(4):
            x = MixerBlock(128, 768)(x)
        return nn.Dense(50)(nn.LayerNorm()(x).mean(axis=1))


def mixers() -> Iterator[Specimen]:
    for batch in (1, 2, 6, 10, 16):
        yield linen(Mixer(), "Linen mixer", f"batch {batch}", shape(batch, 64, 64, 3))


class VisionTransformer(nnx.Module):
    """Dosovitskiy et al. 2021, pooled by the mean."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.patches = nnx.Conv(3, 384, (8, 8), strides=8, rngs=rngs)
        self.places = nnx.Param(jnp.zeros((64, 384)))
        self.blocks = nnx.List(EncoderBlock(384, 6, rngs) for _ in range(4))
        self.norm = nnx.LayerNorm(384, rngs=rngs)
        self.head = nnx.Linear(384, 100, rngs=rngs)

    def __call__(self, image: jax.Array) -> jax.Array:
        x = self.patches(image)
        x = x.reshape(x.shape[0], -1, x.shape[-1]) + self.places[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(axis=1))


def vision_transformers() -> Iterator[Specimen]:
    for batch in (1, 2, 4, 7, 12):
        yield of_nnx(VisionTransformer, "NNX ViT", f"batch {batch}", shape(batch, 64, 64, 3))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MixtureConfig:
    """Jiang et al. 2024 (Mixtral) in small: attention, then a few of the experts for each token."""

    width: int
    heads: int
    inner: int
    experts: int
    chosen: int = 2
    layers: int = 3

    def params(self, dtype: Any) -> Any:
        """Shapes of the weights."""
        wide = (self.experts, self.width, self.inner)
        layer = {
            "scales": shape(2, self.width),
            "qkv": [shape(self.width, self.width, dtype=dtype)] * 3,
            "out": shape(self.width, self.width, dtype=dtype),
            "router": shape(self.width, self.experts),
            "gate": shape(*wide, dtype=dtype),
            "up": shape(*wide, dtype=dtype),
            "down": shape(self.experts, self.inner, self.width, dtype=dtype),
        }
        return {
            "table": shape(4000, self.width),
            "layers": [layer] * self.layers,
            "head": shape(self.width, 500),
        }


def mixture(config: MixtureConfig) -> Callable[..., jax.Array]:
    """A decoder with a mixture of experts, its tokens sorted by expert as libraries do it."""

    def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale

    def attend(layer: Any, x: jax.Array) -> jax.Array:  # [batch, token, width]
        batch, length, width = x.shape
        split = (batch, length, config.heads, width // config.heads)
        low = x.astype(layer["out"].dtype)
        query, key, value = (
            jnp.dot(low, weight, preferred_element_type="float32").reshape(split)
            for weight in layer["qkv"]
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / split[-1] ** 0.5
        scores = jnp.where(jnp.tri(length, dtype=bool), scores, -jnp.inf)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value).reshape(x.shape)
        return jnp.dot(
            mixed.astype(layer["out"].dtype), layer["out"], preferred_element_type="float32"
        )

    def route(layer: Any, x: jax.Array) -> jax.Array:  # [row, width]
        shares, experts = jax.lax.top_k(jax.nn.softmax(x @ layer["router"]), config.chosen)
        order = jnp.argsort(experts.ravel())  # rows of one expert next to each other
        sizes = jnp.bincount(experts.ravel(), length=config.experts)

        def product(rows: jax.Array, weights: jax.Array) -> jax.Array:
            return jax.lax.ragged_dot(
                rows.astype(weights.dtype), weights, sizes, preferred_element_type="float32"
            )

        rows = x[order // config.chosen]
        hidden = jax.nn.silu(product(rows, layer["gate"])) * product(rows, layer["up"])
        made = product(hidden, layer["down"]) * shares.ravel()[order][:, None]
        return jnp.zeros_like(x).at[order // config.chosen].add(made)

    def apply(params: Any, tokens: jax.Array) -> jax.Array:
        x = params["table"][tokens]
        for layer in params["layers"]:
            x = x + attend(layer, norm(x, layer["scales"][0]))
            flat = norm(x, layer["scales"][1]).reshape(-1, config.width)
            x = x + route(layer, flat).reshape(x.shape)
        return x @ params["head"]

    return apply


def mixtures() -> Iterator[Specimen]:
    """Few wide experts and many narrow ones, in two dtypes, from one token to a few hundred."""
    few = MixtureConfig(width=320, heads=5, inner=448, experts=8)
    many = MixtureConfig(width=256, heads=4, inner=192, experts=24, chosen=3)
    for name, config in (("few", few), ("many", many)):
        for dtype, cases in (
            ("float32", ((1, 1), (6, 1), (1, 40), (2, 72), (1, 200))),
            ("bfloat16", ((1, 1), (12, 1), (1, 100))),
        ):
            for batch, length in cases:
                yield Specimen(
                    family="mixture of experts",
                    case=f"{name} {dtype} batch {batch} x {length} tokens",
                    function=mixture(config),
                    args=(config.params(dtype), shape(batch, length, dtype=jnp.int32)),
                )
