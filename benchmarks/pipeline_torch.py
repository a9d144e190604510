"""The torch side of `pipeline.py`: `pipeline_torch.py PART CORES`.

SmolLM2-135M by its sizes, with random weights in float32. This process has the first stage, a part
of all half layers, and a child of it the second, each on one core with one thread; the whole model
is here as well. A line `["one" or "two", microbatches]` runs the one or the other.
"""

import functools
import os
import socket
import sys
import time
from typing import Any

import torch  # type: ignore[import-not-found]
import torch.distributed as dist  # type: ignore[import-not-found]
import torch.nn.functional as F  # type: ignore[import-not-found]
from children import serve
from torch import nn  # type: ignore[import-not-found]
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe  # type: ignore[import-not-found]

VOCAB, WIDTH, LAYERS, HEADS, KV_HEADS, SIZE, MLP = 49152, 576, 30, 9, 3, 64, 1536
THETA, LENGTH = 100000.0, 256


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH, eps=1e-5)
        linear = functools.partial(nn.Linear, bias=False)
        self.query = linear(WIDTH, HEADS * SIZE)
        self.key = linear(WIDTH, KV_HEADS * SIZE)
        self.value = linear(WIDTH, KV_HEADS * SIZE)
        self.output = linear(HEADS * SIZE, WIDTH)
        frequency = THETA ** (-torch.arange(SIZE // 2) / (SIZE // 2))
        angle = torch.arange(LENGTH)[:, None] * frequency
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def heads(of: nn.Linear) -> torch.Tensor:  # [batch, head, token, size]
            return of(normed).view(*x.shape[:2], -1, SIZE).transpose(1, 2)

        normed = self.norm(x)
        query, key = self._turned(heads(self.query)), self._turned(heads(self.key))
        mixed = F.scaled_dot_product_attention(
            query, key, heads(self.value), is_causal=True, enable_gqa=True
        )
        return x + self.output(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))

    def _turned(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        turned = first * self.cos - second * self.sin, second * self.cos + first * self.sin
        return torch.cat(turned, -1)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH, eps=1e-5)
        linear = functools.partial(nn.Linear, bias=False)
        self.gate, self.up = linear(WIDTH, MLP), linear(WIDTH, MLP)
        self.down = linear(MLP, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH, eps=1e-5)
        self.out = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(x[:, -1]))


def halves(part: float) -> list[nn.Sequential]:
    """Both stages."""
    made: list[nn.Module] = [nn.Embedding(VOCAB, WIDTH)]
    for _ in range(LAYERS):
        made += [Attention(), Mlp()]
    made.append(Head())
    cut = round(part * len(made))
    return [nn.Sequential(*made[:cut]).eval(), nn.Sequential(*made[cut:]).eval()]


def schedule(rank: int, module: nn.Module, count: int) -> ScheduleGPipe:
    tokens = torch.zeros(1, LENGTH, dtype=torch.int64)
    hidden = torch.zeros(1, LENGTH, WIDTH)
    stage = PipelineStage(
        module,
        rank,
        2,
        torch.device("cpu"),
        input_args=(tokens if rank == 0 else hidden,),
        output_args=(hidden if rank == 0 else torch.zeros(1, VOCAB),),
    )
    return ScheduleGPipe(stage, n_microbatches=count)


def begin(rank: int, part: float, core: int, port: int) -> list[nn.Sequential]:
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    return halves(part)


@torch.inference_mode()
def second(part: float, core: int, port: int) -> None:
    """The process of the second stage: is told numbers of microbatches until 0 comes."""
    module = begin(1, part, core, port)[1]
    schedules: dict[int, ScheduleGPipe] = {}
    while True:
        told: list[Any] = [None]
        dist.broadcast_object_list(told, 0)
        if not told[0]:
            return
        count = told[0]
        if count not in schedules:
            schedules[count] = schedule(1, module, count)
        schedules[count].step()
        dist.barrier()


@torch.inference_mode()
def main(part: float, cores: list[int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    context.Process(target=second, args=(part, cores[1], port), daemon=True).start()
    first, rest = begin(0, part, cores[0], port)
    whole = nn.Sequential(first, rest)
    schedules: dict[int, ScheduleGPipe] = {}

    def run(name: str, count: int) -> float:
        tokens = torch.randint(0, VOCAB, (count, LENGTH))
        if name == "one":
            start_s = time.perf_counter()
            for row in tokens.split(1):
                whole(row)
            return time.perf_counter() - start_s
        dist.broadcast_object_list([count], 0)
        if count not in schedules:
            schedules[count] = schedule(0, first, count)
        start_s = time.perf_counter()
        schedules[count].step(tokens)
        dist.barrier()  # the last microbatch is through the second stage
        return time.perf_counter() - start_s

    def answer(question: list[Any]) -> dict[str, float]:
        name, count = question
        if name == "two" and count not in schedules:
            run(name, count)  # the first one agrees on shapes
        return {"took_s": run(name, count)}

    run("one", 1)
    with torch.inference_mode():
        serve({"versions": f"torch {torch.__version__}"}, answer)


if __name__ == "__main__":
    main(float(sys.argv[1]), [int(core) for core in sys.argv[2].split(",")])
