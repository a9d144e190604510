"""What a caller fixes by hand, checked: cuts, a number of stages, the mesh of each stage."""

from collections.abc import Sequence
from dataclasses import dataclass

from gimlax.checking import shown
from gimlax.devices import Cluster
from gimlax.errors import PlanError
from gimlax.graph import Chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`cuts` are boundaries, or a number of stages, or free; `meshes` indices, one per stage."""

    cuts: int | tuple[int, ...] | None
    meshes: tuple[int, ...] | None

    @property
    def num_stages(self) -> int | None:
        """How many stages there have to be, None if that is free."""
        if self.meshes is not None:
            return len(self.meshes)
        return len(self.cuts) + 1 if isinstance(self.cuts, tuple) else self.cuts


def checked(
    chain: Chain,
    cluster: Cluster,
    cuts: int | Sequence[int] | None,
    meshes: Sequence[str] | None,
) -> Request:
    """The caller's wishes as a Request.

    Raises:
        PlanError: cuts out of range, out of order or through carried state; meshes that the cluster
            does not have; another number of meshes than stages, or more stages than meshes.
    """
    if not cluster.meshes:
        raise PlanError("cluster has no mesh, so nothing can run; add one")
    wished = _checked_cuts(chain, cuts)
    names = [mesh.name for mesh in cluster.meshes]
    placed = None if meshes is None else tuple(meshes)
    if placed is not None:
        unknown = [name for name in placed if name not in names]
        if unknown:
            raise PlanError(
                f"meshes names {', '.join(map(repr, dict.fromkeys(unknown)))}, but the cluster has "
                f"{', '.join(map(repr, names))}; use these"
            )
        if not placed:
            raise PlanError("meshes is empty; name one per stage, or leave it out")
    request = Request(
        cuts=wished, meshes=None if placed is None else tuple(names.index(name) for name in placed)
    )
    by_cuts = Request(cuts=wished, meshes=None).num_stages
    if placed is not None and by_cuts is not None and len(placed) != by_cuts:
        raise PlanError(
            f"cuts ask for {shown(by_cuts)} stages, but meshes names {len(placed)}: "
            f"{', '.join(map(repr, placed))}; name one mesh per stage"
        )
    num_stages = request.num_stages or 1
    if num_stages > chain.num_segments:
        raise PlanError(
            f"{shown(num_stages)} stages are asked for, but the model has {chain.num_segments} "
            "segments, none of which is split; ask for fewer"
        )
    if placed is None and num_stages > len(names):
        raise PlanError(
            f"{shown(num_stages)} stages are asked for, but the cluster has {len(names)} meshes "
            "and each holds one stage; ask for fewer, or name a mesh per stage with meshes=(...), "
            "where a mesh may come back"
        )
    return request


def _checked_cuts(chain: Chain, cuts: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    n = chain.num_segments
    if cuts is None:
        return None
    if isinstance(cuts, int):
        if cuts < 1:
            raise PlanError(f"cuts is {shown(cuts)}, which is no number of stages; give 1 or more")
        return cuts
    found = tuple(cuts)
    wrong = [b for b in found if not 1 <= b < n]
    if wrong:
        raise PlanError(
            f"cut {shown(wrong[0])} is out of range: the model has {n} segments, so cuts lie "
            f"before segment 1 to {n - 1}"
            if n > 1
            else f"cut {shown(wrong[0])}: the model is a single segment and cannot be cut"
        )
    if list(found) != sorted(set(found)):
        raise PlanError(
            f"cuts {found} are not in ascending order; give each boundary once, in order"
        )
    for b in found:
        split = chain.splits(b)
        if split:
            legal = [c for c in range(1, n) if not chain.splits(c)]
            nearest = sorted(legal, key=lambda c: abs(c - b))[:2]
            near = f"the nearest legal cuts are {sorted(nearest)}" if nearest else "no cut is legal"
            raise PlanError(
                f"cut {b}, between segments {chain.names[b - 1]!r} and {chain.names[b]!r}, splits "
                f"carried {', '.join(map(repr, split[:3]))}{' ...' if len(split) > 3 else ''}, "
                f"which has to stay on one mesh; {near}"
            )
    return found
