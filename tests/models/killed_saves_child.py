"""Saves again and again, each time killed one step later, and loads what is there then.

Each save is a fork that ends at once, without cleaning up, before its n-th change to the disk. What
is loaded then has to be the tree of before, whole, until a save comes to its end. Prints how many
steps there were.
"""

import os
import sys
from pathlib import Path

import numpy as np

from gimlax.models.opening import open_tree
from gimlax.models.saving import save_tree

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree"}
KILLED = 77


def tree(value):
    return {"a": np.full((4, 5), value, np.float32), "b": [np.full(7, value, np.int32)]}


def killed(folder, step, work):
    """The exit code of a fork that does the work, and dies before the step-th change."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0

    def hook(event, args):
        nonlocal count
        writes = (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if (event in CHANGES or writes) and str(folder) in str(args[0]):
            count += 1
            if count > step:
                os._exit(KILLED)

    sys.addaudithook(hook)
    work()
    os._exit(0)


def main():
    root = Path(sys.argv[1])
    path = root / "model"
    save_tree(path, tree(1), shard_bytes=64)
    for step in range(1000):
        before = read(path)
        code = killed(root, step, lambda: save_tree(path, tree(2), shard_bytes=64))
        if code == 0:
            assert read(path) == 2
            assert [of.name for of in root.iterdir()] == ["model"]
            print(step)
            return
        assert code == KILLED, code
        assert read(path) in (before, 2), (step, before)
        if read(path) == 2:  # only its remains were not removed any more
            save_tree(path, tree(1), shard_bytes=64)
    raise AssertionError("no save came to its end")


def read(path):
    """The value in every place of what is there."""
    found = open_tree(path, tree(0))
    values = {int(v) for leaf in (found["a"], found["b"][0]) for v in np.asarray(leaf).ravel()}
    assert len(values) == 1, values
    return values.pop()


if __name__ == "__main__":
    main()
