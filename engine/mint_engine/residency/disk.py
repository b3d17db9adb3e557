"""The disk tier: packed adapters in the cache folder, one file per source, within a budget; they survive a restart.

A file's name contains its source's hash and the identity of the source's content (see `Loader`), so a source that has
changed is never mistaken for the one that was packed. Files are not synced: one that a crash of the machine leaves
incomplete is detected by its size or digest when it is next opened (see `Opener`), and its source still has it.
"""

import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from mint_contracts.byte_counts import in_units
from mint_contracts.errors import CapacityExceeded, Overloaded
from mint_contracts.source import Source
from mint_contracts.storage_errors import writing_errors
from mint_engine.adapters.file_identity import KnownFile
from mint_engine.residency.ledger import Ledger
from mint_engine.residency.mapped_files import MappedFiles
from mint_engine.sources.copying import folder_name
from mint_engine.sources.storage import subject_of

_FILE = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})\.mint")
_PARTIAL = ".partial-"

Write = Callable[[BinaryIO, Callable[[int], None]], None]


class DiskTier:
    """Packed files, each complete or absent. Methods may run in any thread.

    A removed file takes disk space, and counts, until it is no longer mapped. So mapped files stay until nothing else
    makes room; then, if that can help, `sheds(nbytes)` is asked to release mappings, and returns whether there were
    any. Files that are mapped even then, in slots or because a wave wants them in host memory, are removed last. If
    these alone exceed the budget, disk usage exceeds it too, but by no more than they do. If the disk itself has less
    room than the budget, because others fill it, that is all the room there is.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        """Create the folder if it does not exist. Raises Source* errors if it cannot be written."""
        self.ledger: Ledger[str] = Ledger(budget)  # keyed by the source's hash
        self._folder = folder
        self._paths: dict[str, Path] = {}
        self._mapped = MappedFiles()
        self._yielding: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        self.sheds: Callable[[int], bool] = lambda _: False
        with writing_errors(f"cache {str(folder)!r}"):
            folder.mkdir(parents=True, exist_ok=True)
            self._recover()

    def _recover(self) -> None:
        """Enter earlier processes' complete files, the newest per source, by last use; delete everything else."""
        newest: dict[str, Path] = {}
        for path in sorted(self._folder.iterdir(), key=lambda each: each.lstat().st_mtime_ns):
            name = _FILE.fullmatch(path.name)
            if name is None or path.is_symlink() or not path.is_file():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                continue
            if name[1] in newest:
                newest[name[1]].unlink()
            newest[name[1]] = path
        for key, path in sorted(newest.items(), key=lambda each: _last_used_ns(each[1])):
            self._paths[key] = path
            if not self._add(key, path.stat().st_size, lambda _: True, beside=0):
                self._remove(key)

    def holds(self, source: Source) -> bool:
        """Return whether a packed file of the source is here; the source may have changed since."""
        return folder_name(source) in self.ledger

    def get(self, source: Source, identity: str) -> Path | None:
        """Return the file packed from a source when it had this identity (16 hex digits), or None."""
        with self._lock:
            path = self._paths.get(folder_name(source))
        return path if path is not None and path.name.endswith(f"-{identity}.mint") else None

    def keep(self, sources: frozenset[Source]) -> None:
        """Protect the files of exactly these sources from eviction from now on."""
        self.ledger.keep(frozenset(map(folder_name, sources)))

    def yields(self, sources: frozenset[Source]) -> None:
        """Let the files of exactly these sources take only free room from now on, evicting nothing."""
        self._yielding = frozenset(map(folder_name, sources))

    @property
    def used(self) -> int:
        """Bytes of disk space that adapters take, removed but mapped files included."""
        return self.ledger.used + self._mapped.removed_bytes

    def mapped(self, source: Source, file: KnownFile) -> None:
        """Record that a source's file is mapped while `file` is referenced. Call inside `using(source)`."""
        with self._lock:
            if self._paths.get(folder_name(source)) == file.path:
                self._mapped.enter(file)

    def touch(self, source: Source) -> None:
        """Mark a source's file as just used: its adapter was used in a warmer tier."""
        self.ledger.touch(folder_name(source))

    @contextmanager
    def using(self, source: Source) -> Iterator[None]:
        """Protect a source's file from eviction until the context ends."""
        key = folder_name(source)
        self.ledger.use(key)
        try:
            yield
        finally:
            self.ledger.release(key)

    def store(self, source: Source, identity: str, write: Write) -> Path:
        """Let `write(file, admit)` write a source's packed file, then publish it in place of an older one.

        `admit(nbytes)` makes room. It raises CapacityExceeded if the file is larger than the budget, and Overloaded
        if wanted files take the room. If anything fails, neither the new file remains nor the older one, which is
        outdated. Call inside `using(source)`, and not concurrently for one source.
        """
        key = folder_name(source)
        target = self._folder / f"{key}-{identity}.mint"
        with tempfile.NamedTemporaryFile(prefix=_PARTIAL, dir=self._folder, delete=False) as file:
            try:
                write(cast(BinaryIO, file), lambda nbytes: self._admit(source, key, nbytes))
                file.flush()
                self._admit(source, key, file.tell())
                self._publish(key, Path(file.name), target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                self.drop(source)
                raise
        return target

    def drop(self, source: Source) -> None:
        """Remove a source's file, if present."""
        self._drop(folder_name(source))

    def imbalance(self) -> str:
        """Describe an inconsistency, or return "" if there is none. A file being written is counted in advance."""
        with self._lock:
            lost = [path.name for path in self._paths.values() if not path.is_file()]
        return self.ledger.imbalance() or (f"lost {lost[0]}" if lost else "")

    def _publish(self, key: str, partial: Path, target: Path) -> None:
        with self._lock:
            partial.rename(target)
            self._paths[key] = target

    def _admit(self, source: Source, key: str, nbytes: int) -> None:
        if nbytes > self.ledger.budget:
            raise CapacityExceeded(
                subject_of(source),
                f"needs {in_units(nbytes)} of a disk cache of {in_units(self.ledger.budget)}; raise diskCache",
            )
        self._remove_older(key)
        if not self._enter(key, nbytes):
            raise Overloaded(
                subject_of(source),
                "does not fit: the disk cache is full of wanted adapters; raise diskCache",
                retry_after_s=5.0,
            )

    def _enter(self, key: str, nbytes: int) -> bool:
        if key in self._yielding:
            return self._add(key, nbytes, lambda _: False)
        while not self._add(key, nbytes, lambda each: not self._is_mapped(each)):
            if not self._could_have(key, nbytes) or not self.sheds(nbytes):
                return self._add(key, nbytes, lambda _: True, beside=0)
        return True

    def _add(self, key: str, nbytes: int, evicting: Callable[[str], bool], beside: int | None = None) -> bool:
        beside = self._lacking if beside is None else beside
        evicted = self.ledger.add(key, nbytes, evicting=evicting, beside=beside)
        for each in evicted or ():
            self._remove(each)
        return evicted is not None

    @property
    def _lacking(self) -> int:
        """Bytes of the budget, besides those of the ledger, that no file can have."""
        on_disk = self.ledger.budget - self.ledger.used - shutil.disk_usage(self._folder).free
        return max(self._mapped.removed_bytes, on_disk)

    def _could_have(self, key: str, nbytes: int) -> bool:
        """Return whether a file would have room if none were mapped; otherwise, to release mappings is in vain."""
        free = shutil.disk_usage(self._folder).free + self._mapped.removed_bytes
        return nbytes <= min(self.ledger.budget, self.ledger.used + free) - self.ledger.pinned_beside(key)

    def _is_mapped(self, key: str) -> bool:
        """Return whether a key's file is mapped. Takes no lock of this tier: the ledger calls it, holding its own."""
        path = self._paths.get(key)
        return path is not None and self._mapped.has(path)

    def _remove_older(self, key: str) -> None:
        """Remove the file that a new one is about to replace, since both together might exceed the budget."""
        with self._lock:
            path = self._paths.pop(key, None)
            if path is not None:
                self._mapped.remove(path)

    def _drop(self, key: str) -> None:
        self.ledger.remove(key)
        self._remove(key)

    def _remove(self, key: str) -> None:
        """Remove the file of a key that left the ledger. If it was added again, it has a new file, or soon will."""
        with self._lock:
            path = None if key in self.ledger else self._paths.pop(key, None)
            if path is not None:
                self._mapped.remove(path)


def _last_used_ns(path: Path) -> int:
    """Return when a file was written or last read. Linux notes reads once a day (relatime) or never (noatime).

    Updating it ourselves would change the file's `Identity`.
    """
    about = path.stat()
    return max(about.st_atime_ns, about.st_mtime_ns)
