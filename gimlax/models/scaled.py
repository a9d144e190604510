"""Weights of 8 and 4 bits with scales beside them, as folders of Hugging Face have them.

A number is the stored float times its scale, and times (or divided by) the scale of the whole
tensor, if there is one. Scales belong to the tensor, to rows, or to blocks; which, is seen from
their shapes. Products are in float32, as those of numpy, and become the model's dtype then:

    X.weight FP8, X.weight_scale_inv             'fp8': blocks of weight_block_size
    X.weight FP8, X.weight_scale                 'fbgemm_fp8', 'modelopt', 'compressed-tensors'
    X.weight_packed U8, X.weight_scale FP8, X.weight_global_scale  'compressed-tensors': divided by
    X.weight U8, X.weight_scale FP8, X.weight_scale_2    'modelopt': times the last
    X.weight_packed U8, X.weight_scale U8        'compressed-tensors': MXFP4, powers of two

Scales of activations say how to round what is multiplied; here nothing is rounded, so that they are
left out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from gimlax.errors import SpecError
from gimlax.models.checkpoint import Checkpoint
from gimlax.models.families import Reader
from gimlax.models.leaves import Held, Index

__all__ = ["ScaledCheckpoint", "check_method"]

METHODS: Mapping[str, tuple[str, ...]] = {  # quant_method: formats of it, none if it names none
    "fp8": (),
    "fbgemm_fp8": (),
    "modelopt": (),
    "compressed-tensors": (
        "float-quantized",
        "naive-quantized",
        "nvfp4-pack-quantized",
        "mxfp4-pack-quantized",
    ),
}
SCALES = ("weight_scale_inv", "weight_scale")
WHOLE = {"weight_scale_2": False, "weight_global_scale": True}  # whether it divides
OF_ACTIVATIONS = (
    "input_scale",
    "input_scale_ub",
    "input_global_scale",
    "activation_scale",
    "output_scale",
    "k_scale",
    "v_scale",
)
PACKED = "weight_packed"
SMALL = ("F8_E4M3", "F8_E5M2", "F4")
OF_SCALES = ("F32", "F16", "BF16", "F8_E4M3", "F8_E8M0")
CHUNK = 1 << 20  # numbers that are multiplied at once


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scaled:
    """How a weight is stored: names of its tensors, its shape, and rows to a scale by dim."""

    stored: str
    shape: tuple[int, ...]
    packed: bool
    scale: str
    blocks: tuple[int, ...]
    whole: tuple[tuple[str, bool], ...]


def check_method(reader: Reader) -> tuple[int, ...] | None:
    """The sides of blocks that a config names; None if it says nothing of quantisation.

    Raises:
        SpecError: it quantises in another way.
    """
    found = reader.get("quantization_config", dict, {})
    if not found:
        return None
    inside = Reader(reader.path, found)
    method = inside.get("quant_method", str)
    how = inside.values.get("format") if METHODS.get(method) else None
    if method not in METHODS or (METHODS[method] and how not in METHODS[method]):
        known = [f"{name} ({', '.join(of)})" if of else name for name, of in METHODS.items()]
        reader.fail(
            f"its weights are quantised by {method[:40]!r}"
            f"{'' if how is None else f', format {str(how)[:40]!r}'}, which is not supported;"
            f" supported are {', '.join(known)}"
        )
    sides = inside.get("weight_block_size", list, [])
    if not all(type(side) is int and side > 0 for side in sides):
        reader.fail(f"'weight_block_size' is {str(sides)[:80]}, needed are whole numbers")
    return tuple(sides)


class ScaledCheckpoint:
    """A checkpoint some of whose weights have scales; it is read like one that has none."""

    def __init__(self, checkpoint: Checkpoint, sides: tuple[int, ...], dtype: np.dtype) -> None:
        """Pairs weights with scales by name.

        Args:
            checkpoint: all tensors.
            sides: of blocks of the last dims, where they are known.
            dtype: of weights that have scales, when they are read.

        Raises:
            SpecError: weights and scales do not belong together.
        """
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._sides = sides
        names = set(checkpoint.files)
        self._scaled: dict[str, _Scaled] = {}
        beside: set[str] = set()
        for name in checkpoint.files:
            base, _, kind = name.rpartition(".")
            if kind in SCALES:
                of = self._pair(base, name)
                self._scaled[f"{base}.weight"] = of
                beside |= {of.stored, of.scale, *(whole for whole, _ in of.whole)}
            elif kind in OF_ACTIVATIONS:
                beside.add(name)
        self._plain = names - beside - set(self._scaled)

    def held(self) -> dict[str, Held]:
        """Shapes and dtypes of all weights, as they are read."""
        found = self._checkpoint.held()
        return {name: found[name] for name in self._plain} | {
            name: Held(shape=of.shape, dtype=self._checkpoint[of.stored].dtype)
            for name, of in self._scaled.items()
        }

    def num_bytes(self, name: str) -> int:
        """That a weight takes in its file."""
        of = self._scaled.get(name)
        return self._checkpoint.num_bytes(name if of is None else of.stored)

    def drop(self, name: str) -> None:
        """See `Checkpoint.drop`."""
        of = self._scaled.get(name)
        self._checkpoint.drop(name if of is None else of.stored)

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """Weight `name`, or the part of it at an index, times its scales.

        Raises:
            SpecError: a scale is not finite.
        """
        of = self._scaled.get(name)
        if of is None:
            return self._checkpoint.read(name, index)
        wanted = [
            range(n)[index[i]] if i < len(index) else range(n) for i, n in enumerate(of.shape)
        ]
        scale = self._scale(of)
        for i, (rows, block) in enumerate(zip(wanted, of.blocks, strict=True)):
            if i and block != of.shape[i]:
                scale = scale.take(np.asarray(rows) // block, axis=i)
        values = np.empty([len(rows) for rows in wanted], self._dtype)
        rest = tuple(slice(r.start, r.stop, r.step) for r in wanted[1:])
        rows = np.asarray(wanted[0])
        step = max(1, CHUNK // max(1, math.prod(values.shape[1:])))
        for start in range(0, len(rows), step):
            chosen = rows[start : start + step]
            by = scale[np.zeros(1, int) if of.blocks[0] == of.shape[0] else chosen // of.blocks[0]]
            values[start : start + step] = self._floats(of, chosen)[(slice(None), *rest)] * by
        return values

    def _floats(self, of: _Scaled, rows: np.ndarray) -> np.ndarray:
        """Rows of a weight as they are stored, in float32."""
        stored = self._checkpoint.read(of.stored)
        if not of.packed:
            return stored[rows].astype(np.float32)
        pairs = np.asarray(stored[rows])
        halves = np.stack([pairs & 15, pairs >> 4], axis=-1)
        halves = halves.reshape(*pairs.shape[:-1], 2 * pairs.shape[-1])
        return halves.view(ml_dtypes.float4_e2m1fn).astype(np.float32)

    def _scale(self, of: _Scaled) -> np.ndarray:
        """The scales of a weight in float32, with a dim for each of its own."""
        stored = self._checkpoint.read(of.scale)
        powers = self._checkpoint[of.scale].dtype == "U8"
        scale = (stored.view(ml_dtypes.float8_e8m0fnu) if powers else stored).astype(np.float32)
        for name, divides in of.whole:
            whole = np.float32(self._checkpoint.read(name).reshape(()))
            with np.errstate(all="ignore"):
                scale = scale / whole if divides else scale * whole
        if not np.isfinite(scale).all():
            raise SpecError(
                f"'{self._checkpoint.path}': ({of.scale}) has scales that are not finite; download"
                " it again"
            )
        if scale.size == 1 or scale.ndim != len(of.shape):
            scale = scale.reshape(-1, *(1,) * (len(of.shape) - 1))
        return scale

    def _pair(self, base: str, scale: str) -> _Scaled:
        """The weight that a scale belongs to, with all its scales."""
        files = self._checkpoint.files
        plain, packed = f"{base}.weight", f"{base}.{PACKED}"
        both = [name for name in (plain, packed) if name in files]
        scales = [f"{base}.{kind}" for kind in SCALES if f"{base}.{kind}" in files]
        if len(both) != 1 or len(scales) != 1:
            self._fail(
                f"({scale}) belongs to {' and '.join(both) or 'no weight'} and"
                f" {' and '.join(scales)} to it; one of each is needed"
            )
        stored, info = both[0], self._checkpoint[both[0]]
        is_packed = info.dtype == "U8"
        if info.dtype not in SMALL and not is_packed:
            self._fail(
                f"({stored}) is {info.dtype} and has a scale; supported are {', '.join(SMALL)}, and"
                " U8 that holds two of F4"
            )
        of_scale = self._checkpoint[scale]
        if of_scale.dtype not in OF_SCALES and not (is_packed and of_scale.dtype == "U8"):
            self._fail(
                f"({scale}) is {of_scale.dtype}; supported are {', '.join(OF_SCALES)}, and U8 of"
                " powers of two for weights of 4 bits"
            )
        shape = (*info.shape[:-1], info.shape[-1] * 2) if is_packed and info.shape else info.shape
        whole = tuple(
            (f"{base}.{kind}", divides)
            for kind, divides in WHOLE.items()
            if f"{base}.{kind}" in files
        )
        for name, _ in whole:
            if (
                math.prod(self._checkpoint[name].shape) != 1
                or self._checkpoint[name].dtype != "F32"
            ):
                self._fail(f"({name}) is no single F32, but {self._checkpoint[name]}")
        return _Scaled(
            stored=stored,
            shape=shape,
            packed=is_packed,
            scale=scale,
            blocks=self._blocks(stored, shape, scale, of_scale.shape),
            whole=whole,
        )

    def _blocks(
        self, stored: str, shape: tuple[int, ...], scale: str, scales: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Rows to a scale, by dim; all of them where one scale is for all."""
        if not shape or 0 in shape:
            self._fail(f"({stored}) of shape {shape} can have no scale")
        if math.prod(scales) == 1:
            return shape
        if scales == shape[:1]:
            return (1, *shape[1:])
        known = (0,) * (len(shape) - len(self._sides)) + self._sides[-len(shape) :]
        blocks = tuple(
            n if num == 1 else 1 if num == n else side or (n // num if num else 0)
            for n, num, side in zip(shape, scales, known)
        )
        fits = len(scales) == len(shape) and all(
            block > 0 and -(-n // block) == num
            for n, num, block in zip(shape, scales, blocks, strict=True)
        )
        if not fits or not all(
            side or n % block == 0 for n, block, side in zip(shape, blocks, known, strict=True)
        ):
            sides = f", in blocks of {list(self._sides)}" if self._sides else ""
            self._fail(
                f"({stored}) has shape {shape}{sides}, and ({scale}) {scales}, which are not scales"
                " of it"
            )
        return blocks

    def _fail(self, fault: str) -> Any:
        raise SpecError(f"'{self._checkpoint.path}': {fault}")
