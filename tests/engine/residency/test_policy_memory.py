"""Host memory of policies: within the budget, before cold adapters, never before wanted ones."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_contracts.byte_counts import in_units
from mint_contracts.errors import CapacityExceeded, Overloaded
from mint_contracts.source import Source
from mint_engine.residency.host import HostTier, Key
from mint_engine.residency.policy_memory import Needs, PolicyMemory
from tests.engine.made import smallest_adapter

BUDGET = 400
NAMES = st.sampled_from(["one", "two", "three", "four"])
TAKES = st.tuples(
    st.just("take"), NAMES, st.builds(Needs, st.integers(1, 200), st.integers(1, 100), st.integers(1, 50))
)
LEAVES = st.tuples(st.just("leave"), NAMES, st.none())
COPIES = st.tuples(st.just("copy"), NAMES, st.none())
ENDS = st.tuples(st.just("end"), NAMES, st.none())
PUTS = st.tuples(st.just("put"), NAMES, st.booleans())


def key(name: str) -> Key:
    return name, Source(f"https://store/{name}")


def room_of(host: HostTier, gone: list[Key] | None = None, wait_s: float = 0.0) -> PolicyMemory:
    return PolicyMemory(host, (gone if gone is not None else []).extend, wait_s)


class World:
    """A PolicyMemory, and what each user of it has been given."""

    def __init__(self) -> None:
        self.host, self.kept = HostTier(BUDGET), set[Key]()
        self.room = room_of(self.host)
        self.have: dict[str, Needs] = {}
        self.copies: list[tuple[int, Callable[[], None]]] = []

    async def do(self, what: str, name: str, value: Needs | bool | None) -> None:
        if what == "take" and isinstance(value, Needs):
            self.room.take(name, value)
            self.have[name] = value
        elif what == "leave":
            self.room.leave(name)
            self.have.pop(name, None)
        elif what == "copy":
            nbytes = self.room.of(name).copies
            self.copies.append((nbytes, await self.room.begin_copy(name, nbytes)))
        elif what == "end" and self.copies:
            self.copies.pop()[1]()
        elif what == "put" and self.host.put(key(name), smallest_adapter()) is not None and value:
            self.kept.add(key(name))
            self.host.ledger.keep(frozenset(self.kept))

    def check(self) -> None:
        owned, copied = sum(each.own for each in self.have.values()), sum(nbytes for nbytes, _ in self.copies)
        largest = max((each.copies for each in self.have.values()), default=0)
        assert {name: self.room.of(name) for name in self.have} == self.have
        assert self.host.ledger.aside == owned + max(copied, largest)
        assert self.host.ledger.aside + self.host.ledger.used <= BUDGET
        assert self.kept <= set(self.host.ledger.keys()), "what is wanted never gives way"
        assert not self.host.imbalance()
        assert not self.room.imbalance(owned)


@given(st.lists(st.one_of(TAKES, LEAVES, COPIES, ENDS, PUTS), max_size=30))
def test_whatever_comes_the_budget_is_kept_and_each_policy_can_be_saved_once_nobody_else_is(
    told: list[tuple[str, str, Needs | bool | None]],
) -> None:
    async def run() -> None:
        world = World()
        for what, name, value in told:
            before = set(world.host.ledger.keys())
            never = isinstance(value, Needs) and value.own + value.copies > BUDGET
            refusal = CapacityExceeded if never else Overloaded
            try:
                await world.do(what, name, value)
                assert not never
            except refusal:
                assert set(world.host.ledger.keys()) == before, "nothing gives way in vain"
            world.check()
        while world.copies:
            await world.do("end", "", None)
        for name in world.have:
            await world.do("copy", name, None)
            await world.do("end", name, None)

    asyncio.run(run())


async def test_cold_adapters_give_way_to_policies_the_least_recently_used_first() -> None:
    one = smallest_adapter().nbytes
    host, gone = HostTier(4 * one), list[Key]()
    room = room_of(host, gone)
    for name in ("wanted", "old", "new"):
        host.put(key(name), smallest_adapter())
    host.ledger.keep(frozenset({key("wanted")}))
    room.take("policy", Needs(one, one, 0))
    assert gone == [key("old")]
    assert host.put(key("late"), smallest_adapter()) == [key("new")], "what is left is for adapters, as before"
    with pytest.raises(
        Overloaded, match=f"needs {in_units(2 * one + 4)} of host memory; 1 other policies and"
    ) as refused:
        room.take("more", Needs(2 * one, 4, 0))
    assert refused.value.retry_after_s
    assert gone == [key("old")]
    room.leave("policy")
    room.take("more", Needs(2 * one, 4, 0))


async def test_copies_wait_in_line_for_what_others_take() -> None:
    host = HostTier(10)
    room = room_of(host, wait_s=60.0)
    room.take("one", Needs(2, 4, 0))
    room.take("two", Needs(2, 4, 0))
    first = await room.begin_copy("one", 4)
    line = [asyncio.create_task(room.begin_copy("two", nbytes)) for nbytes in (4, 1)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not any(each.done() for each in line), "who comes later does not overtake"
    line[0].cancel()
    second = await line[1]
    third = asyncio.create_task(room.begin_copy("two", 2))
    first()
    (await third)()
    second()
    assert host.ledger.aside == 8


async def test_a_refusal_for_lack_of_room_mentions_copies() -> None:
    """While one policy is being saved and published, it may hold more than policies do permanently."""
    room = room_of(HostTier(10))
    room.take("one", Needs(2, 4, 3))
    ends = [await room.begin_copy("one", nbytes) for nbytes in (4, 3)]
    with pytest.raises(Overloaded, match="1 other policies and their copies have 9 bytes of 10 bytes"):
        room.take("two", Needs(2, 4, 3))
    for end in ends:
        end()
    room.take("two", Needs(2, 4, 3))


async def test_a_policy_that_is_not_accounted_for_is_found() -> None:
    room = room_of(HostTier(10))
    room.take("one", Needs(2, 4, 0))
    assert not room.imbalance(2)
    assert "policies have 3 bytes and have taken 2" in room.imbalance(3)
