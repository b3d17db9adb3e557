"""Host and disk tiers: budgets kept, what is wanted or in use never evicted, nothing half there."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mint_contracts.errors import CapacityExceeded, Overloaded
from mint_contracts.source import Source
from mint_engine.adapter import AdapterWeights, Delta
from mint_engine.disk import DiskTier
from mint_engine.host import HostTier
from mint_engine.ledger import Ledger, evictions

SIZES = st.integers(0, 50)


def source(name: str) -> Source:
    return Source(f"https://store/{name}")


def weights(name: str, floats: int = 10) -> AdapterWeights:
    delta = Delta(torch.zeros(1, floats), torch.zeros(1, 1), 1.0)
    return AdapterWeights(adapter=name, revision=f"sha256:{name}", rank=1, deltas={"q": delta})


@given(
    st.lists(st.tuples(st.integers(0, 20), SIZES), max_size=8, unique_by=lambda each: each[0]),
    st.sets(st.integers(0, 20)), st.integers(0, 200), SIZES,
)  # fmt: skip
def test_evictions_are_the_fewest_least_recent_unpinned_that_make_room(
    entries: list[tuple[int, int]], pinned: set[int], budget: int, need: int
) -> None:
    chosen = evictions(entries, pinned, budget, need)
    unpinned = [key for key, _ in entries if key not in pinned]
    sizes = dict(entries)
    if chosen is None:
        assert budget - sum(size for key, size in entries if key in pinned) < need
        return
    assert chosen == unpinned[: len(chosen)], "least recently used first"
    assert sum(size for key, size in entries if key not in chosen) + need <= budget
    if chosen:
        assert sum(size for key, size in entries if key not in chosen[:-1]) + need > budget, "no more than needed"
    assert not set(chosen) & pinned
    assert all(key in sizes for key in chosen)


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

    @rule(keys=st.sets(keys))
    def keep(self, keys: set[int]) -> None:
        self.kept = keys
        self.ledger.keep(frozenset(keys))

    @rule(key=keys)
    def use(self, key: int) -> None:
        self.uses.append(key)
        self.ledger.use(key)

    @rule()
    def release(self) -> None:
        if self.uses:
            self.ledger.release(self.uses.pop())

    @rule(key=keys)
    def remove(self, key: int) -> None:
        self.ledger.remove(key)

    @invariant()
    def budget_is_kept(self) -> None:
        assert self.ledger.used <= 100


TestLedger = LedgerMachine.TestCase


def test_the_host_tier_lets_go_of_the_least_recently_used() -> None:
    host = HostTier(100)
    for name in "ab":
        assert host.put((name, source(name)), weights(name))
    host.ledger.use(("a", source("a")))
    host.ledger.release(("a", source("a")))
    assert host.put(("c", source("c")), weights("c"))
    assert host.get(("b", source("b"))) is None
    assert host.get(("a", source("a"))) is not None
    assert host.ledger.used == 88


def test_the_host_tier_refuses_rather_than_evict_what_is_wanted() -> None:
    host = HostTier(50)
    host.ledger.keep(frozenset({("a", source("a"))}))
    assert host.put(("a", source("a")), weights("a"))
    assert not host.put(("b", source("b")), weights("b"))
    assert host.get(("b", source("b"))) is None


def test_what_the_host_tier_drops_is_freed() -> None:
    import weakref

    host, held = HostTier(1000), weights("a")
    gone = weakref.ref(held.deltas["q"].a)
    host.put(("a", source("a")), held)
    del held
    assert gone() is not None
    host.drop(("a", source("a")))
    assert gone() is None


def store(tier: DiskTier, name: str, nbytes: int) -> Path:
    def copy(into: Path, admit: Callable[[int], None]) -> None:
        admit(nbytes)
        (into / "file").write_bytes(bytes(nbytes))

    with tier.using(source(name)):
        return tier.store(source(name), copy)


def test_the_disk_tier_keeps_its_budget_by_removing_folders(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 100)
    for name in "abc":
        store(tier, name, 40)
    assert tier.get(source("a")) is None
    assert tier.get(source("b")) is not None
    assert tier.ledger.used == 80
    assert len(list(tmp_path.iterdir())) == 2


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 100)

    def copy(into: Path, admit: Callable[[int], None]) -> None:
        admit(40)
        (into / "file").write_bytes(b"half")
        raise OSError("the line went dead")

    with pytest.raises(OSError, match="dead"):
        tier.store(source("a"), copy)
    assert tier.get(source("a")) is None
    assert (tier.ledger.used, list(tmp_path.iterdir())) == (0, [])


def test_a_copy_in_progress_is_not_there_yet(tmp_path: Path) -> None:
    tier, seen = DiskTier(tmp_path, 100), []

    def copy(into: Path, admit: Callable[[int], None]) -> None:
        admit(40)
        seen.append(tier.get(source("a")))

    tier.store(source("a"), copy)
    assert seen == [None]
    assert tier.get(source("a")) is not None


def test_the_disk_tier_refuses_rather_than_evict_what_is_wanted(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 100)
    store(tier, "a", 60)
    tier.ledger.keep(frozenset({source("a")}))
    with pytest.raises(Overloaded) as caught:
        store(tier, "b", 60)
    assert caught.value.retry_after_s
    with pytest.raises(CapacityExceeded):
        store(tier, "c", 101)
    assert tier.get(source("a")) is not None


def test_a_restart_finds_what_was_complete_and_sweeps_the_rest(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 100)
    kept, broken = store(tier, "a", 30), store(tier, "b", 30)
    os.utime(kept, (1, 1))
    (broken / "entry.json").write_text("{")
    (tmp_path / ".partial-x").mkdir()
    (tmp_path / "stray").write_text("")

    again = DiskTier(tmp_path, 100)
    assert again.get(source("a")) == kept
    assert again.get(source("b")) is None
    assert again.ledger.used == 30
    assert list(tmp_path.iterdir()) == [kept]
    assert DiskTier(tmp_path, 10).ledger.used == 0, "a smaller budget holds for what is found, too"
