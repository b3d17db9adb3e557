"""An engine of several ranks answers as one of a single rank does: real processes, one memory in which they meet."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mint_engine.build import build
from mint_engine.model.paged import Span
from mint_engine.residency.slots import NO_SLOT, Slots
from mint_engine.scheduling.generation import Generation
from mint_engine.scheduling.pages import pages_for
from mint_engine.scheduling.scheduler import Limits
from tests.engine.running import packed, save_adapter, save_base, settings_for

Turn = list[tuple[int, int, int]]  # sequence, tokens, slot
# Prompts in chunks, rows that decode, the bare base and adapters, alone and mixed.
TURNS: list[Turn] = [
    [(0, 20, NO_SLOT)],
    [(1, 33, 0)],
    [(0, 1, NO_SLOT), (1, 1, 0), (2, 50, 1)],
    [(3, 1, 1)],
    [(0, 5, NO_SLOT), (1, 1, 0), (2, 1, 1), (3, 40, 1)],
    [(0, 1, NO_SLOT), (1, 1, 0), (2, 1, 1), (3, 1, 1)],
]
SHAPES: dict[str, dict[str, Any]] = {
    "uneven heads": {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32},
    "one key/value head for both": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32},
}


@contextmanager
def built(base: Path, dtype: str, ranks: int) -> Iterator[tuple[Slots, Generation]]:
    settings = settings_for(base, dtype=dtype, tensor_parallel_size=ranks)
    _, slots, generation = build(settings, base, Limits())
    try:
        yield slots, generation
    finally:
        generation.close()


def play(generation: Generation, turns: list[Turn], vocabulary: int) -> torch.Tensor:
    """Every turn's logits: each sequence gets so many of its tokens more, all in one batch."""
    draw = random.Random(1)
    texts = [[draw.randrange(vocabulary) for _ in range(200)] for _ in range(4)]
    tables = [list(range(1 + 10 * n, 11 + 10 * n)) for n in range(4)]
    done, found = [0] * 4, []
    for turn in turns:
        tokens: list[int] = []
        spans = []
        for who, count, slot in turn:
            spans.append(Span(len(tokens), count, done[who], tables[who][: pages_for(done[who] + count)], slot))
            tokens += texts[who][done[who] : done[who] + count]
            done[who] += count
        found.append(generation._forward.run(tokens, spans, range(len(tokens))).to(torch.float32, copy=True))
    return torch.cat(found)


@pytest.mark.parametrize(
    ("shape", "dtype", "tolerance"),
    [
        ("uneven heads", "float32", 1e-5),
        ("uneven heads", "bfloat16", 0.04),
        ("one key/value head for both", "float32", 1e-5),
    ],
)
def test_two_ranks_compute_what_one_does(shape: str, dtype: str, tolerance: float, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", hidden_size=96, **SHAPES[shape])
    adapters = [save_adapter(base, tmp_path / f"r{rank}", rank=rank) for rank in (4, 9)]
    found = []
    for ranks in (1, 2):
        with built(base, dtype, ranks) as (slots, generation):
            assert generation.compute.startswith("lean")
            vocabulary = generation._forward.base.vocab_size
            for slot, folder in enumerate(adapters):
                slots.load(slot, packed(folder, slots))
            mixed = play(generation, TURNS, vocabulary)
            slots.load(0, packed(adapters[1], slots))  # in place of another
            slots.clear(1)
            found.append(torch.cat([mixed, play(generation, TURNS, vocabulary)]))
    one, two = found
    assert (two - one).norm() / one.norm() < tolerance
    if dtype == "float32":
        assert torch.equal(two.argmax(-1), one.argmax(-1))
