"""Mamba and Mamba-2 over workers that die and links that spoil: no pass is applied twice.

Their state is no cache of rows that can be written once more: a pass that is repeated, or left out,
changes every result behind it.
"""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from tests import specimens, zoo
from tests.faults.harness import Crew, Faults, Round

RELATIVE = 5e-6  # of one client, fused otherwise, over some 60 passes on the same state


def recurrent(model):
    """The model with tokens made of numbers, going on with the state that there is."""

    def going_on(params, state, x):
        tokens = x.astype(jnp.int32) % 61
        logits, state = model.apply(params, state, tokens, jnp.int32(1))
        return logits, state

    x = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    return zoo.Specimen(fn=going_on, args=(model.params, model.state, x), carried={1: 1})


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_no_pass_is_applied_twice(kind):
    crew = Crew(seed=3)
    faults = Faults(crew, seed=3)
    specimen = recurrent(specimens.LANGUAGE[kind]())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "worker .* is lost")
            crew.heal()
            round_ = Round(crew, specimen, ("one", "two", "three"), relative=RELATIVE)
            for fault in ("duplicate", "reorder", "swallow"):
                faults.link(round_, fault)
            faults.process(round_, "kill")
            round_.close()
    finally:
        crew.close()
    assert faults.done.total() == 4
