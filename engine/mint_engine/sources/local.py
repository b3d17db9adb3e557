"""file:// and pvc:// sources: read in place, and never anything outside the folder that was named."""

import io
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mint_contracts.claims import local_path, named_path
from mint_contracts.errors import SourceForbidden, SourceUnavailable
from mint_contracts.source import LOCAL, Location, Source
from mint_contracts.storage_errors import os_errors


def is_local(source: Source) -> bool:
    """Whether its files are read in place: they may change under one name, and no server's answers are waited for."""
    return source.uri.partition(":")[0].lower() in LOCAL


def place_of(source: Source) -> str:
    """What its files are reached by, as far as its URI tells: a claim, or a folder of the root's."""
    scheme, _, path = source.uri.partition(":")
    return f"{scheme.lower()}://{path.lstrip('/').partition('/')[0]}"


# A name, its bytes, times and inode. Programs that copy set the first time to what they copied has, of other content
# too; the second is that of any change, which none can set.
FileState = tuple[str, int, int, int, int]


def _state(name: str, about: os.stat_result) -> FileState:
    return name, about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino


def state_of(location: Location, names: Sequence[str], subject: str) -> list[FileState]:
    """Bytes and times of change of those of the named files that a file:// or pvc:// source has.

    Links are followed wherever they lead: what is read is looked up again, by `LocalFolder` in its fence.
    Raises SourceNotFound, and what `local_path` does.
    """
    folder, found = named_path(location), list[FileState]()
    with os_errors(subject):
        for name in names:
            with suppress(FileNotFoundError, NotADirectoryError):
                found.append(_state(name, os.stat(f"{folder}/{name}")))
        if not found:
            os.stat(local_path(location)[0])
    return found


class LocalFolder:
    """A folder of this machine. Its files may be links, as long as they stay inside the folder (or its claim)."""

    def __init__(self, path: Path, subject: str, *, fence: Path | None = None) -> None:
        self.path = path
        self.subject = subject
        self._fence = fence or path
        self._found: dict[str, FileState] = {}

    def files(self, *_names: str) -> dict[str, int | None]:
        """Regular files directly in the folder, with their bytes. Raises SourceNotFound."""
        found: dict[str, int | None] = {}
        with os_errors(self.subject), os.scandir(self.path) as entries:
            for entry in entries:
                try:
                    about = entry.stat()
                except FileNotFoundError:  # a dangling link
                    continue
                if stat.S_ISREG(about.st_mode):
                    found[entry.name] = about.st_size
                    self._found[entry.name] = _state(entry.name, about)
        return found

    def check_same(self, *names: str) -> None:
        """Raise SourceUnavailable unless these are what they were when `files` told of them; see `Folder`."""
        with os_errors(self.subject):
            for name in names:
                if _state(name, os.stat(self.path / name)) != self._found.get(name):
                    raise SourceUnavailable(self.subject, f"changed {name} while it was read; retrying")

    def resolve(self, name: str) -> Path:
        """The real path of one of the folder's files. Raises SourceForbidden when a link leads outside."""
        path = Path(os.path.realpath(self.path / name))
        if not path.is_relative_to(self._fence):
            raise SourceForbidden(self.subject, f"{name} leads out of its folder by a symbolic link")
        return path

    @contextmanager
    def open(self, name: str) -> Iterator[io.BufferedReader]:
        """One of the folder's files for reading; only a regular file is opened. Maps errors while it is read too."""
        with os_errors(self.subject):
            descriptor = os.open(self.resolve(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                # A folder on its path may have become a link since: what counts is where that which was opened lies.
                if not Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(self._fence):
                    raise SourceUnavailable(self.subject, f"moved {name} while it was opened; retrying")
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise SourceForbidden(self.subject, f"{name} is not a regular file")
                yield file
