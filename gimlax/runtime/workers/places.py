"""Where a workload can stand: the plan it was given, and other plans when workers are lost.

What is left comes first, since what was lost is likely to be lost again: the workload is planned
anew, with the same objective, for the meshes of the workers that live. Only if that cannot be, lost
workers are started again from their descriptions, each at most three times unless passes have come
through in between; once while the workload is compiled, since what ends a worker then is mostly how
it was described.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from gimlax.devices import Cluster
from gimlax.errors import BackendError, GimlaxError
from gimlax.graph import Chain
from gimlax.planning import Plan, in_order, plan
from gimlax.runtime.workers.fleet import Workers
from gimlax.runtime.workers.footing import Footing
from gimlax.runtime.workers.room import NoRoom

__all__ = ["NowhereLeft", "Places"]

_MOST_STARTS = 3
_PLANNING_S = 10.0


class NowhereLeft(BackendError):
    """No worker is left that a workload could run on, and none may be started again."""


Establish = Callable[[Plan, Chain], Footing]


class Places:
    """Finds places for one workload."""

    def __init__(self, plan: Plan, chain: Chain, workers: Workers, establish: Establish) -> None:
        """`chain` is in the order of the program; `establish` compiles a plan on its workers."""
        self._plan = plan
        self._chain = chain
        self._workers = workers
        self._establish = establish
        self._wanted = {spec.worker for spec in plan.specs}
        self._starts: Counter[str] = Counter()

    def first(self) -> tuple[Footing, str]:
        """Where the plan says, or elsewhere if a worker is lost meanwhile or has no room.

        Returns:
            The footing, and what happened to the plan in words; empty if it is as it was.
        """
        try:
            return self._stand(self._plan), ""
        except BackendError as error:
            lost = {name: str(of) for name, of in self._lost() if name in self._wanted}
            if isinstance(error, NoRoom):
                lost[error.worker] = f"worker {error.worker!r} has no room: {error}"
            if not lost:
                raise
            full = {error.worker} if isinstance(error, NoRoom) else set[str]()
        footing = self._other(full, lost, most_starts=1)
        how = "was planned anew"
        if footing.plan is self._plan:
            how = "runs where it was planned, on workers that were started again"
        return footing, f"{'; '.join(lost.values())}. The workload {how}: {_places(footing)}"

    def after(self, old: Footing) -> Footing:
        """Another footing for one that has lost workers, or on which one had no room.

        Raises:
            NowhereLeft: there is none; says why.
        """
        return self._other(set(old.full), {}, most_starts=_MOST_STARTS)

    def progress(self) -> None:
        """Passes have come through: workers may be started again as often as before."""
        if self._starts:
            self._starts.clear()

    def _other(self, full: set[str], why: dict[str, str], *, most_starts: int) -> Footing:
        """Somewhere without the workers that are lost or full; `why` takes in what was wrong."""
        while True:
            alive = [
                name
                for name, peer in self._workers.peers.items()
                if peer.lost is None and name not in full
            ]
            found = self._try(alive, why, full)
            why.update((name, str(of)) for name, of in self._lost())
            if found is not None:
                return found
            if any(self._workers.peers[name].lost is not None or name in full for name in alive):
                continue  # lost while it was tried, or found to be full
            if not self._start_again(why, most_starts):
                raise NowhereLeft(f"the workload has nowhere to run: {'; '.join(why.values())}")

    def _try(self, alive: Sequence[str], why: dict[str, str], full: set[str]) -> Footing | None:
        cluster = _left(self._workers.cluster, alive)
        if not cluster.meshes:
            return None
        try:
            chosen = self._plan
            if not self._wanted <= {*alive}:
                chosen = plan(
                    self._chain,
                    cluster,
                    objective=self._plan.objective,
                    wire=next((of.narrowing for of in self._plan.carriers if of.narrowing), None),
                    time_limit_s=_PLANNING_S,
                )
            return self._stand(chosen)
        except GimlaxError as error:
            if all(self._workers.peers[name].lost is None for name in alive):
                where = f"on workers {', '.join(map(repr, alive))}"
                why[where] = f"{where}: {error}"
            if isinstance(error, NoRoom):
                full.add(error.worker)
            return None

    def _lost(self) -> list[tuple[str, BackendError]]:
        """Workers that are lost, and why."""
        peers = self._workers.peers.items()
        return [(name, peer.lost) for name, peer in peers if peer.lost is not None]

    def _stand(self, chosen: Plan) -> Footing:
        return self._establish(chosen, in_order(chosen, self._chain))

    def _start_again(self, why: dict[str, str], most_starts: int) -> bool:
        """Tries to start lost workers; whether that was still allowed."""
        names = [name for name, _ in self._lost() if self._starts[name] < most_starts]
        if not names or self._workers.closed:
            return False
        self._starts.update(names)
        with ThreadPoolExecutor(len(names), "gimlax start") as pool:
            futures = [(name, pool.submit(self._workers.start_again, name)) for name in names]
            for name, future in futures:
                if (error := future.exception()) is not None:
                    why[f"start of {name}"] = str(error)
        return True


def _places(footing: Footing) -> str:
    """Which segments are where."""
    program = footing.programs[0]
    return ", ".join(
        f"segments {names[0]!r} to {names[-1]!r} on mesh {mesh!r}"
        for names, mesh in zip(program.segments, program.placement, strict=True)
    )


def _left(cluster: Cluster, alive: Sequence[str]) -> Cluster:
    """The meshes of some workers, and the links between them."""
    meshes = tuple(mesh for mesh in cluster.meshes if mesh.worker in alive)
    names = {record.name for record in (*meshes, *cluster.groups)}
    keep: dict[str, Any] = {
        "meshes": meshes,
        "links": tuple(li for li in cluster.links if {li.source, li.target} <= names),
        "workers": tuple(worker for worker in cluster.workers if worker.name in alive),
    }
    return replace(cluster, **keep)
