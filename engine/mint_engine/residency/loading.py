"""Fetches an adapter from its source to this machine's disk, packed, and maps it. Blocks the calling thread."""

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
    """This machine's disk has lost a file or a block of it."""


class Loader:
    """Loads adapters that fit one base through the disk tier. Its methods may run in several threads at once."""

    def __init__(self, disk: DiskTier, fit: Fit, dtype: torch.dtype) -> None:
        self.disk = disk
        self._fit = fit
        self._dtype = dtype
        # OLDEST keeps files packed by older versions valid, so that an upgrade need not fetch everything again.
        self._base = f"{dtype} {fingerprint(fit.modules)} {packed_file.OLDEST}"
        self._opener = Opener()
        self._fitting: WeakSet[Header] = WeakSet()  # headers already checked against the base
        self._read_concurrency = ReadConcurrency()
        self._hosts = Hosts()
        self._turns: WeakValueDictionary[Source, threading.Lock] = WeakValueDictionary()  # while a load runs or waits
        self._guard = threading.Lock()

    def held(self, source: Source, state: str | None) -> Packed | None:
        """Return the packed adapter of a source in this state from the disk tier, or None if it is not there intact.

        Nor is a file returned that this process has not verified: that takes reading all of it, as `load` does. Call
        inside `disk.using(source)`. Computes little, and waits only for this machine's disk. Raises `load`'s errors.
        """
        path = self.disk.get(source, self._digest(None) if state is None else state)
        if path is None or not self._opener.has_verified(path):
            return None
        try:
            return self._open(path, source)
        except (CorruptFile, _Lost):  # `load` handles these
            return None

    def load(self, source: Source) -> Packed:
        """Return the packed adapter of a source from the disk tier, fetching it first if missing or changed.

        Call inside `disk.using(source)`. Transient errors are retried a few times. Concurrent loads of one source
        (which may have several names) take turns, and find what the first one fetched. Raises every error of
        `adapters.read`, Source*, Overloaded, CapacityExceeded.
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
        """Drop a source's file, because this machine's disk has lost part of it: the next load fetches it again.

        Call inside `disk.using(source)`. If the file has been replaced since, the new one stays.
        """
        if packed.file is None:
            return
        with self._turn(source), packed.file.open() as descriptor:
            if descriptor is not None:
                log.warning("cached_adapter_lost", source=source.uri, revision=packed.revision)
                self.disk.drop(source)

    def state(self, source: Source) -> str | None:
        """Return a digest of the present state of a local source's files; None for other sources.

        Returns "" if a required file is missing: the source is gone, or is just being removed or written.
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
            # It may have been packed under other settings before a restart.
            check_admitted(peft_config.parse(packed.header.config, subject), self._fit, subject)
            check_packed(packed.header, self._fit, subject)
            self._fitting.add(packed.header)
        return packed

    def _asked(self, source: Source) -> Path:
        with self._hosts.asking(source) as asking:
            return self._ingest(source, asking)

    def _ingest(self, source: Source, asking: Asking) -> Path:
        """Read, check and pack what the source holds, write it to the disk tier, and return the file's path."""
        identity = self._identity(source)

        def write(file: BinaryIO, admit: Callable[[int], None]) -> None:
            """Pack the source into `file`; `admit` takes the disk's place for its bytes, or raises."""
            with ExitStack() as until_written:

                def admitted(nbytes: int) -> None:
                    admit(nbytes)
                    until_written.close()  # a second read, to find an error's cause, must not wait for our own place
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
        """Return 16 hex digits that identify the present content of a source as packed for this base.

        Those of a local source depend on its files. A remote source's content never changes for a URI and revision.
        """
        return self._digest(_files_of(source) if is_local(source) else None)

    def _digest(self, files: Sequence[FileState] | None) -> str:
        digest = hashlib.sha256(self._base.encode())
        if files is not None:
            digest.update(repr(files).encode())
        return digest.hexdigest()[:16]


def _files_of(source: Source) -> list[FileState]:
    """Return the states of the adapter files that a local source has. Raises as `state_of`."""
    return state_of(locate(source), (CONFIG, WEIGHTS, PACKED), subject_of(source))


def _own_trouble(error: OSError | MemoryError, subject: str, did: str) -> MintError:
    """Return the error for a failure of this machine's disk or memory: not the adapter's fault, and retried."""
    if isinstance(error, MemoryError):
        return Overloaded(
            subject, "cannot be loaded: the engine's memory is full; retry later", retry_after_s=MEMORY_RETRY_S
        )
    return disk_full(error, subject) or SourceUnavailable(
        subject, f"could not be {did} this engine's disk ({error.strerror or error}); retrying"
    )
