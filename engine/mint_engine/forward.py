"""One forward pass over a packed batch: the base's own modules, with adapters and the paged cache put in."""

import itertools
from collections.abc import Sequence

import torch

from mint_contracts.errors import UnsupportedBase
from mint_engine import attention
from mint_engine.attention import Span, plan_attention
from mint_engine.base import Base
from mint_engine.cache import KvCache
from mint_engine.lora import Segment, sort_rows
from mint_engine.modules import replace_modules
from mint_engine.pages import pages_for
from mint_engine.slots import NO_SLOT, Slots

_PROBE_TOKENS = 40
# Largest difference of logits between the packed pass and transformers' own, relative to their norm: rounding alone.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


class Forward:
    """A base with its linears and attention swapped. Owned by the step thread once it is made."""

    def __init__(self, base: Base, slots: Slots, cache: KvCache) -> None:
        """Swap, and prove on a short prompt that nothing changed. Raises UnsupportedBase where it did."""
        self.base = base
        self.slots = slots
        self.cache = cache
        expected = self._reference()
        attention.register()
        base.model.set_attn_implementation(attention.NAME)
        self._current = replace_modules(base.model, slots)
        self._verify(expected)

    @torch.inference_mode()
    def run(self, tokens: Sequence[int], spans: Sequence[Span], keep: Sequence[int]) -> torch.Tensor:
        """Compute every span; returns float32 logits [len(keep), V] of the batch's rows in `keep`.

        `spans` cover `tokens` in order; spans of one slot lie side by side.
        """
        device = self.base.device
        positions = [at for span in spans for at in range(span.position, span.position + span.length)]
        self._current.rows = sort_rows(_segments(spans), self.slots)
        try:
            output = self.base.model(
                input_ids=torch.tensor([tokens], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
                logits_to_keep=torch.tensor(keep, dtype=torch.int64, device=device),
                paged=plan_attention(spans, self.cache, device),
            )
        finally:
            self._current.rows = None
        logits: torch.Tensor = output.logits[0].float()
        return logits

    def _probe(self) -> list[int]:
        return [(7 * at + 1) % self.base.vocab_size for at in range(_PROBE_TOKENS)]

    @torch.inference_mode()
    def _reference(self) -> torch.Tensor:
        """transformers' own logits of the probe, before anything is swapped. [T, V]"""
        tokens = torch.tensor([self._probe()], device=self.base.device)
        logits: torch.Tensor = self.base.model(input_ids=tokens, use_cache=False).logits[0].float()
        return logits

    def _verify(self, expected: torch.Tensor) -> None:
        """The probe in two chunks and a single token must give the same logits."""
        tokens, pages = self._probe(), list(range(1, pages_for(_PROBE_TOKENS) + 1))
        cuts = (0, _PROBE_TOKENS // 3, _PROBE_TOKENS - 1, _PROBE_TOKENS)
        parts = []
        for start, stop in itertools.pairwise(cuts):
            span = Span(row=0, length=stop - start, position=start, pages=pages, slot=NO_SLOT)
            parts.append(self.run(tokens[start:stop], [span], range(stop - start)))
        self.cache.wipe(pages)
        difference = (torch.cat(parts) - expected).norm() / expected.norm()
        if not difference <= _TOLERANCE[self.base.dtype]:
            raise UnsupportedBase(
                self.base.architecture,
                f"computes other logits with a paged cache than without (relative difference {difference:.3g}); "
                "its attention needs something that is not served",
            )


def _segments(spans: Sequence[Span]) -> list[Segment]:
    """Neighbouring spans of one slot as one segment."""
    merged: list[Segment] = []
    for span in spans:
        if merged and merged[-1].slot == span.slot:
            merged[-1] = Segment(merged[-1].start, merged[-1].length + span.length, span.slot)
        else:
            merged.append(Segment(span.row, span.length, span.slot))
    return merged
