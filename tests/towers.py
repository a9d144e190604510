"""A model whose segments branch, and every order that they can have."""

import jax.numpy as jnp
import numpy as np

from gimlax.graph import arrows, chain, trace


def two_towers(widths=((8, 8), (8, 8, 8)), rows=3):
    """A stem, towers of layers that all read it and a shared mask, and a head.

    Args:
        widths: inside of the layers of each tower; between layers all are 8 wide.
        rows: of the input.

    Returns:
        The function, its parameters, its input, and its chain.
    """

    def apply(params, x):
        mask = jnp.arange(8) < 6  # a shadow, which each stage makes for itself
        x = jnp.tanh(x @ params["stem"])
        ends = []
        for tower in params["towers"]:
            y = x
            for up, down in tower:
                y = jnp.tanh(y @ up) @ down * mask
            ends.append(y)
        return sum(ends) @ params["head"]

    rng = np.random.default_rng(3)

    def matrix(a, b):
        return rng.normal(size=(a, b)).astype(np.float32) / np.sqrt(a).astype(np.float32)

    towers = [[(matrix(8, width), matrix(width, 8)) for width in tower] for tower in widths]
    params = {"stem": matrix(8, 8), "towers": towers, "head": matrix(8, 4)}
    x = rng.normal(size=(rows, 8)).astype(np.float32)
    return apply, params, x, chain(trace(apply, params, x))


def orders_of(model, done=()):
    """Every order of the segments in which each comes after what it reads."""
    if len(done) == model.num_segments:
        return [done]
    left = set(range(model.num_segments)) - set(done)
    ready = [s for s in sorted(left) if not any(a in left for a, b in arrows(model) if b == s)]
    return [order for s in ready for order in orders_of(model, (*done, s))]
