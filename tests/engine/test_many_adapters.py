"""Ten thousand adapters, one after another and 64 at a time, through one engine: every answer right, memory flat."""

import asyncio
import ctypes
import gc
import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mint_contracts.source import Source
from mint_engine.adapters import mapped, packed_file
from mint_engine.adapters.packed import Packed, fingerprint, lay_out
from mint_engine.residency.slots import Slots
from mint_engine.sources.fetch import PACKED
from tests.engine.in_process import Engine, engine_of
from tests.engine.running import save_base

ADAPTERS, SLOTS, AT_ONCE = 10_000, 64, 96
DOWN = "model.layers.0.mlp.down_proj"
PROMPT = (5, 17, 42)
# Each tier but the last holds a few hundred adapters of a few kilobytes each.
HOST_BYTES, DISK_BYTES = 3 << 20, 6 << 20
PART = 2_000
# What each part may leave behind, as noise. A kept adapter takes more than ten Python objects, so the limit catches
# 30 of 2,000 kept; for bytes without objects, it catches one in fifteen.
MOST_OBJECTS, MOST_HEAP, MOST_FILES = 300, 200 << 10, 8


@dataclass(frozen=True)
class Many:
    """Random adapters of rank 4 over the last module of a one-layer base, and what each must answer."""

    a: torch.Tensor  # [N, 4, in]
    b: torch.Tensor  # [N, 4, out]
    scores: torch.Tensor  # [N, V], log-probabilities after the prompt


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(
        tmp_path_factory.mktemp("base"), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip


@torch.inference_mode()
def make_many(base: Path) -> Many:
    """Compute all answers at once: adapters only change what comes after the part they have in common."""
    draw = torch.Generator().manual_seed(11)
    a, b = torch.randn(ADAPTERS, 4, 64, generator=draw), torch.randn(ADAPTERS, 4, 32, generator=draw) * 0.2
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    seen: dict[str, torch.Tensor] = {}
    model.get_submodule(DOWN).register_forward_hook(lambda _, ins, out: seen.update(x=ins[0], y=out))
    model.model.norm.register_forward_hook(lambda _, ins, __: seen.update(h=ins[0]))
    model(input_ids=torch.tensor([PROMPT]))
    delta = torch.einsum("nro,nri,i->no", b, a, seen["x"][0, -1])
    hidden = model.model.norm(seen["h"][0, -1] + delta)
    return Many(a, b, torch.log_softmax(model.lm_head(hidden), -1))


def write_store(many: Many, slots: Slots, folder: Path) -> None:
    layout = lay_out(slots.modules, {DOWN: 4})
    config = b'{"lora_alpha":4,"peft_type":"LORA","r":4,"target_modules":["down_proj"]}'
    for index in range(ADAPTERS):
        run = torch.cat([many.a[index].flatten(), many.b[index].flatten()])
        header = packed_file.describe(config, fingerprint(slots.modules), layout, (1.0,), run)
        (folder / f"a{index}").mkdir(parents=True)
        with (folder / f"a{index}" / PACKED).open("wb") as file:
            packed_file.write(Packed(header, run), file)


class _Heap(ctypes.Structure):
    """glibc's mallinfo2, over all arenas."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


@dataclass(frozen=True)
class Usage:
    """Exactly what a process has in use; resident memory would include the allocators' reserves."""

    heap: int  # allocated bytes, tensors included
    objects: int  # small blocks of Python's allocator
    files: int  # open files

    @classmethod
    def now(cls) -> "Usage":
        gc.collect()
        libc = ctypes.CDLL(None)
        libc.mallinfo2.restype = _Heap
        found = libc.mallinfo2()
        return cls(found.uordblks + found.hblkhd, sys.getallocatedblocks(), len(os.listdir("/proc/self/fd")))

    def less(self, before: "Usage") -> "Usage":
        """What has come into use since `before`."""
        return Usage(self.heap - before.heap, self.objects - before.objects, self.files - before.files)


async def test_ten_thousand_adapters_pass_through_64_slots(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "VERIFIED", mapped.HEADERS)  # by default it remembers more files than there are here
    many, store = make_many(base), tmp_path / "store"
    wrong: list[int] = []

    async def client(engine: Engine, left: Iterator[int]) -> None:
        for index in left:
            told = await engine.ask(f"a{index}", PROMPT, 1)
            truth, score = many.scores[index], told.scores[0]
            if abs(float(truth[told.tokens[0]]) - score) > 1e-3 or score < float(truth.max()) - 1e-3:
                wrong.append(index)

    async def ask_all(engine: Engine, indices: range) -> Usage:
        left = iter(indices)
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(client(engine, left))
        engine.residency.check()
        return Usage.now()

    async with engine_of(
        base, tmp_path, slots=SLOTS, max_rank=4, store=Source(f"file://{store}"), host=HOST_BYTES, disk=DISK_BYTES,
        slot_wait_s=60,
    ) as engine:  # fmt: skip
        await asyncio.to_thread(write_store, many, engine.slots, store)
        used = [await ask_all(engine, range(first, first + PART)) for first in range(0, ADAPTERS, PART)]
        # For each measure, the part that left least counts: a leak appears in every part, but a table that doubles or
        # a thread that starts, because of any earlier test, does not.
        left = [after.less(before) for before, after in itertools.pairwise(used)]
        assert min(each.objects for each in left) < MOST_OBJECTS
        assert min(each.heap for each in left) < MOST_HEAP
        assert min(each.files for each in left) < MOST_FILES
        books = engine.residency.books
        assert not wrong
        assert books.disk.ledger.used <= DISK_BYTES
        assert sum(path.stat().st_size for path in (tmp_path / "disk").iterdir()) == books.disk.ledger.used
        assert books.host.ledger.used <= HOST_BYTES
        assert len(books.copies) <= len(books.host.ledger) + SLOTS, "what left memory is forgotten"
        assert len(engine.residency.report()) == len(books.copies)
        for index in (0, 5000, ADAPTERS - 1):
            again = await engine.ask(f"a{index}", PROMPT, 1)
            assert again.scores[0] == pytest.approx(float(many.scores[index].max()), abs=1e-3)
    assert len(set(many.scores.argmax(-1).tolist())) > 20, "the adapters do answer differently"
