"""Pages of the KV cache: a free list. Page 0 stays empty; page tables are padded with it."""

from collections.abc import Iterable

PAGE_TOKENS = 16
NULL_PAGE = 0


def pages_for(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE_TOKENS)


class Pages:
    """Hands out page numbers 1 to `total` and takes them back."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total, NULL_PAGE, -1))
        self._taken = [False] * (total + 1)

    @property
    def free(self) -> int:
        """Pages that can be taken now."""
        return len(self._free)

    def take(self, count: int) -> list[int] | None:
        """`count` pages, or None and no change where fewer are free."""
        if count > len(self._free):
            return None
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._taken[page] = True
        return taken

    def give_back(self, pages: Iterable[int]) -> None:
        """Return pages that were taken. A page that was not is a defect: ValueError."""
        for page in pages:
            if not 0 < page <= self.total or not self._taken[page]:
                raise ValueError(f"page {page} is not taken")
            self._taken[page] = False
            self._free.append(page)
