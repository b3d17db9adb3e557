"""One adapter from one source on this engine: its slot, its users, and how its last load went."""

import asyncio
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from mint_contracts.backoff import delay_s
from mint_contracts.errors import MintError, SourceForbidden, SourceNotFound
from mint_contracts.records import Failure, Tier
from mint_contracts.source import Source
from mint_engine.residency.arrival import Arrival
from mint_engine.residency.host import Key
from mint_engine.sources.local import is_local

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 60.0
FORGET_S = 5.0  # how long later requests get the error of a request's failed load
# Clients besides those that gateways name, by hexadecimal digests.
WAVES = "waves"
POLICIES = "policies"


class Closed:
    """The closed state of a slot, which takes no new requests: since when (monotonic), and the event they await."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.over = asyncio.Event()  # the slot takes requests again, or belongs to another adapter


@dataclass(eq=False)
class Copy:
    """The mutable state of one copy; used only on the event loop's thread."""

    adapter: str
    source: Source
    revision: str = ""  # empty until the files have been read
    rank: int = 0
    bytes: int = 0  # size of the packed adapter
    slot: int | None = None
    since: float = 0.0  # when it was put into its slot, monotonic
    closed: "Closed | None" = None  # set while its slot takes no new requests
    clients: Counter[str] = field(default_factory=Counter)  # of the requests that wait for it, in order of arrival
    users: int = 0  # the users counted by the next four fields, and the requests that wait for its load
    serving: int = 0  # requests that use its slot
    lent: bool = False  # a policy trains in its slot
    arrival: Arrival | None = None  # set while it is still arriving in its slot and requests may use what is there
    in_reserve: bool = False  # kept in case the load of its successor, which took its slot, fails
    used: int = 0
    for_wave: bool = False
    requested: bool = False  # the adapter's last request resolved to this source
    state: str | None = None  # the state of a local source's files when last read; "" if they were missing
    formerly: Source | None = None  # the source it was read from, if that source's files have changed since
    goal: Tier = Tier.REMOTE  # the tier that the running load is to reach
    load: "asyncio.Task[MintError | None] | None" = None
    usable: "asyncio.Future[MintError | None] | None" = None  # done when that load ends or requests may begin
    leaving: asyncio.Event | None = None  # set when a request releases the slot
    error: MintError | None = None
    attempts: int = 0
    retry_at: float = 0.0

    @property
    def key(self) -> Key:
        """The key of the copy."""
        return self.adapter, self.source

    @property
    def askers(self) -> Collection[str]:
        """The clients that wait for it, the longest wait first; policies or waves, if it is theirs alone."""
        return self.clients or (POLICIES if self.lent else WAVES,)

    def client(self, last: Mapping[str, int]) -> str:
        """Return the client whose turn it takes: of those that wait for it, the next, by when each had its `last`."""
        return min(self.askers, key=lambda client: last.get(client, 0))

    @contextmanager
    def awaited_by(self, client: str) -> Iterator[None]:
        """Count a client's request that waits for it, for the duration of the block."""
        self.clients[client] += 1
        try:
            yield
        finally:
            self.clients[client] -= 1
            if not self.clients[client]:
                del self.clients[client]

    @property
    def seated(self) -> int | None:
        """The slot that requests may use; None if the adapter in it is incomplete and its load has failed."""
        return None if self.arrival is not None and self.arrival.error is not None else self.slot

    @property
    def failure(self) -> Failure | None:
        """The last load's error, as reported to the placement map."""
        if self.error is None:
            return None
        return Failure(reason=self.error.reason, message=str(self.error), terminal=self.error.terminal)

    def close(self, now: float) -> None:
        """Stop taking new requests, so that the slot can be given to another adapter."""
        self.closed = self.closed or Closed(now)

    def open(self) -> None:
        """Take new requests again, and wake those that wait."""
        if self.closed is not None:
            self.closed.over.set()
            self.closed = None

    def read(self, revision: str, rank: int, nbytes: int) -> None:
        """Record what the adapter's files hold; `nbytes` is the size of the packed adapter."""
        self.revision, self.rank, self.bytes = revision, rank, nbytes

    def blocked(self, now: float) -> bool:
        """Return whether the last load failed and it is not yet time to retry."""
        return self.error is not None and now < self.retry_at

    def failed(self, error: MintError, now: float, *, wanted: bool) -> None:
        """Record a failed load. A wave's terminal failure is never retried: its source would have to change.

        A remote source that is missing, or refused, may come or be opened after the wave, and nothing notifies us of
        that, so it is retried.
        """
        self.error = error
        self.attempts += 1
        unwatched = wanted and not is_local(self.source)
        if error.terminal and not (unwatched and isinstance(error, SourceNotFound | SourceForbidden)):
            self.retry_at = math.inf if wanted else now + FORGET_S
        else:
            wait = delay_s(self.attempts, first_s=FIRST_RETRY_S, cap_s=LONGEST_RETRY_S if wanted else FORGET_S)
            self.retry_at = now + max(wait, error.retry_after_s or 0.0)

    def recovered(self) -> None:
        """Forget the failure, after a load that succeeded."""
        self.error, self.attempts, self.retry_at = None, 0, 0.0

    def refusal(self, now: float) -> MintError | None:
        """Return a new instance of the error while retries are blocked, with the time to retry after; else None."""
        if self.error is None or not self.blocked(now):
            return None
        return fresh_error(self.error, None if self.error.terminal else self.retry_at - now)


def fresh_error(error: MintError, retry_after_s: float | None) -> MintError:
    """Return a new instance of an error, so that several requests can each raise their own."""
    return type(error)(error.subject, error.message, retry_after_s=retry_after_s)
