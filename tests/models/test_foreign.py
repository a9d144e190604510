"""Pickles and archives under any name: refused by their first bytes, never opened."""

import collections
import gzip
import io
import json
import pickle
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest

import gimlax as gx
from gimlax.errors import SpecError
from gimlax.models import load_huggingface, load_llama
from gimlax.models.foreign import recognise
from gimlax.models.opening import open_tree
from gimlax.models.safetensors import read_safetensors
from tests.models.gguf_files import TINY, file_bytes
from tests.models.safetensors_files import config_of, tensors_file

SHAPES = {"x": np.ones(3, np.float32)}


class Bomb:
    """What a pickle may do when it is opened."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


CONTENTS = {
    "code": Bomb(),
    "dict": {"model": [1, 2.5]},
    "list": ["weight", Bomb()],
    "tuple": (1, "two", Bomb()),
    "many": tuple(range(9)),
    "ordered": collections.OrderedDict(weight=Bomb()),
    "array": np.ones(4, np.float32),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", CONTENTS)
def test_a_pickle_of_any_protocol_is_recognised(protocol, name):
    assert "a pickle" in recognise(pickle.dumps(CONTENTS[name], protocol=protocol))


def test_files_that_are_read_are_not_taken_for_others():
    assert recognise(tensors_file(SHAPES)) == ""
    assert recognise(file_bytes([])) == ""
    for first in range(256):  # a header may have any length
        assert recognise(bytes([first]) + bytes(7) + b"{") == ""


READERS = {
    "gguf": load_llama,
    "safetensors": read_safetensors,
    "any": lambda path: open_tree(path, SHAPES),
}


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize(
    "name", ["weights.bin", "x.pt", "model.safetensors", "model.gguf", "README"]
)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_a_pickle_under_any_name(tmp_path, protocol, name, reader):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Bomb(), protocol=protocol))
    with pytest.raises(SpecError, match=r"is a pickle.*convert it to safetensors") as caught:
        READERS[reader](path)
    assert str(path) in str(caught.value)


def zip_bomb():
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data.pkl", "w", force_zip64=True) as entry,
    ):
        for _ in range(256):
            entry.write(bytes(1 << 20))
    return file.getvalue()


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("data.pkl"))
    return file.getvalue()


def npy():
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    return file.getvalue()


ARCHIVES = {
    "a zip archive": zip_bomb,
    "a gzip archive": lambda: gzip.compress(bytes(64 << 20)),
    "a tar archive": tar,
    "a NumPy file": npy,
    "an xz archive": lambda: b"\xfd7zXZ\0" + bytes(20),
    "a zstd archive": lambda: b"\x28\xb5\x2f\xfd" + bytes(20),
    "a bzip2 archive": lambda: b"BZh91AY&SY" + bytes(20),
    "an HDF5 file": lambda: b"\x89HDF\r\n\x1a\n" + bytes(20),
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_an_archive_is_refused_unopened(tmp_path, what):
    content = ARCHIVES[what]()
    for name in ("model.safetensors", "model.gguf"):
        path = tmp_path / name
        path.write_bytes(content)
        tracemalloc.start()
        for read in READERS.values():
            with pytest.raises(SpecError, match=f"is {what}.*convert it to safetensors"):
                read(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 1 << 20


def test_a_folder_of_pickles_says_so(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_of(TINY)))
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(pickle.dumps(Bomb(), protocol=0))
    with pytest.raises(SpecError, match=r"pytorch_model-00001-of-00002.bin' is a pickle.*convert"):
        load_huggingface(tmp_path)


def test_what_stands_for_json_is_not_opened_either(tmp_path):
    (tmp_path / "config.json").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(SpecError, match=r"config.json': config is no sound JSON"):
        load_huggingface(tmp_path)


def test_load_refuses_it_before_anything_is_placed(tmp_path, cluster):
    path = tmp_path / "weights"
    path.write_bytes(pickle.dumps(Bomb()))
    traced = gx.trace(lambda params, x: params["x"] * x, SHAPES, np.ones(3, np.float32))
    step = gx.compile(gx.plan(traced, cluster, cuts=1), traced)
    with step, pytest.raises(SpecError, match="is a pickle"):
        gx.load(path, plan=step)
