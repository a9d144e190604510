"""Rates from a calibration of the mesh itself.

Each class of operation has its own surface: products by dtype and by how the right operand lies,
attention, convolutions and grouped products over their sizes, what streams through memory by size.
An operand that lies in another order is copied first. Parameters that no cache holds between two
calls cost their bytes once more, by what the calibration's sweep says of so much memory. A dtype
that was not measured has the surface of float32, with its FLOPs at the ratio of the peaks that the
card lists. Units: seconds, bytes.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from gimlax.devices import DeviceKind, MeshCalibration
from gimlax.errors import SpecError
from gimlax.graph.operations import (
    ATTENTION,
    CONVOLUTION,
    ELEMENTWISE,
    GATHER,
    GROUPED,
    MATMUL,
    REDUCTION,
    ROUTED,
    Operation,
)
from gimlax.partition import ALL_GATHER, ALL_REDUCE
from gimlax.planning.rates.grouped import GroupedProducts
from gimlax.planning.rates.scattered import Scattered
from gimlax.planning.rates.seam import MEASURED
from gimlax.planning.rates.streaming import Streaming

__all__ = ["Measured"]

_SWEEP = "sweep"
_CONTRACTIONS = (MATMUL, ATTENTION, CONVOLUTION)
_STREAMED = (ELEMENTWISE, REDUCTION, GATHER)
# Orders of an operand that a product reads as they are; in any other it is copied first.
_IN_PLACE = frozenset("mk km kn nk bmk bkm bkn bnk gkn".split())
_Key = tuple[str, ...]
# Classes that stand in for those without samples of their own.
_NEEDED: tuple[_Key, ...] = (
    *((MATMUL, "float32", form, right) for form in ("wide", "batched") for right in ("kn", "nk")),
    (ATTENTION, "float32"),
    (CONVOLUTION, "float32"),
    (ELEMENTWISE,),
)


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Surfaces by class of operation; see the module.

    `cold_s_per_byte` is what a byte of parameters costs beyond the surface, where they were timed
    over and over. `card` has the peaks for dtypes without samples, and `scaled` names those that a
    model computes in.
    """

    scattered: dict[_Key, Scattered]
    streamed: dict[str, Streaming]
    grouped: dict[str, GroupedProducts]
    cold_s_per_byte: float
    card: DeviceKind | None = None
    scaled: tuple[str, ...] = ()

    @classmethod
    def of(cls, calibration: MeshCalibration, resident_bytes: float = 0.0) -> "Measured":
        """Fits the samples of a mesh.

        Args:
            calibration: of the mesh.
            resident_bytes: parameters that a mesh goes through between two uses of the same one.

        Raises:
            SpecError: no operation of a class that every model may have was measured.
        """
        classes: dict[_Key, list] = defaultdict(list)
        for s in calibration.samples:
            classes[_key(s.kind, s.dims, s.dtype, s.layout, s.out_itemsize)].append(s)
        sweep = classes.pop((_SWEEP, "float32"), [])
        for kind in (ALL_REDUCE, ALL_GATHER):  # no operations of one device
            classes.pop((kind, "float32"), None)
        grouped = {key[1]: classes.pop(key) for key in [*classes] if key[0] == GROUPED}
        streamed = {
            kind: [s for key, found in classes.items() if key[0] == kind for s in found]
            for kind in _STREAMED
        }
        present = {*classes, *((key[0],) for key in classes if key[0] in _STREAMED)}
        missing = [" ".join(key) for key in _NEEDED if key not in present]
        if missing:
            raise SpecError(
                f"calibration of mesh {calibration.mesh!r}: it has no sample of"
                f" {', '.join(missing)}; run scripts/calibrate.py again"
            )
        return cls(
            {k: Scattered.of(found) for k, found in classes.items() if k[0] not in _STREAMED},
            {kind: Streaming.of(found) for kind, found in streamed.items() if found},
            {dtype: GroupedProducts.of(found) for dtype, found in grouped.items()},
            _cold_s_per_byte(sweep, resident_bytes),
        )

    @property
    def source(self) -> str:
        """A calibration, and what of it is scaled by the card."""
        if not self.scaled:
            return MEASURED
        return (
            f"{MEASURED}, {' and '.join(self.scaled)} as float32 at the ratio of the card's peaks"
        )

    def on_card(self, card: DeviceKind, operations: Iterable[Operation]) -> "Measured":
        """These rates for such operations, with a card for dtypes that were not measured."""
        contracted = {op.dtype for op in operations if op.kind in _CONTRACTIONS}
        known = {key[1] for key in self.scattered}
        return replace(self, card=card, scaled=tuple(sorted(contracted - known)))

    def seconds(self, operation: Operation) -> float:
        """Seconds of one operation by the surface of its class.

        Raises:
            SpecError: it is a grouped product, and none was measured.
        """
        cold_s = operation.resident_bytes * self.cold_s_per_byte
        if operation.kind == GROUPED:
            return cold_s + self._grouped_s(operation)
        if operation.kind == ROUTED:
            return cold_s + self._routed_s(operation)
        if operation.kind in _CONTRACTIONS:
            return cold_s + self._contraction_s(operation)
        size = math.prod(operation.dims)
        kind = operation.kind if operation.kind in self.streamed else ELEMENTWISE
        return cold_s + self.streamed[kind].seconds(
            size, operation.num_bytes, operation.flops, operation.transcendentals
        )

    def _grouped_s(self, op: Operation) -> float:
        surface = self.grouped.get(op.dtype) or self.grouped.get("float32")
        if surface is None:
            raise SpecError(
                f"calibration: it has no sample of {GROUPED} {op.dtype}, which a product of"
                f" {op.dims[0]} groups needs; run scripts/calibrate.py again"
            )
        return surface.seconds(op.dims, op.dtype, op.num_bytes)

    def _routed_s(self, op: Operation) -> float:
        """Of a product of a layer of experts: by groups where the backend has that, else a product
        for each tile, and each group's weights taken out for its tiles once."""
        surface = self.grouped.get(op.dtype) or self.grouped.get("float32")
        if surface is not None and not surface.every_group:
            return surface.seconds(op.dims[:4], op.dtype, op.num_bytes)
        _, _, n, k, size, tiles, busy = op.dims
        itemsize = np.dtype(op.dtype).itemsize
        tile = Operation(
            kind=MATMUL,
            dims=(1, size, n, k),
            dtype=op.dtype,
            flops=2.0 * size * n * k,
            bytes_read=float((size * k + n * k) * itemsize),
            bytes_written=4.0 * size * n,
            layout="mk,nk",
        )
        taken_s = self.streamed[ELEMENTWISE].seconds(n * k, 2.0 * n * k * itemsize)
        return tiles * self._contraction_s(tile) + busy * taken_s

    def _contraction_s(self, op: Operation) -> float:
        itemsize = round(op.bytes_written / max(1, math.prod(op.dims[:3]))) or 1
        key = _key(op.kind, op.dims, op.dtype, op.layout, itemsize)
        flops = _flops(op)
        surface = self.scattered.get(key)
        if surface is None:
            surface = self.scattered[_key(op.kind, op.dims, "float32", op.layout, 4)]
            if self.card is not None:
                flops *= self.card.peak("float32") / self.card.peak(op.dtype)
        seconds = surface.seconds(op.dims, flops, op.num_bytes)
        return seconds + (self._copies_s(op) if op.kind == MATMUL else 0.0)

    def _copies_s(self, op: Operation) -> float:
        """Seconds of bringing operands of a product into an order that it reads."""
        batch, m, n, k = op.dims
        itemsize = np.dtype(op.dtype).itemsize
        sides = zip(op.layout.split(","), (batch * m * k, batch * n * k), strict=False)
        return sum(
            self.streamed[ELEMENTWISE].seconds(size, 2.0 * itemsize * size)
            for order, size in sides
            if order not in _IN_PLACE
        )


def _key(kind: str, dims: tuple[int, ...], dtype: str, layout: str, out_itemsize: int) -> _Key:
    """The class of an operation: those that one surface holds."""
    if kind != MATMUL:
        return kind, dtype
    right = "nk" if layout.endswith("k") else "kn"
    if dims[0] > 1:
        return kind, dtype, "batched", right
    return kind, dtype, "narrow" if out_itemsize < 4 and dtype != "float32" else "wide", right


def _flops(op: Operation) -> float:
    """FLOPs of the products alone, as samples count them."""
    if op.kind == ATTENTION:
        batch, heads, _, queries, keys, size = op.dims
        return 4.0 * batch * heads * queries * keys * size
    return op.flops


def _cold_s_per_byte(sweep: list, resident_bytes: float) -> float:
    """What a byte costs in a sweep over so many, beyond one in the smallest sweep."""
    if not sweep:
        return 0.0
    sizes = np.log2([sample.dims[0] for sample in sweep])
    costs = np.array([sample.seconds / sample.num_bytes for sample in sweep])
    order = np.argsort(sizes)
    costs = np.maximum.accumulate(costs[order])
    at = np.interp(np.log2(max(resident_bytes, 1.0)), sizes[order], costs)
    return float(at - costs[0])
