"""The paged cache: what attention keeps of every request's tokens, layer by layer, in pages of 16 tokens.

Most bases keep keys and values. All of a layer's heads are adjacent in a page, keys before values, so that a past is
read in long runs. The pass that uses the cache decides how a head's 16 x D numbers are arranged within the page
(`mint_engine.kernels` keeps pairs together); `write` and `read` here are the generic pass's, token by token.

If some layers slide over a window, a page belongs to one group of layers, whose number L is the pool's first
dimension (`mint_contracts.layer_groups`); otherwise it belongs to all of them.

Bases with multi-head latent attention keep one row per token, from which all heads' keys and values are computed.

Letters in shapes: L layers of a page, K key/value heads, P pages (page 0 is the null page), D head size, T tokens,
W width of a token's row.
"""

import math
import time
from collections.abc import Sequence

import structlog
import torch

from mint_contracts.byte_counts import in_units
from mint_contracts.errors import CapacityExceeded
from mint_contracts.layer_groups import PAGE_TOKENS, STEP_TOKENS, LayerGroups, pages_for
from mint_engine.model.device import claiming, lists_on, zeros
from mint_engine.model.latent_sizes import LatentSizes
from mint_engine.model.routes import RouteCache
from mint_engine.residency.remapping import populate_zeros

FIELD = "kvCacheMemory"  # of the settings, which decides how large a cache is
PROBE_TOKENS = 40  # with which a pass is verified, in steps of fewer (see `reference`): they take pages too

_log = structlog.get_logger(__name__)


class _Pages:
    """The part of a cache that does not depend on what tokens leave in it: `pool` [L, P, ...], and tokens' routes."""

    def __init__(
        self, groups: LayerGroups, pages: int, page: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.groups = groups
        self.pages = pages
        shape = (groups.size, pages + 1, *page)
        with claiming(FIELD, f"of {in_units(math.prod(shape) * dtype.itemsize)}"):
            self.pool = zeros(shape, dtype, device)
        self.routes: RouteCache | None = None  # if they are kept

    def of(self, layer: int) -> torch.Tensor:
        """Return a layer's view of all pages, [P, ...]; only its group's pages are its own."""
        return self.pool[self.groups.places[layer][1]]

    @property
    def bytes(self) -> int:
        """Bytes of the cache, with its routes."""
        return self.pool.nbytes + (self.routes.pool.nbytes if self.routes is not None else 0)

    def bring_in(self) -> None:
        """Commit all of the cache's memory, on a CPU. Raises CapacityExceeded if the system does not have as much.

        It was committed on first writes before: then the layers' next large pages all came in one step, which took
        245 ms instead of 95 (SmolLM2-135M, 512 tokens, a virtual machine whose memory comes slowly).
        """
        if self.pool.device.type != "cpu":
            return
        began = time.perf_counter()
        with claiming(FIELD, f"of {in_units(self.bytes)}"):
            populate_zeros(self.pool.data_ptr(), self.pool.nbytes)
        _log.info("cache_in_memory", bytes=self.pool.nbytes, seconds=round(time.perf_counter() - began, 4))

    def wipe(self, pages: Sequence[int]) -> None:
        """Zero pages before a new request gets them.

        If attention reads complete pages, masked positions have weight zero, but zero times infinity is NaN: what an
        earlier request left behind must not reach the next one.
        """
        self.pool.index_fill_(1, lists_on(self.pool.device, pages)[0], 0)


class KvCache(_Pages):
    """Keys and values of all pages: `pool` [L, P, 2, K, 16, D]."""

    def __init__(
        self, groups: LayerGroups, heads: int, head_dim: int, pages: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(groups, pages, (2, heads, PAGE_TOKENS, head_dim), dtype, device)
        self.heads = heads
        self.head_dim = head_dim

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store keys and values [K, T, D] at token places `slots` [T] (page * 16 + offset)."""
        pages, within = slots // PAGE_TOKENS, slots % PAGE_TOKENS
        pool = self.of(layer)
        pool[pages, 0, :, within] = keys.transpose(0, 1)
        pool[pages, 1, :, within] = values.transpose(0, 1)

    def read(self, layer: int, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values [K, n * 16, D] of `pages` [n], page after page."""
        parts = torch.arange(2 * self.heads, device=pages.device)[:, None] + pages * (2 * self.heads)  # [2 K, n]
        heads = self.of(layer).view(-1, PAGE_TOKENS * self.head_dim)  # of every page, keys' before values'
        keys, values = heads.index_select(0, parts.flatten()).view(2, self.heads, -1, self.head_dim)
        return keys, values


class LatentCache(_Pages):
    """One row per token, layer and page: `pool` [L, P, 16, W].

    A row is the compressed latent of keys and values, then the rotated part of the key that all heads share, then the
    indexer's key if the base has one (DeepSeek-V2, arXiv 2405.04434, section 2.1; V3.2, arXiv 2512.02556).
    """

    def __init__(
        self, groups: LayerGroups, sizes: LatentSizes, pages: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(groups, pages, (PAGE_TOKENS, sizes.width), dtype, device)
        self.sizes = sizes
        self.width = sizes.width

    def write(self, layer: int, places: torch.Tensor, values: torch.Tensor, column: int) -> None:
        """Store values [T, w] at token places [T] (page * 16 + offset), from `column` of their rows on."""
        rows = self.of(layer).view(-1, self.width)
        rows[:, column : column + values.shape[1]].index_copy_(0, places, values.to(rows.dtype))

    def read(self, layer: int, pages: torch.Tensor) -> torch.Tensor:
        """Return rows [n * 16, W] of `pages` [n], page after page."""
        return self.of(layer).index_select(0, pages).view(-1, self.width)


Cache = KvCache | LatentCache


def count_pages(budget_bytes: int, page: int, context_length: int, groups: LayerGroups) -> int:
    """Return how many pages fit the budget. Raises CapacityExceeded if a longest request or the probe does not."""
    pages = budget_bytes // page - 1  # the null page
    tokens = max(context_length, PROBE_TOKENS)
    needed = max(groups.pages(tokens, STEP_TOKENS), len(groups.windows) * pages_for(PROBE_TOKENS))
    if pages < needed:
        shorter = " or lower contextLength" if context_length > PROBE_TOKENS else ""
        raise CapacityExceeded(
            FIELD,
            f"of {in_units(budget_bytes)} holds {max(pages, 0)} pages, but one request of {tokens} tokens needs "
            f"{needed}; give at least {(needed + 1) * page} bytes{shorter}",
        )
    return int(pages)
