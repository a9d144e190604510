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


@overload
def compile(
    plan: Plan,
    workload: Traced,
    *,
    meshes: Mapping[str, jax.sharding.Mesh] | None = None,
    max_in_flight: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Executable: ...
@overload
def compile(
    plan: Plan,
    workload: Workload | Chain,
    *,
    meshes: Mapping[str, jax.sharding.Mesh] | None = None,
    max_in_flight: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Executables: ...
def compile(
    plan: Plan,
    workload: Traced | Workload | Chain,
    *,
    meshes: Mapping[str, jax.sharding.Mesh] | None = None,
    max_in_flight: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Executable | Executables:
    """Compiles every distinct stage of a plan for its mesh.

    Args:
        plan: made for this workload.
        workload: what was planned; a `Traced` gives one `Executable`, anything else a mapping.
        meshes: live meshes by the names of the plan; by default found by backend, kind and count.
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
