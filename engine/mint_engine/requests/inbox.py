"""Buffers the events of a request that its client has not read yet; a request whose buffer grows too large ends.

The engine does not wait for a client that reads more slowly than tokens are generated, because it would meanwhile
keep a slot, pages and a place in each step from others. Unread events are kept, and counted, here instead.
"""

import asyncio
import contextlib

import msgspec

from mint_contracts.byte_budget import ByteBudget, ByteShare
from mint_contracts.errors import CapacityExceeded, MintError
from mint_engine.requests.events import Event, Failed, Tokens

# Bytes of Python objects, about 10 times their size on the wire.
MOST_UNREAD = 64 << 20  # per request: 240,000 tokens, or 24,000 with twenty log-probabilities each
MOST_TOGETHER = 256 << 20  # for all requests, beyond each one's own allowance
OWN_UNREAD = 64 << 10  # own allowance per completion, for what arrives while the event loop is held up
_TOKEN, _SCORE, _TOP = 280, 140, 120  # measured: an event; a log-probability; each top alternative beside it


class Queued(msgspec.Struct, frozen=True):
    """The request holds its adapter, at this revision, and is queued."""

    revision: str


class CompletionEvent(msgspec.Struct, frozen=True):
    """An event of one of the request's completions."""

    index: int
    event: Event


def budget(engine: str) -> ByteBudget:
    """Return the memory budget that the inboxes of an engine share."""
    return ByteBudget(
        MOST_TOGETHER, engine, f"holds {MOST_TOGETHER >> 20} MiB of tokens that clients have not read yet"
    )


class Inbox(asyncio.Queue[Queued | CompletionEvent]):
    """The unread events of one request, counted against a share of the engine's budget."""

    def __init__(self, share: ByteShare) -> None:
        super().__init__()
        self._share, self._unread, self._closed = share, 0, False

    def put_nowait(self, entry: Queued | CompletionEvent) -> None:
        """Add an entry, unless the inbox is closed.

        If that is too much, raises CapacityExceeded or Overloaded, and closes the inbox with only this error in it.
        """
        if self._closed:
            return
        unread = self._unread + _weight(entry)
        try:
            if unread > MOST_UNREAD:
                problem = f"more than {MOST_UNREAD >> 20} MiB of it are unread; read the stream faster"
                raise CapacityExceeded("answer", f"{problem}, or ask for fewer tokens or log-probabilities")
            self._share.fill(unread)
        except MintError as error:
            self.close()
            super().put_nowait(CompletionEvent(0, Failed(error)))
            raise
        self._unread = unread
        super().put_nowait(entry)

    def get_nowait(self) -> Queued | CompletionEvent:
        """Return the oldest entry; `get` calls this after waiting for one."""
        entry = super().get_nowait()
        if not self._closed:
            self._unread -= _weight(entry)
            self._share.fill(self._unread)
        return entry

    def close(self) -> None:
        """Drop all entries, and ignore later ones."""
        self._closed = True
        with contextlib.suppress(asyncio.QueueEmpty):
            while True:
                super().get_nowait()
        self._share.fill(0)


def _weight(entry: Queued | CompletionEvent) -> int:
    """Return the bytes that an entry counts; events that come only once are bounded elsewhere and count nothing."""
    if isinstance(entry, Queued) or not isinstance(entry.event, Tokens):
        return 0
    return _TOKEN + sum(_SCORE + _TOP * len(score.top) for score in entry.event.scores)
