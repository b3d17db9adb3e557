"""Host memory of engines while policies are placed on them: what each takes of it, as the engines themselves count.

A policy's own numbers take memory for as long as it trains; beside them there is room for the copies of the largest,
by which policies are saved one after another (the engine's `Room`). Pure.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from mint_contracts.byte_counts import in_units
from mint_contracts.records import PolicyRoom
from mint_contracts.targets import is_targeted
from mint_contracts.training import Policy
from mint_operator.planning.engines import Engine
from mint_operator.planning.sizes import Size

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}  # of a number in an adapter, by the base's engine.dtype


class Taken(msgspec.Struct, frozen=True, gc=False):
    """Bytes that policies take of one engine's memory: `own` of all, and `copies` of the largest."""

    own: int = 0
    copies: int = 0

    @property
    def total(self) -> int:
        """Both together."""
        return self.own + self.copies

    def plus(self, other: "Taken") -> "Taken":
        """With another's, whose copies are made in the same room."""
        return Taken(self.own + other.own, max(self.copies, other.copies))


NOTHING = Taken()


class Starts(msgspec.Struct, frozen=True):
    """How large adapters are that policies may begin with, each number of them so many bytes."""

    sizes: Mapping[str, Size] = {}
    item_bytes: int = 2

    def weights(self, adapter: str, room: PolicyRoom) -> int:
        """How many of a policy's weights one has at most; 0: nobody has read it.

        Its rank over all modules bounds them, and so do its bytes, which tell how few modules it may target.
        """
        size = self.sizes.get(adapter)
        if size is None:
            return 0
        most = size.rank * sum(room.weights.values())
        return min(most, size.bytes // self.item_bytes) if size.bytes else most

    def shared(self, weights: int, room: PolicyRoom) -> int:
        """Bytes that ranks hold at most of one that begins with so many weights, of whichever modules."""
        each = [(room.shared.get(name, 0), count) for name, count in room.weights.items() if count]
        return max((-(-weights * shared // count) for shared, count in each), default=0)


_UNREAD = Starts()


def needs(policy: Policy, room: PolicyRoom, starts: Starts = _UNREAD) -> Taken:
    """What a policy takes of an engine that has such a room.

    Who begins with a revision has its rank and modules. Nothing where these are not known, and what an engine does
    not know by that name it refuses itself. Nor for one that has no room on an empty engine: waiting for others would
    not help it.
    """
    if policy.start_from:
        weights = starts.weights(policy.start_from, room)
        shared = starts.shared(weights, room)
    else:
        names = _targeted(policy.target_modules, room)
        weights = policy.rank * sum(room.weights[name] for name in names)
        shared = policy.rank * sum(room.shared.get(name, 0) for name in names)
    found = Taken(weights * room.own + shared, weights * room.copies)
    return found if found.total <= room.budget else NOTHING


def _targeted(targets: Sequence[str], room: PolicyRoom) -> list[str]:
    """The modules of one that begins anew; none where it names what is not known."""
    if any(not any(is_targeted(name, [target]) for name in room.weights) for target in targets):
        return []
    return [name for name in room.weights if not targets or is_targeted(name, targets)]


class Memory:
    """Of each engine; where none of a base tells what it has, everything fits. Mutable, and local to one plan.

    `wanted` are the bytes of adapters that waves want in an engine's memory, which give way to nobody.
    """

    def __init__(self, rooms: Mapping[str, PolicyRoom], wanted: Mapping[str, int], starts: Starts = _UNREAD) -> None:
        self._rooms, self._starts = dict(rooms), starts
        self._free = {name: room.budget - wanted.get(name, 0) for name, room in rooms.items()}
        self._taken = {name: Taken(room.calls, room.calls_copies) for name, room in rooms.items()}

    def copy(self) -> "Memory":
        """One that what is taken of it takes nothing of this one."""
        found = Memory({}, {}, self._starts)
        found._rooms, found._free, found._taken = dict(self._rooms), dict(self._free), dict(self._taken)
        return found

    def without_waves(self) -> "Memory":
        """As it would be with no policy of any wave: those end, while calls and what is served may stay for good."""
        found = self.copy()
        found._taken = {name: Taken(room.calls, room.calls_copies) for name, room in self._rooms.items()}
        return found

    def enlarge(self, engines: Iterable[str]) -> None:
        """Count in those of these that tell nothing yet, each as large as the largest that does; if one does."""
        largest = max(self._rooms.values(), key=lambda room: room.budget, default=None)
        if largest is None:
            return
        room = msgspec.structs.replace(largest, calls=0, calls_copies=0)
        for name in engines:
            if name not in self._rooms:
                self._rooms[name], self._free[name], self._taken[name] = room, room.budget, NOTHING

    def needed(self, engine: str, policy: Policy) -> Taken:
        """What a policy takes of an engine; nothing where nobody knows."""
        room = self._rooms.get(engine)
        return NOTHING if room is None else needs(policy, room, self._starts)

    def left(self, engine: str) -> tuple[int, int]:
        """Bytes beside what policies take for themselves, and copies of the largest, which are to be among them."""
        taken = self._taken.get(engine, NOTHING)
        return self._free.get(engine, 0) - taken.own, taken.copies

    def fits(self, engine: str, policy: Policy) -> bool:
        """Whether an engine has memory for one policy more; also where nobody knows."""
        needed = self.needed(engine, policy)
        return not needed.total or self._taken[engine].plus(needed).total <= self._free[engine]

    def take(self, engine: str, policy: Policy) -> None:
        """Give it memory there, also where that is more than there is: what trains stays."""
        if engine in self._rooms:
            self._taken[engine] = self._taken[engine].plus(self.needed(engine, policy))

    def shortage(self, policies: Iterable[Policy], engines: Iterable[str]) -> str:
        """What policies need together, and what there is of it on these engines."""
        rooms = {name: self._rooms[name] for name in engines if name in self._rooms}
        needed = NOTHING
        for policy in policies:
            each = [needs(policy, room, self._starts) for room in rooms.values()]
            needed = needed.plus(max(each, key=lambda taken: taken.total, default=NOTHING))
        budget = sum(room.budget for room in rooms.values())
        free = [max(0, self._free[name] - self._taken[name].total) for name in rooms]
        return (
            f"needs {in_units(needed.total)} of host memory to train its policies and checkpoint one of them; the "
            f"ready engines have {in_units(sum(free))} of {in_units(budget)} free (at most "
            f"{in_units(max(free, default=0))} on one engine); the rest is used by earlier training waves, Trainer "
            "API policies and adapters that waves hold on Host"
        )


def memory_of(engines: Iterable[Engine], wanted: Mapping[str, int], starts: Starts) -> Memory:
    """That of these engines, by their own word; those that have not spoken yet are as the others."""
    rooms = {each.name: each.record.policy_room for each in engines if each.record is not None}
    found = Memory({name: room for name, room in rooms.items() if room is not None}, wanted, starts)
    found.enlarge(each.name for each in engines)
    return found
