"""Fewer bytes on the wire for float32, at an error that is stated, where a plan says so.

Both ends compute on their devices, so a device with memory of its own also moves fewer bytes to its
host. Let x be an element and m the largest magnitude in its block of `BLOCK` along the last dim.

    to          bytes  |error| at most            for
    bfloat16    1/2    2**-8 |x| + 2**-126        |x| < 3.38e38, larger ones become infinite
    int8        0.27   m / 254 (1 + 2**-20) + 2**-119    m <= 2**127

The first is round to nearest of 8 bits, the second half a step of m / 127; the last terms are what
backends make of numbers below the normal range, which some take for zero. A block with a number
that is not finite becomes NaN as a whole, so that it is noticed at the other end too.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gimlax.errors import SpecError

__all__ = ["BLOCK", "NARROWINGS", "forms", "narrow", "narrowing_bound", "narrows", "widen"]

BLOCK = 64
NARROWINGS = ("bfloat16", "int8")

Form = tuple[tuple[int, ...], str]
"""Shape and dtype of an array."""


def narrows(shape: Sequence[int], dtype: str, to: str, *num_devices: int) -> bool:
    """Whether an array goes narrowed, as both ends have to know beforehand.

    Not if it has another dtype, would not get smaller, or may be cut inside a block of `to`.

    Args:
        shape, dtype: of the array.
        to: a narrowing, or empty for none.
        num_devices: of the meshes at both ends, into as many equal shards as which the last dim may
            be cut.
    """
    if not to or dtype != "float32":
        return False
    sent_bytes = sum(math.prod(of) * jnp.dtype(name).itemsize for of, name in forms(shape, to))
    most = math.lcm(*num_devices)
    is_cut = to == "int8" and most > 1 and _last(tuple(shape)) % (BLOCK * most) != 0
    return not is_cut and sent_bytes < 4 * math.prod(shape)


def forms(shape: Sequence[int], to: str) -> tuple[Form, ...]:
    """What `narrow` makes of a float32 array of this shape.

    Raises:
        SpecError: there is no such narrowing.
    """
    _check(to)
    shape = tuple(shape)
    if to == "bfloat16":
        return ((shape, "bfloat16"),)
    return (shape, "int8"), (_shape_of_scales(shape), "float32")


def narrow(array: jax.Array, to: str) -> tuple[jax.Array, ...]:
    """What goes on the wire in the place of a float32 array; does not wait.

    Args:
        array: of any shape.
        to: 'bfloat16', or 'int8' for integers of the same shape and a float32 scale a block.

    Raises:
        SpecError: it is of another dtype, or there is no such narrowing.
    """
    _check(to)
    if array.dtype != jnp.float32:
        raise SpecError(f"a {array.dtype} array is not narrowed to {to}; only float32 is")
    return (_to_bfloat16(array),) if to == "bfloat16" else _to_int8(array)


def widen(narrowed: Sequence[jax.Array], to: str) -> jax.Array:
    """The float32 array again, within the bound; does not wait.

    Raises:
        SpecError: this is not what `narrow` gives.
    """
    _check(to)
    given = [(x.dtype.name, x.shape) for x in narrowed]
    if to == "bfloat16" and [name for name, _ in given] == ["bfloat16"]:
        return _from_bfloat16(narrowed[0])
    if to == "int8" and [name for name, _ in given] == ["int8", "float32"]:
        shape, scales = given[0][1], given[1][1]
        if scales == _shape_of_scales(shape):
            return _from_int8(*narrowed)
    raise SpecError(f"{given} came, which is no array narrowed to {to}; both ends have to agree")


def narrowing_bound(array: np.ndarray, to: str) -> np.ndarray:
    """The error that each element may have after `narrow` and `widen`; float64."""
    _check(to)
    size = np.abs(np.asarray(array, np.float64))
    if to == "bfloat16":
        return size * 2**-8 + 2**-126
    blocks = _in_blocks(size, np)
    largest = np.broadcast_to(blocks.max(-1, keepdims=True, initial=0), blocks.shape)
    largest = largest.reshape(*blocks.shape[:-2], -1)[..., : _last(size.shape)]
    return largest.reshape(size.shape) / 254 * (1 + 2**-20) + 2**-119


def _check(to: str) -> None:
    if to not in NARROWINGS:
        raise SpecError(f"there is no narrowing to {to!r}; give {' or '.join(NARROWINGS)}")


@jax.jit
def _to_bfloat16(x: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16)


@jax.jit
def _from_bfloat16(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


@jax.jit
def _to_int8(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    blocks = _in_blocks(x, jnp)  # [..., block, element]
    largest = jnp.abs(blocks).max(-1, initial=0)
    scales = largest / 127  # not finite where a number in the block is not: 0 times it is NaN
    steps = blocks / jnp.where(scales > 0, scales, 1)[..., None]
    whole = jnp.clip(jnp.round(jnp.nan_to_num(steps)), -127, 127).astype(jnp.int8)
    return whole.reshape(*whole.shape[:-2], -1)[..., : _last(x.shape)].reshape(x.shape), scales


@jax.jit
def _from_int8(whole: jax.Array, scales: jax.Array) -> jax.Array:
    blocks = _in_blocks(whole.astype(jnp.float32), jnp) * scales[..., None]
    flat = blocks.reshape(*blocks.shape[:-2], -1)
    return flat[..., : _last(whole.shape)].reshape(whole.shape)


def _last(shape: tuple[int, ...]) -> int:
    return shape[-1] if shape else 1


def _shape_of_scales(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], -(-_last(shape) // BLOCK))


def _in_blocks(x: Any, xp: Any) -> Any:
    """[..., element] → [..., block, element], with zeros behind the last."""
    size = _last(x.shape)
    num = -(-size // BLOCK)
    x = x.reshape(*x.shape[:-1], size)
    padded = xp.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, num * BLOCK - size)])
    return padded.reshape(*x.shape[:-1], num, BLOCK)
