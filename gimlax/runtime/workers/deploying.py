"""From programs to workers that run them: export, orders, links between workers."""

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from types import SimpleNamespace
from typing import Any

from gimlax.errors import BackendError, GimlaxError
from gimlax.graph import Chain
from gimlax.planning import Plan
from gimlax.program import Program, emit
from gimlax.records import to_json
from gimlax.runtime.arrangement import Arrangement
from gimlax.runtime.compilation import CompiledStage, Progress
from gimlax.runtime.deployment import Deployment, Standing, passes_let_in
from gimlax.runtime.exporting import ExportedStage, abstract_mesh, export_stages, portable
from gimlax.runtime.inventory import Inventory, take_inventory
from gimlax.runtime.passes import CompiledPhase
from gimlax.runtime.workers.binding import bind
from gimlax.runtime.workers.calling import calling_side, runs_elsewhere
from gimlax.runtime.workers.executor import RemoteExecutor
from gimlax.runtime.workers.fleet import Workers
from gimlax.runtime.workers.footing import NUMBERS, Footing
from gimlax.runtime.workers.garbage import Garbage
from gimlax.runtime.workers.ground import Ground
from gimlax.runtime.workers.joining import Links
from gimlax.runtime.workers.ordering import write_orders
from gimlax.runtime.workers.peers import Peer
from gimlax.runtime.workers.places import Places
from gimlax.runtime.workers.recovery import Recovery
from gimlax.runtime.workers.remote import RemoteStore
from gimlax.runtime.workers.room import with_worker
from gimlax.runtime.workers.tapped import RemoteTap
from gimlax.runtime.workers.trying import RemoteStages
from gimlax.runtime.workers.wire import Message

__all__ = ["deploy_on_workers"]


def deploy_on_workers(
    plan: Plan,
    chain: Chain,
    workers: Workers,
    *,
    on_loss: str,
    max_in_flight: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Deployment:
    """Compiles a plan on the workers that have its meshes.

    Args:
        plan: of one route.
        chain: what was planned, in the order of the program.
        workers: those of the meshes, and others to turn to when one is lost.
        on_loss: 'replay' keeps what is needed to rebuild carried state, 'fail' does not.
        max_in_flight: passes that `submit` takes before it waits.
        progress: told after each distinct stage, in the thread that hears the worker.

    Raises:
        BackendError: a worker has not the devices, or cannot compile a stage.
    """
    called = calling_side(chain)
    config = portable(called.programs[0].partition.traced.config)
    garbage, owner = Garbage(), next(NUMBERS)

    def establish(chosen: Plan, ordered: Chain) -> Footing:
        return _establish(chosen, ordered, workers, owner, garbage, config, max_in_flight, progress)

    places = Places(plan, chain, workers, establish)
    footing, news = places.first()
    limit = passes_let_in(max_in_flight, footing.programs)
    keeps_log = on_loss == "replay"
    ground = Ground(footing, garbage, places.progress, keeps_log=keeps_log)
    store = RemoteStore(ground)
    executor = RemoteExecutor(
        ground,
        called.phases,
        store,
        Recovery(ground, places, most_in_flight=limit),
        max_in_flight=limit,
        config=config,
    )
    if news:
        try:
            warnings.warn(news, stacklevel=3)  # where `gimlax.compile` was called
        except UserWarning:
            executor.close(lambda: None)
            raise
    return Deployment(
        programs=called.programs,
        phases=called.phases,
        inventory=called.inventory,
        store=store,
        executor=executor,
        standing=lambda: _standing(ground.footing),
        new_tap=lambda number: RemoteTap(number, ground),
        standing_of=lambda tap: _standing(tap.footing),
    )


def _standing(footing: Footing) -> Standing:
    return Standing(
        programs=footing.programs,
        phases=footing.phases,
        inventory=footing.inventory,
        num_compiled=footing.num_compiled,
        plan=footing.plan,
        chain=footing.chain,
        runner=lambda program, stages, placed: RemoteStages(
            program,
            footing.inventory,
            footing.workers,
            footing.platforms,
            [stage.row for stage in stages],
            _narrowings(footing.plan),
        ),
    )


def _establish(
    plan: Plan,
    chain: Chain,
    fleet: Workers,
    owner: int,
    garbage: Garbage,
    config: Sequence[tuple[str, Any]],
    max_in_flight: int | None,
    progress: Callable[[Progress], None] | None,
) -> Footing:
    """Compiles a plan; leaves nothing on the workers if that fails."""
    programs = emit(plan, chain)
    number = next(NUMBERS)
    workers = {spec.name: fleet.peers[spec.worker] for spec in plan.specs}
    said, owners = bind(plan.specs, workers, fleet.cluster.workers)
    meshes = {spec.name: abstract_mesh(spec) for spec in plan.specs}
    arrangement = Arrangement.of(meshes, plan.shardings, chain)
    inventory = take_inventory(programs, arrangement)
    platforms = {name: of["platform"] for name, of in said.items()}
    exported = export_stages(
        programs,
        inventory,
        platforms,
        {name: of["donates"] for name, of in said.items()},
    )
    passes_let_in(max_in_flight, programs)  # refused before anything is compiled
    try:
        answers = _prepare(
            plan,
            number,
            owner,
            owners,
            programs,
            exported,
            inventory,
            workers,
            config,
            progress,
        )
        links = Links(number, programs, workers, plan.carriers, fleet.detour)
        links.join_all()
    except BaseException:
        for peer in dict.fromkeys(workers.values()):
            peer.ignore(number)
            if peer.lost is None:
                with contextlib.suppress(BackendError):
                    peer.ask("close", {"deployment": number, "owner": owner, "last": False})
        raise
    return Footing(
        number=number,
        owner=owner,
        plan=plan,
        chain=chain,
        programs=programs,
        phases=_phases(programs, inventory, answers),
        inventory=inventory,
        workers=workers,
        platforms=platforms,
        garbage=garbage,
        links=links,
        config=config,
        num_compiled=sum(answer["num_compiled"] for answer in answers.values()),
    )


def _narrowings(plan: Plan) -> dict[tuple[str, str], str]:
    return {(of.source, of.target): of.narrowing for of in plan.carriers}


def _prepare(
    plan: Plan,
    number: int,
    owner: int,
    owners: Mapping[str, Sequence[int]],
    programs: Sequence[Program],
    exported: Sequence[Sequence[ExportedStage]],
    inventory: Inventory,
    workers: Mapping[str, Peer],
    config: Sequence[tuple[str, Any]],
    progress: Callable[[Progress], None] | None,
) -> dict[str, Mapping[str, Any]]:
    """Sends each worker its orders; what each answers by its name."""
    futures, narrowings = {}, _narrowings(plan)
    steps: dict[str, tuple[int, int]] = {}

    def hear(name: str, message: Message) -> None:
        if message.kind == "progress" and progress is not None:
            said = message.fields
            steps[name] = (said["done"], said["total"])
            done, total = (sum(of) for of in zip(*steps.values(), strict=True))
            progress(Progress(done=done, total=total, what=said["what"]))

    for peer in dict.fromkeys(workers.values()):
        mine = [mesh for mesh, of in workers.items() if of is peer]
        orders, arrays = write_orders(mine, owners, programs, exported, inventory, narrowings)
        peer.listen(number, lambda message, name=peer.name: hear(name, message))
        futures[peer.name] = peer.begin(
            "prepare",
            {
                "deployment": number,
                "owner": owner,
                "orders": to_json(orders, 1),
                "config": config,
            },
            arrays,
        )
    wait(futures.values())  # all of them, so that none goes on when another has failed
    for name, future in futures.items():
        error = future.exception()
        if isinstance(error, GimlaxError):
            raise with_worker(error, name)
    return {name: future.result()[0] for name, future in futures.items()}


def _phases(
    programs: Sequence[Program], inventory: Inventory, answers: Mapping[str, Mapping[str, Any]]
) -> list[CompiledPhase]:
    """What this side knows of stages that run elsewhere."""
    analyses = {
        (phase, index): (cost, memory)
        for answer in answers.values()
        for phase, index, cost, memory in answer["analyses"]
    }
    phases = []
    row = 0
    for program in programs:
        stages = []
        for stage in program.partition.stages:
            mesh = program.placement[stage.index]
            cost, memory = analyses[program.phase, stage.index]
            stages.append(
                CompiledStage(
                    index=stage.index,
                    mesh=mesh,
                    description=program.describe_stage(stage.index),
                    call=runs_elsewhere,
                    compiled=_analyses(cost, memory),
                    row=row,
                    resident=tuple(
                        t.index for t in inventory.resident if inventory.rows[t.index][row]
                    ),
                    carried=tuple(i for i, of in enumerate(inventory.states) if of[stage.index]),
                    constants=(),
                    streamed=tuple((mesh, leaf) for leaf in stage.streamed),
                    received=tuple((mesh, value) for value in stage.received),
                    produced=tuple((mesh, value) for value in stage.produced),
                )
            )
            row += 1
        phases.append(CompiledPhase.build(program, stages, inventory.arrangement))
    return phases


def _analyses(cost: Any, memory: Any) -> Any:
    """What stands for a compiled program: it only knows what the worker's said."""
    return SimpleNamespace(
        cost_analysis=lambda: cost, memory_analysis=lambda: SimpleNamespace(**(memory or {}))
    )
