"""The disk tier: copies of remote adapters in the cache folder, within a byte budget; they outlive a restart."""

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mint_contracts.errors import CapacityExceeded, Overloaded
from mint_contracts.source import Source
from mint_engine.copying import folder_name, publish, sync
from mint_engine.ledger import Ledger
from mint_engine.storage import subject_of

_ENTRY = "entry.json"
_PARTIAL = ".partial-"


class _Entry(msgspec.Struct, frozen=True):
    source: Source
    nbytes: int


class DiskTier:
    """One folder a source, named by the source's hash; complete or absent. Methods may run in any thread."""

    def __init__(self, folder: Path, budget: int) -> None:
        self.ledger: Ledger[Source] = Ledger(budget)
        self._folder = folder
        self._publishing = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._recover()

    def _recover(self) -> None:
        """Enter what an earlier process left complete; sweep the rest."""
        for path in sorted(self._folder.iterdir(), key=lambda each: each.stat().st_mtime):
            try:
                entry = msgspec.json.decode((path / _ENTRY).read_bytes(), type=_Entry)
                sound = not path.name.startswith(_PARTIAL) and path.name == folder_name(entry.source)
            except (OSError, msgspec.DecodeError):
                sound = False
            if not sound or not self._enter(entry.source, entry.nbytes):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def get(self, source: Source) -> Path | None:
        """The folder of a source, if it is here and complete."""
        path = self._folder / folder_name(source)
        return path if source in self.ledger and path.is_dir() else None

    @contextmanager
    def using(self, source: Source) -> Iterator[None]:
        """Keep a source's folder from eviction."""
        self.ledger.use(source)
        try:
            yield
        finally:
            self.ledger.release(source)

    def store(self, source: Source, copy: Callable[[Path, Callable[[int], None]], None]) -> Path:
        """Let `copy(folder, admit)` bring a source's files, then publish them.

        `admit(nbytes)` makes room; it raises CapacityExceeded where the budget can never do, Overloaded where it is
        taken by what is wanted now. Nothing remains of a copy that fails. Call inside `using(source)`.
        """
        target = self._folder / folder_name(source)
        admitted = 0

        def admit(nbytes: int) -> None:
            nonlocal admitted
            self._admit(source, nbytes)
            admitted = nbytes

        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=self._folder) as temporary:
            partial = Path(temporary) / "files"
            partial.mkdir()
            try:
                copy(partial, admit)
                (partial / _ENTRY).write_bytes(msgspec.json.encode(_Entry(source=source, nbytes=admitted)))
                sync(partial / _ENTRY)
                with self._publishing:
                    if not target.is_dir():  # another adapter's load of the same source may have been faster
                        publish(partial, target)
            except BaseException:
                if not target.is_dir():
                    self.ledger.remove(source)
                raise
        return target

    def drop(self, source: Source) -> None:
        """Remove a source's folder, if it is here."""
        self.ledger.remove(source)
        self._remove(source)

    def _admit(self, source: Source, nbytes: int) -> None:
        if nbytes > self.ledger.budget:
            raise CapacityExceeded(
                subject_of(source), f"needs {nbytes} bytes of a disk cache of {self.ledger.budget}; raise diskCache"
            )
        if not self._enter(source, nbytes):
            raise Overloaded(subject_of(source), "finds the disk cache full of wanted adapters", retry_after_s=5.0)

    def _enter(self, source: Source, nbytes: int) -> bool:
        evicted = self.ledger.add(source, nbytes)
        for each in evicted or ():
            self._remove(each)
        return evicted is not None

    def _remove(self, source: Source) -> None:
        """Take the folder from sight first, so that a half removed one is never found."""
        path = self._folder / folder_name(source)
        if path.is_dir():
            hidden = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self._folder))
            path.rename(hidden / "files")
            shutil.rmtree(hidden, ignore_errors=True)
