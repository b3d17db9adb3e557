"""The generic pass: transformers' own modules with their linears and attention swapped. Right for every base."""

from collections.abc import Sequence

import torch

from mint_engine import attention
from mint_engine.attention import Span, plan_attention
from mint_engine.base import Base
from mint_engine.cache import KvCache
from mint_engine.lora import merge_spans, sort_rows
from mint_engine.modules import replace_modules
from mint_engine.slots import Slots


class Generic:
    """A base swapped in place."""

    name = "generic"

    def __init__(self, base: Base, slots: Slots, cache: KvCache) -> None:
        self._base, self._slots, self._cache = base, slots, cache
        attention.register()
        base.model.set_attn_implementation(attention.NAME)
        self._current = replace_modules(base.model, slots)

    def run(self, tokens: Sequence[int], spans: Sequence[Span], keep: Sequence[int]) -> torch.Tensor:
        """As `Forward.run`, in the base's dtype."""
        device = self._base.device
        positions = [at for span in spans for at in range(span.position, span.position + span.length)]
        self._current.rows = sort_rows(merge_spans(spans), self._slots)
        try:
            output = self._base.model(
                input_ids=torch.tensor([tokens], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
                logits_to_keep=torch.tensor(keep, dtype=torch.int64, device=device),
                paged=plan_attention(spans, self._cache, device),
            )
        finally:
            self._current.rows = None
        logits: torch.Tensor = output.logits[0]
        return logits
