"""Runs in a process of its own: loads 2 GB onto two meshes and says what memory that took."""

import json
import resource
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import gimlax as gx
from gimlax.devices.candidates import find_candidates
from gimlax.devices.probe import load
from tests.models.safetensors_files import entry, head_of

SIZE, NUM_LAYERS, NUM_FILES = 8192, 16, 4
WIDE = "F32"  # of the last layer in files, which has to become the model's bfloat16
PLUGIN = "lammps"


def write(folder):
    """Sparse files of zeros, and their index."""
    index = {}
    for number in range(NUM_FILES):
        file, header, end = f"part-{number}.safetensors", {}, 0
        for layer in range(number, NUM_LAYERS, NUM_FILES):
            dtype, width = (WIDE, 4) if layer == NUM_LAYERS - 1 else ("BF16", 2)
            header[str(layer)] = entry(dtype, [SIZE, SIZE], end, end + width * SIZE * SIZE)
            end += width * SIZE * SIZE
            index[str(layer)] = file
        head = head_of(header)
        with (folder / file).open("wb") as opened:
            opened.write(head)
            opened.truncate(len(head) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def anonymous_bytes():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not say what memory is anonymous")


def most_resident_bytes():
    """The most that this process ever had, pages of mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Watch:
    """The most anonymous memory since it began."""

    def __init__(self):
        self.peak_bytes = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def look(self, *_):
        self.peak_bytes = max(self.peak_bytes, anonymous_bytes())

    def run(self):
        while not self.ended.wait(0.001):
            self.look()


def layers(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return x


def main():
    folder, how = Path(sys.argv[1]), sys.argv[2]
    write(folder)
    for candidate in find_candidates():
        if candidate.name == PLUGIN:
            load(candidate)
    shape = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.bfloat16)
    x = jax.ShapeDtypeStruct((1, SIZE), jnp.bfloat16)
    traced = gx.trace(layers, [shape] * NUM_LAYERS, x)
    plan = gx.plan(traced, gx.discover(), cuts=2)
    with gx.compile(plan, traced) as step:
        base_bytes, base_resident_bytes = anonymous_bytes(), most_resident_bytes()
        watch = Watch()
        watch.thread.start()
        if how == "load":
            params = gx.load(folder, plan=step, progress=watch.look)
        else:  # what the test has to be able to tell apart
            from gimlax.models.opening import open_tree

            params = step.place(
                jax.tree.map(np.array, open_tree(folder, step.resident[0], progress=watch.look))
            )
        watch.ended.set()
        watch.thread.join()
        print(
            json.dumps(
                {
                    "meshes": params.meshes,
                    "owned_bytes": params.nbytes,
                    "largest_bytes": 4 * SIZE * SIZE,
                    "taken_bytes": watch.peak_bytes - base_bytes,
                    "resident_bytes": most_resident_bytes() - base_resident_bytes,
                }
            )
        )


if __name__ == "__main__":
    main()
