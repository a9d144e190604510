"""`verify`: every stage of a plan compiled for the hardware of its mesh, there or not.

A mesh whose backend is live in this process is compiled for right here. For any other, the stage is
exported as StableHLO and compiled in a child process by a compiler that knows the hardware by
description: libtpu for TPUs, XLA with a target config for NVIDIA GPUs. Where there is none, being
lowered is all that is shown. No weights are needed anywhere.
"""

import dataclasses
import datetime
import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from gimlax import _jax, devices, graph
from gimlax.checking import check_arguments
from gimlax.errors import BackendError, SpecError
from gimlax.graph import Chain, Traced, Workload
from gimlax.planning import Plan, check_plan, in_order
from gimlax.program import Program, emit
from gimlax.runtime import Progress
from gimlax.runtime.arrangement import Arrangement
from gimlax.runtime.exporting import ExportedStage, abstract_mesh, export_stage, module_text
from gimlax.runtime.forms import Form
from gimlax.runtime.inventory import Inventory, take_inventory
from gimlax.verification.answers import Answer, ask_compiler
from gimlax.verification.children import Children
from gimlax.verification.expecting import Expecting
from gimlax.verification.footprint import forms_of, needed_bytes
from gimlax.verification.keeping import Kept
from gimlax.verification.sites import Site, find_sites
from gimlax.verification.verdicts import (
    COMPILED,
    FAILED,
    LOWERED,
    NO_ROOM,
    REFUSED,
    MeshVerdict,
    StageVerdict,
    Verification,
)

__all__ = ["TIME_LIMIT_S", "verify"]

TIME_LIMIT_S = 900.0  # of one stage; 32 layers of a Llama on 4 TPUs take about two minutes
_HEEDING_S = 0.5
_NOT_CHECKED = (
    "weights: none were used, so files that are missing or of another shape show only when placed",
    "numerics: nothing ran, so no output was compared with a reference",
    "time: compilers give none that can be relied on; seconds are the plan's alone",
    "transfers between meshes, and activations of several passes in flight at once",
    "memory that an allocator keeps back (JAX takes 75 % of a GPU unless told otherwise)",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """A stage to compile; equal ones have equal keys. `refusal`: JAX could not even lower it."""

    program: Program
    index: int
    mesh: str
    description: str
    key: str = ""
    exported: ExportedStage | None = None
    form: Form | None = None
    refusal: str = ""


def verify(
    plan: Plan,
    workload: Traced | Workload | Chain,
    *,
    pythons: Mapping[str, str | Path] | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    cache: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Verification:
    """Compiles every distinct stage of a plan for its hardware, there or not.

    Args:
        plan: made for this workload; no weights and no device are needed.
        workload: what was planned.
        pythons: the interpreter that compiles for a platform, `{"tpu": path, "cuda": path}`; by
            default this one if it can, else that of `.venv-tpu` or `.venv-cuda` in this folder.
        time_limit_s: that one stage may take.
        cache: folder in which answers are kept, so that what was compiled by the same versions is
            not compiled again.
        progress: told after each distinct stage, in this thread.

    Returns:
        A verdict on each stage and each mesh. What a compiler refuses is a verdict, not an error.

    Raises:
        PlanError: the plan belongs to another model, or has replicas.
        SpecError: an argument is of another kind than it should be, or an interpreter that was
            named cannot compile for its platform, or a package is missing.
    """
    check_arguments("gimlax.verify", verify, locals())
    if not 0 < time_limit_s < float("inf"):
        raise SpecError(f"time_limit_s is {time_limit_s}; give a positive number of seconds")
    chain = workload if isinstance(workload, Chain) else graph.chain(workload)
    check_plan(plan, chain)
    chain = in_order(plan, chain)
    programs = emit(plan, chain)
    sites = find_sites(plan, pythons or {})
    if importlib.util.find_spec("flatbuffers") is None:  # jax.export writes stages with it
        raise SpecError(
            "gimlax.verify needs the package 'flatbuffers', which is not installed; run `pip"
            " install 'gimlax[verify]'`"
        )
    meshes = {spec.name: sites[spec.name].live or abstract_mesh(spec) for spec in plan.specs}
    inventory = take_inventory(programs, Arrangement.of(meshes, plan.shardings, chain))
    forms, held = forms_of(programs, inventory)
    orders = _orders(programs, inventory, forms, sites)
    answers = _compile_all(orders, sites, time_limit_s, Kept.of(cache), progress)
    stages = _verdicts(plan, chain, orders, sites, answers)
    needed = [_needed(stage) for stage in stages]
    return Verification(
        model=plan.model,
        cluster=plan.cluster,
        date=datetime.date.today().isoformat(),
        stages=stages,
        meshes=tuple(
            MeshVerdict(
                mesh=of.mesh,
                device_kind=plan.spec(of.mesh).device_kind,
                axes=plan.spec(of.mesh).axes,
                needed_bytes=needed_bytes(of.mesh, held, needed),
                planned_bytes=of.needed_bytes,
                capacity_bytes=of.capacity_bytes,
            )
            for of in plan.meshes
        ),
        not_checked=_NOT_CHECKED,
    )


def _orders(
    programs: Sequence[Program],
    inventory: Inventory,
    forms: Sequence[Form],
    sites: Mapping[str, Site],
) -> tuple[_Order, ...]:
    found: list[_Order] = []
    for program in programs:
        for index, mesh in enumerate(program.placement):
            row = len(found)
            site = sites[mesh]
            order = _Order(
                program=program,
                index=index,
                mesh=mesh,
                description=program.describe_stage(index),
            )
            if site.live is not None:
                key = f"{mesh} {row}"
                found.append(dataclasses.replace(order, key=key, form=forms[row]))
                continue
            try:
                exported = export_stage(
                    program, index, row, inventory, site.target.platform, not site.target.why_not
                )
            except BackendError as error:
                found.append(dataclasses.replace(order, refusal=str(error)))
                continue
            key = _key(exported, site)
            found.append(dataclasses.replace(order, key=key, exported=exported))
    return tuple(found)


def _key(stage: ExportedStage, site: Site) -> str:
    """Equal for stages of which a compiler would make the same, by the same versions of it."""
    said = (
        module_text(stage),
        stage.platform,
        stage.axes,
        stage.inputs,
        stage.results,
        stage.donates,
        stage.config,
        site.target,
        site.toolchain and site.toolchain.versions,
    )
    return hashlib.sha256(repr(said).encode()).hexdigest()


def _compile_all(
    orders: Sequence[_Order],
    sites: Mapping[str, Site],
    time_limit_s: float,
    kept: Kept,
    progress: Callable[[Progress], None] | None,
) -> dict[str, Answer | str]:
    """What became of each distinct stage: an answer, or why there is none."""
    distinct = {
        order.key: order
        for order in reversed(orders)
        if not order.refusal and not sites[order.mesh].why_not
    }
    answers: dict[str, Answer | str] = {}
    children = Children(time_limit_s=time_limit_s)

    def compiled(order: _Order) -> Answer | str:
        site = sites[order.mesh]
        if order.form is not None:
            return _compile_here(order, order.form, site)
        assert order.exported is not None and site.toolchain is not None
        if (known := kept.find(order.key)) is not None:
            return known
        try:
            answer = children.compile(order.exported, site.target, site.toolchain)
        except BackendError as error:
            return str(error)
        kept.keep(order.key, answer)
        return answer

    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "gimlax verify") as pool:
        try:
            futures = {pool.submit(compiled, order): order for order in reversed(distinct.values())}
            left = set(futures)
            while left:
                # A wait without an end can miss Ctrl-C that comes just as it begins.
                done, left = wait(left, _HEEDING_S, FIRST_COMPLETED)
                for future in done:
                    order = futures[future]
                    answers[order.key] = future.result()
                    if progress is not None:
                        what = order.description
                        progress(Progress(done=len(answers), total=len(distinct), what=what))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.close()
            raise
    return answers


def _compile_here(order: _Order, form: Form, site: Site) -> Answer:
    assert site.live is not None
    donates = devices.capabilities(site.live.devices.flat[0]).donation
    with _jax.using_config(order.program.partition.traced.config):
        return ask_compiler(lambda: form.jit(donates=donates).lower(*form.inputs))


def _verdicts(
    plan: Plan,
    chain: Chain,
    orders: Sequence[_Order],
    sites: Mapping[str, Site],
    answers: Mapping[str, Answer | str],
) -> tuple[StageVerdict, ...]:
    expecting = Expecting.of(plan, chain)
    first: dict[str, _Order] = {}
    found: list[StageVerdict] = []
    for order in orders:
        site, program = sites[order.mesh], order.program
        outcome, reason, answer = _outcome(order, site, answers, plan)
        expected = expecting.stage(program, order.index)
        spec, names = plan.spec(order.mesh), program.segments[order.index]
        same = first.setdefault(order.key, order) if order.key else order
        found.append(
            StageVerdict(
                phase=program.phase,
                stage=order.index,
                mesh=order.mesh,
                device_kind=spec.device_kind,
                first_segment=names[0],
                last_segment=names[-1],
                start=program.partition.stages[order.index].first_segment,
                num_segments=len(names),
                target=f"{spec.backend} here" if site.live else site.target.description,
                compiler=site.compiler if answer else "",
                outcome=outcome,
                reason=reason,
                seconds=answer.seconds if answer else 0.0,
                same_as="" if same is order else same.description,
                compiled=answer.compiled if answer else None,
                planned_flops=expected.flops,
                planned_accessed_bytes=expected.accessed_bytes,
                planned_collectives=expected.collectives,
            )
        )
    return tuple(found)


def _outcome(
    order: _Order, site: Site, answers: Mapping[str, Answer | str], plan: Plan
) -> tuple[str, str, Answer | None]:
    if order.refusal:
        return REFUSED, order.refusal, None
    if site.why_not:
        return LOWERED, site.why_not, None
    answer = answers[order.key]
    if isinstance(answer, str):
        return FAILED, answer, None
    if answer.compiled is None:
        return (NO_ROOM if answer.lacks_memory else REFUSED), answer.refusal, answer
    capacity = next(of.capacity_bytes for of in plan.meshes if of.mesh == order.mesh)
    needed = answer.compiled.needed_bytes
    if needed > capacity:
        return NO_ROOM, f"it needs {needed} bytes on a device that has {capacity}", answer
    return COMPILED, "", answer


def _needed(stage: StageVerdict) -> int | None:
    if stage.compiled is None or not stage.compiled.told_memory:
        return None
    return stage.compiled.needed_bytes
