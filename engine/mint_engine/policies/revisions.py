"""Publishing: a policy's weights as a packed file in the store, and an entry, written last, that makes it visible.

    <store>/revisions/<policy>/.published/<lease>-<step>/adapter.mint, then entry.json beside it

The folder is a Source that any engine of the base loads as it does every other; the loader verifies the digests that
the file itself holds. What no entry tells of is never read, and swept by the next one's writing.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import msgspec

from mint_contracts.errors import CapacityExceeded, CorruptFile, SourceNotFound
from mint_contracts.source import child
from mint_contracts.training_records import Published, published_in, revisions_of
from mint_engine.adapters import packed_file
from mint_engine.adapters.packed import Packed, bytes_of
from mint_engine.policies.checkpoints import READS
from mint_engine.policies.series import Name, Series
from mint_engine.policies.store import HeadLast, Store
from mint_engine.sources.fetch import PACKED

KEPT = 4  # the newest, so that an engine that still loads the one before finds it
ENTRY = "entry.json"
MAX_ENTRY = 1 << 20

# made on import: several threads that are the first to decode a type at once crash msgspec 0.22
_PUBLISHED = msgspec.json.Decoder(Published)


def publish(store: Store, policy: str, name: Name, packed: Packed) -> tuple[Published, Packed]:
    """Write a revision and its entry; returns it with its digests. Blocks its thread; `sweep` what is older, then.

    The digests are taken while it is written, either of which takes as long as the other. Raises StaleLease where a
    newer lease has published, and the errors of a store.
    """
    series = _series(store, policy)
    with series.written(name):
        with ThreadPoolExecutor(1, "digest") as beside:  # of the calling thread's own priority
            header = beside.submit(packed_file.complete, packed.header, packed.run)
            content = HeadLast(
                packed.header.head_bytes, lambda: packed_file.head_of(header.result()), bytes_of(packed.run)
            )
            store.write(f"{series.folder}/{name}/{PACKED}", content)
        digested = replace(packed, header=header.result())
        published = Published(digested.revision, name.step, child(published_in(store.source, policy), str(name)))
        store.write(f"{series.folder}/{name}/{ENTRY}", msgspec.json.encode(published))
    return published, digested


def sweep(store: Store, policy: str, name: Name) -> None:
    """Remove all but the newest revisions up to that one. Blocks its thread; raises the errors of a store."""
    _series(store, policy).sweep(name)


def newest(store: Store, policy: str, lease: int) -> Published | None:
    """The revision that was published last, under `lease` or a later one; None: none was.

    Raises CorruptFile for an entry that can't be read: what it tells of may be served, and who took the one before it
    for the newest would take that back. And the errors of a store.
    """
    series = _series(store, policy)
    for name in reversed(series.names()):
        if name.lease < lease:
            break
        try:
            return _entry(store, policy, f"{series.folder}/{name}/{ENTRY}")
        except SourceNotFound:
            continue  # half written, or swept meanwhile
    return None


def latest_lease(store: Store, policy: str) -> int:
    """Under which something was published, 0: nothing was."""
    return _series(store, policy).latest_lease()


def _entry(store: Store, policy: str, path: str) -> Published:
    broken: Exception | None = None
    for _ in range(READS):
        try:
            return _PUBLISHED.decode(store.read(path, MAX_ENTRY))
        except (msgspec.MsgspecError, UnicodeDecodeError, CapacityExceeded) as error:
            broken = error
    reason = f"has an unreadable entry {path!r} in {store.source.uri!r} ({broken})"
    raise CorruptFile(
        f"newest revision of policy {policy!r}", f"{reason}; delete that file to fall back to the revision before it"
    )


def _series(store: Store, policy: str) -> Series:
    return Series(store, policy, revisions_of(policy), ENTRY, KEPT)
