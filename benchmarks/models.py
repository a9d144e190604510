"""How long do models take to be traced, planned, compiled and loaded, and how much memory?

    python benchmarks/models.py --json=models.json

SmolLM2-135M from its GGUF file, and a small model of each architecture from random weights that
`gimlax.save` wrote, each cut in two over the first two backends. Every round of a model is a
process of its own, so that its memory is its own: "before loading" is what it had at most by then,
Python, JAX and the compiler included. Files were read before, so loading does not wait for the
disk, and pages of theirs that are mapped count as memory.
"""

import sys
import tempfile
from pathlib import Path

from absl import app, flags
from children import Child
from models_child import MODELS
from report import Figure, Report

from gimlax import models

JSON = flags.DEFINE_string("json", None, "write the report here too")
QUICK = flags.DEFINE_bool("quick", False, "one round of one model")
REPEATS = flags.DEFINE_integer("repeats", 3, "rounds over all models", lower_bound=1)


def main(argv: list[str]) -> None:
    del argv
    repeats = 1 if QUICK.value else REPEATS.value
    names = list(MODELS)[:1] if QUICK.value else list(MODELS)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: weights(name, Path(folder) / str(i)) for i, name in enumerate(names)}
        for turn in range(repeats):
            for name, path in paths.items():
                print(f"round {turn + 1} of {repeats}: {name}", flush=True)
                with Child(sys.executable, "models_child.py", "run", name, str(path)) as child:
                    for what, value in child.ready.items():
                        found[name].setdefault(what, []).append(value)
    figures = [
        Figure.of(f"{name}: {what.rpartition(', ')[0]}", values, what.rpartition(", ")[2])
        for name, of in found.items()
        for what, values in of.items()
    ]
    Report(benchmark="models", quick=QUICK.value, figures=tuple(figures)).publish(JSON.value)


def weights(name: str, folder: Path) -> Path:
    """Where the weights of a model are; random ones are written first."""
    if name.startswith("SmolLM2"):
        return Path(models.find_smollm2())
    with Child(sys.executable, "models_child.py", "write", name, str(folder)):
        return folder


if __name__ == "__main__":
    app.run(main)
