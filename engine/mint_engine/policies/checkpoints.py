"""Checkpoints: a policy's state as a blob, and a record, written last, that names the blob with its digest.

    <store>/policies/<policy>/<run>/<lease>-<step>/state.safetensors, then record.json

A checkpoint without its record does not exist. The newest by (lease, step) is the one to go on from: what a trainer
writes under an older lease is never preferred, and lies beside what the newer one writes. `run` is the wave's: one
that was made anew under an old name begins anew.
"""

import hashlib
import re

import msgspec
import structlog

from mint_contracts.errors import CapacityExceeded, CorruptFile, PolicyNotFound, SourceNotFound, StaleLease
from mint_contracts.training_records import Published
from mint_engine.policies.store import Store

KEPT = 2  # complete ones; the second is there in case the first is broken
MAX_BLOB, MAX_RECORD = 8 << 30, 8 << 20
BLOB, RECORD = "state.safetensors", "record.json"
NO_RUN = "-"

_NAME = re.compile(r"([0-9]{16})-([0-9]{8})")
_log = structlog.get_logger(__name__)


class Name(msgspec.Struct, frozen=True, order=True):
    """What orders checkpoints."""

    lease: int
    step: int

    def __str__(self) -> str:
        return f"{self.lease:016d}-{self.step:08d}"

    @classmethod
    def read(cls, text: str) -> "Name | None":
        """What `str` gave; None for anything else."""
        found = _NAME.fullmatch(text)
        return cls(int(found[1]), int(found[2])) if found else None


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
        self._store, self._policy, self._kept = store, policy, kept
        self.folder = f"policies/{policy}/{run or NO_RUN}"

    def save(self, record: Record, blob: bytes) -> None:
        """Write a checkpoint and sweep what it makes superfluous.

        Raises StaleLease where a newer lease has written, and the errors of a store.
        """
        name = Name(record.lease, record.step)
        self._refuse_stale(name)
        self._store.write(f"{self.folder}/{name}/{BLOB}", blob)
        self._store.write(f"{self.folder}/{name}/{RECORD}", msgspec.json.encode(record))
        self._sweep(name)

    def newest(self) -> tuple[Record, bytes] | None:
        """The newest whole checkpoint with its blob; broken ones are passed over and told."""
        for name in reversed(self._names()):
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

    def _names(self) -> list[Name]:
        found = [Name.read(name) for name in self._store.names(self.folder)]
        return sorted(each for each in found if each is not None)

    def _refuse_stale(self, name: Name) -> None:
        newer = [each for each in self._names() if each.lease > name.lease]
        if newer:
            raise StaleLease(
                f"policy {self._policy!r}", f"is trained under lease {newer[-1].lease} now, not {name.lease}"
            )

    def _sweep(self, name: Name) -> None:
        """Remove all but the newest ones up to `name`; the record first, so that none is ever half there."""
        older = [each for each in self._names() if each <= name]
        whole = [each for each in older if RECORD in self._store.names(f"{self.folder}/{each}")]
        for each in older:
            if each not in whole[-self._kept :]:
                self._store.delete(f"{self.folder}/{each}/{RECORD}")
                self._store.delete(f"{self.folder}/{each}")


def digest_of(blob: bytes) -> str:
    """What a record says of its blob."""
    return hashlib.sha256(blob).hexdigest()
