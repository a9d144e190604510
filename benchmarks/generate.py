"""How fast does a language model read and write, uncut and cut in two, in float32 and bfloat16?

    python benchmarks/generate.py --json=generate.json

Prefill takes 512 tokens; decode is of one sequence. All four models take turns in one run.
"""

import contextlib
import os
from collections.abc import Callable

import numpy as np
from absl import app, flags
from report import Figure, Report

import gimlax as gx
from gimlax import models, serving
from gimlax.models.decoder import DType

JSON = flags.DEFINE_string("json", None, "write the report here too")
QUICK = flags.DEFINE_bool("quick", False, "one repeat of few tokens")
MODEL = flags.DEFINE_string("model", None, "GGUF file; by default the installed SmolLM2-135M")
REPEATS = flags.DEFINE_integer("repeats", 5, "rounds over all models", lower_bound=1)

NUM_PROMPT_TOKENS = 512
DTYPES: tuple[DType, ...] = ("float32", "bfloat16")


def main(argv: list[str]) -> None:
    del argv
    repeats, num_new_tokens = (1, 9) if QUICK.value else (REPEATS.value, 33)
    context = NUM_PROMPT_TOKENS + num_new_tokens
    cluster = gx.discover()
    names = tuple(mesh.name for mesh in cluster.meshes)[:2]
    path = MODEL.value or models.find_smollm2()
    vocab_size = models.llama_config(models.read_gguf(path)).vocab_size
    prompt = np.random.default_rng(0).integers(0, vocab_size, NUM_PROMPT_TOKENS)
    request = serving.Request(prompt=tuple(prompt.tolist()), max_tokens=num_new_tokens)
    with contextlib.ExitStack() as stack:
        runners: dict[tuple[DType, str], serving.Runner] = {}
        for dtype in DTYPES:
            model = load(path, dtype, context)
            runners[dtype, "uncut"] = model.uncut()
            runners[dtype, "cut in two"] = cut(stack, model, cluster, names)
        found = measure(runners, request, repeats)
    report = Report(benchmark="generate", quick=QUICK.value, figures=figures(found))
    report.publish(JSON.value)


def load(path: str | os.PathLike[str], dtype: DType, context: int) -> serving.TextModel:
    config, params = models.load_llama(path, dtype=dtype)
    return serving.TextModel(
        apply=models.decoder_apply(config),
        params=params,
        cache=models.abstract_cache(config, 1, context),
        context=context,
        chunk=NUM_PROMPT_TOKENS,
    )


def cut(
    stack: contextlib.ExitStack,
    model: serving.TextModel,
    cluster: gx.Cluster,
    names: tuple[str, ...],
) -> serving.StepRunner:
    """The model in two stages, on two meshes where there are two."""
    workload = model.workload()
    meshes = (names * 2)[:2]
    phases = stack.enter_context(
        gx.compile(gx.plan(workload, cluster, cuts=2, meshes=meshes), workload)
    )
    return model.cut(phases, phases.place(model.params))


def measure(
    runners: dict[tuple[DType, str], serving.Runner], request: serving.Request, repeats: int
) -> dict[tuple[DType, str], list[serving.Statistics]]:
    """Statistics of each round by model, after one round that compiles."""
    found: dict[tuple[DType, str], list[serving.Statistics]] = {key: [] for key in runners}
    for round_ in range(repeats + 1):
        for key, runner in runners.items():
            tokens = list(serving.generate(runner, request))
            if round_:
                found[key].append(serving.Statistics.of(request, tokens))
    return found


def figures(found: dict[tuple[DType, str], list[serving.Statistics]]) -> tuple[Figure, ...]:
    """Rates of both phases, and the ratio of cut to uncut in each round."""
    rates: dict[str, Callable[[serving.Statistics], float]] = {
        f"prefill {NUM_PROMPT_TOKENS}": lambda s: s.prefill_tokens_per_s,
        "decode": lambda s: s.decode_tokens_per_s,
    }
    made = []
    for dtype in DTYPES:
        for phase, rate in rates.items():
            uncut, cut_ = (
                np.array([rate(s) for s in found[dtype, kind]]) for kind in ("uncut", "cut in two")
            )
            made += [
                Figure.of(f"{phase} {dtype}, uncut", uncut, "tokens/s"),
                Figure.of(f"{phase} {dtype}, cut in two", cut_, "tokens/s"),
                Figure.of(f"{phase} {dtype}, cut in two / uncut", cut_ / uncut, "ratio"),
            ]
    return tuple(made)


if __name__ == "__main__":
    app.run(main)
