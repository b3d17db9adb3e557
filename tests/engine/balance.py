"""Count the faults that engines' audits of their own books find while a test runs."""

from mint_engine import metrics


class Imbalances:
    """The number of audits, by engines in this process, that found books that do not balance."""

    def __init__(self) -> None:
        self._before = self._count()
        self.planted = False  # set by a test that damages the books: then a fault must be found

    @property
    def found(self) -> int:
        """The number found since the test began."""
        return int(self._count() - self._before)

    def _count(self) -> float:
        return float(metrics.IMBALANCES._value.get())
