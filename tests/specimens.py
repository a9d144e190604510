"""Our own models at sizes for tests: odd ones, with everything in them that their kind has."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import gimlax as gx
from gimlax.models import BertConfig, embed_apply, mamba, mamba2
from gimlax.models.decoder import init_params
from gimlax.models.state_space import init_state, state_space_apply

PROMPT, LONGEST = 7, 9  # tokens of the prompt, and with padding


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """A language model as its two phases: a padded prompt of two sequences, then tokens one by one.

    `apply` is (params, state, tokens, position, last=None) -> (logits, state).
    """

    apply: Callable[..., Any]
    params: Any
    state: Any

    def workload(self) -> gx.Workload:
        number = jax.ShapeDtypeStruct((), "int32")
        return gx.Workload(
            {
                "prefill": self._trace(LONGEST, number, number),
                "decode": self._trace(1, number),
            },
            calls={"decode": 8},
        )

    def _trace(self, length: int, *numbers: jax.ShapeDtypeStruct) -> gx.Traced:
        tokens = jax.ShapeDtypeStruct((2, length), "int32")
        return gx.trace(self.apply, self.params, self.state, tokens, *numbers, carried={1: 1})

    def run(self, prefill: Any, decode: Any, params: Any, state: Any) -> tuple[Any, Any]:
        """Logits of a prompt and of three tokens behind it, and the state that they leave."""
        rng = np.random.default_rng(3)
        tokens = rng.integers(0, 61, (2, LONGEST)).astype(np.int32)
        logits, state = prefill(params, state, tokens, np.int32(0), np.int32(PROMPT - 1))
        found = [np.asarray(logits)]
        for position in range(PROMPT, PROMPT + 3):
            token = rng.integers(0, 61, (2, 1)).astype(np.int32)
            logits, state = decode(params, state, token, np.int32(position))
            found.append(np.asarray(logits))
        return np.stack(found), state


def moved(params: Any) -> Any:
    """Vectors moved off their zeros and ones, so that none can be left out unseen."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    found = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys)]
    return jax.tree.map(np.asarray, jax.tree.unflatten(tree, found))


def mamba_model() -> Language:
    """Two layers whose prompt is three chunks of the scan."""
    config = mamba.MambaConfig(
        vocab_size=61,
        width=20,
        num_layers=2,
        inner_width=36,
        state_size=5,
        step_rank=3,
        chunk=4,
        bias=True,
    )
    return Language(
        apply=state_space_apply(config),
        params=moved(init_params(config)),
        state=jax.tree.map(np.asarray, init_state(config, 2)),
    )


def mamba2_model() -> Language:
    """Two layers of two groups of heads, whose prompt is three chunks; untied."""
    config = mamba2.Mamba2Config(
        vocab_size=61,
        width=20,
        num_layers=2,
        inner_width=48,
        state_size=5,
        head_size=8,
        num_groups=2,
        chunk=4,
        tied=False,
    )
    return Language(
        apply=state_space_apply(config),
        params=moved(init_params(config)),
        state=jax.tree.map(np.asarray, init_state(config, 2)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A model without state: `apply` is (params, *inputs) -> outputs."""

    apply: Callable[..., Any]
    params: Any
    inputs: tuple[np.ndarray, ...]


def bert_model() -> Encoder:
    """Two layers and the embedding of sentences on top; one row is all padding."""
    config = BertConfig(
        vocab_size=61, width=24, num_layers=2, num_heads=3, mlp_width=40, pooler=False
    )
    tokens = np.random.default_rng(3).integers(0, 61, (3, LONGEST)).astype(np.int32)
    mask = (np.arange(LONGEST) < [[PROMPT], [LONGEST], [0]]).astype(np.int32)
    return Encoder(
        apply=embed_apply(config), params=moved(init_params(config)), inputs=(tokens, mask)
    )


ENCODERS = {"bert": bert_model}
LANGUAGE = {"mamba": mamba_model, "mamba2": mamba2_model}
