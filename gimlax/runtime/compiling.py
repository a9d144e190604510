"""`compile`: from a plan and a workload to something that runs on live meshes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import jax

from gimlax import devices, graph
from gimlax.checking import check_arguments, shown
from gimlax.errors import SpecError
from gimlax.graph import Chain, Traced, Workload
from gimlax.planning import Plan, check_plan, in_order
from gimlax.program import emit
from gimlax.runtime.arrangement import Arrangement
from gimlax.runtime.compilation import Progress
from gimlax.runtime.deployment import deploy_here
from gimlax.runtime.executable import Executable, Executables
from gimlax.runtime.probing.checking import probe as run_probe
from gimlax.runtime.probing.checking import require
from gimlax.runtime.workers import Workers, deploy_on_workers, refuse_callbacks


@overload
def compile(
    plan: Plan,
    workload: Traced,
    *,
    meshes: Mapping[str, jax.sharding.Mesh] | None = None,
    workers: Workers | None = None,
    max_in_flight: int | None = None,
    on_loss: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    check: bool = False,
    probe: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
    check_every: int | None = None,
) -> Executable: ...
@overload
def compile(
    plan: Plan,
    workload: Workload | Chain,
    *,
    meshes: Mapping[str, jax.sharding.Mesh] | None = None,
    workers: Workers | None = None,
    max_in_flight: int | None = None,
    on_loss: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    check: bool = False,
    probe: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
    check_every: int | None = None,
) -> Executables: ...
def compile(
    plan: Plan,
    workload: Traced | Workload | Chain,
    *,
    meshes: Mapping[str, jax.sharding.Mesh] | None = None,
    workers: Workers | None = None,
    max_in_flight: int | None = None,
    on_loss: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    check: bool = False,
    probe: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
    check_every: int | None = None,
) -> Executable | Executables:
    """Compiles every distinct stage of a plan for its mesh.

    Args:
        plan: made for this workload.
        workload: what was planned; a `Traced` gives one `Executable`, anything else a mapping.
        meshes: live meshes by the names of the plan; by default found by backend, kind and count.
        workers: started for a cluster with these meshes, where they name workers.
        max_in_flight: passes that `submit` lets in before it waits; by default twice the number of
            stages and two more.
        on_loss: what becomes of carried state that dies with its worker: 'replay' (the default)
            keeps the inputs of passes here and rebuilds it from them; with 'fail' the passes that
            need it fail and say so.
        progress: told after each distinct stage; of those of workers by the thread that hears them.
        check: whether every stage is run once beside the reference (JAX's CPU client in float32)
            and must be within the tolerances of the plan; see `gimlax.probe`.
        probe: the arguments of that, as those of a call, by name of the phase unless the workload
            is a `Traced`; by default made from the shapes that were traced.
        check_every: that often what the stages of a live pass, the first one and then every
            so-many-th, were given and made is compared with the reference, in a thread and without
            a change to its results. What is off, NaN or infinite is told by a `ContractWarning`;
            see `Executable.checks`.

    Raises:
        PlanError: the plan belongs to another model.
        SpecError: a mesh is missing, is not what was planned, or mixes clients; a segment
            that is to run on a worker calls Python of this process.
        BackendError: a backend refuses a stage; names stage, segments and mesh. Or a check failed;
            names the stage, the first segment that diverges, the error and the bound.
    """
    if not isinstance(plan, Plan):
        raise SpecError(
            f"gimlax.compile was given a {type(plan).__name__} as plan; give what gimlax.plan"
            f" returns,"
            " then the workload"
        )
    if probe is not None and not check:
        raise SpecError("gimlax.compile was given probe= without check=True; give both, or neither")
    settings = {"max_in_flight": max_in_flight, "check": check, "check_every": check_every}
    check_arguments("gimlax.compile", compile, settings)
    if check_every is not None and check_every < 1:
        raise SpecError(
            f"check_every is {check_every}; give the number of passes from one check on"
        )
    chain = workload if isinstance(workload, Chain) else graph.chain(workload)
    check_plan(plan, chain)
    if on_loss not in (None, "replay", "fail"):
        raise SpecError(f"on_loss is {shown(on_loss)}; give 'replay' or 'fail'")
    if any(spec.worker for spec in plan.specs):
        refuse_callbacks(chain)
        deployment = deploy_on_workers(
            plan,
            chain,
            _check_workers(plan, meshes, workers),
            on_loss=on_loss or "replay",
            max_in_flight=max_in_flight,
            progress=progress,
        )
    elif on_loss is not None:
        raise SpecError(
            f"on_loss={on_loss!r} says what becomes of state when a worker is lost, and no mesh of"
            " the plan is on one; leave it out"
        )
    elif workers is not None:
        raise SpecError(
            "workers were given, but no mesh of the plan names one; leave them out, or plan for"
            " the cluster that they were started for"
        )
    else:
        chain = in_order(plan, chain)
        live = devices.bind(plan.specs, meshes)
        deployment = deploy_here(
            emit(plan, chain),
            live,
            donates={
                name: devices.capabilities(mesh.devices.flat[0]).donation
                for name, mesh in live.items()
            },
            arrangement=Arrangement.of(live, plan.shardings, chain),
            chain=chain,
            max_in_flight=max_in_flight,
            progress=progress,
        )
    if isinstance(workload, Traced):
        made = Executable(plan, deployment, 0, check_every=check_every)
        phases, given = {made.name: made}, {made.name: probe}
    else:
        made = Executables(plan, deployment, check_every=check_every)
        phases, given = made, probe or {}
    if check:
        try:
            _check(phases, given)
        except BaseException:  # the caller gets nothing to close
            made.close()
            raise
    return made


def _check(phases: Mapping[str, Executable], given: Any) -> None:
    """Probes each phase with what was given for it, or with made inputs.

    Raises:
        SpecError: inputs were given for a phase that there is not.
        BackendError: one breaks the contract.
    """
    if not isinstance(given, Mapping) or not set(given) <= set(phases):
        names = ", ".join(map(repr, phases))
        raise SpecError(
            f"gimlax.compile: probe= gives inputs of {shown(given)}, and the phases are {names};"
            " give a mapping from these to their arguments"
        )
    for name, executable in phases.items():
        args = given.get(name)
        require(run_probe(executable, *(() if args is None else args)))


def _check_workers(
    plan: Plan,
    meshes: Mapping[str, jax.sharding.Mesh] | None,
    workers: Workers | None,
) -> Workers:
    """The workers of a plan for which all meshes have to be on workers, for now."""
    if workers is not None and not isinstance(workers, Workers):
        raise SpecError(
            f"gimlax.compile was given {shown(workers)} as workers; give what"
            " gimlax.start_workers returns"
        )
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
    return workers
