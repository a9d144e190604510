"""The header reader on sound files, on one fault at a time, and on files mutated at random."""

import os
import struct
import tracemalloc

import gguf
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from gimlax.errors import GimlaxError, SpecError
from gimlax.models import load_chat_template, load_llama, load_tokenizer, read_gguf
from tests.models.gguf_files import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    TINY,
    TYPE_F16,
    TYPE_F32,
    TYPE_Q8_0,
    U32,
    U64,
    field,
    file_bytes,
    llama_file,
    string,
    tensor_info,
)


@pytest.fixture(name="write")
def write_fixture(tmp_path):
    def write(content):
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_and_tensors_come_back_as_written(write, version):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    halves = np.array([1.5, -2, 0.25], np.float16)
    content = file_bytes(
        [
            field("a.int", U32, 7),
            field("a.float", F32, 0.5),
            field("a.bool", BOOL, True),
            field("a.text", STRING, "Grüße"),
            field("a.numbers", ARRAY, (I32, [3, -4])),
            field("a.texts", ARRAY, (STRING, ["x", ""])),
            field("a.nested", ARRAY, (ARRAY, [(STRING, ["deep"]), (STRING, [])])),
        ],
        [tensor_info("one", (3, 2), TYPE_F32, 0), tensor_info("two", (3,), TYPE_F16, 32)],
        values.tobytes().ljust(32, b"\0") + halves.tobytes(),
        version=version,
    )
    file = read_gguf(write(content))
    numbers = file.metadata["a.numbers"]
    assert numbers.tolist() == [3, -4]
    assert {**file.metadata, "a.numbers": None} == {
        "a.int": 7,
        "a.float": 0.5,
        "a.bool": True,
        "a.text": "Grüße",
        "a.numbers": None,
        "a.texts": ("x", ""),
        "a.nested": (("deep",), ()),
    }
    assert {name: info.shape for name, info in file.tensors.items()} == {"one": (2, 3), "two": (3,)}
    np.testing.assert_array_equal(file.dequantize("one"), values)
    np.testing.assert_array_equal(file.dequantize("two"), halves.astype(np.float32))
    assert file.dequantize("one", "bfloat16").dtype.name == "bfloat16"


def test_the_packages_own_writer_is_understood(tmp_path):
    path = tmp_path / "model.gguf"
    values = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(99)
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(path)
    assert file.metadata["llama.context_length"] == 99
    assert file.tensors["packed"].shape == (4, 64)
    np.testing.assert_array_equal(
        file.dequantize("packed"), gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    )


def test_an_announced_array_of_2_to_the_60_costs_nothing(write):
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("general.tags")
    content = (head + struct.pack("<IIQ", ARRAY, U64, 1 << 60)).ljust(65, b"\0")
    assert len(content) == 65
    path = write(content)
    tracemalloc.start()
    try:
        with pytest.raises(SpecError, match=f"general.tags.*{1 << 60}|{1 << 60}.*general.tags"):
            read_gguf(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


def one_tensor(name="t", dims=(4,), kind=TYPE_F32, offset=0, data=b"\0" * 64, fields=()):
    return file_bytes(list(fields), [tensor_info(name, dims, kind, offset)], data)


two = [tensor_info("a", (4,), TYPE_F32, 0), tensor_info("b", (4,), TYPE_F32, 0)]
nested = (U32, [1])
for _ in range(5):
    nested = (ARRAY, [nested])

FAULTS = {
    "empty": (b"", "is empty"),
    "magic": (b"GGML" + bytes(60), "starts with b'GGML'"),
    "version 1": (file_bytes([], version=1), "version is 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version is 50331648.*little-endian"),
    "only magic": (b"GGUF", "version at byte 4 needs 4 bytes and 0 are left"),
    "tensors": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 50, 0), f"{1 << 50} tensors"),
    "keys": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 50), f"{1 << 50} metadata keys"),
    "duplicate key": (file_bytes([field("k", U32, 1)] * 2), "'k' occurs twice"),
    "key length": (file_bytes([field("k" * 65536, U32, 1)]), "65536 bytes, at most 65535"),
    "value type": (file_bytes([string("k") + struct.pack("<IQ", 13, 0)]), "'k' has value type 13"),
    "bool": (file_bytes([string("k") + struct.pack("<IB", BOOL, 2)]), "'k' at byte .* is 2"),
    "bools": (
        file_bytes([string("k") + struct.pack("<IIQB", ARRAY, BOOL, 1, 7)]),
        "bools other than 0 and 1",
    ),
    "text": (file_bytes([field("k", STRING, b"\xff\xfe")]), "'k' at byte .* is not UTF-8"),
    "text length": (
        file_bytes([string("k") + struct.pack("<IQ", STRING, 1 << 62)]),
        f"'k' at byte .* needs {1 << 62} bytes",
    ),
    "texts": (
        file_bytes([string("k") + struct.pack("<IIQ", ARRAY, STRING, 1 << 40)]),
        f"{1 << 40} elements of metadata key 'k'",
    ),
    "depth": (file_bytes([field("k", ARRAY, nested)]), "'k' nests arrays more than 4 deep"),
    "alignment": (
        one_tensor(fields=[field("general.alignment", U32, 48)]),
        "general.alignment is 48",
    ),
    "alignment type": (
        one_tensor(fields=[field("general.alignment", STRING, "32")]),
        "general.alignment is '32'",
    ),
    "duplicate tensor": (file_bytes([], [two[0]] * 2, b"\0" * 64), "tensor 'a' occurs twice"),
    "overlap": (file_bytes([], two, b"\0" * 64), "tensors 'a' and 'b' overlap"),
    "beyond the end": (one_tensor(dims=(17,)), "tensor 't' ends at byte"),
    "offset": (one_tensor(offset=1 << 40), "tensor 't' ends at byte"),
    "unaligned": (one_tensor(offset=8), "offset 8, no multiple of 32"),
    "no dims": (one_tensor(dims=()), "'t' has 0 dims"),
    "five dims": (one_tensor(dims=(1,) * 5), "'t' has 5 dims"),
    "empty dim": (one_tensor(dims=(4, 0)), r"'t' has shape \(0, 4\)"),
    "huge dims": (one_tensor(dims=(1 << 62,) * 4), "tensor 't' ends at byte"),
    "block": (one_tensor(dims=(33,), kind=TYPE_Q8_0), "rows of 33 numbers.*32.*Q8_0"),
    "quantisation": (one_tensor(kind=4), "'t' has the unsupported quantisation type 4"),
    "table cut": (one_tensor()[:50], "offset of tensor 't' at byte .* needs 8 bytes"),
    "far apart": (
        file_bytes([], [two[0], tensor_info("b", (4,), TYPE_F32, 1 << 62)], b"\0" * 64),
        "tensor 'b' ends at byte",
    ),
    "offset of all bits": (one_tensor(offset=(1 << 64) - 32), "tensor 't' ends at byte"),
    "element type": (
        file_bytes([string("k") + struct.pack("<IIQ", ARRAY, 99, 1) + bytes(8)]),
        "'k' has value type 99",
    ),
    "numbers": (
        file_bytes([string("k") + struct.pack("<IIQ", ARRAY, U64, 1 << 61)]),
        f"{1 << 61} elements of metadata key 'k'",
    ),
    "arrays": (
        file_bytes([string("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1 << 40)]),
        f"{1 << 40} elements of metadata key 'k'",
    ),
    "long key": (file_bytes([field("k" * 60000, U32, 1)] * 2), "'k{200}' occurs twice"),
    "alignment too large": (
        one_tensor(fields=[field("general.alignment", U32, 1 << 21)]),
        "general.alignment is 2097152",
    ),
    "split": (
        one_tensor(fields=[field("split.count", STRING, b"\xc3")]),
        "'split.count' at byte .* is not UTF-8",
    ),
    "safetensors": (struct.pack("<Q", 2) + b"{}", "starts with b'.x02.x00.x00.x00'"),
    "tensor name": (one_tensor(name="n" * 257), "257 bytes, at most 256"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(write, fault):
    content, words = FAULTS[fault]
    path = write(content)
    with pytest.raises(SpecError, match=words) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"nowhere.gguf.*No such file"):
        read_gguf(tmp_path / "nowhere.gguf")
    with pytest.raises(SpecError, match=r"cannot be read"):
        read_gguf(tmp_path)


def test_a_quantisation_without_dequantiser_is_named(write):
    file = read_gguf(write(one_tensor(kind=24, dims=(32,))))  # I8
    with pytest.raises(SpecError, match=r"'t' is quantised as I8.*supported are .*F16.*Q4_1"):
        file.dequantize("t")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_numbers_that_are_not_finite_are_refused(write, dtype):
    number = {"float32": float("nan"), "float16": 1e30}[dtype]
    file = read_gguf(write(one_tensor(data=struct.pack("<4f", 1, number, 2, 3))))
    with pytest.raises(SpecError, match=f"'t' .F32. holds values.* not finite in {dtype}"):
        file.dequantize("t", dtype)


def test_a_field_of_another_type_is_named(write):
    file = read_gguf(write(file_bytes([field("k", STRING, "7"), field("b", BOOL, True)])))
    with pytest.raises(SpecError, match=r"'k' is a str, needed is a int"):
        file.field("k", int)
    with pytest.raises(SpecError, match=r"'b' is a bool, needed is a int"):
        file.field("b", int)
    with pytest.raises(SpecError, match=r"no metadata key 'absent'"):
        file.field("absent", int)
    assert file.field("absent", int, 3) == 3


def read_everything(path):
    """Opens a model file as a user does; whatever is wrong with it must be a SpecError."""
    file = read_gguf(path)
    tokenizer = load_tokenizer(file)
    tokenizer.decode(tokenizer.encode("hello world"))
    load_chat_template(file).render([{"role": "user", "content": "hello"}])
    load_llama(file)


SOUND = llama_file()
HEADER_BYTES = SOUND.index(b"<tool>") + 3500  # mutations beyond it only change weights
NUMBERS = st.sampled_from([0, 1, 2, 255, 1 << 31, (1 << 32) - 1, 1 << 60, (1 << 64) - 1])


@st.composite
def mutated(draw):
    """The sound file with a few bytes, or whole numbers, replaced, cut out, or put in."""
    content = bytearray(SOUND)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, min(HEADER_BYTES, len(content)) - 1))
        kind = draw(st.sampled_from(["byte", "uint32", "uint64", "cut", "insert", "truncate"]))
        if kind == "byte":
            content[at] = draw(st.integers(0, 255))
        elif kind == "uint32":
            content[at : at + 4] = struct.pack("<I", draw(NUMBERS) % (1 << 32))
        elif kind == "uint64":
            content[at : at + 8] = struct.pack("<Q", draw(NUMBERS))
        elif kind == "cut":
            del content[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=40))
        else:
            del content[at + 4 :]
        if not content:
            break
    return bytes(content)


def test_the_file_that_is_mutated_is_sound(write):
    read_everything(write(SOUND))


@hypothesis.given(mutated())
@hypothesis.settings(
    max_examples=400, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_a_mutated_file_is_read_or_refused_in_little_memory(write, content):
    path = write(content)
    tracemalloc.start()
    try:
        read_everything(path)
    except GimlaxError as error:
        assert isinstance(error, SpecError)
    finally:
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak_bytes < 16 << 20


@hypothesis.given(st.binary(max_size=200))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_bytes_behind_the_magic_are_read_or_refused(write, tail):
    path = write(b"GGUF" + struct.pack("<I", 3) + tail)
    try:
        read_gguf(path)
    except GimlaxError as error:
        assert isinstance(error, SpecError)


def test_a_file_that_is_written_into_is_not_read_again(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(llama_file(TINY))
    file = read_gguf(path)
    name = next(iter(file.tensors))
    file.dequantize(name)
    os.utime(path, ns=(0, 1))
    with pytest.raises(SpecError, match=f"was changed after it was opened, and '{name}'"):
        file.dequantize(name)
