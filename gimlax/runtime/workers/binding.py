"""Meshes of a plan bound to the devices of its workers, all at once."""

from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from typing import Any

from gimlax.devices import MeshSpec, WorkerSpec
from gimlax.errors import BackendError
from gimlax.records import to_json
from gimlax.runtime.workers.peers import Peer

__all__ = ["bind"]

_START_S = 300.0  # hosts of a slice wait for each other


def bind(
    specs: Sequence[MeshSpec], workers: Mapping[str, Peer], described: Sequence[WorkerSpec]
) -> tuple[dict[str, Mapping[str, Any]], dict[str, tuple[int, ...]]]:
    """Lets each worker find the devices of its meshes.

    Args:
        specs: of the meshes.
        workers: by mesh.
        described: how these and others were started.

    Returns:
        Of each mesh the 'platform' that stages are lowered for, and whether it 'donates'; and of
        each of its devices the process of the worker that has it.

    Raises:
        BackendError: a worker has not the devices, or is lost; those of all have been asked. One
            whose backends do not start is given up.
    """
    mine: dict[Peer, list[MeshSpec]] = {}
    for spec in specs:
        mine.setdefault(workers[spec.name], []).append(spec)
    futures = {
        peer: peer.begin("bind", {"meshes": [to_json(spec, 1) for spec in of]})
        for peer, of in mine.items()
    }
    # All, so that every worker that cannot start its backends is known.
    _, late = wait(futures.values(), timeout=_START_S)
    for peer, future in futures.items():
        if future in late:
            peer.give_up(f"has not started its backends in {_START_S:.0f} s")
    platforms = {worker.name: worker.platforms for worker in described}
    said: dict[str, Mapping[str, Any]] = {}
    owners: dict[str, tuple[int, ...]] = {}
    wrong: list[str] = []
    for peer, future in futures.items():
        try:
            answer, _ = future.result()
            said |= answer["meshes"]
            for spec in mine[peer]:
                of = [each["meshes"][spec.name]["mine"] for each in answer.get("members", [answer])]
                has = {device: number for number, held in enumerate(of) for device in held}
                owners[spec.name] = tuple(has[device] for device in range(spec.num_devices))
        except BackendError as error:
            if peer.lost is not None:
                raise
            wrong.append(
                f"worker {peer.name!r} was started with platforms {platforms[peer.name]!r}: {error}"
            )
    if wrong:
        advice = "correct the platforms of the worker, or the backend of its mesh, in the cluster"
        raise BackendError("\n".join((*wrong, advice)))
    return said, owners
