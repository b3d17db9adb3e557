"""What the audits of engines find while a test runs."""

from mint_engine import metrics


class Imbalances:
    """How often the audits of engines in this process have found books that do not balance."""

    def __init__(self) -> None:
        self._before = self._count()
        self.planted = False  # a test sets it that does damage, which must be found then

    @property
    def found(self) -> int:
        """Times since the test began."""
        return int(self._count() - self._before)

    def _count(self) -> float:
        return float(metrics.IMBALANCES._value.get())
