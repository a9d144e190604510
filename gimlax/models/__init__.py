"""Models of our own, readers of their files, and adapters for Flax modules of others.

Nothing in gimlax needs this package to run a model: it makes functions and pytrees, which is all
that `gimlax.trace` asks for.
"""

from gimlax.models.llama import (
    LLAMA3_70B,
    SMOLLM2_135M,
    Llama,
    LlamaConfig,
    abstract_cache,
    abstract_params,
    init_cache,
    init_params,
    llama_apply,
)

__all__ = [
    "LLAMA3_70B",
    "SMOLLM2_135M",
    "Llama",
    "LlamaConfig",
    "abstract_cache",
    "abstract_params",
    "init_cache",
    "init_params",
    "llama_apply",
]
