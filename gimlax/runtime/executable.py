"""An `Executable`: one compiled phase, called like the function that was traced.

A call is dispatched in the caller's thread, stage by stage: whoever calls waits anyway, and a
hand-over to a worker costs more than a dispatch. `submit` hands the pass to one worker thread per
mesh and link, so that several passes overlap. Like `jax.jit`, a call returns arrays that may still
be being computed; it looks at old completion tokens now and then, so that the caller cannot run
ahead of the devices without bound.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax

from gimlax.errors import BackendError, SpecError
from gimlax.planning import Plan
from gimlax.program import Program
from gimlax.runtime.compilation import CompiledStage
from gimlax.runtime.deployment import Deployment
from gimlax.runtime.handles import Placed, gather
from gimlax.runtime.jobs import PassFuture
from gimlax.runtime.passes import Pass, execute, first_line, run_stage, stage_error
from gimlax.runtime.probing.inputs import made_from_shapes
from gimlax.runtime.probing.passing import from_pass, state_of_handles
from gimlax.runtime.probing.seam import Given, Target
from gimlax.runtime.probing.tapped import TappedStages
from gimlax.runtime.probing.watching import LiveCheck, LiveChecks
from gimlax.runtime.recording import Recording
from gimlax.runtime.schedule import Schedule
from gimlax.runtime.signature import Signature
from gimlax.runtime.tapping import Tap

_CALLS_AHEAD = 32  # calls whose tokens nobody has looked at yet


class _Shared:
    """What one phase and a mapping of phases have in common: handles, recording, the end."""

    def __init__(self, plan: Plan, deployment: Deployment) -> None:
        self._plan = plan
        self._deployment = deployment

    @property
    def plan(self) -> Plan:
        """The plan that runs: the one that was compiled, or what came in its place after a loss."""
        return self._deployment.standing().plan or self._plan

    @property
    def num_compiled(self) -> int:
        """Distinct stages compiled for all phases together."""
        return self._deployment.standing().num_compiled

    @property
    def owner(self) -> Hashable:
        """Equal to the `owner` of the handles that this compilation made."""
        return self._deployment.inventory

    @property
    def resident(self) -> tuple[Any, ...]:
        """Of each resident argument the tree of its shapes and dtypes."""
        return tuple(
            jax.tree.unflatten(tree.treedef, tree.avals)
            for tree in self._deployment.inventory.resident
        )

    def place(self, *trees: Any) -> Any:
        """Puts resident arguments on their meshes.

        As `jax.device_put` does, this may use host arrays in place: do not change them afterwards.
        Of a `gimlax.lazy.LazyArray` each device reads what it holds; see `gimlax.load`.

        Args:
            *trees: one per resident argument, in order.

        Returns:
            A `Placed` for one tree, a tuple of them for several.

        Raises:
            SpecError: not one tree per resident argument.
            TraceError: a leaf differs from the trace; names it.
            BackendError: a mesh has no room.
        """
        return self._deployment.place(trees)

    def init(self, *trees: Any) -> Any:
        """Copies initial state to its meshes; like `place`, for carried arguments."""
        return self._deployment.init(trees)

    def gather(self, tree: Any) -> Any:
        """An ordinary tree of numpy arrays; see `gimlax.runtime.gather`."""
        return gather(tree)

    def record(self) -> contextlib.AbstractContextManager[Recording]:
        """A block whose passes are recorded; `recording.timeline` is their `Timeline`."""
        return self._deployment.record()

    def close(self) -> None:
        """Waits for submitted passes and ends the worker threads of all phases."""
        self._deployment.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Executable(_Shared):
    """One phase of a plan, ready to run. Thread-safe; a context manager that closes itself."""

    def __init__(
        self, plan: Plan, deployment: Deployment, phase: int, *, check_every: int | None = None
    ) -> None:
        super().__init__(plan, deployment)
        self._index = phase
        self._phase = deployment.phases[phase]
        self._schedule = Schedule.build(self._phase)
        self._signature = Signature(
            deployment.programs[phase],
            self._phase,
            deployment.inventory,
            deployment.handle_maker(self.name),
        )
        self._steps = tuple(
            (step, self._phase.stage_of(step.instruction)) for step in self._phase.steps
        )
        self._tokens: deque[tuple[CompiledStage, jax.Array]] = deque()
        self._limit = _CALLS_AHEAD * len(self._phase.stages)
        self._checks: LiveChecks | None = None
        if check_every is not None:
            self._checks = LiveChecks(
                self.program.partition.traced,
                self.name,
                check_every,
                deployment.new_tap,
                self._target_of_pass,
                lambda: deployment.executor.may_wait,
            )
            deployment.closing.append(self._checks.close)

    @property
    def name(self) -> str:
        """The phase that it runs."""
        return self._phase.name

    @property
    def program(self) -> Program:
        """The instruction lists that it follows."""
        return self._deployment.standing().programs[self._index]

    @property
    def checks(self) -> tuple[LiveCheck, ...]:
        """The last checks of live passes.

        Waits for one that is under way, except in a callback of a pass over workers.
        """
        return self._checks.checks if self._checks else ()

    def target(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Target:
        """See `gimlax.probe`."""
        deployment = self._deployment
        deployment.check_open(self.name)
        traced = self.program.partition.traced
        if not args and not kwargs:
            return self._target((), made_from_shapes(traced), "inputs made from shapes")
        # Placed for this once: nobody has to be warned of that.
        signature = Signature(
            deployment.programs[self._index],
            self._phase,
            deployment.inventory,
            deployment.make_handle,
        )
        work = signature.bind(args, kwargs, copy=True)
        given = from_pass(work, traced, deployment.inventory, state_of_handles(work))
        return self._target(work.placed, given, "inputs that were given")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs one pass; dispatches in this thread.

        Args:
            *args: what was traced; a `Placed` or `Carried` may stand for a resident or carried
                argument. An ordinary tree is placed, or taken as initial state, at this call.
            **kwargs: streamed arguments by keyword.

        Returns:
            The tree of the traced function, with a `Carried` for each carried output.

        Raises:
            TraceError: an argument differs from the trace, or is a tracer.
            SpecError: a state has been used before, a handle is of another compilation, or closed.
            BackendError: a stage failed, in this call or in one before.
        """
        deployment, tokens = self._deployment, self._tokens
        if not deployment.direct:
            return self.submit(*args, **kwargs).result()
        deployment.check_open(self.name)
        if len(tokens) >= self._limit:
            self._look_back(len(tokens) // 2)
        work = self._signature.bind(args, kwargs)
        for handle in work.handles:
            if handle._wait is not None:
                handle.wait()
        if self._checks is not None:
            self._checks.begin(work)
        work.take_state()
        try:
            for step, stage in self._steps:
                if stage is None:
                    execute(work, step)
                else:
                    tokens.append((stage, run_stage(work, stage)))
        except BaseException as error:
            work.lose_state(f"was lost when a pass failed ({first_line(error)})")
            if isinstance(error, BackendError):
                self._look_back(len(tokens))  # a stage before it may be the one that failed
            raise
        return self._assemble(work)

    def submit(self, *args: Any, **kwargs: Any) -> PassFuture:
        """Starts one pass on the worker threads; arguments and errors as in a call.

        Streamed inputs are copied before it returns. It waits while as many passes are under way as
        the executable lets in.
        """
        self._deployment.check_open(self.name)
        work = self._signature.bind(args, kwargs, copy=True)
        if self._checks is not None:
            self._checks.begin(work)
        work.take_state()
        try:
            return self._deployment.submit(self.name, work, self._schedule, self._assemble)
        except BaseException:
            work.give_back()
            raise

    def __repr__(self) -> str:
        placement = self.program.placement
        return f"Executable({self.name!r}, {len(placement)} stages on {', '.join(placement)})"

    def cost_analysis(self, stage: int | None = None) -> dict[str, float]:
        """What XLA counts for one stage, or summed over all; empty where a backend does not say."""
        return _total(_ask(s.compiled.cost_analysis) for s in self._select(stage))

    def memory_analysis(self, stage: int | None = None) -> dict[str, float]:
        """Bytes by kind for one stage, or the sum over all; empty where a backend does not say."""
        found = (_ask(s.compiled.memory_analysis) for s in self._select(stage))
        return _total(
            {key: getattr(of, key) for key in dir(of) if key.endswith("_in_bytes")} for of in found
        )

    def _assemble(self, work: Pass) -> Any:
        """The result of a pass that was dispatched to its end."""
        if self._checks is not None:
            self._checks.end(work)
        return self._signature.assemble(work)

    def _target(self, placed: Sequence[Placed], given: Given, inputs: str) -> Target:
        """The compiled stages with these arguments."""
        standing = self._deployment.standing()
        program, phase = standing.programs[self._index], standing.phases[self._index]
        return Target(
            runner=standing.runner(program, phase.stages, placed),
            given=given,
            inputs=inputs,
            phase=standing.chain.phases[self._index] if standing.chain else None,
            edges=self.plan.edges if self.plan else (),
        )

    def _target_of_pass(self, work: Pass, tap: Tap) -> Target:
        """What a pass left behind, where it was run."""
        standing = self._deployment.standing_of(tap)
        program, phase = standing.programs[self._index], standing.phases[self._index]
        runner = standing.runner(program, phase.stages, work.placed)
        stages = TappedStages(runner, phase, standing.inventory, tap)
        traced = program.partition.traced
        plan = standing.plan or self._plan
        return Target(
            runner=stages,
            given=from_pass(work, traced, standing.inventory, stages.state),
            inputs="the inputs of this pass",
            phase=standing.chain.phases[self._index] if standing.chain else None,
            edges=plan.edges if plan else (),
            observed=stages,
        )

    def _select(self, stage: int | None) -> tuple[CompiledStage, ...]:
        stages = self._deployment.standing().phases[self._index].stages
        if stage is None:
            return stages
        if not 0 <= stage < len(stages):
            raise SpecError(
                f"{self.name!r} has no stage {stage}; its stages are 0 to {len(stages) - 1}"
            )
        return (stages[stage],)

    def _look_back(self, count: int) -> None:
        """Waits for the oldest stages dispatched and raises the error of the first that failed."""
        for _ in range(count):
            try:
                stage, token = self._tokens.popleft()
            except IndexError:  # another thread looks back too
                return
            try:
                token.block_until_ready()
            except Exception as error:
                raise stage_error(stage, error) from error


class Executables(_Shared, Mapping[str, Executable]):
    """The phases of a workload by name; they share parameters, state, meshes and workers."""

    def __init__(
        self, plan: Plan, deployment: Deployment, *, check_every: int | None = None
    ) -> None:
        super().__init__(plan, deployment)
        self._by_name = {
            phase.name: Executable(plan, deployment, i, check_every=check_every)
            for i, phase in enumerate(deployment.phases)
        }

    def __getitem__(self, name: str) -> Executable:
        if name not in self._by_name:
            raise KeyError(f"no phase {name!r}; the phases are {', '.join(map(repr, self))}")
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __repr__(self) -> str:
        return f"Executables({', '.join(map(repr, self))})"


def _ask(question: Callable[[], Any]) -> Any:
    """The answer of a backend that may not know the question."""
    try:
        return question()
    except (NotImplementedError, RuntimeError):
        return None


def _total(found: Iterable[Mapping[str, float] | None]) -> dict[str, float]:
    total: dict[str, float] = {}
    for of in found:
        for key, value in (of or {}).items():
            total[key] = total.get(key, 0) + value
    return total
