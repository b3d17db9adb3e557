"""The disk tier: its budget is kept, wanted or used files are never evicted, nothing is visible while incomplete."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest

from mint_contracts.errors import CapacityExceeded, Overloaded
from mint_engine.adapters.file_identity import KnownFile, identity_of
from mint_engine.residency.disk import DiskTier
from tests.engine.tiers import source
from tests.waiting import PATIENCE_S

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
