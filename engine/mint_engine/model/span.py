"""A request's rows in a step: what passes of every kind are told of them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """One request's rows in a step: `length` tokens from `position` of its sequence on, at `row` of the batch."""

    row: int
    length: int
    position: int
    pages: Sequence[int]  # for the cache's first group of layers
    slot: int
    others: Sequence[Sequence[int]] = ()  # for its other groups; 0 for a page that nothing sees any more
