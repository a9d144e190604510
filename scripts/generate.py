"""Answers prompts with a language model that is cut across the backends of this machine.

python scripts/generate.py --prompt="Why is the sky blue?" --stages=2 --check
"""

import contextlib
from pathlib import Path
from typing import cast

import console
from absl import flags

import gimlax as gx
from gimlax import models, serving
from gimlax.models.decoder import DType

MODEL = flags.DEFINE_string("model", None, "GGUF file; by default the installed SmolLM2-135M")
PROMPT = flags.DEFINE_string("prompt", "Why is the sky blue?", "what to answer")
PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "file with one prompt a line, instead")
RAW = flags.DEFINE_bool("raw", False, "continue the prompt as it is, without the chat template")
MAX_TOKENS = flags.DEFINE_integer("max_tokens", 64, "longest answer, in tokens")
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the most probable token")
TOP_P = flags.DEFINE_float("top_p", 1.0, "draw among the most probable tokens of this sum")
SEED = flags.DEFINE_integer("seed", 0, "of the random draws")
STAGES = flags.DEFINE_integer(
    "stages", None, "number of stages; the planner says where to cut", lower_bound=1
)
CUTS = flags.DEFINE_list("cuts", None, "segments before which to cut, as in 20,41")
MESHES = flags.DEFINE_list("meshes", None, "mesh of each stage; by default the planner chooses")
OBJECTIVE = flags.DEFINE_enum("objective", "latency", ["latency", "throughput"], "what to plan for")
CONTEXT = flags.DEFINE_integer("context", 512, "positions of the cache", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of weights and arithmetic")
TRACE = flags.DEFINE_string("trace", None, "write a timeline that ui.perfetto.dev opens")
WHY = flags.DEFINE_bool("why", False, "say what took longer than planned, and why")
CLUSTER = flags.DEFINE_string(
    "cluster", None, "cluster file; by default what is found; its workers are started"
)
RAY = flags.DEFINE_bool(
    "ray", False, "start workers by way of Ray; without --cluster they are found so, too"
)
RAY_ADDRESS = flags.DEFINE_string(
    "ray_address", None, "host:port of a Ray to join, or ray://host:port; implies --ray"
)
INSECURE = flags.DEFINE_bool(
    "insecure", False, "join a Ray that lets in whoever reaches it, without a token"
)
CHECK = flags.DEFINE_bool("check", False, "compare the tokens with those of the uncut model")
flags.mark_flags_as_mutual_exclusive(["stages", "cuts"])


def main(argv: list[str]) -> None:
    del argv
    console.prepare_jax()
    console.check_output(TRACE.value)
    file = models.read_gguf(MODEL.value or models.find_smollm2())
    dtype = cast(DType, DTYPE.value)
    config = models.llama_config(file, dtype=dtype)
    context = min(CONTEXT.value, config.max_context)
    tokenizer = models.load_tokenizer(file)
    cuts, prompts = read_cuts(), read_prompts()
    requests = [make_request(text, tokenizer) for text in with_template(prompts, file)]
    for request in requests:
        serving.check_fits(request.prompt, context)

    with console.progress("backends"):
        cluster = find_cluster()
    with console.progress("weights") as update:
        _, params = models.load_llama(
            file, dtype=dtype, progress=lambda done, total: update(done, total, "")
        )
    model = serving.TextModel(
        apply=models.decoder_apply(config),
        params=params,
        cache=models.abstract_cache(config, 1, context),
        context=context,
        chunk=serving.chunk_length(max(len(r.prompt) for r in requests), context),
    )
    with console.progress("plan"):
        workload = model.workload(num_new_tokens=MAX_TOKENS.value)
        plan = gx.plan(
            workload,
            cluster,
            objective=gx.Objective(goal=OBJECTIVE.value),
            cuts=cuts,
            meshes=MESHES.value,
        )
    print(plan, flush=True)

    with contextlib.ExitStack() as running:
        workers = None
        if cluster.workers:
            with console.progress("workers"):
                workers = running.enter_context(
                    gx.start_workers(cluster, ray=ray(), insecure=INSECURE.value)
                )
        with console.progress("compilation") as update:
            phases = gx.compile(
                plan,
                workload,
                workers=workers,
                progress=lambda step: update(step.done, step.total, step.what),
            )
        running.enter_context(phases)
        with console.progress("placement"):
            runner = model.cut(phases, phases.place(params))
        with console.progress("warm-up"):
            serving.warm_up(runner)
        with phases.record() as recording:
            answers = [
                answer(runner, request, tokenizer, prompt)
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
            print_check(model, runner, requests, answers)


def find_cluster() -> gx.Cluster:
    if CLUSTER.value:
        return gx.Cluster.load(CLUSTER.value)
    return gx.discover(ray=ray(), insecure=INSECURE.value)


def ray() -> bool | str:
    return RAY_ADDRESS.value or RAY.value


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


def read_cuts() -> int | list[int] | None:
    if CUTS.value is None:
        return STAGES.value
    try:
        return [int(cut) for cut in CUTS.value]
    except ValueError as error:
        raise gx.SpecError(
            f"--cuts={','.join(CUTS.value)}: {error}; give numbers of segments"
        ) from error


def with_template(prompts: list[str], file: models.Gguf) -> list[str]:
    if RAW.value:
        return prompts
    template = models.load_chat_template(file)
    return [template.render([{"role": "user", "content": prompt}]) for prompt in prompts]


def make_request(text: str, tokenizer: models.Tokenizer) -> serving.Request:
    return serving.Request(
        prompt=tuple(tokenizer.encode(text)),
        max_tokens=MAX_TOKENS.value,
        stop=frozenset(tokenizer.eos_ids),
        sampling=serving.Sampling(
            temperature=TEMPERATURE.value, top_p=TOP_P.value, seed=SEED.value
        ),
    )


def answer(
    runner: serving.Runner, request: serving.Request, tokenizer: models.Tokenizer, prompt: str
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
