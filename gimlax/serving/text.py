"""A language model as serving sees it: one function at two shapes, prefill and decode.

The two phases share parameters and cache, so they are traced into one `Workload` and cut and placed
as one. The same record also gives the uncut model, plain `jax.jit` on one device, to compare with.
With `batch` rows at once, each row has a position of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gimlax.errors import SpecError
from gimlax.graph import Workload, trace
from gimlax.serving.batch import StepRowsRunner
from gimlax.serving.runner import StepRunner


class Phases(Protocol):
    """Compiled phases by name, and where their state comes from."""

    def __getitem__(self, name: str, /) -> Callable[..., Any]:
        """The phase of this name."""
        ...

    def init(self, *trees: Any) -> Any:
        """Carried state that starts as `trees`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel:
    """What serving needs to know of a language model.

    Attributes:
      apply: (params, cache, tokens [batch, length], position, last=None) -> (logits, cache), where
        `last` picks the one token of each sequence whose logits are wanted.
      params: parameters, or their `jax.ShapeDtypeStruct`s where only a plan is wanted.
      cache: the `jax.ShapeDtypeStruct`s of the cache of `batch` sequences; it starts as zeros.
      context: positions that the cache holds.
      chunk: tokens of one prefill pass.
      recurrent: whether the cache is a state that no token may enter twice. A last chunk then
        cannot start earlier where it would reach past the context, so chunks have to fill that.
      batch: sequences of one pass, each at a position of its own; None for one at a time.
    """

    apply: Callable[..., tuple[Any, Any]]
    params: Any
    cache: Any
    context: int
    chunk: int
    recurrent: bool = False
    batch: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.chunk <= self.context:
            raise SpecError(
                f"chunk is {self.chunk} tokens, but the context holds {self.context}; give a chunk "
                f"from 1 to {self.context}"
            )
        if self.recurrent and self.context % self.chunk:
            raise SpecError(
                f"context is {self.context} tokens, no multiple of the chunk of {self.chunk}; a "
                "recurrent state cannot take the tokens of a last chunk twice"
            )

    def workload(self, *, num_new_tokens: int = 64) -> Workload:
        """Both phases traced; a request calls prefill once and decode once per new token."""
        return Workload(
            {
                "prefill": self._trace("prefill", self.chunk, num_numbers=2),
                "decode": self._trace("decode", 1, num_numbers=1),
            },
            calls={"prefill": 1, "decode": num_new_tokens},
        )

    def new_cache(self) -> Any:
        """A cache of zeros, on JAX's default device."""
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.cache)

    def cut(self, phases: Phases, params: Any) -> StepRunner:
        """Runs on what `compile` made of the workload, with the parameters that it placed."""
        return self._runner(phases["prefill"], phases["decode"], params, self._initial(phases))

    def uncut(self) -> StepRunner:
        """Runs as one `jax.jit` on JAX's default device."""
        step = jax.jit(self.apply, donate_argnums=1)
        return self._runner(step, step, jax.tree.map(jnp.asarray, self.params), self.new_cache)

    def cut_rows(self, phases: Phases, params: Any) -> StepRowsRunner:
        """As `cut`, for `batch` rows at once."""
        return self._rows_runner(phases["prefill"], phases["decode"], params, self._initial(phases))

    def uncut_rows(self) -> StepRowsRunner:
        """As `uncut`, for `batch` rows at once."""
        step = jax.jit(self.apply, donate_argnums=1)
        params = jax.tree.map(jnp.asarray, self.params)
        return self._rows_runner(step, step, params, self.new_cache)

    def _initial(self, phases: Phases) -> Callable[[], Any]:
        return lambda: phases.init(self.new_cache())

    def _trace(self, name: str, length: int, *, num_numbers: int) -> Any:
        tokens = jax.ShapeDtypeStruct((self.batch or 1, length), jnp.int32)
        number = np.int32(0) if self.batch is None else np.zeros(self.batch, np.int32)
        arguments = (self.params, self.cache, tokens, *[number] * num_numbers)
        return trace(self.apply, *arguments, resident=(0,), carried={1: 1}, name=name)

    def _runner(
        self,
        prefill: Callable[..., tuple[Any, Any]],
        decode: Callable[..., tuple[Any, Any]],
        params: Any,
        new_cache: Callable[[], Any],
    ) -> StepRunner:
        if self.batch is not None:
            raise SpecError(f"this model runs {self.batch} rows at once; take its `..._rows`")
        return StepRunner(
            prefill_step=prefill,
            decode_step=decode,
            params=params,
            new_cache=new_cache,
            context=self.context,
            chunk=self.chunk,
        )

    def _rows_runner(
        self,
        prefill: Callable[..., tuple[Any, Any]],
        decode: Callable[..., tuple[Any, Any]],
        params: Any,
        new_cache: Callable[[], Any],
    ) -> StepRowsRunner:
        if self.batch is None:
            raise SpecError("this model runs one sequence at a time; give it a `batch`")
        return StepRowsRunner(
            prefill_step=prefill,
            decode_step=decode,
            params=params,
            new_cache=new_cache,
            num_rows=self.batch,
            context=self.context,
            chunk=self.chunk,
        )
