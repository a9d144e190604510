"""What do two workers of one core each gain on a stream of prompts, next to two peers?

    python benchmarks/pipeline.py --json=pipeline.json --torch=.venv-parity --llama=.venv-llamacpp

SmolLM2-135M in float32 reads microbatches of 256 tokens, each a prompt of its own, and gives the
logits of its last token. Two workers, each pinned to one core, have half of the model each; one of
them also has all of it. One worker, two workers and each peer take turns in one run.

- **Cut.** Candidates next to the middle run in the same workers first; the one that is fastest is
  taken, by the shortest of three runs of each. (What a stage takes alone does not tell: both take
  longer when both run, and not alike.)
- **Bound.** With a_i and b_i the recorded seconds of microbatch i in the first and second stage,
  no schedule ends before the last C2: C1_i = C1_(i-1) + a_i, C2_i = max(C2_(i-1), C1_i) + b_i.
  That has fill, drain and whatever disturbed this run's stages in it, but no transfer and no
  dispatch. A run begins with the first `submit` and ends with the last result.
- **One worker** runs the same number of microbatches uncut, except beside the stream, where it runs
  a quarter of them: it has no fill, and its rate is what counts.
- **torch** runs `torch.distributed.pipelining` (GPipe, gloo) over two pinned processes of one
  thread, cut before the same layer, with random weights of the same shapes.
- **llama.cpp** reads 8 microbatches of one sequence, in float32, through two RPC servers of one
  thread.

On a quiet machine (AMD Genoa, November 2026) 8 microbatches take 1.006 times the bound, and a
stream of 64 gains 1.93 on two workers. 8 microbatches gain 1.73, as torch's do (1.72; 1.72 and 1.77
in a run before), of the 16/9 that two stages allow which take the same time and half of the whole.
Torch takes twice as long for each, and its ratios of one run lie 5 to 8 % apart.

Other work on the cores moves the gain of two over one, and hardly the share of the bound.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from children import Child, interpreter
from report import Figure, Report

import gimlax as gx
from gimlax import models
from gimlax.devices import Link, MeshSpec, WorkerSpec
from gimlax.graph import Chain, chain

JSON = flags.DEFINE_string("json", None, "write the report here too")
QUICK = flags.DEFINE_bool("quick", False, "one round, and a stream of 8")
MODEL = flags.DEFINE_string("model", None, "GGUF file; by default the installed SmolLM2-135M")
REPEATS = flags.DEFINE_integer("repeats", 5, "rounds of 8 microbatches", lower_bound=1)
STREAMS = flags.DEFINE_integer("streams", 2, "rounds of the stream", lower_bound=1)
TORCH = flags.DEFINE_string("torch", None, "environment that has torch")
LLAMA = flags.DEFINE_string("llama", None, "environment that has llama-cpp-py-sync")
CORES = flags.DEFINE_list("cores", ["0", "1"], "a core for each worker")

NUM_TOKENS = 256
FEW, MANY, TRIALS = 8, 64, 3
NAMES = ("one", "two")
CANDIDATES = (-1, 0, 1)  # segments from the middle, each half a layer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Seconds from the first submit to the last result, and of every microbatch in each stage."""

    took_s: float
    stages_s: tuple[tuple[float, ...], ...]

    @property
    def bound_s(self) -> float:
        """The earliest end that these stage times allow, one microbatch after the other."""
        ends = [0.0] * len(self.stages_s)
        for times in zip(*self.stages_s, strict=True):
            before = 0.0
            for stage, seconds in enumerate(times):
                before = ends[stage] = max(ends[stage], before) + seconds
        return ends[-1]


Call = Callable[[int], Run]


def main(argv: list[str]) -> None:
    del argv
    cores = [int(core) for core in CORES.value]
    repeats, streams, many = (1, 1, FEW) if QUICK.value else (REPEATS.value, STREAMS.value, MANY)
    path = MODEL.value or models.find_smollm2()
    config, params = models.load_llama(path, dtype="float32")
    rng = np.random.default_rng(0)
    shape = (FEW, 1, NUM_TOKENS)
    prompts = rng.integers(0, config.vocab_size, shape).astype(np.int32)
    found = chain(gx.trace(prefill(config), params, prompts[0]))
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(gx.start_workers(cluster_of(cores)))

        def deploy(cuts: Sequence[int], meshes: Sequence[str], into: contextlib.ExitStack) -> Call:
            plan = gx.plan(found, workers.cluster, cuts=cuts, meshes=meshes)
            phases = into.enter_context(gx.compile(plan, found, workers=workers))
            return calling(phases, phases.place(params), prompts, meshes)

        boundary, candidates = choose_cut(found, deploy)
        cases = {"one": deploy([], NAMES[:1], stack), "two": deploy([boundary], NAMES, stack)}
        peers = start_peers(stack, str(path), boundary, found.num_segments, cores)
        figures = of_few(cases, peers, repeats) + of_stream(cases, peers, streams, many)
    report = Report(benchmark="pipeline", quick=QUICK.value, figures=tuple(figures))
    notes = {
        "cut": f"before {found.phases[0].segments[boundary].name!r}, of {candidates}",
        **{name: child.ready["versions"] for name, child in peers.items()},
    }
    dataclasses.replace(report, environment={**report.environment, **notes}).publish(JSON.value)


def prefill(config: models.DecoderConfig) -> Callable[..., jax.Array]:
    """Logits of the last of 256 tokens, [vocab]; its cache begins and ends with the call."""
    apply = models.decoder_apply(config)

    def last_logits(params: Any, tokens: jax.Array) -> jax.Array:
        cache = models.init_cache(config, 1, NUM_TOKENS)
        logits, _ = apply(params, cache, tokens, jnp.int32(0), jnp.int32(NUM_TOKENS - 1))
        return logits[0, 0]

    return last_logits


def cluster_of(cores: Sequence[int]) -> gx.Cluster:
    """Two workers of this host, a core each."""
    return gx.Cluster(
        workers=tuple(
            WorkerSpec(name=name, platforms="cpu", cores=(core,))
            for name, core in zip(NAMES, cores, strict=True)
        ),
        meshes=tuple(
            MeshSpec(
                name=name, device_kind="cpu", backend="cpu", worker=name, memory_bytes=4 * 10**9
            )
            for name in NAMES
        ),
        links=tuple(
            Link(source=a, target=b, latency_s=1e-4, bandwidth_bytes_per_s=2e9)
            for a, b in (NAMES, NAMES[::-1])
        ),
    )


def calling(phases: gx.Executables, placed: Any, prompts: np.ndarray, meshes: Any) -> Call:
    """Runs so many prompts, recorded; has run once when it is returned."""
    (phase,) = phases.values()

    def call(count: int) -> Run:
        with phases.record() as recording:
            start_s = time.perf_counter()
            futures = [phase.submit(placed, prompts[i % len(prompts)]) for i in range(count)]
            for future in futures:
                future.result()
            took_s = time.perf_counter() - start_s
        spans = recording.timeline.spans
        stages_s = [tuple(s.end_s - s.start_s for s in spans if s.mesh == m) for m in meshes]
        return Run(took_s=took_s, stages_s=tuple(stages_s))

    call(2)
    return call


def choose_cut(found: Chain, deploy: Callable[..., Call]) -> tuple[int, str]:
    """The candidate that is run fastest, and what each took."""
    middle = found.num_segments // 2
    took_s: dict[int, float] = {}
    said = []
    for boundary in (middle + shift for shift in CANDIDATES):
        if found.splits(boundary):
            continue
        with contextlib.ExitStack() as stack:
            call = deploy([boundary], NAMES, stack)
            # Others disturb, none speeds up.
            took_s[boundary] = min(call(FEW).took_s for _ in range(TRIALS))
        name = found.phases[0].segments[boundary].name
        said.append(f"{name} {took_s[boundary]:.3f} s")
    return min(took_s, key=took_s.__getitem__), ", ".join(said)


def start_peers(
    stack: contextlib.ExitStack, path: str, boundary: int, num_segments: int, cores: Sequence[int]
) -> dict[str, Child]:
    """Those whose environment is there. The part of all segments before the cut goes to them."""
    peers: dict[str, Child] = {}
    before = str(boundary / num_segments)
    pinned = ",".join(map(str, cores))
    if python := interpreter(TORCH.value, "torch", "bench-pipeline"):
        peers["torch"] = Child(python, "pipeline_torch.py", before, pinned)
    if python := interpreter(LLAMA.value, "llama.cpp", "bench-pipeline"):
        peers["llama.cpp"] = Child(python, "pipeline_llama.py", path, before, pinned)
    for child in peers.values():
        stack.enter_context(child)
    return peers


def of_few(cases: Mapping[str, Call], peers: Mapping[str, Child], repeats: int) -> list[Figure]:
    """Eight microbatches; all take turns."""
    runs: dict[str, list[Run]] = {name: [] for name in cases}
    took_s: dict[tuple[str, str], list[float]] = {}
    for _ in range(repeats):
        for name, call in cases.items():
            runs[name].append(call(FEW))
        for peer, child in peers.items():
            for name in cases:
                took_s.setdefault((peer, name), []).append(child.ask([name, FEW])["took_s"])
    for name, found in runs.items():
        took_s["gimlax", name] = [run.took_s for run in found]
    figures = [
        Figure.of(f"{FEW} microbatches, {who}, {name}", np.array(seconds), "s")
        for (who, name), seconds in took_s.items()
    ]
    for stage, name in enumerate(NAMES):
        seconds = np.concatenate([run.stages_s[stage] for run in runs["two"]])
        figures.append(Figure.of(f"a microbatch in stage {name!r}", seconds * 1e3, "ms"))
    bounds = [run.bound_s / run.took_s for run in runs["two"]]
    figures.append(Figure.of(f"{FEW} microbatches, bound / run, gimlax", bounds, "ratio"))
    for who in ("gimlax", *peers):
        ratios = np.array(took_s[who, "one"]) / np.array(took_s[who, "two"])
        figures.append(Figure.of(f"{FEW} microbatches, one / two, {who}", ratios, "ratio"))
    return figures


def of_stream(
    cases: Mapping[str, Call], peers: Mapping[str, Child], repeats: int, many: int
) -> list[Figure]:
    """A long stream on two, beside a quarter of it on one before it and after it."""
    rates: dict[tuple[str, str], list[float]] = {}
    bounds = []

    def add(who: str, name: str, count: int, took_s: float) -> None:
        rates.setdefault((who, name), []).append(count * NUM_TOKENS / took_s)

    for _ in range(repeats):
        for name, count in (("one", many // 4), ("two", many)):
            run = cases[name](count)
            add("gimlax", name, count, run.took_s)
            if name == "two":
                bounds.append(run.bound_s / run.took_s)
            if "torch" in peers:
                add("torch", name, count, peers["torch"].ask([name, count])["took_s"])
    figures = [
        Figure.of(f"stream of {many}, {who}, {name}", rate, "tokens/s")
        for (who, name), rate in rates.items()
    ]
    for who in dict.fromkeys(who for who, _ in rates):
        ratios = np.array(rates[who, "two"]) / np.array(rates[who, "one"])
        figures.append(Figure.of(f"stream of {many}, two / one, {who}", ratios, "ratio"))
    return [*figures, Figure.of(f"stream of {many}, bound / run, gimlax", bounds, "ratio")]


if __name__ == "__main__":
    app.run(main)
