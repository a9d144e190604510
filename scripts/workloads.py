"""What the scripts plan and verify: language models from shapes alone, prefill and decode."""

import jax

import gimlax as gx
from gimlax import models

MODELS = {
    "smollm2-135m": models.SMOLLM2_135M,
    "llama3.2-1b": models.LLAMA32_1B,
    "llama3.2-3b": models.LLAMA32_3B,
    "llama3-8b": models.LLAMA3_8B,
    "llama3-70b": models.LLAMA3_70B,
    "llama3.1-8b": models.LLAMA31_8B,
    "llama3.1-405b": models.LLAMA31_405B,
    "mixtral-8x7b": models.MIXTRAL_8X7B,
    "mixtral-8x22b": models.MIXTRAL_8X22B,
}


def decoder_workload(
    config: models.DecoderConfig, *, batch: int, prompt_tokens: int, new_tokens: int, context: int
) -> gx.Workload:
    """Prefill and decode of a decoder.

    Args:
        config: sizes and dtypes.
        batch: sequences in one pass.
        prompt_tokens: of each sequence.
        new_tokens: decoded for each prompt.
        context: positions of the cache.

    Raises:
        SpecError: prompt and new tokens do not fit the context.
    """
    if prompt_tokens + new_tokens > context:
        raise gx.SpecError(
            f"a prompt of {prompt_tokens} and {new_tokens} new tokens do not fit the "
            f"context of {context}; raise --context or shorten them"
        )
    params = models.abstract_params(config)
    cache = models.abstract_cache(config, batch, context)
    position = jax.ShapeDtypeStruct((), "int32")
    prompt = jax.ShapeDtypeStruct((batch, prompt_tokens), "int32")
    token = jax.ShapeDtypeStruct((batch, 1), "int32")
    apply = models.decoder_apply(config)
    prefill = gx.trace(apply, params, cache, prompt, position, position, carried={1: 1})
    decode = gx.trace(apply, params, cache, token, position, carried={1: 1})
    return gx.Workload(
        {"prefill": prefill, "decode": decode}, calls={"prefill": 1, "decode": new_tokens}
    )
