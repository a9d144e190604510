"""A transformer of two small layers as both sides of a comparison write it: numbers and formulas.

Needs JAX alone, so that it can be imported where gimlax is not installed.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

BATCH, LENGTH, WIDTH, HEADS = 2, 16, 64, 4
SHAPES = ((WIDTH, WIDTH),) * 4 + ((WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH))

Linear = Callable[[jax.Array], jax.Array]


def weights() -> list[list[np.ndarray]]:
    """Of both layers the matrices of query, key, value, output, up and down."""
    rng = np.random.default_rng(0)
    return [
        [rng.normal(scale=shape[0] ** -0.5, size=shape).astype(np.float32) for shape in SHAPES]
        for _ in range(2)
    ]


def example() -> np.ndarray:
    """An input, [batch, length, width]."""
    return np.random.default_rng(1).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)


def layer(x: jax.Array, linears: Sequence[Linear]) -> jax.Array:
    """Attention and an MLP, both added to what comes in."""
    query, key, value, output, up, down = linears
    q, k, v = (
        of(_norm(x)).reshape(BATCH, LENGTH, HEADS, WIDTH // HEADS) for of in (query, key, value)
    )
    scores = jnp.einsum("blhd,bmhd->bhlm", q, k) * (WIDTH // HEADS) ** -0.5
    mixed = jnp.einsum("bhlm,bmhd->blhd", jax.nn.softmax(scores), v)
    x = x + output(mixed.reshape(BATCH, LENGTH, WIDTH))
    return x + down(jax.nn.gelu(up(_norm(x))))


def _norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
