"""Plans a model for the hardware of a cluster file: no weights, no devices.

python scripts/plan.py --model=llama3-70b --cluster=cluster.toml --objective=throughput
"""

import re
from pathlib import Path
from typing import cast

import console
from absl import flags
from workloads import (
    IMAGES,
    MODELS,
    RECURRENT,
    decoder_workload,
    image_workload,
    recurrent_workload,
)

import gimlax as gx
from gimlax.devices import Calibration
from gimlax.models.decoder import DType
from gimlax.planning import check_known

MODEL = flags.DEFINE_enum(
    "model", "smollm2-135m", sorted({*MODELS, *RECURRENT, *IMAGES}), "what to plan"
)
CLUSTER = flags.DEFINE_string("cluster", None, "TOML file with meshes and links", required=True)
OBJECTIVE = flags.DEFINE_enum(
    "objective", "latency", ["latency", "throughput", "usd", "joules"], "what to plan for"
)
MOST = 2**24  # of any count: beyond what a model has positions for, and far within 64 bits
PROMPT_TOKENS = flags.DEFINE_integer(
    "prompt_tokens", 512, "length of a prompt", lower_bound=1, upper_bound=MOST
)
NEW_TOKENS = flags.DEFINE_integer(
    "new_tokens", 64, "decoded tokens a request", lower_bound=1, upper_bound=MOST
)
BATCH = flags.DEFINE_integer(
    "batch", 1, "sequences or images in one pass", lower_bound=1, upper_bound=MOST
)
CONTEXT = flags.DEFINE_integer(
    "context", 2048, "positions of the cache, where there is one", lower_bound=1, upper_bound=MOST
)
PIXELS = flags.DEFINE_integer(
    "pixels", 1024, "rows and columns of an image", lower_bound=1, upper_bound=MOST
)
STEPS = flags.DEFINE_integer("steps", 28, "from noise to an image", lower_bound=1, upper_bound=MOST)
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "of weights and arithmetic")
STAGES = flags.DEFINE_integer(
    "stages", None, "number of stages; the planner says where to cut", lower_bound=1
)
CUTS = flags.DEFINE_list("cuts", None, "segments before which to cut, as in 20,41")
MESHES = flags.DEFINE_list("meshes", None, "mesh of each stage; by default the planner chooses")
CALIBRATION = flags.DEFINE_string("calibration", None, "file of scripts/calibrate.py to rest on")
JSON = flags.DEFINE_string("json", None, "write the plan here")
flags.register_validator(
    "cuts",
    lambda cuts: cuts is None or (cuts and all(re.fullmatch(r" *\d{1,9} *", c) for c in cuts)),
    message="give numbers of segments, as in 20,41",
)
flags.mark_flags_as_mutual_exclusive(["stages", "cuts"])


def main(argv: list[str]) -> None:
    del argv
    console.check_output(JSON.value)
    cluster = gx.Cluster.load(CLUSTER.value)
    # Before the trace, which takes a while.
    objective = gx.Objective(goal=OBJECTIVE.value)
    check_known(cluster, objective, MESHES.value)
    given = CALIBRATION.value
    calibration = None if given is None else Calibration.load(given)
    cuts = None if CUTS.value is None else [int(cut) for cut in CUTS.value]
    chosen = gx.plan(
        workload(),
        cluster,
        objective=objective,
        cuts=cuts if STAGES.value is None else STAGES.value,
        meshes=MESHES.value,
        calibration=calibration,
    )
    print(chosen)
    print()
    print(chosen.explain())
    if JSON.value:
        chosen.save(Path(JSON.value))
        print(f"\nwritten to {JSON.value}")


def workload() -> gx.Workload:
    dtype, batch = cast(DType, DTYPE.value), BATCH.value
    prompt_tokens, new_tokens = PROMPT_TOKENS.value, NEW_TOKENS.value
    if MODEL.value in IMAGES:
        return image_workload(
            IMAGES[MODEL.value].with_dtype(dtype),
            batch=batch,
            pixels=PIXELS.value,
            num_steps=STEPS.value,
        )
    if MODEL.value in RECURRENT:
        return recurrent_workload(
            RECURRENT[MODEL.value].with_dtype(dtype),
            batch=batch,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
        )
    return decoder_workload(
        MODELS[MODEL.value].with_dtype(dtype),
        batch=batch,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        context=CONTEXT.value,
    )


if __name__ == "__main__":
    console.run(main)
