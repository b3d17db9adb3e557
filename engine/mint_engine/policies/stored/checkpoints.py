"""Checkpoints: a policy's state as a blob, and a record, written last, that holds the blob's digest.

    <store>/policies/<policy>/<run>/<lease>-<step>/state.safetensors, then record.json

A checkpoint without its record does not exist. Training resumes from the newest by (lease, step): what a trainer
writes under an older lease is never preferred, and lies beside what the newer one writes. `run` is the wave's: a wave
that is created again under an old name starts from scratch.
"""

import hashlib
from contextlib import suppress

import msgspec
import structlog

from mint_contracts.errors import CapacityExceeded, CorruptFile, MintError, SourceNotFound, SourceUnavailable
from mint_contracts.step_figures import Curve
from mint_contracts.training_records import Published
from mint_engine.policies.stored.series import Name, Series
from mint_engine.policies.stored.store import Store

KEPT = 2  # complete checkpoints; the second in case the first is broken
READS = 2  # attempts before a file counts as broken: a store may return a truncated read
MOST_STEPS = 1_000_000  # as AdapterWave's CRD allows
MAX_RECORD = 25 * MOST_STEPS + (1 << 20)  # a reward takes at most 25 bytes of JSON, as in "-1.2345678901234567e-300,"
BLOB, RECORD = "state.safetensors", "record.json"
NO_RUN = "-"

_log = structlog.get_logger(__name__)


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A checkpoint's description of itself and of the course so far."""

    policy: str
    wave: str
    lease: int
    step: int
    digest: str  # sha256 of the blob, in hex
    run: str = ""
    size: int = 0  # bytes of the blob; 0: unknown, written by an earlier version
    numbers: int = 0  # of these, those of a Trainer API policy's vectors; 0: unknown, likewise
    sequence: int = 0  # of the last Trainer service call
    life: int = 0  # of a Trainer API policy, see `Calls`
    optimizer_steps: int = msgspec.field(default=0, name="taken")  # of a Trainer API policy
    # Whether the policy's engine let go of it, for any engine to resume.
    resumable: bool = msgspec.field(default=False, name="left")
    tokens: int = 0
    rewards: tuple[float, ...] = ()  # mean of each finished step
    curve: Curve = ()
    evaluation: float | None = None
    evaluated: int = 0  # the step after which `evaluation` was made
    published: Published | None = None


# made on import: several threads that are the first to decode a type at once crash msgspec 0.22
_RECORD = msgspec.json.Decoder(Record)


class Checkpoints:
    """One policy's checkpoints in one run. All methods block the calling thread."""

    def __init__(self, store: Store, policy: str, run: str = "", kept: int = KEPT) -> None:
        self._store, self._policy, self._kept = store, policy, kept
        self.folder = f"policies/{policy}/{run or NO_RUN}"
        self.series = Series(store, policy, self.folder, RECORD, kept)

    def save(self, record: Record, blob: bytes | bytearray) -> None:
        """Write a checkpoint and sweep those that it makes superfluous.

        Raises StaleLease if a newer lease has written, and a store's errors. A failed sweep is only logged: the
        checkpoint is there, and the next one's sweep tries again.
        """
        name = Name(record.lease, record.step)
        with self.series.written(name):
            self._store.write(f"{self.folder}/{name}/{BLOB}", blob)
            self._store.write(f"{self.folder}/{name}/{RECORD}", msgspec.json.encode(record))
        try:
            self.series.sweep(name)
        except MintError as error:
            _log.warning("checkpoints_unswept", policy=self._policy, checkpoint=str(name), error=str(error))

    def replace_record(self, record: Record) -> None:
        """Replace the record of an existing checkpoint. Raises as `save`."""
        name = Name(record.lease, record.step)
        with self.series.written(name):
            self._store.write(f"{self.folder}/{name}/{RECORD}", msgspec.json.encode(record))

    def newest(self, saved: int = 0) -> tuple[Record, bytes] | None:
        """Return the newest complete checkpoint with its blob, or None; broken ones are logged and skipped.

        Raises CorruptFile if all are broken, and SourceUnavailable if there is none although one of step `saved` is
        known to exist, as on a volume that is not mounted. Starting from scratch would then lose what was learnt.
        """
        broken: list[CorruptFile] = []
        for name in reversed(self.series.names()):
            try:
                return self._read(name)
            except CorruptFile as error:
                _log.error("checkpoint_broken", policy=self._policy, checkpoint=str(name), error=str(error))
                broken.append(error)
            except SourceNotFound:
                continue  # half written, or swept meanwhile
        if broken:
            where = f"{self.folder!r} of {self._store.source.uri!r}"
            raise CorruptFile(
                f"policy {self._policy!r}",
                f"has no readable checkpoint among {len(broken)} in {where} (the newest {broken[0].message}), and is "
                "not restarted from scratch; restore one and raise spec.train.retry (mint wave resume), or create a "
                "new AdapterWave, which trains it from scratch or from what it has published (startFrom)",
            )
        if saved:
            raise SourceUnavailable(
                f"store {self._store.source.uri!r}",
                f"has no checkpoint of policy {self._policy!r} in {self.folder!r}, which was saved at step {saved} "
                "or later; mount its volume, or restore its files; or delete the wave and create it again to begin "
                "at step 0; retrying",
            )
        return None

    def newest_record(self) -> Record | None:
        """Return the newest readable record, or None."""
        for name in reversed(self.series.names()):
            with suppress(SourceNotFound, CorruptFile):
                return self._record(name)
        return None

    def read(self, name: str) -> bytes:
        """Return one checkpoint's blob. Raises SourceNotFound if it does not exist (any more), or CorruptFile."""
        found = Name.read(name)
        try:
            if found is not None:
                return self._read(found)[1]
        except SourceNotFound:
            found = None
        reason = f"does not exist, or was swept: the newest {self._kept} are kept"
        raise SourceNotFound(f"checkpoint {name[:80]!r} of policy {self._policy!r}", reason)

    def numbers(self, name: str) -> int:
        """Return the bytes of one checkpoint's vectors; 0 if its record does not say, or there is none."""
        found = Name.read(name)
        with suppress(SourceNotFound, CorruptFile):
            return self._record(found).numbers if found is not None else 0
        return 0

    def _read(self, name: Name) -> tuple[Record, bytes]:
        for _ in range(READS - 1):
            try:
                return self._read_once(name)
            except CorruptFile as error:
                _log.warning("checkpoint_read_again", policy=self._policy, checkpoint=str(name), error=str(error))
        return self._read_once(name)

    def _read_once(self, name: Name) -> tuple[Record, bytes]:
        """Read a record and its blob. Raises CorruptFile, or SourceNotFound if there is no record."""
        subject, folder, record = self._subject(name), f"{self.folder}/{name}", self._record(name)
        try:
            blob = self._store.read(f"{folder}/{BLOB}", record.size or None)
        except CapacityExceeded:
            raise CorruptFile(subject, f"has more than the {record.size} bytes that its record gives") from None
        except SourceNotFound:
            if RECORD in self._store.names(folder):
                raise CorruptFile(subject, f"has lost its {BLOB}") from None
            raise
        if digest_of(blob) != record.digest or Name(record.lease, record.step) != name:
            raise CorruptFile(subject, "does not match its record")
        return record, blob

    def _record(self, name: Name) -> Record:
        """Read a record. Raises CorruptFile, or SourceNotFound."""
        try:
            return _RECORD.decode(self._store.read(f"{self.folder}/{name}/{RECORD}", MAX_RECORD))
        except (msgspec.MsgspecError, CapacityExceeded) as error:
            raise CorruptFile(self._subject(name), f"has an unreadable record: {error}") from None

    def _subject(self, name: Name) -> str:
        return f"checkpoint {name} of policy {self._policy!r}"


def digest_of(blob: bytes | bytearray) -> str:
    """Return the digest that a record holds of its blob."""
    return hashlib.sha256(blob).hexdigest()
