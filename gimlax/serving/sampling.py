"""The next token from one row of logits, as a pure function of (logits, sampling, position).

Randomness comes from (seed, position) alone, never from what was drawn before, so batching, cuts
and a replay after a failure draw the same tokens. The draw is one uniform number pushed through the
inverse of the cumulative distribution: computed on the host in float64, so that it is the same
whichever backend the logits come from. Chosen over adding Gumbel noise on the device, which would
need a number per vocabulary entry and give other tokens on another backend.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gimlax.errors import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
      temperature: divides the logits; 0 takes the largest one (greedy).
      top_p: keep the most probable tokens whose probabilities first reach this sum, in (0, 1].
      seed: in [0, 2**32).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        faults = []
        if not 0 <= self.temperature < float("inf"):
            faults.append(f"temperature is {self.temperature}; give a number that is 0 or more")
        if not 0 < self.top_p <= 1:
            faults.append(f"top_p is {self.top_p}; give a number in (0, 1]")
        if not 0 <= self.seed < 2**32:
            faults.append(f"seed is {self.seed}; give an integer in [0, 2**32)")
        if faults:
            raise SpecError("sampling: " + "; ".join(faults))


def sample(logits: np.ndarray, sampling: Sampling, position: int) -> int:
    """Draws the token that stands at `position`.

    Args:
      logits: [vocab].
      position: index of the drawn token in the sequence, the prompt included.

    Raises:
      SpecError: logits that are not finite, of which no token can be drawn.
    """
    if not np.isfinite(logits.max()):
        raise SpecError(
            f"logits at position {position}: the largest is {logits.max()}; check the weights and "
            f"the compute dtype"
        )
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    exact = np.asarray(logits, np.float64)
    weights = np.exp((exact - exact.max()) / sampling.temperature)
    order = np.argsort(-weights, kind="stable")
    reached = np.cumsum(weights[order])
    num_kept = int(np.searchsorted(reached, sampling.top_p * reached[-1])) + 1
    reached = reached[:num_kept]
    drawn = float(_uniform(np.uint32(sampling.seed), np.uint32(position))) * reached[-1]
    return int(order[np.searchsorted(reached, drawn, side="right")])


@jax.jit
def _uniform(seed: jax.Array, position: jax.Array) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), position)
    return jax.random.uniform(key, dtype=jnp.float32)  # in [0, 1)
