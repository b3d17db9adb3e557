"""What came of a request and its client has not read yet: so much of it, and the request ends.

A client that reads slower than tokens come is not waited for: its adapter's slot, its pages and its place in each
step would be kept from others meanwhile. So what it has yet to read is kept here, where it counts.
"""

import asyncio
import contextlib

import msgspec

from mint_contracts.errors import CapacityExceeded, MintError
from mint_contracts.room import Part, Room
from mint_engine.scheduling.request import Event, Failed, Tokens

# Bytes as Python has them, 10 times what goes over the wire.
MOST_UNREAD = 64 << 20  # of one request: 240,000 tokens, or 24,000 with twenty log-probabilities each
MOST_TOGETHER = 256 << 20  # of all requests, beyond what is each one's own
OWN_UNREAD = 64 << 10  # of each completion: so much comes while the event loop is held up
_TOKEN, _SCORE, _TOP = 280, 140, 120  # of an event; of a log-probability, and of each likely one beside it; measured


class Begun(msgspec.Struct, frozen=True):
    """The request has its adapter, at this revision, and is queued."""

    revision: str


class CompletionEvent(msgspec.Struct, frozen=True):
    """What came of one of the request's completions."""

    index: int
    event: Event


def room(engine: str) -> Room:
    """What the inboxes of an engine share."""
    return Room(MOST_TOGETHER, engine, f"holds {MOST_TOGETHER >> 20} MiB of tokens that clients have not read yet")


class Inbox(asyncio.Queue[Begun | CompletionEvent]):
    """Of one request. Takes a part of the engine's room."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self._part, self._unread, self._closed = part, 0, False

    def put_nowait(self, entry: Begun | CompletionEvent) -> None:
        """Keep what came, unless it is closed.

        Raises CapacityExceeded or Overloaded where that is too much: then this error is all that is left to read.
        """
        if self._closed:
            return
        unread = self._unread + _weight(entry)
        try:
            if unread > MOST_UNREAD:
                problem = f"more than {MOST_UNREAD >> 20} MiB of it are unread; read the stream faster"
                raise CapacityExceeded("answer", f"{problem}, or ask for fewer tokens or log-probabilities")
            self._part.fill(unread)
        except MintError as error:
            self.close()
            super().put_nowait(CompletionEvent(0, Failed(error)))
            raise
        self._unread = unread
        super().put_nowait(entry)

    def get_nowait(self) -> Begun | CompletionEvent:
        """What came first; `get` waits for it."""
        entry = super().get_nowait()
        if not self._closed:
            self._unread -= _weight(entry)
            self._part.fill(self._unread)
        return entry

    def close(self) -> None:
        """Keep nothing any more."""
        self._closed = True
        with contextlib.suppress(asyncio.QueueEmpty):
            while True:
                super().get_nowait()
        self._part.fill(0)


def _weight(entry: Begun | CompletionEvent) -> int:
    """What comes once, at the prompt's end or at a completion's, has bounds of its own."""
    if isinstance(entry, Begun) or not isinstance(entry.event, Tokens):
        return 0
    return _TOKEN + sum(_SCORE + _TOP * len(score.top) for score in entry.event.scores)
