"""Answers prompts with a language model that is cut across the backends of this machine.

python scripts/generate.py --prompt="Why is the sky blue?" --stages=2 --check
"""

import dataclasses
from pathlib import Path
from typing import cast

import console
import deploying
from absl import flags

import gimlax as gx
from gimlax import models, serving
from gimlax.models.decoder import DType

Tokenizer = models.Tokenizer | models.FolderTokenizer
MODEL = flags.DEFINE_string(
    "model",
    None,
    "GGUF file or folder of Hugging Face: Llama, Mixtral, Mamba, Mamba-2; by default the installed "
    "SmolLM2-135M",
)
PROMPT = flags.DEFINE_string("prompt", "Why is the sky blue?", "what to answer")
PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "file with one prompt a line, instead")
RAW = flags.DEFINE_bool("raw", False, "continue the prompt as it is, without the chat template")
MAX_TOKENS = flags.DEFINE_integer("max_tokens", 64, "longest answer, in tokens")
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the most probable token")
TOP_P = flags.DEFINE_float("top_p", 1.0, "draw among the most probable tokens of this sum")
SEED = flags.DEFINE_integer("seed", 0, "of the random draws")
OBJECTIVE = flags.DEFINE_enum("objective", "latency", ["latency", "throughput"], "what to plan for")
CONTEXT = flags.DEFINE_integer("context", 512, "positions of the cache", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of weights and arithmetic")
TRACE = flags.DEFINE_string("trace", None, "write a timeline that ui.perfetto.dev opens")
WHY = flags.DEFINE_bool("why", False, "say what took longer than planned, and why")
CHECK = flags.DEFINE_bool("check", False, "compare the tokens with those of the uncut model")
flags.adopt_module_key_flags(deploying)


def main(argv: list[str]) -> None:
    del argv
    console.prepare_jax()
    console.check_output(TRACE.value)
    language = models.open_language(
        MODEL.value or models.find_smollm2(), dtype=cast(DType, DTYPE.value)
    )
    prompts = read_prompts()
    requests = [make_request(text, language.tokenizer) for text in with_template(prompts, language)]
    context = min(CONTEXT.value, language.max_context or CONTEXT.value)
    for request in requests:
        serving.check_fits(request.prompt, context)
    chunk = serving.chunk_length(max(len(r.prompt) for r in requests), context)
    if language.recurrent:
        context += -context % chunk

    cluster = deploying.find_cluster()
    model = serving.TextModel(
        apply=language.apply,
        params=language.params,
        cache=language.state(1, context),
        context=context,
        chunk=chunk,
        recurrent=language.recurrent,
    )
    workload = model.workload(num_new_tokens=MAX_TOKENS.value)
    plan = deploying.make_plan(workload, cluster, OBJECTIVE.value)
    with deploying.compiled(plan, workload, cluster) as phases:
        runner = model.cut(phases, deploying.loaded(language, phases))
        with console.progress("warm-up"):
            serving.warm_up(runner)
        with phases.record() as recording:
            answers = [
                answer(runner, request, language.tokenizer, prompt)
                for request, prompt in zip(requests, prompts, strict=True)
            ]
        statistics = [serving.Statistics.of(r, a) for r, a in zip(requests, answers, strict=True)]
        programs = [phase.program for phase in phases.values()]
        print(f"\n{serving.Summary.of(statistics, programs, recording.timeline)}", flush=True)
        if WHY.value:
            print(f"\n{recording.timeline.compare(plan)}", flush=True)
        if TRACE.value:
            recording.timeline.save(TRACE.value)
            print(f"timeline written to {TRACE.value}")
        if CHECK.value:
            model = dataclasses.replace(model, params=language.load(verify=False))
            print_check(model, runner, requests, answers)


def read_prompts() -> list[str]:
    if not PROMPTS_FILE.value:
        return [PROMPT.value]
    try:
        lines = Path(PROMPTS_FILE.value).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise gx.SpecError(f"prompts file {PROMPTS_FILE.value!r}: {error}") from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise gx.SpecError(f"prompts file {PROMPTS_FILE.value!r}: no prompt in it; give one a line")
    return prompts


def with_template(prompts: list[str], language: models.LanguageModel) -> list[str]:
    if RAW.value:
        return prompts
    return [language.chat([{"role": "user", "content": prompt}]) for prompt in prompts]


def make_request(text: str, tokenizer: Tokenizer) -> serving.Request:
    return serving.Request(
        prompt=tuple(tokenizer.encode(text)),
        max_tokens=MAX_TOKENS.value,
        stop=frozenset(tokenizer.eos_ids),
        sampling=serving.Sampling(
            temperature=TEMPERATURE.value, top_p=TOP_P.value, seed=SEED.value
        ),
    )


def answer(
    runner: serving.Runner, request: serving.Request, tokenizer: Tokenizer, prompt: str
) -> list[serving.Token]:
    print(f"\n> {prompt}\n", flush=True)
    stream = tokenizer.stream()
    tokens = []
    for token in serving.generate(runner, request):
        print(stream.push(token.id), end="", flush=True)
        tokens.append(token)
    print(stream.flush(), flush=True)
    return tokens


def print_check(
    model: serving.TextModel,
    runner: serving.Runner,
    requests: list[serving.Request],
    answers: list[list[serving.Token]],
) -> None:
    with console.progress("uncut model"):
        uncut = model.uncut()
        found = [
            serving.check(uncut, runner, request, [token.id for token in tokens])
            for request, tokens in zip(requests, answers, strict=True)
        ]
    total = serving.Agreement.total(found)
    print(f"tokens against the uncut model: {total}")
    if not total.agrees:
        raise gx.InternalError("the cut model disagrees with the uncut one; please report it")


if __name__ == "__main__":
    console.run(main)
