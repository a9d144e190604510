"""What a pass that is to be checked leaves behind: all that its stages were given and made.

State is donated by the stage that updates it, and a received value may lie over memory that its
link wants back, so both are copied. What a stage produces is nobody's to overwrite and is kept as
it is. Whether a stage made NaN or infinity is looked at where it lies, one boolean an array. That,
the copies and their memory are all that a pass costs more.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gimlax.errors import BackendError
from gimlax.runtime.compilation import CompiledStage

__all__ = ["LocalTap", "Tap"]

Key = tuple[str, int]  # (mesh name, value id)


class Tap(Protocol):
    """What there is of a pass to check, wherever it lies.

    Arrays may be stand-ins with a `fetch` method; see `handles.to_host`.
    """

    @property
    def number(self) -> int:
        """Of the pass, the first is 1."""
        ...

    def given(self, stage: int) -> Sequence[Sequence[Any]]:
        """The state that a stage was given: the arrays of each carried tree that it has any of."""
        ...

    def updated(self, stage: int) -> Sequence[Sequence[Any]]:
        """The state that it made of it."""
        ...

    def value(self, mesh: str, value: int) -> Any:
        """A value as it was on a mesh: made there, received by a stage, or handed on."""
        ...

    def stages_not_finite(self) -> list[int]:
        """The stages that made NaN or infinity, in order; waits until they are done.

        Raises:
            BackendError: there was no room to keep what the pass leaves, or it is gone.
        """
        ...

    def let_go(self) -> None:
        """Nobody wants any of it any more."""
        ...


@jax.jit
def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()


class LocalTap:
    """A tap of this process's own stages; fills while the pass of this number is dispatched."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._given: dict[int, list[tuple[Any, ...]]] = {}
        self._updated: dict[int, list[tuple[Any, ...]]] = {}
        self._values: dict[Key, Any] = {}
        self._flags: dict[int, list[jax.Array]] = {}
        self._problem: Exception | None = None

    def before(
        self,
        stage: CompiledStage,
        state: Sequence[Sequence[jax.Array] | None],
        received: Sequence[jax.Array],
    ) -> None:
        """Keeps what a stage is given."""
        with self._trying():
            self._given[stage.index] = list(map(_copies, state))
        self.hand_on(stage.received, received)

    def after(
        self,
        stage: CompiledStage,
        state: Sequence[Sequence[jax.Array]],
        produced: Sequence[jax.Array],
    ) -> None:
        """Keeps what a stage made, and asks whether it is finite; does not wait for the answer."""
        with self._trying():
            arrays = [array for of in state for array in of] + list(produced)
            self._flags[stage.index] = [_all_finite(a) for a in arrays if _has_finite(a.dtype)]
            self._updated[stage.index] = list(map(_copies, state))
            self._values.update(zip(stage.produced, produced, strict=True))

    def hand_on(self, keys: Sequence[Key], values: Sequence[jax.Array]) -> None:
        """Keeps values as they are on a mesh, if they are not kept yet."""
        with self._trying():
            for key, value in zip(keys, values, strict=True):
                if key not in self._values:
                    self._values[key] = value.copy()

    def given(self, stage: int) -> Sequence[Sequence[Any]]:
        """See `Tap`."""
        return self._given[stage]

    def updated(self, stage: int) -> Sequence[Sequence[Any]]:
        """See `Tap`."""
        return self._updated[stage]

    def value(self, mesh: str, value: int) -> Any:
        """See `Tap`."""
        return self._values[mesh, value]

    def stages_not_finite(self) -> list[int]:
        """See `Tap`."""
        if self._problem is not None:
            self.let_go()
            raise BackendError(
                f"what it was given and made could not be kept: {self._problem}; checks need room"
                " for two copies of its state and one of its values"
            ) from self._problem
        return [
            stage for stage, flags in sorted(self._flags.items()) if not all(map(np.asarray, flags))
        ]

    def let_go(self) -> None:
        """See `Tap`."""
        for kept in (self._given, self._updated, self._values, self._flags):
            kept.clear()

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        """A pass must not fail for want of room to check it."""
        try:
            yield
        except Exception as error:
            self._problem = error


def _copies(arrays: Sequence[jax.Array] | None) -> tuple[jax.Array, ...]:
    return tuple([array.copy() for array in arrays or ()])


def _has_finite(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.inexact)
