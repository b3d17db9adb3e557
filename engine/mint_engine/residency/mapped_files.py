"""Which files of the disk tier are mapped: a removed file takes disk space until its last mapping ends."""

import threading
from contextlib import suppress
from pathlib import Path
from weakref import ref

from mint_engine.adapters.file_identity import KnownFile

_Mappings = list["ref[KnownFile]"]


class MappedFiles:
    """The mapped files, tracked by weak references to their users' `KnownFile`s. Safe to use from any thread."""

    def __init__(self) -> None:
        self._here: dict[Path, _Mappings] = {}
        self._removed: list[tuple[_Mappings, int]] = []
        self._lock = threading.Lock()

    def enter(self, file: KnownFile) -> None:
        """Record that a file is mapped, for as long as `file` is referenced."""
        with self._lock:
            others = _lasting(self._here.get(file.path, []))
            self._here[file.path] = [*others, ref(file)]

    def has(self, path: Path) -> bool:
        """Return whether the file at `path` is mapped."""
        with self._lock:
            return bool(_lasting(self._here.get(path, [])))

    def remove(self, path: Path) -> None:
        """Remove a file, if it exists. Queries about other files do not wait for the disk meanwhile."""
        nbytes = 0
        with suppress(FileNotFoundError):
            nbytes = path.stat().st_size
            path.unlink()
        with self._lock:
            if mappings := _lasting(self._here.pop(path, [])):
                self._removed.append((mappings, nbytes))

    @property
    def removed_bytes(self) -> int:
        """Number of bytes of removed files that are still mapped."""
        with self._lock:
            self._removed = [(left, nbytes) for each, nbytes in self._removed if (left := _lasting(each))]
            return sum(nbytes for _, nbytes in self._removed)


def _lasting(mappings: _Mappings) -> _Mappings:
    return [each for each in mappings if each() is not None]
