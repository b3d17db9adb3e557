"""Slots in turn: which of them take no new requests, so that adapters that wait for a slot get one.

Without end, requests for a few adapters would keep every slot in use for good. While somebody waits and no slot is
free or idle, a slot is closed: those who have it finish, new ones wait as for any cold adapter, and once idle it goes
to whoever has waited longest. That adapter's turn comes again in the same way.

Whoever waits behind p others for one of n slots that are not pinned, of adapters whose requests take at most L, has
one after at most (p // n + 1) (hold + L) seconds. Pure: a decision over a picture of the slots.
"""

import math
from collections.abc import Sequence

import msgspec


class Terms(msgspec.Struct, frozen=True):
    """How long slots are kept."""

    hold_s: float = 2.0  # what an adapter has of its slot before it may be closed: some forty times what a load takes
    late_s: float = 5.0  # after so long closed and still in use, another slot is tried beside it


class Seat(msgspec.Struct, frozen=True):
    """One slot and its adapter."""

    slot: int
    since: float  # when the adapter came, in seconds of any clock
    users: int  # requests that have it
    pinned: bool = False  # waves want the adapter here, or a policy trains in it
    closed_at: float | None = None


class Turn(msgspec.Struct, frozen=True):
    """The slots that are closed from now on, and no others; and when to look again if nothing happens before."""

    closed: frozenset[int] = frozenset()
    again_at: float = math.inf


def turn(seats: Sequence[Seat], *, free: int, waiting: int, now: float, terms: Terms) -> Turn:
    """Which slots to close, for `waiting` who need one each where `free` are there.

    Those whose adapters have been there longest; one for each who lacks one. Where that one is late it stays closed,
    or long requests in every slot would keep them all, and another is tried beside it, in turn.
    """
    lacking = waiting - free - sum(not each.users and not each.pinned for each in seats)
    if lacking <= 0:
        return Turn()
    busy = sorted(
        (each for each in seats if each.users and not each.pinned), key=lambda each: (each.since, each.slot)
    )
    shut = sorted(((each.closed_at, each) for each in busy if each.closed_at is not None), key=lambda pair: pair[0])
    late = [each.slot for at, each in shut if at + terms.late_s <= now]
    tried = [(at, each.slot) for at, each in shut if at + terms.late_s > now][:lacking]
    ripe_at = [(each.since + terms.hold_s, each.slot) for each in busy if each.closed_at is None]
    ripe = [slot for at, slot in ripe_at if at <= now][: lacking - len(tried)]
    missing = lacking - len(tried) - len(ripe)
    soon = [at + terms.late_s for at, _ in tried] + [now + terms.late_s for _ in ripe]
    if missing:
        soon += [at for at, _ in ripe_at if at > now]
    closed = [*late[: lacking + missing], *(slot for _, slot in tried), *ripe]
    return Turn(frozenset(closed), min(soon, default=math.inf))
