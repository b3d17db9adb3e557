"""Bringing one adapter from its source to this machine's disk, packed, and mapping it; blocks its thread."""

import hashlib
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO
from weakref import WeakSet, WeakValueDictionary

import structlog
import torch

from mint_contracts.errors import CorruptFile, MintError, Overloaded, SourceUnavailable
from mint_contracts.source import Source, locate
from mint_contracts.storage_errors import disk_full
from mint_engine.adapters import packed_file, peft_config
from mint_engine.adapters.check import Fit, check_admitted, check_packed
from mint_engine.adapters.mapped import LOST, Opener
from mint_engine.adapters.packed import Header, Packed, fingerprint
from mint_engine.adapters.relay import relay
from mint_engine.residency.disk import DiskTier
from mint_engine.residency.read_concurrency import ReadConcurrency
from mint_engine.sources.fetch import CONFIG, PACKED, WEIGHTS
from mint_engine.sources.hosts import Asking, Hosts
from mint_engine.sources.local import FileState, is_local, state_of
from mint_engine.sources.retry import retrying
from mint_engine.sources.storage import folder_of, subject_of

MEMORY_RETRY_S = 5.0

log = structlog.get_logger(__name__)


class _Lost(Exception):
    """A file, or a block of it, that this machine's disk does not have any more."""


class Loader:
    """Knows the base that adapters must fit, and the disk tier. Its methods may run in several threads at once."""

    def __init__(self, disk: DiskTier, fit: Fit, dtype: torch.dtype) -> None:
        self.disk = disk
        self._fit = fit
        self._dtype = dtype
        # What an older version has packed is read as well, so that an upgrade need not fetch all of a disk anew.
        self._base = f"{dtype} {fingerprint(fit.modules)} {packed_file.OLDEST}"
        self._opener = Opener()
        self._fitting: WeakSet[Header] = WeakSet()  # headers that were checked against the base
        self._read_concurrency = ReadConcurrency()
        self._hosts = Hosts()
        self._turns: WeakValueDictionary[Source, threading.Lock] = WeakValueDictionary()  # whose loads run or wait
        self._guard = threading.Lock()

    def held(self, source: Source, state: str | None) -> Packed | None:
        """The packed adapter of a source in that state from the disk tier; None where that has it not, or not so.

        Call inside `disk.using(source)`; computes little, and waits for nothing but this machine's disk. Raises what
        `load` does.
        """
        path = self.disk.get(source, self._digest(None) if state is None else state)
        try:
            return None if path is None else self._open(path, source)
        except (CorruptFile, _Lost):  # which `load` sees to
            return None

    def load(self, source: Source) -> Packed:
        """The packed adapter of a source, from the disk tier; first brought there, if it is not there or has changed.

        Call inside `disk.using(source)`. Transient errors are tried again a few times. Several loads of one source
        (it may have several names) take turns, and find what the first has brought. Raises every error of `read`,
        Source*, Overloaded, CapacityExceeded.
        """
        with self._turn(source):
            path = self.disk.get(source, self._identity(source))
            if path is not None:
                try:
                    return self._open(path, source)
                except (CorruptFile, _Lost) as error:
                    log.warning("cached_adapter_broken", source=source.uri, error=str(error))
                    self.disk.drop(source)
            path = retrying(lambda: self._asked(source))
            try:
                return self._open(path, source)
            except _Lost as error:
                reason = f"cannot be read back from this engine's disk ({error}); retrying"
                raise SourceUnavailable(subject_of(source), reason) from None

    def lost(self, source: Source, packed: Packed) -> None:
        """This machine's disk does not have all of what it packed of a source: the next load brings it anew.

        Call inside `disk.using(source)`. What the source's file is by now stays, where that is another.
        """
        if packed.file is None:
            return
        with self._turn(source), packed.file.open() as descriptor:
            if descriptor is not None:
                log.warning("cached_adapter_lost", source=source.uri, revision=packed.revision)
                self.disk.drop(source)

    def state(self, source: Source) -> str | None:
        """What tells a local source's files from what they may be later; None of others.

        "" where it lacks one that it needs: it is gone, or just being removed or written.
        """
        if not is_local(source):
            return None
        try:
            files = _files_of(source)
        except MintError:
            return ""
        names = {name for name, *_ in files}
        return self._digest(files) if PACKED in names or {CONFIG, WEIGHTS} <= names else ""

    def _turn(self, source: Source) -> threading.Lock:
        with self._guard:
            turn = self._turns.get(source)
            if turn is None:
                turn = self._turns[source] = threading.Lock()
            return turn

    def _open(self, path: Path, source: Source) -> Packed:
        subject = subject_of(source)
        try:
            packed = self._opener.open(path, subject)
        except (OSError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno in LOST:
                raise _Lost(error.strerror) from error
            raise _own_trouble(error, subject, "read from") from error
        if packed.file is not None:
            self.disk.mapped(source, packed.file)
        if packed.header not in self._fitting:
            # It may have been packed under other settings, before a restart.
            check_admitted(peft_config.parse(packed.header.config, subject), self._fit, subject)
            check_packed(packed.header, self._fit, subject)
            self._fitting.add(packed.header)
        return packed

    def _asked(self, source: Source) -> Path:
        with self._hosts.asking(source) as asking:
            return self._ingest(source, asking)

    def _ingest(self, source: Source, asking: Asking) -> Path:
        """Read, check and lay out what the source holds, and write it to the disk tier; its file."""
        identity = self._identity(source)

        def write(file: BinaryIO, admit: Callable[[int], None]) -> None:
            with ExitStack() as until_written:

                def admitted(nbytes: int) -> None:
                    admit(nbytes)
                    until_written.close()  # who reads anew, to tell what is wrong, must not wait for its own place
                    if not is_local(source):
                        with asking.aside():
                            until_written.enter_context(self._read_concurrency.reading(nbytes))

                relay(folder_of(source), self._fit, self._dtype, admitted, file.fileno())
                if self._identity(source) != identity:
                    raise SourceUnavailable(subject_of(source), "changed while it was read; retrying")

        try:
            path = self.disk.store(source, identity, write)
        except (OSError, MemoryError) as error:
            raise _own_trouble(error, subject_of(source), "written to") from error
        self._opener.trust(path)
        return path

    def _identity(self, source: Source) -> str:
        """What tells this content of a source, packed for this base, from another: 16 hex digits.

        A local source's files are looked at. A remote one is taken to be what its URI and revision name, for good.
        """
        return self._digest(_files_of(source) if is_local(source) else None)

    def _digest(self, files: Sequence[FileState] | None) -> str:
        digest = hashlib.sha256(self._base.encode())
        if files is not None:
            digest.update(repr(files).encode())
        return digest.hexdigest()[:16]


def _files_of(source: Source) -> list[FileState]:
    """An adapter's files that a local source has. Raises as `state_of`."""
    return state_of(locate(source), (CONFIG, WEIGHTS, PACKED), subject_of(source))


def _own_trouble(error: OSError | MemoryError, subject: str, did: str) -> MintError:
    """What this machine's own disk or memory refused: no fault of the adapter's, and tried again."""
    if isinstance(error, MemoryError):
        return Overloaded(
            subject, "cannot be loaded: the engine's memory is full; retry later", retry_after_s=MEMORY_RETRY_S
        )
    return disk_full(error, subject) or SourceUnavailable(
        subject, f"could not be {did} this engine's disk ({error.strerror or error}); retrying"
    )
