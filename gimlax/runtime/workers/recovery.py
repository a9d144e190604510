"""After a loss: another footing, and everything on it that a living handle or pass needs.

Placed arguments are put again from the caller's arrays. A state that was on no lost worker is read
back and put again; one that was is made from its origin: a value, and the passes since, done again
through all stages with only streamed inputs kept, a bounded number of them in flight. Each cell is
made by one pass and taken by one, whichever footing it is on, so nothing is applied twice.
"""

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Any

from gimlax.errors import BackendError, GimlaxError
from gimlax.runtime.passes import first_line
from gimlax.runtime.workers.attempts import Attempt, Numbers
from gimlax.runtime.workers.executor import RemoteExecutor
from gimlax.runtime.workers.flights import Flight
from gimlax.runtime.workers.footing import Footing
from gimlax.runtime.workers.ground import Ground, LostAgain
from gimlax.runtime.workers.lineage import (
    Applied,
    Origin,
    PassRecord,
    Value,
    Written,
    events_before,
)
from gimlax.runtime.workers.places import NowhereLeft, Places
from gimlax.runtime.workers.remote import State, joined, replaced
from gimlax.runtime.workers.room import NoRoom

__all__ = ["Recovery"]

_POLL_S = 0.05  # between looks whether a worker that was waited for is lost


class Recovery:
    """Makes a ground good again."""

    def __init__(self, ground: Ground, places: Places, *, most_in_flight: int) -> None:
        """`places` finds where else to stand; that many passes are replayed at a time."""
        self._ground = ground
        self._places = places
        self._most_in_flight = most_in_flight
        self._saved: dict[State, list[Any]] = {}  # until it is done, whatever is lost meanwhile

    def __call__(self, executor: RemoteExecutor, flights: Sequence[Flight]) -> None:
        """Leaves every state that is needed on a footing of which no worker is lost.

        Args:
            executor: whose ground it is; nothing is started meanwhile.
            flights: passes that will be started anew.

        Raises:
            LostAgain: a worker was lost meanwhile.
            GimlaxError: it cannot be done.
        """
        ground = self._ground
        try:
            self._restore(executor, flights)
        except NowhereLeft:
            raise
        except BackendError as error:
            if ground.footing.lost or isinstance(error, _New):
                raise LostAgain from error
            raise

    def _restore(self, executor: RemoteExecutor, flights: Sequence[Flight]) -> None:
        started_s = time.monotonic()
        ground, old = self._ground, self._ground.footing
        with ground.lock:
            for flight in flights:
                for state in flight.after:
                    state.leave()
        with contextlib.suppress(BackendError):
            old.reset()
        if old.lost or old.full:
            try:
                self._move(executor, old)
            except BackendError:
                if old.lost or not old.full:
                    raise
                old.is_last = True  # there is nowhere else, so the pass that needs too much ends
                old.full.clear()
                for flight in flights:
                    if flight.no_room is not None:
                        executor.flights.end(flight, flight.no_room)
        num_passes = self._rebuild(executor, flights, self._saved)
        self._saved = {}
        if ground.footing is not old:
            took_s = time.monotonic() - started_s
            executor.tell(_news(old, ground.footing, num_passes, len(flights), took_s))

    def _move(self, executor: RemoteExecutor, old: Footing) -> None:
        """Goes to another footing, with what can be saved from the old one."""
        ground = self._ground
        new = self._places.after(old)
        try:
            self._saved |= self._save(old)
            executor.collect(old)
            stocks = list(ground.stocks)
            placings = [stock.put(new) for stock in stocks]
        except BaseException as error:
            lost_again = bool(new.lost)
            new.close()
            if lost_again and isinstance(error, BackendError):
                raise _New(str(error)) from error
            raise
        executor.watch(new)
        for stock, placing in zip(stocks, placings, strict=True):
            stock.placing = placing
        if executor.is_recording:
            new.record()
        old.close()

    def _save(self, old: Footing) -> dict[State, list[Any]]:
        """What survivors hold of states that are whole."""
        saved: dict[State, list[Any]] = {}
        with self._ground.lock:
            whole = [
                state
                for state in self._ground.states
                if state.held is not None
                and state.held[0] is old
                and not state.consumed
                and old.survives(state.tree.index)
            ]
        for state in whole:
            with contextlib.suppress(BackendError):
                saved[state] = [state.read(old, leaf) for leaf in range(len(state.tree.avals))]
        return saved

    def _rebuild(
        self,
        executor: RemoteExecutor,
        flights: Sequence[Flight],
        saved: dict[State, list[Any]],
    ) -> int:
        """Puts every state that is needed on the footing; how many passes it took."""
        ground, footing = self._ground, self._ground.footing
        with ground.lock:
            taken = [state for flight in flights for state in flight.before if state.settled]
            free = [state for state in ground.states if not state.consumed]
            needed = [
                state
                for state in dict.fromkeys((*taken, *free))
                if state.gone is None and (state.held is None or state.held[0] is not footing)
            ]
        for state in needed:
            if state in saved:
                leaves = saved[state]
                state.keep(footing, footing.fill(state.tree.index, leaves))
                if state.origin is not None:
                    state.origin = Value(state.tree.index, leaves)
            elif state.origin is None:
                state.gone = (
                    "it died with a worker; start again from init(), or compile with"
                    " on_loss='replay' to have it rebuilt"
                )
        rest = [state for state in needed if state not in saved and state.origin is not None]
        num_passes = 0
        try:
            num_passes = _Replay(footing, rest, self._most_in_flight).run()
        except BackendError as error:
            if footing.lost:
                raise
            if isinstance(error, NoRoom) and not footing.is_last:
                footing.full.add(error.worker)
                raise _New(str(error)) from error
            for state in rest:
                state.leave()
                state.gone = f"it could not be rebuilt ({first_line(error)})"
            footing.reset()
        for flight in flights:
            for state in flight.before:
                if state.gone is not None:
                    executor.flights.end(flight, BackendError(f"{state.tree.name}: {state.gone}"))
        return num_passes


class _New(BackendError):
    """Another footing is needed than the one that was being made good."""


class _Replay:
    """Does what states came from once more."""

    def __init__(self, footing: Footing, states: Sequence[State], most_in_flight: int) -> None:
        self._footing = footing
        self._states = states
        self._room = threading.Semaphore(most_in_flight)
        self._most_in_flight = most_in_flight
        self._made: dict[Origin, Numbers] = {}
        self._errors: list[GimlaxError] = []
        origins = [state.origin for state in states]
        self._events, self._uses = events_before(of for of in origins if of is not None)
        self._outputs = {
            (origin.record, origin.tree): origin
            for origin in self._uses
            if isinstance(origin, Applied)
        }

    def run(self) -> int:
        """Leaves the states on the footing; how many passes it took.

        Raises:
            BackendError: a stage failed, or a worker is lost.
        """
        num_passes = 0
        for event in self._events:
            if isinstance(event, PassRecord):
                num_passes += 1
                self._apply(event)
            else:
                self._write(event)
        for state in self._states:
            assert state.origin is not None
            state.keep(self._footing, self._take(state.origin))
        self._drain()
        return num_passes

    def _apply(self, record: PassRecord) -> None:
        before = [self._take(origin) for origin in record.origins]
        after = [self._footing.fresh() for _ in before]
        self._wait()
        for tree, numbers in enumerate(after):
            origin = self._outputs.get((record, tree))
            if origin is None:
                self._footing.let_go(numbers)
            else:
                self._made[origin] = numbers
        self._footing.start(
            Attempt(
                record.phase,
                [stock.placing for stock in record.stocks],
                before,
                after,
                record.streamed,
                wanted=False,
                done=lambda _: self._room.release(),
                failed=self._fail,
            )
        )

    def _write(self, event: Written) -> None:
        numbers = self._take(event.base)
        self._drain()
        value, tree = event.value, event.tree
        if event.index != ():
            whole = joined(self._footing.read(tree, numbers, event.leaf))
            value = replaced(whole, value, event.index)
        self._footing.write(tree, numbers, event.leaf, value)
        self._made[event] = numbers

    def _take(self, origin: Origin) -> Numbers:
        """Cells of this origin, for one use; a copy if there will be another."""
        if origin not in self._made:
            assert isinstance(origin, Value)
            self._made[origin] = self._footing.fill(origin.tree, origin.leaves)
        self._uses[origin] -= 1
        if self._uses[origin]:
            self._drain()
            return self._footing.copy(self._made[origin])
        return self._made.pop(origin)

    def _drain(self) -> None:
        """Waits for all passes that are under way."""
        for _ in range(self._most_in_flight):
            self._wait()
        self._room.release(self._most_in_flight)

    def _wait(self) -> None:
        """Waits until one more pass may be under way."""
        there = False
        while not there:
            there = self._room.acquire(timeout=_POLL_S)
            if self._errors:
                raise self._errors[0]
            if self._footing.lost:
                raise BackendError(str(self._footing.lost[0].lost))

    def _fail(self, error: GimlaxError) -> None:
        self._errors.append(error)
        self._room.release()


def _news(old: Footing, new: Footing, num_passes: int, num_flights: int, took_s: float) -> str:
    """What happened, in one line."""
    before, after = _where(old), _where(new)
    moved = [name for name, mesh in before.items() if after[name] != mesh]
    targets = ", ".join(dict.fromkeys(repr(after[name]) for name in moved))
    where = (
        f"{len(moved)} of {len(before)} segments ({moved[0]} to {moved[-1]}) now run on {targets}"
        if moved
        else "everything runs where it did, on workers that were started again"
    )
    why = [str(peer.lost) for peer in old.lost]
    why += [f"worker {name!r} had no room for a pass" for name in sorted(old.full)]
    return (
        f"{'; '.join(why)}. {where}; {num_passes} passes were replayed to rebuild state,"
        f" {num_flights} under way were started anew; it took {took_s:.1f} s"
    )


def _where(footing: Footing) -> dict[str, str]:
    """The mesh of each segment."""
    program = footing.programs[0]
    return {
        name: mesh
        for names, mesh in zip(program.segments, program.placement, strict=True)
        for name in names
    }
