"""What a worker keeps of passes that are to be checked, and gives away in pieces when asked."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gimlax.errors import BackendError, InternalError
from gimlax.runtime.tapping import LocalTap
from gimlax.runtime.workers.wire import name_of

__all__ = ["GIVEN", "UPDATED", "VALUE", "Taps"]

GIVEN, UPDATED, VALUE = "given", "updated", "value"


class Taps:
    """The taps of one worker in one deployment, by number of the pass there."""

    def __init__(self) -> None:
        self._taps: dict[int, LocalTap] = {}
        self._sending: tuple[Any, np.ndarray, str] | None = None

    def __len__(self) -> int:
        return len(self._taps)

    def new(self, number: int) -> LocalTap:
        """A tap for a pass that is started."""
        tap = self._taps[number] = LocalTap(number)
        return tap

    def pop(self, number: int, otherwise: None = None) -> LocalTap | None:
        """Lets go of the tap of this pass, if there is one."""
        self._sending = None
        return self._taps.pop(number, otherwise)

    def stages_not_finite(self, number: int) -> list[int]:
        """Of the stages that run here, those that made NaN or infinity; see `Tap`."""
        return self._tap(number).stages_not_finite()

    def piece(
        self, number: int, where: Sequence[Any], start: int, stop: int
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Bytes of an array, and what array that is.

        Args:
            number: of the pass.
            where: 'given' or 'updated', stage, carried tree among those of the stage, place in it;
                or 'value', mesh, value.
            start, stop: which of its bytes.
        """
        key = (number, *where)
        sending = self._sending
        if sending is None or sending[0] != key:
            sending = self._sending = (key, *_host(self.find(number, where)))
        _, array, generator = sending
        name = name_of(array.dtype)
        if name is None:
            raise BackendError(f"an array of dtype {array.dtype} cannot be sent to be compared")
        said = {"dtype": name, "shape": list(array.shape), "generator": generator}
        return said, array.reshape(-1).view(np.uint8)[start:stop]

    def find(self, number: int, where: Sequence[Any]) -> Any:
        """An array; see `piece`."""
        tap = self._tap(number)
        kind, *rest = where
        if kind == VALUE:
            return tap.value(*rest)
        stage, tree, place = rest
        return (tap.given if kind == GIVEN else tap.updated)(stage)[tree][place]

    def _tap(self, number: int) -> LocalTap:
        if number not in self._taps:
            raise InternalError(f"pass {number} has no tap on this worker; please report it")
        return self._taps[number]


def _host(array: jax.Array) -> tuple[np.ndarray, str]:
    """An array on the host; of a typed PRNG key its data, and the name of its generator."""
    generator = ""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        generator = str(jax.random.key_impl(array))
        array = jax.random.key_data(array)
    return np.ascontiguousarray(array).reshape(array.shape), generator
