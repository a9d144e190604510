"""Groups equations as a compiler that fuses does, and describes each group as one operation.

Contractions, look-ups, sorts and loops stand alone. Elementwise equations join into the chain that
ends where a value has to be in memory: before something that stands alone, at the end of the
segment, or where an expensive value is used twice. A reduction takes the chain that feeds it along.
What only renames memory (reshapes) vanishes. Every FLOP is in exactly one operation. Chosen over
asking a compiler, which has to be there and to compile first. Units: FLOPs, bytes.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import jax

from gimlax import _jax
from gimlax.graph import describing
from gimlax.graph.counting import CHEAP, count, count_jaxpr, real_dtype
from gimlax.graph.operations import ELEMENTWISE, REDUCTION, Operation
from gimlax.graph.routing import expert_operations, is_expert_layer

_RENAMES = frozenset(
    "reshape squeeze expand_dims stop_gradient copy copy_p optimization_barrier".split()
)
_MAY_RENAME = frozenset("broadcast_in_dim convert_element_type".split())
_TRANSCENDENTAL = frozenset(
    "exp exp2 expm1 log log1p logistic tanh tan sin cos sinh cosh erf erf_inv pow atan2 cumsum"
    " cumlogsumexp".split()
)
_LOOPS = frozenset("scan while cond".split())


@dataclass(slots=True, eq=False)
class _Value:
    """A value; names that a reshape gives it are the same one, which is then `reshaped`."""

    aval: jax.ShapeDtypeStruct
    resident: bool = False
    producer: "_Step | None" = None
    users: list["_Step"] = field(default_factory=list)
    escapes: bool = False
    reshaped: bool = False


@dataclass(slots=True, eq=False)
class _Step:
    """One equation between values; a literal among its inputs is left out."""

    eqn: _jax.JaxprEqn
    inputs: tuple[_Value | None, ...]
    outputs: tuple[_Value, ...]
    role: str  # 'chain', 'reduction', 'alone', 'experts' or 'loop'
    flops: float = 0.0

    @property
    def sources(self) -> tuple[_Value, ...]:
        return tuple(value for value in self.inputs if value is not None)


def fuse(
    eqns: Sequence[_jax.JaxprEqn],
    *,
    escaping: Iterable[_jax.Var],
    resident: Iterable[_jax.Var],
    uncounted: frozenset[int] = frozenset(),
) -> tuple[Operation, ...]:
    """The operations of a run of equations, in order.

    Args:
        eqns: the run; a composite, unless it is an attention or a layer of experts, counts as what
            is inside.
        escaping: variables that something after the run reads.
        resident: variables that are parameters.
        uncounted: positions of equations whose FLOPs are left out, because each stage repeats them.
    """
    fuser = _Fuser(set(resident))
    for index, eqn in enumerate(eqns):
        fuser.visit(eqn, fuser.env, counted=index not in uncounted)
    for var in escaping:
        if var in fuser.env:
            fuser.env[var].escapes = True
    return fuser.operations()


class _Fuser:
    def __init__(self, resident: set[_jax.Var]) -> None:
        self.resident = resident
        self.env: dict[_jax.Var, _Value] = {}
        self.steps: list[_Step] = []
        self.claimed: set[int] = set()

    def visit(self, eqn: _jax.JaxprEqn, env: dict[_jax.Var, _Value], *, counted: bool) -> None:
        inputs = tuple(self._value(atom, env) for atom in eqn.invars)
        body = _opened(eqn)
        if body is not None:
            inner = {
                var: value if value is not None else _Value(_jax.aval_of(var))
                for var, value in zip(body.jaxpr.invars, inputs, strict=True)
            }
            for inside in body.jaxpr.eqns:
                self.visit(inside, inner, counted=counted)
            for outer, var in zip(eqn.outvars, body.jaxpr.outvars, strict=True):
                value = self._value(var, inner)
                env[outer] = value if value is not None else _Value(_jax.aval_of(outer))
            return
        if _renames(eqn) and inputs[0] is not None:
            for outer, value in zip(eqn.outvars, inputs, strict=False):
                env[outer] = value if value is not None else _Value(_jax.aval_of(outer))
                env[outer].reshaped |= env[outer].aval.shape != _jax.aval_of(outer).shape
            return
        outputs = tuple(_Value(_jax.aval_of(var)) for var in eqn.outvars)
        step = _Step(eqn, inputs, outputs, _role(eqn))
        if counted:
            step.flops = float(sum(count(eqn).flops.values()))
        for value in step.sources:
            value.users.append(step)
        for var, value in zip(eqn.outvars, outputs, strict=True):
            value.producer = step
            env[var] = value
        self.steps.append(step)

    def _value(self, atom: _jax.Atom, env: dict[_jax.Var, _Value]) -> _Value | None:
        if not isinstance(atom, _jax.Var):
            return None
        if atom not in env:
            env[atom] = _Value(_jax.aval_of(atom), resident=atom in self.resident)
        return env[atom]

    def operations(self) -> tuple[Operation, ...]:
        found: list[Operation] = []
        for step in self.steps:
            if step.role == "loop":
                found += _loop(step)
            elif step.role == "experts":
                resident = [value is not None and value.resident for value in step.inputs]
                found += expert_operations(step.eqn, resident)
            elif step.role == "alone":
                found.append(self._alone(step))
            elif step.role == "reduction" or any(map(_in_memory, step.outputs)):
                found.append(self._chain(step))
        return tuple(found)

    def _alone(self, step: _Step) -> Operation:
        turned = tuple(_before_transpose(value) for value in step.inputs)
        resident = tuple(value is not None and value.resident for value, _ in turned)
        order = tuple(permutation for _, permutation in turned)
        return describing.alone(step.eqn, step.flops, resident, order)

    def _chain(self, last: _Step) -> Operation:
        """The step and what feeds it, as far as no value has to be in memory."""
        reads: dict[_Value, int] = {}
        flops, special = 0.0, 0.0
        todo, seen = [last], {last}
        while todo:
            step = todo.pop()
            if id(step) not in self.claimed:
                self.claimed.add(id(step))
                flops += step.flops
                if step.eqn.primitive.name in _TRANSCENDENTAL:
                    special += step.flops
            narrow = step.eqn.primitive.name in ("slice", "split")
            for value in step.sources:
                producer = value.producer
                if producer is not None and producer.role == "chain" and not _in_memory(value):
                    if producer not in seen:
                        seen.add(producer)
                        todo.append(producer)
                    continue
                size = _jax.nbytes(step.outputs[0].aval if narrow else value.aval)
                reads[value] = max(reads.get(value, 0), size)
        written = sum(_jax.nbytes(value.aval) for value in last.outputs)
        return Operation(
            kind=ELEMENTWISE if last.role == "chain" else REDUCTION,
            dims=describing.chain_dims(last.eqn, reduces=last.role == "reduction"),
            dtype=real_dtype(last.outputs[0].aval.dtype),
            flops=flops,
            bytes_read=float(sum(reads.values())),
            bytes_written=float(written),
            resident_bytes=float(sum(size for value, size in reads.items() if value.resident)),
            transcendentals=special,
        )


def _opened(eqn: _jax.JaxprEqn) -> _jax.ClosedJaxpr | None:
    """The body of a call or of a composite that is no operation by itself."""
    if eqn.primitive.name == "composite":
        own = eqn.params["name"] == describing.ATTENTION_NAME or is_expert_layer(eqn)
        return None if own else next(_jax.inner_jaxprs(eqn), None)
    return _jax.callee(eqn)


def _renames(eqn: _jax.JaxprEqn) -> bool:
    name = eqn.primitive.name
    if name in _RENAMES:
        return True
    if name not in _MAY_RENAME:
        return False
    before, after = _jax.aval_of(eqn.invars[0]), _jax.aval_of(eqn.outvars[0])
    return math.prod(before.shape) == math.prod(after.shape) and before.dtype == after.dtype


def _role(eqn: _jax.JaxprEqn) -> str:
    name = eqn.primitive.name
    if is_expert_layer(eqn):
        return "experts"
    if name in CHEAP:
        return "chain"
    if name in _LOOPS:
        return "loop"
    if name.startswith(("reduce", "arg")) and not name.startswith("reduce_window"):
        return "reduction"
    bodies = name != "composite" and not name.startswith(("scatter", "sort", "reduce"))
    return "loop" if bodies and any(True for _ in _jax.inner_jaxprs(eqn)) else "alone"


def _in_memory(value: _Value) -> bool:
    """Whether the value of a chain has to be written out."""
    producer = value.producer
    assert producer is not None
    if value.escapes or not value.users:
        return True
    if _taken_along(producer):
        return False
    if len(value.users) > 1 and producer.eqn.primitive.name in _TRANSCENDENTAL:
        return True
    return any(
        user.role in ("alone", "experts", "loop") or _taken_along(user) for user in value.users
    )


def _taken_along(step: _Step) -> bool:
    """Whether a step is a transpose that products take along as another layout."""
    value = step.outputs[0]
    return (
        step.eqn.primitive.name == "transpose"
        and not (value.escapes or value.reshaped)
        and bool(value.users)
        and all(user.eqn.primitive.name == "dot_general" for user in value.users)
    )


def _before_transpose(value: _Value | None) -> tuple[_Value | None, tuple[int, ...] | None]:
    """What a product reads instead of its transpose, and how dims are to be permuted."""
    if value is None or value.producer is None or not _taken_along(value.producer):
        return value, None
    return value.producer.inputs[0], tuple(value.producer.eqn.params["permutation"])


def _loop(step: _Step) -> list[Operation]:
    """Operations of one trip, times the trips; of a branch, the one with the most work."""
    name, eqn = step.eqn.primitive.name, step.eqn
    bodies = list(_jax.inner_jaxprs(eqn))
    trips, inputs = 1, step.inputs
    if name == "scan":
        parts = _jax.scan_parts(eqn)
        bodies, trips = [parts.body], parts.length
    elif name == "cond":
        counts = [count_jaxpr(body) for body in bodies]
        works = [(sum(c.flops.values()), c.bytes_accessed) for c in counts]
        bodies, inputs = [bodies[works.index(max(works))]], inputs[1:]
    found: list[Operation] = []
    for body in bodies:
        params = [v for v, x in zip(body.jaxpr.invars, inputs, strict=False) if x and x.resident]
        known = [*params, *body.jaxpr.constvars] if name in ("scan", "cond") else []
        outputs = [v for v in body.jaxpr.outvars if isinstance(v, _jax.Var)]
        found += fuse(body.jaxpr.eqns, escaping=outputs, resident=known)
    return [dataclasses.replace(op, count=op.count * trips) for op in found]
