"""What does gimlax cost per call, per stage and per transfer, and what do two meshes gain over one?

    python benchmarks/overhead.py --json=overhead.json

Cases that are compared took turns in one run. A call lasts until its result is there.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from report import Figure, Report, interleave

import gimlax as gx

JSON = flags.DEFINE_string("json", None, "write the report here too")
QUICK = flags.DEFINE_bool("quick", False, "a tenth of the repeats")

NUM_PARAMETERS = 270
NUM_LAYERS = 8


def main(argv: list[str]) -> None:
    del argv
    cluster = gx.discover()
    names = [mesh.name for mesh in cluster.meshes]
    tenth = 10 if QUICK.value else 1
    figures = call_figures(cluster, names[:1], 1000 // tenth)
    figures += stage_figures(cluster, names, 1000 // tenth)
    figures += throughput_figures(cluster, names, max(20 // tenth, 3))
    Report(benchmark="overhead", quick=QUICK.value, figures=tuple(figures)).publish(JSON.value)


def call_figures(cluster: gx.Cluster, meshes: Sequence[str], repeats: int) -> list[Figure]:
    """One stage with many parameters against `jax.jit` of the same function."""

    def add_all(params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
        for value in params.values():
            x = x + value
        return x

    params = {f"layer{i}": jnp.full(8, 0.1) for i in range(NUM_PARAMETERS)}
    x = jnp.ones(8)
    jitted = jax.jit(add_all)
    with compiled(add_all, params, x, cluster=cluster, meshes=meshes) as run:
        placed = run.place(params)
        took_s = interleave(
            {
                "jit": lambda: jax.block_until_ready(jitted(params, x)),
                "call": lambda: jax.block_until_ready(run(placed, x)),
                "submit": lambda: jax.block_until_ready(run.submit(placed, x).result()),
            },
            repeats=repeats,
            warmup=20,
        )
    of = microseconds
    return [
        of(f"jax.jit, {NUM_PARAMETERS} parameters", took_s["jit"]),
        of("one stage", took_s["call"]),
        of("one stage over jax.jit", took_s["call"] - took_s["jit"]),
        Figure.of("one stage / jax.jit", took_s["call"] / took_s["jit"], "ratio"),
        of("submit over call (worker thread)", took_s["submit"] - took_s["call"]),
    ]


def stage_figures(cluster: gx.Cluster, names: Sequence[str], repeats: int) -> list[Figure]:
    """The same small layers in 1 and in 8 stages, on one mesh and going to and fro between two."""
    params, x = layers(width=16, rows=1)
    last = NUM_LAYERS - 1
    placements = {"1 stage": [names[0]], "8 stages": [names[0]] * NUM_LAYERS}
    if len(names) > 1:
        placements["8 stages, 7 transfers"] = [names[i % 2] for i in range(NUM_LAYERS)]
    with contextlib.ExitStack() as stack:
        cases: dict[str, Callable[[], object]] = {}
        for name, meshes in placements.items():
            run = stack.enter_context(compiled(feed, params, x, cluster=cluster, meshes=meshes))
            cases[name] = functools.partial(call_and_wait, run, run.place(params), x)
        took_s = interleave(cases, repeats=repeats, warmup=20)
    found = [microseconds(name, samples) for name, samples in took_s.items()]
    per_stage = (took_s["8 stages"] - took_s["1 stage"]) / last
    found.append(microseconds("each additional stage", per_stage))
    if len(names) > 1:
        per_transfer = (took_s["8 stages, 7 transfers"] - took_s["8 stages"]) / last
        found.append(microseconds("each transfer between clients", per_transfer))
    return found


def throughput_figures(cluster: gx.Cluster, names: Sequence[str], repeats: int) -> list[Figure]:
    """Many microbatches in flight: one stage on one mesh against two stages on two."""
    params, x = layers(width=512, rows=256)
    num_microbatches = 16
    placements = {"1 mesh": names[:1], "2 meshes": names[:2]}
    with contextlib.ExitStack() as stack:
        cases: dict[str, Callable[[], object]] = {}
        for name, meshes in placements.items():
            run = stack.enter_context(compiled(feed, params, x, cluster=cluster, meshes=meshes))
            cases[name] = functools.partial(
                submit_many, run, run.place(params), x, num_microbatches
            )
        took_s = interleave(cases, repeats=repeats, warmup=1)
    rate = {name: num_microbatches / samples for name, samples in took_s.items()}
    found = [Figure.of(f"microbatches on {n}", r, "1/s") for n, r in rate.items()]
    if len(names) > 1:
        ratio = rate["2 meshes"] / rate["1 mesh"]
        found.append(Figure.of("throughput, 2 meshes / 1", ratio, "ratio"))
    return found


def compiled(
    fn: Callable[..., Any], params: Any, x: jax.Array, *, cluster: gx.Cluster, meshes: Sequence[str]
) -> gx.Executable:
    """The function in as many stages as there are meshes, evenly cut."""
    traced = gx.trace(fn, params, x)
    plan = gx.plan(traced, cluster, cuts=len(meshes), meshes=meshes)
    return gx.compile(plan, traced)


def layers(*, width: int, rows: int) -> tuple[list[jax.Array], jax.Array]:
    """Parameters and input of `feed`."""
    rng = np.random.default_rng(0)
    shape = (NUM_LAYERS, width, width)
    weights = rng.normal(scale=width**-0.5, size=shape).astype(np.float32)
    return [jnp.asarray(w) for w in weights], jnp.ones((rows, width))


def feed(params: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    for weights in params:
        x = jnp.tanh(x @ weights)
    return x


def call_and_wait(run: gx.Executable, placed: Any, x: jax.Array) -> None:
    jax.block_until_ready(run(placed, x))


def submit_many(run: gx.Executable, placed: Any, x: jax.Array, count: int) -> None:
    futures = [run.submit(placed, x) for _ in range(count)]
    jax.block_until_ready([future.result() for future in futures])


def microseconds(name: str, samples_s: np.ndarray) -> Figure:
    return Figure.of(name, samples_s * 1e6, "us")


if __name__ == "__main__":
    app.run(main)
