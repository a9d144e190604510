"""Memory that a worker does not have: an error of its own, since elsewhere there may be room."""

from gimlax.errors import BackendError, GimlaxError

__all__ = ["NoRoom", "with_worker"]

_SIGNS = ("RESOURCE_EXHAUSTED", "CompileTimeHbmOom", "can't start new thread", "MemoryError")


class NoRoom(BackendError):
    """`worker` names whose memory it was."""

    def __init__(self, said: str, worker: str = "") -> None:
        super().__init__(said)
        self.worker = worker


def with_worker(error: GimlaxError, worker: str) -> GimlaxError:
    """The error as `NoRoom`, if that is what a worker told of."""
    said = str(error)
    return NoRoom(said, worker) if any(sign in said for sign in _SIGNS) else error
