"""The generic pass: transformers' modules with linears, experts and attention replaced. It suits every base."""

from collections.abc import Sequence

import torch

from mint_engine.gpu.find import find_gpu_kernels, put_expert_products
from mint_engine.kernels.constants import MAX_RANK
from mint_engine.kernels.library import find_kernels
from mint_engine.model import attention, experts
from mint_engine.model.base import Base
from mint_engine.model.cache import Cache, LatentCache
from mint_engine.model.device import lists_on
from mint_engine.model.expert_lora import ExpertRows, plan_experts
from mint_engine.model.lora import Segment, merge_spans, sort_rows, with_adapters, work_items
from mint_engine.model.modules import CompiledRows, replace_modules
from mint_engine.model.paged import plan_attention
from mint_engine.model.span import Span
from mint_engine.parallel.group import Group
from mint_engine.parallel.sums import add_sums
from mint_engine.residency.slots import NO_SLOT, Slots


class Generic:
    """A base whose modules are replaced in place."""

    def __init__(
        self, base: Base, slots: Slots, cache: Cache, group: Group | None = None, *, gpu: bool = True
    ) -> None:
        """`group` is where this rank meets the others; everything else is then its share.

        `gpu=False` leaves out the kernels for GPUs.
        """
        self._base, self._slots, self._cache = base, slots, cache
        attention.register()
        base.model.set_attn_implementation(attention.NAME)
        self._routed = experts.route_shape(base.model) is not None
        if self._routed:
            experts.register()
            base.model.set_experts_implementation(experts.NAME)
        self._kernels = find_kernels(base.dtype, base.device) if slots.max_rank <= MAX_RANK else None
        latents = isinstance(cache, LatentCache)
        self._gpu = find_gpu_kernels(base.dtype, base.device, latents=latents) if gpu else None
        put_expert_products(base.model, use=self._gpu is not None)
        self._forms = set[int]()  # of kernels for GPUs that add adapters: those that have been launched
        self._group = group
        self._current = replace_modules(base.model, slots, group.share.experts if group else None)
        if group is not None:
            add_sums(base.model, group)
        # Models with sparse attention take the mask apart before they pass it on; nothing reads its values.
        sparse = getattr(base.config, "index_topk", None)
        self._masks = {"indexed_attention": torch.zeros(1, 1, 1, 1, device=base.device)} if sparse else None

    @property
    def name(self) -> str:
        """What computes: transformers' modules, and what of own kernels is in them."""
        return f"generic ({self._gpu.name})" if self._gpu is not None else "generic"

    @property
    def uses_gpu_kernels(self) -> bool:
        """Whether own kernels for GPUs compute in the modules."""
        return self._gpu is not None

    @property
    def rehearsals(self) -> Sequence[Sequence[tuple[int, int]]]:
        """Lengths and positions of steps' spans, for which other kernels are compiled than for a short prompt's."""
        sizes = self._cache.sizes if isinstance(self._cache, LatentCache) else None
        return self._gpu.rehearsals(sizes) if self._gpu is not None else ()

    def run(self, tokens: Sequence[int], spans: Sequence[Span], keep: Sequence[int]) -> torch.Tensor:
        """As `Forward.run`, in the base's dtype; with several ranks, only the first gets all of the logits."""
        device, current = self._base.device, self._current
        positions = [at for span in spans for at in range(span.position, span.position + span.length)]
        segments = merge_spans(spans)
        owners = self._owners(segments, len(tokens))
        numbers, places, kept, slots = lists_on(device, tokens, positions, keep, owners)
        try:
            self._plan_adapters(segments, len(tokens), slots if owners else None)
            if self._routed:
                current.routes = [] if self._cache.routes is not None else None
            current.paged = paged = plan_attention(spans, self._cache, device, self._gpu)
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
            current.rows = current.expert_rows = current.paged = current.routes = None
        logits: torch.Tensor = output.logits[0]
        return logits if self._group is None else self._group.gather(logits)

    def _owners(self, segments: Sequence[Segment], rows: int) -> list[int]:
        """Return each row's slot for kernels on a GPU; nothing if these need not be launched.

        If no row has an adapter, they are launched only to be compiled, by this base's first steps.
        """
        if self._gpu is None:
            return []
        form, tenants = self._gpu.form(rows), with_adapters(segments, self._slots)
        if form in self._forms and not tenants:
            return []
        self._forms.add(form)
        owners = [NO_SLOT] * rows
        for each in tenants:
            owners[each.start : each.start + each.length] = [each.slot] * each.length
        return owners

    def _plan_adapters(self, segments: Sequence[Segment], rows: int, owners: torch.Tensor | None) -> None:
        """Plan which adapters are added to a step's rows, and by what."""
        current = self._current
        if self._gpu is not None:
            if owners is not None:
                current.rows = self._gpu.rows(owners)
                if self._routed:
                    current.expert_rows = ExpertRows(owners, None, (), self._slots, None, self._gpu)
            return
        if self._kernels is None:
            current.rows = sort_rows(segments, self._slots)
        elif (items := work_items(segments, self._slots)).shape[0]:
            current.rows = CompiledRows(self._kernels, items)
        if self._routed:
            current.expert_rows = plan_experts(segments, rows, self._slots, self._kernels)
