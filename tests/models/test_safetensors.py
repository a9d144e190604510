"""The reader of safetensors: every dtype, and one fault at a time."""

import json
import pickle
import struct
import tracemalloc
import zipfile

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from gimlax.errors import GimlaxError, SpecError
from gimlax.models.safetensors import DTYPES, read_safetensors
from gimlax.runtime.workers.files import read_filed, where_filed
from tests.models.safetensors_files import entry, file_of, tensors_file

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture(name="write")
def write_fixture(tmp_path):
    def write(content, name="model.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def test_what_the_package_writes_is_read(write):
    tensors = {
        "a": ROWS,
        "b": ROWS.astype(np.float16)[:2],
        "c": np.array([True, False]),
        "d": np.array(7),
        "none": np.zeros((0, 3), np.int8),
    }
    file = read_safetensors(write(safetensors.numpy.save(tensors, {"made": "here"})))
    assert file.metadata == {"made": "here"}
    assert set(file.tensors) == set(tensors)
    for name, values in tensors.items():
        found = file.read(name)
        np.testing.assert_array_equal(found, values)
        assert (found.dtype, found.shape) == (values.dtype, values.shape)


WIDTHS = {name: dtype.itemsize for name, dtype in DTYPES.items() if name != "F4"}


@pytest.mark.parametrize("name", WIDTHS)
def test_every_dtype_is_read_bit_by_bit(write, name):
    size = WIDTHS[name]
    raw = bytes([0, 1]) if name == "BOOL" else bytes(range(2 * size))
    found = read_safetensors(write(file_of({"x": entry(name, [2], 0, 2 * size)}, raw))).read("x")
    assert found.dtype == DTYPES[name]
    assert found.tobytes() == raw


def test_bfloat16_and_float8_are_numbers(write):
    values = np.array([1.0, -2.5, 0.125])
    for name, dtype in (("BF16", ml_dtypes.bfloat16), ("F8_E4M3", ml_dtypes.float8_e4m3fn)):
        raw = values.astype(dtype).tobytes()
        file = read_safetensors(write(file_of({"x": entry(name, [3], 0, len(raw))}, raw)))
        np.testing.assert_array_equal(file.read("x").astype(np.float64), values)


def test_two_float4_lie_in_a_byte_the_first_in_its_lower_half(write):
    file = read_safetensors(write(file_of({"x": entry("F4", [2, 2], 0, 2)}, bytes([0x21, 0xF7]))))
    np.testing.assert_array_equal(file.read("x").astype(np.float32), [[0.5, 1.0], [6.0, -6.0]])


def test_reading_copies_nothing(write):
    path = write(tensors_file({"x": np.zeros(1 << 22, np.float32)}))
    tracemalloc.start()
    values = read_safetensors(path).read("x")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20
    assert not values.flags.writeable


def test_a_worker_can_read_a_tensor_by_itself(write):
    file = read_safetensors(
        write(tensors_file({"a": ROWS[:1], "b": ROWS.astype(ml_dtypes.bfloat16)}))
    )
    for name in file.tensors:
        where = where_filed(file.read(name))
        assert where is not None
        np.testing.assert_array_equal(read_filed(where), file.read(name))


ONE = {"x": entry("F32", [3], 0, 12)}
DATA = bytes(12)
REFUSED = {
    "empty": (b"", "it has 0 bytes"),
    "short": (b"1234567", "it has 7 bytes"),
    "length beyond the file": (file_of(ONE, DATA, length=1 << 40), "announced with 1099511627776"),
    "length beyond all": (
        file_of(ONE, DATA, length=(1 << 64) - 1),
        "with 18446744073709551615",
    ),
    "header cut": (file_of(ONE)[:30], "is announced with"),
    "no json": (file_of(b"{nothing", DATA), "no sound JSON"),
    "no text": (file_of(b'{"\xff": 1}', DATA), "no sound JSON"),
    "nan": (file_of(b'{"x": NaN}'), "NaN is no number"),
    "digits": (file_of(b'{"x": ' + b"9" * 5000 + b"}"), "no sound JSON"),
    "deep": (file_of(b'{"x": ' + b"[" * 100000 + b"]" * 100000 + b"}"), "nests too deep"),
    "list": (file_of(b"[]"), "header is a list"),
    "twice": (file_of(b'{"x": {}, "x": {}}'), "'x' occurs twice"),
    "metadata": (file_of({"__metadata__": {"a": 1}}), "other than strings"),
    "metadata is a list": (file_of({"__metadata__": []}), "other than strings"),
    "entry": (file_of({"x": 3}), "'x' is not described by"),
    "a field lacks": (file_of({"x": {"dtype": "F32", "shape": []}}), "'x' is not described by"),
    "a field more": (file_of({"x": ONE["x"] | {"more": 1}}, DATA), "'x' is not described by"),
    "dtype": (file_of({"x": entry("F33", [3], 0, 12)}, DATA), "dtype 'F33'; supported are BOOL"),
    "dtype is a list": (file_of({"x": entry([], [3], 0, 12)}, DATA), "of dtype"),
    "negative": (file_of({"x": entry("F32", [-3], 0, 12)}, DATA), "no list of sizes"),
    "fraction": (file_of({"x": entry("F32", [3.0], 0, 12)}, DATA), "no list of sizes"),
    "bool": (file_of({"x": entry("U8", [True], 0, 1)}, b"1"), "no list of sizes"),
    "many dims": (file_of({"x": entry("F32", [1] * 99, 0, 4)}, DATA[:4]), "no list of sizes"),
    "huge": (file_of({"x": entry("F32", [1 << 62, 1 << 62], 0, 12)}, DATA), "no list of sizes"),
    "too large": (file_of({"x": entry("F32", [1 << 50], 0, 12)}, DATA), "12 bytes are announced"),
    "overflow": (
        file_of({"x": entry("F32", [1 << 32, 1 << 30], 0, 0)}),
        "takes 147573952589676412928 bits",
    ),
    "half a byte": (file_of({"x": entry("F4", [3], 0, 2)}, b"12"), "takes 12 bits"),
    "offsets": (file_of({"x": entry("F32", [3], 12, 0)}, DATA), "no start and end"),
    "three offsets": (
        file_of({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12, 12]}}, DATA),
        "no start and end",
    ),
    "beyond": (file_of({"x": entry("F32", [3], 0, 12)}, DATA[:8]), "truncated or corrupt"),
    "overlap": (
        file_of({"x": entry("F32", [3], 0, 12), "y": entry("F32", [3], 8, 20)}, bytes(20)),
        "'y' at byte .* overlaps",
    ),
    "hole": (
        file_of({"x": entry("F32", [3], 0, 12), "y": entry("F32", [1], 16, 20)}, bytes(20)),
        "'y' at byte .* leaves a hole",
    ),
    "hole in front": (file_of({"x": entry("F32", [2], 4, 12)}, DATA), "'x' at byte .* a hole"),
    "rest": (file_of(ONE, bytes(16)), "tensors end at byte"),
    "gguf": (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "is a GGUF file.*load it as one"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5 file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_fault_is_named_with_the_file(write, name):
    content, words = REFUSED[name]
    path = write(content)
    with pytest.raises(SpecError, match=words) as caught:
        read_safetensors(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


class Bomb:
    """What a pickle may do when it is opened."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["model.safetensors", "weights.bin", "x.pt"])
def test_a_pickle_is_refused_by_its_first_bytes(write, protocol, name):
    with pytest.raises(SpecError, match=r"is a pickle.*convert it to safetensors"):
        read_safetensors(write(pickle.dumps(Bomb(), protocol=protocol), name))


def test_an_archive_is_refused_by_its_first_bytes(write, tmp_path):
    path = tmp_path / "model.safetensors"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (1 << 20))
    with pytest.raises(SpecError, match=r"is a zip archive.*convert it to safetensors"):
        read_safetensors(path)


def test_a_name_that_is_there_twice_among_many_is_found_at_once(write):
    many = ",".join(f'"{n}":{{}}' for n in range(100_000))
    path = write(file_of(f'{{{many},"99999":{{}}}}'.encode()))
    with pytest.raises(SpecError, match="'99999' occurs twice"):
        read_safetensors(path)


@pytest.mark.parametrize("length", [0x0280, 0x0480])
def test_a_header_whose_length_looks_like_a_pickle_is_none(write, length):
    text = json.dumps(ONE).encode()
    path = write(file_of(text + b" " * (length - len(text)), DATA))
    assert path.read_bytes()[0] == 0x80
    assert read_safetensors(path).read("x").shape == (3,)


@pytest.mark.parametrize("name", ["absent.safetensors", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(SpecError, match="cannot be read"):
        read_safetensors(tmp_path / name)


SOUND = tensors_file({"first": ROWS, "second": ROWS.astype(ml_dtypes.bfloat16)})
HEADER_BYTES = SOUND.index(b"}}") + 2


@st.composite
def mutated(draw):
    """The sound file with bytes of its header replaced, cut out, or put in."""
    content = bytearray(SOUND)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, HEADER_BYTES - 1))
        kind = draw(st.sampled_from(["byte", "digit", "cut", "insert", "truncate"]))
        if kind == "byte":
            content[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "digit":
            content[at : at + 1] = str(draw(st.integers(0, 1 << 70))).encode()
        elif kind == "cut":
            del content[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            content[at:at] = draw(st.sampled_from([b"{", b"[", b'"', b",", b"-", b"1e9", b"null"]))
        else:
            del content[at + 4 :]
    return bytes(content)


@hypothesis.given(mutated())
@hypothesis.settings(
    max_examples=400, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_a_mutated_file_is_read_or_refused_in_little_memory(write, content):
    path = write(content)
    tracemalloc.start()
    try:
        file = read_safetensors(path)
        assert sum(file.read(name).nbytes for name in file.tensors) <= 2 * len(content)
    except GimlaxError as error:
        assert isinstance(error, SpecError)
    finally:
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak_bytes < 8 << 20
