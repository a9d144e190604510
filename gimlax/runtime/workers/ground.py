"""What the executor, the store and the recovery of one compilation share: where it stands now."""

import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from gimlax.errors import BackendError, GimlaxError, SpecError
from gimlax.runtime.workers.footing import Footing
from gimlax.runtime.workers.garbage import Garbage

__all__ = ["Ground", "LostAgain", "Moved", "own"]

Result = TypeVar("Result")


class LostAgain(Exception):
    """A worker was lost in the middle of a recovery."""


class Moved(Exception):
    """What was asked for lies on another footing by now."""


class Ground:
    """The footing of a compilation, which a recovery replaces, and what has to move with it.

    `lock` may be taken again by who has it; `changed` is told of everything that somebody may wait
    for. While `recovering` no pass is started. `broken` says why nothing can run any more. When no
    executable and no state needs it any more, it ends on the workers.
    """

    def __init__(
        self,
        footing: Footing,
        garbage: Garbage,
        progress: Callable[[], None],
        *,
        keeps_log: bool,
    ) -> None:
        """`progress` is to be called when a pass has come through."""
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self._footing = [footing]
        self._finalizer = weakref.finalize(self, _let_go, self._footing)
        self._finalizer.atexit = False
        self.garbage = garbage
        self.progress = progress
        self.keeps_log = keeps_log
        self.recovering = False
        self.broken: GimlaxError | None = None
        self.stocks: weakref.WeakSet[Any] = weakref.WeakSet()
        self.states: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def footing(self) -> Footing:
        """That of now."""
        return self._footing[0]

    @footing.setter
    def footing(self, footing: Footing) -> None:
        self._footing[0] = footing

    def close(self) -> None:
        """Ends on the workers, which are asked one after the other."""
        self._finalizer.detach()
        self.footing.close(last=True)

    def check(self) -> None:
        """Raises what broke it, as an error of its own."""
        if self.broken is not None:
            raise own(self.broken)

    def steadily(
        self,
        act: Callable[[Footing], Result],
        keep: Callable[[Footing, Result], None] = lambda *_: None,
    ) -> Result:
        """Does something on the footing, and again if that was replaced meanwhile.

        Args:
            act: asks workers.
            keep: is called with what `act` returned, while nothing can change.

        Raises:
            BackendError: a worker refuses, or nothing can run any more.
            SpecError: the thread that has to hear the answer asks.
        """
        if threading.current_thread().name.startswith("gimlax hear"):
            raise SpecError(
                "workers were asked for something in a callback of a pass, which would wait for"
                " itself; do it in another thread"
            )
        while True:
            with self.changed:
                while self.recovering and self.broken is None:
                    self.changed.wait()
                self.check()
                footing = self.footing
            try:
                result = act(footing)
            except (BackendError, Moved) as error:
                if isinstance(error, BackendError) and not footing.lost:
                    raise
            else:
                with self.lock:
                    if self.footing is footing and not self.recovering:
                        keep(footing, result)
                        return result
            with self.changed:  # a lost worker is always followed by a recovery
                while self.footing is footing and not self.recovering and footing.lost:
                    self.check()
                    self.changed.wait()


def own(error: GimlaxError) -> GimlaxError:
    """An error of its own for each that is told: raising one twice would mix their tracebacks."""
    kind = BackendError if isinstance(error, BackendError) else type(error)
    made = kind(str(error))
    made.__cause__ = error
    return made


def _let_go(footing: list[Footing]) -> None:
    """Ends it elsewhere: whoever is here may have any lock, as the collector comes at any time."""
    threading.Thread(
        target=footing[0].close, kwargs={"last": True}, name="gimlax let go", daemon=True
    ).start()
