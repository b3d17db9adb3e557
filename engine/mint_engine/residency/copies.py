"""One adapter from one source on this engine: its slot, its users, and how its last load went."""

import asyncio
import math
from dataclasses import dataclass

from mint_contracts.backoff import delay_s
from mint_contracts.errors import MintError
from mint_contracts.records import Failure, Tier
from mint_contracts.source import Source
from mint_engine.residency.arrival import Arrival
from mint_engine.residency.host import Key

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 60.0
FORGET_S = 5.0  # how long a request's failed load answers the requests after it


class Closed:
    """Since when a slot takes no new requests (monotonic), and what those wait for."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.over = asyncio.Event()  # it takes some again, or is another adapter's


@dataclass(eq=False)
class Copy:
    """Mutable state; only the event loop's thread touches it."""

    adapter: str
    source: Source
    revision: str = ""  # empty until the files were read
    rank: int = 0
    bytes: int = 0  # packed
    slot: int | None = None
    since: float = 0.0  # when it came into its slot, monotonic
    closed: "Closed | None" = None  # its slot takes no new requests
    users: int = 0  # all of those below, and the requests that wait for its load
    serving: int = 0  # requests that have its slot
    lent: bool = False  # a policy trains in its slot
    arrival: Arrival | None = None  # by which it comes into its slot, while requests begin with what is there
    in_reserve: bool = False  # it is kept in case the load of its successor, which took its slot, fails
    used: int = 0
    for_wave: bool = False
    requested: bool = False  # its adapter is taken from here, by the last request's word
    state: str | None = None  # what a local source's files were when they were last read; "" where nothing was there
    formerly: Source | None = None  # where this was, before that source's files changed
    goal: Tier = Tier.REMOTE  # what the running load is for
    load: "asyncio.Task[MintError | None] | None" = None
    usable: "asyncio.Future[MintError | None] | None" = None  # that load's end, or when requests may begin before it
    leaving: asyncio.Event | None = None  # set when a request has let go of its slot
    error: MintError | None = None
    attempts: int = 0
    retry_at: float = 0.0

    @property
    def key(self) -> Key:
        """What names a copy."""
        return self.adapter, self.source

    @property
    def seated(self) -> int | None:
        """The slot that requests may have: none while what is in it is not all, and never will be."""
        return None if self.arrival is not None and self.arrival.error is not None else self.slot

    @property
    def failure(self) -> Failure | None:
        """The last load's error as the map tells it."""
        if self.error is None:
            return None
        return Failure(reason=self.error.reason, message=str(self.error), terminal=self.error.terminal)

    def close(self, now: float) -> None:
        """Take no new requests, in a slot that is to be another adapter's."""
        self.closed = self.closed or Closed(now)

    def open(self) -> None:
        """Those that wait may look again."""
        if self.closed is not None:
            self.closed.over.set()
            self.closed = None

    def read(self, revision: str, rank: int, nbytes: int) -> None:
        """Its files were read, and this is what they hold; `nbytes` is what the packed adapter takes."""
        self.revision, self.rank, self.bytes = revision, rank, nbytes

    def blocked(self, now: float) -> bool:
        """The last load failed and it is not yet time to try again."""
        return self.error is not None and now < self.retry_at

    def failed(self, error: MintError, now: float, *, wanted: bool) -> None:
        """Remember a failed load. A wave's terminal one is never tried again: its source would have to change."""
        self.error = error
        self.attempts += 1
        if error.terminal:
            self.retry_at = math.inf if wanted else now + FORGET_S
        else:
            wait = delay_s(self.attempts, first_s=FIRST_RETRY_S, cap_s=LONGEST_RETRY_S if wanted else FORGET_S)
            self.retry_at = now + max(wait, error.retry_after_s or 0.0)

    def recovered(self) -> None:
        """The last load worked."""
        self.error, self.attempts, self.retry_at = None, 0, 0.0

    def refusal(self, now: float) -> MintError | None:
        """The remembered error, fresh to raise and with the time to come back, while it is remembered."""
        if self.error is None or not self.blocked(now):
            return None
        return again(self.error, None if self.error.terminal else self.retry_at - now)


def again(error: MintError, retry_after_s: float | None) -> MintError:
    """A new instance of an error, so that several requests can each raise their own."""
    return type(error)(error.subject, error.message, retry_after_s=retry_after_s)
