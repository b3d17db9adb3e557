"""Layers whose keys and values are cached together: a page holds 16 tokens of so many layers, not of all.

Where a layer's attention slides over a window, what lies behind it is never read again, and its pages may go. So
layers are put into groups of one size, each of one window, and every request has a list of pages for each group. All
groups take pages from one pool, as in vLLM's hybrid KV cache manager. For who lays a cache out, and who plans one.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

PAGE_TOKENS = 16
NULL_PAGE = 0  # which stays empty; page tables are padded with it
STEP_TOKENS = 512  # that one step computes at most

_MOST_GROUPS = 8  # each of a request's groups has a list of pages of its own to be kept
_WINDOWS = 8  # a past of so many is what a size of groups is chosen for


@dataclass(frozen=True)
class LayerGroups:
    """What a page holds, and which pages a request needs."""

    size: int  # layers of a page; a window's last group may fill fewer
    windows: tuple[int | None, ...]  # tokens that each group sees, the newest included; None: all
    places: tuple[tuple[int, int], ...]  # of each layer: its group, and its place in the group's pages

    def pages(self, tokens: int, ahead: int) -> int:
        """That a request of so many tokens has at most, while no step computes more than `ahead` of them."""
        whole = pages_for(tokens)
        return sum(whole if each is None else min(whole, most_pages(each, ahead)) for each in self.windows)


def pages_for(tokens: int) -> int:
    """Pages of one group that hold so many tokens."""
    return -(-tokens // PAGE_TOKENS)


def most_pages(window: int, ahead: int) -> int:
    """Pages that a window and so many tokens ahead take at most: they may begin and end within pages."""
    return pages_for(window + ahead) + 1


def first_seen(position: int, window: int | None) -> int:
    """The first page of a group that the token at a position, and all that follow, may still see."""
    return 0 if window is None else max(0, position + 1 - window) // PAGE_TOKENS


def group_layers(windows: Sequence[int | None]) -> LayerGroups:
    """Groups for the windows of a base's layers; one for all of them where they are alike."""
    layers = defaultdict[int | None, list[int]](list)
    for layer, window in enumerate(windows):
        layers[window].append(layer)
    kinds = sorted(layers, key=lambda window: (window is not None, window))  # those that see all come first
    size = _size({window: len(layers[window]) for window in kinds})
    places, found = [(0, 0)] * len(windows), list[int | None]()
    for window in kinds:
        for at, layer in enumerate(layers[window]):
            places[layer] = (len(found) + at // size, at % size)
        found += [window] * -(-len(layers[window]) // size)
    return LayerGroups(size, tuple(found), tuple(places))


def _size(counts: dict[int | None, int]) -> int:
    """Layers of a group, so that a long past takes little and few groups do."""

    def cost(size: int) -> tuple[bool, int, int]:
        groups = {window: -(-count // size) for window, count in counts.items()}
        taken = sum(count * (_WINDOWS if window is None else 1) for window, count in groups.items()) * size
        return sum(groups.values()) > max(_MOST_GROUPS, len(counts)), taken, sum(groups.values())

    return min(range(1, max(counts.values()) + 1), key=cost)
