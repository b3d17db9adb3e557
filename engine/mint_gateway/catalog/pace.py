"""How long the gateway waits for a stream that registers adapters: pure."""

LEAST_BYTES_S = 32  # bytes of lines and entries: about one of the shortest lines per second


class Pace:
    """The time budget of one stream: it starts at `most_s`, earns time for what it sends, and never exceeds `most_s`.

    Only waiting uses it up; processing what has arrived does not.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = self.left_s = most_s

    def heard(self, size: int, waited_s: float) -> None:
        """Account for `size` bytes that came after `waited_s`; an empty message earns no time."""
        self.left_s = min(self._most_s, self.left_s - waited_s + size / LEAST_BYTES_S)

    @property
    def message(self) -> str:
        """The error message for a stream that has used up its time."""
        if self.left_s == self._most_s:
            return f"has sent nothing for {self._most_s:g} s"
        return f"has sent less than {LEAST_BYTES_S} bytes a second for {self._most_s:g} s"
