"""Several writers sweep one policy's folders at once: only a writer that has lost its lease gets an error."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mint_contracts import durable
from mint_contracts.errors import SourceNotFound, SourceUnavailable, StaleLease
from mint_engine.policies.stored import store as stores
from mint_engine.policies.stored.checkpoints import Checkpoints, Record, digest_of
from mint_engine.policies.stored.series import Name
from mint_engine.policies.stored.store import LocalStore, Store
from tests.engine.training.publications import made
from tests.engine.training.publications import publish as publish_and_sweep
from tests.engine.training.training_engine import Gate


def save(store: Store, name: Name, _: Path) -> None:
    blob = str(name).encode()
    record = Record("acme/one", "default/wave", name.lease, name.step, digest_of(blob))
    Checkpoints(store, "acme/one").save(record, blob)


def publish(store: Store, name: Name, folder: Path) -> None:
    publish_and_sweep(store, "acme/one", name, made(folder, seed=name.lease))


def found(store: Store) -> list[str]:
    """Return all paths in the store, of complete and of half-written files."""
    assert isinstance(store, LocalStore)
    return sorted(str(path.relative_to(store._root)) for path in store._root.rglob("*"))


@pytest.mark.parametrize("file", [0, 1])
@pytest.mark.parametrize("write", [save, publish])
async def test_who_finds_what_it_writes_swept_by_a_newer_lease_is_told_of_that(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Store, Name, Path], None],
    file: int,
) -> None:
    """The error names the lost lease, not a missing file, which somebody would search for."""
    with ThreadPoolExecutor(1) as threads, Gate(after=file) as writing:

        def held(partial: Path, target: Path) -> None:
            if target.parent.name == str(Name(1, 3)):
                writing.go_by()
            durable.publish(partial, target)

        monkeypatch.setattr(stores, "publish", held)
        stale = threads.submit(write, store, Name(1, 3), tmp_path)
        await writing.reached()
        write(store, Name(2, 1), tmp_path)
        writing.open()
        with pytest.raises(StaleLease, match="is now trained under lease 2, not 1"):
            stale.result(60)
    assert not [each for each in found(store) if str(Name(1, 3)) in each]
    assert [each for each in found(store) if str(Name(2, 1)) in each]


async def test_who_finds_what_it_writes_gone_and_no_newer_lease_is_told_that(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(_partial: Path, target: Path) -> None:
        store.delete("policies")
        raise FileNotFoundError(target)

    monkeypatch.setattr(stores, "publish", remove)
    with pytest.raises(SourceNotFound):
        save(store, Name(1, 3), tmp_path)


@pytest.mark.parametrize("synced", [False, True])
async def test_two_concurrent_sweeps_do_not_miss_files_that_the_other_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch, *, synced: bool
) -> None:
    """One is removing a file whose folder the other then removes."""
    store.write("a/b/one", b"1")
    with ThreadPoolExecutor(1) as threads, Gate() as removing:

        def held(folder: Path) -> None:
            if synced:
                durable.sync(folder)
            if folder.name == "b":
                removing.go_by()
            if not synced:
                durable.sync(folder)

        monkeypatch.setattr(stores, "sync", held)
        removed = threads.submit(store.delete, "a/b/one")
        await removing.reached()
        store.delete("a/b")
        removing.open()
        removed.result(60)
    assert found(store) == ["a"]


def test_a_folder_that_others_make_and_remove_while_it_is_made_is_gone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.mkdir

    def make_raced(path: Any, *given: Any) -> None:
        make(path, *given)
        try:
            make(path, *given)
        finally:
            os.rmdir(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", make_raced)
        with pytest.raises(SourceNotFound):
            store.write("a/one", b"1")
    assert found(store) == []
    store.write("b", b"no folder")
    with pytest.raises(SourceUnavailable, match="File exists"):
        store.write("b/one", b"1")
