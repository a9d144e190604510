"""Whether a plan belongs to a model and a cluster, and the model in the order of the plan."""

from dataclasses import replace

from gimlax.devices import Cluster
from gimlax.errors import PlanError, SpecError
from gimlax.graph import Chain, reordered
from gimlax.planning.plans import Plan


def in_order(plan: Plan, chain: Chain) -> Chain:
    """The segments of a model in the order that its plan has chosen.

    Args:
        plan: made for this model.
        chain: in the order of the program, or in that of the plan already.

    Raises:
        PlanError: this model has no such order.
    """
    if chain.order == plan.order:
        return chain
    try:
        return reordered(chain, plan.order or range(len(plan.segments)))
    except SpecError as error:
        raise PlanError(f"plan: it is for another model: {error}; make a new plan") from None


def check_plan(plan: Plan, chain: Chain, cluster: Cluster | None = None) -> None:
    """Refuses a plan that was made for another model or another cluster.

    Args:
        plan: the plan.
        chain: the model, in the order of the program or in that of the plan.
        cluster: where it is to run; not looked at if left out.

    Raises:
        PlanError: says what differs.
    """
    differs: list[str] = []
    if len(plan.segments) == chain.num_segments:
        chain = in_order(plan, chain)
    if plan.model != chain.fingerprint():
        differs.append(f"it is for another model: {_other_model(plan, chain)}")
    if cluster is not None and plan.cluster != cluster.fingerprint():
        differs.append(f"it is for another cluster: {_other_cluster(plan, cluster)}")
    if differs:
        raise PlanError(f"plan: {'; '.join(differs)}; make a new plan")


def _other_model(plan: Plan, chain: Chain) -> str:
    planned, here = [p.name for p in plan.phases], [p.name for p in chain.phases]
    if planned != here:
        return f"it has phases {planned}, this one {here}"
    if len(plan.segments) != chain.num_segments:
        return f"it has {len(plan.segments)} segments, this one {chain.num_segments}"
    for index, (a, b) in enumerate(zip(plan.segments, chain.names, strict=True)):
        if a != b:
            return f"its segment {index} is {a!r}, this one's {b!r}"
    return "its segments have the same names, but shapes or dtypes of its arguments differ"


def _other_cluster(plan: Plan, cluster: Cluster) -> str:
    here = {mesh.name: mesh for mesh in cluster.meshes}
    for spec in plan.specs:
        if spec.name not in here:
            return f"mesh {spec.name!r} is not in this one, which has {list(here)}"
        given = here[spec.name]
        if spec != (given if given.axes else replace(given, axes=spec.axes)):
            return f"mesh {spec.name!r} is {spec} there and {here[spec.name]} here"
    return "the meshes that it uses are the same, but others, links or device figures differ"
