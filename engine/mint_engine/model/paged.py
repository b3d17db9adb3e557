"""A step's attention plan: which rows go where in the paged cache, and which cached tokens each of them may see.

Letters in shapes: T tokens, B decoding requests, N cached tokens (padding included), P pages.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from mint_contracts.layer_groups import NULL_PAGE, PAGE_TOKENS, first_seen, pages_for
from mint_engine.model.cache import Cache, KvCache, LatentCache
from mint_engine.model.device import lists_on
from mint_engine.model.span import Span

if TYPE_CHECKING:
    from mint_engine.gpu.attend import Work
    from mint_engine.gpu.kernels import GpuKernels
    from mint_engine.gpu.latent import LatentWork

SCORES = 1 << 26  # computed at once: 256 MiB in float32, and enough work for any device
SHORT = 32  # pages: for shorter pasts, padding costs less than another round of kernels
READ_BYTES = 1 << 28  # of a layer's cache copied at once for decoding requests


@dataclass(frozen=True)
class Decodes:
    """Spans of one token whose pasts are all short, or differ in length by less than a factor of two."""

    rows: torch.Tensor  # [B]
    table: torch.Tensor  # [B * P], padded with the null page
    lengths: torch.Tensor  # [B]: cached tokens of each request, the new one included
    longest: int  # of the lengths
    slots: tuple[int, ...]  # of the rows
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def visible(self, window: int | None = None) -> torch.Tensor:
        """Which cached tokens each row may see, [B, N] bool: all, or the last `window`."""
        if window not in self._masks:
            at = torch.arange(self.table.shape[0] // self.rows.shape[0] * PAGE_TOKENS, device=self.rows.device)[None]
            seen = at < self.lengths[:, None]
            self._masks[window] = seen if window is None else seen & (at >= self.lengths[:, None] - window)
        return self._masks[window]


@dataclass(frozen=True)
class Chunk:
    """One span of several tokens."""

    start: int
    stop: int
    position: int  # of its first token, counted from its first page
    pages: torch.Tensor  # [P]
    slot: int
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """Cached tokens of its request after it is computed."""
        return self.position + self.stop - self.start

    def visible(self, window: int | None = None) -> torch.Tensor:
        """Which cached tokens each of its tokens may see, [T, N] bool."""
        if window not in self._masks:
            queries = torch.arange(self.position, self.end, device=self.pages.device)[:, None]
            at = torch.arange(self.pages.shape[0] * PAGE_TOKENS, device=self.pages.device)[None]
            seen = at <= queries
            self._masks[window] = seen if window is None else seen & (at > queries - window)
        return self._masks[window]


@dataclass(frozen=True)
class PagedAttention:
    """One step's plan for a group of layers, made once and used by each of them.

    If these layers see only a window, pasts begin at its first page.
    """

    cache: Cache
    places: torch.Tensor  # [T]: where each token's part of the cache goes
    decodes: tuple[Decodes, ...]
    chunks: tuple[Chunk, ...]
    work: "Work | None" = None  # replaces both if own kernels for GPUs attend
    latents: "LatentWork | None" = None  # likewise over latents, but for chunks that are expanded
    sorted: dict[tuple[int, ...], Any] = field(default_factory=dict)  # rows by the slots of their owners, see latent


@dataclass(frozen=True)
class Paged:
    """One step's plan."""

    cache: Cache
    groups: tuple[PagedAttention, ...]

    def of(self, layer: int) -> PagedAttention:
        """Return the plan of a layer's group."""
        return self.groups[self.cache.groups.places[layer][0]]

    def window(self, layer: int) -> int | None:
        """How far back the cache keeps a layer's past; None: all of it."""
        return self.cache.groups.windows[self.cache.groups.places[layer][0]]


def plan_attention(
    spans: Sequence[Span], cache: Cache, device: torch.device, kernels: "GpuKernels | None" = None
) -> Paged:
    """Plan a step's attention; the spans cover its rows in order. With `kernels`, these attend, not plain torch."""
    seen = ([_seen(each, at, window) for each in spans] for at, window in enumerate(cache.groups.windows))
    return Paged(cache, tuple(_plan_group(each, cache, device, kernels) for each in seen))


def _seen(span: Span, group: int, window: int | None) -> Span:
    """Return a span as a group of layers sees it, from the first page of its window on."""
    pages = span.others[group - 1] if group else span.pages
    first = first_seen(span.position, window)
    if not first:
        return span if not group else replace(span, pages=pages)
    return replace(span, position=span.position - first * PAGE_TOKENS, pages=pages[first:])


def _plan_group(
    spans: Sequence[Span], cache: Cache, device: torch.device, kernels: "GpuKernels | None"
) -> PagedAttention:
    places = [
        span.pages[at // PAGE_TOKENS] * PAGE_TOKENS + at % PAGE_TOKENS
        for span in spans
        for at in range(span.position, span.position + span.length)
    ]
    if kernels is not None and isinstance(cache, KvCache):
        found, *work = lists_on(device, places, *kernels.lists(spans))
        return PagedAttention(cache, found, (), (), kernels.work(work))
    if kernels is not None and isinstance(cache, LatentCache):
        return _plan_latents(spans, places, cache, device, kernels)
    singles = [span for span in spans if span.length == 1]
    groups = list(_alike(singles, READ_BYTES // cache.pool[0, 0].nbytes))
    chunks = [span for span in spans if span.length > 1]
    lists = [places, *(each for group in groups for each in _decode_lists(group)), *map(_chunk_pages, chunks)]
    first, *others = lists_on(device, *lists)
    given = iter(others)
    return PagedAttention(
        cache=cache,
        places=first,
        decodes=tuple(_decodes(group, next(given), next(given), next(given)) for group in groups),
        chunks=_chunks(chunks, given),
    )


def _plan_latents(
    spans: Sequence[Span], places: Sequence[int], cache: LatentCache, device: torch.device, kernels: "GpuKernels"
) -> PagedAttention:
    """Plan kernels for all rows but those of long chunks that attend to all that they see: these are expanded."""
    sizes = cache.sizes
    chosen = {span.row for span in spans if sizes.chooses(span.position + span.length)}
    absorbed = [span for span in spans if span.row in chosen or sizes.absorbs(span.length)]
    expanded = [span for span in spans if span.row not in chosen and not sizes.absorbs(span.length)]
    plan = kernels.plan_latents(absorbed, sizes, whole=not expanded)
    first, *others = lists_on(device, places, *map(_chunk_pages, expanded), *plan.lists)
    given = iter(others)
    chunks = _chunks(expanded, given)
    return PagedAttention(cache, first, (), chunks, latents=plan.work(list(given)) if absorbed else None)


def _chunks(spans: Sequence[Span], pages: Iterator[torch.Tensor]) -> tuple[Chunk, ...]:
    return tuple(Chunk(span.row, span.row + span.length, span.position, next(pages), span.slot) for span in spans)


def tiles(rows: int, each: int) -> Iterator[slice]:
    """Split rows into consecutive slices of at most `SCORES` scores, if each row has `each`."""
    step = max(1, SCORES // each)
    return (slice(at, min(at + step, rows)) for at in range(0, rows, step))


def _alike(spans: Sequence[Span], most: int) -> Iterator[list[Span]]:
    """Group spans by length, so that one long request does not cost the others its length.

    Short pasts share groups; the others are never padded to twice their pages. No group reads more than `most` pages,
    padding included, unless one request alone does: pages that several requests share are read for each of them.
    """
    groups = defaultdict[int, list[Span]](list)
    for span in spans:
        groups[max(pages_for(span.position + 1), SHORT - 1).bit_length()].append(span)
    for group in groups.values():
        step = max(1, most // max(pages_for(span.position + 1) for span in group))
        yield from (group[at : at + step] for at in range(0, len(group), step))


def _decode_lists(spans: Sequence[Span]) -> tuple[list[int], list[int], list[int]]:
    """See `Decodes`: rows, table and lengths."""
    widest = pages_for(max(span.position + 1 for span in spans))
    table = []
    for span in spans:
        used = list(span.pages[: pages_for(span.position + 1)])
        table += used + [NULL_PAGE] * (widest - len(used))
    return [span.row for span in spans], table, [span.position + 1 for span in spans]


def _decodes(spans: Sequence[Span], rows: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor) -> Decodes:
    longest = max(span.position + 1 for span in spans)
    return Decodes(rows, table, lengths, longest, tuple(span.slot for span in spans))


def _chunk_pages(span: Span) -> Sequence[int]:
    return span.pages[: pages_for(span.position + span.length)]
