"""Prefix reuse: full pages of the KV cache are found again by what they were computed from.

A page's key is a chained hash over the revision, the request's salt and every token up to the page's end, so equal
keys mean equal keys and values. Nothing crosses from one revision or salt to another. The hash is cryptographic: no
tenant can make a prompt that finds pages of tokens other than its own.

If a base's layers are in groups (`mint_contracts.layer_groups`), each group has its own pages under these keys. For a
group with a sliding window, the pages of the window suffice to continue.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from mint_contracts.layer_groups import NULL_PAGE, PAGE_TOKENS, first_seen
from mint_engine.scheduling.pages import Pages

_DIGEST_BYTES = 16
_KIND = "i"  # a token in the hash: a C int


def extend_keys(keys: list[bytes], revision: str, tokens: Sequence[int], salt: str = "") -> None:
    """Append, in place, the keys of the full pages of `tokens` that `keys` does not cover yet."""
    first, last = len(keys), len(tokens) // PAGE_TOKENS
    if first >= last:
        return
    former = keys[-1] if keys else _root(revision, salt)
    content = memoryview(array(_KIND, tokens[first * PAGE_TOKENS : last * PAGE_TOKENS]).tobytes())
    size = len(content) // (last - first)
    for at in range(0, len(content), size):
        former = hashlib.blake2b(former + content[at : at + size], digest_size=_DIGEST_BYTES).digest()
        keys.append(former)


def _root(revision: str, salt: str) -> bytes:
    root = hashlib.blake2b(revision.encode(), digest_size=_DIGEST_BYTES).digest()
    if not salt:
        return root
    key = hashlib.blake2b(salt.encode(), digest_size=_DIGEST_BYTES).digest()
    return hashlib.blake2b(root, key=key, digest_size=_DIGEST_BYTES).digest()  # no salt can pass for tokens


def key_in(group: int, key: bytes) -> bytes:
    """Return the key of a group's page."""
    return key + bytes([group]) if group else key


class PrefixCache:
    """Hands out pages, and keeps those that nobody refers to any more until they are needed.

    Idle pages are reused in the order in which they were last referenced, oldest first.
    """

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # all have keys
        self.released = 0  # pages that lost their last reference since the beginning

    @property
    def available(self) -> int:
        """Number of pages that `take` can give: free or idle."""
        return self.pages.free + len(self._idle)

    @property
    def idle(self) -> frozenset[int]:
        """Pages that are kept for reuse and that nobody refers to."""
        return frozenset(self._idle)

    def key_of(self, page: int) -> bytes | None:
        """Return the key under which a page can be found, or None."""
        return self._key_of.get(page)

    def has(self, key: bytes) -> bool:
        """Return whether a page can be found under a key."""
        return key in self._page_of

    def share(self, keys: Sequence[bytes], windows: Sequence[int | None] = (None,)) -> tuple[list[int], ...]:
        """Return the cached pages of the longest prefix of `keys`, by group, adding a reference to each.

        The null page stands for pages that no later token of the group can see.
        """
        reach = self._reach(keys, windows)
        return tuple(self._share(keys[:reach], group, window) for group, window in enumerate(windows))

    def _share(self, keys: Sequence[bytes], group: int, window: int | None) -> list[int]:
        first = first_seen(len(keys) * PAGE_TOKENS, window)
        found = [self._page_of[key_in(group, key)] for key in keys[first:]]
        for page in found:
            self.pages.share(page)
            self._idle.pop(page, None)
        return [NULL_PAGE] * first + found

    def _reach(self, keys: Sequence[bytes], windows: Sequence[int | None]) -> int:
        """Return how many pages of tokens need not be computed again."""
        reach = len(keys)
        for group, window in enumerate(windows):
            if window is None:
                lacking = (at for at in range(reach) if key_in(group, keys[at]) not in self._page_of)
                reach = next(lacking, reach)
        slides = [(group, window) for group, window in enumerate(windows) if window is not None]
        while (least := min((self._last_run(keys[:reach], *each) for each in slides), default=reach)) < reach:
            reach = least
        return reach

    def _last_run(self, keys: Sequence[bytes], group: int, window: int) -> int:
        """Return len(keys) if the window before their end is cached, else the index of the last page it lacks."""
        first = first_seen(len(keys) * PAGE_TOKENS, window)
        lacking = (at for at in reversed(range(first, len(keys))) if key_in(group, keys[at]) not in self._page_of)
        return next(lacking, len(keys))

    def take(self, count: int) -> list[int] | None:
        """Take `count` pages to write to, forgetting idle ones as needed; None, changing nothing, if too few.

        They hold a former owner's data and must be wiped.
        """
        lacking = count - self.pages.free
        if lacking > len(self._idle):
            return None
        for _ in range(lacking):
            page, _ = self._idle.popitem(last=False)
            del self._page_of[self._key_of.pop(page)]
            self.pages.free_idle([page])
        return self.pages.take(count)

    def publish(self, key: bytes, page: int) -> None:
        """Let a full, computed page be found. If another page already has the key, this one stays private."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def release(self, pages: Iterable[int]) -> None:
        """Drop one completion's references. Its last page becomes idle first, being useless without the others."""
        for page in reversed(list(pages)):
            if page != NULL_PAGE and self.pages.drop(page):
                self.released += 1
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    self.pages.free_idle([page])

    def find_imbalance(self) -> str:
        """Describe an inconsistency between keys, idle pages and references, or return "" if there is none."""
        if {page: key for key, page in self._page_of.items()} != self._key_of:
            return "keys and pages of the prefix cache are no pairs"
        for page in self._idle:
            if page not in self._key_of:
                return f"page {page} is idle and can't be found"
            if self.pages.references(page):
                return f"page {page} is idle and referred to"
        return ""
