"""Reference counts of the KV cache's pages. Page 0 stays empty; page tables are padded with it."""

from collections.abc import Iterable

from mint_contracts.layer_groups import NULL_PAGE


class Pages:
    """Pages 1 to `total`. Each is free, referenced by completions, or idle: kept for its content."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total, NULL_PAGE, -1))
        self._references = [0] * (total + 1)
        self._kept = [False] * (total + 1)  # referenced or idle

    @property
    def free(self) -> int:
        """Number of free pages."""
        return len(self._free)

    def references(self, page: int) -> int:
        """Return the number of completions that refer to a page."""
        return self._references[page]

    def take(self, count: int) -> list[int] | None:
        """Take `count` free pages, with one reference each; None, changing nothing, if fewer are free."""
        if count > len(self._free):
            return None
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._references[page] = 1
            self._kept[page] = True
        return taken

    def share(self, page: int) -> None:
        """Add a reference to a page. Raises ValueError if the page is free."""
        self._check(page)
        self._references[page] += 1

    def drop(self, page: int) -> bool:
        """Drop a reference; return whether it was the last, so that the page is idle. Raises ValueError if none."""
        self._check(page)
        if not self._references[page]:
            raise ValueError(f"nobody refers to page {page}")
        self._references[page] -= 1
        return not self._references[page]

    def free_idle(self, pages: Iterable[int]) -> None:
        """Free idle pages. Raises ValueError for a page that is already free, or referenced."""
        for page in pages:
            self._check(page)
            if self._references[page]:
                raise ValueError(f"page {page} is referred to")
            self._kept[page] = False
            self._free.append(page)

    def _check(self, page: int) -> None:
        if not 0 < page <= self.total or not self._kept[page]:
            raise ValueError(f"page {page} is not taken")
