"""Times of operations that stream through memory: elementwise chains, reductions, look-ups.

Their time is a constant, bytes, FLOPs and transcendentals, each at a rate of its own; the rates
change with the size (one core or all, cache or memory), so they are fitted anew around each size,
near samples counting more. Units: seconds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gimlax.devices.samples import Sample
from gimlax.planning.rates.scattered import fit_rates

__all__ = ["Streaming"]

_WIDTH = 1.5  # of the window of samples, in doublings of the size
_MICROSECOND = 1e-6  # makes the constant a number like the others


@dataclass(frozen=True, slots=True, eq=False)
class Streaming:
    """Samples of one class as arrays. [sample] and [sample, kind of work]"""

    doublings: NDArray[np.float64]
    work: NDArray[np.float64]
    taken_s: NDArray[np.float64]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Streaming":
        """Keeps the samples of one class."""
        return cls(
            np.log2([math.prod(sample.dims) for sample in samples]),
            np.array([_work(s.num_bytes, s.flops, s.transcendentals) for s in samples]),
            np.array([sample.seconds for sample in samples]),
        )

    def seconds(
        self, size: int, num_bytes: float, flops: float = 0.0, transcendentals: float = 0.0
    ) -> float:
        """Seconds of an operation over `size` elements."""
        at = np.clip(np.log2(max(size, 1)), self.doublings.min(), self.doublings.max())
        weights = np.exp(-0.5 * ((self.doublings - at) / _WIDTH) ** 2)
        rates = fit_rates(self.work, self.taken_s, weights)
        return float(np.array(_work(num_bytes, flops, transcendentals)) @ rates)


def _work(num_bytes: float, flops: float, transcendentals: float) -> tuple[float, ...]:
    return _MICROSECOND, num_bytes, flops, transcendentals
