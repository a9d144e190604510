"""Our own models at sizes for tests: odd ones, with everything in them that their kind has."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import gimlax as gx
from gimlax.models import (
    BertConfig,
    ClipConfig,
    FlowMatching,
    MMDiTConfig,
    StableDiffusionConfig,
    T5Config,
    VaeConfig,
    abstract_diffusion_params,
    decode_apply,
    denoise_apply,
    embed_apply,
    encode_apply,
    mamba,
    mamba2,
)
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


def drawn(shapes: Any) -> Any:
    """Random parameters of these shapes by numpy, which compiles nothing: matrices that keep the
    scale of their input, and vectors about one."""
    rng = np.random.default_rng(5)

    def one(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        values = rng.normal(size=leaf.shape).astype(np.float32)
        if len(leaf.shape) == 1:
            return 1 + 0.1 * values
        return values * np.float32(np.prod(leaf.shape[1:]) ** -0.5)

    return jax.tree.map(one, shapes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diffusion:
    """A model in three phases that share no parameters: two prompts, a step, an image."""

    config: StableDiffusionConfig
    params: Any

    @property
    def functions(self) -> dict[str, Callable[..., Any]]:
        return {
            "encode": encode_apply(self.config),
            "denoise": denoise_apply(self.config),
            "decode": decode_apply(self.config),
        }

    def workload(self) -> gx.Workload:
        return gx.Workload(
            {
                name: gx.trace(fn, self.params, *self.inputs[name])
                for name, fn in self.functions.items()
            },
            calls={"denoise": 2},
        )

    @property
    def inputs(self) -> dict[str, tuple[Any, ...]]:
        """Shapes of what each phase takes beside the parameters."""
        short, long = (jax.ShapeDtypeStruct((2, length), "int32") for length in (5, 6))
        numbers = (jax.ShapeDtypeStruct((), "float32"),) * 3
        latents = jax.ShapeDtypeStruct((1, *self.config.latent_shape(8, 16)), "float32")
        prompts = (short, short, long)
        context = jax.eval_shape(self.functions["encode"], self.params, *prompts)
        return {"encode": prompts, "denoise": (latents, *context, *numbers), "decode": (latents,)}

    def run(self, steps: Any, params: Any) -> list[Any]:
        """What each phase gives, all of them of numbers that no other has made."""
        rng = np.random.default_rng(3)
        arrays = {
            name: [
                rng.integers(0, 61, x.shape).astype(np.int32)
                if x.dtype == np.int32
                else rng.normal(size=x.shape).astype(np.float32)
                for x in shapes
            ]
            for name, shapes in self.inputs.items()
        }
        return [steps[name](params, *given) for name, given in arrays.items()]


def diffusion_model() -> Diffusion:
    """Two blocks as 3.5 medium has them, all text encoders, two levels of a decoder."""
    clip = ClipConfig(
        width=12, num_layers=1, num_heads=3, mlp_width=20, projection_width=7, vocab_size=61
    )
    config = StableDiffusionConfig(
        transformer=MMDiTConfig(
            num_layers=2,
            num_heads=2,
            head_size=6,
            text_width=28,
            pooled_width=12,
            channels=4,
            max_size=8,
            qk_norm=True,
            dual_layers=(0,),
        ),
        clip_l=clip,
        clip_g=dataclasses.replace(clip, projection_width=5, activation="gelu"),
        t5=T5Config(width=28, num_layers=1, num_heads=3, mlp_width=20, head_size=4, vocab_size=61),
        vae=VaeConfig(widths=(6, 9), channels=4, blocks_per_level=1, num_groups=3),
        schedule=FlowMatching(),
    )
    return Diffusion(config=config, params=drawn(abstract_diffusion_params(config)))


ENCODERS = {"bert": bert_model}
LANGUAGE = {"mamba": mamba_model, "mamba2": mamba2_model}
