"""Decides which slots to close to new requests, so that adapters that wait for a slot get one in turn.

Otherwise a steady stream of requests for a few adapters would keep every slot in use for good. While somebody waits
and no slot is free or idle, a slot is closed: its running requests finish, new ones wait as for any cold adapter, and
once idle it goes to the first in line. The adapter that lost it gets its next turn in the same way. In line, clients
take turns: one that asks for hundreds of adapters delays another's adapter by one of them at a time.

With n unpinned slots, and requests that take at most L seconds, an adapter that waits behind p others gets a slot
within (p // n + 1) (hold + L) seconds. Pure functions of a snapshot of the slots and of the line.
"""

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from heapq import heapify, heappop, heappush

import msgspec

REMEMBERED = 1024  # clients, of all that have ever had a slot


class SlotTerms(msgspec.Struct, frozen=True):
    """Time limits of a slot's turn."""

    hold_s: float = 2.0  # an adapter keeps its slot at least this long before it may be closed; about forty loads
    late_s: float = 5.0  # if a closed slot is still in use after this long, another one is closed too


class Seat(msgspec.Struct, frozen=True):
    """One slot and its adapter."""

    slot: int
    since: float  # when the adapter was put there, in seconds of any clock
    users: int  # requests that use it
    pinned: bool = False  # waves want the adapter here, or a policy trains in it
    closed_at: float | None = None


class Turn(msgspec.Struct, frozen=True):
    """A decision: the slots to be closed, all others being open, and when to decide again at the latest."""

    closed: frozenset[int] = frozenset()
    again_at: float = math.inf


def choose_closed(seats: Sequence[Seat], *, free: int, waiting: int, now: float, terms: SlotTerms) -> Turn:
    """Return which slots to close for `waiting` adapters that need one slot each, with `free` slots available.

    Chooses the slots whose adapters have been there longest, one for each adapter that lacks one. A closed slot that
    is late stays closed, since long requests in every slot could otherwise keep them all, and another is closed too.
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


def in_turns(line: Sequence[Collection[str]], last: Mapping[str, int]) -> list[int]:
    """Return the order in which the positions of a line get slots, from each one's clients, the longest wait first.

    The next is always the longest waiter of the client that has waited longest since its `last` slot, a number that
    grows with time. Those that are not in `last` come before all others, in the order in which they came. What
    several clients wait for comes in the first turn that is any of theirs.
    """
    waiting: dict[str, deque[tuple[int, int]]] = {}
    for position, its in enumerate(line):
        for rank, client in enumerate(its):
            waiting.setdefault(client, deque()).append((position, rank))
    heap = [(0, last.get(client, 0), *mine[0], client) for client, mine in waiting.items()]
    heapify(heap)
    order: dict[int, None] = {}
    while heap:
        turns, since, position, _, client = heappop(heap)
        mine = waiting[client]
        mine.popleft()
        if position not in order:
            order[position] = None
            turns = len(order)
        if mine:
            heappush(heap, (turns, since, *mine[0], client))
    return list(order)


def remember(last: dict[str, int], client: str, now: int) -> None:
    """Note in `last` that a client gets a slot. Of very many, forget the one that would be next: so it still is."""
    last.pop(client, None)
    last[client] = now
    if len(last) > REMEMBERED:
        del last[next(iter(last))]
