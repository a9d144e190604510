"""Times of one class of operation between the sizes that were sampled.

A crude law (a constant, FLOPs and bytes, each at a rate, fitted to the samples) carries a time to
sizes that nobody measured; what it misses at the samples is interpolated in the logarithms of the
sizes with a linear radial basis. Beyond the samples the miss of the nearest one is kept, so that a
guess far away is still a law of physics. Chosen over a table, whose corners are many and missing,
and over a learned regressor, which needs more samples than a calibration takes. Units: seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.optimize import nnls

__all__ = ["Scattered", "Timed", "fit_rates"]

Array = NDArray[np.float64]

# How far the surface may pass by a sample, in units of log seconds squared: timings of a few
# microseconds repeat within some percent.
_SMOOTHING = 0.02


class Timed(Protocol):
    """An operation that was timed, and the work that a law says it is."""

    @property
    def dims(self) -> tuple[int, ...]:
        """Its sizes."""
        ...

    @property
    def flops(self) -> float:
        """FLOPs of it."""
        ...

    @property
    def num_bytes(self) -> float:
        """Its memory traffic."""
        ...

    @property
    def seconds(self) -> float:
        """What it took."""
        ...


def fit_rates(work: Array, seconds: Array, weights: Array | None = None) -> Array:
    """Seconds per unit of each kind of work, none negative, by least squares of relative errors.

    Args:
        work: [sample, kind]
        seconds: [sample]
        weights: [sample], all alike by default.
    """
    weights = np.ones(len(seconds)) if weights is None else weights
    rates, _ = nnls(work / seconds[:, None] * weights[:, None], weights)
    return rates


@dataclass(frozen=True, slots=True, eq=False)
class Scattered:
    """A surface over sizes; see the module."""

    rates: Array
    low: Array
    high: Array
    varies: NDArray[np.bool_]
    miss: RBFInterpolator | None

    @classmethod
    def of(cls, samples: Sequence[Timed]) -> "Scattered":
        """Fits samples of one class, which have equally many dims."""
        sizes = np.log2([sample.dims for sample in samples])  # [sample, dim]
        seconds = np.array([sample.seconds for sample in samples])
        work = np.array([[1.0, sample.flops, sample.num_bytes] for sample in samples])
        rates = fit_rates(work, seconds)
        low, high = sizes.min(axis=0), sizes.max(axis=0)
        varies = high > low
        miss = None
        if varies.any():
            missed = np.log(seconds / (work @ rates))
            miss = RBFInterpolator(
                sizes[:, varies], missed, kernel="linear", degree=0, smoothing=_SMOOTHING
            )
        return cls(rates, low, high, varies, miss)

    def missed(self, samples: Sequence[Timed]) -> float:
        """By how much the law alone misses samples: root mean square of the log of the ratio."""
        work = np.array([[1.0, sample.flops, sample.num_bytes] for sample in samples])
        seconds = np.array([sample.seconds for sample in samples])
        return float(np.sqrt(np.mean(np.log(seconds / (work @ self.rates)) ** 2)))

    def seconds(self, dims: Sequence[int], flops: float, num_bytes: float) -> float:
        """Seconds of an operation of these sizes."""
        law_s = float(np.array([1.0, flops, num_bytes]) @ self.rates)
        if self.miss is None:
            return law_s
        sizes = np.clip(np.log2(np.maximum(dims, 1)), self.low, self.high)
        return law_s * float(np.exp(self.miss(sizes[None, self.varies])[0]))
