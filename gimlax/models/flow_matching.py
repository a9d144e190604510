"""How Stable Diffusion 3 goes from noise to an image: Euler steps along a straight flow.

Latents are image and noise mixed, x = (1 - sigma) image + sigma noise, and the model says noise
minus image (Liu et al. 2022, Lipman et al. 2022), so a step adds that times the change of sigma.
Shifted sigmas stay longer where there is much noise, as images of many pixels need (Esser et al.
2024, section 5.3.2).
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gimlax.errors import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowMatching:
    """A schedule: `num_times` are the times that the model was trained with, of which 0 is none."""

    shift: float = 3.0
    num_times: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.shift < float("inf") or self.num_times < 1:
            raise SpecError(
                f"FlowMatching: shift is {self.shift} and num_times {self.num_times}; give "
                "positive numbers"
            )

    def sigmas(self, num_steps: int) -> np.ndarray:
        """The share of noise before each step, and 0 behind the last.

        The reference shifts the ends of its range, and then all sigmas of the range once more.

        # float32 [num_steps + 1]
        """
        if num_steps < 1:
            raise SpecError(f"steps are {num_steps}; give 1 or more")
        lowest = float(self._shifted(np.float32(1) / np.float32(self.num_times)))
        even = np.linspace(self.num_times, lowest * self.num_times, num_steps) / self.num_times
        return np.append(self._shifted(even), 0).astype(np.float32)

    def _shifted(self, sigma: Any) -> Any:
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)


def euler_step(
    latents: jax.Array, velocity: jax.Array, sigma: jax.Array, next_sigma: jax.Array
) -> jax.Array:
    """Latents at `next_sigma`, from those at `sigma` and the velocity there."""
    return latents + (next_sigma - sigma) * velocity


def guided(without: jax.Array, having: jax.Array, guidance: jax.Array) -> jax.Array:
    """Classifier-free guidance (Ho and Salimans 2022): on from what is said without the prompt."""
    return without + guidance * (having - without)
