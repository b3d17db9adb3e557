"""How long a stream that registers is waited for: pure."""

LEAST_BYTES_S = 32  # of lines and entries: a name a second, of the shortest lines


class Pace:
    """Of one stream. It is given `most_s` at first and time for what it sends, which it cannot save beyond that.

    Waiting alone counts: what is done with what has come takes a stream no time.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = self.left_s = most_s

    def heard(self, size: int, waited_s: float) -> None:
        """So many bytes came after so long; a message with nothing in it is no word."""
        self.left_s = min(self._most_s, self.left_s - waited_s + size / LEAST_BYTES_S)

    @property
    def message(self) -> str:
        """Of the error for a stream that has let its time pass."""
        if self.left_s == self._most_s:
            return f"has sent nothing for {self._most_s:g} s"
        return f"has sent less than {LEAST_BYTES_S} bytes a second for {self._most_s:g} s"
