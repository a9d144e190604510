"""The llama.cpp side of `pipeline.py`: `pipeline_llama.py GGUF PART CORES`.

The file is widened to float32 first. "one" has the model in this process on one core with one
thread, "two" over RPC in two processes of one core and one thread each, its layers split as told. A
line `["one" or "two", microbatches]` reads that many times 256 tokens of one sequence in one call.
With CORE ADDRESS as arguments it is such an RPC server.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import llama_cpp  # type: ignore[import-not-found]
import numpy as np
from children import serve

LENGTH, MOST = 256, 8
LIBRARIES = Path(str(llama_cpp.__file__)).parent / "lib"


def library(name: str) -> Any:
    """One of those that llama.cpp consists of."""
    return ctypes.CDLL(str(LIBRARIES / f"lib{name}.so"))


def serve_rpc(core: int, address: str) -> None:
    """An RPC server on one core with one thread."""
    os.sched_setaffinity(0, {core})
    find = library("ggml").ggml_backend_dev_by_name
    find.restype = ctypes.c_void_p
    device = ctypes.c_void_p(find(b"CPU"))
    library("ggml-rpc").ggml_backend_rpc_start_server(
        address.encode(), None, ctypes.c_size_t(1), ctypes.c_size_t(1), ctypes.byref(device)
    )
    raise RuntimeError("the RPC server has ended")


def add_servers(addresses: list[str]) -> None:
    """From now on models of this process may lie there."""
    add = library("ggml-rpc").ggml_backend_rpc_add_server
    add.restype = ctypes.c_void_p
    for address in addresses:
        library("ggml").ggml_backend_register(ctypes.c_void_p(add(address.encode())))


def widen(source: str, target: str) -> None:
    """Copies a GGUF file with all its numbers in float32."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    kept = [
        field
        for field in reader.fields.values()
        if not field.name.startswith("GGUF.")
        and field.name not in ("general.architecture", "general.file_type")
    ]
    for field in kept:
        of = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=of)
    for tensor in reader.tensors:
        wide = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, wide.reshape(tensor.shape[::-1]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Model:
    """A model and how long it takes to read."""

    def __init__(self, path: str, split: tuple[float, ...]) -> None:
        """`split` are the shares of the servers, empty for this process."""
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 999 if split else 0
        self._shares = (ctypes.c_float * 128)(*split)
        if split:
            params.tensor_split = ctypes.cast(self._shares, type(params.tensor_split))
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = MOST * LENGTH
        options.n_ubatch = LENGTH
        options.n_threads = options.n_threads_batch = 1
        self._context = llama_cpp.llama_init_from_model(self._model, options)

    def read(self, count: int) -> float:
        """Seconds until the logits of the last token are there."""
        memory = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_clear(memory, True)
        numbers = np.random.default_rng(0).integers(0, 49152, count * LENGTH)
        tokens = (llama_cpp.llama_token * len(numbers))(*numbers.tolist())
        start_s = time.perf_counter()
        batch = llama_cpp.llama_batch_get_one(tokens, len(numbers))
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        took_s = time.perf_counter() - start_s
        assert np.isfinite(logits[0])
        return took_s


def start_server(core: int) -> str:
    """The address of a new RPC server; it ends with this process, whatever ends that."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    subprocess.Popen(
        [sys.executable, __file__, str(core), address],
        stdout=2,
        preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL),
    )
    until_s = time.monotonic() + 30
    while time.monotonic() < until_s:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return address
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the RPC server of core {core} does not listen")


def main(source: str, part: float, cores: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.gguf")
        widen(source, path)
        os.sched_setaffinity(0, {cores[0]})
        models = {"one": Model(path, ())}
        models["one"].read(1)
        os.sched_setaffinity(0, cores)
        add_servers([start_server(core) for core in cores])
        models["two"] = Model(path, (part, 1 - part))
        models["two"].read(1)
        package = "llama-cpp-python"
        serve(
            {"versions": f"{package} {metadata.version(package)}"},
            lambda question: {"took_s": models[question[0]].read(question[1])},
        )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        serve_rpc(int(sys.argv[1]), sys.argv[2])
    main(sys.argv[1], float(sys.argv[2]), [int(core) for core in sys.argv[3].split(",")])
