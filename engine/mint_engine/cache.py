"""The paged KV cache: keys and values of every request, layer by layer, in pages of 16 tokens.

Letters in shapes: L layers, K key/value heads, P pages (page 0 is the null page), D head size, T tokens.
"""

from collections.abc import Sequence

import torch

from mint_contracts.errors import CapacityExceeded
from mint_engine.device import zeros
from mint_engine.pages import PAGE_TOKENS


class KvCache:
    """Keys and values [L, K, P, 16, D] each. One head's tokens of a page lie together, to be gathered whole."""

    def __init__(
        self, layers: int, heads: int, head_dim: int, pages: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (layers, heads, pages + 1, PAGE_TOKENS, head_dim)
        self.heads = heads
        self.head_dim = head_dim
        self.pages = pages
        self.keys = zeros(shape, dtype, device)
        self.values = zeros(shape, dtype, device)

    @property
    def bytes(self) -> int:
        """Bytes of the whole cache."""
        return self.keys.nbytes + self.values.nbytes

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store keys and values [K, T, D] at token places `slots` [T] (page * 16 + offset)."""
        self.keys[layer].view(self.heads, -1, self.head_dim).index_copy_(1, slots, keys)
        self.values[layer].view(self.heads, -1, self.head_dim).index_copy_(1, slots, values)

    def read(self, layer: int, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [K, n * 16, D] of `pages` [n], page after page."""
        return self._pages_of(self.keys[layer], pages), self._pages_of(self.values[layer], pages)

    def wipe(self, pages: Sequence[int]) -> None:
        """Zero pages before a new request has them.

        Masked positions weigh nothing in attention, but nothing times infinity is NaN: what a former request left
        behind must not reach the next one.
        """
        index = torch.tensor(pages, dtype=torch.int64, device=self.values.device)
        self.keys.index_fill_(2, index, 0)
        self.values.index_fill_(2, index, 0)

    def _pages_of(self, layer: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
        flat = layer.view(self.heads, -1, PAGE_TOKENS * self.head_dim)
        return flat.index_select(1, pages).view(self.heads, -1, self.head_dim)


def page_bytes(layers: int, heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one page over all layers."""
    return 2 * layers * heads * PAGE_TOKENS * head_dim * dtype.itemsize


def count_pages(budget_bytes: int, page: int, context_length: int) -> int:
    """Pages that fit the budget. Raises CapacityExceeded where one request of full length would not."""
    pages = budget_bytes // page - 1  # the null page
    needed = -(-context_length // PAGE_TOKENS)
    if pages < needed:
        raise CapacityExceeded(
            "kvCacheMemory",
            f"of {budget_bytes} bytes holds {max(pages, 0)} pages, but one request of {context_length} tokens needs "
            f"{needed}; give at least {(needed + 1) * page} bytes or lower contextLength",
        )
    return int(pages)
