"""The generic pass: transformers' modules with linears, experts and attention replaced. It suits every base."""

from collections.abc import Sequence

import torch

from mint_engine.kernels.constants import ITEM_ROWS, MAX_RANK
from mint_engine.kernels.library import find_kernels
from mint_engine.model import attention, experts
from mint_engine.model.base import Base
from mint_engine.model.cache import Cache
from mint_engine.model.device import lists_on
from mint_engine.model.expert_lora import plan_experts
from mint_engine.model.lora import merge_spans, sort_rows, work_items
from mint_engine.model.modules import CompiledRows, replace_modules
from mint_engine.model.paged import Span, plan_attention
from mint_engine.parallel.group import Group
from mint_engine.parallel.sums import add_sums
from mint_engine.residency.slots import Slots


class Generic:
    """A base whose modules are replaced in place."""

    name = "generic"

    def __init__(self, base: Base, slots: Slots, cache: Cache, group: Group | None = None) -> None:
        """`group` is where this rank meets the others; everything else is then its share."""
        self._base, self._slots, self._cache = base, slots, cache
        attention.register()
        base.model.set_attn_implementation(attention.NAME)
        self._routed = experts.route_shape(base.model) is not None
        if self._routed:
            experts.register()
            base.model.set_experts_implementation(experts.NAME)
        self._kernels = find_kernels(base.dtype, base.device) if slots.max_rank <= MAX_RANK else None
        self._group = group
        self._current = replace_modules(base.model, slots, group.share.experts if group else None)
        if group is not None:
            add_sums(base.model, group)
        # Models with sparse attention take the mask apart before they pass it on; nothing reads its values.
        sparse = getattr(base.config, "index_topk", None)
        self._masks = {"indexed_attention": torch.zeros(1, 1, 1, 1, device=base.device)} if sparse else None

    def run(self, tokens: Sequence[int], spans: Sequence[Span], keep: Sequence[int]) -> torch.Tensor:
        """As `Forward.run`, in the base's dtype; with several ranks, only the first gets all of the logits."""
        device, current = self._base.device, self._current
        positions = [at for span in spans for at in range(span.position, span.position + span.length)]
        segments = merge_spans(spans)
        try:
            if self._kernels is None:
                current.rows = sort_rows(segments, self._slots)
            elif (items := work_items(segments, self._slots, ITEM_ROWS)).shape[0]:
                current.compiled = CompiledRows(self._kernels, items)
            if self._routed:
                current.expert_rows = plan_experts(segments, len(tokens), self._slots, self._kernels)
                current.routes = [] if self._cache.routes is not None else None
            current.paged = paged = plan_attention(spans, self._cache, device)
            numbers, places, kept = lists_on(device, tokens, positions, keep)
            output = self._base.model(
                input_ids=numbers[None],
                attention_mask=self._masks,
                position_ids=places[None],
                use_cache=False,
                logits_to_keep=kept,
                paged=current.paged,
            )
            if self._cache.routes is not None and current.routes is not None:
                self._cache.routes.write(paged.groups[0].places, current.routes)
        finally:
            current.rows = current.compiled = current.expert_rows = current.paged = current.routes = None
        logits: torch.Tensor = output.logits[0]
        return logits if self._group is None else self._group.gather(logits)
