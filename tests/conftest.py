"""Settings that hold for every test, and the hardware that they run on.

The second backend is a PJRT plugin for the CPU; it has to be registered before JAX starts, which is
why it happens here. Tests that need it take the fixture `plugin_name` and are skipped without it.
So it is with the vendors of `tests/vendor`, which need gcc as well, and the fixture `vendors`.
"""

import importlib.util

import hypothesis
import jax
import pytest

from gimlax import _jax, devices
from gimlax.devices.candidates import find_candidates
from gimlax.devices.probe import load
from tests import vendor

# The first example of a test may compile, so a deadline would measure the compiler; the same
# examples in every run, so that a failure on one machine is a failure on all.
hypothesis.settings.register_profile("gimlax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("gimlax")

PLUGIN = "lammps"
WHY_NO_VENDORS = pytest.StashKey[str]()


def pytest_addoption(parser):
    parser.addoption("--platform", help="registered name of the backend that tests/device tries")


def pytest_configure(config):
    jax.config.update("jax_num_cpu_devices", 2)
    only = config.getoption("--platform")
    if only:
        config.stash[WHY_NO_VENDORS] = "--platform is for tests/device alone"
    for candidate in find_candidates():
        if candidate.name == PLUGIN and only in (None, PLUGIN):
            load(candidate)
    try:
        for name, of in vendor.VENDORS.items():
            if only in (None, name):
                load(vendor.candidate(of))
    except vendor.CannotBuild as error:
        config.stash[WHY_NO_VENDORS] = str(error)


@pytest.fixture(scope="session")
def plugin_name():
    """The registered name of a backend that is not JAX's own."""
    jax.devices()
    if PLUGIN not in _jax.backend_names():
        pytest.skip("no second backend: pip install --no-deps -r requirements/demo.txt")
    return PLUGIN


@pytest.fixture(scope="session")
def loaded_vendors(pytestconfig):
    """The vendors by name, as backends of this process; use `vendors` to change how they behave."""
    jax.devices()
    why = pytestconfig.stash.get(WHY_NO_VENDORS, "")
    if why:
        pytest.skip(why)
    return vendor.VENDORS


@pytest.fixture
def vendors(loaded_vendors):
    """The switches of each vendor by name; all are off again at the end."""
    switches = {name: vendor.Switches(of) for name, of in loaded_vendors.items()}
    yield switches
    for of in switches.values():
        of.reset()


@pytest.fixture(scope="session")
def cluster():
    """Two CPU devices of JAX's own, and one of the plugin where it is installed."""
    return devices.discover()


@pytest.fixture(scope="session")
def ray():
    """Skips where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("no Ray: pip install '.[ray]', or make test-ray")
