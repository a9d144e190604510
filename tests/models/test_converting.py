"""A model from one format into another, and back: the numbers and the words are the same."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from gimlax import models
from gimlax.errors import SpecError
from gimlax.models.manifest import MANIFEST
from gimlax.models.opening import open_tree, stored_leaves
from gimlax.models.saving import save_tree
from tests.models import bert_folder, diffusion_folder, language_folder
from tests.models.gguf_files import TINY, TINY_EXPERTS, llama_file
from tests.models.safetensors_files import config_of, tensors_of, write_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture(name="gguf")
def gguf_fixture(tmp_path):
    def write(config, **changes):
        path = tmp_path / "model.gguf"
        path.write_bytes(llama_file(config, **changes))
        return path

    return write


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("config", [TINY, TINY_EXPERTS], ids=["llama", "mixtral"])
def test_from_gguf_by_way_of_all_formats(tmp_path, gguf, config):
    source = gguf(config)
    expected = models.load_llama(source)
    steps = [source, tmp_path / "folder", tmp_path / "orbax", tmp_path / "again"]
    for before, after, to in zip(steps, steps[1:], ("safetensors", "orbax", "safetensors")):
        assert models.convert(before, after, to=to) == ()
        assert (after / MANIFEST).is_file()
    for folder in (steps[1], steps[3]):
        found = models.load_huggingface(folder)
        assert found[0] == expected[0]
        same(found[1], expected[1])
        with safetensors.safe_open(folder / "model.safetensors", "numpy") as file:
            assert "model.layers.1.self_attn.q_proj.weight" in file.keys()  # noqa: SIM118
    same(open_tree(steps[2], models.abstract_params(config)), expected[1])


def test_text_becomes_the_same_tokens(tmp_path, gguf):
    source = gguf(TINY)
    models.convert(source, tmp_path / "folder")
    ours, theirs = models.load_tokenizer(source), models.load_tokenizer(tmp_path / "folder")
    for text in ("hello world", " wo<|end|>\n hell", "<tool>é", ""):
        assert theirs.encode(text) == ours.encode(text)
    assert (theirs.bos_id, theirs.eos_ids) == (ours.bos_id, ours.eos_ids)
    ids = ours.encode("hello hello")
    assert theirs.decode(ids) == ours.decode(ids)
    messages = [{"role": "user", "content": "hello"}]
    templates = [models.load_chat_template(of) for of in (source, tmp_path / "folder")]
    assert templates[0].render(messages) == templates[1].render(messages)


def test_a_tokenizer_that_is_not_known_is_said(tmp_path, gguf):
    source = gguf(TINY)
    source.write_bytes(source.read_bytes().replace(b"gpt2", b"gpt9"))
    (said,) = models.convert(source, tmp_path / "folder")
    assert re.match(r"no tokenizer: .*'gpt9'", said)
    same(models.load_huggingface(tmp_path / "folder")[1], models.load_llama(source)[1])
    assert not (tmp_path / "folder" / "tokenizer.json").exists()


def test_a_dtype_is_that_of_all_weights(tmp_path, gguf):
    models.convert(gguf(TINY), tmp_path / "m", dtype="bfloat16")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    found = open_tree(tmp_path / "m", models.abstract_params(TINY))
    expected = tensors_of(TINY)[1]
    same(found, jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16), expected))


def test_quantised_weights_become_numbers_and_the_config_says_so(tmp_path):
    tensors, _ = tensors_of(TINY)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)
    tensors[f"{name}_scale_inv"] = np.float32(0.5)
    config = config_of(TINY, quantization_config={"quant_method": "fp8"}, torch_dtype="bfloat16")
    source = write_folder(tmp_path / "m", config, {"model.safetensors": tensors})
    models.convert(source, tmp_path / "n")
    written = json.loads((tmp_path / "n" / "config.json").read_text())
    assert "quantization_config" not in written and written["torch_dtype"] == "float32"
    same(models.load_huggingface(tmp_path / "n")[1], models.load_huggingface(source)[1])


def test_any_family_goes_to_orbax_and_back(tmp_path):
    source = bert_folder.write(tmp_path / "bert")
    models.convert(source, tmp_path / "orbax", to="orbax")
    models.convert(tmp_path / "orbax", tmp_path / "back")
    same(models.load_huggingface(tmp_path / "back")[1], models.load_huggingface(source)[1])


def test_a_sentence_encoder_makes_the_same_of_tokens_when_it_comes_back(tmp_path):
    source = bert_folder.write(tmp_path / "bert")
    pooling = {"pooling_mode_cls_token": True, "word_embedding_dimension": 24}
    (source / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (source / "sentence_bert_config.json").write_text('{"max_seq_length": 7}')
    models.convert(source, tmp_path / "orbax", to="orbax")
    models.convert(tmp_path / "orbax", tmp_path / "back")
    found = models.load_sentence_encoder(tmp_path / "back")
    assert (found.pooling, found.normalize, found.max_tokens) == ("cls", True, 7)


def test_tensors_that_the_model_does_not_need_go_along_or_are_said(tmp_path):
    diffusion_folder.write(tmp_path / "sd")
    source = tmp_path / "sd" / "vae"
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    half = {name: values.astype(np.float16) for name, values in tensors.items()}
    half["encoder.conv_in.weight"] = np.full((4, 3, 3, 3), 0.5, np.float16)
    half["quant_conv.bias"] = np.arange(4).astype(np.float16)
    safetensors.numpy.save_file(half, source / "model.safetensors")
    assert models.convert(source, tmp_path / "back") == ()
    found = safetensors.numpy.load_file(tmp_path / "back" / "diffusion_pytorch_model.safetensors")
    same(found, half)
    assert {values.dtype.name for values in found.values()} == {"float16"}
    assert "torch_dtype" not in json.loads((tmp_path / "back" / "config.json").read_text())
    (said,) = models.convert(source, tmp_path / "orbax", to="orbax")
    assert re.match(r"no 'encoder\.conv_in\.weight' and 1 other tensors, which", said)


def test_each_tensor_keeps_its_dtype_and_a_given_one_is_that_of_all(tmp_path):
    tensors, _ = tensors_of(TINY)
    tensors = {
        name: values.astype(np.float32 if "q_proj" in name else ml_dtypes.bfloat16)
        for name, values in tensors.items()
    }
    config = config_of(TINY, dtype="bfloat16")
    source = write_folder(tmp_path / "m", config, {"model.safetensors": tensors})
    dtypes = lambda path: {n: leaf.dtype for n, leaf in stored_leaves(path).items()}  # noqa: E731
    models.convert(source, tmp_path / "n")
    assert dtypes(tmp_path / "n") == {name: values.dtype for name, values in tensors.items()}
    bare = write_folder(tmp_path / "b", config_of(TINY), {"model.safetensors": tensors})
    models.convert(bare, tmp_path / "c")
    assert json.loads((tmp_path / "c" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    models.convert(source, tmp_path / "orbax", to="orbax")
    models.convert(tmp_path / "orbax", tmp_path / "o")
    assert dtypes(tmp_path / "o") == dtypes(tmp_path / "n")
    models.convert(source, tmp_path / "w", dtype="float32")
    assert set(dtypes(tmp_path / "w").values()) == {np.dtype(np.float32)}
    written = json.loads((tmp_path / "w" / "config.json").read_text())
    assert written["torch_dtype"] == "float32" and "dtype" not in written


def test_arrays_that_go_by_key_path_are_nested_again(tmp_path):
    tree = {"a": {"b": np.arange(3.0, dtype=np.float32)}, "n": [np.int32([1]), np.int32([2])]}
    save_tree(tmp_path / "one", tree)
    models.convert(tmp_path / "one", tmp_path / "two", to="orbax")
    models.convert(tmp_path / "two", tmp_path / "three", dtype="bfloat16")
    found = open_tree(tmp_path / "three", tree)
    same(found, tree)
    with pytest.raises(SpecError, match=r"'n\.0' is an array inside of another"):
        save_tree(tmp_path / "odd", {"n": np.ones(1), "n.0": np.ones(1)})
        models.convert(tmp_path / "odd", tmp_path / "even", to="orbax")


def test_a_changed_source_is_refused_unless_asked_for(tmp_path, gguf):
    models.convert(gguf(TINY), tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(SpecError, match=r"model.safetensors' has sha256"):
        models.convert(tmp_path / "m", tmp_path / "n")
    models.convert(tmp_path / "m", tmp_path / "n", verify=False)


def test_what_was_converted_to_orbax_is_opened_as_a_language_model(tmp_path):
    source = language_folder.write(tmp_path / "source")
    models.convert(source, tmp_path / "orbax", to="orbax")
    ours, theirs = models.open_language(tmp_path / "orbax"), models.open_language(source)
    assert ours.config == theirs.config
    same(ours.load(), theirs.load())
    assert ours.tokenizer.encode("hello world") == theirs.tokenizer.encode("hello world")
    half = models.open_language(tmp_path / "orbax", dtype="bfloat16").load()
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"bfloat16"}


def test_arrays_without_a_config_are_no_model(tmp_path):
    save_tree(tmp_path / "m", {"x": np.ones(3)}, format="orbax")
    with pytest.raises(SpecError, match=r"m' holds arrays, and no config\.json"):
        models.open_language(tmp_path / "m")


def test_a_folder_of_diffusers_is_converted_part_by_part(tmp_path):
    diffusion_folder.write(tmp_path / "sd")
    with pytest.raises(SpecError, match=r"has a model_index\.json.*convert each part, such as"):
        models.convert(tmp_path / "sd", tmp_path / "n")


REFUSED = {
    "gguf": ({"to": "gguf"}, r"not 'gguf'; for GGUF, .*convert_hf_to_gguf"),
    "other": ({"to": "onnx"}, "writes safetensors and orbax, not 'onnx'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_refused(tmp_path, gguf, name):
    how, words = REFUSED[name]
    with pytest.raises(SpecError, match=words):
        models.convert(gguf(TINY), tmp_path / "m", **how)
    assert not (tmp_path / "m").exists()


def test_what_is_converted_is_not_overwritten(tmp_path):
    save_tree(tmp_path / "m", {"x": np.ones(3)})
    with pytest.raises(SpecError, match="is what is to be converted"):
        models.convert(tmp_path / "m", tmp_path / "x" / ".." / "m", to="orbax")


def run(*flags):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "convert.py"), *flags],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": "", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_script(tmp_path, gguf):
    source = gguf(TINY)
    done = run(f"--source={source}", f"--target={tmp_path / 'm'}", "--dtype=bfloat16")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"written to {tmp_path / 'm'}\n"
    assert "conversion ..." in done.stderr
    models.load_huggingface(tmp_path / "m")
    refused = run(f"--source={source}", f"--target={tmp_path / 'n'}", "--to=gguf")
    assert refused.returncode == 2 and refused.stderr.splitlines()[-1].startswith("error: gimlax")


@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_parameters_of_several_dtypes_are_rounded_once_each(tmp_path, gguf, kind):
    source = gguf(TINY)
    if kind == "folder":
        tensors, _ = tensors_of(TINY)
        source = write_folder(tmp_path / "m", config_of(TINY), {"model.safetensors": tensors})
    whole = open_tree(source, models.abstract_params(TINY))

    def narrow(path, leaf):
        wide = path[-1].key == "key"
        return jax.ShapeDtypeStruct(leaf.shape, "float32" if wide else "bfloat16")

    wanted = jax.tree_util.tree_map_with_path(narrow, models.abstract_params(TINY))
    found = jax.tree.map(np.asarray, open_tree(source, wanted))
    expected = jax.tree.map(lambda leaf, of: np.asarray(leaf).astype(of.dtype), whole, wanted)
    same(found, expected)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32", "bfloat16"}
    key = found["layers"][0]["attention"]["key"]
    assert (key != key.astype(ml_dtypes.bfloat16)).any()  # or this test sees nothing
