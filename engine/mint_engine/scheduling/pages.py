"""Pages of the KV cache, counted by reference. Page 0 stays empty; page tables are padded with it."""

from collections.abc import Iterable

from mint_contracts.layer_groups import NULL_PAGE


class Pages:
    """Page numbers 1 to `total`. Each is free, referred to by sequences, or idle: kept for what it holds."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total, NULL_PAGE, -1))
        self._references = [0] * (total + 1)
        self._kept = [False] * (total + 1)  # referred to or idle

    @property
    def free(self) -> int:
        """Pages that nobody refers to and nobody keeps."""
        return len(self._free)

    def references(self, page: int) -> int:
        """How many sequences refer to a page."""
        return self._references[page]

    def take(self, count: int) -> list[int] | None:
        """`count` free pages with one reference each, or None and no change where fewer are free."""
        if count > len(self._free):
            return None
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._references[page] = 1
            self._kept[page] = True
        return taken

    def share(self, page: int) -> None:
        """One more reference to a page that is not free. ValueError where it is."""
        self._check(page)
        self._references[page] += 1

    def drop(self, page: int) -> bool:
        """One reference less; returns whether it was the last, so that the page is idle. ValueError: it had none."""
        self._check(page)
        if not self._references[page]:
            raise ValueError(f"nobody refers to page {page}")
        self._references[page] -= 1
        return not self._references[page]

    def free_idle(self, pages: Iterable[int]) -> None:
        """Make idle pages free. ValueError for one that is free already, or referred to."""
        for page in pages:
            self._check(page)
            if self._references[page]:
                raise ValueError(f"page {page} is referred to")
            self._kept[page] = False
            self._free.append(page)

    def _check(self, page: int) -> None:
        if not 0 < page <= self.total or not self._kept[page]:
            raise ValueError(f"page {page} is not taken")
