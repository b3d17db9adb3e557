"""file:// and pvc:// sources, read in place; nothing outside the named folder is ever read."""

import io
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from mint_contracts.claims import local_path, named_path
from mint_contracts.errors import SourceForbidden, SourceUnavailable
from mint_contracts.source import LOCAL, Location, Source
from mint_contracts.storage_errors import os_errors


def is_local(source: Source) -> bool:
    """Whether its files are read in place: they may change under one name, and there is no server to wait for."""
    return source.uri.partition(":")[0].lower() in LOCAL


def place_of(source: Source) -> str:
    """Return the volume that a local source's URI names, as far as it shows: a claim, or a top-level folder."""
    scheme, _, path = source.uri.partition(":")
    return f"{scheme.lower()}://{path.lstrip('/').partition('/')[0]}"


# A file's name, size, mtime, ctime and inode. Copying programs may set the mtime, even of different content; no
# program can set the ctime, which is the time of any change. The inode is 0 where the same file may get another:
# mounted object stores number files anew when they are mounted, and when the kernel has forgotten them.
FileState = tuple[str, int, int, int, int]
MOUNTS = Path("/proc/self/mountinfo")  # see proc_pid_mountinfo(5)


def _state(name: str, about: os.stat_result) -> FileState:
    inode = 0 if _is_fuse(about.st_dev) else about.st_ino
    return name, about.st_size, about.st_mtime_ns, about.st_ctime_ns, inode


@cache
def _is_fuse(device: int) -> bool:
    """Whether a program mounts this device, as gcsfuse and Mountpoint for Amazon S3 do. Local disks are fuseblk."""
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = (line.partition(" - ") for line in MOUNTS.read_text(errors="replace").splitlines())
    kinds = {kind.split()[0] for mount, _, kind in mounts if mount.split()[2] == number}
    return any(kind == "fuse" or kind.startswith("fuse.") for kind in kinds)


def state_of(location: Location, names: Sequence[str], subject: str) -> list[FileState]:
    """Return the states of those named files that a file:// or pvc:// source has.

    Links are followed wherever they lead: for reading, `LocalFolder` resolves them again within its fence.
    Raises SourceNotFound, and what `local_path` raises.
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
    """A folder on this machine. Its files may be links that stay inside the folder (or its claim)."""

    def __init__(self, path: Path, subject: str, *, fence: Path | None = None) -> None:
        self.path = path
        self.subject = subject
        self._fence = fence or path
        self._found: dict[str, FileState] = {}

    def files(self, *names: str) -> dict[str, int | None]:
        """Return which of the named regular files, or of all, are directly in the folder, with their sizes.

        A folder may have millions of others. Raises SourceNotFound.
        """
        found: dict[str, int | None] = {}
        with os_errors(self.subject):
            for name in names or os.listdir(self.path):
                try:
                    about = os.stat(self.path / name)
                except FileNotFoundError:  # or a dangling link
                    continue
                if stat.S_ISREG(about.st_mode):
                    found[name] = about.st_size
                    self._found[name] = _state(name, about)
            if not found:
                os.stat(self.path)
        return found

    def check_same(self, *names: str) -> None:
        """Raise SourceUnavailable if any of these has changed since `files` listed it; see `Folder`."""
        with os_errors(self.subject):
            for name in names:
                if _state(name, os.stat(self.path / name)) != self._found.get(name):
                    raise SourceUnavailable(self.subject, f"changed {name} while it was read; retrying")

    def resolve(self, name: str) -> Path:
        """Return the real path of one of the folder's files. Raises SourceForbidden if a link leads outside."""
        path = Path(os.path.realpath(self.path / name))
        if not path.is_relative_to(self._fence):
            raise SourceForbidden(self.subject, f"{name} leads out of its folder by a symbolic link")
        return path

    @contextmanager
    def open(self, name: str) -> Iterator[io.BufferedReader]:
        """Open one of the folder's regular files for reading. Errors within the block become MintErrors, too."""
        with os_errors(self.subject):
            descriptor = os.open(self.resolve(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                # A folder on its path may have become a link since: check where the opened file really lies.
                if not Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(self._fence):
                    raise SourceUnavailable(self.subject, f"moved {name} while it was opened; retrying")
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise SourceForbidden(self.subject, f"{name} is not a regular file")
                yield file
