"""Whose fault it was shows in the class of the error.

    GimlaxError
    ├── SpecError      what the caller described (cluster file, mesh, argument, model file) is wrong
    ├── TraceError     a function cannot be traced, or was called with other arguments than traced
    ├── PlanError      no plan exists, or a plan does not belong to this model or cluster
    ├── BackendError   the world's fault: a backend, device or file failed; its cause is kept
    └── InternalError  ours: please report it

    ContractWarning   numbers of a live pass are off, or not finite (a warning: the pass goes on)

Each message says which thing, what it had, and what to do, in that order.
"""


class GimlaxError(Exception):
    """Base of everything that gimlax raises on purpose."""


class SpecError(GimlaxError, ValueError):
    """A description given by the caller is wrong: the caller can fix it."""


class TraceError(GimlaxError, TypeError):
    """A function cannot be traced, or arguments differ from those it was traced for."""


class PlanError(GimlaxError, ValueError):
    """No plan satisfies the request, or a plan belongs to another model or cluster."""


class BackendError(GimlaxError, RuntimeError):
    """A backend, device or file of the world failed; `__cause__` keeps what it said."""


class InternalError(GimlaxError, AssertionError):
    """A fault of gimlax itself; the message asks for a report."""


class ContractWarning(UserWarning):
    """A check of a live pass found numbers beyond their tolerance, or NaN or infinity."""
