"""What scripts share that work through a file row by row: input, output, shards, exit codes.

Exit code 0: every row is done; 1: some have an error instead; 3: more than --max_errors had; 2:
what was asked cannot be done; 143: SIGTERM.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

import console
import deploying
import stopping
from absl import flags

import gimlax as gx
from gimlax import serving

INPUT = flags.DEFINE_string("input", None, "file of rows; see the top of --help", required=True)
OUTPUT = flags.DEFINE_string("output", None, "rows in the order of the input", required=True)
BATCH = flags.DEFINE_integer("batch", 8, "rows in one pass", lower_bound=1, upper_bound=65536)
SHARD = flags.DEFINE_string("shard", "0/1", "i/n: the i-th of n parts of the rows, from 0")
MAX_ERRORS = flags.DEFINE_integer(
    "max_errors", None, "stop when more rows than this have an error", lower_bound=0
)


def prepare() -> None:
    """What comes before any work."""
    console.prepare_jax()
    console.check_output(OUTPUT.value)
    stopping.heed_sigterm()


def belongs(settings: dict[str, Any]) -> dict[str, Any]:
    """What rows depend on, so that those of another job are not gone on with."""
    cluster = deploying.CLUSTER.value
    where = {flag.name: flag.value for flag in (deploying.CUTS, deploying.STAGES, deploying.MESHES)}
    return {
        "input": sha256(Path(INPUT.value)),
        "batch": BATCH.value,
        "shard": SHARD.value,
        **where,
        "cluster": sha256(Path(cluster)) if cluster else None,
        **settings,
    }


def sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise gx.SpecError(f"'{path}' cannot be read: {error.strerror or error}") from error


def model_of(path: Path) -> dict[str, str]:
    """The model that rows depend on."""
    with console.progress("files of the model"):
        return {"model": str(path.resolve()), **serving.digests_of(path)}


def finish(kept: serving.Kept) -> None:
    """Says what there is, and ends with the exit code for it."""
    where = f"{OUTPUT.value}.part" if kept.stopped else OUTPUT.value
    print(f"{kept.num_rows} rows in {where}, {kept.num_errors} of them errors", flush=True)
    if kept.stopped:
        print(f"stopped: more than {MAX_ERRORS.value} errors")
        sys.exit(3)
    sys.exit(1 if kept.num_errors else 0)
