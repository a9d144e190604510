"""From described meshes to live ones: found by the backend's registered name, kind and count.

A mesh may also be given; then it is checked, for one client above all: JAX builds a mesh over two
clients without complaint and fails later, with ids that are the same in both.
"""

from collections.abc import Iterable, Mapping

import jax
import numpy as np

from gimlax import _jax
from gimlax.devices.catalogue import catalogue
from gimlax.devices.discovery import start_backends
from gimlax.devices.mesh import MeshSpec
from gimlax.errors import BackendError, SpecError

__all__ = ["bind", "check_one_client"]


def bind(
    specs: Iterable[MeshSpec],
    meshes: Mapping[str, jax.sharding.Mesh] | None = None,
    *,
    over_processes: bool = False,
) -> dict[str, jax.sharding.Mesh]:
    """The live mesh for each described one, by name.

    Backends are started if JAX has not started any yet.

    Args:
        specs: what is wanted, for example those of a plan.
        meshes: live meshes to be used for specs of these names, instead of those that the spec's
            backend has.
        over_processes: whether a mesh has the devices of all processes that joined this one, see
            `join_processes`; else those of this one.

    Raises:
        SpecError: given meshes that do not fit their specs, or specs without a live backend.
        BackendError: a backend did not start, or has not the devices.
    """
    specs = tuple(specs)
    given = dict(meshes or {})
    names = [spec.name for spec in specs]
    mistakes = [
        f"mesh {name!r} was given, but nothing here is called so (there are "
        f"{', '.join(map(repr, names)) or 'none'}); leave it out or correct its name"
        for name in given
        if name not in names
    ]
    for spec in specs:
        if spec.name in given:
            mistakes += _misfits(spec, given[spec.name])
        elif not spec.backend:
            mistakes.append(
                f"mesh {spec.name!r} is only described, it has no live backend; pass "
                f"meshes={{{spec.name!r}: ...}} or name its backend in the cluster file"
            )
    if mistakes:
        raise SpecError("\n".join(mistakes))
    return {s.name: given[s.name] if s.name in given else _find(s, over_processes) for s in specs}


def check_one_client(mesh: jax.sharding.Mesh, name: str) -> None:
    """Raises `SpecError` for a mesh, called `name`, whose devices belong to several backends."""
    owners: dict[str, list[int]] = {}
    for position, device in enumerate(mesh.devices.flat):
        owners.setdefault(_jax.backend_name_of(device), []).append(position)
    if len(owners) > 1:
        had = " and ".join(
            f"{len(positions)} of backend {owner!r}" for owner, positions in owners.items()
        )
        raise SpecError(
            f"mesh {name!r} mixes backends: it has {had} devices; arrays live on one backend, so "
            "make one mesh for each"
        )


def _misfits(spec: MeshSpec, mesh: jax.sharding.Mesh) -> list[str]:
    """In what a given mesh differs from its spec."""
    try:
        check_one_client(mesh, spec.name)
    except SpecError as error:
        return [str(error)]
    where = f"mesh {spec.name!r}"
    misfits = []
    axes = tuple(zip(mesh.axis_names, mesh.devices.shape, strict=True))
    if axes != spec.axes:
        misfits.append(
            f"{where} was given with axes {dict(axes)}, but is planned with {dict(spec.axes)}; "
            "make it with these names and sizes"
        )
    kinds = sorted({device.device_kind for device in mesh.devices.flat})
    if wrong := [kind for kind in kinds if not _is_kind(kind, spec.device_kind)]:
        misfits.append(
            f"{where} was given with devices of kind {', '.join(map(repr, wrong))}, but is planned "
            f"for {spec.device_kind!r}; give other devices or plan anew"
        )
    return misfits


def _find(spec: MeshSpec, over_processes: bool) -> jax.sharding.Mesh:
    """The devices of a spec on the backend that it names, as a mesh."""
    where = f"mesh {spec.name!r}"
    if not spec.axes:
        raise SpecError(f"{where} leaves its axes to a planner; make a plan, which chooses them")
    if not _jax.backends_initialised():
        start_backends()
    if spec.backend not in _jax.backend_names():
        why = [b.reason for b in start_backends() if b.name == spec.backend]
        raise BackendError(
            f"{where}: backend {spec.backend!r} is not there "
            f"({why[0] if why else 'nothing installed provides it'}); live are "
            f"{', '.join(map(repr, _jax.backend_names()))}"
        )
    try:
        found = (jax.devices if over_processes else jax.local_devices)(backend=spec.backend)
    except RuntimeError as error:
        raise BackendError(f"{where}: backend {spec.backend!r} failed: {error}") from error
    stop = spec.first_device + spec.num_devices
    if stop > len(found):
        raise BackendError(
            f"{where} wants devices {spec.first_device} to {stop - 1} of backend "
            f"{spec.backend!r}, which has {len(found)}; plan for those that are there"
        )
    if over_processes and spec.num_devices < len(found):
        raise BackendError(
            f"{where} wants {spec.num_devices} of the {len(found)} devices that backend"
            f" {spec.backend!r} has in all processes; over several processes a mesh has all of them"
        )
    devices = found[spec.first_device : stop]
    if wrong := sorted(
        {d.device_kind for d in devices if not _is_kind(d.device_kind, spec.device_kind)}
    ):
        raise BackendError(
            f"{where} is planned for devices of kind {spec.device_kind!r}, but backend "
            f"{spec.backend!r} has {', '.join(map(repr, wrong))}; plan anew for what is there"
        )
    names = tuple(axis for axis, _ in spec.axes)
    return jax.sharding.Mesh(np.array(devices).reshape(spec.shape), names)


def _is_kind(reported: str, wanted: str) -> bool:
    """Whether a device that PJRT calls `reported` is of the kind that a spec calls `wanted`."""
    if reported == wanted:
        return True
    return any(
        wanted in (kind.name, *kind.aliases) and reported in (kind.name, *kind.aliases)
        for kind in catalogue()
    )
