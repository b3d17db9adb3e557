"""What is still to be computed of one policy's update: its pieces in order, one turn at a time.

Between turns, other policies compute theirs. How an update is cut into turns depends only on the update itself, and
does not affect its numbers: the pieces are the same and are added to the same sums in the same order.
"""

from collections.abc import Iterator

from mint_engine.training.pieces import Piece


class Agenda:
    """The remaining pieces, of which only the next one has been made."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces
        self._next = next(pieces, None)

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return self._next is None

    def turn(self, most: int) -> Iterator[Piece]:
        """Yield the next pieces: at most `most` rows (0: all that are left), but at least one piece."""
        rows = 0
        while self._next is not None and not (most and rows and rows + self._next.rows > most):
            piece, self._next = self._next, next(self._pieces, None)
            rows += piece.rows
            yield piece
