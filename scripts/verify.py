"""Compiles a model for hardware that is not here: no weights, no devices.

python scripts/verify.py --model=llama3-8b --topology='v5e:2x2,v6e:2x2,H100 SXM'
python scripts/verify.py --model=llama3-70b --cluster=cluster.toml

Exit code 0: every stage was compiled and fits. 1: something would not run. 2: a mistake in what was
asked. 3: nothing is wrong, but not all of it could be compiled here, or what memory it needs is not
known.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import console
import jax
from absl import flags
from workloads import MODELS, decoder_workload

import gimlax as gx
from gimlax import models
from gimlax.models.decoder import DType
from gimlax.verification import mesh_of

MODEL = flags.DEFINE_list(
    "model", ["smollm2-135m"], f"GGUF files, or some of {', '.join(MODELS)}: what to verify"
)
TOPOLOGY = flags.DEFINE_list(
    "topology", None, "hardware, each by itself: 'v5e:2x2', 'H100 SXM', '4 x H100 SXM'"
)
CLUSTER = flags.DEFINE_string("cluster", None, "TOML file with meshes and links, all in one plan")
MOST = 2**24  # of any count: beyond what a model has positions for, and far within 64 bits
PROMPT_TOKENS = flags.DEFINE_integer(
    "prompt_tokens", 512, "length of a prompt", lower_bound=1, upper_bound=MOST
)
NEW_TOKENS = flags.DEFINE_integer(
    "new_tokens", 64, "decoded tokens a request", lower_bound=1, upper_bound=MOST
)
BATCH = flags.DEFINE_integer("batch", 1, "sequences in one pass", lower_bound=1, upper_bound=MOST)
CONTEXT = flags.DEFINE_integer(
    "context", 2048, "positions of the cache", lower_bound=1, upper_bound=MOST
)
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "of weights and arithmetic")
TPU_PYTHON = flags.DEFINE_string(
    "tpu_python", None, "interpreter with libtpu; by default this one or that of .venv-tpu"
)
CUDA_PYTHON = flags.DEFINE_string(
    "cuda_python", None, "interpreter with JAX's CUDA plugin; by default this one or .venv-cuda"
)
TIME_LIMIT_S = flags.DEFINE_float(
    "time_limit_s", 900.0, "how long one stage may take to compile", lower_bound=0.1
)
FRESH = flags.DEFINE_bool("fresh", False, "compile again what the same versions compiled before")
JSON = flags.DEFINE_string("json", None, "write all verdicts here")
CALIBRATION_OUT = flags.DEFINE_string(
    "calibration_out", None, "write what stages need here, for plans to rest on (--calibration)"
)


def main(argv: list[str]) -> None:
    del argv
    console.check_output(JSON.value)
    console.check_output(CALIBRATION_OUT.value)
    clusters = dict(hardware())
    if not any(mesh.backend for of in clusters.values() for mesh in of.meshes):
        jax.config.update("jax_platforms", "cpu")  # no live device is asked for, so start none
    known = {"tpu": TPU_PYTHON.value, "cuda": CUDA_PYTHON.value}
    pythons = {platform: python for platform, python in known.items() if python is not None}
    records, worst, memories = [], 0, None
    for model in MODEL.value:
        workload = trace(model)
        for target, cluster in clusters.items():
            title = f"{model} on {target}"
            print(f"{title}\n")
            plan = gx.plan(workload, cluster)
            with console.progress("compiling") as update:
                found = gx.verify(
                    plan,
                    workload,
                    pythons=pythons,
                    time_limit_s=TIME_LIMIT_S.value,
                    cache=None if FRESH.value else cache_folder(),
                    progress=lambda of: update(of.done, of.total, of.what),
                )
            print(f"{found}\n")
            records.append({"name": model, "hardware": target, **json.loads(found.to_json())})
            memories = found.calibration(memories)
            worst = max(worst, 0 if found.ok else 1 if found.faults else 3, key=SEVERITY.index)
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(describe(records), indent=1) + "\n", "utf-8")
        print(f"written to {JSON.value}")
    if CALIBRATION_OUT.value and memories is not None:
        memories.save(CALIBRATION_OUT.value)
        print(f"written to {CALIBRATION_OUT.value}")
    sys.exit(worst)


SEVERITY = (0, 3, 1)  # exit codes, the worst last


def hardware() -> Iterator[tuple[str, gx.Cluster]]:
    """What to verify for, by what to call it."""
    if (TOPOLOGY.value is None) == (CLUSTER.value is None):
        raise gx.SpecError("give either --topology or --cluster: what hardware to verify for")
    if CLUSTER.value is not None:
        yield CLUSTER.value, gx.Cluster.load(CLUSTER.value)
    for topology in map(str.strip, TOPOLOGY.value or ()):
        yield topology, gx.Cluster(meshes=(mesh_of(topology, topology),), links=())


def trace(model: str) -> gx.Workload:
    """Prefill and decode of a model, from shapes; of a file only the header is read."""
    dtype = cast(DType, DTYPE.value)
    if model in MODELS:
        config = MODELS[model].with_dtype(dtype)
    elif Path(model).is_file():
        config = models.llama_config(models.read_gguf(model), dtype=dtype)
    else:
        raise gx.SpecError(
            f"model {model!r} is no file and none of {', '.join(MODELS)}; give a GGUF file or one"
            " of these"
        )
    return decoder_workload(
        config,
        batch=BATCH.value,
        prompt_tokens=PROMPT_TOKENS.value,
        new_tokens=NEW_TOKENS.value,
        context=min(CONTEXT.value, config.max_context),
    )


def describe(records: list[dict[str, object]]) -> dict[str, object]:
    """All verdicts, with what they are of."""
    return {
        "what": "verification",
        "batch": BATCH.value,
        "prompt_tokens": PROMPT_TOKENS.value,
        "new_tokens": NEW_TOKENS.value,
        "context": CONTEXT.value,
        "dtype": DTYPE.value,
        "verifications": records,
    }


def cache_folder() -> Path:
    """Where answers of compilers are kept between runs."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "gimlax" / "verify"


if __name__ == "__main__":
    console.run(main)
