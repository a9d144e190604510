"""Loops, branches and recurrences."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gimlax.runtime.conformance.making import Built, operation, some

__all__: list[str] = []


@operation
def cumsum(dtype: Any, rng: np.random.Generator) -> Built:
    return functools.partial(jnp.cumsum, axis=-1), (some(dtype, rng, 3, 77),)


@operation
def associative_scan(dtype: Any, rng: np.random.Generator) -> Built:
    def join(a: Any, b: Any) -> Any:
        return a[0] * b[0], a[1] * b[0] + b[1]

    decay = jax.nn.sigmoid(jnp.asarray(rng.standard_normal((77, 5)))).astype(dtype)
    fn = lambda a, x: lax.associative_scan(join, (a, x))  # noqa: E731
    return fn, (np.asarray(decay), some(dtype, rng, 77, 5))


@operation
def scan(dtype: Any, rng: np.random.Generator) -> Built:
    def fn(x: Any, weights: Any) -> Any:
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), x.sum()), x, weights)

    return fn, (some(dtype, rng, 3, 16), some(dtype, rng, 5, 16, 16, scale=0.25))


@operation
def while_loop(dtype: Any, rng: np.random.Generator) -> Built:
    def fn(x: Any, steps: Any) -> Any:
        return lax.while_loop(
            lambda s: s[1] > 0, lambda s: (s[0] + s[0] // 2, s[1] - 1), (x, steps)
        )

    return fn, (some(dtype, rng, 9), np.int32(5))


@operation
def cond(dtype: Any, rng: np.random.Generator) -> Built:
    branches = [lambda x: x + x, lambda x: -x, lambda x: x * 0]
    fn = lambda i, x: lax.switch(i, branches, x)  # noqa: E731
    return fn, (np.int32(1), some(dtype, rng, 9))


@operation
def selective_scan(dtype: Any, rng: np.random.Generator) -> Built:
    def fn(x: Any, delta: Any, a: Any, b: Any, c: Any) -> Any:
        def step(h: Any, row: Any) -> Any:
            x, delta, b, c = row
            h = jnp.exp(delta[:, None] * a) * h + (delta * x)[:, None] * b[None]
            return h, h @ c

        return lax.scan(step, jnp.zeros(a.shape, x.dtype), (x, delta, b, c))

    delta, a = np.exp(rng.uniform(-3, 0, (19, 6))), -np.exp(rng.uniform(-1, 1, (6, 4)))
    rows = some(dtype, rng, 19, 4), some(dtype, rng, 19, 4)
    return fn, (some(dtype, rng, 19, 6), delta.astype(dtype), a.astype(dtype), *rows)
