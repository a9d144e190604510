"""The thread that makes things good after a loss or a failure, until nothing is wrong."""

import threading
from collections.abc import Callable, Sequence

from gimlax.errors import GimlaxError, InternalError
from gimlax.runtime.workers.flights import Flight, Flights
from gimlax.runtime.workers.ground import Ground, LostAgain

__all__ = ["Mender"]


class Mender:
    """Stops all passes, has ground and states made good, and lets the passes go on."""

    def __init__(
        self,
        ground: Ground,
        flights: Flights,
        restore: Callable[[Sequence[Flight]], None],
        go_on: Callable[[], None],
    ) -> None:
        """Does nothing yet.

        Args:
            ground: of the compilation.
            flights: what is under way.
            restore: leaves every state that these passes need where they run.
            go_on: starts what can be started; called under the lock.
        """
        self._ground = ground
        self._flights = flights
        self._restore = restore
        self._go_on = go_on

    def begin(self) -> None:
        """Sees to it that all is made good; the caller holds the lock and does not wait for it."""
        ground = self._ground
        if not ground.recovering and ground.broken is None:
            ground.recovering = True
            threading.Thread(target=self._work, name="gimlax recover", daemon=True).start()
        ground.changed.notify_all()

    def _work(self) -> None:
        ground, flights = self._ground, self._flights
        try:
            while True:
                with ground.lock:
                    endings = flights.stop()
                for flight, error in endings:
                    flights.end(flight, error)
                try:
                    self._restore(tuple(flights))
                except LostAgain:
                    continue
                with ground.lock:
                    if not ground.footing.lost and not flights.failed and flights.are_ready():
                        ground.recovering = False
                        self._go_on()
                        ground.changed.notify_all()
                        return
        except BaseException as error:
            self._break(error)

    def _break(self, error: BaseException) -> None:
        """Nothing can run any more."""
        said = error
        if not isinstance(said, GimlaxError):
            said = InternalError(
                f"a recovery failed: {type(error).__name__}: {error}; please report it"
            )
            said.__cause__ = error
        ground = self._ground
        with ground.lock:
            ground.broken = said
            ground.recovering = False
            ground.changed.notify_all()
            flights = tuple(self._flights)
        for flight in flights:
            self._flights.end(flight, said)
