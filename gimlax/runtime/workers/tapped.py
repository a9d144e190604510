"""The controller's side of a tap: what the workers of a pass kept of it, fetched when it is read.

An array travels when a check wants it, in pieces, one asked for after the other: what passes have
to tell over the same connection waits for one piece at most, and here is never more than is being
compared. Chosen over sending all with the end of the pass, which is twice as much as the state.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gimlax.errors import BackendError, GimlaxError, InternalError
from gimlax.runtime.workers.footing import Footing
from gimlax.runtime.workers.ground import Ground
from gimlax.runtime.workers.peers import Peer
from gimlax.runtime.workers.tapping import GIVEN, UPDATED, VALUE
from gimlax.runtime.workers.wire import dtype_named

__all__ = ["RemoteTap"]

_PIECE_BYTES = 2**18  # about what a socket buffers anyway


class RemoteTap:
    """A tap of a pass over workers: what its last attempt left on them."""

    def __init__(self, number: int, ground: Ground) -> None:
        self.number = number
        self._ground = ground
        self._attempt: tuple[Footing, int, int] | None = None  # and number there, and phase

    @property
    def footing(self) -> Footing:
        """Where the pass was run."""
        return self._begun()[0]

    def begin(self, footing: Footing, number: int, phase: int) -> None:
        """Takes the attempt of this number, and lets go of the one before, which was given up."""
        self._drop_later()
        self._attempt = footing, number, phase

    def given(self, stage: int) -> Sequence[Sequence[Any]]:
        """See `Tap`."""
        return self._state(GIVEN, stage)

    def updated(self, stage: int) -> Sequence[Sequence[Any]]:
        """See `Tap`."""
        return self._state(UPDATED, stage)

    def value(self, mesh: str, value: int) -> Any:
        """See `Tap`."""
        return _Kept(self, mesh, [VALUE, mesh, value])

    def stages_not_finite(self) -> list[int]:
        """See `Tap`."""
        futures = [self.ask(peer, "finite") for peer in self.footing.peers.values()]
        return sorted(stage for future in futures for stage in self.settle(future)[0]["stages"])

    def let_go(self) -> None:
        """See `Tap`."""
        if self._attempt is not None:
            for peer in self.footing.peers.values():
                self.ask(peer, "untap")
            self._attempt = None

    def ask(self, peer: Peer, kind: str, fields: Mapping[str, Any] | None = None) -> Any:
        """The future of what a worker answers about the pass."""
        footing, number, _ = self._begun()
        about = {"deployment": footing.number, "pass": number, **(fields or {})}
        return peer.begin(kind, about)

    def settle(self, future: Any) -> tuple[Mapping[str, Any], list[Any]]:
        """What was answered.

        Raises:
            BackendError: it cannot be had any more.
        """
        try:
            return future.result()
        except GimlaxError as error:
            footing = self.footing
            if not footing.lost and self._ground.footing is footing:
                raise
            why = [str(peer.lost) for peer in footing.lost] or ["a worker had no room"]
            raise BackendError(
                f"what it left behind is gone, as the workload moved: {'; '.join(why)}"
            ) from error

    def _state(self, kind: str, stage: int) -> list[list[Any]]:
        footing, _, phase = self._begun()
        states, mesh = footing.inventory.states, footing.inventory.placement[stage]
        return [
            [
                _Kept(self, mesh, [kind, stage, index, place])
                for place in range(len(states[tree][stage]))
            ]
            for index, tree in enumerate(footing.phases[phase].stages[stage].carried)
        ]

    def _begun(self) -> tuple[Footing, int, int]:
        if self._attempt is None:
            raise InternalError(f"the tap of pass {self.number} has no attempt; please report it")
        return self._attempt

    def _drop_later(self) -> None:
        """Tells the workers with the next pass; wherever the collector runs, so without a lock."""
        if self._attempt is not None:
            footing, number, _ = self._attempt
            for name in footing.peers:
                self._ground.garbage.add(name, "taps", number)

    def __del__(self) -> None:
        self._drop_later()


class _Kept:
    """An array that a worker keeps; stands where a `jax.Array` does."""

    __slots__ = ("_mesh", "_tap", "_where")

    def __init__(self, tap: RemoteTap, mesh: str, where: Sequence[Any]) -> None:
        self._tap = tap
        self._mesh = mesh
        self._where = where

    def fetch(self) -> Any:
        """The array itself; a PRNG key as a `jax.Array` of the default device."""
        peer = self._tap.footing.workers[self._mesh]
        whole = data = np.empty(0, np.uint8)
        said: Mapping[str, Any] = {}
        start = 0
        while not said or start < data.size:
            wanted = {"where": self._where, "start": start, "stop": start + _PIECE_BYTES}
            said, (piece,) = self._tap.settle(self._tap.ask(peer, "tapped", wanted))
            if len(peer.members) > 1:  # each told its part of it
                return piece
            if not start:
                dtype = dtype_named(said["dtype"])
                data = np.empty(math.prod(said["shape"]) * dtype.itemsize, np.uint8)
                whole = data.view(dtype).reshape(said["shape"])
            data[start : start + piece.size] = piece
            start += piece.size
        if said["generator"]:
            return jax.random.wrap_key_data(jnp.asarray(whole), impl=said["generator"])
        return whole

    def __getitem__(self, index: Any) -> Any:
        return self.fetch()[index]
