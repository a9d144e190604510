"""What a pass that is to be checked leaves behind: its state before, and whether all was finite.

State is donated by the stage that updates it, so it is copied before; what comes out is looked at
where it lies, one boolean an array, which is all that a pass costs more beside the copies.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Tap"]


@jax.jit
def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()


class Tap:
    """Fills while the pass of this number is dispatched; by stage.

    `state` has the carried arrays of each tree that the stage was given, `received` the values.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.state: dict[int, list[tuple[jax.Array, ...]]] = {}
        self.received: dict[int, list[jax.Array]] = {}
        self._flags: dict[int, list[jax.Array]] = {}

    def before(
        self, stage: int, state: Sequence[Sequence[jax.Array] | None], received: Sequence[Any]
    ) -> None:
        """Keeps what a stage is given."""
        self.state[stage] = [tuple([array.copy() for array in arrays or ()]) for arrays in state]
        self.received[stage] = list(received)

    def after(
        self, stage: int, state: Sequence[Sequence[jax.Array]], produced: Sequence[jax.Array]
    ) -> None:
        """Asks whether what a stage made is finite; does not wait for the answer."""
        arrays = [array for of in state for array in of] + list(produced)
        self._flags[stage] = [_all_finite(a) for a in arrays if _has_finite(a.dtype)]

    def stages_not_finite(self) -> list[int]:
        """The stages that made NaN or infinity, in order; waits until they are done."""
        return [
            stage for stage, flags in sorted(self._flags.items()) if not all(map(np.asarray, flags))
        ]


def _has_finite(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.inexact)
