"""FLOPs and memory traffic of one equation, from shapes alone.

Traffic is counted as a compiler that fuses well would leave it: contractions, gathers, reductions
and loops read and write memory, elementwise chains ride along for nothing. Chosen over XLA's own
`cost_analysis`, which needs a compilation, may be missing, and knows no equation. Units: FLOPs (a
multiply and an add are two), bytes.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from gimlax import _jax
from gimlax.graph.operations import Operation
from gimlax.graph.routing import expert_operations, is_expert_layer

# In place or lazily done by every XLA backend, or fused into what reads the result.
CHEAP = frozenset(
    "abs add and atan2 bitcast_convert_type broadcast_in_dim ceil clamp concatenate"
    " convert_element_type"
    " copy copy_p cos cosh cumsum div eq erf erf_inv exp exp2 expand_dims expm1 floor ge gt imag"
    " integer_pow"
    " iota is_finite le log log1p logistic lt max min mul ne neg nextafter not or pad pow real"
    " reduce_precision rem reshape rev round rsqrt select_n shift_left shift_right_arithmetic"
    " shift_right_logical sign sin sinh slice split sqrt square squeeze stop_gradient sub tan tanh"
    " transpose"
    " xor optimization_barrier".split()
)
_MOVES_NOTHING = frozenset(
    "bitcast_convert_type broadcast_in_dim concatenate convert_element_type copy expand_dims"
    " iota pad"
    " reshape rev slice split squeeze stop_gradient transpose gather dynamic_slice"
    " dynamic_update_slice optimization_barrier".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Work of an equation: FLOPs by the name of their dtype, bytes of memory traffic."""

    flops: Mapping[str, float] = field(default_factory=dict)
    bytes_accessed: float = 0.0

    def __add__(self, other: "Count") -> "Count":
        flops = Counter(self.flops)
        flops.update(other.flops)
        return Count(flops=flops, bytes_accessed=self.bytes_accessed + other.bytes_accessed)

    def times(self, number: int) -> "Count":
        """The work of `number` repetitions."""
        flops = {dtype: number * value for dtype, value in self.flops.items()}
        return Count(flops=flops, bytes_accessed=number * self.bytes_accessed)


def count(eqn: _jax.JaxprEqn) -> Count:
    """Work of one equation, bodies included. A `while` counts one trip, a `cond` its largest
    branch."""
    primitive = eqn.primitive.name
    if primitive == "scan":
        parts = _jax.scan_parts(eqn)
        return count_jaxpr(parts.body).times(parts.length)
    if primitive == "dot_general" or primitive.startswith("ragged_dot"):
        return _dot(eqn)
    if primitive == "conv_general_dilated":
        return _convolution(eqn)
    if is_expert_layer(eqn):  # whose body is loops of as many trips as there are tiles
        return sum((_of_operation(op) for op in expert_operations(eqn)), Count())
    bodies = [count_jaxpr(body) for body in _jax.inner_jaxprs(eqn)]
    if primitive == "cond":
        return max(bodies, key=lambda c: (sum(c.flops.values()), c.bytes_accessed))
    if bodies and not primitive.startswith(("reduce", "scatter", "sort", "arg")):
        return sum(bodies, Count())
    return _plain(eqn)


def count_jaxpr(closed: _jax.ClosedJaxpr) -> Count:
    """Work of all equations of a jaxpr."""
    flops: Counter[str] = Counter()
    traffic = 0.0
    for eqn in closed.jaxpr.eqns:
        one = count(eqn)
        flops.update(one.flops)
        traffic += one.bytes_accessed
    return Count(flops=flops, bytes_accessed=traffic)


def _of_operation(operation: Operation) -> Count:
    return Count(flops=_flops(operation.dtype, operation.flops), bytes_accessed=operation.num_bytes)


def _flops(dtype: object, number: float) -> dict[str, float]:
    """FLOPs under the name of their dtype; a complex product is four real ones."""
    name = real_dtype(dtype)
    if name != str(dtype):
        number *= 4
    return {name: number} if number else {}


def real_dtype(dtype: object) -> str:
    """The name of the dtype that arithmetic is done in: of its parts, where it is complex."""
    return {"complex64": "float32", "complex128": "float64"}.get(str(dtype), str(dtype))


def _all_bytes(eqn: _jax.JaxprEqn) -> int:
    return sum(_jax.nbytes(_jax.aval_of(v)) for v in (*eqn.invars, *eqn.outvars))


def _dot(eqn: _jax.JaxprEqn) -> Count:
    left, right = _jax.aval_of(eqn.invars[0]), _jax.aval_of(eqn.invars[1])
    out = _jax.aval_of(eqn.outvars[0])
    if eqn.primitive.name == "dot_general":
        (contract, _), _ = eqn.params["dimension_numbers"]
    else:  # a ragged dot: every row meets one group's weights
        (contract, _), _ = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    depth = math.prod(left.shape[d] for d in contract)
    dtype = max(left.dtype, right.dtype, key=lambda d: d.itemsize)
    flops = 2.0 * math.prod(out.shape) * depth
    return Count(flops=_flops(dtype, flops), bytes_accessed=_all_bytes(eqn))


def _convolution(eqn: _jax.JaxprEqn) -> Count:
    kernel, out = _jax.aval_of(eqn.invars[1]), _jax.aval_of(eqn.outvars[0])
    spec = eqn.params["dimension_numbers"].rhs_spec  # (out channel, in channel, *spatial)
    per_output = math.prod(kernel.shape[d] for d in spec[1:])
    flops = 2.0 * math.prod(out.shape) * per_output
    return Count(flops=_flops(kernel.dtype, flops), bytes_accessed=_all_bytes(eqn))


def _plain(eqn: _jax.JaxprEqn) -> Count:
    primitive = eqn.primitive.name
    out_bytes = sum(_jax.nbytes(_jax.aval_of(v)) for v in eqn.outvars)
    out_size = sum(math.prod(_jax.aval_of(v).shape) for v in eqn.outvars)
    in_size = sum(math.prod(_jax.aval_of(v).shape) for v in eqn.invars)
    dtype = str(_jax.aval_of(eqn.outvars[0]).dtype) if eqn.outvars else "float32"
    if primitive in _MOVES_NOTHING:
        flops = 0.0
    elif primitive == "sort":
        flops = in_size * math.log2(max(2, in_size))
    else:
        flops = float(max(in_size, out_size) if primitive.startswith("reduce") else out_size)
    if primitive in CHEAP:
        traffic = 0.0
    elif primitive in ("gather", "dynamic_slice"):
        traffic = 2.0 * out_bytes
    elif primitive == "dynamic_update_slice":
        traffic = 2.0 * _jax.nbytes(_jax.aval_of(eqn.invars[1]))
    elif primitive.startswith("scatter"):
        traffic = 2.0 * _jax.nbytes(_jax.aval_of(eqn.invars[2]))
    else:
        traffic = float(_all_bytes(eqn))
    return Count(flops=_flops(dtype, flops), bytes_accessed=traffic)
