"""Several processes as one: JAX's distributed runtime, before any backend starts."""

import jax

from gimlax.errors import BackendError

__all__ = ["join_processes"]

_TIMEOUT_S = 60


def join_processes(host: str, port: int, *, count: int, number: int) -> None:
    """Lets the backends of this process have the devices of all processes.

    The first one listens at the address, where whoever reaches it is taken at its word: the hosts
    have to be among themselves.

    Args:
        host: address of the first process, by which all reach it.
        port: of it that is free.
        count: how many processes there are.
        number: which this one is, from 0.

    Raises:
        BackendError: they do not find each other.
    """
    at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        jax.distributed.initialize(
            at,
            count,
            number,
            coordinator_bind_address=at,
            initialization_timeout=_TIMEOUT_S,
        )
    except RuntimeError as error:
        raise BackendError(
            f"process {number} of {count} does not find the others at {at}: {error}; let the hosts"
            " reach each other on every port"
        ) from error
