"""Checkpoints in real stores: complete or absent, fenced by lease, swept, and waited for if the store is away."""

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import yaml

from mint_contracts.errors import (
    CapacityExceeded,
    CorruptFile,
    MintError,
    Overloaded,
    SourceForbidden,
    SourceNotFound,
    SourceUnavailable,
    StaleLease,
)
from mint_contracts.source import Source
from mint_engine.policies.stored import revisions
from mint_engine.policies.stored.checkpoints import (
    BLOB,
    MAX_RECORD,
    MOST_STEPS,
    RECORD,
    Checkpoints,
    Record,
    digest_of,
)
from mint_engine.policies.stored.series import Name
from mint_engine.policies.stored.store import LocalStore, Store, store_of
from tests.waiting import PATIENCE_S

SCHEMES = ("file", "pvc", "s3", "lengthless s3", "gs")


def record(lease: int, step: int, blob: bytes) -> Record:
    rewards = (0.5,) * step
    return Record("acme/one", "default/wave", lease, step, digest_of(blob), "", len(blob), rewards=rewards)


def save(checkpoints: Checkpoints, lease: int, step: int) -> None:
    blob = f"{lease}:{step}".encode()
    checkpoints.save(record(lease, step, blob), blob)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_files_are_written_listed_read_and_deleted(scheme: str, opened: Callable[[str], Store]) -> None:
    store = opened(scheme)
    assert store.names("a") == []
    store.write("a/b/one", b"1")
    store.write("a/b/two", bytearray(b"2"))  # the type that checkpoints have
    store.write("a/b/one", b"one")
    assert (store.names("a"), store.names("a/b")) == (["b"], ["one", "two"])
    assert store.read("a/b/one", 10) == b"one"
    with pytest.raises(CapacityExceeded):
        store.read("a/b/one", 2)
    with pytest.raises(SourceNotFound):
        store.read("a/b/three", 10)
    store.delete("a/b/two")
    store.delete("a/b/two")
    assert store.names("a/b") == ["one"]
    store.delete("a")
    assert store.names("a/b") == []


def test_records_keep_the_names_that_engines_of_other_versions_read_and_write() -> None:
    own = msgspec.structs.replace(record(7, 1, b""), optimizer_steps=3, resumable=True)
    stored = msgspec.json.decode(msgspec.json.encode(own))
    assert (stored["taken"], stored["left"]) == (3, True)
    assert msgspec.convert(stored, Record) == own


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_newest_checkpoint_is_found_and_older_ones_are_swept(scheme: str, opened: Callable[[str], Store]) -> None:
    store = opened(scheme)
    checkpoints = Checkpoints(store, "acme/one")
    assert checkpoints.newest() is None
    for step in (1, 2, 3):
        save(checkpoints, 7, step)
    found = checkpoints.newest()
    assert found is not None
    assert (found[0].lease, found[0].step, found[0].rewards, found[1]) == (7, 3, (0.5,) * 3, b"7:3")
    assert store.names(checkpoints.folder) == [str(Name(7, 2)), str(Name(7, 3))]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_store_without_the_checkpoint_that_is_known_of_is_not_taken_for_a_new_one(
    scheme: str, opened: Callable[[str], Store]
) -> None:
    store = opened(scheme)
    checkpoints = Checkpoints(store, "acme/one", "run-1")
    save(Checkpoints(store, "acme/one", "run-2"), 7, 3)
    save(Checkpoints(store, "acme/two", "run-1"), 7, 3)
    assert checkpoints.newest(saved=0) is None
    store.write(f"{checkpoints.folder}/{Name(7, 2)}/{BLOB}", b"half written")
    with pytest.raises(SourceUnavailable, match=r"has no checkpoint of policy 'acme/one' in .*step 2 or later"):
        checkpoints.newest(saved=2)
    save(checkpoints, 7, 1)
    found = checkpoints.newest(saved=2)
    assert found is not None
    assert found[0].step == 1, "what somebody has put back is the newest that there is"


@pytest.mark.parametrize("uri", ["https://host/runs", "hf://a/b"])
def test_only_what_can_be_written_is_a_store(uri: str) -> None:
    with pytest.raises(SourceForbidden, match="cannot be written"):
        store_of(Source(uri, "v1"))


def test_a_newer_lease_is_preferred_whatever_step_it_is_at_and_an_older_one_may_not_write(store: Store) -> None:
    checkpoints = Checkpoints(store, "acme/one")
    save(checkpoints, 1, 5)
    save(checkpoints, 2, 4)
    found = checkpoints.newest()
    assert found is not None
    assert (found[0].lease, found[0].step) == (2, 4)
    with pytest.raises(StaleLease, match="is now trained under lease 2, not 1"):
        save(checkpoints, 1, 6)
    assert checkpoints.newest() == found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_under_a_lease_that_is_taken_nothing_is_there_yet_and_under_an_older_one_nothing_is_written_any_more(
    scheme: str, opened: Callable[[str], Store]
) -> None:
    checkpoints = Checkpoints(opened(scheme), "acme/one")
    save(checkpoints, 1, 5)
    found = checkpoints.newest()
    checkpoints.series.claim(2)
    assert (checkpoints.newest(), checkpoints.series.latest_lease()) == (found, 2)
    with pytest.raises(StaleLease, match="is now trained under lease 2, not 1"):
        save(checkpoints, 1, 6)
    checkpoints.series.unclaim(2)
    save(checkpoints, 1, 6)
    checkpoints.series.claim(2)
    save(checkpoints, 2, 6)
    assert checkpoints.series.leases() == [1, 2], "what has said so is swept"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_lease_is_taken_twice_nor_behind_a_newer_one(scheme: str, opened: Callable[[str], Store]) -> None:
    store = opened(scheme)
    checkpoints = Checkpoints(store, "acme/one")
    checkpoints.series.claim(2)
    for lease in (2, 1):
        with pytest.raises(StaleLease, match=r"lease 2\b"):
            checkpoints.series.claim(lease)
    assert checkpoints.series.leases() == [2]
    save(checkpoints, 2, 1)


HARMS = ["record torn", "blob torn", "blob longer", "blob gone"]


def harm_checkpoint(store: Store, folder: str, harm: str) -> None:
    part, how = harm.split()
    file = f"{folder}/{RECORD if part == 'record' else BLOB}"
    if how == "gone":
        store.delete(file)
    else:
        store.write(file, b"{" if how == "torn" else store.read(file, None) + b"more")


@pytest.mark.parametrize("harm", ["record gone", *HARMS])
def test_a_checkpoint_that_is_not_whole_does_not_exist(store: Store, harm: str) -> None:
    checkpoints = Checkpoints(store, "acme/one")
    save(checkpoints, 1, 1)
    save(checkpoints, 1, 2)
    harm_checkpoint(store, f"{checkpoints.folder}/{Name(1, 2)}", harm)
    found = checkpoints.newest()
    assert found is not None
    assert found[0].step == 1
    save(checkpoints, 1, 3)
    save(checkpoints, 1, 4)
    assert store.names(checkpoints.folder) == [str(Name(1, 3)), str(Name(1, 4))]


@pytest.mark.parametrize("harm", HARMS)
def test_where_no_checkpoint_can_be_read_nobody_takes_it_for_there_being_none(store: Store, harm: str) -> None:
    checkpoints = Checkpoints(store, "acme/one")
    save(checkpoints, 1, 1)
    save(checkpoints, 1, 2)
    for name in store.names(checkpoints.folder):
        harm_checkpoint(store, f"{checkpoints.folder}/{name}", harm)
    with pytest.raises(CorruptFile, match=r"no readable checkpoint among 2 in .* new AdapterWave"):
        checkpoints.newest()


def test_files_of_any_size_can_be_read_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the record's size bounds a read: a rank-16 policy of a 30B-A3B is 10 GB. The record has every reward."""
    checkpoints, blob = Checkpoints(store, "acme/one"), b"state"
    rewards = (-1.2345678901234567e100,) * MOST_STEPS
    checkpoints.save(msgspec.structs.replace(record(1, MOST_STEPS, blob), rewards=rewards), blob)
    asked, read = [], store.read

    def note(path: str, limit: int | None) -> bytes:
        asked.append((path.rpartition("/")[2], limit))
        return read(path, limit)

    monkeypatch.setattr(store, "read", note)
    found = checkpoints.newest()
    assert found is not None
    assert found[0].rewards == rewards
    assert asked == [(RECORD, MAX_RECORD), (BLOB, len(blob))]


def test_as_many_rewards_are_kept_as_a_wave_may_have_steps() -> None:
    crd = yaml.safe_load(Path("crds/mint.dev_adapterwaves.yaml").read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert spec["train"]["properties"]["steps"]["maximum"] == MOST_STEPS


def test_a_checkpoint_of_an_earlier_version_is_read_though_its_record_does_not_tell_its_size(store: Store) -> None:
    checkpoints, blob = Checkpoints(store, "acme/one"), b"state"
    checkpoints.save(msgspec.structs.replace(record(1, 1, blob), size=0), blob)
    found = checkpoints.newest()
    assert found is not None
    assert found[1] == blob


def test_a_partial_read_is_repeated_and_unavailable_storage_reported(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, read, half = Checkpoints(store, "acme/one"), store.read, [""]
    save(checkpoints, 1, 1)

    def read_half(path: str, limit: int | None) -> bytes:
        data, file = read(path, limit), path.rpartition("/")[2]
        if file in half:
            half.remove(file)
            return data[: len(data) // 2]
        return data

    def away(path: str, limit: int | None) -> bytes:
        raise SourceUnavailable("store", "did not answer")

    for each in (BLOB, RECORD):
        half[:] = [each]
        monkeypatch.setattr(store, "read", read_half)
        found = checkpoints.newest()
        assert found is not None
        assert not half
    monkeypatch.setattr(store, "read", away)
    with pytest.raises(SourceUnavailable):
        checkpoints.newest()


def test_a_run_begins_anew_and_policies_whose_names_nest_are_apart(store: Store) -> None:
    save(Checkpoints(store, "acme/one", "run-1"), 1, 1)
    assert Checkpoints(store, "acme/one", "run-2").newest() is None
    assert Checkpoints(store, "acme").newest() is None
    assert Checkpoints(store, "acme/one", "run-1").newest() is not None


def test_a_half_written_file_is_never_seen(store: Store) -> None:
    assert isinstance(store, LocalStore)
    store.write("a/one", b"1")
    (store._root / "a" / ".two.77.partial").write_bytes(b"half")
    assert store.names("a") == ["one"]


def test_a_folder_that_can_not_be_listed_for_now_is_waited_for_as_its_files_are(store: Store) -> None:
    assert isinstance(store, LocalStore)
    store.write("a/one", b"1")
    (store._root / "b").symlink_to("b")  # the OS refuses to follow it, as if a share did not answer
    with pytest.raises(SourceUnavailable, match="could not be read"):
        store.read("b/one", 10)
    with pytest.raises(SourceUnavailable, match="could not be read"):
        store.names("b")


def test_a_folder_goes_whoever_writes_into_it(store: Store) -> None:
    """A trainer under an old lease may write while the new one sweeps: only the writer gets an error."""
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            with contextlib.suppress(SourceNotFound):
                store.write("a/one", b"1" * 10_000)

    with ThreadPoolExecutor(2) as writers:
        writing = [writers.submit(write) for _ in range(2)]
        try:
            for _ in range(50):
                store.write("a/other", b"2")
                store.delete("a")
        finally:
            ended.set()
    for each in writing:
        each.result(PATIENCE_S)
    store.delete("a")
    assert store.names("a") == []


@pytest.mark.parametrize("scheme", ["file", "pvc"])
def test_a_store_whose_volume_is_not_mounted_is_not_taken_for_an_empty_one(
    scheme: str, opened: Callable[[str], Store]
) -> None:
    store = opened(scheme)
    assert isinstance(store, LocalStore)
    checkpoints = Checkpoints(store, "acme/one")
    assert checkpoints.newest() is None
    save(checkpoints, 1, 1)
    mounted, elsewhere = store._mounted, store._mounted.with_name("elsewhere")
    mounted.rename(elsewhere)
    for work in (
        checkpoints.newest,
        lambda: save(checkpoints, 1, 2),
        lambda: store.read(f"{checkpoints.folder}/{Name(1, 1)}/{RECORD}", None),
        lambda: store.delete("a"),
        lambda: revisions.newest(store, "acme/one", 0),
    ):
        with pytest.raises(SourceUnavailable, match=f"its folder '{mounted}' does not exist; mount its volume"):
            work()
    assert not mounted.exists(), "nothing was written in its place"
    elsewhere.rename(mounted)
    found = checkpoints.newest()
    assert found is not None
    assert found[0].step == 1


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.EACCES, SourceForbidden, "may not be written by the engine's user; check its permissions"),
        (errno.EROFS, SourceUnavailable, r"could not be written \(Read-only file system\); retrying"),
    ],
)
def test_a_volume_that_may_only_be_read_is_named_as_such(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[MintError], message: str
) -> None:
    store.write("acme/p/x", b"data")

    def refuse(*_: object, **_how: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(kind, match=rf"store 'file:.*: {message}"):
        store.write("acme/q/x", b"data")
    with pytest.raises(kind, match=rf"store 'file:.*: {message}"):
        store.delete("acme/p/x")
    assert store.read("acme/p/x", 10) == b"data"


def test_a_full_volume_is_named_as_what_is_full(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Overloaded, match=r"store 'file:.*: has no room left on its volume; enlarge it"):
        store.write("acme/p/x", b"data")
    assert isinstance(store, LocalStore)
    assert not [path for path in store._root.rglob("*") if path.is_file()], "what was written of it takes no room"
