"""Publishing: a policy's weights as a packed file in the store, and an entry, written last, that makes it visible.

    <store>/revisions/<policy>/<digest>/adapter.mint, then <store>/revisions/<policy>/published/<lease>-<step>.json

The folder of the file is a Source that any engine of the base loads as it does every other; the loader verifies the
digests that the file itself holds. What no entry names is never read, and swept by the next one's writing.
"""

import io

import msgspec
import structlog

from mint_contracts.source import Source, child
from mint_contracts.training_records import Published, published_in
from mint_engine.adapters import packed_file
from mint_engine.adapters.packed import Packed
from mint_engine.policies.checkpoints import Name
from mint_engine.policies.store import Store
from mint_engine.sources.fetch import PACKED

KEPT = 4  # the newest, so that an engine that still loads the one before finds it
ENTRIES = "published"

# made on import: several threads that are the first to decode a type at once crash msgspec 0.22
_PUBLISHED = msgspec.json.Decoder(Published)
_log = structlog.get_logger(__name__)


def publish(store: Store, policy: str, name: Name, packed: Packed) -> Published:
    """Write a revision and its entry, and sweep the oldest. Blocks its thread; raises the errors of a store."""
    root, digest = f"revisions/{policy}", packed.revision.rpartition(":")[2]
    file = io.BytesIO()
    packed_file.write(packed, file)
    store.write(f"{root}/{digest}/{PACKED}", file.getvalue())
    published = Published(packed.revision, name.step, source_of(store, policy, packed.revision))
    store.write(f"{root}/{ENTRIES}/{name}.json", msgspec.json.encode(published))
    _sweep(store, root, digest)
    return published


def source_of(store: Store, policy: str, revision: str) -> Source:
    """Where a revision of a policy lies."""
    return child(published_in(store.source, policy), revision.rpartition(":")[2])


def newest(store: Store, policy: str, lease: int) -> Published | None:
    """The revision that was published last, under `lease` or a later one; None: none was."""
    entries = _entries(store, f"revisions/{policy}")
    if not entries or entries[-1][0] < f"{Name(lease, 0)}.json":
        return None
    return entries[-1][1]


def _entries(store: Store, root: str) -> list[tuple[str, Published]]:
    found = []
    for name in store.names(f"{root}/{ENTRIES}"):
        text = store.read(f"{root}/{ENTRIES}/{name}", 1 << 20)
        found.append((name, _PUBLISHED.decode(text)))
    return found


def _sweep(store: Store, root: str, digest: str) -> None:
    """Remove old entries, then every file that none of the others names; the one just written stays in any case."""
    entries = _entries(store, root)
    for name, _ in entries[:-KEPT]:
        store.delete(f"{root}/{ENTRIES}/{name}")
    kept = {told.revision.rpartition(":")[2] for _, told in entries[-KEPT:]} | {digest}
    for name in store.names(root):
        if name != ENTRIES and len(name) == len(digest) and name not in kept:
            store.delete(f"{root}/{name}")
