"""Runs in a process of its own: 20,000 files that are nearly sound through both readers, as JSON.

A case is built from the parts of a sound file, some of which are changed as that part could be:
a count, an offset, a type, a name, a nesting; or bytes are cut, doubled or swapped. The same seed
makes the same files. What is measured is processor time of the slowest case, since others use this
machine too, and the most memory that the process ever had.
"""

import gc
import json
import random
import resource
import struct
import sys
import time
from pathlib import Path

from gimlax.errors import SpecError
from gimlax.models.gguf import read_gguf
from gimlax.models.llama_gguf import llama_config, load_llama
from gimlax.models.safetensors import DTYPES, read_safetensors
from tests.models.gguf_files import (
    ARRAY,
    STRING,
    TINY,
    U32,
    field,
    file_bytes,
    float_tensors,
    llama_fields,
    llama_tensors,
    string,
    tokenizer_fields,
)
from tests.models.safetensors_files import entry, file_of

HUGE = [0, 1, 2, 7, 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]
NAMES = ["", "x", "blk.0.attn_q.weight", "a" * 300, "\0", "é" * 40, "__metadata__", "../x"]


def gguf_parts():
    infos, data = float_tensors(llama_tensors(TINY)[0])
    short = [of for of in tokenizer_fields() if len(of) < 1000]
    return llama_fields(TINY) + short, infos, data


FIELDS, INFOS, DATA = gguf_parts()


def changed_number(draw, part):
    """A part of a file in which some number of 4 or 8 bytes is another one."""
    part = bytearray(part)
    width = draw.choice((4, 8))
    at = draw.randrange(max(1, len(part) - width + 1))
    number = draw.choice(HUGE) % (1 << 8 * width)
    part[at : at + width] = number.to_bytes(width, "little")
    return bytes(part)


def array_of(draw, depth):
    """An array value of arrays, whose lengths may be lies."""
    if depth == 0:
        kind = draw.choice([0, 4, 7, 8, 9, 10, 12, 13, 1 << 31])
        return struct.pack("<IQ", kind, draw.choice(HUGE)) + draw.randbytes(draw.randrange(20))
    inner = b"".join(array_of(draw, depth - 1) for _ in range(draw.randrange(4)))
    return struct.pack("<IQ", ARRAY, draw.choice([1, 2, 3, draw.choice(HUGE)])) + inner


def gguf_case(draw):
    fields, infos, data = list(FIELDS), list(INFOS), DATA
    version, alignment = 3, 32
    for _ in range(draw.randint(0, 3)):
        parts = draw.choice((fields, infos))
        at = draw.randrange(len(parts)) if parts else 0
        match draw.randrange(12):
            case 0 if parts:
                parts[at] = changed_number(draw, parts[at])
            case 1 if parts:
                del parts[at]
            case 2 if parts:
                parts.insert(draw.randrange(len(parts) + 1), parts[at])
            case 3:
                fields.append(
                    string(draw.choice(NAMES))
                    + struct.pack("<I", ARRAY)
                    + array_of(draw, draw.randrange(7))
                )
            case 4:
                name = draw.choice(NAMES)
                num_dims = draw.choice((0, 1, 2, 3, 4, 5, 99))
                dims = [draw.choice((*HUGE, 16, 32, 256)) for _ in range(num_dims)]
                kind, offset = draw.choice((*range(42), 1 << 31)), draw.choice((*HUGE, 32, 64))
                packed = struct.pack("<I", num_dims) + b"".join(struct.pack("<Q", d) for d in dims)
                infos.append(string(name) + packed + struct.pack("<IQ", kind, offset))
            case 5:
                fields.append(
                    field("general.alignment", U32, draw.choice((0, 1, 8, 48, 64, 1 << 21)))
                )
            case 6:
                draw.shuffle(parts)
            case 7:
                data = data[: draw.randrange(len(data) + 1)]
            case 8:
                version = draw.choice((0, 1, 2, 3, 4, 1 << 24))
            case 9:
                fields.append(field(draw.choice(NAMES), STRING, draw.randbytes(30)))
            case 10:
                alignment = draw.choice((1, 8, 32, 64))
            case _:
                key, kind = draw.choice(("llama.block_count", "llama.attention.head_count")), U32
                fields.append(field(key, kind, draw.choice(HUGE) % (1 << 32)))
    content = file_bytes(fields, infos, data, version=version, alignment=alignment)
    return torn(draw, content)


def torn(draw, content):
    """Sometimes some bytes of it are changed, cut out, doubled, or the rest is missing."""
    at = draw.randrange(len(content))
    match draw.randrange(10):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + draw.randbytes(4) + content[at + 4 :]
        case 2:
            return content[:at] + content[at + draw.randint(1, 40) :]
        case 3:
            return content[:at] + content[max(0, at - 40) : at] + content[at:]
    return content


def odd_value(draw, depth=0):
    """Any JSON value, of the kinds that a header has, and others."""
    odd = [None, True, -1, 0, 1.5, 1e300, 10**40, "F32", "", [], {}, [1, 2], {"a": 1}, *HUGE]
    if depth < 3 and draw.random() < 0.3:
        return [odd_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return draw.choice(odd)


def safetensors_case(draw):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for number in range(draw.randint(1, 6)):
        dtype = draw.choice(list(DTYPES))
        shape = [draw.choice((0, 1, 2, 4, 6)) for _ in range(draw.randrange(4))]
        bits = 4 if dtype == "F4" else 8 * DTYPES[dtype].itemsize
        for side in shape:
            bits *= side
        raw = draw.randbytes(bits // 8)
        raw = bytes(b & 1 for b in raw) if dtype == "BOOL" else raw
        header[f"t{number}"] = entry(dtype, shape, len(data), len(data) + len(raw))
        data += raw
    for _ in range(draw.randint(0, 3)):
        name = draw.choice(list(header))
        of = header[name]
        match draw.randrange(9):
            case 0:
                of[draw.choice(("dtype", "shape", "data_offsets"))] = odd_value(draw)
            case 1:
                of.pop(draw.choice(list(of)), None) if of else None
            case 2:
                header[draw.choice(NAMES)] = odd_value(draw)
            case 3 if "shape" in of and isinstance(of["shape"], list):
                of["shape"].append(draw.choice(HUGE))
            case 4 if isinstance(of.get("data_offsets"), list) and of["data_offsets"]:
                where = draw.randrange(len(of["data_offsets"]))
                of["data_offsets"][where] = draw.choice(HUGE)
            case 5:
                of[draw.choice(NAMES)] = odd_value(draw)
            case 6:
                data = data[: draw.randrange(len(data) + 1)]
            case 7:
                data += draw.randbytes(draw.randint(1, 8))
            case _:
                header[draw.choice(NAMES)] = dict(of)
        header = {
            key: value if isinstance(value, dict) else {"v": value} for key, value in header.items()
        }
    text = json.dumps(header).encode()
    if draw.random() < 0.1:
        text = text.replace(b"[", b"[" * draw.choice((2, 50, 3000)), 1)
    length = draw.choice(HUGE) if draw.random() < 0.05 else None
    return torn(draw, file_of(text, data, length=length))


def read_all_gguf(path, number):
    file = read_gguf(path)
    for name in file.tensors:
        file.dequantize(name)
    llama_config(file)
    if number % 8 == 0:  # flax takes longer than all else
        load_llama(file)


def read_all_safetensors(path, number):
    file = read_safetensors(path)
    for name in file.tensors:
        file.read(name).tobytes()


READERS = {
    "gguf": (gguf_case, read_all_gguf),
    "safetensors": (safetensors_case, read_all_safetensors),
}


def spent_s(path, number, read, outcomes):
    start_s = time.process_time()
    try:
        read(path, number)
        outcome = "read"
    except SpecError:
        outcome = "refused"
    outcomes[outcome] += 1
    return time.process_time() - start_s


def most_resident_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    path, num_cases, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    found = {}
    for name, (make, read) in READERS.items():
        outcomes, slowest_s, slowest = {"read": 0, "refused": 0}, 0.0, None
        base_bytes = None
        for number in range(num_cases):
            content = make(random.Random(f"{seed} {name} {number}"))
            path.write_bytes(content)
            try:
                took_s = spent_s(path, number, read, outcomes)
                if took_s > 0.01:  # the machine may have hiccuped
                    gc.collect()
                    took_s = min(
                        took_s, *(spent_s(path, number, read, dict(outcomes)) for _ in range(3))
                    )
            except Exception as error:
                kept = path.with_name(f"{name}-{number}")
                kept.write_bytes(content)
                raise RuntimeError(f"case {number} of {name}, kept as {kept}") from error
            if took_s > slowest_s:
                slowest_s, slowest = took_s, number
            if number == 200:  # what both readers need once is there
                base_bytes = most_resident_bytes()
        grown_bytes = most_resident_bytes() - (base_bytes or 0)
        found[name] = {
            **outcomes,
            "slowest_s": slowest_s,
            "slowest": slowest,
            "grown_bytes": grown_bytes,
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
