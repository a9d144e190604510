"""What a probe asks of whoever runs stages: one stage at a time, on host arrays.

Stages of this process and stages in workers are probed by the same code, which knows nothing else
about them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gimlax.graph import Part, Phase, Role
from gimlax.planning import EdgeTolerance
from gimlax.program import Program, Transfer

__all__ = ["Given", "Observed", "Probeable", "StageInputs", "StageResults", "StageRunner", "Target"]

Given = Callable[[Role, Part], Any]
"""A host array for an argument: the part of a leaf that counts among the arguments of its role."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StageInputs:
    """What a stage takes, as host arrays in the order of its `Stage` record and in its dtypes."""

    resident: tuple[Any, ...]
    carried: tuple[Any, ...]
    constants: tuple[Any, ...]
    streamed: tuple[Any, ...]
    received: tuple[Any, ...]

    @property
    def flat(self) -> tuple[Any, ...]:
        """In the order in which the jaxpr of the stage takes them."""
        return (*self.resident, *self.carried, *self.constants, *self.streamed, *self.received)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StageResults:
    """What a stage gives, as host arrays: its updated state and what it produces."""

    carried: tuple[Any, ...]
    produced: tuple[Any, ...]

    @property
    def flat(self) -> tuple[Any, ...]:
        """In the order in which the jaxpr of the stage gives them."""
        return (*self.carried, *self.produced)


class StageRunner(Protocol):
    """Runs single stages of a program where they were placed."""

    @property
    def program(self) -> Program:
        """The program whose stages it runs."""
        ...

    def is_reference(self, mesh: str) -> bool:
        """Whether a mesh belongs to the very client that computes the reference."""
        ...

    def run(self, stage: int, inputs: StageInputs) -> StageResults:
        """Runs one stage on its backend; nothing that passes hold is touched.

        A runner that holds parameters of its own uses these instead of `inputs.resident`.

        Raises:
            BackendError: the stage failed.
        """
        ...

    def send(self, transfer: Transfer, values: Sequence[Any]) -> list[Any]:
        """What arrives at the target of a transfer when the source has these values.

        Raises:
            BackendError: the copy failed.
        """
        ...

    def recut(self, program: Program) -> "StageRunner":
        """A runner for the same function cut otherwise, on the same meshes."""
        ...


class Observed(Protocol):
    """What went from stage to stage in a pass that was run already."""

    def received(self, stage: int) -> Mapping[int, Any]:
        """The values that a stage was given by those before it, as host arrays."""
        ...

    def sent(self, transfer: Transfer) -> list[Any]:
        """The values of a transfer as its source had them, as host arrays."""
        ...


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Target:
    """Something to probe.

    Attributes:
        runner: runs its stages.
        given: its arguments.
        inputs: what these are, in words.
        phase: whose segments the program cuts; None where a stage cannot be cut further.
        edges: what the plan allows of the values from each stage to the next, if it says so.
        observed: what stages were given by those before them, where `runner` only knows what they
            made of just that; None to give them what the reference makes.
    """

    runner: StageRunner
    given: Given
    inputs: str
    phase: Phase | None = None
    edges: tuple[EdgeTolerance, ...] = ()
    observed: Observed | None = None


class Probeable(Protocol):
    """What `gx.probe` takes: an executable, however its stages are run."""

    def target(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Target:
        """Its stages with these arguments, or with made ones if there are none.

        Raises:
            TraceError, SpecError: as a call with them does.
        """
        ...
