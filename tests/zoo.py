"""One small model of each kind that a user brings: Linen, NNX, a plain function, a scan over
layers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

WIDTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Specimen:
    """A function, its arguments and their roles."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    carried: Mapping[int, int] = field(default_factory=dict)


def normal(*shape, seed=0):
    values = np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[0])
    return values.astype(np.float32)


def plain() -> Specimen:
    """Tied embedding, attention over carried keys and values, a jitted MLP; no names anywhere."""

    def attend(layer, cache, x, position):
        q, k, v = (x @ layer[n] for n in "qkv")
        keys = jax.lax.dynamic_update_slice(cache[0], k, (position, 0))
        values = jax.lax.dynamic_update_slice(cache[1], v, (position, 0))
        scores = q @ keys.T
        rows = position + jnp.arange(x.shape[0])
        scores = jnp.where(jnp.arange(keys.shape[0])[None] <= rows[:, None], scores, -1e9)
        return jax.nn.softmax(scores) @ values @ layer["o"], (keys, values)

    @jax.jit
    def mlp(layer, x):
        return jax.nn.silu(x @ layer["up"]) @ layer["down"]

    def plain_model(params, cache, tokens, position):
        x = params["table"][tokens] * 2.0
        updated = []
        for layer, state in zip(params["layers"], cache, strict=True):
            out, state = attend(layer, state, x / (1 + jnp.abs(x).mean()), position)
            x = x + out
            x = x + mlp(layer, x / (1 + jnp.abs(x).mean()))
            updated.append(state)
        return x @ params["table"].T, updated

    def layer(seed):
        square = {n: normal(WIDTH, WIDTH, seed=seed + i) for i, n in enumerate("qkvo")}
        return square | {
            "up": normal(WIDTH, 32, seed=seed + 4),
            "down": normal(32, WIDTH, seed=seed + 5),
        }

    params = {"table": normal(50, WIDTH), "layers": [layer(10 * i) for i in range(3)]}
    cache = [(np.zeros((12, WIDTH), np.float32),) * 2 for _ in range(3)]
    tokens = np.arange(6, dtype=np.int32) * 7 % 50
    return Specimen(fn=plain_model, args=(params, cache, tokens, np.int32(2)), carried={1: 1})


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, deterministic=True)(y, y)
        y = nn.Dense(32)(nn.LayerNorm()(x))
        return x + nn.Dense(WIDTH)(nn.gelu(y))


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(50, WIDTH)(tokens)
        for i in range(2):
            x = Block(name=f"block_{i}")(x)
        return nn.Dense(50, name="head")(nn.LayerNorm()(x))


def linen() -> Specimen:
    """A Linen transformer of two blocks."""
    tokens = np.arange(8, dtype=np.int32).reshape(2, 4)
    model = LinenModel()
    variables = jax.tree.map(np.asarray, model.init(jax.random.key(0), tokens))
    return Specimen(fn=model.apply, args=(variables, tokens))


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.convs = nnx.List(
            [nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.Conv(4, 4, (3, 3), rngs=rngs)]
        )
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.hidden = nnx.Linear(4 * 36, WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, 5, rngs=rngs)

    def __call__(self, x):
        for conv in self.convs:
            x = nnx.relu(conv(x))
        x = self.norm(x)
        return self.out(jnp.tanh(self.hidden(x.reshape(x.shape[0], -1))))


def nnx_model() -> Specimen:
    """An NNX convolutional network with batch statistics."""
    graphdef, state = nnx.split(NnxModel(nnx.Rngs(0)))

    def nnx_apply(state, x):
        return nnx.merge(graphdef, state)(x)

    state = jax.tree.map(np.asarray, state)
    return Specimen(fn=nnx_apply, args=(state, normal(2, 6, 6, 3)))


def scanned(reverse=False) -> Specimen:
    """A scan over stacked layers with carried state by layer, a stacked output and a global
    counter."""

    def scanned_model(params, x, state, bias):
        def layer(x, rows):
            weights, memory, shift = rows
            x = jnp.tanh(x @ weights) + shift
            return x, (memory * 0.5 + x.sum(0), x.mean(), 2 * x)

        x, (memory, means, doubled) = jax.lax.scan(
            layer, x, (params["layers"], state["memory"], bias), reverse=reverse
        )
        state = {"memory": memory, "unused": state["unused"]}
        return x @ params["head"], state, means, doubled, bias, jnp.arange(3)

    params = {
        "layers": np.stack([normal(WIDTH, WIDTH, seed=i) for i in range(5)]),
        "head": normal(WIDTH, 3),
    }
    state = {"memory": normal(5, WIDTH, seed=8), "unused": np.ones(2, np.float32)}
    args = (params, normal(4, WIDTH), state, normal(5, WIDTH, seed=9))
    return Specimen(fn=scanned_model, args=args, carried={2: 1})


def scanned_back() -> Specimen:
    """The same scan from the last layer to the first."""
    return scanned(reverse=True)


def exchanged() -> Specimen:
    """State whose leaves change places, and whose old value comes out as well."""

    def exchanged_model(params, x, state):
        x = x @ params["w"] + state["a"]
        x = jnp.tanh(x @ params["w"])
        x = (x + 1.0) @ params["w"]
        return x, {"a": state["b"], "b": state["a"], "c": state["c"] + x.sum()}, state["a"]

    state = {"a": normal(WIDTH), "b": normal(WIDTH, seed=1), "c": np.float32(2.0)}
    return Specimen(
        fn=exchanged_model,
        args=({"w": normal(WIDTH, WIDTH)}, normal(3, WIDTH), state),
        carried={2: 1},
    )


def recurrent() -> Specimen:
    """A selective scan like Mamba's: h = a * h + b * x, so a step done twice shows for ever."""

    def recurrent_model(params, state, x):
        updated = []
        for layer, h in zip(params["layers"], state, strict=True):
            u = x @ layer["in"]
            h = jax.nn.sigmoid(layer["decay"] + u.mean(0)) * h + u.sum(0)
            x = x + jnp.tanh(u * h) @ layer["out"]
            updated.append(h)
        return x @ params["head"], updated

    layers = [
        {
            "in": normal(WIDTH, 24, seed=7 * i),
            "decay": normal(24, seed=7 * i + 1),
            "out": normal(24, WIDTH, seed=7 * i + 2),
        }
        for i in range(4)
    ]
    params = {"layers": layers, "head": normal(WIDTH, 5)}
    state = [np.zeros(24, np.float32) for _ in layers]
    return Specimen(fn=recurrent_model, args=(params, state, normal(3, WIDTH)), carried={1: 1})


KINDS = (plain, linen, nnx_model, scanned, scanned_back, exchanged, recurrent)
ZOO = {f.__name__: f for f in KINDS}
