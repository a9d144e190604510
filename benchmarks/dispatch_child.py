"""Two layers, a stage each on a device of its own, timed; run as a script, gimlax does it.

Reads a number of calls a line; prints the seconds of each call of the uncut model under `jax.jit`
and of the cut one, taking turns: until it returned, and until its result was there.
"""

import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import numpy as np
from children import serve
from two_layers import example, layer, weights

WARM_UP = 200


def uncut(params: Any, x: jax.Array) -> jax.Array:
    for matrices in params:
        x = layer(x, [lambda y, w=w: y @ w for w in matrices])
    return x


def gimlax_call() -> Callable[[], jax.Array]:
    import gimlax as gx
    from gimlax.devices import Link, MeshSpec
    from gimlax.graph import chain

    names = ("first", "second")
    cluster = gx.Cluster(
        meshes=tuple(
            MeshSpec(
                name=name, device_kind="cpu", backend="cpu", first_device=i, memory_bytes=10**9
            )
            for i, name in enumerate(names)
        ),
        links=tuple(
            Link(source=a, target=b, latency_s=1e-5, bandwidth_bytes_per_s=1e9)
            for a, b in (names, names[::-1])
        ),
    )
    params = weights()
    x = jax.device_put(example(), jax.devices()[0])
    traced = gx.trace(uncut, params, x)
    segments = chain(traced).phases[0].segments
    second = next(i for i, segment in enumerate(segments) if segment.name.startswith("1."))
    step = gx.compile(gx.plan(traced, cluster, cuts=[second], meshes=names), traced)
    placed = step.place(params)
    return lambda: step(placed, x)


def answer(cut: Callable[[], jax.Array], package: str) -> None:
    """Checks what the cut model computes, and answers with how long it takes."""
    jitted, params, x = jax.jit(uncut), jax.device_put(weights()), jax.device_put(example())
    found, expected = np.asarray(cut()), np.asarray(jitted(params, x))
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6 * np.abs(expected).max())
    cases = {"uncut": lambda: jitted(params, x), "cut": cut}

    def measure(count: int) -> dict[str, list[list[float]]]:
        took: dict[str, list[list[float]]] = {name: [] for name in cases}
        for _ in range(count):
            for name, call in cases.items():
                start_s = time.perf_counter()
                result = call()
                returned_s = time.perf_counter()
                result.block_until_ready()
                took[name].append([returned_s - start_s, time.perf_counter() - start_s])
        return took

    measure(WARM_UP)
    serve(f"{package} {metadata.version(package)}, jax {jax.__version__}", measure)


if __name__ == "__main__":
    answer(gimlax_call(), "gimlax")
