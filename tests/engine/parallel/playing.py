"""Engines of one rank and of several over the same base, and what they compute turn by turn."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mint_contracts.layer_groups import pages_for
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.packed import Packed
from mint_engine.build import build
from mint_engine.model.forward import Forward
from mint_engine.model.span import Span
from mint_engine.residency.slots import NO_SLOT, Slots
from mint_engine.scheduling.generation import Generation
from mint_engine.scheduling.scheduler import Limits
from tests.engine.families import span
from tests.engine.made import Delta, pack
from tests.engine.parallel.nodes import other_nodes
from tests.engine.running import settings_for

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


@contextmanager
def built(base: Path, ranks: int, limits: Limits | None = None, nodes: int = 1) -> Iterator[tuple[Slots, Generation]]:
    settings = settings_for(base, dtype="float32", tensor_parallel_size=ranks, nodes=nodes)
    with other_nodes(settings) as group:
        _, slots, generation = build(settings, base, limits or Limits(), endpoint=group.endpoint)
        try:
            yield slots, generation
        finally:
            generation.close()


def draw_adapter(slots: Slots, rank: int) -> Packed:
    """An adapter on every linear of the layers: attention, indexer, networks, shared and routed experts."""
    draw = torch.Generator().manual_seed(rank)

    def delta(module: Module) -> Delta:
        stacked = (module.experts,) if module.experts else ()
        a = torch.randn(*stacked, rank, module.in_features, generator=draw) * 0.15
        return Delta(a, torch.randn(*stacked, module.out_features, rank, generator=draw) * 0.15, 2.0)

    return pack(slots.modules, {path: delta(module) for path, module in slots.modules.items()}, slots.dtype)


def play(forward: Forward, turns: list[Turn], span_of: Callable[..., Span] = span) -> torch.Tensor:
    """Every turn's logits: each sequence gets its next tokens, all in one batch."""
    draw = random.Random(1)
    texts = [[draw.randrange(forward.base.vocab_size) for _ in range(200)] for _ in range(4)]
    tables = [list(range(1 + 10 * n, 11 + 10 * n)) for n in range(4)]
    done, found = [0] * 4, []
    for turn in turns:
        tokens: list[int] = []
        spans = []
        for who, count, slot in turn:
            pages = tables[who][: pages_for(done[who] + count)]
            spans.append(span_of(forward.cache, len(tokens), count, done[who], pages, slot))
            tokens += texts[who][done[who] : done[who] + count]
            done[who] += count
        found.append(forward.run(tokens, spans, range(len(tokens))).to(torch.float32, copy=True))
    return torch.cat(found)
