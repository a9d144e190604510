"""Makes an image of a prompt with Stable Diffusion 3, cut across the backends of this machine.

python scripts/txt2img.py --model=path/to/folder --prompt="a fox in the snow" --output=fox.png
"""

from pathlib import Path
from typing import cast

import console
import deploying
import numpy as np
from absl import flags

import gimlax as gx
from gimlax import models, serving
from gimlax.models.decoder import DType

MODEL = flags.DEFINE_string(
    "model", None, "folder in diffusers' layout, with model_index.json", required=True
)
PROMPT = flags.DEFINE_string("prompt", None, "what the image shows", required=True)
NEGATIVE = flags.DEFINE_string("negative", "", "what it does not show; needs --guidance above 1")
OUTPUT = flags.DEFINE_string("output", None, "PNG file", required=True)
STEPS = flags.DEFINE_integer("steps", 28, "from noise to an image", lower_bound=1, upper_bound=1000)
GUIDANCE = flags.DEFINE_float(
    "guidance", 7.0, "how closely the prompt is followed; 1 or less is without", lower_bound=0
)
SEED = flags.DEFINE_integer("seed", 0, "of the noise", lower_bound=0)
HEIGHT = flags.DEFINE_integer("height", None, "in pixels; by default what the model was made for")
WIDTH = flags.DEFINE_integer("width", None, "in pixels; by default what the model was made for")
MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 256, "of the prompt that T5 looks at", lower_bound=2, upper_bound=512
)
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "of weights and arithmetic")
CHECK = flags.DEFINE_bool("check", False, "compare the image with that of the uncut model")
flags.adopt_module_key_flags(deploying)
# On average, of pixels from 0 to 1: what one step rounds is what the next one starts from.
MOST_APART = {"float32": 0.01, "bfloat16": 0.1}


def main(argv: list[str]) -> None:
    del argv
    console.prepare_jax()
    console.check_output(OUTPUT.value)
    files = models.open_stable_diffusion(MODEL.value, dtype=cast(DType, DTYPE.value))
    config = files.config
    guided = GUIDANCE.value > 1
    if NEGATIVE.value and not guided:
        raise gx.SpecError(f"--negative needs guidance; raise --guidance={GUIDANCE.value} above 1")
    usual = config.transformer.sample_size * config.vae.upscaling
    shape = config.latent_shape(HEIGHT.value or usual, WIDTH.value or usual)
    lengths = (config.clip_l.max_context, config.clip_g.max_context, MAX_TOKENS.value)
    tokens = read_tokens(config, lengths, [NEGATIVE.value, PROMPT.value][not guided :])
    cluster = deploying.find_cluster()
    model = serving.ImageModel(
        encode=models.encode_apply(config),
        denoise=models.denoise_apply(config),
        decode=models.decode_apply(config),
        params=models.abstract_diffusion_params(config),
        token_lengths=lengths,
        latent_shape=shape,
        guided=guided,
    )
    workload = model.workload(num_steps=STEPS.value)
    plan = deploying.make_plan(workload, cluster, "latency")
    with deploying.compiled(plan, workload, cluster) as phases:
        with console.progress("weights") as update:
            params = gx.load(
                MODEL.value,
                plan=phases,
                verify=deploying.VERIFY.value,
                progress=lambda done, total: update(done, total, ""),
            )
        image = make(config, model, phases, params, tokens, "image")
    serving.write_png(Path(OUTPUT.value), image)
    print(f"{image.shape[1]} x {image.shape[0]} pixels written to {OUTPUT.value}")
    if CHECK.value:
        params = models.read_tree(files.leaves)
        check(image, make(config, model, model.uncut(), params, tokens, "uncut model"))


def read_tokens(
    config: models.StableDiffusionConfig, lengths: tuple[int, ...], texts: list[str]
) -> list[np.ndarray]:
    """Of each encoder; without T5 only the length of its tokens is looked at."""
    tokenizers = models.load_prompt_tokenizers(MODEL.value)
    found = []
    for name, length in zip(("clip_l", "clip_g", "t5"), lengths, strict=True):
        if name not in tokenizers:
            found.append(np.zeros((len(texts), length), np.int32))
            continue
        tokenizer, known = tokenizers[name], config.parts[name].vocab_size
        if tokenizer.vocab_size > known:
            raise gx.SpecError(
                f"'{tokenizer.path}' has {tokenizer.vocab_size} tokens, and its encoder embeddings "
                f"of {known} of them"
            )
        found.append(tokenizer.encode(texts, length=length))
    return found


def make(
    config: models.StableDiffusionConfig,
    model: serving.ImageModel,
    phases: serving.ImagePhases,
    params: object,
    tokens: list[np.ndarray],
    title: str,
) -> np.ndarray:
    with console.progress(title) as update:
        (image,) = serving.make_images(
            phases,
            params,
            tokens,
            noise=model.noise(SEED.value),
            sigmas=config.schedule.sigmas(STEPS.value),
            guidance=GUIDANCE.value,
            progress=lambda done, total: update(done, total, f"step {done} of {total}"),
        )
    return image


def check(image: np.ndarray, uncut: np.ndarray) -> None:
    apart = float(np.abs(image - uncut).mean())
    print(f"pixels are {apart:.2g} from those of the uncut model on average, of 1")
    if not apart <= MOST_APART[DTYPE.value]:
        raise gx.InternalError("the cut model disagrees with the uncut one; please report it")


if __name__ == "__main__":
    console.run(main)
