"""Where the model of a script runs: the flags for it, and the way to its compiled phases."""

import contextlib
from collections.abc import Iterator

import console
from absl import flags

import gimlax as gx
from gimlax import models

STAGES = flags.DEFINE_integer(
    "stages", None, "number of stages; the planner says where to cut", lower_bound=1
)
CUTS = flags.DEFINE_list("cuts", None, "segments before which to cut, as in 20,41")
MESHES = flags.DEFINE_list("meshes", None, "mesh of each stage; by default the planner chooses")
CLUSTER = flags.DEFINE_string(
    "cluster", None, "cluster file; by default what is found; its workers are started"
)
RAY = flags.DEFINE_bool(
    "ray", False, "start workers by way of Ray; without --cluster they are found so, too"
)
RAY_ADDRESS = flags.DEFINE_string(
    "ray_address", None, "host:port of a Ray to join, or ray://host:port; implies --ray"
)
INSECURE = flags.DEFINE_bool(
    "insecure", False, "join a Ray that lets in whoever reaches it, without a token"
)
VERIFY = flags.DEFINE_bool(
    "verify", True, "compare the files of weights with the check sums that were saved with them"
)
flags.mark_flags_as_mutual_exclusive(["stages", "cuts"])


def find_cluster() -> gx.Cluster:
    """The cluster of the flags.

    Raises:
        SpecError: flags are about Ray, and the cluster file describes nothing that it starts.
    """
    with console.progress("backends"):
        if not CLUSTER.value:
            return gx.discover(ray=ray(), insecure=INSECURE.value)
        cluster = gx.Cluster.load(CLUSTER.value)
        if not cluster.workers and (ray() is not False or INSECURE.value):
            raise gx.SpecError(
                f"cluster file {CLUSTER.value!r} describes no workers, which --ray, --ray_address"
                " and --insecure are about; leave these out, or add a [[worker]]"
            )
        return cluster


def ray() -> bool | str:
    """What `gx.discover` and `gx.start_workers` take."""
    return RAY.value if RAY_ADDRESS.value is None else RAY_ADDRESS.value


def read_cuts() -> int | list[int] | None:
    """What `gx.plan` takes as cuts."""
    if CUTS.value is None:
        return STAGES.value
    try:
        return [int(cut) for cut in CUTS.value]
    except ValueError as error:
        raise gx.SpecError(
            f"--cuts={','.join(CUTS.value)}: {error}; give numbers of segments"
        ) from error


def make_plan(workload: gx.Workload, cluster: gx.Cluster, goal: str) -> gx.Plan:
    """The plan for a goal, with the cuts and meshes of the flags; printed."""
    with console.progress("plan"):
        plan = gx.plan(
            workload,
            cluster,
            objective=gx.Objective(goal=goal),
            cuts=read_cuts(),
            meshes=MESHES.value,
        )
    print(plan, flush=True)
    return plan


def loaded(language: models.LanguageModel, phases: gx.Executables) -> gx.Placed:
    """The weights of a model, each on the mesh of its stage."""
    with console.progress("weights") as update:
        return gx.load(
            language.path,
            plan=phases,
            verify=VERIFY.value,
            progress=lambda done, total: update(done, total, ""),
        )


@contextlib.contextmanager
def compiled(plan: gx.Plan, workload: gx.Workload, cluster: gx.Cluster) -> Iterator[gx.Executables]:
    """The compiled phases, on workers where the cluster has them; both end with the context."""
    with contextlib.ExitStack() as running:
        workers = None
        if cluster.workers:
            with console.progress("workers"):
                workers = running.enter_context(
                    gx.start_workers(cluster, ray=ray(), insecure=INSECURE.value)
                )
        with console.progress("compilation") as update:
            phases = gx.compile(
                plan,
                workload,
                workers=workers,
                progress=lambda step: update(step.done, step.total, step.what),
            )
        yield running.enter_context(phases)
