"""Host and disk tiers: budgets are kept, wanted or used entries never evicted, nothing visible when incomplete."""

import os
import shutil
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mint_contracts.errors import CapacityExceeded, Overloaded
from mint_contracts.source import Source
from mint_engine.adapters.file_identity import KnownFile, identity_of
from mint_engine.residency.disk import DiskTier
from mint_engine.residency.host import HostTier
from mint_engine.residency.ledger import Ledger, evictions
from tests.engine.made import smallest_adapter
from tests.waiting import PATIENCE_S

SIZES = st.integers(0, 50)


def source(name: str) -> Source:
    return Source(f"https://store/{name}")


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


IDENTITY, OTHER = "0" * 16, "1" * 16


def store(tier: DiskTier, name: str, nbytes: int, identity: str = IDENTITY) -> Path:
    def write(file: BinaryIO, admit: Callable[[int], None]) -> None:
        admit(nbytes)
        file.write(bytes(nbytes))

    with tier.using(source(name)):
        return tier.store(source(name), identity, write)


def test_the_disk_tier_keeps_its_budget_by_removing_files(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 100)
    for name in "abc":
        store(tier, name, 40)
    assert not tier.holds(source("a"))
    assert tier.get(source("a"), IDENTITY) is None
    assert tier.get(source("b"), IDENTITY) is not None
    assert tier.ledger.used == 80
    assert len(list(tmp_path.iterdir())) == 2
    assert tier.imbalance() == ""


def test_a_disk_that_others_fill_is_kept_within_as_a_budget_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(folder: Path) -> SimpleNamespace:
        return SimpleNamespace(free=100 - sum(path.stat().st_size for path in folder.iterdir()))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    tier = DiskTier(tmp_path, 1000)
    for name in "abc":
        store(tier, name, 40)
    assert [tier.holds(source(name)) for name in "abc"] == [False, True, True]
    tier.yields(frozenset({source("early")}))
    with pytest.raises(Overloaded):
        store(tier, "early", 30)
    restarted = DiskTier(tmp_path, 1000)
    assert [restarted.holds(source(name)) for name in "bc"] == [True, True], "what is there needs no more room"


def test_a_source_that_changed_takes_the_place_of_what_it_was(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 100)
    store(tier, "a", 40)
    assert tier.get(source("a"), OTHER) is None
    path = store(tier, "a", 70, OTHER)
    assert tier.get(source("a"), OTHER) == path
    assert tier.get(source("a"), IDENTITY) is None
    assert (tier.ledger.used, list(tmp_path.iterdir())) == (70, [path])


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 100)

    def write(file: BinaryIO, admit: Callable[[int], None]) -> None:
        admit(40)
        file.write(b"half")
        raise OSError("the line went dead")

    with pytest.raises(OSError, match="dead"):
        tier.store(source("a"), IDENTITY, write)
    assert not tier.holds(source("a"))
    assert (tier.ledger.used, list(tmp_path.iterdir())) == (0, [])


def test_a_copy_in_progress_is_not_there_yet(tmp_path: Path) -> None:
    tier, seen = DiskTier(tmp_path, 100), []

    def write(file: BinaryIO, admit: Callable[[int], None]) -> None:
        admit(40)
        file.write(b"whole")
        seen.append(tier.get(source("a"), IDENTITY))

    tier.store(source("a"), IDENTITY, write)
    assert seen == [None]
    assert tier.get(source("a"), IDENTITY) is not None
    assert tier.ledger.used == 5, "what was written counts, not what was expected"


def test_a_copy_stored_again_during_its_removal_keeps_its_file(tmp_path: Path) -> None:
    """When many small files make room for a large one, the last may be loaded again before its file is removed."""
    disk = DiskTier(tmp_path / "disk", 100)
    store(disk, "small", 60)
    add = disk.ledger.add

    def add_and_come_again(key: str, nbytes: int, **how: Any) -> list[str] | None:
        evicted = add(key, nbytes, **how)
        if evicted:
            with ThreadPoolExecutor(1) as other:
                other.submit(store, disk, "small", 30).result(PATIENCE_S)
        return evicted

    disk.ledger.add = add_and_come_again  # type: ignore[method-assign]
    store(disk, "large", 50)
    for name, nbytes in (("small", 30), ("large", 50)):
        path = disk.get(source(name), IDENTITY)
        assert path is not None
        assert path.stat().st_size == nbytes
    assert disk.imbalance() == ""


def mapped(tier: DiskTier, name: str) -> KnownFile:
    """A stored file of 40 bytes, which counts as mapped for as long as the returned object is kept."""
    path = store(tier, name, 40)
    file = KnownFile(path, identity_of(path.stat()))
    tier.mapped(source(name), file)
    return file


def test_a_file_that_is_mapped_gives_way_after_those_that_are_not(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 100)
    file = mapped(tier, "a")
    again = replace(file)
    tier.mapped(source("a"), again)
    store(tier, "b", 40)
    store(tier, "c", 40)
    assert [tier.holds(source(name)) for name in "abc"] == [True, False, True], "its room would not come back"
    del file
    store(tier, "d", 40)
    assert [tier.holds(source(name)) for name in "acd"] == [True, False, True], "somebody else has it mapped"
    del again
    store(tier, "e", 40)
    assert [tier.holds(source(name)) for name in "ade"] == [False, True, True]
    assert tier.used == 80


def test_a_file_that_is_replaced_or_dropped_counts_while_it_is_mapped(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 100)
    older = mapped(tier, "a")
    path = store(tier, "a", 50, OTHER)
    assert (tier.used, list(tmp_path.iterdir())) == (90, [path])
    tier.yields(frozenset({source("early")}))
    with pytest.raises(Overloaded):
        store(tier, "early", 20)
    store(tier, "b", 20)
    assert (tier.used, tier.holds(source("a"))) == (60, False), "what is not mapped made room"
    tier.drop(source("b"))
    del older
    assert tier.used == 0
    store(tier, "early", 20)


def test_mappings_are_let_go_of_before_files_in_use_are_removed(tmp_path: Path) -> None:
    tier, asked = DiskTier(tmp_path, 100), list[int]()
    files = [mapped(tier, name) for name in "ab"]

    def shed(nbytes: int) -> bool:
        asked.append(nbytes)
        return bool(files and files.pop(0))

    tier.sheds = shed
    files.append(kept := mapped(tier, "c"))
    assert (asked, [tier.holds(source(name)) for name in "abc"]) == ([40], [False, True, True])
    files.clear()
    kept_too = mapped(tier, "d")
    assert [tier.holds(source(name)) for name in "bcd"] == [False, True, True]
    store(tier, "e", 40)
    assert [tier.holds(source(name)) for name in "cde"] == [False, True, True], "the least recently used goes"
    assert tier.used == 120, "and takes its room until it is let go of"
    assert (kept.path.exists(), kept_too.path.exists()) == (False, True)
    del kept
    assert tier.used == 80


@pytest.mark.parametrize(("budget", "others"), [(100, 0), (1000, 900)], ids=["a full budget", "a full disk"])
def test_mappings_are_kept_where_letting_go_of_all_would_not_make_room(
    budget: int, others: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(folder: Path) -> SimpleNamespace:
        return SimpleNamespace(free=max(1000 - others - sum(path.stat().st_size for path in folder.iterdir()), 0))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    tier, asked = DiskTier(tmp_path, budget), list[int]()

    def shed(nbytes: int) -> bool:
        asked.append(nbytes)
        return bool(files and files.pop())

    tier.sheds = shed
    files = [mapped(tier, name) for name in "ab"]
    tier.keep(frozenset({source("a")}))
    with suppress(Overloaded):  # where it is the disk that is full, writing tells
        store(tier, "c", 61)
    assert (asked, len(files)) == ([], 2), "a is wanted, and leaves 60"
    tier.drop(source("c"))
    store(tier, "c", 60)
    assert (asked, [tier.holds(source(name)) for name in "abc"]) == ([60], [True, False, True])


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


def test_the_disk_tier_refuses_rather_than_evict_what_is_wanted(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 100)
    store(tier, "a", 60)
    tier.keep(frozenset({source("a")}))
    with pytest.raises(Overloaded) as caught:
        store(tier, "b", 60)
    assert caught.value.retry_after_s
    with pytest.raises(CapacityExceeded):
        store(tier, "c", 101)
    assert tier.holds(source("a"))


def test_a_restart_finds_what_was_complete_and_sweeps_the_rest(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 100)
    kept, older = store(tier, "a", 30), store(tier, "b", 30)
    os.utime(older, (1, 1))
    newer = older.with_name(older.name.replace(IDENTITY, OTHER))
    newer.write_bytes(bytes(20))  # a crash between publishing it and removing what it replaced
    (tmp_path / ".partial-x").write_bytes(b"half")
    (tmp_path / "folder").mkdir()
    (tmp_path / "stray").write_text("")
    elsewhere = tmp_path.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(bytes(20))
    (tmp_path / "link").symlink_to(elsewhere)
    (tmp_path / "dangling").symlink_to(elsewhere / "absent")
    (tmp_path / kept.name.replace(IDENTITY, OTHER)).symlink_to(elsewhere / "file")

    again = DiskTier(tmp_path, 100)
    assert again.get(source("a"), IDENTITY) == kept
    assert again.get(source("b"), OTHER) == newer
    assert again.ledger.used == 50
    assert set(tmp_path.iterdir()) == {kept, newer}
    assert again.imbalance() == ""
    assert (elsewhere / "file").exists(), "links are removed, and what they lead to stays"
    assert DiskTier(tmp_path, 10).ledger.used == 0, "a smaller budget holds for what is found, too"


def test_a_restart_evicts_what_was_used_longest_ago_first(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 100)
    early, late = store(tier, "early", 40), store(tier, "late", 40)
    os.utime(early, (3, 1))  # read after the other was stored
    os.utime(late, (2, 2))
    again = DiskTier(tmp_path, 100)
    store(again, "new", 40)
    assert (again.holds(source("early")), again.holds(source("late"))) == (True, False)
    assert set(tmp_path.iterdir()) == {early, again.get(source("new"), IDENTITY)}
