"""The child's part: one stage, compiled for devices that are not there, by whatever JAX it has.

It reads a request (`request.json`) and the stage (`stage.bin`) in its folder and leaves its answer
there; what libraries print is none of it. It uses JAX and the parts of gimlax below `verification`,
from the folder of the parent's gimlax, so that its own environment needs no gimlax.
"""

import enum
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from gimlax.records import to_json
from gimlax.runtime.exporting import ExportedStage, load_stage
from gimlax.verification.answers import ANSWER_VERSION, ask_compiler

__all__ = ["ANSWER", "REQUEST", "STAGE", "main", "read_stage", "write_stage"]

REQUEST, STAGE, ANSWER = "request.json", "stage.bin", "answer.json"


def main(folder: Path) -> None:
    """Answers the request in a folder."""
    request = json.loads((folder / REQUEST).read_text("utf-8"))
    stage = read_stage(folder)

    def lower() -> Any:
        sizes = tuple(size for _, size in stage.axes)
        devices = np.array(_devices(request, int(np.prod(sizes)))).reshape(sizes)
        names = tuple(name for name, _ in stage.axes)
        return load_stage(stage, jax.sharding.Mesh(devices, names))

    answer = ask_compiler(lower)
    # Whole or not at all: the parent may end this process at any time.
    part = folder / f"{ANSWER}.part"
    part.write_text(to_json(answer, ANSWER_VERSION), "utf-8")
    os.replace(part, folder / ANSWER)


def _devices(request: dict[str, Any], count: int) -> list[Any]:
    """As many devices as a mesh has, of a topology or of this host."""
    if not request["topology"]:
        return jax.local_devices(backend=request["platform"])[:count]
    options = dict(request["options"])
    name = request["topology"]
    if "target_config" in options:  # a GPU is described, and its topology is one more option
        name, options["topology"] = "", name
    found = topologies.get_topology_desc(
        platform=request["platform"], topology_name=name, **options
    )
    return list(found.devices)[:count]


def write_stage(stage: ExportedStage, folder: Path) -> None:
    """Leaves a stage in a folder: its artefact, and what belongs to it."""
    (folder / STAGE).write_bytes(stage.artifact)
    (folder / f"{STAGE}.json").write_text(
        json.dumps(
            {
                "description": stage.description,
                "platform": stage.platform,
                "axes": stage.axes,
                "inputs": stage.inputs,
                "results": stage.results,
                "donates": stage.donates,
                "config": [(name, _plain(value)) for name, value in stage.config],
            }
        ),
        "utf-8",
    )


def _plain(value: Any) -> Any:
    """A value of JAX's configuration as JSON."""
    return value.value if isinstance(value, enum.Enum) else value


def read_stage(folder: Path) -> ExportedStage:
    """The stage that `write_stage` left in a folder."""
    record = json.loads((folder / f"{STAGE}.json").read_text("utf-8"))
    return ExportedStage(
        **{key: record[key] for key in ("description", "platform", "donates")},
        artifact=(folder / STAGE).read_bytes(),
        axes=tuple((name, size) for name, size in record["axes"]),
        inputs=tuple(tuple(map(tuple, spec)) for spec in record["inputs"]),
        results=tuple(tuple(map(tuple, spec)) for spec in record["results"]),
        config=tuple((name, value) for name, value in record["config"]),
    )
