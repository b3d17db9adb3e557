"""Revisions in real stores are read like any other adapter, fenced by lease, and swept."""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mint_contracts.errors import (
    CorruptFile,
    StaleLease,
)
from mint_contracts.training_records import revisions_of
from mint_engine.policies.stored import revisions
from mint_engine.policies.stored.series import Name
from mint_engine.policies.stored.store import Store
from mint_engine.residency.disk import DiskTier
from mint_engine.residency.loading import Loader
from mint_engine.sources.fetch import PACKED
from mint_engine.sources.storage import folder_of
from tests.engine.made import peft_adapter, read_tiny, tiny_fit
from tests.engine.training.publications import Held, made, publish
from tests.engine.training.training_engine import Gate


def test_a_published_revision_is_loaded_as_every_other_and_old_ones_are_swept(store: Store, tmp_path: Path) -> None:
    loader = Loader(DiskTier(tmp_path / "disk", 1 << 20), tiny_fit(), torch.float32)
    assert revisions.newest(store, "acme/one", 1) is None
    told = []
    for step in range(1, 7):
        peft_adapter(tmp_path / str(step), seed=step)
        packed = read_tiny(tmp_path / str(step))
        told.append(publish(store, "acme/one", Name(1, step), packed)[0])
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
    told = [publish(store, "acme/one", Name(1, step), made(tmp_path))[0] for step in (1, 2)]
    entry = f"{revisions_of('acme/one')}/{Name(1, 2)}/{revisions.ENTRY}"
    store.write(entry, garbled)
    with pytest.raises(CorruptFile) as error:
        revisions.newest(store, "acme/one", 1)
    assert str(error.value).startswith(f"newest revision of policy 'acme/one': has an unreadable entry {entry!r} in ")
    store.delete(entry)
    assert revisions.newest(store, "acme/one", 1) == told[0]


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_policies_whose_names_nest_publish_apart(scheme: str, opened: Callable[[str], Store], tmp_path: Path) -> None:
    store, packed = opened(scheme), made(tmp_path)
    within = [f"acme/one/{each}" for each in ("published", "d" * 64, str(Name(1, 1)))]
    told = {policy: publish(store, policy, Name(1, 1), packed)[0] for policy in within}
    for step in range(1, 7):
        told["acme/one"], _ = publish(store, "acme/one", Name(1, step), packed)
    for policy, published in told.items():
        assert revisions.newest(store, policy, 1) == published
        with folder_of(published.source).open(PACKED) as file:
            assert file.read(1)


@pytest.mark.parametrize("listings", range(4))
async def test_a_thread_whose_lease_has_gone_leaves_what_the_newer_one_publishes(
    store: Store, tmp_path: Path, listings: int
) -> None:
    for step in range(1, 6):
        publish(store, "acme/one", Name(1, step), made(tmp_path, seed=step))
    with ThreadPoolExecutor(2) as threads, Gate(after=listings) as old, Gate(after=1) as new:
        stale = threads.submit(publish, Held(store, names=old), "acme/one", Name(1, 6), made(tmp_path, seed=6))
        await old.reached()
        packed = made(tmp_path, seed=7)
        newer = threads.submit(revisions.publish, Held(store, write=new), "acme/one", Name(2, 6), packed)
        await new.reached()  # its file is there, but not yet its entry
        old.open()
        with contextlib.suppress(StaleLease):
            stale.result(60)
        new.open()
        published, _ = newer.result(60)
    assert revisions.newest(store, "acme/one", 1) == published
    with folder_of(published.source).open(PACKED) as file:
        assert file.read(1)
    with pytest.raises(StaleLease, match="is now trained under lease 2, not 1"):
        publish(store, "acme/one", Name(1, 7), packed)


async def test_the_newest_revision_is_found_while_older_ones_are_swept(store: Store, tmp_path: Path) -> None:
    for step in range(1, 5):
        told, _ = publish(store, "acme/one", Name(1, step), made(tmp_path, seed=step))
    with ThreadPoolExecutor(1) as threads, Gate() as reading:
        found = threads.submit(revisions.newest, Held(store, read=reading), "acme/one", 1)
        await reading.reached()
        publish(store, "acme/one", Name(1, 5), made(tmp_path, seed=5))
        reading.open()
        assert found.result(60) == told
