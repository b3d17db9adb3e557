"""The host tier and the ledger of every tier: budgets are kept, wanted or used entries never evicted."""

import weakref
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mint_engine.adapters.file_identity import KnownFile, identity_of
from mint_engine.residency.host import HostTier
from mint_engine.residency.ledger import Ledger, evictions
from tests.engine.made import smallest_adapter
from tests.engine.tiers import source

SIZES = st.integers(0, 50)


ONE = smallest_adapter().nbytes


@given(
    st.lists(st.tuples(st.integers(0, 20), SIZES), max_size=8, unique_by=lambda each: each[0]),
    st.sets(st.integers(0, 20)), st.integers(0, 200), SIZES,
)  # fmt: skip
def test_evictions_are_the_fewest_least_recent_unpinned_that_make_room(
    entries: list[tuple[int, int]], pinned: set[int], budget: int, need: int
) -> None:
    open_to = [(key, size) for key, size in entries if key not in pinned]
    free = budget - sum(size for _, size in entries)
    chosen = evictions(open_to, free, need)
    if chosen is None:
        assert free + sum(size for _, size in open_to) < need
        return
    assert chosen == [key for key, _ in open_to][: len(chosen)], "least recently used first"
    sizes = dict(entries)
    assert free + sum(sizes[key] for key in chosen) >= need
    if chosen:
        assert free + sum(sizes[key] for key in chosen[:-1]) < need, "no more than needed"


class LedgerMachine(RuleBasedStateMachine):
    """Any order of entering, pinning and removing."""

    keys = st.integers(0, 6)

    def __init__(self) -> None:
        super().__init__()
        self.ledger: Ledger[int] = Ledger(100)
        self.kept: set[int] = set()
        self.uses: list[int] = []

    @rule(key=keys, nbytes=SIZES)
    def add(self, key: int, nbytes: int) -> None:
        before = set(self.ledger.keys())
        evicted = self.ledger.add(key, nbytes)
        if evicted is None:
            assert set(self.ledger.keys()) == before
        else:
            assert not set(evicted) & (self.kept | set(self.uses))
            assert set(self.ledger.keys()) == before - set(evicted) | {key}

    @rule(nbytes=st.integers(0, 120))
    def set_aside(self, nbytes: int) -> None:
        before, aside = set(self.ledger.keys()), self.ledger.aside
        evicted = self.ledger.set_aside(nbytes)
        if evicted is None:
            assert nbytes > aside, "less always fits"
            assert (set(self.ledger.keys()), self.ledger.aside) == (before, aside)
        else:
            assert not set(evicted) & (self.kept | set(self.uses))
            assert (set(self.ledger.keys()), self.ledger.aside) == (before - set(evicted), nbytes)

    @rule(keys=st.sets(keys))
    def keep(self, keys: set[int]) -> None:
        self.kept = keys
        self.ledger.keep(frozenset(keys))

    @rule(key=keys)
    def use(self, key: int) -> None:
        self.uses.append(key)
        self.ledger.use(key)

    @rule(key=keys)
    def touch(self, key: int) -> None:
        before = set(self.ledger.keys())
        self.ledger.touch(key)
        assert set(self.ledger.keys()) == before

    @rule()
    def release(self) -> None:
        if self.uses:
            self.ledger.release(self.uses.pop())

    @rule(key=keys)
    def remove(self, key: int) -> None:
        self.ledger.remove(key)

    @invariant()
    def budget_is_kept(self) -> None:
        assert self.ledger.used + self.ledger.aside <= 100
        assert self.ledger.imbalance() == ""


TestLedger = LedgerMachine.TestCase


def test_the_host_tier_lets_go_of_the_least_recently_used() -> None:
    host = HostTier(ONE * 5 // 2)
    a, b, c = (("a", source("a")), ("b", source("b")), ("c", source("c")))
    assert host.put(a, smallest_adapter()) == host.put(b, smallest_adapter()) == []
    host.ledger.use(a)
    host.ledger.release(a)
    assert host.put(c, smallest_adapter()) == [b]
    assert host.get(b) is None
    assert host.get(a) is not None
    assert host.ledger.used == 2 * ONE
    assert host.imbalance() == ""


def test_recently_touched_copies_leave_a_ledger_later() -> None:
    ledger: Ledger[str] = Ledger(2)
    assert ledger.add("a", 1) == ledger.add("b", 1) == []
    ledger.touch("a")
    ledger.touch("unknown")
    assert ledger.add("c", 1) == ["b"]
    ledger.use("c")
    ledger.touch("c")
    assert ledger.add("d", 1) == ["a"], "what is pinned stays so"
    assert ledger.imbalance() == ""


def test_the_host_tier_refuses_rather_than_evict_what_is_wanted() -> None:
    host = HostTier(ONE)
    host.ledger.keep(frozenset({("a", source("a"))}))
    assert host.put(("a", source("a")), smallest_adapter()) == []
    assert host.put(("b", source("b")), smallest_adapter()) is None
    assert host.get(("b", source("b"))) is None


def test_the_host_tier_holds_what_it_has_reserved_for_only_once_it_is_there() -> None:
    host, a, b = HostTier(ONE * 3 // 2), ("a", source("a")), ("b", source("b"))
    host.put(a, smallest_adapter())
    host.ledger.use(b)
    assert host.reserve(b, ONE) == [a]
    assert (host.get(b), host.ledger.used, host.imbalance()) == (None, ONE, "")
    host.ledger.use(a)
    assert host.reserve(a, ONE) is None, "the place is taken"
    assert host.put(b, smallest_adapter()) == []
    assert (host.get(b) is None, host.ledger.used, host.imbalance()) == (False, ONE, "")
    host.drop(b)
    assert host.reserve(a, ONE) == []
    host.drop(a)
    assert (host.ledger.used, host.imbalance()) == (0, "")


def test_copies_dropped_from_the_host_tier_are_freed() -> None:
    host, held = HostTier(1 << 20), smallest_adapter()
    gone = weakref.ref(held.run)
    host.put(("a", source("a")), held)
    del held
    assert gone() is not None
    host.drop(("a", source("a")))
    assert gone() is None


def test_the_host_tier_lets_go_of_mapped_files_that_nobody_wants(tmp_path: Path) -> None:
    host, whole = HostTier(1 << 20), smallest_adapter()
    file = KnownFile(tmp_path, identity_of(tmp_path.stat()))
    names = [(name, source(name)) for name in "abcde"]
    for key in names:
        assert host.put(key, whole if key[0] == "b" else replace(whole, file=file)) == []
    host.ledger.keep(frozenset({names[0]}))
    assert host.shed(ONE + 1)
    assert host.take_shed() == names[2:4]
    assert [host.get(key) is not None for key in names] == [True, True, False, False, True]
    assert (host.shed(ONE), host.shed(ONE), host.take_shed(), host.take_shed()) == (True, False, names[4:], [])
    assert host.imbalance() == ""
    pinned = HostTier(1 << 20, pinned=True)
    pinned.put(names[0], replace(whole, file=file))
    assert not pinned.shed(ONE), "it has memory of its own"
