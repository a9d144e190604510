"""`compile`: from a plan and a workload to something that runs on live meshes."""

from collections.abc import Callable, Mapping
from typing import overload

import jax

from gimlax import devices, graph
from gimlax.errors import SpecError
from gimlax.graph import Chain, Traced, Workload
from gimlax.planning import Plan, check_plan, in_order
from gimlax.program import emit
from gimlax.runtime.arrangement import Arrangement
from gimlax.runtime.compilation import Progress
from gimlax.runtime.deployment import deploy_here
from gimlax.runtime.executable import Executable, Executables
from gimlax.runtime.workers import Workers, deploy_on_workers


@overload
def compile(
    plan: Plan,
    workload: Traced,
    *,
    meshes: Mapping[str, jax.sharding.Mesh] | None = None,
    workers: Workers | None = None,
    max_in_flight: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Executable: ...
@overload
def compile(
    plan: Plan,
    workload: Workload | Chain,
    *,
    meshes: Mapping[str, jax.sharding.Mesh] | None = None,
    workers: Workers | None = None,
    max_in_flight: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Executables: ...
def compile(
    plan: Plan,
    workload: Traced | Workload | Chain,
    *,
    meshes: Mapping[str, jax.sharding.Mesh] | None = None,
    workers: Workers | None = None,
    max_in_flight: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Executable | Executables:
    """Compiles every distinct stage of a plan for its mesh.

    Args:
        plan: made for this workload.
        workload: what was planned; a `Traced` gives one `Executable`, anything else a mapping.
        meshes: live meshes by the names of the plan; by default found by backend, kind and count.
        workers: started for a cluster with these meshes, where they name workers.
        max_in_flight: passes that `submit` lets in before it waits; by default twice the number of
            stages and two more.
        progress: told after each distinct stage, in this thread.

    Raises:
        PlanError: the plan belongs to another model.
        SpecError: a mesh is missing, is not what was planned, or mixes clients.
        BackendError: a backend refuses a stage; names stage, segments and mesh.
    """
    if not isinstance(plan, Plan):
        raise SpecError(
            f"gimlax.compile was given a {type(plan).__name__} as plan; give what gimlax.plan"
            f" returns,"
            " then the workload"
        )
    chain = workload if isinstance(workload, Chain) else graph.chain(workload)
    check_plan(plan, chain)
    chain = in_order(plan, chain)
    if any(spec.worker for spec in plan.specs):
        return _on_workers(plan, workload, chain, meshes, workers, max_in_flight, progress)
    if workers is not None:
        raise SpecError(
            "workers were given, but no mesh of the plan names one; leave them out, or plan for"
            " the cluster that they were started for"
        )
    live = devices.bind(plan.specs, meshes)
    deployment = deploy_here(
        emit(plan, chain),
        live,
        donates={
            name: devices.capabilities(mesh.devices.flat[0]).donation for name, mesh in live.items()
        },
        arrangement=Arrangement.of(live, plan.shardings, chain),
        max_in_flight=max_in_flight,
        progress=progress,
    )
    if isinstance(workload, Traced):
        return Executable(plan, deployment, 0)
    return Executables(plan, deployment)


def _on_workers(
    plan: Plan,
    workload: Traced | Workload | Chain,
    chain: Chain,
    meshes: Mapping[str, jax.sharding.Mesh] | None,
    workers: Workers | None,
    max_in_flight: int | None,
    progress: Callable[[Progress], None] | None,
) -> Executable | Executables:
    """The same where meshes are on workers: all of them, for now."""
    here = [spec.name for spec in plan.specs if not spec.worker]
    if here or meshes:
        raise SpecError(
            f"mesh {next(iter(here or meshes or ()))!r} is of this process and others are on"
            " workers; put each on a worker, this host's own CPU too"
        )
    wanted = tuple(dict.fromkeys(spec.worker for spec in plan.specs))
    missing = [name for name in wanted if workers is None or name not in workers.peers]
    if workers is None or missing:
        raise SpecError(
            f"the plan is for worker{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}, "
            f"{'but no workers were given' if workers is None else f'there are {workers!r}'}; pass"
            " workers=gimlax.start_workers(cluster)"
        )
    deployment = deploy_on_workers(
        emit(plan, chain),
        plan.specs,
        workers.peers,
        shardings=plan.shardings,
        chain=chain,
        max_in_flight=max_in_flight,
        progress=progress,
    )
    if isinstance(workload, Traced):
        return Executable(plan, deployment, 0)
    return Executables(plan, deployment)
