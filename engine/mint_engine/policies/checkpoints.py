"""Checkpoints: a policy's state as a blob, and a record, written last, that names the blob with its digest.

    <store>/policies/<policy>/<run>/<lease>-<step>/state.safetensors, then record.json

A checkpoint without its record does not exist. The newest by (lease, step) is the one to go on from: what a trainer
writes under an older lease is never preferred, and lies beside what the newer one writes. `run` is the wave's: one
that was made anew under an old name begins anew.
"""

import hashlib

import msgspec
import structlog

from mint_contracts.errors import CapacityExceeded, CorruptFile, PolicyNotFound, SourceNotFound
from mint_contracts.training_records import Published
from mint_engine.policies.series import Name, Series
from mint_engine.policies.store import Store

KEPT = 2  # complete ones; the second is there in case the first is broken
MAX_BLOB, MAX_RECORD = 8 << 30, 8 << 20
BLOB, RECORD = "state.safetensors", "record.json"
NO_RUN = "-"

_log = structlog.get_logger(__name__)


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a checkpoint says of itself, and of the course so far."""

    policy: str
    wave: str
    lease: int
    step: int
    digest: str  # sha256 of the blob, in hex
    run: str = ""
    sequence: int = 0  # of the Trainer service's calls
    tokens: int = 0
    rewards: tuple[float, ...] = ()  # mean of each finished step
    evaluation: float | None = None
    evaluated: int = 0  # the step after which that was
    published: Published | None = None


# made on import: several threads that are the first to decode a type at once crash msgspec 0.22
_RECORD = msgspec.json.Decoder(Record)


class Shelf:
    """One policy's checkpoints in one run. Blocks its thread."""

    def __init__(self, store: Store, policy: str, run: str = "", kept: int = KEPT) -> None:
        self._store, self._policy = store, policy
        self.folder = f"policies/{policy}/{run or NO_RUN}"
        self._series = Series(store, policy, self.folder, RECORD, kept)

    def save(self, record: Record, blob: bytes) -> None:
        """Write a checkpoint and sweep what it makes superfluous.

        Raises StaleLease where a newer lease has written, and the errors of a store.
        """
        name = Name(record.lease, record.step)
        self._series.refuse_stale(name)
        self._store.write(f"{self.folder}/{name}/{BLOB}", blob)
        self._store.write(f"{self.folder}/{name}/{RECORD}", msgspec.json.encode(record))
        self._series.sweep(name)

    def newest(self) -> tuple[Record, bytes] | None:
        """The newest whole checkpoint with its blob; broken ones are passed over and told."""
        for name in reversed(self._series.names()):
            try:
                return self._read(name)
            except (CorruptFile, CapacityExceeded) as error:
                _log.error("checkpoint_broken", policy=self._policy, checkpoint=str(name), error=str(error))
            except SourceNotFound:
                continue  # half written, or swept meanwhile
        return None

    def read(self, name: str) -> bytes:
        """The blob of one checkpoint. Raises PolicyNotFound where it is not (any more), CorruptFile."""
        found = Name.read(name)
        try:
            if found is not None:
                return self._read(found)[1]
        except SourceNotFound:
            found = None
        raise PolicyNotFound(f"checkpoint {name[:80]!r} of policy {self._policy!r}", "does not exist, or was swept")

    def _read(self, name: Name) -> tuple[Record, bytes]:
        subject = f"checkpoint {name} of policy {self._policy!r}"
        text = self._store.read(f"{self.folder}/{name}/{RECORD}", MAX_RECORD)
        try:
            record = _RECORD.decode(text)
        except msgspec.MsgspecError as error:
            raise CorruptFile(subject, f"has an unreadable record: {error}") from None
        blob = self._store.read(f"{self.folder}/{name}/{BLOB}", MAX_BLOB)
        if hashlib.sha256(blob).hexdigest() != record.digest or Name(record.lease, record.step) != name:
            raise CorruptFile(subject, "does not match its record")
        return record, blob


def digest_of(blob: bytes) -> str:
    """What a record says of its blob."""
    return hashlib.sha256(blob).hexdigest()
