"""Where a compilation stands: its stages on the workers that it has just now.

Numbers of cells and of placed arguments mean something on one footing only. When a worker is lost
the compilation gets another footing; what workers still tell of the old one is then heard by
nobody. Within a footing passes belong to an epoch: `reset` begins the next, and answers of an
earlier one are dropped.
"""

import contextlib
import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from gimlax.errors import BackendError
from gimlax.graph import Chain, Part
from gimlax.lazy import read_all
from gimlax.partition import normal
from gimlax.planning import Plan
from gimlax.program import Program
from gimlax.runtime.inventory import Inventory
from gimlax.runtime.passes import CompiledPhase
from gimlax.runtime.workers.attempts import Attempt, Numbers, Placing
from gimlax.runtime.workers.clocks import ahead_by
from gimlax.runtime.workers.files import where_filed
from gimlax.runtime.workers.garbage import Garbage
from gimlax.runtime.workers.joining import Links
from gimlax.runtime.workers.peers import Peer, error_of
from gimlax.runtime.workers.room import with_worker
from gimlax.runtime.workers.telling import PassOrder, streamed_keys
from gimlax.runtime.workers.wire import Message, from_wire

__all__ = ["NUMBERS", "Footing"]

NUMBERS = itertools.count()  # of deployments, arrays, cells and passes: unique in this process


class _Share:
    """What a worker does in a phase.

    `ends` says whether a stage of it feeds no other: when all of those have ended, so have the
    stages that they wait for, and nobody else has to tell.
    """

    __slots__ = ("cells", "ends", "outputs", "streamed")

    def __init__(
        self, phase: CompiledPhase, program: Program, mine: Sequence[str], trees: int
    ) -> None:
        stages = [stage for stage in phase.stages if stage.mesh in mine]
        used = {value for stage in phase.stages for _, value in stage.received}
        self.ends = any(used.isdisjoint(v for _, v in stage.produced) for stage in stages)
        self.cells = [(tree, stage.index) for tree in range(trees) for stage in stages]
        self.streamed = streamed_keys(stages)
        self.outputs = list(dict.fromkeys(key for key in phase.outputs if key and key[0] in mine))


class Footing:
    """Stages on workers, and the passes that are being tried there."""

    def __init__(
        self,
        *,
        number: int,
        owner: int,
        plan: Plan,
        chain: Chain,
        programs: Sequence[Program],
        phases: Sequence[CompiledPhase],
        inventory: Inventory,
        workers: Mapping[str, Peer],
        platforms: Mapping[str, str],
        garbage: Garbage,
        links: Links,
        config: Sequence[tuple[str, Any]],
        num_compiled: int,
    ) -> None:
        """Describes what was prepared.

        Args:
            number: of the deployment, on its workers.
            owner: the number of the compilation's first one: of all, the arrays are the same.
            plan: that it follows.
            chain: what it cuts, in its order.
            programs, phases: of the plan.
            inventory: how arguments lie on the meshes.
            workers: by mesh.
            platforms: by mesh, what stages are lowered for.
            garbage: what workers can let go of.
            links: between the workers.
            config: JAX's configuration of the trace.
            num_compiled: distinct stages.
        """
        self.number = number
        self.owner = owner
        self.plan = plan
        self.chain = chain
        self.programs = tuple(programs)
        self.phases = tuple(phases)
        self.inventory = inventory
        self.workers = dict(workers)
        self.platforms = dict(platforms)
        self.peers = {peer.name: peer for peer in workers.values()}
        self.config = list(config)
        self.num_compiled = num_compiled
        self.full: set[str] = set()  # workers that had no room for a pass that was alone
        self.is_last = False  # whether there is nowhere else to go
        self._garbage = garbage
        self._links = links
        self._epoch = 0
        self._ahead_s: dict[str, float] = {}  # clocks of workers, since the recording began
        self._is_recorded = False  # then all tell of the end of a pass: their spans are there
        self._finished: dict[str, list[int]] = {name: [] for name in self.peers}
        self._lock = threading.Lock()
        self._attempts: dict[int, Attempt] = {}
        meshes = {
            name: [mesh for mesh, peer in workers.items() if peer.name == name]
            for name in self.peers
        }
        self._shares = {
            (name, index): _Share(phase, program, meshes[name], len(inventory.states))
            for name in self.peers
            for index, (phase, program) in enumerate(zip(self.phases, programs, strict=True))
        }
        rows = [stage.mesh for phase in self.phases for stage in phase.stages]
        self._rows = {
            name: [row for row, mesh in enumerate(rows) if mesh in meshes[name]]
            for name in self.peers
        }
        # Of each carried tree and leaf: which part of it is which array of the cell of which stage.
        self._lying: list[dict[int, list[tuple[Part, int, int]]]] = []
        for states in inventory.states:
            leaves: dict[int, list[tuple[Part, int, int]]] = {}
            for stage, parts in enumerate(states):
                for place, part in enumerate(parts):
                    leaves.setdefault(part.leaf, []).append((part, stage, place))
            self._lying.append({leaf: sorted(of) for leaf, of in leaves.items()})
        for name, peer in self.peers.items():
            peer.listen(number, lambda message, name=name: self._hear(name, message))

    @property
    def lost(self) -> tuple[Peer, ...]:
        """Those of its workers that are lost."""
        return tuple(peer for peer in self.peers.values() if peer.lost is not None)

    def fresh(self) -> Numbers:
        """Numbers of cells that a pass will fill."""
        return tuple([next(NUMBERS) for _ in self.inventory.placement])

    def start(self, attempt: Attempt) -> None:
        """Tells every worker of a pass. Whoever calls does so in one order for all passes."""
        number = next(NUMBERS)
        shares = {name: self._shares[name, attempt.phase] for name in self.peers}
        attempt.missing = {
            name
            for name, share in shares.items()
            if share.ends or (attempt.wanted and share.outputs) or self._is_recorded
        }
        if attempt.tap is not None:
            attempt.tap.begin(self, number, attempt.phase)
        with self._lock:
            self._attempts[number] = attempt
        for name, peer in self.peers.items():
            share, streamed = shares[name], attempt.streamed
            with self._lock:
                finished, self._finished[name] = self._finished[name], []
            drop, told = self._garbage.take(name), []
            placed = [self._placed(placing, name, told) for placing in attempt.placed]
            if drop or told:
                peer.tell("keep", {"deployment": self.number, "drop": drop, "placed": told})
            order = PassOrder(
                number=number,
                epoch=self._epoch,
                phase=attempt.phase,
                is_wanted=attempt.wanted,
                tells=name in attempt.missing,
                is_tapped=attempt.tap is not None,
                finished=finished,
                placed=placed,
                before=[attempt.before[tree][stage] for tree, stage in share.cells],
                after=[attempt.after[tree][stage] for tree, stage in share.cells],
            )
            arrays = [streamed[leaf] for _, leaf in share.streamed]
            peer.tell("pass", {"deployment": self.number}, arrays, order.numbers())

    def reset(self) -> None:
        """Gives up all attempts; returns when no worker works on one any more.

        Raises:
            BackendError: a worker was lost meanwhile.
        """
        with self._lock:
            self._epoch += 1
            self._attempts.clear()
        self._ask_all("reset", {"epoch": self._epoch})

    def shelve(
        self, mesh: str, numbers: Sequence[int], specs: Any, rows: Sequence[Any], *, filed: bool
    ) -> Any:
        """Begins to put arrays on a mesh under these numbers; a future.

        With `filed` the worker reads those that lie in files by itself, and refuses if it cannot.
        """
        rows = [read_all(row) for row in rows]
        files = [where_filed(row) if filed else None for row in rows]
        sent = [row for row, where in zip(rows, files, strict=True) if where is None]
        fields = {"deployment": self.number, "mesh": mesh, "numbers": list(numbers), "specs": specs}
        return self.workers[mesh].begin("shelve", {**fields, "files": files}, sent)

    def fill(self, tree: int, leaves: Sequence[Any]) -> Numbers:
        """Puts a state on its meshes.

        Args:
            tree: index of the carried argument.
            leaves: all its arrays.

        Returns:
            Numbers of its cells.
        """
        numbers = self.fresh()
        of_tree = self.inventory.carried[tree]
        futures = []
        for name, peer in self.peers.items():
            lots, rows = [], []
            for stage, mesh in enumerate(self.inventory.placement):
                if self.workers[mesh].name != name:
                    continue
                specs = []
                for part in self.inventory.states[tree][stage]:
                    leaf = part.leaf - of_tree.first
                    row = leaves[leaf] if part.whole else leaves[leaf][part.start : part.stop]
                    lying = self.inventory.arrangement.argument(mesh, of_tree.paths[leaf])
                    specs.append(normal(lying.spec, row.ndim))
                    rows.append(row)
                lots.append([mesh, numbers[stage], specs])
            fields = {"deployment": self.number, "lots": lots}
            futures.append(peer.begin("fill", fields, rows))
        _settle(futures)
        return numbers

    def read(self, tree: int, numbers: Numbers, leaf: int) -> list[tuple[Part, Any]]:
        """The parts of a leaf of a state, each as an array of this process."""
        found = []
        for part, stage, place in self._lying[tree][self.inventory.carried[tree].first + leaf]:
            mesh = self.inventory.placement[stage]
            _, (array,) = self._ask(mesh, "read", {"cell": numbers[stage], "number": place})
            found.append((part, array))
        return found

    def write(self, tree: int, numbers: Numbers, leaf: int, value: Any) -> None:
        """Replaces a leaf of a state."""
        for part, stage, place in self._lying[tree][self.inventory.carried[tree].first + leaf]:
            row = value if part.whole else value[part.start : part.stop]
            fields = {"cell": numbers[stage], "number": place, "config": self.config}
            self._ask(self.inventory.placement[stage], "write", fields, (row,))

    def copy(self, numbers: Numbers) -> Numbers:
        """Numbers of cells with copies of a state."""
        made = self.fresh()
        futures = [
            self.workers[mesh].begin("copy", {"deployment": self.number, "cell": old, "new": new})
            for mesh, old, new in zip(self.inventory.placement, numbers, made, strict=True)
        ]
        _settle(futures)
        return made

    def let_go(self, numbers: Numbers) -> None:
        """Notes that nobody wants a state any more."""
        for mesh, number in zip(self.inventory.placement, numbers, strict=True):
            self._garbage.add(self.workers[mesh].name, "cells", number)

    def survives(self, tree: int) -> bool:
        """Whether no part of this state was on a lost worker."""
        return all(
            self.workers[mesh].lost is None
            for mesh, parts in zip(
                self.inventory.placement, self.inventory.states[tree], strict=True
            )
            if parts
        )

    def record(self) -> None:
        """Lets all workers collect spans."""
        self._is_recorded = True
        self._ask_all("record", {})
        self._ahead_s = {
            name: ahead_by(lambda peer=peer: peer.ask("clock", {})[0]["now_s"])
            for name, peer in self.peers.items()
        }

    def end_record(self) -> list[list[Any]]:
        """What those that are left have collected: (mesh, task, start, end), by the clock here."""
        if not self._is_recorded:  # or closed since
            return []
        self._is_recorded = False
        spans: list[list[Any]] = []
        for name, peer in self.peers.items():
            if peer.lost is None:
                with contextlib.suppress(BackendError):
                    said, _ = peer.ask("end record", {"deployment": self.number})
                    by_s = self._ahead_s.get(name, 0.0)
                    spans += [[*what, a - by_s, b - by_s] for *what, a, b in said["spans"]]
        return spans

    def close(self, *, last: bool = False) -> None:
        """Ends it on the workers that are left; the last one of a compilation ends all its arrays.

        What it has given up is heard by nobody from then on.
        """
        self._is_recorded = False
        self._links.close()
        with self._lock:
            self._attempts.clear()
        for peer in self.peers.values():
            peer.ignore(self.number)
            if peer.lost is None:
                with contextlib.suppress(BackendError):
                    peer.ask(
                        "close", {"deployment": self.number, "owner": self.owner, "last": last}
                    )

    def _placed(self, placing: Placing, name: str, told: list[Any]) -> int:
        """Number of an argument on a worker; adds the first time what stages read of it."""
        number = placing.workers.get(name)
        if number is None:
            number = placing.workers[name] = next(NUMBERS)
            rows = self.inventory.rows[placing.tree]
            read = [[row, [placing.arrays[at] for at in rows[row]]] for row in self._rows[name]]
            told.append([number, read])
        return number

    def _ask(self, mesh: str, kind: str, fields: Mapping[str, Any], arrays: Any = ()) -> Any:
        return self.workers[mesh].ask(kind, {"deployment": self.number, **fields}, arrays)

    def _ask_all(self, kind: str, fields: Mapping[str, Any]) -> None:
        fields = {"deployment": self.number, **fields}
        _settle([peer.begin(kind, fields) for peer in self.peers.values() if peer.lost is None])

    def _hear(self, name: str, message: Message) -> None:
        if message.kind == "hung":
            self.peers[name].give_up(f"hangs: {message.fields['what']}")
            return
        if message.kind not in ("done", "failed"):
            self._links.hear(message.kind, message.fields)
            return
        number, epoch = message.numbers
        arrays = from_wire(message)
        with self._lock:
            attempt = self._attempts.get(number)
            if attempt is None or epoch != self._epoch:
                return
            if message.kind == "done":
                if arrays:
                    keys = self._shares[name, attempt.phase].outputs
                    attempt.values.update(zip(keys, arrays, strict=True))
                attempt.missing.discard(name)
                if attempt.missing:
                    return
            del self._attempts[number]
        if message.kind == "done":
            self._links.progress()
            with self._lock:
                for finished in self._finished.values():
                    finished.append(number)
            attempt.done(attempt.values)
        else:
            attempt.failed(with_worker(error_of(message.fields), name))


def _settle(futures: Sequence[Any]) -> None:
    """Waits for all, then raises the first error: nothing is left under way."""
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise errors[0]
