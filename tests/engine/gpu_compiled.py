"""Compiles the kernels for a GPU that is not here, as they are launched.

    python -m tests.engine.gpu_compiled 90 bfloat16

Prints a line of JSON for each launch: at which element of another tensor the step's lists begin, the program's name
and key, the shared memory that it needs in bytes, whether it uses tensor cores.
Run where Triton compiles, so not in the process of tests, which have it interpret.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from mint_engine.adapters.adapter import Module
from mint_engine.gpu.attend import TOKENS, Work
from mint_engine.gpu.experts import FEW as FEW_ROWS
from mint_engine.gpu.experts import MANY, ExpertProduct
from mint_engine.gpu.latent import LatentWork
from mint_engine.gpu.lora import FEW, GpuRows
from mint_engine.kernels.expert_structs import Codes, Kind, Stack
from mint_engine.model.attention_style import Style
from mint_engine.residency.slots import Slots

CPU = torch.device("cpu")
# Query heads, key heads and head size: of Llama's kind, Gemma's, Falcon's, and wider ones.
HEADS = ((32, 8, 128), (8, 1, 256), (71, 1, 64), (4, 1, 512))
# Of latent attention: query heads, as on one GPU and on each of eight; latent and rotated size; an indexer's key and
# heads, and how many tokens it chooses, which is none in DeepSeek-V3.
LATENTS = ((128, 512, 64, 0, 0, 0), (16, 512, 64, 0, 0, 0), (128, 512, 64, 128, 64, 2048))
# Of quantised experts: their number, outputs and inputs; codes; outputs and inputs that share a scale; its type. They
# are those of DeepSeek-V3, Kimi-K2-Thinking, gpt-oss and NVIDIA's bases in NVFP4.
EXPERTS = (
    ((256, 2048, 7168), Kind.E4M3, (128, 128), torch.float32),
    ((384, 2048, 7168), Kind.INT4, (1, 32), torch.bfloat16),
    ((128, 5760, 2880), Kind.E2M1, (1, 32), torch.uint8),
    ((256, 7168, 2048), Kind.E2M1, (1, 16), torch.float8_e4m3fn),
)


class Target:
    """Stands for the driver of a GPU that is not here."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


@contextmanager
def compiling(capability: int) -> Iterator[list[Any]]:
    """Launches compile and go no further; gives what was compiled."""
    compiled, run = list[Any](), JITFunction.run

    def only_compile(self: Any, *args: Any, warmup: bool, **options: Any) -> None:
        del warmup
        compiled.append((self.__name__, run(self, *args, warmup=True, **options)))

    driver.set_active(Target(capability))
    with patch.object(JITFunction, "run", only_compile):
        yield compiled


def launch_all(dtype: torch.dtype, first: int) -> None:
    """Launch them with lists that begin at the `first` element of another tensor; steps have other lengths too."""

    def numbers(count: int) -> torch.Tensor:
        return torch.zeros(first + count, dtype=torch.int64)[first:]

    modules = {"plain": Module("plain", 4096, 1024), "stack": Module("stack", 2048, 768, experts=2)}
    for max_rank in (8, 256):
        slots = Slots(modules, 2, max_rank, dtype, CPU)
        slots.parts = torch.zeros((2, 2, 3), dtype=torch.int64)
        for count in (FEW, FEW + 1):
            owners = numbers(count)
            for module, rows in ((0, GpuRows(owners)), (1, GpuRows(owners, owners))):
                width, height = slots.shapes[module]
                x, y = (torch.zeros(count, size, dtype=dtype) for size in (width, height))
                rows.add(y, x, slots, module)
    chunks, once, twice = numbers(5).view(-1, 5), numbers(5).view(-1, 5), numbers(10).view(-1, 5)
    for queries, keys, size in HEADS:
        query = torch.zeros((1, queries, size), dtype=dtype).transpose(0, 1)
        pool, sinks = torch.zeros((1, 2, keys, 16, size), dtype=dtype), torch.zeros(queries, dtype=dtype)
        for decodes, style in ((once, Style(0.1, None, None, None)), (twice, Style(0.1, 128, 30.0, sinks))):
            work = Work(chunks, decodes, numbers(3).view(-1, 3), numbers(1))
            work.attend(query, torch.empty_like(query), pool, style)
    tokens, longest = TOKENS - first, 1 + 15 * first  # numbers for which Triton would compile other programs
    for queries, latent, rotated, index, heads, most in LATENTS:
        pool = torch.zeros((1, 16, latent + rotated + index), dtype=dtype)
        query = torch.zeros((1, queries, latent + rotated), dtype=dtype)
        for decodes in (once, twice):
            lists = decodes, numbers(3).view(-1, 3), numbers(1), numbers(2).view(-1, 2)
            latents = LatentWork(None, (), chunks, tokens, *lists, runs=())
            latents.attend(query, pool, latent, 0.1, torch.zeros((1, most), dtype=torch.int32) if most else None)
            if most:
                asked, weights = torch.zeros((1, heads, index), dtype=dtype), torch.zeros(1, heads)
                latents.score(asked, weights, pool, latent + rotated, slice(None), longest)


def launch_products(dtype: torch.dtype, rows: int) -> None:
    """Launch the products with quantised experts, of so many rows."""
    for shape, kind, block, scale in EXPERTS:
        product, ends = product_of(shape, kind, block, scale), torch.zeros(shape[0], dtype=torch.int32)
        for tile in (FEW_ROWS, MANY):
            product.multiply(torch.zeros(rows, shape[2], dtype=dtype), ends, tile)
        product.multiply_back(torch.zeros(rows, shape[1], dtype=dtype), ends, MANY)


def product_of(shape: tuple[int, int, int], kind: Kind, block: tuple[int, int], scale: torch.dtype) -> ExpertProduct:
    """The product with experts of that shape, which take no memory."""
    experts, outputs, inputs = shape
    width = inputs // 2 if kind in (Kind.E2M1, Kind.INT4) else inputs
    codes = torch.zeros(1, dtype=torch.uint8).expand(experts, outputs, width)
    scales = torch.zeros(experts, outputs // block[0], inputs // block[1], dtype=scale)
    factors = torch.zeros(experts) if scale == torch.float8_e4m3fn else None
    product = ExpertProduct.of(Stack(torch.Size(shape), None, (Codes(kind, codes, scales, block, factors),)))
    assert product is not None
    return product


def main(capability: str, dtype: str) -> None:
    for first in (0, 1):
        with compiling(int(capability)) as compiled:
            launch_all(getattr(torch, dtype), first)
            launch_products(getattr(torch, dtype), 1 + first)
        for name, kernel in compiled:
            told = {"first": first, "name": name, "key": kernel.hash, "shared": kernel.metadata.shared}
            sys.stdout.write(json.dumps(told | {"tensor_cores": "mma" in kernel.asm["ptx"]}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
