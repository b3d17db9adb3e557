"""Distributes policies' weights from the first rank, which keeps them, to all, and gathers their gradients: by sums.

A rank holds the same part of every A and B as serving's slots do. Its gradient is zero for what it does not hold, and
for what several ranks hold each has one part of a sum (see `sums`), so adding up gathers it, however it was cut.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from mint_engine.adapters.adapter import Module
from mint_engine.adapters.cut import cut_layout, matched
from mint_engine.adapters.packed import Layout
from mint_engine.parallel.group import Group
from mint_engine.parallel.shares import cuts_of
from mint_engine.training.batch import Held, parts_of

STRETCH = 4 << 20  # elements summed at once, rounded up to complete modules


@dataclass(frozen=True)
class _Stretch:
    """Consecutive modules: elements `start` to `stop` of a policy; their layouts in these and in the rank's part."""

    start: int
    stop: int
    whole: Layout
    own: Layout


class Sharing:
    """One rank's side of the distribution; all ranks must make the same calls at the same time."""

    def __init__(self, modules: Mapping[str, Module], group: Group, dtype: torch.dtype, device: torch.device) -> None:
        self._group, self._dtype, self._device = group, dtype, device
        self._cuts = cuts_of(modules, group.share)

    def take(self, number: int, layout: Layout, scalings: Sequence[float], run: torch.Tensor | None) -> Held:
        """Hold the rank's part of a policy; the first rank passes the complete `run` [n] in the base's dtype."""
        own = cut_layout(layout, self._cuts)
        mine = torch.empty(own.elements, dtype=self._dtype, device=self._device)
        for each in _stretches(layout, own):
            span = slice(each.start, each.stop)
            sent = mine.new_zeros(each.stop - each.start) if run is None else run[span].clone()
            for whole, part in matched(each.whole, self._group.sum(sent), each.own, mine, self._cuts):
                part.copy_(whole)
        gradient = torch.zeros(own.elements, device=self._device)
        return Held(number, layout, parts_of(own, scalings, mine, gradient), gradient)

    def give(self, held: Held) -> Iterator[torch.Tensor]:
        """Yield the complete gradient [n] float32 on every rank, one stretch at a time."""
        for each in _stretches(held.layout, cut_layout(held.layout, self._cuts)):
            found = held.gradient.new_zeros(each.stop - each.start)
            for whole, part in matched(each.whole, found, each.own, held.gradient, self._cuts):
                whole.copy_(part)
            yield self._group.sum(found)


def _stretches(layout: Layout, own: Layout) -> Iterator[_Stretch]:
    first, places = 0, layout.places
    for at, place in enumerate(places):
        stop, start = place.offset + place.elements, places[first].offset
        if stop - start >= STRETCH or at + 1 == len(places):
            here = tuple(replace(each, offset=each.offset - start) for each in places[first : at + 1])
            yield _Stretch(start, stop, Layout(here), Layout(own.places[first : at + 1]))
            first = at + 1
