"""The passes that are under way, and how they end: each once, with its result or with an error."""

from collections.abc import Iterator, Sequence

from gimlax import _jax
from gimlax.errors import BackendError, GimlaxError
from gimlax.runtime.jobs import Job
from gimlax.runtime.passes import first_line
from gimlax.runtime.workers.ground import Ground, own
from gimlax.runtime.workers.peers import Peer
from gimlax.runtime.workers.remote import State, Stock
from gimlax.runtime.workers.room import NoRoom

__all__ = ["Flight", "Flights", "is_long"]

_MOST_LOSSES = 3  # of workers while one pass was under way
_LEAST_LOG_BYTES = 2**20
_MOST_LOGGED = 1024  # passes

Endings = list[tuple["Flight", GimlaxError]]


class Flight:
    """A pass that is under way.

    Attributes:
        job: what is to become of it.
        phase: its index.
        stocks: its placed arguments.
        streamed: its streamed leaves by number.
        before, after: its states.
        started: whether the workers of the footing were told of it.
        losses: how often it was under way when a worker was lost.
        no_room: what a worker told that had no memory for it, though it was alone there.
    """

    __slots__ = (
        "after",
        "before",
        "job",
        "losses",
        "no_room",
        "phase",
        "started",
        "stocks",
        "streamed",
    )

    def __init__(
        self, job: Job, phase: int, stocks: Sequence[Stock], before: Sequence[State]
    ) -> None:
        work = job.work
        self.job = job
        self.phase = phase
        self.stocks = stocks
        self.streamed = {leaf: array for (_, leaf), array in work.streamed.items()}
        self.before = before
        self.after: list[State] = [cells[0] for cells in work.next_state]  # type: ignore[misc]
        self.started = False
        self.losses = 0
        self.no_room: NoRoom | None = None


class Flights:
    """Passes in the order in which they were submitted; every method is called under the lock.

    After a failure, those that were under way run one at a time: which was at fault is not known
    before, as a worker gives up all its passes when one fails.
    """

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._flights: dict[Flight, None] = {}
        self._alone: set[Flight] = set()
        self.failed: list[tuple[Flight, GimlaxError]] = []

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Flight]:
        return iter(tuple(self._flights))

    def __contains__(self, flight: Flight) -> bool:
        return flight in self._flights

    def add(self, flight: Flight) -> None:
        """A pass that was submitted."""
        self._flights[flight] = None

    def remove(self, flight: Flight) -> bool:
        """A pass that ends; whether others have waited for just this."""
        del self._flights[flight]
        waited = flight in self._alone
        self._alone.discard(flight)
        flight.job.ended = True
        flight.job.future.job = None
        self._ground.changed.notify_all()
        return waited

    def startable(self) -> Iterator[Flight]:
        """What may be started now, in order."""
        for flight in tuple(self._flights):
            if not flight.started:
                yield flight
            if flight in self._alone:
                return

    def are_ready(self) -> bool:
        """Whether every state that a pass is to be started on is where it runs."""
        footing = self._ground.footing
        return all(
            not state.settled or (state.held is not None and state.held[0] is footing)
            for flight in self._flights
            for state in flight.before
        )

    def stop(self) -> Endings:
        """Nothing is under way any more; which passes cannot be tried again, and why."""
        failed, self.failed = self.failed, []
        lost = self._ground.footing.lost
        started = [flight for flight in self._flights if flight.started]
        endings: Endings = []
        for flight, error in failed[:1]:
            if flight not in self._alone:
                continue
            if isinstance(error, NoRoom) and flight.no_room is None:
                flight.no_room = error
                self._ground.footing.full.add(error.worker)
            else:
                endings.append((flight, error))
        for flight in started:
            flight.started = False
            flight.losses += bool(lost)
            if flight.before and not self._ground.keeps_log:
                endings.append((flight, failed[0][1] if failed else _state_lost(lost)))
            elif lost and flight.losses >= _MOST_LOSSES:
                endings.append((flight, _fatal(lost[-1])))
        if failed:
            self._alone.update(started)
        return endings

    def end(self, flight: Flight, error: GimlaxError) -> None:
        """Ends a pass, and all that need its state, with an error each."""
        reason = f"was lost when a pass failed ({first_line(error)})"
        ended = []
        with self._ground.lock:
            gone: set[State] = {*flight.before}
            for other in self:
                if other is flight or gone.intersection(other.before):
                    gone.update(other.after)
                    ended.append(other)
                    self.remove(other)
            for state in gone:
                state.gone = reason
        for other in ended:
            told = own(error)
            if other is not flight:
                told = type(error)(f"the state of this pass never came to be: {error}")
                told.__cause__ = error
            other.job.work.lose_state(reason)
            other.job.future.set_exception(told)


def is_long(state: State) -> bool:
    """Whether the log of a state has grown larger than the state, or long."""
    origin = state.origin
    if origin is None or origin.num_events < 2:
        return False
    nbytes = sum(map(_jax.nbytes, state.tree.avals))
    most_bytes = max(nbytes, _LEAST_LOG_BYTES)
    return origin.num_events >= _MOST_LOGGED or origin.logged_bytes > most_bytes


def _state_lost(lost: Sequence[Peer]) -> BackendError:
    return BackendError(
        f"the carried state of this pass is lost ({lost[-1].lost}); start again from init(), or"
        " compile with on_loss='replay' to have it rebuilt"
    )


def _fatal(peer: Peer) -> BackendError:
    return BackendError(
        f"this pass was under way each time when workers were lost, {_MOST_LOSSES} times, so it is"
        f" not tried again; the last: {peer.lost}"
    )
