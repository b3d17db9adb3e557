"""Checkpoints: a policy's state as a blob, and a record, written last, that names the blob with its digest.

    <store>/policies/<policy>/<run>/<lease>-<step>/state.safetensors, then record.json

A checkpoint without its record does not exist. The newest by (lease, step) is the one to go on from: what a trainer
writes under an older lease is never preferred, and lies beside what the newer one writes. `run` is the wave's: one
that was made anew under an old name begins anew.
"""

import hashlib
from contextlib import suppress

import msgspec
import structlog

from mint_contracts.errors import CapacityExceeded, CorruptFile, MintError, SourceNotFound, SourceUnavailable
from mint_contracts.training_records import Published
from mint_engine.policies.series import Name, Series
from mint_engine.policies.store import Store

KEPT = 2  # complete ones; the second is there in case the first is broken
READS = 2  # of what looks broken, before it is taken to be: a store may give half of what it has
MOST_STEPS = 1_000_000  # as the CRD of AdapterWave admits
MAX_RECORD = 25 * MOST_STEPS + (1 << 20)  # a reward takes 25 bytes of JSON at most, of "-1.2345678901234567e-300,"
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
    size: int = 0  # bytes of the blob; 0: written by an earlier version, which did not tell
    sequence: int = 0  # of the Trainer service's calls
    life: int = 0  # of a policy of those, see `Calls`
    taken: int = 0  # optimizer steps of such a policy
    left: bool = False  # by the policy's engine as it ended, for another one to go on with
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

    def save(self, record: Record, blob: bytes | bytearray) -> None:
        """Write a checkpoint and sweep what it makes superfluous.

        Raises StaleLease where a newer lease has written, and the errors of a store, but not for what can't be swept:
        the checkpoint is there, and the next one's sweep does it.
        """
        name = Name(record.lease, record.step)
        with self._series.written(name):
            self._store.write(f"{self.folder}/{name}/{BLOB}", blob)
            self._store.write(f"{self.folder}/{name}/{RECORD}", msgspec.json.encode(record))
        try:
            self._series.sweep(name)
        except MintError as error:
            _log.warning("checkpoints_unswept", policy=self._policy, checkpoint=str(name), error=str(error))

    def retell(self, record: Record) -> None:
        """Say something else of a checkpoint that is there. Raises as `save`."""
        name = Name(record.lease, record.step)
        with self._series.written(name):
            self._store.write(f"{self.folder}/{name}/{RECORD}", msgspec.json.encode(record))

    def latest_lease(self) -> int:
        """Under which something was saved, 0: nothing was."""
        return self._series.latest_lease()

    def leases(self) -> list[int]:
        """Under which something was saved, or that have the policy: the oldest first."""
        return [each.lease for each in self._series.names()]

    def take(self, lease: int) -> None:
        """As `Series.take`."""
        self._series.take(lease)

    def give_back(self, lease: int) -> None:
        """As `Series.give_back`."""
        self._series.give_back(lease)

    def newest(self, saved: int = 0) -> tuple[Record, bytes] | None:
        """The newest whole checkpoint with its blob; broken ones are logged and passed over. None: there is none.

        Raises CorruptFile where all are broken: who began anew would put nothing in the place of what was learnt.
        So would they where there is none though one of step `saved` is known of, as in a volume that is not mounted:
        SourceUnavailable.
        """
        broken: list[CorruptFile] = []
        for name in reversed(self._series.names()):
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
        """What the newest checkpoint says of itself, unless that cannot be read."""
        for name in reversed(self._series.names()):
            with suppress(SourceNotFound, CorruptFile):
                return self._record(name)
        return None

    def read(self, name: str) -> bytes:
        """The blob of one checkpoint. Raises SourceNotFound where it is not (any more), CorruptFile."""
        found = Name.read(name)
        try:
            if found is not None:
                return self._read(found)[1]
        except SourceNotFound:
            found = None
        raise SourceNotFound(f"checkpoint {name[:80]!r} of policy {self._policy!r}", "does not exist, or was swept")

    def _read(self, name: Name) -> tuple[Record, bytes]:
        for _ in range(READS - 1):
            try:
                return self._read_once(name)
            except CorruptFile as error:
                _log.warning("checkpoint_read_again", policy=self._policy, checkpoint=str(name), error=str(error))
        return self._read_once(name)

    def _read_once(self, name: Name) -> tuple[Record, bytes]:
        """Raises CorruptFile, or SourceNotFound for what no record tells of."""
        subject, folder, record = self._subject(name), f"{self.folder}/{name}", self._record(name)
        try:
            blob = self._store.read(f"{folder}/{BLOB}", record.size or None)
        except CapacityExceeded:
            raise CorruptFile(subject, f"has more than the {record.size} bytes that its record gives") from None
        except SourceNotFound:
            if RECORD in self._store.names(folder):
                raise CorruptFile(subject, f"has lost its {BLOB}") from None
            raise
        if hashlib.sha256(blob).hexdigest() != record.digest or Name(record.lease, record.step) != name:
            raise CorruptFile(subject, "does not match its record")
        return record, blob

    def _record(self, name: Name) -> Record:
        """Raises CorruptFile, or SourceNotFound."""
        try:
            return _RECORD.decode(self._store.read(f"{self.folder}/{name}/{RECORD}", MAX_RECORD))
        except (msgspec.MsgspecError, CapacityExceeded) as error:
            raise CorruptFile(self._subject(name), f"has an unreadable record: {error}") from None

    def _subject(self, name: Name) -> str:
        return f"checkpoint {name} of policy {self._policy!r}"


def digest_of(blob: bytes | bytearray) -> str:
    """What a record says of its blob."""
    return hashlib.sha256(blob).hexdigest()
