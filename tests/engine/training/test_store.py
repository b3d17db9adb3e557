"""Checkpoints and revisions in real stores: whole or not there, fenced by lease, swept, and read as every other."""

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import torch
import yaml

from mint_contracts import backends
from mint_contracts.errors import (
    CapacityExceeded,
    CorruptFile,
    Overloaded,
    SourceForbidden,
    SourceNotFound,
    SourceUnavailable,
    StaleLease,
)
from mint_contracts.source import Source
from mint_contracts.training_records import revisions_of
from mint_engine.adapters.packed import Packed
from mint_engine.policies import revisions
from mint_engine.policies.checkpoints import BLOB, MAX_RECORD, MOST_STEPS, RECORD, Record, Shelf, digest_of
from mint_engine.policies.series import Name
from mint_engine.policies.store import LocalStore, Store, store_of
from mint_engine.residency.disk import DiskTier
from mint_engine.residency.loading import Loader
from mint_engine.sources.fetch import PACKED
from mint_engine.sources.storage import folder_of
from tests.engine import stores
from tests.engine.made import peft_adapter, read_tiny, tiny_fit
from tests.engine.training.teaching import Gate

SCHEMES = ("file", "pvc", "s3", "gs")


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Store]]:
    """`opened(scheme)`: an empty store of that kind."""
    with contextlib.ExitStack() as stack:
        shelf = tmp_path / "shelf"
        (shelf / "claim").mkdir(parents=True)

        def open_store(scheme: str) -> Store:
            backends.backend.cache_clear()
            for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
                monkeypatch.delenv(variable, raising=False)
            if scheme == "pvc":
                monkeypatch.setenv("MINT_PVC_ROOT", str(shelf))
                return store_of(Source("pvc://claim/runs"))
            if scheme == "s3":
                monkeypatch.setenv("AWS_ENDPOINT_URL", stack.enter_context(stores.s3(shelf)))
                for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
                    monkeypatch.setenv(f"AWS_{name}", "secret")
                monkeypatch.setenv("AWS_REGION", "us-east-1")
                return store_of(Source(f"s3://{stores.BUCKET}/runs"))
            if scheme == "gs":
                monkeypatch.setenv("STORAGE_EMULATOR_HOST", stack.enter_context(stores.gs(shelf)))
                return store_of(Source(f"gs://{stores.BUCKET}/runs"))
            (shelf / "deep" / "runs").mkdir(parents=True)
            return store_of(Source(f"file://{shelf}/deep/runs"))

        yield open_store
    backends.backend.cache_clear()


@pytest.fixture
def store(opened: Callable[[str], Store]) -> Store:
    return opened("file")


def record(lease: int, step: int, blob: bytes, run: str = "") -> Record:
    rewards = (0.5,) * step
    return Record("acme/one", "default/wave", lease, step, digest_of(blob), run, len(blob), rewards=rewards)


def save(shelf: Shelf, lease: int, step: int) -> None:
    blob = f"{lease}:{step}".encode()
    shelf.save(record(lease, step, blob), blob)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_files_are_written_listed_read_and_deleted(scheme: str, opened: Callable[[str], Store]) -> None:
    store = opened(scheme)
    assert store.names("a") == []
    store.write("a/b/one", b"1")
    store.write("a/b/two", bytearray(b"2"))  # as checkpoints are
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


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_newest_checkpoint_is_found_and_older_ones_are_swept(scheme: str, opened: Callable[[str], Store]) -> None:
    store = opened(scheme)
    shelf = Shelf(store, "acme/one")
    assert shelf.newest() is None
    for step in (1, 2, 3):
        save(shelf, 7, step)
    found = shelf.newest()
    assert found is not None
    assert (found[0].lease, found[0].step, found[0].rewards, found[1]) == (7, 3, (0.5,) * 3, b"7:3")
    assert store.names(shelf.folder) == [str(Name(7, 2)), str(Name(7, 3))]


@pytest.mark.parametrize("uri", ["https://host/runs", "hf://a/b"])
def test_only_what_can_be_written_is_a_store(uri: str) -> None:
    with pytest.raises(SourceForbidden, match="can't be written"):
        store_of(Source(uri, "v1"))


def test_a_newer_lease_is_preferred_whatever_step_it_is_at_and_an_older_one_may_not_write(store: Store) -> None:
    shelf = Shelf(store, "acme/one")
    save(shelf, 1, 5)
    save(shelf, 2, 4)
    found = shelf.newest()
    assert found is not None
    assert (found[0].lease, found[0].step) == (2, 4)
    with pytest.raises(StaleLease, match="is trained under lease 2 now, not 1"):
        save(shelf, 1, 6)
    assert shelf.newest() == found


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
    shelf = Shelf(store, "acme/one")
    save(shelf, 1, 1)
    save(shelf, 1, 2)
    harm_checkpoint(store, f"{shelf.folder}/{Name(1, 2)}", harm)
    found = shelf.newest()
    assert found is not None
    assert found[0].step == 1
    save(shelf, 1, 3)
    save(shelf, 1, 4)
    assert store.names(shelf.folder) == [str(Name(1, 3)), str(Name(1, 4))]


@pytest.mark.parametrize("harm", HARMS)
def test_where_no_checkpoint_can_be_read_nobody_takes_it_for_there_being_none(store: Store, harm: str) -> None:
    shelf = Shelf(store, "acme/one")
    save(shelf, 1, 1)
    save(shelf, 1, 2)
    for name in store.names(shelf.folder):
        harm_checkpoint(store, f"{shelf.folder}/{name}", harm)
    with pytest.raises(CorruptFile, match=r"no checkpoint that can be read, of 2 in .* new AdapterWave"):
        shelf.newest()


def test_what_was_written_can_be_read_however_much_it_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bound but what the record tells: a policy of a 30B-A3B of rank 16 is 10 GB. And a million steps' rewards."""
    shelf, blob = Shelf(store, "acme/one"), b"state"
    rewards = (-1.2345678901234567e-300,) * MOST_STEPS
    shelf.save(msgspec.structs.replace(record(1, MOST_STEPS, blob), rewards=rewards), blob)
    asked, read = [], store.read

    def note(path: str, limit: int | None) -> bytes:
        asked.append((path.rpartition("/")[2], limit))
        return read(path, limit)

    monkeypatch.setattr(store, "read", note)
    found = shelf.newest()
    assert found is not None
    assert found[0].rewards == rewards
    assert asked == [(RECORD, MAX_RECORD), (BLOB, len(blob))]


def test_as_many_rewards_are_kept_as_a_wave_may_have_steps() -> None:
    crd = yaml.safe_load(Path("crds/mint.dev_adapterwaves.yaml").read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert spec["train"]["properties"]["steps"]["maximum"] == MOST_STEPS


def test_a_checkpoint_of_an_earlier_version_is_read_though_its_record_does_not_tell_its_size(store: Store) -> None:
    shelf, blob = Shelf(store, "acme/one"), b"state"
    shelf.save(msgspec.structs.replace(record(1, 1, blob), size=0), blob)
    found = shelf.newest()
    assert found is not None
    assert found[1] == blob


def test_what_was_half_read_once_is_read_again_and_storage_that_is_away_is_told(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, read, half = Shelf(store, "acme/one"), store.read, [""]
    save(shelf, 1, 1)

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
        found = shelf.newest()
        assert found is not None
        assert not half
    monkeypatch.setattr(store, "read", away)
    with pytest.raises(SourceUnavailable):
        shelf.newest()


def test_a_run_begins_anew_and_policies_whose_names_nest_are_apart(store: Store) -> None:
    save(Shelf(store, "acme/one", "run-1"), 1, 1)
    assert Shelf(store, "acme/one", "run-2").newest() is None
    assert Shelf(store, "acme").newest() is None
    assert Shelf(store, "acme/one", "run-1").newest() is not None


def test_a_half_written_file_is_never_seen(store: Store) -> None:
    assert isinstance(store, LocalStore)
    store.write("a/one", b"1")
    (store._root / "a" / ".two.77.partial").write_bytes(b"half")
    assert store.names("a") == ["one"]


def test_a_folder_that_can_not_be_listed_for_now_is_waited_for_as_its_files_are(store: Store) -> None:
    assert isinstance(store, LocalStore)
    store.write("a/one", b"1")
    (store._root / "b").symlink_to("b")  # which the system refuses to follow, as a share that is away to answer
    with pytest.raises(SourceUnavailable, match="could not be read"):
        store.read("b/one", 10)
    with pytest.raises(SourceUnavailable, match="could not be read"):
        store.names("b")


def test_a_folder_goes_whoever_writes_into_it(store: Store) -> None:
    """As a trainer under an old lease does, while the new one sweeps: only the writer is told that it is gone."""
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
        each.result()
    store.delete("a")
    assert store.names("a") == []


def test_a_published_revision_is_loaded_as_every_other_and_old_ones_are_swept(store: Store, tmp_path: Path) -> None:
    loader = Loader(DiskTier(tmp_path / "disk", 1 << 20), tiny_fit(), torch.float32)
    assert revisions.newest(store, "acme/one", 1) is None
    told = []
    for step in range(1, 7):
        peft_adapter(tmp_path / str(step), seed=step)
        packed = read_tiny(tmp_path / str(step))
        told.append(revisions.publish(store, "acme/one", Name(1, step), packed))
        with loader.disk.using(told[-1].source):
            loaded = loader.load(told[-1].source)
        assert (loaded.revision, told[-1].revision, told[-1].step) == (packed.revision, packed.revision, step)
        assert torch.equal(loaded.run, packed.run)
    assert revisions.newest(store, "acme/one", 1) == told[-1]
    assert revisions.newest(store, "acme/one", 2) is None, "whoever had that lease has published nothing"
    kept = [str(Name(1, step)) for step in range(1, 7)][-revisions.KEPT :]
    assert store.names(revisions_of("acme/one")) == kept


@pytest.mark.parametrize("garbled", [b"{", b"\xff", b"[]", b" " * (revisions.MAX_ENTRY + 1)])
def test_an_entry_that_can_not_be_read_is_named_as_the_file_that_it_is(
    store: Store, tmp_path: Path, garbled: bytes
) -> None:
    told = [revisions.publish(store, "acme/one", Name(1, step), made(tmp_path)) for step in (1, 2)]
    entry = f"{revisions_of('acme/one')}/{Name(1, 2)}/{revisions.ENTRY}"
    store.write(entry, garbled)
    with pytest.raises(CorruptFile) as error:
        revisions.newest(store, "acme/one", 1)
    assert str(error.value).startswith(f"newest revision of policy 'acme/one': is told of by {entry!r} of ")
    store.delete(entry)
    assert revisions.newest(store, "acme/one", 1) == told[0]


@pytest.mark.parametrize("scheme", ["file", "pvc"])
def test_a_store_whose_volume_is_not_mounted_is_not_taken_for_an_empty_one(
    scheme: str, opened: Callable[[str], Store]
) -> None:
    store = opened(scheme)
    assert isinstance(store, LocalStore)
    shelf = Shelf(store, "acme/one")
    assert shelf.newest() is None
    save(shelf, 1, 1)
    mounted, elsewhere = store._mounted, store._mounted.with_name("elsewhere")
    mounted.rename(elsewhere)
    for work in (
        shelf.newest,
        lambda: save(shelf, 1, 2),
        lambda: store.read(f"{shelf.folder}/{Name(1, 1)}/{RECORD}", None),
        lambda: store.delete("a"),
        lambda: revisions.newest(store, "acme/one", 0),
    ):
        with pytest.raises(SourceUnavailable, match=f"its folder '{mounted}' is not there; mount its volume"):
            work()
    assert not mounted.exists(), "nothing was written in its place"
    elsewhere.rename(mounted)
    found = shelf.newest()
    assert found is not None
    assert found[0].step == 1


def test_a_full_volume_is_named_as_what_is_full(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Overloaded, match=r"store 'file:.*: has no room left on its volume; enlarge it"):
        store.write("acme/p/x", b"data")


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_policies_whose_names_nest_publish_apart(scheme: str, opened: Callable[[str], Store], tmp_path: Path) -> None:
    store, packed = opened(scheme), made(tmp_path)
    within = [f"acme/one/{each}" for each in ("published", "d" * 64, str(Name(1, 1)))]
    told = {policy: revisions.publish(store, policy, Name(1, 1), packed) for policy in within}
    for step in range(1, 7):
        told["acme/one"] = revisions.publish(store, "acme/one", Name(1, step), packed)
    for policy, published in told.items():
        assert revisions.newest(store, policy, 1) == published
        with folder_of(published.source).open(PACKED) as file:
            assert file.read(1)


class Held(LocalStore):
    """A store in which a thread may be held before it lists, reads or writes."""

    def __init__(self, store: Store, **gates: Gate) -> None:
        assert isinstance(store, LocalStore)
        super().__init__(store.source, store._root, store._mounted)
        self._gates = gates

    def _go_by(self, what: str) -> None:
        if gate := self._gates.get(what):
            gate.go_by()

    def write(self, path: str, data: bytes | bytearray) -> None:
        self._go_by("write")
        super().write(path, data)

    def read(self, path: str, limit: int | None) -> bytes:
        self._go_by("read")
        return super().read(path, limit)

    def names(self, path: str) -> list[str]:
        self._go_by("names")
        return super().names(path)


@pytest.mark.parametrize("listings", range(4))
async def test_a_thread_whose_lease_has_gone_leaves_what_the_newer_one_publishes(
    store: Store, tmp_path: Path, listings: int
) -> None:
    for step in range(1, 6):
        revisions.publish(store, "acme/one", Name(1, step), made(tmp_path, seed=step))
    with ThreadPoolExecutor(2) as threads, Gate(after=listings) as old, Gate(after=1) as new:
        stale = threads.submit(
            revisions.publish, Held(store, names=old), "acme/one", Name(1, 6), made(tmp_path, seed=6)
        )
        await old.reached()
        packed = made(tmp_path, seed=7)
        newer = threads.submit(revisions.publish, Held(store, write=new), "acme/one", Name(2, 6), packed)
        await new.reached()  # its file is there, and its entry is not
        old.open()
        with contextlib.suppress(StaleLease):
            stale.result(60)
        new.open()
        published = newer.result(60)
    assert revisions.newest(store, "acme/one", 1) == published
    with folder_of(published.source).open(PACKED) as file:
        assert file.read(1)
    with pytest.raises(StaleLease, match="is trained under lease 2 now, not 1"):
        revisions.publish(store, "acme/one", Name(1, 7), packed)


async def test_the_newest_revision_is_found_while_older_ones_are_swept(store: Store, tmp_path: Path) -> None:
    for step in range(1, 5):
        told = revisions.publish(store, "acme/one", Name(1, step), made(tmp_path, seed=step))
    with ThreadPoolExecutor(1) as threads, Gate() as reading:
        found = threads.submit(revisions.newest, Held(store, read=reading), "acme/one", 1)
        await reading.reached()
        revisions.publish(store, "acme/one", Name(1, 5), made(tmp_path, seed=5))
        reading.open()
        assert found.result(60) == told


def made(folder: Path, seed: int = 0) -> Packed:
    """A revision."""
    peft_adapter(folder / f"made-{seed}", seed=seed)
    return read_tiny(folder / f"made-{seed}")
