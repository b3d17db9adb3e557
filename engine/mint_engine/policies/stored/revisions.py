"""Publishing: a policy's weights as a packed file in the store, and an entry, written last, that makes it visible.

    <store>/revisions/<policy>/.published/<lease>-<step>/adapter.mint, then entry.json beside it

The folder is a Source that any engine of the base loads like every other; the loader verifies the digests that the
file itself holds. A revision without an entry is never read, and is removed by a later revision's `sweep`.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import msgspec
import structlog

from mint_contracts.errors import CapacityExceeded, CorruptFile, MintError, SourceNotFound
from mint_contracts.source import child
from mint_contracts.training_records import Published, published_in, revisions_of
from mint_engine.adapters import packed_file
from mint_engine.adapters.packed import Packed, bytes_of
from mint_engine.policies.stored.checkpoints import READS
from mint_engine.policies.stored.series import Name, Series
from mint_engine.policies.stored.store import HeadLast, Store
from mint_engine.sources.fetch import PACKED

KEPT = 4  # newest revisions, so that an engine that is still loading an older one finds it
ENTRY = "entry.json"
MAX_ENTRY = 1 << 20

# made on import: several threads that are the first to decode a type at once crash msgspec 0.22
_PUBLISHED = msgspec.json.Decoder(Published)

_log = structlog.get_logger(__name__)


def publish(store: Store, policy: str, name: Name, packed: Packed) -> tuple[Published, Packed]:
    """Write a revision and its entry; returns the entry, and the revision with its digests. `sweep` afterwards.

    Blocks the calling thread. The digests are computed during the write, which takes about as long. Raises StaleLease
    if a newer lease has published, and a store's errors.
    """
    series = _series(store, policy)
    with series.written(name):
        with ThreadPoolExecutor(1, "digest") as beside:  # inherits the calling thread's priority
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
    """Remove all but the newest revisions up to `name`, a published one. Blocks the calling thread.

    A failure is only logged: the next publication's sweep tries again.
    """
    try:
        _series(store, policy).sweep(name)
    except MintError as error:
        _log.warning("revisions_unswept", policy=policy, revision=str(name), error=str(error))


def newest(store: Store, policy: str, lease: int) -> Published | None:
    """Return the last revision published under `lease` or a later one, or None.

    Raises CorruptFile for an entry that cannot be read: its revision may be in service, and treating the one before
    it as the newest would revert that. Also raises a store's errors.
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
    """Return the latest lease under which anything was published; 0 if nothing was."""
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
