"""Trees into files and back, what a manifest sees, and saves that are killed half-way."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from gimlax import models
from gimlax.errors import BackendError, SpecError
from gimlax.lazy import LazyArray
from gimlax.models.checkpoint import read_checkpoint
from gimlax.models.manifest import MANIFEST, read_manifest, write_manifest
from gimlax.models.opening import open_tree, stored_leaves
from gimlax.models.orbax_files import _lots
from gimlax.models.safetensors import DTYPES
from gimlax.models.saving import save_tree
from gimlax.runtime.workers.files import where_filed
from tests.models import bert_folder, diffusion_folder, language_folder

FORMATS = ["safetensors", "orbax"]
TREE = {
    "layers": [{"kernel": np.arange(12, dtype=np.float32).reshape(3, 4) + i} for i in range(3)],
    "embed": {0: np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3), 1: np.int32([7, 8])},
    "step": np.int64(3),
}


def loaded(path, tree=TREE, **how):
    return jax.tree.map(np.asarray, open_tree(path, tree, **how))


def assert_same(found, expected):
    def same(a, b):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype

    jax.tree.map(same, found, expected)


@pytest.mark.parametrize("format", FORMATS)
def test_a_tree_comes_back(tmp_path, format):
    save_tree(tmp_path / "model", TREE, format=format)
    assert_same(loaded(tmp_path / "model"), TREE)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_files_are_dealt_out_with_an_index_that_others_read(tmp_path):
    calls = []
    save_tree(tmp_path / "m", TREE, shard_bytes=100, progress=lambda *at: calls.append(at))
    files = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    assert len(files) > 1 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    where = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())["weight_map"]
    for name, file in where.items():
        assert name in safetensors.safe_open(tmp_path / "m" / file, "numpy").keys()  # noqa: SIM118
    assert_same(loaded(tmp_path / "m"), TREE)
    total_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(TREE))
    assert calls[-1] == (total_bytes, total_bytes) and calls == sorted(calls)


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_of_the_format_comes_back(tmp_path, name):
    values = np.arange(2).astype(DTYPES[name])
    save_tree(tmp_path / "m", {"x": values, "y": np.ones(3, np.uint8)})
    found = read_checkpoint(tmp_path / "m").read("x")
    assert (found.dtype, found.tobytes()) == (values.dtype, values.tobytes())


@pytest.mark.parametrize("format", FORMATS)
def test_arrays_are_read_one_by_one(tmp_path, format):
    held, most = [0], []

    class Watched(np.ndarray):
        def __del__(self):
            held[0] -= self.base is None

    def lazy(i):
        def read(index):
            held[0] += 1
            most.append(held[0])
            values = np.ndarray.__new__(Watched, (64, 64), np.float32)
            values[:] = i
            return values[index] if index else values

        return LazyArray(shape=(64, 64), dtype=np.dtype(np.float32), read=read)

    save_tree(tmp_path / "m", [lazy(i) for i in range(6)], format=format)
    assert len(most) == 6 and max(most) <= 2
    np.testing.assert_array_equal(open_tree(tmp_path / "m", [lazy(i) for i in range(6)])[4], 4)


@pytest.mark.parametrize("format", FORMATS)
def test_a_flipped_bit_is_found_and_its_file_named(tmp_path, format):
    path = tmp_path / "m"
    save_tree(path, TREE, format=format, shard_bytes=100)
    sizes = {name: num_bytes for name, (num_bytes, _) in read_manifest(path).items()}
    for name in (max(sizes, key=sizes.get), min(sizes, key=sizes.get)):
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 4
        (path / name).write_bytes(content)
        with pytest.raises(SpecError, match="is not as it was saved") as caught:
            open_tree(path, TREE)
        assert f"'{path / name}' has sha256" in str(caught.value)
        content[len(content) // 2] ^= 4
        (path / name).write_bytes(content)
    assert_same(loaded(path), TREE)


def test_verification_can_be_left_out(tmp_path):
    path = tmp_path / "m"
    save_tree(path, TREE)
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-30] ^= 1
    (path / "model.safetensors").write_bytes(content)
    changed = jax.tree.leaves(loaded(path, verify=False))
    assert any((a != b).any() for a, b in zip(changed, jax.tree.leaves(TREE), strict=True))


@pytest.mark.parametrize("fault", ["missing", "shorter", "more"])
def test_other_files_than_were_saved_are_refused(tmp_path, fault):
    path = tmp_path / "m"
    save_tree(path, TREE, shard_bytes=100)
    file = path / "model-00001-of-00003.safetensors"
    if fault == "missing":
        file.unlink()
    elif fault == "shorter":
        os.truncate(file, 20)
    else:
        file.rename(file := path / "other.safetensors")
    words = {"missing": "is missing", "shorter": "has 20 bytes, saved were", "more": "is not of"}
    with pytest.raises(SpecError, match=f"{file}' {words[fault]}"):
        open_tree(path, TREE)


MANIFESTS = {
    "no json": ("{", "no sound JSON"),
    "kind": ('{"kind": "x", "version": 1}', "is of kind 'x'"),
    "version": ('{"kind": "gimlax manifest", "version": 9}', "version 9"),
    "no files": ('{"kind": "gimlax manifest", "version": 1, "files": []}', "no 'files'"),
    "no sizes": ('{"kind": "gimlax manifest", "version": 1, "files": {"a": 1}}', "num_bytes"),
    **{
        name: (
            json.dumps({"kind": "gimlax manifest", "version": 1, "files": {name: {}}}),
            "no file of its own folder",
        )
        for name in ("../a", "/etc/passwd", "a/../../b", "", "a//b", "a\\b")
    },
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_is_none_is_refused(tmp_path, name):
    text, words = MANIFESTS[name]
    save_tree(tmp_path / "m", TREE)
    (tmp_path / "m" / MANIFEST).write_text(text)
    with pytest.raises(SpecError, match=words):
        open_tree(tmp_path / "m", TREE)


def test_a_save_that_is_killed_at_any_step_leaves_what_was_there(tmp_path):
    child = Path(__file__).parent / "killed_saves_child.py"
    root = child.parents[2]
    run = subprocess.run(
        [sys.executable, str(child), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert int(run.stdout) > 5


@pytest.mark.parametrize("format", FORMATS)
def test_a_save_that_fails_leaves_what_was_there(tmp_path, format):
    def fail(index):
        raise OSError(28, "No space left on device")

    save_tree(tmp_path / "m", TREE, format=format)
    broken = TREE | {"step": LazyArray(shape=(), dtype=np.dtype(np.int64), read=fail)}
    with pytest.raises(BackendError, match=r"could not be saved: .*No space left"):
        save_tree(tmp_path / "m", broken, format=format)
    assert_same(loaded(tmp_path / "m"), TREE)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_save_that_only_leaves_remains_says_that_it_is_whole(tmp_path, monkeypatch):
    save_tree(tmp_path / "m", {"old": np.ones(3)})
    rmtree = shutil.rmtree

    def fail(path, *args, **how):
        if (tmp_path / "m" / MANIFEST).exists() and "previous" in str(path):
            raise OSError(13, "Permission denied", str(path))
        rmtree(path, *args, **how)

    monkeypatch.setattr(shutil, "rmtree", fail)
    words = r"m' is saved as a whole, but '.*\.m\.previous'.*Permission denied; remove"
    with pytest.raises(BackendError, match=words):
        save_tree(tmp_path / "m", TREE)
    assert_same(loaded(tmp_path / "m"), TREE)


@pytest.mark.parametrize("format", FORMATS)
def test_a_later_save_replaces_an_earlier_one_of_either_format(tmp_path, format):
    save_tree(tmp_path / "m", {"old": np.ones(3)}, format="safetensors")
    save_tree(tmp_path / "m", {"older": np.ones(3)}, format="orbax")
    save_tree(tmp_path / "m", TREE, format=format)
    assert_same(loaded(tmp_path / "m"), TREE)


def test_a_link_stays_one(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far" / "m")
    for _ in range(2):
        save_tree(tmp_path / "near", TREE)
    assert (tmp_path / "near").is_symlink()
    assert_same(loaded(tmp_path / "far" / "m"), TREE)


def test_what_no_save_has_written_is_not_replaced(tmp_path):
    path = tmp_path / "m"
    save_tree(path, TREE)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(SpecError, match=r"1 files that no save has written \('notes.txt'\)"):
        save_tree(path, TREE)
    with pytest.raises(SpecError, match="is a file, and a save is a folder"):
        save_tree(path / "notes.txt", TREE)
    with pytest.raises(SpecError, match="lies in no folder that exists"):
        save_tree(tmp_path / "a" / "b", TREE)
    assert (path / "notes.txt").read_text() == "mine"


UNSAVABLE = {
    "two of a name": (
        {"a": {"b": np.ones(2)}, "a.b": np.ones(2)},
        "'a.b' would be the name of two",
    ),
    "reserved": ({"__metadata__": np.ones(2)}, "'__metadata__' would be"),
    "dtype": ({"x": np.ones(2, "complex128")}, "'x' is of dtype complex128"),
    "key": ({"key": jax.random.key(0)}, r"'key' is of dtype key<fry>.*random\.key_data"),
    "object": ({"x": "words"}, "'x' is of dtype <U5|'x' is a str"),
    "nothing": ({}, "no array to be saved"),
    "half a byte": ({"x": np.ones(3, ml_dtypes.float4_e2m1fn)}, "odd number of float4"),
}


@pytest.mark.parametrize("name", UNSAVABLE)
def test_what_cannot_be_saved_is_named(tmp_path, name):
    tree, words = UNSAVABLE[name]
    with pytest.raises(SpecError, match=words):
        save_tree(tmp_path / "m", tree)
    assert not list(tmp_path.iterdir())


def test_orbax_saves_and_gives_no_two_arrays_of_one_name(tmp_path):
    tree, words = UNSAVABLE["two of a name"]
    with pytest.raises(SpecError, match=words):
        save_tree(tmp_path / "m", tree, format="orbax")
    assert not list(tmp_path.iterdir())
    with ocp.PyTreeCheckpointer() as others:
        others.save(tmp_path / "theirs", tree)
    words = r"theirs': 2 parameters go by the name 'a\.b'"
    with pytest.raises(SpecError, match=words):
        stored_leaves(tmp_path / "theirs")
    save_tree(tmp_path / "n", {"a": {"b": np.ones(2)}})
    with pytest.raises(SpecError, match=words.replace("theirs", "n")):
        open_tree(tmp_path / "n", tree)


@pytest.mark.parametrize("field", ["shape", "chunks"])
def test_a_checkpoint_of_orbax_that_no_host_could_hold_is_refused(tmp_path, field):
    path = tmp_path / "m"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as others:
        others.save(path, args=ocp.args.PyTreeSave({"w": np.ones((4, 4), np.float32)}))
    header = path / "w" / ".zarray"
    header.write_text(json.dumps(json.loads(header.read_text()) | {field: [1 << 36, 4]}))
    with pytest.raises(SpecError, match=r"announces 1099511627776 bytes for 'w'.*this host has"):
        stored_leaves(path)["w"].read(())


def test_orbax_saves_no_empty_array_and_safetensors_does(tmp_path):
    tree = TREE | {"empty": np.zeros((0, 4), np.float32)}
    with pytest.raises(SpecError, match="'empty' has no numbers"):
        save_tree(tmp_path / "m", tree, format="orbax")
    save_tree(tmp_path / "m", tree)
    assert_same(loaded(tmp_path / "m", tree), tree)


def test_a_format_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(SpecError, match="'pickle', and there are 'safetensors' and 'orbax'"):
        save_tree(tmp_path / "m", TREE, format="pickle")


# Orbax leaves work behind that finds its loop closed, now and then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_broken_checkpoint_of_orbax_is_refused(tmp_path):
    path = tmp_path / "m"
    save_tree(path, TREE, format="orbax")
    (path / MANIFEST).unlink()
    for victim in ("manifest.ocdbt", "_METADATA"):
        content = (path / victim).read_bytes()
        (path / victim).write_bytes(b"{nothing")
        with pytest.raises(SpecError, match="it is damaged, or holds several items"):
            loaded(path)
        (path / victim).write_bytes(content)
    found = open_tree(path, TREE)
    for data in path.rglob("d/*"):
        os.truncate(data, 1)
    with pytest.raises(SpecError, match="cannot be read by Orbax"):
        np.asarray(found["step"])


@pytest.mark.parametrize("sizes", [[5], [1, 1, 1], [4, 1, 2, 2, 9, 9, 1], [0, 0, 3], []])
def test_lots_have_all_in_order_and_no_more_than_the_largest(sizes):
    lots = _lots(sizes)
    assert [place for start, stop in lots for place in range(start, stop)] == list(
        range(len(sizes))
    )
    assert all(sum(sizes[start:stop]) <= max(sizes) for start, stop in lots)
    joined = [sum(sizes[a:d]) for (a, _), (_, d) in zip(lots, lots[1:])]
    assert all(size > max(sizes) for size in joined)  # none could be one with the next


def test_files_that_are_written_into_are_not_read_again(tmp_path):
    save_tree(tmp_path / "m", TREE)
    found = open_tree(tmp_path / "m", TREE)
    file = tmp_path / "m" / "model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(-4, os.SEEK_END)
        opened.write(b"\1\1\1\1")
    os.utime(file, ns=(0, 1))  # a later time, however coarse the clock of the files
    with pytest.raises(SpecError, match="was changed after it was opened, and 'step'"):
        np.asarray(found["step"])


def test_safetensors_that_are_replaced_stay_those_that_were_opened(tmp_path):
    save_tree(tmp_path / "m", TREE)
    found = open_tree(tmp_path / "m", TREE)
    view = read_checkpoint(tmp_path / "m").read("layers.0.kernel")
    assert where_filed(view) is not None
    save_tree(tmp_path / "m", jax.tree.map(lambda x: x + 1, TREE))
    assert_same(jax.tree.map(np.asarray, found), TREE)
    assert where_filed(view) is None  # a worker would read the other one


def test_a_checkpoint_of_orbax_that_is_replaced_is_not_read(tmp_path):
    save_tree(tmp_path / "m", TREE, format="orbax")
    found = open_tree(tmp_path / "m", TREE)
    np.testing.assert_array_equal(found["step"], 3)
    save_tree(tmp_path / "m", jax.tree.map(lambda x: x + 1, TREE), format="orbax")
    with pytest.raises(SpecError, match=r"was saved anew, or removed, after.*'layers\.0\.kernel'"):
        np.asarray(found["layers"][0]["kernel"])


def flip(file):
    """Changes one bit of a file, and leaves its header alone."""
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


LOADERS = {
    "huggingface": lambda path, **how: models.load_huggingface(path, **how)[1],
    "language": lambda path, **how: models.open_language(path).load(**how),
}


@pytest.mark.parametrize("name", LOADERS)
def test_every_way_into_a_folder_looks_at_its_manifest(tmp_path, name):
    load, path = LOADERS[name], tmp_path / "m"
    models.convert(language_folder.write(tmp_path / "source"), path)
    calls = []
    expected = load(path, progress=lambda *at: calls.append(at))
    assert calls == sorted(calls) and calls[-1][0] == calls[-1][1]
    assert len({total for _, total in calls}) == 1  # a bar that does not jump
    path.rename(tmp_path / ".m.previous")  # as a save that was killed leaves it
    jax.tree.map(np.testing.assert_array_equal, load(path), expected)
    flip(tmp_path / ".m.previous" / "model.safetensors")
    with pytest.raises(SpecError, match=r"model\.safetensors' has sha256"):
        load(path)
    load(path, verify=False)


def test_embeddings_look_at_the_manifest(tmp_path):
    write_manifest(bert_folder.write(tmp_path / "m"))
    models.load_sentence_encoder(tmp_path / "m")
    flip(tmp_path / "m" / "model.safetensors")
    with pytest.raises(SpecError, match=r"model\.safetensors' has sha256"):
        models.load_sentence_encoder(tmp_path / "m")
    models.load_sentence_encoder(tmp_path / "m", verify=False)


def test_parts_of_stable_diffusion_have_manifests_of_their_own(tmp_path):
    config = diffusion_folder.write(tmp_path / "sd").config
    shapes = models.abstract_diffusion_params(config)
    write_manifest(tmp_path / "sd" / "vae")
    calls = []
    tree = open_tree(tmp_path / "sd", shapes, progress=lambda *at: calls.append(at))
    jax.tree.map(np.asarray, tree)
    assert calls == sorted(calls) and calls[-1][0] == calls[-1][1]
    assert len({total for _, total in calls}) == 1
    flip(next((tmp_path / "sd" / "vae").glob("*.safetensors")))
    words = r"vae/model\.safetensors' has sha256"
    with pytest.raises(SpecError, match=words):
        open_tree(tmp_path / "sd", shapes)
    with pytest.raises(SpecError, match=words):
        models.load_stable_diffusion(tmp_path / "sd")
    models.load_stable_diffusion(tmp_path / "sd", verify=False)


def test_the_bar_of_a_load_does_not_jump(tmp_path):
    save_tree(tmp_path / "m", TREE)
    calls = []
    loaded(tmp_path / "m", progress=lambda *at: calls.append(at))
    assert calls == sorted(calls) and calls[-1][0] == calls[-1][1]
    assert len({total for _, total in calls}) == 1
