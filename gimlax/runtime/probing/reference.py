"""The reference: a stage on JAX's own CPU client, in float32 whatever its dtypes.

What is too narrow to judge by is widened (`gimlax.graph.widening`). Equal stages compile once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from gimlax import _jax
from gimlax.errors import BackendError
from gimlax.graph.widening import widen_arrays, widened
from gimlax.runtime.handles import to_host

__all__ = ["Reference", "reference_device"]


def reference_device() -> Any:
    """The first device of JAX's own CPU client.

    Raises:
        BackendError: this process was started without one.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise BackendError(
            f"there is no CPU client to compute the reference on: {error}; add 'cpu' to"
            " JAX_PLATFORMS, after the platforms that it names"
        ) from error


class Reference:
    """Runs jaxprs of stages on the CPU; compiles each distinct one once."""

    def __init__(self, config: Sequence[tuple[str, Any]]) -> None:
        """`config` is what the function was traced under (`Traced.config`)."""
        self._device = reference_device()
        self._config = (
            *config,
            ("jax_default_matmul_precision", "highest"),
            ("jax_default_device", self._device),
        )
        self._calls: dict[tuple[Any, ...], Any] = {}
        self._of_jaxpr: dict[tuple[int, bool], tuple[Any, Any]] = {}

    @property
    def device(self) -> Any:
        """Where it runs."""
        return self._device

    def run(self, jaxpr: _jax.ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
        """The results of a jaxpr in float32, as host arrays.

        Args:
            jaxpr: what is evaluated.
            inputs: host arrays, in its order.
        """
        return self._run(jaxpr, widen_arrays(inputs), widen=True)

    def run_as_written(self, jaxpr: _jax.ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
        """The same in the dtypes that it has: with the reference's own rounding."""
        return self._run(jaxpr, inputs, widen=False)

    def _run(self, jaxpr: _jax.ClosedJaxpr, inputs: Sequence[Any], *, widen: bool) -> list[Any]:
        with _jax.using_config(self._config):
            key = (id(jaxpr), widen)
            if key not in self._of_jaxpr:
                function = widened(jaxpr) if widen else _jax.evaluate(jaxpr)
                # The jaxpr is kept, or another one could be given its id.
                self._of_jaxpr[key] = jaxpr, self._share(function, inputs)
            _, call = self._of_jaxpr[key]
            return [to_host(x) for x in call(*jax.device_put(list(inputs), self._device))]

    def _share(self, function: Callable[..., list[Any]], inputs: Sequence[Any]) -> Any:
        avals = [
            jax.ShapeDtypeStruct(
                a.shape, a.dtype, sharding=jax.sharding.SingleDeviceSharding(self._device)
            )
            for a in map(jax.typeof, inputs)
        ]
        jitted = jax.jit(function, keep_unused=True)
        lowered = jitted.lower(*avals)
        key = (lowered.as_text(), tuple(str(aval) for aval in jax.tree.leaves(lowered.out_info)))
        # Called rather than compiled from `lowered`, which refuses the layout of numbers of 4 bits.
        return self._calls.setdefault(key, jitted)
