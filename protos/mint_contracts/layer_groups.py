"""Groups of layers whose keys and values share pages: a page holds 16 tokens of one group's layers, not of all.

If a layer's attention slides over a window, tokens behind it are never read again, and their pages can be freed. So
layers form groups of equal size, each with one window, and every request has a list of pages for each group. All
groups take pages from one pool, as in vLLM's hybrid KV cache manager. Used to lay a cache out and to plan one.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

PAGE_TOKENS = 16
NULL_PAGE = 0  # stays empty; page tables are padded with it
STEP_TOKENS = 512  # the most tokens that one step computes

_MOST_GROUPS = 8  # a request keeps a list of pages for each group
_WINDOWS = 8  # the group size is chosen for a past of this many windows


@dataclass(frozen=True)
class LayerGroups:
    """Which layers share pages, and how many pages a request needs."""

    size: int  # layers in a page; a window's last group may have fewer
    windows: tuple[int | None, ...]  # how many tokens each group attends to, the newest included; None: all
    places: tuple[tuple[int, int], ...]  # for each layer: its group, and its position in the group's pages

    def pages(self, tokens: int, ahead: int) -> int:
        """Return the most pages that a request of `tokens` tokens holds if no step computes more than `ahead`."""
        whole = pages_for(tokens)
        return sum(whole if each is None else min(whole, most_pages(each, ahead)) for each in self.windows)


def pages_for(tokens: int) -> int:
    """Return how many pages of one group hold this many tokens."""
    return -(-tokens // PAGE_TOKENS)


def most_pages(window: int, ahead: int) -> int:
    """Return the most pages that a window and `ahead` tokens take: they may begin and end within pages."""
    return pages_for(window + ahead) + 1


def first_seen(position: int, window: int | None) -> int:
    """Return a group's first page that the token at `position`, or any later one, may still attend to."""
    return 0 if window is None else max(0, position + 1 - window) // PAGE_TOKENS


def group_layers(windows: Sequence[int | None]) -> LayerGroups:
    """Group a base's layers by their windows; if all windows are equal, there is one group."""
    layers = defaultdict[int | None, list[int]](list)
    for layer, window in enumerate(windows):
        layers[window].append(layer)
    kinds = sorted(layers, key=lambda window: (window is not None, window))  # layers that attend to all come first
    size = _size({window: len(layers[window]) for window in kinds})
    places, found = [(0, 0)] * len(windows), list[int | None]()
    for window in kinds:
        for at, layer in enumerate(layers[window]):
            places[layer] = (len(found) + at // size, at % size)
        found += [window] * -(-len(layers[window]) // size)
    return LayerGroups(size, tuple(found), tuple(places))


def _size(counts: dict[int | None, int]) -> int:
    """Return how many layers to put in a group, so that a long past takes little memory in few groups."""

    def cost(size: int) -> tuple[bool, int, int]:
        groups = {window: -(-count // size) for window, count in counts.items()}
        taken = sum(count * (_WINDOWS if window is None else 1) for window, count in groups.items()) * size
        return sum(groups.values()) > max(_MOST_GROUPS, len(counts)), taken, sum(groups.values())

    return min(range(1, max(counts.values()) + 1), key=cost)
