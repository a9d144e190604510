"""The programs of a calibration: one operation each, with the sizes that describe it.

Written as a model would write it, in plain JAX, so that every backend compiles it as it compiles
models. Units: FLOPs (a multiply and an add are two), bytes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

__all__ = [
    "Microbenchmark",
    "attention",
    "chain",
    "convolution",
    "grouped",
    "look_up",
    "matmul",
    "reduction",
    "sweep",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Microbenchmark:
    """A function of arrays and what a graph would say of it.

    `shapes` are of its arguments, (shape, dtype) each; `alone` says that it is not to be repeated
    within a program; the other fields are those of a Sample.
    """

    function: Callable[..., Any]
    shapes: tuple[tuple[tuple[int, ...], str], ...]
    kind: str
    dims: tuple[int, ...]
    dtype: str
    layout: str = ""
    flops: float = 0.0
    transcendentals: float = 0.0
    num_bytes: float = 0.0
    out_itemsize: int = 4
    alone: bool = False

    def arguments(self) -> tuple[jax.Array, ...]:
        """Arrays of ones, which no backend is faster with; whole numbers count up."""
        return tuple(
            jnp.arange(math.prod(shape), dtype=dtype).reshape(shape)
            if dtype == "int32"
            else jnp.ones(shape, dtype)
            for shape, dtype in self.shapes
        )


def matmul(
    dims: tuple[int, int, int, int], dtype: str, layout: str, out_dtype: str = "float32"
) -> Microbenchmark:
    """`dims` are batch, m, n, k; layouts 'mk,kn', 'mk,nk', 'bmk,bkn', 'bmk,bnk'."""
    sizes = dict(zip("bmnk", dims, strict=True))
    sides = layout.split(",")
    shapes = tuple((tuple(sizes[x] for x in side), dtype) for side in sides)
    out = "bmn" if "b" in layout else "mn"

    def function(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum(f"{layout}->{out}", x, y, preferred_element_type=out_dtype)

    itemsize = jnp.dtype(out_dtype).itemsize
    written = itemsize * math.prod(sizes[x] for x in out)
    return Microbenchmark(
        function=function,
        shapes=shapes,
        kind="matmul",
        dims=dims,
        dtype=dtype,
        layout=layout,
        flops=2.0 * math.prod(dims),
        num_bytes=_bytes(shapes) + written,
        out_itemsize=itemsize,
    )


def grouped(dims: tuple[int, int, int, int], dtype: str) -> Microbenchmark:
    """`dims` are groups, rows, n, k: each row times the weights of one group, loads even.

    Not repeated within a program: a compiler would bring weights that stay the same into its order
    only once.
    """
    groups, rows, n, k = dims
    shapes = (((rows, k), dtype), ((groups, k, n), dtype), ((groups,), "int32"))

    def function(x: jax.Array, weights: jax.Array, numbers: jax.Array) -> jax.Array:
        sizes = rows // groups + (numbers < rows % groups)
        return jax.lax.ragged_dot(x, weights, sizes.astype("int32"))

    itemsize = jnp.dtype(dtype).itemsize
    weights = min(groups, rows) * n * k
    return Microbenchmark(
        function=function,
        shapes=shapes,
        kind="grouped",
        dims=dims,
        dtype=dtype,
        layout="mk,gkn",
        flops=2.0 * rows * n * k,
        num_bytes=float(itemsize * (rows * k + weights + rows * n) + 4 * groups),
        out_itemsize=itemsize,
        alone=True,
    )


def convolution(
    *, batch: int, size: int, channels: int, filters: int, kernel: int, stride: int, dtype: str
) -> Microbenchmark:
    """A square image and a square kernel, channels last, padded to keep its size."""
    shapes = (
        ((batch, size, size, channels), dtype),
        ((kernel, kernel, channels, filters), dtype),
    )
    positions = batch * (-(-size // stride)) ** 2
    depth = kernel * kernel * channels

    def function(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    itemsize = jnp.dtype(dtype).itemsize
    return Microbenchmark(
        function=function,
        shapes=shapes,
        kind="convolution",
        dims=(1, positions, filters, depth),
        dtype=dtype,
        flops=2.0 * positions * filters * depth,
        num_bytes=_bytes(shapes) + itemsize * positions * filters,
        out_itemsize=itemsize,
    )


def attention(dims: tuple[int, int, int, int, int, int], dtype: str) -> Microbenchmark:
    """Causal attention over a cache: batch, query heads, key heads, queries, keys, head size."""
    batch, heads, kv_heads, queries, keys, size = dims
    group = heads // kv_heads
    shapes = (
        ((batch, queries, heads, size), dtype),
        *((((batch, keys, kv_heads, size), dtype),) * 2),
    )

    def function(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        rows = query.reshape(batch, queries, kv_heads, group, size).transpose(0, 2, 3, 1, 4)
        rows = rows.reshape(batch, kv_heads, group * queries, size)
        scores = jnp.einsum("bkrd,bskd->bkrs", rows, key, preferred_element_type=jnp.float32)
        scores = scores.reshape(batch, kv_heads, group, queries, keys) * size**-0.5
        seen = jnp.arange(keys) <= keys - queries + jnp.arange(queries)[:, None]
        scores = jnp.where(seen, scores, -jnp.inf)
        shares = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        total = shares.sum(axis=-1, keepdims=True)
        shares = shares.astype(dtype).reshape(batch, kv_heads, group * queries, keys)
        mixed = jnp.einsum("bkrs,bskd->bkrd", shares, value, preferred_element_type=jnp.float32)
        mixed = mixed.reshape(batch, kv_heads, group, queries, size) / total
        return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, queries, -1).astype(dtype)

    itemsize = jnp.dtype(dtype).itemsize
    return Microbenchmark(
        function=function,
        shapes=shapes,
        kind="attention",
        dims=dims,
        dtype=dtype,
        flops=4.0 * batch * heads * queries * keys * size,
        num_bytes=_bytes(shapes) + itemsize * batch * queries * heads * size,
        out_itemsize=itemsize,
    )


_CHAINS: dict[str, tuple[Callable[..., jax.Array], int, int, int]] = {
    # name: function, how many arrays it reads, FLOPs and transcendentals per element
    "add": (lambda x, y: x + y, 2, 1, 0),
    "scale": (lambda x: x * 2.0, 1, 1, 0),
    "polynomial": (lambda x: ((((x * x + 1) * x + 1) * x + 1) * x + 1) * x + 1, 1, 10, 0),
    "exp": (lambda x: jnp.exp(x), 1, 1, 1),
    "tanh": (lambda x, y: jnp.tanh(x) * y + x, 2, 3, 1),
    "logistic": (lambda x, y: jax.nn.sigmoid(x) * x * y, 2, 3, 1),
}


def chain(name: str, size: int, dtype: str) -> Microbenchmark:
    """An elementwise chain of one of the names above, or 'cast' from or to float32."""
    itemsize = jnp.dtype(dtype).itemsize
    if name == "cast":
        out = "float32" if dtype != "float32" else "bfloat16"
        shapes = (((size,), dtype),)
        return Microbenchmark(
            function=lambda x: x.astype(out),
            shapes=shapes,
            kind="elementwise",
            dims=(size,),
            dtype=out,
            num_bytes=6.0 * size,
            out_itemsize=jnp.dtype(out).itemsize,
        )
    function, num_reads, flops, transcendentals = _CHAINS[name]
    return Microbenchmark(
        function=function,
        shapes=(((size,), dtype),) * num_reads,
        kind="elementwise",
        dims=(size,),
        dtype=dtype,
        flops=float(flops * size),
        transcendentals=float(transcendentals * size),
        num_bytes=float(itemsize * size * (num_reads + 1)),
        out_itemsize=itemsize,
    )


def reduction(rows: int, length: int, *, special: bool = False) -> Microbenchmark:
    """The sum of each row's squares, or of its exponentials, in float32."""
    return Microbenchmark(
        function=lambda x: jnp.sum(jnp.exp(x) if special else x * x, axis=-1),
        shapes=(((rows, length), "float32"),),
        kind="reduction",
        dims=(rows, length),
        dtype="float32",
        flops=2.0 * rows * length,
        transcendentals=float(rows * length) if special else 0.0,
        num_bytes=4.0 * (rows * length + rows),
    )


def look_up(rows: int, row: int, table_rows: int, dtype: str) -> Microbenchmark:
    """Rows of a table, at indices that are spread over it."""
    itemsize = jnp.dtype(dtype).itemsize
    step = max(table_rows // rows, 1)
    return Microbenchmark(
        function=lambda table, index: jnp.take(table, index * step % table_rows, axis=0),
        shapes=(((table_rows, row), dtype), ((rows,), "int32")),
        kind="gather",
        dims=(rows, row),
        dtype=dtype,
        num_bytes=2.0 * itemsize * rows * row,
        out_itemsize=itemsize,
    )


def sweep(num_bytes: int) -> Microbenchmark:
    """One row times several matrices of 1 MiB in turn: what weights cost that no cache holds."""
    side, count = 512, num_bytes // 2**20
    shapes = (((1, side), "float32"), *((((side, side), "float32"),) * count))

    def function(x: jax.Array, *weights: jax.Array) -> jax.Array:
        for weight in weights:
            x = jnp.einsum("mk,nk->mn", x, weight)
        return x

    return Microbenchmark(
        function=function,
        shapes=shapes,
        kind="sweep",
        dims=(num_bytes,),
        dtype="float32",
        layout="mk,nk",
        flops=2.0 * side * side * count,
        num_bytes=float(num_bytes),
        alone=True,
    )


def _bytes(shapes: tuple[tuple[tuple[int, ...], str], ...]) -> float:
    return float(sum(math.prod(s) * jnp.dtype(dtype).itemsize for s, dtype in shapes))
