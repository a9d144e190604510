"""Embeds texts with a sentence encoder that is cut across the backends of this machine.

python scripts/embed.py --input=texts.txt --output=embeddings.npy
"""

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import console
import jax
import numpy as np
from absl import flags

import gimlax as gx
from gimlax import models, serving
from gimlax.models.decoder import DType

MODEL = flags.DEFINE_string(
    "model", None, "folder of a BERT encoder; by default the installed all-MiniLM-L6-v2"
)
INPUT = flags.DEFINE_string("input", None, "one text a line, or .jsonl", required=True)
FIELD = flags.DEFINE_string("field", "text", "of each object of a .jsonl, its text")
OUTPUT = flags.DEFINE_string("output", None, ".npy or .jsonl, in order of the input", required=True)
BATCH = flags.DEFINE_integer("batch", 32, "texts in one pass", lower_bound=1, upper_bound=65536)
MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", None, "of a text that are looked at; by default what the model was made for"
)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of weights and arithmetic")
STAGES = flags.DEFINE_integer(
    "stages", None, "number of stages; the planner says where to cut", lower_bound=1
)
MESHES = flags.DEFINE_list("meshes", None, "mesh of each stage; by default the planner chooses")
CHECK = flags.DEFINE_bool("check", False, "compare the embeddings with those of the uncut model")
WRITERS = {".npy": serving.write_npy, ".jsonl": serving.write_jsonl}
BATCHES_AT_ONCE = 32  # after which rows are on the disk
LEAST_COSINE = 0.9999


def main(argv: list[str]) -> None:
    del argv
    console.prepare_jax()
    console.check_output(OUTPUT.value)
    output = Path(OUTPUT.value)
    if output.suffix not in WRITERS:
        raise gx.SpecError(f"output '{output}': its ending is none of {', '.join(WRITERS)}")
    texts = read_texts(Path(INPUT.value))
    folder = Path(MODEL.value) if MODEL.value else models.find_minilm()
    with console.progress("weights"):
        encoder = models.load_sentence_encoder(folder, dtype=cast(DType, DTYPE.value))
    longest = min(MAX_TOKENS.value or encoder.max_tokens, encoder.config.max_context)
    rows = serving.Rows(output, belongs=belongs(folder, longest), width=encoder.config.width)
    num_done = len(rows)
    with console.progress("tokens"):
        ids = encoder.tokenizer.encode(texts[num_done:], max_tokens=longest)
    if ids:
        embed(encoder, longest, ids, rows)
    if CHECK.value:
        check(encoder, longest, ids, rows.read()[num_done:])
    rows.finish(WRITERS[output.suffix])
    print(f"{len(texts)} embeddings of {encoder.config.width} numbers written to {output}")


def read_texts(path: Path) -> list[str]:
    """One text for each line; blank lines of a text file are texts too.

    A bad line is named, and not passed over: embeddings have no place for an error.
    """
    lines = serving.read_lines(path)
    for number, line in enumerate(lines, 1):
        try:
            serving.check_utf8(line)
        except gx.SpecError as error:
            raise gx.SpecError(f"input '{path}', line {number}: {error}") from error
    if path.suffix != ".jsonl":
        return lines
    return [text_of(path, number, line) for number, line in enumerate(lines, 1)]


def text_of(path: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)[FIELD.value]
    except (ValueError, TypeError, KeyError) as error:
        raise gx.SpecError(
            f"input '{path}', line {number}: no object with {FIELD.value!r} ({error!r})"
        ) from error
    if not isinstance(text, str):
        raise gx.SpecError(f"input '{path}', line {number}: {FIELD.value!r} is no string")
    return text


def belongs(folder: Path, longest: int) -> dict[str, Any]:
    """What embeddings depend on, so that those of another job are not gone on with."""
    with Path(INPUT.value).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with console.progress("files of the model"):
        files = json.dumps(serving.digests_of(folder)).encode()
    return {
        "input": digest,
        "field": FIELD.value,
        "model": str(folder.resolve()),
        "files": hashlib.sha256(files).hexdigest(),
        "max_tokens": longest,
        "dtype": DTYPE.value,
    }


def embed(
    encoder: models.SentenceEncoder, longest: int, ids: list[np.ndarray], rows: serving.Rows
) -> None:
    """Embeds what is left, and keeps it piece by piece."""
    model = serving.EncoderModel(
        apply=encoder.apply, params=encoder.params, batch=BATCH.value, max_tokens=longest
    )
    size = BATCH.value * BATCHES_AT_ONCE
    pieces = [model.batches(ids[start : start + size]) for start in range(0, len(ids), size)]
    workload = model.workload([batch for piece in pieces for batch in piece])
    with console.progress("backends"):
        cluster = gx.discover()
    with console.progress("plan"):
        plan = gx.plan(
            workload,
            cluster,
            objective=gx.Objective(goal="throughput"),
            cuts=STAGES.value,
            meshes=MESHES.value,
        )
    print(plan, flush=True)
    with console.progress("compilation") as update:
        steps = gx.compile(
            plan, workload, progress=lambda step: update(step.done, step.total, step.what)
        )
    with steps, console.progress("embedding") as update:
        params = steps.place(encoder.params)
        done = 0
        for piece in pieces:
            found = np.empty((sum(len(b.index) for b in piece), encoder.config.width), np.float32)
            for batch, embeddings in serving.embed(piece, steps, params):
                found[list(batch.index)] = embeddings
                done += len(batch.index)
                update(done, len(ids), f"{done} of {len(ids)} texts")
            rows.append(found)


def check(
    encoder: models.SentenceEncoder, longest: int, ids: list[np.ndarray], found: np.ndarray
) -> None:
    """Compares with the uncut model on JAX's default device, text by text."""
    model = serving.EncoderModel(
        apply=encoder.apply, params=encoder.params, batch=BATCH.value, max_tokens=longest
    )
    apply, least = jax.jit(model.apply), 1.0
    with console.progress("uncut model"):
        params = jax.device_put(model.params)
        for batch in model.batches(ids):
            wanted = np.asarray(apply(params, batch.tokens, batch.mask))[: len(batch.index)]
            least = min(least, float(cosines(found[list(batch.index)], wanted).min()))
    print(f"least cosine to the embeddings of the uncut model: {least:.7f}")
    if least < LEAST_COSINE:
        raise gx.InternalError("the cut model disagrees with the uncut one; please report it")


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return (one * other).sum(axis=-1) / lengths


if __name__ == "__main__":
    console.run(main)
