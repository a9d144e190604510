"""What `dispatch_child.py` does, by SpectraX: used as its public documentation says, only measured.

Of its ways to run two stages `sxjit` without a schedule was the fastest (in one run 0.33 ms for two
linear layers; with `GPipe(microbatches=1)` 1.5, `sxcall` 7). It needs an environment of its own:
its licence is the AGPL.
"""

from typing import Any

import jax
import spectrax as spx  # type: ignore[import-not-found]
from dispatch_child import answer
from spectrax import nn  # type: ignore[import-not-found]
from spectrax.runtime.mpmd import sxjit, sxstage_iter  # type: ignore[import-not-found]
from two_layers import example, layer, weights


class Layer(spx.Module):
    """One layer, its matrices as its own linear modules."""

    def __init__(self, matrices: Any, *, rngs: Any) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output, self.up, self.down = [
            nn.Linear(
                *matrix.shape,
                use_bias=False,
                rngs=rngs,
                w_init=lambda key, shape, dtype=None, m=matrix: jax.numpy.asarray(m),
            )
            for matrix in matrices
        ]

    def forward(self, x: jax.Array) -> jax.Array:
        return layer(x, (self.query, self.key, self.value, self.output, self.up, self.down))


class Model(spx.Module):
    """Both layers, a stage each."""

    def __init__(self, *, rngs: Any) -> None:
        super().__init__()
        first, second = weights()
        with spx.assign_stage(current=0, total=2):
            self.first = Layer(first, rngs=rngs)
        with spx.assign_stage(current=1, total=2):
            self.second = Layer(second, rngs=rngs)

    def forward(self, x: jax.Array) -> jax.Array:
        return self.second(sxstage_iter(self.first(x)))


def main() -> None:
    mesh = spx.create_mesh(axis_dims=(2, 1, 1, 1, 1, 1), mpmd_axis="pp")
    with mesh:
        model = Model(rngs=spx.Rngs(0))
        x = jax.device_put(example(), jax.devices()[0])
        call = sxjit(mesh=mesh)(lambda model, x: model(x))
        answer(lambda: call(model, x), "spectrax-lib")


if __name__ == "__main__":
    main()
