"""Faults by seed against real processes: no pass is lost, none is applied twice, none is wrong.

A short run by default; GIMLAX_FAULTS and GIMLAX_PASSES say how many there shall be, GIMLAX_SEED
which.
"""

import os
import sys

from tests.faults.harness import run

NUM_FAULTS = int(os.environ.get("GIMLAX_FAULTS", "24"))
NUM_PASSES = int(os.environ.get("GIMLAX_PASSES", "100"))
SEED = int(os.environ.get("GIMLAX_SEED", "0"))


def test_every_pass_ends_once_and_right_whatever_happens():
    passes, done = run(SEED, NUM_FAULTS, NUM_PASSES, say=lambda line: print(line, file=sys.stderr))
    print(f"{passes} passes, {done.total()} faults: {dict(done)}", file=sys.stderr)
    assert passes >= NUM_PASSES
    assert done.total() >= NUM_FAULTS
