"""Sequences over a paged cache, computed turn by turn: chunks of prompts, single tokens, several at once."""

import random

import torch

from mint_contracts.layer_groups import pages_for
from mint_engine.model.forward import Forward
from tests.engine.families import span

LENGTH = 45
# In each turn: (sequence, number of tokens) for long and short chunks, single tokens, several sequences per step.
TURNS = [
    [(0, 20), (1, 33)], [(0, 1), (1, 1), (2, 37)], [(3, 1)], [(0, 2), (1, 1), (2, 1), (3, 30)],
    [(0, 22), (1, 10), (2, 7), (3, 14)],
]  # fmt: skip


def text(who: int) -> list[int]:
    draw = random.Random(who)
    return [draw.randrange(2, 96) for _ in range(LENGTH)]


def play(forward: Forward, turns: list[list[tuple[int, int]]], slots: list[int]) -> list[torch.Tensor]:
    """Return each sequence's logits, computed turn by turn over pages of its own."""
    count = pages_for(LENGTH)
    tables = [list(range(1 + count * who, 1 + count * (who + 1))) for who in range(len(slots))]
    done = [0] * len(slots)
    found: list[list[torch.Tensor]] = [[] for _ in slots]
    for turn in turns:
        tokens: list[int] = []
        spans, starts = [], []
        for who, length in sorted(turn, key=lambda each: slots[each[0]]):
            pages = tables[who][: pages_for(done[who] + length)]
            spans.append(span(forward.cache, len(tokens), length, done[who], pages, slots[who]))
            starts.append((who, len(tokens), length))
            tokens += text(who)[done[who] : done[who] + length]
            done[who] += length
        logits = forward.run(tokens, spans, range(len(tokens))).to(torch.float32, copy=True)
        for who, start, length in starts:
            found[who].append(logits[start : start + length])
    return [torch.cat(parts) if parts else torch.empty(0) for parts in found]
