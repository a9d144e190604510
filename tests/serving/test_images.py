"""Images out of noise: the same cut and uncut, PNG files, and `scripts/txt2img.py`."""

import os
import subprocess
import sys
import zlib

import numpy as np
import pytest

from gimlax import models
from gimlax.errors import SpecError
from gimlax.serving import ImageModel, make_images, write_png
from tests import specimens
from tests.models import diffusion_folder
from tests.serving.test_embed_script import ROOT


def image_model(**settings):
    model = specimens.diffusion_model()
    return ImageModel(
        encode=models.encode_apply(model.config),
        denoise=models.denoise_apply(model.config),
        decode=models.decode_apply(model.config),
        params=model.params,
        token_lengths=(5, 5, 6),
        latent_shape=model.config.latent_shape(8, 16),
        **settings,
    )


def test_images_are_encoded_denoised_step_by_step_and_decoded():
    calls, done = [], []

    def phase(name, made):
        def run(params, *given):
            calls.append((name, [np.asarray(x).tolist() for x in given[-3:]]))
            return made(given)

        return run

    phases = {
        "encode": phase("encode", lambda given: (given[0] * 2, given[0] * 3)),
        "denoise": phase("denoise", lambda given: given[0] - 1),
        "decode": phase("decode", lambda given: given[0] * 10),
    }
    found = make_images(
        phases,
        None,
        [np.array([7])],
        noise=np.array([5.0]),
        sigmas=np.float32([1, 0.5, 0]),
        guidance=4.0,
        progress=lambda *numbers: done.append(numbers),
    )
    assert found.tolist() == [30.0]
    assert [name for name, _ in calls] == ["encode", "denoise", "denoise", "decode"]
    assert [numbers for name, numbers in calls if name == "denoise"] == [[1, 0.5, 4], [0.5, 0, 4]]
    assert done == [(1, 2), (2, 2)]


def test_noise_is_a_function_of_the_seed():
    model = image_model(num_images=2)
    np.testing.assert_array_equal(model.noise(3), model.noise(3))
    assert model.noise(3).shape == (2, 4, 4, 8)
    assert np.abs(model.noise(3) - model.noise(4)).max() > 0.1
    with pytest.raises(SpecError, match="seed is -1"):
        model.noise(-1)
    with pytest.raises(SpecError, match="num_images is 0"):
        image_model(num_images=0)


@pytest.mark.parametrize(("guided", "prompts"), [(True, 4), (False, 2)])
def test_phases_are_traced_for_all_images(guided, prompts):
    workload = image_model(num_images=2, guided=guided).workload(num_steps=9)
    assert workload.calls == {"encode": 1, "denoise": 9, "decode": 1}
    shapes = {
        name: [a.aval.shape for a in traced.arguments if a.role.value == "streamed"]
        for name, traced in workload.phases.items()
    }
    assert shapes["encode"] == [(prompts, 5), (prompts, 5), (prompts, 6)]
    assert shapes["denoise"][:3] == [(2, 4, 4, 8), (prompts, 11, 28), (prompts, 12)]
    assert shapes["decode"] == [(2, 4, 4, 8)]


def pixels_of(path):
    """The pixels of a PNG file as it is written here, its check sums looked at."""
    data, found = path.read_bytes(), {}
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place = 8
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        kind, content = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += 12 + length
        assert zlib.crc32(kind + content) == int.from_bytes(data[place - 4 : place], "big")
        found[kind] = content
    assert list(found) == [b"IHDR", b"IDAT", b"IEND"]
    width, height = (int.from_bytes(found[b"IHDR"][i : i + 4], "big") for i in (0, 4))
    assert found[b"IHDR"][8:] == bytes([8, 2, 0, 0, 0])
    rows = np.frombuffer(zlib.decompress(found[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


def test_pixels_come_back_from_a_png_file(tmp_path):
    image = np.random.default_rng(1).uniform(-0.2, 1.2, (3, 5, 3)).astype(np.float32)
    write_png(tmp_path / "a.png", image)
    expected = np.rint(np.clip(image, 0, 1) * 255)
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.png"), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(SpecError, match=r"shape \(3, 5, 2\)"):
        write_png(tmp_path / "b.png", image[..., :2])
    image[0, 0, 0] = np.nan
    with pytest.raises(SpecError, match="infinite or none"):
        write_png(tmp_path / "b.png", image)
    assert not (tmp_path / "b.png").exists()


def run_script(folder, output, *flags):
    command = [sys.executable, "scripts/txt2img.py", f"--model={folder}", f"--output={output}"]
    return subprocess.run(
        [*command, "--height=8", "--width=16", "--dtype=float32", *flags],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_script_makes_the_image_of_the_uncut_model(tmp_path):
    pytest.importorskip("tokenizers")
    model = diffusion_folder.write(tmp_path / "model")
    output = tmp_path / "fox.png"
    prompt = ("--prompt=the fox", "--negative=a dog", "--max_tokens=9", "--meshes=cpu,cpu")
    done = run_script(
        tmp_path / "model",
        output,
        *prompt,
        "--steps=2",
        "--seed=5",
        "--guidance=3",
        "--check",
        "--stages=2",
    )
    assert done.returncode == 0, done.stderr
    assert f"16 x 8 pixels written to {output}" in done.stdout
    assert "from those of the uncut model" in done.stdout
    tokenizers = models.load_prompt_tokenizers(tmp_path / "model")
    tokens = [
        tokenizers[name].encode(["a dog", "the fox"], length=length)
        for name, length in (("clip_l", 77), ("clip_g", 77), ("t5", 9))
    ]
    (expected,) = make_images(
        image_model().uncut(),
        model.params,
        tokens,
        noise=image_model().noise(5),
        sigmas=model.config.schedule.sigmas(2),
        guidance=3.0,
    )
    apart = pixels_of(output).astype(int) - np.rint(np.clip(expected, 0, 1) * 255)
    assert np.abs(apart).max() <= 1  # a pixel half-way may be rounded the other way

    done = run_script(tmp_path / "model", output, *prompt, "--guidance=1")
    assert done.returncode == 2 and "--negative needs guidance" in done.stderr
