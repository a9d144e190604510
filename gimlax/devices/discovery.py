"""Finding out what this process, or the hosts of a Ray, can compute on.

In this process what is found is started, too. Candidates are tried in child processes first; only
those that answered are started here. A JAX that has already started its backends is reported as it
is. Units: bytes, seconds.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from gimlax import _jax
from gimlax.checking import check_seconds
from gimlax.devices.asking import capabilities
from gimlax.devices.backends import Backend, Capabilities
from gimlax.devices.candidates import Candidate, find_candidates, find_missing
from gimlax.devices.catalogue import load_kind, read_data
from gimlax.devices.cluster import Cluster
from gimlax.devices.found_hosts import FoundHost, ask_hosts
from gimlax.devices.mesh import SHAREABLE, Link, MeshSpec
from gimlax.devices.probe import Answer, load, probe
from gimlax.devices.trouble import explain
from gimlax.devices.workers import WorkerSpec
from gimlax.errors import BackendError, SpecError
from gimlax.host_memory import host_memory_bytes
from gimlax.hosts import asked_address
from gimlax.records import to_json
from gimlax.units import GIB

__all__ = ["discover", "start_backends"]

_HOST = "localhost"
_PROBES_AT_ONCE = 2


def discover(
    *, ray: bool | str = False, insecure: bool = False, timeout_s: float = 60.0
) -> Cluster:
    """Every device that this process can use, as a cluster of one mesh a device.

    A mesh is called as its backend is, with `:index` behind where that has several devices. Devices
    whose memory is the host's share the host's compute and memory. The cluster's `backends` say
    what each backend can do, and why others are not here. Links copy through host memory; their
    figures are assumed ones, until a calibration replaces them.

    JAX keeps to the backends that it started first: call this before anything uses a device.

    With Ray, nothing is started here: each backend of each host becomes a worker 'host/backend',
    and meshes are called so. Links between hosts have assumed figures, too.

    Args:
        ray: True asks this host by way of a Ray of its own; an address asks the hosts of that Ray,
            see `gimlax.start_workers`.
        insecure: joins a Ray without a token.
        timeout_s: how long each candidate may take to start and to answer in its own process.

    Raises:
        SpecError: timeout_s is no positive number; ray or insecure is no such thing; Ray is not
            installed, or would be joined without a token.
        BackendError: nothing could be started; keeps what JAX said. Ray does not answer.
    """
    check_seconds("timeout_s", timeout_s)
    address = asked_address(ray, insecure)
    if address is not None:
        return _cluster_of(ask_hosts(address, insecure=insecure, timeout_s=timeout_s))
    known, meshes = _plannable(start_backends(timeout_s=timeout_s))
    return Cluster(
        meshes=tuple(meshes), links=tuple(_links(meshes, "host_copy")), backends=tuple(known)
    )


def describe(timeout_s: float) -> dict[str, Any]:
    """What this process has, as plain data: runs on hosts of Ray, see `discover`."""
    return {
        "backends": [to_json(backend, 1) for backend in start_backends(timeout_s=timeout_s)],
        "flags": os.environ.get("XLA_FLAGS", ""),
    }


def _cluster_of(hosts: Iterable[FoundHost]) -> Cluster:
    """A worker for each backend of each host, and a mesh for each of its devices."""
    workers: list[WorkerSpec] = []
    known: list[Backend] = []
    by_host: list[list[MeshSpec]] = []
    for host in hosts:
        backends, meshes = _plannable(host.backends)
        known += [dataclasses.replace(b, name=f"{host.name}/{b.name}") for b in backends]
        workers += [
            WorkerSpec(
                name=f"{host.name}/{name}",
                host=host.address,
                platforms=",".join(dict.fromkeys((name, "cpu"))),
                flags=host.flags,
            )
            for name in dict.fromkeys(mesh.backend for mesh in meshes)
        ]
        by_host.append(
            [
                dataclasses.replace(
                    mesh,
                    name=f"{host.name}/{mesh.name}",
                    host=host.name,
                    worker=f"{host.name}/{mesh.backend}",
                )
                for mesh in meshes
            ]
        )
    links = [link for meshes in by_host for link in _links(meshes, "host_copy")]
    for one, other in itertools.permutations(by_host, 2):
        links += _links_between(itertools.product(one, other), "network")
    return Cluster(
        workers=tuple(workers),
        meshes=tuple(itertools.chain(*by_host)),
        links=tuple(links),
        backends=tuple(known),
    )


def _plannable(backends: Iterable[Backend]) -> tuple[list[Backend], list[MeshSpec]]:
    """The backends, and a mesh for each device of those whose kind the catalogue has."""
    known, meshes = [], []
    for backend in backends:
        if backend.available:
            try:
                load_kind(backend.device_kind)
                meshes += _meshes(backend)
            except SpecError as error:
                backend = dataclasses.replace(backend, reason=f"cannot be planned for: {error}")
        known.append(backend)
    return known, meshes


def start_backends(*, timeout_s: float = 60.0) -> tuple[Backend, ...]:
    """Starts all that can be started, unless JAX has been started; says what is not here and why.

    Args:
        timeout_s: for each candidate in its own process.

    Raises:
        SpecError: timeout_s is no positive number.
        BackendError: nothing could be started; keeps what JAX said.
    """
    check_seconds("timeout_s", timeout_s)
    if _jax.backends_initialised():
        live = {name: _live(name, None) for name in _jax.backend_names()}
        late = "JAX was started without it; call gimlax.discover() before anything uses a device"
        absent = {c.name: c.fault or late for c in find_candidates() if not c.module}
    else:
        live, absent = _start(_probe(timeout_s))
    absent = {**dict(find_missing()), **absent}
    return (
        *live.values(),
        *(
            Backend(name=name, available=False, reason=reason)
            for name, reason in absent.items()
            if name not in live
        ),
    )


def _probe(timeout_s: float) -> list[Answer]:
    """Tries all candidates that JAX_PLATFORMS leaves, a few at a time."""
    allowed = _jax.allowed_backends()
    registered = _jax.registered_plugins()

    def look(candidate: Candidate) -> Answer:
        if candidate.fault:
            return Answer(candidate=candidate, reason=candidate.fault)
        if allowed is not None and not candidate.module and candidate.name not in allowed:
            reason = f"left out by JAX_PLATFORMS={','.join(allowed)}"
            return Answer(candidate=candidate, reason=reason)
        return probe(candidate, allowed, timeout_s)

    with ThreadPoolExecutor(_PROBES_AT_ONCE) as pool:
        return list(pool.map(look, (c for c in find_candidates() if c.name not in registered)))


def _start(answers: Iterable[Answer]) -> tuple[dict[str, Backend], dict[str, str]]:
    """Starts the backends that answered, JAX's own CPU and plugins that the caller registered.

    Returns the live ones by name, and why others are absent by name.
    """
    absent: dict[str, str] = {}
    found: dict[str, Capabilities | None] = dict.fromkeys(("cpu", *_jax.registered_plugins()))
    for answer in answers:
        try:
            if answer.names:
                load(answer.candidate)
                found.update(zip(answer.names, answer.capabilities, strict=True))
            else:
                absent[answer.candidate.name] = answer.reason
        except Exception as error:
            absent[answer.candidate.name] = f"answered in its own process, but not in this: {error}"
    allowed = _jax.allowed_backends()
    for name in allowed or ():
        absent.setdefault(name, "named by JAX_PLATFORMS, but nothing here provides it")
    wanted = _jax.registered_backends() if allowed is None else allowed
    order = [name for name in wanted if name in found]
    failure = None
    try:
        if order:
            _jax.initialise_backends(order)
    except RuntimeError as error:
        failure = error
        absent.update((name, explain(str(error))) for name in order)
    live = {name: _live(name, found[name]) for name in _jax.backend_names()}
    if not live:
        for name in found:
            absent.setdefault(name, f"left out by JAX_PLATFORMS={','.join(allowed or ())}")
        reasons = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        raise BackendError(
            f"no backend could be started ({reasons}); correct JAX_PLATFORMS or unset it"
        ) from failure
    return live, absent


def _live(name: str, found: Capabilities | None) -> Backend:
    """A live backend; asked what it can do unless its own process has said so."""
    devices = jax.local_devices(backend=name)
    found = found or capabilities(devices[0])
    memory_bytes = host_memory_bytes() if found.host_memory else 0
    if found.memory_stats:
        memory_bytes = (devices[0].memory_stats() or {}).get("bytes_limit", memory_bytes)
    return Backend(
        name=name,
        available=True,
        device_kind=devices[0].device_kind,
        num_devices=len(devices),
        # Whole GiB: what is left of a machine's memory differs a little at each start, and a
        # cluster's fingerprint should not.
        memory_bytes=memory_bytes // GIB * GIB or memory_bytes,
        capabilities=found,
        version=" ".join(devices[0].client.platform_version.split()),
    )


def _meshes(backend: Backend) -> Iterator[MeshSpec]:
    """One mesh for each device of a live backend."""
    on_host = backend.capabilities is not None and backend.capabilities.host_memory
    for index in range(backend.num_devices):
        yield MeshSpec(
            name=backend.name if backend.num_devices == 1 else f"{backend.name}:{index}",
            device_kind=backend.device_kind,
            backend=backend.name,
            first_device=index,
            host=_HOST,
            shares=SHAREABLE if on_host else (),
            memory_bytes=backend.memory_bytes or None,
        )


def _links(meshes: Sequence[MeshSpec], way: str) -> Iterator[Link]:
    """A way between any two of the meshes, both directions."""
    return _links_between(itertools.permutations(meshes, 2), way)


def _links_between(ends: Iterable[tuple[MeshSpec, MeshSpec]], way: str) -> Iterator[Link]:
    """Links with the figures that are assumed for 'host_copy' or 'network'."""
    figures = {key: figure["value"] for key, figure in read_data("links.toml")[way].items()}
    for source, target in ends:
        yield Link(source=source.name, target=target.name, **figures)
