"""Searches for a placement of all policies of a gang, when placing them in their given order fails. Pure.

The largest policy is placed first, with backtracking if that leaves one without room. The number of tries is small:
a gang for which they find no placement waits for more room.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from mint_operator.training.memory import Free, Memory, Taken
from mint_operator.training.standing import PolicyStanding

MOST_POLICIES = 256  # as many as a list may have; policies from a count are all alike and need no search
MOST_TRIES = 1000  # more than all placements of six policies on three engines; takes a few milliseconds


class _Room(msgspec.Struct, frozen=True):
    """What an engine has left: slots, bytes not used by policies' own numbers, and the largest policy's copies."""

    slots: int
    left: Free
    copies: int

    def less(self, needed: Taken) -> "_Room | None":
        """Return the room after `needed` is taken; None if there is not enough."""
        taken = needed.plus(Taken(copies=self.copies))
        if self.slots < 1 or (needed.total and not taken.within(self.left)):
            return None
        left = Free(self.left.host - needed.own, self.left.device - needed.device)
        return _Room(self.slots - 1, left, taken.copies)


def packed(
    policies: Sequence[PolicyStanding],
    near: Mapping[str, int],
    free: Mapping[str, int],
    memory: Memory,
    rank_keys: Mapping[str, tuple[bool, bool]],
) -> dict[str, str] | None:
    """Return an engine for each policy, among those with `free` slots; None if no placement was found.

    `near` counts the wave's policies that each engine already trains; `rank_keys` are theirs (`Slots.rank_key`).
    """
    needed = {each.name: {name: memory.needed(name, each.settings) for name in free} for each in policies}
    alike = all(of == needed[policies[0].name] for of in needed.values())
    if alike or len(policies) > MOST_POLICIES:
        return None
    rooms = {name: _Room(slots, *memory.left(name)) for name, slots in free.items()}
    left = [room.left for room in rooms.values()]
    host = sum(min(taken.own for taken in of.values()) for of in needed.values())
    device = sum(min(taken.device for taken in of.values()) for of in needed.values())
    if host > sum(max(0, each.host) for each in left) or device > sum(max(0, each.device) for each in left):
        return None
    search = _Search(policies, needed, rooms, near, rank_keys)
    return search.found if search.place(0) else None


class _Search:
    """The search for one gang's placement. Mutable, and local to one plan."""

    def __init__(
        self,
        policies: Sequence[PolicyStanding],
        needed: Mapping[str, Mapping[str, Taken]],
        rooms: dict[str, _Room],
        near: Mapping[str, int],
        rank_keys: Mapping[str, tuple[bool, bool]],
    ) -> None:
        self._rank_keys = rank_keys
        self._order = sorted(policies, key=lambda each: -max(taken.total for taken in needed[each.name].values()))
        self._needed, self._rooms, self._near = needed, rooms, Counter(near)
        # Engines of one kind with the same room left are interchangeable.
        self._kinds = {name: tuple(of[name] for of in needed.values()) for name in rooms}
        self._tries = MOST_TRIES + len(policies)
        self.found: dict[str, str] = {}

    def place(self, at: int) -> bool:
        """Place the policies from `at` on, given the places of those before; returns whether that succeeded."""
        if at == len(self._order):
            return True
        policy, tried = self._order[at], set[tuple[_Room, tuple[Taken, ...]]]()
        for name in self._ranked(policy):
            room, kind = self._rooms[name], self._kinds[name]
            left = room.less(self._needed[policy.name][name])
            if left is None or (room, kind) in tried:
                continue
            if not self._tries:
                return False
            self._tries -= 1
            tried.add((room, kind))
            self._rooms[name], self.found[policy.name] = left, name
            self._near[name] += 1
            if self.place(at + 1):
                return True
            self._rooms[name] = room
            self._near[name] -= 1
        return False

    def _ranked(self, policy: PolicyStanding) -> list[str]:
        """Return the engines in the order of `Slots.best`, but first the one where the policy has trained."""
        near, rooms, rank_keys = self._near, self._rooms, self._rank_keys
        return sorted(
            rooms, key=lambda name: (name != policy.engine, rank_keys[name], -near[name], -rooms[name].slots, name)
        )
