"""What does gimlax cost per call, per stage and per transfer, and what do two meshes gain over one?

    python benchmarks/overhead.py --json=overhead.json --spectrax=.venv-spectrax

Cases that are compared took turns in one run. A call lasts until its result is there.

- **Over workers** each stage is in a child process of its own, on one host. A call waits for its
  result, so it pays every hop; in a stream many passes are under way, and what it takes per stage
  is what dispatch takes of the processors.
- **SpectraX** runs the same transformer of two layers, a stage each, on two CPU devices of one
  process, as gimlax does in another process of the same kind; they take turns. Dispatch is the time
  until the call returns; both are also compared with the uncut model under `jax.jit`.

The goal over workers is 100 µs per stage. On a quiet machine (AMD Genoa, 2 cores, November 2026)
a stage of a stream takes 57 to 153 µs with one worker, as caller and worker find each other awake
or not, and 103 to 142 with two to four, which share the two cores with the caller; with other work
on the cores up to 200. In a call, whose hops come one after the other, each further stage takes 250
to 310. Of the processors a stage takes 110 µs with one worker and 200 to 240 with four, 45 of them
in the caller: 57 % is the interpreter's, 22 % the kernel's and 12 % JAX's.

What was tried beside: `SCHED_BATCH`, so that a message does not interrupt whoever runs, gave 79 to
106 µs with two and four workers, and calls that take four times as long once others use the cores
(10.3 ms instead of 2.6 through four workers). One thread of a worker for all of its sockets, and
letting passes in by thirds instead of one by one, changed nothing that could be told from noise.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from children import Child, interpreter
from report import Figure, Report, interleave

import gimlax as gx
from gimlax.devices import Link, MeshSpec, WorkerSpec

JSON = flags.DEFINE_string("json", None, "write the report here too")
QUICK = flags.DEFINE_bool("quick", False, "a tenth of the repeats")
SPECTRAX = flags.DEFINE_string("spectrax", None, "environment that has spectrax-lib")

NUM_PARAMETERS = 270
NUM_LAYERS = 8
MOST_WORKERS = 4
STREAM = 100  # passes
TURN = 50  # calls that one side makes before the other does
TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}


def main(argv: list[str]) -> None:
    del argv
    cluster = gx.discover()
    names = [mesh.name for mesh in cluster.meshes]
    tenth = 10 if QUICK.value else 1
    figures = call_figures(cluster, names[:1], 1000 // tenth)
    figures += stage_figures(cluster, names, 1000 // tenth)
    figures += throughput_figures(cluster, names, max(20 // tenth, 3))
    figures += worker_figures(cluster, names[0], 1000 // tenth)
    figures += peer_figures(max(20 // tenth, 3))
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


def worker_figures(cluster: gx.Cluster, here: str, repeats: int) -> list[Figure]:
    """1 to 4 stages of tiny programs, here and with a worker each."""
    params, x = layers(width=16, rows=1)
    host = np.asarray(x)
    numbers = range(1, MOST_WORKERS + 1)
    there = cluster_of([f"worker{i}" for i in numbers])
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(gx.start_workers(there))
        calls: dict[str, Callable[[], object]] = {}
        streams: dict[str, Callable[[], object]] = {}
        for number in numbers:
            on_workers = [mesh.name for mesh in there.meshes[:number]]
            for way, of, meshes, using in (
                ("here", cluster, [here] * number, None),
                ("over workers", there, on_workers, workers),
            ):
                run = stack.enter_context(
                    compiled(feed, params, x, cluster=of, meshes=meshes, workers=using)
                )
                placed = run.place(params)
                name = f"{stages_in_words(number)} {way}"
                calls[name] = functools.partial(call_and_wait, run, placed, host)
                streams[name] = functools.partial(submit_many, run, placed, host, STREAM)
        calls_s = interleave(calls, repeats=repeats, warmup=50)
        streams_s = interleave(streams, repeats=max(repeats // STREAM, 3), warmup=1)
    found = [microseconds(f"{name}, a call", samples) for name, samples in calls_s.items()]
    first, last = stages_in_words(1), stages_in_words(MOST_WORKERS)
    for way in ("here", "over workers"):
        more_s = (calls_s[f"{last} {way}"] - calls_s[f"{first} {way}"]) / (MOST_WORKERS - 1)
        found.append(microseconds(f"each additional stage {way}, in a call", more_s))
    for number in numbers:
        for way in ("here", "over workers"):
            name = f"{stages_in_words(number)} {way}"
            each_s = streams_s[name] / STREAM / number
            found.append(microseconds(f"{name}, a stage of a stream", each_s))
    return found


def peer_figures(turns: int) -> list[Figure]:
    """Two stages on two devices, next to SpectraX."""
    python = interpreter(SPECTRAX.value, "SpectraX", "bench-overhead")
    scripts = {"gimlax": (sys.executable, "dispatch_child.py")}
    if python:
        scripts["SpectraX"] = (python, "dispatch_spectrax.py")
    took_s: dict[str, dict[str, list[Any]]] = {name: {} for name in scripts}
    with contextlib.ExitStack() as stack:
        sides = {
            name: stack.enter_context(Child(*of, env=TWO_DEVICES)) for name, of in scripts.items()
        }
        for _ in range(turns):
            for name, side in sides.items():
                for case, samples in side.ask(TURN).items():
                    took_s[name].setdefault(case, []).append(np.median(samples, axis=0))
        print("; ".join(side.ready for side in sides.values()))
    found: list[Figure] = []
    medians = {n: {case: np.array(v) for case, v in of.items()} for n, of in took_s.items()}
    for name, of in medians.items():
        for which, what in enumerate(("dispatch", "until the result")):
            found.append(microseconds(f"2 layers uncut, {what}, {name}", of["uncut"][:, which]))
            found.append(microseconds(f"2 layers in 2 stages, {what}, {name}", of["cut"][:, which]))
    if python:
        ours, theirs = medians["gimlax"], medians["SpectraX"]
        for which, what in enumerate(("dispatch", "until the result")):
            ratio = ours["cut"][:, which] / theirs["cut"][:, which]
            found.append(Figure.of(f"2 stages, {what}, gimlax / SpectraX", ratio, "ratio"))
        over = [of["cut"][:, 1] - of["uncut"][:, 1] for of in (ours, theirs)]
        found.append(
            Figure.of("2 stages over uncut, gimlax / SpectraX", over[0] / over[1], "ratio")
        )
    return found


def cluster_of(names: Sequence[str]) -> gx.Cluster:
    """A worker of this host for each name, with a mesh that is called like it."""
    return gx.Cluster(
        workers=tuple(WorkerSpec(name=name, platforms="cpu") for name in names),
        meshes=tuple(
            MeshSpec(name=name, device_kind="cpu", backend="cpu", worker=name, memory_bytes=10**9)
            for name in names
        ),
        links=tuple(
            Link(source=a, target=b, latency_s=1e-4, bandwidth_bytes_per_s=1e9)
            for a in names
            for b in names
            if a != b
        ),
    )


def stages_in_words(number: int) -> str:
    return f"{number} stage{'s' * (number > 1)}"


def compiled(
    fn: Callable[..., Any],
    params: Any,
    x: jax.Array,
    *,
    cluster: gx.Cluster,
    meshes: Sequence[str],
    workers: gx.Workers | None = None,
) -> gx.Executable:
    """The function in as many stages as there are meshes, evenly cut."""
    traced = gx.trace(fn, params, x)
    plan = gx.plan(traced, cluster, cuts=len(meshes), meshes=meshes)
    return gx.compile(plan, traced, workers=workers)


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


def call_and_wait(run: gx.Executable, placed: Any, x: Any) -> None:
    jax.block_until_ready(run(placed, x))


def submit_many(run: gx.Executable, placed: Any, x: Any, count: int) -> None:
    futures = [run.submit(placed, x) for _ in range(count)]
    jax.block_until_ready([future.result() for future in futures])


def microseconds(name: str, samples_s: np.ndarray) -> Figure:
    return Figure.of(name, samples_s * 1e6, "us")


if __name__ == "__main__":
    app.run(main)
