"""Shows the progress of long work: one line per step with its elapsed seconds, redrawn if on a terminal."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

PLAIN_PERIOD_S = 15.0
TERMINAL_PERIOD_S = 0.2


class Step:
    """One running step; `note` may be set at any time and is shown with the elapsed seconds."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.note = ""
        self._started = time.monotonic()

    def line(self, end: str = "") -> str:
        """Return the step as one line of text."""
        note = f" ({self.note})" if self.note else ""
        return f"{self.title}{note} {time.monotonic() - self._started:.1f} s{end}"


class Steps:
    """Prints steps to `stream` (standard error by default, so that standard output stays for answers)."""

    def __init__(self, stream: TextIO | None = None, title: str = "cluster") -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty()
        self._title = title

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show `title` while the block runs, and finally with the time that it took."""
        step = Step(title)
        done = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(step, done), daemon=True)
        ticker.start()
        outcome = " failed"
        try:
            yield step
            outcome = ""
        finally:
            done.set()
            ticker.join()
            self._write(step.line(outcome), last=True)

    def say(self, text: str) -> None:
        """Print one line, without a time."""
        self._write(text, last=True)

    def _tick(self, step: Step, done: threading.Event) -> None:
        period = TERMINAL_PERIOD_S if self._terminal else PLAIN_PERIOD_S
        while not done.wait(period):
            self._write(step.line(" ..."), last=False)

    def _write(self, text: str, *, last: bool) -> None:
        if self._terminal:
            self._stream.write(f"\r\x1b[K{self._title}: {text}" + ("\n" if last else ""))
        else:
            self._stream.write(f"{self._title}: {text}\n")
        self._stream.flush()
