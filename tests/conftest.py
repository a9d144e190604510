"""Settings that hold for every test, and the hardware that they run on.

The second backend is a PJRT plugin for the CPU; it has to be registered before JAX starts, which is
why it happens here. Tests that need it take the fixture `plugin_name` and are skipped without it.
"""

import hypothesis
import jax
import pytest

from gimlax import _jax, devices
from gimlax.devices.candidates import find_candidates
from gimlax.devices.probe import load

# The first example of a test may compile, so a deadline would measure the compiler; the same
# examples in every run, so that a failure on one machine is a failure on all.
hypothesis.settings.register_profile("gimlax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("gimlax")

PLUGIN = "lammps"


def pytest_configure():
    jax.config.update("jax_num_cpu_devices", 2)
    for candidate in find_candidates():
        if candidate.name == PLUGIN:
            load(candidate)


@pytest.fixture(scope="session")
def plugin_name():
    """The registered name of a backend that is not JAX's own."""
    jax.devices()
    if PLUGIN not in _jax.backend_names():
        pytest.skip("no second backend: pip install --no-deps -r requirements/demo.txt")
    return PLUGIN


@pytest.fixture(scope="session")
def cluster():
    """Two CPU devices of JAX's own, and one of the plugin where it is installed."""
    return devices.discover()
