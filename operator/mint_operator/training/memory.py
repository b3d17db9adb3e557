"""Engines' memory while policies are placed on them: what each policy takes, counted as the engines count it.

A policy's own numbers take memory for as long as it trains: the host's or, if the engine has a GPU, the GPU's. In
addition there is room in host memory for one policy's copies, with which policies are saved one after another, sized
for the largest (the engine's `Room`). Pure.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence

import msgspec

from mint_contracts.byte_counts import in_units
from mint_contracts.records import PolicyRoom
from mint_contracts.targets import is_targeted
from mint_contracts.training import Policy
from mint_operator.planning.engines import Engine
from mint_operator.planning.sizes import Size

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}  # per number in an adapter, by the base's engine.dtype


class Taken(msgspec.Struct, frozen=True, gc=False):
    """Bytes that policies take on one engine: `own` of all together, and `copies` of the largest."""

    own: int = 0
    copies: int = 0
    device: int = 0  # own, in a GPU's memory

    @property
    def host_total(self) -> int:
        """All bytes of host memory."""
        return self.own + self.copies

    @property
    def total(self) -> int:
        """All bytes."""
        return self.host_total + self.device

    def plus(self, other: "Taken") -> "Taken":
        """Return what both take together; they share the room for copies."""
        return Taken(self.own + other.own, max(self.copies, other.copies), self.device + other.device)

    def within(self, free: "Free") -> bool:
        """Whether there is as much memory of both kinds."""
        return self.host_total <= free.host and self.device <= free.device


class Free(msgspec.Struct, frozen=True, gc=False):
    """Bytes of host memory and of a GPU's memory on one engine."""

    host: int = 0
    device: int = 0


NOTHING = Taken()


class Starts(msgspec.Struct, frozen=True):
    """The sizes of adapters that policies may start from, with `item_bytes` per number."""

    sizes: Mapping[str, Size] = {}
    item_bytes: int = 2

    def weights(self, adapter: str, room: PolicyRoom) -> int:
        """Return how many weights a policy that starts from this adapter has at most; 0: its size is unknown.

        Its rank over all modules is one bound, its bytes are another, as it may target few modules.
        """
        size = self.sizes.get(adapter)
        if size is None:
            return 0
        most = size.rank * sum(room.weights.values())
        return min(most, size.bytes // self.item_bytes) if size.bytes else most

    def shared(self, weights: int, room: PolicyRoom, shared: Mapping[str, int]) -> int:
        """Return the most bytes that ranks hold in addition for this many weights, whichever the modules are.

        `shared` are the bytes for a policy of rank 1, by the module's name.
        """
        each = [(shared.get(name, 0), count) for name, count in room.weights.items() if count]
        return max((-(-weights * held // count) for held, count in each), default=0)


_UNREAD = Starts()


def needs(
    policy: Policy, room: PolicyRoom, starts: Starts = _UNREAD, budgets: frozenset[Free] = frozenset()
) -> Taken:
    """Return what a policy takes on an engine with this room.

    A policy that starts from a revision has that one's rank and modules. The result is nothing if these are unknown
    (the engine itself refuses unknown modules), or if the policy fits none of the `budgets` of empty engines (by
    default this one's), since waiting for others would not help it.
    """
    if policy.start_from:
        weights = starts.weights(policy.start_from, room)

        def shared(by_name: Mapping[str, int]) -> int:
            return starts.shared(weights, room, by_name)
    else:
        names = _targeted(policy.target_modules, room)
        weights = policy.rank * sum(room.weights[name] for name in names)

        def shared(by_name: Mapping[str, int]) -> int:
            return policy.rank * sum(by_name.get(name, 0) for name in names)

    found, gpu = Taken(weights * room.own + shared(room.shared), weights * room.copies), room.device
    if gpu is not None:
        found = Taken(found.own, found.copies, weights * gpu.own + shared(gpu.shared))
    return found if any(found.within(each) for each in budgets or (_budget(room),)) else NOTHING


def size_of(policy: Policy) -> Hashable:
    """Return what a policy's needs depend on: those for which it is equal need the same on every engine."""
    return policy.rank, tuple(policy.target_modules), policy.start_from


def _budget(room: PolicyRoom) -> Free:
    return Free(room.budget, room.device.budget if room.device is not None else 0)


def _by_calls(room: PolicyRoom) -> Taken:
    return Taken(room.calls, room.calls_copies, room.device.calls if room.device is not None else 0)


def _targeted(targets: Sequence[str], room: PolicyRoom) -> list[str]:
    """Return the modules that a new policy targets; none if it names an unknown one."""
    if any(not any(is_targeted(name, [target]) for name in room.weights) for target in targets):
        return []
    return [name for name in room.weights if not targets or is_targeted(name, targets)]


class Memory:
    """The memory of each engine; if no engine of a base reports any, everything fits. Mutable, local to one plan.

    `wanted` are the bytes of adapters that waves want in an engine's memory; these never give way.
    """

    def __init__(self, rooms: Mapping[str, PolicyRoom], wanted: Mapping[str, int], starts: Starts = _UNREAD) -> None:
        self._rooms, self._starts = dict(rooms), starts
        budgets = {name: _budget(room) for name, room in rooms.items()}
        self._free = {name: Free(each.host - wanted.get(name, 0), each.device) for name, each in budgets.items()}
        self._taken = {name: _by_calls(room) for name, room in rooms.items()}
        self._budgets = frozenset(budgets.values())

    def copy(self) -> "Memory":
        """Return an independent copy: taking from it leaves this one unchanged."""
        found = Memory({}, {}, self._starts)
        found._rooms, found._free, found._taken = dict(self._rooms), dict(self._free), dict(self._taken)
        found._budgets = self._budgets
        return found

    def without_waves(self) -> "Memory":
        """Return a copy without any wave's policies, which end; Trainer API policies and served adapters may not."""
        found = self.copy()
        found._taken = {name: _by_calls(room) for name, room in self._rooms.items()}
        return found

    def enlarge(self, engines: Iterable[str]) -> None:
        """Add those engines that report nothing yet, each as large as the largest that does, if any does."""
        largest = max(self._rooms.values(), key=_size, default=None)
        if largest is None:
            return
        device = largest.device
        if device is not None:
            device = msgspec.structs.replace(device, calls=0)
        room = msgspec.structs.replace(largest, calls=0, calls_copies=0, device=device)
        for name in engines:
            if name not in self._rooms:
                self._rooms[name], self._free[name], self._taken[name] = room, _budget(room), NOTHING

    def needed(self, engine: str, policy: Policy) -> Taken:
        """Return what a policy takes on an engine; nothing if that is unknown."""
        room = self._rooms.get(engine)
        return NOTHING if room is None else needs(policy, room, self._starts, self._budgets)

    def left(self, engine: str) -> tuple[Free, int]:
        """Return the bytes not used by policies' own numbers, and the copies of the largest, which must fit there."""
        taken, free = self._taken.get(engine, NOTHING), self._free.get(engine, Free())
        return Free(free.host - taken.own, free.device - taken.device), taken.copies

    def fits(self, engine: str, policy: Policy) -> bool:
        """Whether an engine has memory for one more policy; True if that is unknown."""
        needed = self.needed(engine, policy)
        return not needed.total or self._taken[engine].plus(needed).within(self._free[engine])

    def take(self, engine: str, policy: Policy) -> None:
        """Reserve a policy's memory on an engine, even beyond what is free: what trains stays."""
        if engine in self._rooms:
            self._taken[engine] = self._taken[engine].plus(self.needed(engine, policy))

    def shortage(self, policies: Iterable[Policy], engines: Iterable[str]) -> str:
        """Return the message that says what policies need together, and what these engines have."""
        rooms = {name: self._rooms[name] for name in engines if name in self._rooms}
        needed, largest = NOTHING, 0
        for policy in policies:
            each = max((self.needed(name, policy) for name in rooms), key=lambda taken: taken.total, default=NOTHING)
            needed, largest = needed.plus(each), max(largest, each.host_total)
        free, taken = [self._free[name] for name in rooms], [self._taken[name] for name in rooms]
        budgets = [_budget(room) for room in rooms.values()]
        host = [max(0, one.host - other.host_total) for one, other in zip(free, taken, strict=True)]
        if needed.device and needed.host_total <= sum(host) and largest <= max(host):
            gpus = [max(0, one.device - other.device) for one, other in zip(free, taken, strict=True)]
            return (
                f"needs {in_units(needed.device)} of GPU memory to train its policies; "
                f"{_left(gpus, sum(each.device for each in budgets))}; the rest is used by earlier training waves "
                "and Trainer API policies"
            )
        return (
            f"needs {in_units(needed.host_total)} of host memory to train its policies and checkpoint one of them; "
            f"{_left(host, sum(each.host for each in budgets))}; the rest is used by earlier training waves, Trainer "
            "API policies and adapters that waves hold on Host"
        )


def _left(free: Sequence[int], budget: int) -> str:
    return (
        f"the ready engines with free slots have {in_units(sum(free))} of {in_units(budget)} free (at most "
        f"{in_units(max(free, default=0))} on one engine)"
    )


def _size(room: PolicyRoom) -> tuple[int, int]:
    budget = _budget(room)
    return budget.device, budget.host


def memory_of(engines: Iterable[Engine], wanted: Mapping[str, int], starts: Starts) -> Memory:
    """Return the memory of these engines as they report it; those that have not reported count as the largest."""
    rooms = {each.name: each.record.policy_room for each in engines if each.record is not None}
    found = Memory({name: room for name, room in rooms.items() if room is not None}, wanted, starts)
    found.enlarge(each.name for each in engines)
    return found
