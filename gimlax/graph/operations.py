"""What a segment does, as a list of operations: what a cost model needs beyond FLOPs and bytes.

A peak says little about a thin product, a look-up or a softmax, so the work of a segment is also
kept by class with the sizes that decide how well a device does it. Chosen over pricing equations
directly: a compiler fuses elementwise chains, and calibration can only measure classes. Units:
FLOPs (a multiply and an add are two), bytes.
"""

from dataclasses import dataclass

MATMUL = "matmul"  # dims: batch, m, n, k
GROUPED = "grouped"  # dims: groups, rows (each meets the weights of one group), n, k
ROUTED = "routed"  # dims: those of GROUPED, rows of a tile, tiles, groups that have a row
ATTENTION = "attention"  # dims: batch, query heads, key heads, queries, keys, head size
CONVOLUTION = "convolution"  # dims: batch, m (output positions), n (out channels), k
ELEMENTWISE = "elementwise"  # dims: elements written; a chain that a compiler fuses is one
REDUCTION = "reduction"  # dims: rows kept, elements reduced in each
GATHER = "gather"  # dims: rows, elements of a row; look-ups, slices and updates of a part
SORT = "sort"  # dims: rows, elements of a row
OTHER = "other"  # dims: elements written
KINDS = (
    MATMUL,
    GROUPED,
    ROUTED,
    ATTENTION,
    CONVOLUTION,
    ELEMENTWISE,
    REDUCTION,
    GATHER,
    SORT,
    OTHER,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of a segment, done `count` times in a call.

    Attributes:
        kind: one of KINDS.
        dims: the sizes that matter to its kind, as KINDS says.
        dtype: of the operands, a dtype's name in JAX; of their parts, where they are complex.
        flops: of one.
        bytes_read, bytes_written: memory traffic of one, with elementwise chains fused.
        resident_bytes: how many of the bytes read are parameters.
        count: how often, the trips of a loop included.
        transcendentals: how many of the FLOPs are an exp, a tanh or the like, which take a CPU many
            instructions.
        layout: how the operands of a product lie in memory, as in einsum: 'mk,kn', or 'mk,nk' where
            the right one is transposed; 'bmbk,bnbk' where the batch is not in front. Empty else.
    """

    kind: str
    dims: tuple[int, ...]
    dtype: str
    flops: float
    bytes_read: float
    bytes_written: float
    resident_bytes: float = 0.0
    count: float = 1.0
    transcendentals: float = 0.0
    layout: str = ""

    @property
    def num_bytes(self) -> float:
        """Memory traffic of one."""
        return self.bytes_read + self.bytes_written
