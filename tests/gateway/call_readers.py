"""Reading calls from an answer that comes in pieces."""

from collections.abc import Sequence
from itertools import pairwise

from mint_gateway.http.calls import Call, Reader


def cut(text: str, cuts: Sequence[int]) -> list[str]:
    """Return a text in pieces, cut at those of the places that are within it."""
    places = sorted({0, len(text), *(each for each in cuts if each < len(text))})
    return [text[begin:end] for begin, end in pairwise(places)]


def read(reader: Reader, pieces: Sequence[str]) -> list[str | Call]:
    """Return everything that a reader returns, with adjacent texts joined."""
    joined: list[str | Call] = []
    for part in [part for piece in pieces for part in reader.push(piece)] + reader.finish():
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined
