"""The device is found, and what its backend can do was asked."""

import jax
import pytest

from gimlax import devices
from gimlax.devices import Capabilities
from gimlax.errors import SpecError


def test_it_is_found_beside_the_cpu(backend):
    assert backend.num_devices == len(jax.local_devices(backend=backend.name)) > 0
    assert backend.device_kind
    assert backend.version
    assert jax.devices("cpu")


def test_every_capability_was_asked_for_and_how_is_said(backend):
    assert sorted(name for name, _ in backend.capabilities.how) == sorted(Capabilities.names())
    assert all(how for _, how in backend.capabilities.how)


def test_its_kind_has_a_card(backend):
    try:
        kind = devices.load_kind(backend.device_kind)
    except SpecError as error:
        pytest.skip(f"it cannot be planned for by discovery alone: {error}")
    assert kind.memory_bytes > 0
    assert any(mesh.backend == backend.name for mesh in devices.discover().meshes)
