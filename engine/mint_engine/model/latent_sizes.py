"""The sizes that decide how latent attention is computed and what it caches. Letters as in `model.latent`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LatentSizes:
    """The same in all layers of a base, and on all of its ranks."""

    latent: int  # C
    rotated: int  # E
    expanded: int  # K + V, of one head
    index: int = 0  # of an indexer's key; 0 if attention is not sparse
    most: int | None = None  # tokens of a past that an indexer chooses; None if attention is not sparse

    @property
    def width(self) -> int:
        """Of a token's row in the cache."""
        return self.latent + self.rotated + self.index

    def absorbs(self, rows: int) -> bool:
        """Whether absorbing costs fewer operations than expanding, for `rows` rows of one chunk.

        For each cached token and head: absorbing costs 2C per row; expanding costs K + V per row, and C (K + V) once.
        """
        return rows * (2 * self.latent - self.expanded) < self.latent * self.expanded

    def chooses(self, tokens: int) -> bool:
        """Whether a row that sees so many tokens attends to some of them only."""
        return self.most is not None and tokens > self.most
