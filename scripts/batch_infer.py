"""Answers every line of a file with a language model that is cut across backends.

python scripts/batch_infer.py --input=prompts.txt --output=answers.jsonl --stages=2

The input has a prompt a line; a .jsonl an object a line with a prompt or messages, or the lines of
OpenAI's batches. A run that was killed goes on where it was when the same command is given again.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import console
import deploying
import jobs
from absl import flags

import gimlax as gx
from gimlax import models, serving
from gimlax.models.decoder import DType

MODEL = flags.DEFINE_string(
    "model", None, "GGUF file or folder of Hugging Face; by default the installed SmolLM2-135M"
)
FIELD = flags.DEFINE_string("field", "prompt", "of each object, its prompt, if not 'messages'")
RAW = flags.DEFINE_bool("raw", False, "continue prompts as they are, without the chat template")
MAX_TOKENS = flags.DEFINE_integer("max_tokens", 64, "longest answer, in tokens", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the most probable token")
TOP_P = flags.DEFINE_float("top_p", 1.0, "draw among the most probable tokens of this sum")
SEED = flags.DEFINE_integer("seed", 0, "of the random draws of row 0; each row has the next one")
CONTEXT = flags.DEFINE_integer(
    "context", None, "positions of the cache; by default what the longest row needs", lower_bound=1
)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of weights and arithmetic")
flags.adopt_module_key_flags(jobs)
flags.adopt_module_key_flags(deploying)
SEEDS = 1 << 32


def main(argv: list[str]) -> None:
    del argv
    jobs.prepare()
    lines = read_lines(Path(jobs.INPUT.value))
    first, end = serving.shard_of(jobs.SHARD.value, len(lines))
    language = models.open_language(
        MODEL.value or models.find_smollm2(), dtype=cast(DType, DTYPE.value)
    )
    journal = serving.Journal(Path(jobs.OUTPUT.value), belongs=belongs(language.path))
    form = find_format(lines, journal.began_s)
    if journal.complete:
        num_errors = sum(map(form.is_fault, journal.read()))
        jobs.finish(serving.Kept(num_rows=end - first, num_errors=num_errors, stopped=False))
    everything = serving.read_all(form, lines)
    asked, most = everything[first:end], serving.most_tokens(everything, MAX_TOKENS.value)
    with console.progress("tokens"):
        rows = [
            make_request(language, of, index, most) if isinstance(of, serving.Asked) else of
            for index, of in enumerate(asked, first)
        ]
    tokenizer = language.tokenizer
    found = answers(language, rows, len(journal)) if len(journal) < len(rows) else ()
    made = (
        (place, serving.line_of(form, at, lines[at], asked[place], answer, tokenizer.stream()))
        for place, answer in found
        for at in (first + place,)
    )
    kept = serving.keep(journal, made, is_error=form.is_fault, max_errors=jobs.MAX_ERRORS.value)
    if not kept.stopped:
        journal.finish()
    journal.close()
    jobs.finish(kept)


def read_lines(path: Path) -> list[str]:
    """The rows; a blank line is one in a text file, and none among objects."""
    lines = serving.read_lines(path)
    return [line for line in lines if line.strip()] if path.suffix == ".jsonl" else lines


def find_format(lines: list[str], began_s: int) -> serving.Format:
    if Path(jobs.INPUT.value).suffix != ".jsonl":
        return serving.TextLines(raw=RAW.value)
    if serving.is_openai(lines):
        return serving.OpenAiLines(created_s=began_s)
    return serving.JsonLines(raw=RAW.value, field=FIELD.value)


def belongs(model: Path) -> dict[str, Any]:
    """What answers depend on."""
    given = (FIELD, RAW, MAX_TOKENS, TEMPERATURE, TOP_P, SEED, CONTEXT, DTYPE)
    settings = {flag.name: flag.value for flag in given}
    return jobs.belongs({**jobs.model_of(model), **settings})


def make_request(
    language: models.LanguageModel, asked: serving.Asked, index: int, most: int
) -> serving.Request | gx.SpecError:
    settings: Mapping[str, Any] = asked.settings
    try:
        text = language.chat(asked.messages) if asked.prompt is None else asked.prompt
        request = serving.Request(
            prompt=tuple(language.tokenizer.encode(text)),
            max_tokens=settings.get("max_tokens", MAX_TOKENS.value),
            stop=frozenset(language.tokenizer.eos_ids),
            sampling=serving.Sampling(
                temperature=settings.get("temperature", TEMPERATURE.value),
                top_p=settings.get("top_p", TOP_P.value),
                seed=settings.get("seed", (SEED.value + index) % SEEDS),
            ),
        )
        longest = CONTEXT.value or language.max_context
        if longest is not None:
            serving.check_fits(request.prompt, min(longest, language.max_context or longest))
        if request.max_tokens > most and not CONTEXT.value and not language.recurrent:
            raise gx.SpecError(
                f"'max_tokens' is {request.max_tokens}, far more than other rows want, and each of "
                f"a batch would get as many positions; ask for {most} or fewer, or give --context"
            )
    except gx.SpecError as error:
        return error
    return request


def answers(
    language: models.LanguageModel,
    rows: Sequence[serving.Request | gx.SpecError],
    num_done: int,
) -> Iterator[tuple[int, serving.Answer | gx.SpecError]]:
    """Plans, compiles and runs; see `serving.answer_rows`."""
    size = jobs.BATCH.value
    requests = [row for row in rows if isinstance(row, serving.Request)]
    if not requests:
        yield from ((place, row) for place, row in enumerate(rows) if isinstance(row, Exception))
        return
    context, chunk = shape_of(language, requests)
    cluster = deploying.find_cluster()
    model = serving.TextModel(
        apply=language.apply,
        params=language.params,
        cache=language.state(size, context),
        context=context,
        chunk=chunk,
        recurrent=language.recurrent,
        batch=size,
    )
    workload = model.workload(num_new_tokens=MAX_TOKENS.value)
    plan = deploying.make_plan(workload, cluster, "latency")
    with contextlib.ExitStack() as running:
        phases = running.enter_context(deploying.compiled(plan, workload, cluster))
        runner = model.cut_rows(phases, deploying.loaded(language, phases))
        update = running.enter_context(console.progress("answers"))
        yield from serving.answer_rows(
            runner,
            rows,
            num_done,
            lambda done: update(done, len(rows), f"{done} of {len(rows)} rows"),
        )


def shape_of(language: models.LanguageModel, requests: list[serving.Request]) -> tuple[int, int]:
    """Positions of the state, and tokens of a prefill pass, for all rows of the job."""
    longest = max(len(request.prompt) for request in requests)
    context = CONTEXT.value or max(len(r.prompt) + r.max_tokens for r in requests)
    context = min(context, language.max_context or context)
    chunk = serving.chunk_length(longest, context)
    return context + (-context % chunk if language.recurrent else 0), chunk


if __name__ == "__main__":
    console.run(main)
