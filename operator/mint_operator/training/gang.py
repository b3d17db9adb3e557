"""Where all policies of a gang have room together, when they have none in the order in which they come. Pure.

The largest goes first, and other ways are tried where that leaves one without. Few are: what is not found so is found
when there is more room.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from mint_operator.training.memory import Memory, Taken
from mint_operator.training.stand import PolicyStand

MOST_POLICIES = 256  # as a list has; those of a count are all alike, and need no search
MOST_TRIES = 1000  # more than all ways of six policies on three engines, and some milliseconds


class _Room(msgspec.Struct, frozen=True):
    """What an engine has left: slots, bytes beside what policies take for themselves, and copies of the largest."""

    slots: int
    left: int
    copies: int

    def less(self, needed: Taken) -> "_Room | None":
        """With so much taken of it; None where that is not there."""
        copies = max(self.copies, needed.copies)
        if self.slots < 1 or (needed.total and needed.own + copies > self.left):
            return None
        return _Room(self.slots - 1, self.left - needed.own, copies)


def packed(
    policies: Sequence[PolicyStand],
    near: Mapping[str, int],
    free: Mapping[str, int],
    memory: Memory,
    later: Mapping[str, tuple[bool, bool]],
) -> dict[str, str] | None:
    """An engine for each policy, of those with `free` slots; None: none was found.

    `near` are the policies of the wave that engines train already; `later` says by what others come before each.
    """
    needed = {each.name: {name: memory.needed(name, each.settings) for name in free} for each in policies}
    alike = all(of == needed[policies[0].name] for of in needed.values())
    if alike or len(policies) > MOST_POLICIES:
        return None
    rooms = {name: _Room(slots, *memory.left(name)) for name, slots in free.items()}
    least = sum(min(taken.own for taken in of.values()) for of in needed.values())
    if least > sum(max(0, room.left) for room in rooms.values()):
        return None
    search = _Search(policies, needed, rooms, near, later)
    return search.found if search.place(0) else None


class _Search:
    """One gang's way to its places. Mutable, and local to one plan."""

    def __init__(
        self,
        policies: Sequence[PolicyStand],
        needed: Mapping[str, Mapping[str, Taken]],
        rooms: dict[str, _Room],
        near: Mapping[str, int],
        later: Mapping[str, tuple[bool, bool]],
    ) -> None:
        self._later = later
        self._order = sorted(policies, key=lambda each: -max(taken.total for taken in needed[each.name].values()))
        self._needed, self._rooms, self._near = needed, rooms, Counter(near)
        # Engines of one kind that have as much left are as good as each other.
        self._kinds = {name: tuple(of[name] for of in needed.values()) for name in rooms}
        self._tries = MOST_TRIES + len(policies)
        self.found: dict[str, str] = {}

    def place(self, at: int) -> bool:
        """Whether the policies from `at` on have found room beside those before."""
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

    def _ranked(self, policy: PolicyStand) -> list[str]:
        """As `Slots.best` has them, where the policy has trained first."""
        near, rooms, later = self._near, self._rooms, self._later
        return sorted(
            rooms, key=lambda name: (name != policy.engine, later[name], -near[name], -rooms[name].slots, name)
        )
