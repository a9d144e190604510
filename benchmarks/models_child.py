"""One model from files to its passes, in a process of its own, so that its memory is its own.

    python models_child.py run NAME PATH

prints how long each step took, and how much memory the process had at most; `write NAME PATH` makes
a folder of random weights for that.
"""

import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from children import serve

import gimlax as gx
from gimlax import models
from gimlax.models.decoder import DType
from gimlax.models.state_space import StateSpaceConfig

NUM_TOKENS, CONTEXT = 256, 512
NUM_TEXTS = 16
PIXELS, NUM_STEPS, PROMPT_TOKENS = 256, 20, 64
REPEATS = 9

Phase = tuple[Callable[..., Any], tuple[Any, ...]]  # a function, and what streams into it


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Shapes of parameters and of carried state (None for none), phases, and how often each runs
    for one request."""

    params: Any
    phases: Mapping[str, Phase]
    calls: Mapping[str, int]
    state: Any = None

    def workload(self) -> gx.Workload:
        carried = () if self.state is None else (self.state,)
        return gx.Workload(
            {
                name: gx.trace(
                    function,
                    self.params,
                    *carried,
                    *streamed,
                    resident=(0,),
                    carried={1: 1} if carried else {},
                    name=name,
                )
                for name, (function, streamed) in self.phases.items()
            },
            calls=self.calls,
        )


def language(config: Any) -> Model:
    """Prefill of a prompt and decode of a token."""
    if isinstance(config, StateSpaceConfig):
        apply, state = models.state_space_apply(config), models.abstract_state(config, 1)
    else:
        apply, state = models.decoder_apply(config), models.abstract_cache(config, 1, CONTEXT)
    number = np.int32(0)
    return Model(
        params=models.abstract_params(config),
        state=state,
        phases={
            "prefill": (apply, (np.zeros((1, NUM_TOKENS), np.int32), number, number)),
            "decode": (apply, (np.zeros((1, 1), np.int32), number)),
        },
        calls={"prefill": 1, "decode": 64},
    )


def encoder(config: models.BertConfig) -> Model:
    """Embeddings of many short texts."""
    tokens = np.ones((NUM_TEXTS, NUM_TOKENS // 2), np.int32)
    return Model(
        params=models.abstract_params(config),
        phases={"embed": (models.embed_apply(config), (tokens, tokens))},
        calls={"embed": 1},
    )


def diffusion(config: models.StableDiffusionConfig) -> Model:
    """One image: prompts encoded, one step of denoising, pixels decoded."""
    params = models.abstract_diffusion_params(config)
    encode = models.encode_apply(config)
    lengths = (config.clip_l.max_context, config.clip_g.max_context, PROMPT_TOKENS)
    prompts = tuple(np.ones((2, length), np.int32) for length in lengths)
    context = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(encode, params, *prompts)
    )
    latents = np.zeros((1, *config.latent_shape(PIXELS, PIXELS)), np.float32)
    numbers = (np.float32(0.5), np.float32(0.4), np.float32(7))
    return Model(
        params=params,
        phases={
            "encode": (encode, prompts),
            "denoise": (models.denoise_apply(config), (latents, *context, *numbers)),
            "decode": (models.decode_apply(config), (latents,)),
        },
        calls={"denoise": NUM_STEPS},
    )


def smollm2(dtype: DType) -> Callable[[], Model]:
    return lambda: language(models.SMOLLM2_135M.with_dtype(dtype))


LLAMA = models.LlamaConfig(
    vocab_size=8192,
    width=576,
    num_layers=8,
    num_heads=9,
    num_kv_heads=3,
    head_size=64,
    mlp_width=1536,
    max_context=CONTEXT,
)
MODELS: Mapping[str, Callable[[], Model]] = {
    "SmolLM2-135M, float32": smollm2("float32"),
    "SmolLM2-135M, bfloat16": smollm2("bfloat16"),
    "Llama": lambda: language(LLAMA),
    "Mixtral": lambda: language(
        models.MixtralConfig(
            vocab_size=8192,
            width=512,
            num_layers=6,
            num_heads=8,
            num_kv_heads=4,
            head_size=64,
            mlp_width=1536,
            max_context=CONTEXT,
            num_experts=8,
            num_chosen=2,
        )
    ),
    "Mamba": lambda: language(
        models.MambaConfig(
            vocab_size=8192,
            width=512,
            num_layers=12,
            inner_width=1024,
            state_size=16,
            step_rank=32,
        )
    ),
    "Mamba-2": lambda: language(
        models.Mamba2Config(
            vocab_size=8192, width=512, num_layers=12, inner_width=1024, state_size=64
        )
    ),
    "BERT": lambda: encoder(
        models.BertConfig(
            vocab_size=8192, width=384, num_layers=6, num_heads=12, mlp_width=1536, pooler=False
        )
    ),
    "Stable Diffusion 3": lambda: diffusion(
        models.StableDiffusionConfig(
            transformer=models.MMDiTConfig(
                num_layers=6, num_heads=6, text_width=768, pooled_width=512, sample_size=32
            ),
            clip_l=dataclasses.replace(
                models.CLIP_L, width=256, num_layers=4, num_heads=4, projection_width=256
            ),
            clip_g=dataclasses.replace(
                models.CLIP_G, width=256, num_layers=4, num_heads=4, projection_width=256
            ),
            t5=dataclasses.replace(models.T5_XXL, width=768, num_layers=4),
        )
    ),
}


def write(name: str, folder: Path) -> None:
    """Random weights, as `gx.save` writes them."""
    rng = np.random.default_rng(0)

    def one(leaf: Any) -> np.ndarray:
        scale = np.float32(np.prod(leaf.shape[1:]) ** -0.5)
        return rng.standard_normal(leaf.shape, np.float32) * scale

    gx.save(folder, jax.tree.map(one, MODELS[name]().params))


def measure(name: str, path: Path) -> dict[str, float]:
    """Seconds of each step, of a pass the first and the median of those behind it, and MB."""
    cluster = gx.discover()
    meshes = [mesh.name for mesh in cluster.meshes][:2]
    found: dict[str, float] = {}

    def timed(what: str, call: Callable[[], Any]) -> Any:
        start_s = time.perf_counter()
        result = call()
        found[f"{what}, s"] = time.perf_counter() - start_s
        return result

    model = MODELS[name]()
    workload = timed("trace", model.workload)
    plan = timed("plan", lambda: gx.plan(workload, cluster, cuts=len(meshes), meshes=meshes))
    with timed("compile", lambda: gx.compile(plan, workload)) as phases:
        found["before loading, MB"] = peak_mb()
        placed = timed("load", lambda: gx.load(path, plan=phases))
        for phase, (_, streamed) in model.phases.items():
            first_s, *took_s = passes(phases, phase, placed, model.state, streamed)
            found |= {f"first {phase}, s": first_s, f"{phase}, s": float(np.median(took_s))}
    found["parameters, MB"] = (
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(model.params)) / 1e6
    )
    found["at most, MB"] = peak_mb()
    return found


def passes(
    phases: gx.Executables, name: str, placed: Any, state: Any, streamed: tuple[Any, ...]
) -> list[float]:
    """Seconds of each of some passes in a row."""
    step, took_s = phases[name], []
    if state is not None:
        state = phases.init(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state))
    for _ in range(1 + REPEATS):
        start_s = time.perf_counter()
        if state is None:
            result = step(placed, *streamed)
        else:
            result, state = step(placed, state, *streamed)
        jax.block_until_ready(result)
        took_s.append(time.perf_counter() - start_s)
    return took_s


def peak_mb() -> float:
    """The most memory that this process had at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main(what: str, name: str, path: Path) -> None:
    if what == "write":
        write(name, path)
        serve({}, lambda _: None)
    else:
        serve(measure(name, path), lambda _: None)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
