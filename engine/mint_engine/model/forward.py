"""One forward pass over a packed batch: lean where base and machine allow it, generic otherwise; proven first."""

import itertools
from collections.abc import Sequence

import structlog
import torch

from mint_contracts.errors import UnsupportedBase
from mint_engine.kernels.library import find_kernels
from mint_engine.model.base import Base
from mint_engine.model.cache import Cache, KvCache
from mint_engine.model.generic import Generic
from mint_engine.model.lean import Lean
from mint_engine.model.lean_layers import Unlike, read_llama
from mint_engine.model.paged import Span
from mint_engine.residency.slots import NO_SLOT, Slots
from mint_engine.scheduling.pages import PAGE_TOKENS, pages_for

_PROBE_TOKENS = 40
# Largest difference of logits between the packed pass and transformers' own, relative to their norm: rounding alone.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}

_log = structlog.get_logger(__name__)


class Forward:
    """A base ready to serve. Owned by the step thread once it is made."""

    def __init__(self, base: Base, slots: Slots, cache: Cache, *, lean: bool = True) -> None:
        """Choose the pass and prove on a short prompt that it computes what transformers does.

        `lean=False` takes the generic pass whatever the base. Raises UnsupportedBase where that is not right either.
        """
        self.base = base
        self.slots = slots
        self.cache = cache
        expected = self._reference()
        found = self._lean() if lean else None
        self._pass: Lean | Generic = found or Generic(base, slots, cache)
        difference = self._difference(expected)
        if found is not None and not difference <= _TOLERANCE[base.dtype]:
            _log.warning("lean_pass_differs", architecture=base.architecture, difference=difference)
            self._pass = Generic(base, slots, cache)
            difference = self._difference(expected)
        if not difference <= _TOLERANCE[base.dtype]:
            raise UnsupportedBase(
                base.architecture,
                f"computes other logits with a paged cache than without (relative difference {difference:.3g}); "
                "its attention needs something that is not served",
            )
        _log.info("pass_chosen", architecture=base.architecture, compute=self.compute, difference=difference)

    @property
    def compute(self) -> str:
        """Which pass computes, e.g. "lean (avx512_bf16)" or "generic"."""
        return self._pass.name

    @torch.inference_mode()
    def run(self, tokens: Sequence[int], spans: Sequence[Span], keep: Sequence[int]) -> torch.Tensor:
        """Compute every span; returns logits [len(keep), V], in the base's dtype, of the batch's rows in `keep`.

        `spans` cover `tokens` in order; spans of one slot lie side by side.
        """
        return self._pass.run(tokens, spans, keep)

    def _lean(self) -> Lean | None:
        kernels = find_kernels(self.base.dtype, self.base.device)
        if kernels is None:
            _log.info("lean_pass_unavailable", why="no compiled kernels for this machine, device or dtype")
            return None
        positions = min(self.cache.pages * PAGE_TOKENS, self.base.context_length or self.cache.pages * PAGE_TOKENS)
        try:
            llama = read_llama(self.base, self.slots, kernels, positions)
        except Unlike as why:
            _log.info("lean_pass_unavailable", architecture=self.base.architecture, why=str(why))
            return None
        if not isinstance(self.cache, KvCache):
            return None
        return Lean(llama, kernels, self.slots, self.cache)

    def _probe(self) -> list[int]:
        return [(7 * at + 1) % self.base.vocab_size for at in range(_PROBE_TOKENS)]

    @torch.inference_mode()
    def _reference(self) -> torch.Tensor:
        """transformers' own logits of the probe, before anything is swapped. [T, V]"""
        tokens = torch.tensor([self._probe()], device=self.base.device)
        logits: torch.Tensor = self.base.model(input_ids=tokens, use_cache=False).logits[0].float()
        return logits

    def _difference(self, expected: torch.Tensor) -> float:
        """How far the probe's logits, in two chunks and a single token, are from the expected ones."""
        tokens, pages = self._probe(), list(range(1, pages_for(_PROBE_TOKENS) + 1))
        cuts = (0, _PROBE_TOKENS // 3, _PROBE_TOKENS - 1, _PROBE_TOKENS)
        parts = []
        for start, stop in itertools.pairwise(cuts):
            span = Span(row=0, length=stop - start, position=start, pages=pages, slot=NO_SLOT)
            parts.append(self.run(tokens[start:stop], [span], range(stop - start)).float())
        self.cache.wipe(pages)
        return float((torch.cat(parts) - expected).norm() / expected.norm())
