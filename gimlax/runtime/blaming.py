"""Whose fault a failure was: later stages only pass on what an earlier one failed with."""

from collections.abc import Iterable
from typing import TypeVar

from gimlax.errors import BackendError, GimlaxError
from gimlax.runtime.jobs import Job, Running
from gimlax.runtime.passes import first_line, stage_error

__all__ = ["blame", "blame_transfer", "caused"]

Error = TypeVar("Error", bound=GimlaxError)


def caused(error: Error, cause: BaseException) -> Error:
    """The error, with its cause."""
    error.__cause__ = cause
    return error


def blame(running: Iterable[Running], job: Job, mesh: str) -> BackendError | None:
    """The error of the first stage that failed, of this pass or on this mesh; None if none did."""
    for other in running:
        if other.job is job or other.stage.mesh == mesh:
            try:
                other.token.block_until_ready()
            except Exception as error:
                return caused(stage_error(other.stage, error), error)
    return None


def blame_transfer(
    running: Iterable[Running], job: Job, mesh: str, track: str, error: Exception
) -> BaseException:
    """What to call a transfer's failure: that of a stage behind it, or its own."""
    blamed = blame(running, job, mesh)
    if blamed is None and not isinstance(error, BackendError):
        blamed = caused(BackendError(f"transfer {track}: {first_line(error)}"), error)
    return blamed or error
