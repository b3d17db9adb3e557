"""What is still to be computed of one policy's update: its pieces in their order, a turn at a time.

Between two turns others compute theirs. How an update is cut into turns depends on nothing but itself, and its
numbers do not depend on it at all: pieces are the same, and follow each other into the same sums.
"""

from collections.abc import Iterator

from mint_engine.training.pieces import Piece


class Agenda:
    """Of the pieces that are left only the next one is made yet."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces
        self._next = next(pieces, None)

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return self._next is None

    def turn(self, most: int) -> Iterator[Piece]:
        """The pieces that follow: `most` rows of them at most (0: all that are left), but one at least."""
        rows = 0
        while self._next is not None and not (most and rows and rows + self._next.rows > most):
            piece, self._next = self._next, next(self._pieces, None)
            rows += piece.rows
            yield piece
