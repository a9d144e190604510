"""Applies any function to every row of a file, cut across backends.

python scripts/batch_apply.py --fn=package.module:make --input=rows.npy --output=made.npy --stages=2

`make()` returns (apply, params), as `gimlax.models.from_linen` and `from_nnx` give them, and
`apply(params, rows)` an array, or a dict of arrays, with a row for each. The input is a .npy, or a
.jsonl with an array a line (`rows` is an array), a .npz or a .jsonl with an object of arrays a line
(a dict); the output is any of the three, of which a .jsonl has null for NaN and infinity. A run
that was killed goes on where it was when the same command is given again.
"""

import functools
import importlib
import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import console
import deploying
import jax
import jobs
from absl import flags

import gimlax as gx
from gimlax import serving

FN = flags.DEFINE_string("fn", None, "package.module:make, found from this folder", required=True)
flags.adopt_module_key_flags(jobs)
flags.adopt_module_key_flags(deploying)
IN_FLIGHT = 4
ENDINGS = (".npy", ".npz", ".jsonl")


def main(argv: list[str]) -> None:
    del argv
    jobs.prepare()
    output = Path(jobs.OUTPUT.value)
    if output.suffix not in ENDINGS:
        raise gx.SpecError(f"output '{output}': its ending is none of {', '.join(ENDINGS)}")
    rows = serving.read_array_rows(Path(jobs.INPUT.value))
    first, end = serving.shard_of(jobs.SHARD.value, rows.num_rows)
    if rows.faults and output.suffix != ".jsonl":
        index, fault = next(iter(rows.faults.items()))
        raise gx.SpecError(
            f"{len(rows.faults)} rows are bad (row {index}: {fault}), and a {output.suffix} has no "
            "place for that; give a .jsonl as output"
        )
    journal = serving.Journal(output, belongs=jobs.belongs({"fn": FN.value}))
    if journal.complete:
        rows_there = journal.read() if output.suffix == ".jsonl" else ()
        num_errors = sum(map(is_error, rows_there))
        jobs.finish(serving.Kept(num_rows=end - first, num_errors=num_errors, stopped=False))
    apply, params = make()
    size = jobs.BATCH.value
    shapes = jax.eval_shape(apply, params, rows.shapes(size))
    serving.check_outputs(shapes, size)
    fit = ".npz" if isinstance(shapes, dict) else ".npy"
    if output.suffix not in (fit, ".jsonl"):
        what = "arrays by name" if isinstance(shapes, dict) else "one array"
        raise gx.SpecError(f"output '{output}': {what} are made; give a {fit} or a .jsonl")
    start = first + len(journal) - len(journal) % size
    found = made(apply, params, rows, start, end) if first + len(journal) < end else ()
    kept = serving.keep(
        journal,
        ((index - first, {"index": index, **record}) for index, record in found),
        is_error=is_error,
        max_errors=jobs.MAX_ERRORS.value,
    )
    if not kept.stopped:
        write = functools.partial(serving.write_arrays, shapes=shapes, num_rows=end - first)
        journal.finish(None if output.suffix == ".jsonl" else write)
    journal.close()
    jobs.finish(kept)


def make() -> tuple[Callable[..., Any], Any]:
    """What --fn names gives."""
    module, _, name = FN.value.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name or "make")
    except (ImportError, AttributeError, ValueError) as error:
        raise gx.SpecError(f"--fn={FN.value}: {error}; give package.module:make") from error
    given = found()
    if not isinstance(given, tuple) or len(given) != 2 or not callable(given[0]):
        raise gx.SpecError(
            f"--fn={FN.value}: it gave a {type(given).__name__}, not (apply, params)"
        )
    return given


def made(
    apply: Callable[..., Any], params: Any, rows: serving.ArrayRows, start: int, end: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields each row from `start` to `end` with its record; groups are those of every run."""
    size = jobs.BATCH.value
    cluster = deploying.find_cluster()
    traced = gx.trace(apply, params, rows.shapes(size), resident=(0,), name="apply")
    workload = gx.Workload({"apply": traced})
    plan = deploying.make_plan(workload, cluster, "throughput")
    with (
        deploying.compiled(plan, workload, cluster) as phases,
        console.progress("rows") as update,
    ):
        step, placed = phases["apply"], phases.place(params)
        waiting: deque[tuple[int, int, Any]] = deque()
        for at in itertools.chain(range(start, end, size), itertools.repeat(None)):
            if at is not None:
                to = min(at + size, end)
                waiting.append((at, to, step.submit(placed, rows.group(at, to, size))))
            if at is None or len(waiting) >= IN_FLIGHT:
                if not waiting:
                    return
                begin, to, pending = waiting.popleft()
                nulls = Path(jobs.OUTPUT.value).suffix == ".jsonl"  # which others read, too
                records = serving.records(pending.result(), to - begin, nulls=nulls)
                for index, record in enumerate(records, begin):
                    fault = rows.faults.get(index)
                    yield index, record if fault is None else {"error": fault}
                update(to - start, end - start, f"{to} of {end} rows")


def is_error(row: Any) -> bool:
    return "error" in row


if __name__ == "__main__":
    console.run(main)
