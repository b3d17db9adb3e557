"""Copying one remote base to this machine's disk, file by file; what was copied stays for the next attempt.

    .partial-NAME/files/        complete weight files, and the small files
    .partial-NAME/coming/FILE   the part of a file that has been copied
    .partial-NAME/marks/FILE    the mark of the copied content, and how much of it is durable

An attempt continues from what an earlier one left, even one of a killed process, if the source still reports the same
mark for the file. A file without a mark is copied from the start.
"""

import hashlib
import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec
import structlog

from mint_contracts.byte_counts import in_units
from mint_contracts.durable import publish, sync
from mint_contracts.errors import CapacityExceeded, SourceUnavailable
from mint_engine.sources.copying import CHUNK_BYTES, pour
from mint_engine.sources.load_progress import LoadProgress
from mint_engine.sources.retry import retrying
from mint_engine.sources.storage import About, NoRanges, RemoteFolder

PARTIAL = ".partial-"
SURE_BYTES = 1 << 30  # the most bytes copied between two fsyncs

_log = structlog.get_logger(__name__)


class _Mark(msgspec.Struct, frozen=True):
    """The state of a partial file: the mark of its content, and how many of its first bytes are durable."""

    mark: str
    bytes: int


class BaseCopy:
    """The copy of the base in `folder`; it appears at `target` once it is complete."""

    def __init__(self, folder: RemoteFolder, target: Path, progress: LoadProgress) -> None:
        self.folder, self._target, self._progress = folder, target, progress
        self._here = target.with_name(f"{PARTIAL}{target.name}")
        self.files, self.coming, self.marks = (self._here / name for name in ("files", "coming", "marks"))
        self.content_marks: dict[str, str] = {}  # by file, the mark of the copied content

    def make_room(self, names: Collection[str]) -> None:
        """Delete other copies, complete ones too: the folder is one engine's, which has one base from one source.

        From earlier attempts of this copy, only the files in `names` are kept.
        """
        self._target.parent.mkdir(parents=True, exist_ok=True)
        for other in self._target.parent.iterdir():
            if other not in {self._here, self._target}:
                shutil.rmtree(other, ignore_errors=True)
        for folder in (self.files, self.coming, self.marks):
            folder.mkdir(parents=True, exist_ok=True)
            for name in {path.name for path in folder.iterdir()} - set(names):
                (folder / name).unlink()

    @property
    def kept_bytes(self) -> int:
        """The number of bytes that earlier attempts left."""
        return sum(path.stat().st_size for folder in (self.files, self.coming) for path in folder.iterdir())

    def drop(self) -> None:
        """Delete the partial copy."""
        shutil.rmtree(self._here, ignore_errors=True)

    def check_same(self) -> None:
        """Raise SourceUnavailable if a file has changed since it was copied: later ones may not go with it."""
        for name, mark in self.content_marks.items():
            if self.folder.about(name).mark != mark:
                raise SourceUnavailable(self.folder.subject, f"changed {name} while the others were copied; retrying")

    def publish(self) -> None:
        """Make the complete copy visible at its target."""
        publish(self.files, self._target)
        self.drop()

    def small(self, sizes: dict[str, int | None]) -> None:
        """Copy small files, from the start at each attempt."""
        self._each(sizes, LoadProgress(), anew=True)

    def weights(self, sizes: dict[str, int | None]) -> None:
        """Copy large files, continuing where an earlier attempt ended."""
        self._each(sizes, self._progress, anew=False)

    def _each(self, sizes: dict[str, int | None], progress: LoadProgress, *, anew: bool) -> None:
        """Copy files one after another, with a log line for each: a large base takes hours."""
        for number, (name, size) in enumerate(sorted(sizes.items()), 1):
            began, file = time.monotonic(), _File(self, name, size, progress)
            if anew:
                file.forget()
            kept, copied = retrying(file.copy)
            if copied == kept:
                continue
            facts = {"file": name, "number": number, "of": len(sizes), "bytes": copied, "resumed_at": kept}
            seconds = round(time.monotonic() - began, 1)
            _log.info("base_file_copied", base=self.folder.subject, seconds=seconds, **facts)


class _File:
    """One file of a copy."""

    def __init__(self, copy: BaseCopy, name: str, size: int | None, progress: LoadProgress) -> None:
        self._folder, self._name, self._size, self._progress = copy.folder, name, size, progress
        self._marks = copy.content_marks
        self._whole, self._coming, self._mark = copy.files / name, copy.coming / name, copy.marks / name
        self._counted = 0  # bytes that `progress` has counted

    def copy(self) -> tuple[int, int]:
        """Copy the complete file; return how many bytes were there before, and its size. Raises a MintError."""
        about = self._about()
        kept = self._kept(about)
        self._progress.already_there(kept - self._counted)
        self._counted = kept
        if self._whole.exists():
            return kept, kept
        try:
            self._pour(about, kept, in_blocks=True)
            self._check_mark(about)
        except NoRanges:  # so copy it from the start in one response, which is of one content
            self._progress.already_there(-self._counted)
            self._counted = kept = 0
            self._pour(self._about(), 0, in_blocks=False)
        self._coming.rename(self._whole)
        return kept, self._whole.stat().st_size

    def _about(self) -> About:
        about = self._folder.about(self._name)
        self._marks[self._name] = about.mark
        return about

    def forget(self) -> None:
        """Delete all that was copied of the file."""
        for path in (self._whole, self._coming, self._mark):
            path.unlink(missing_ok=True)

    def _kept(self, about: About) -> int:
        """Return how many bytes of the source's present content are there; delete bytes of other content."""
        with suppress(OSError, msgspec.DecodeError):
            kept = msgspec.json.decode(self._mark.read_bytes(), type=_Mark)
            if about.mark and kept.mark == about.mark:
                path = self._whole if self._whole.exists() else self._coming
                there = path.stat().st_size if path.exists() else 0
                if there >= kept.bytes and (path is self._coming or there == kept.bytes == about.size):
                    return kept.bytes
        self.forget()
        return 0

    def _pour(self, about: About, start: int, *, in_blocks: bool) -> None:
        """Append the content from `start` on; if that ends early, what was copied stays."""
        size = self._size
        limit = start + shutil.disk_usage(self._coming.parent).free if size is None else size + 1
        copied = sure = start
        with (
            self._folder.open_at(self._name, start, about, in_blocks=in_blocks) as file,
            self._coming.open("r+b" if start else "w+b") as out,
        ):
            digested = _Digested(out, start, wanted=bool(about.sha256))
            try:
                while part := pour(file, digested, min(SURE_BYTES, limit - copied), self._tell):
                    copied += part
                    if copied - sure >= SURE_BYTES:
                        sure = self._keep(out, about, copied)
            finally:
                self._keep(out, about, out.tell())
        self._check_end(copied, limit)
        if digested.sha256 != about.sha256:
            self.forget()
            message = f"sent a {self._name} of another digest than it lists; retrying"
            raise SourceUnavailable(self._folder.subject, message)

    def _check_end(self, copied: int, limit: int) -> None:
        subject, size = self._folder.subject, self._size
        if size is not None and copied != size:
            if copied > size:
                self.forget()
            raise SourceUnavailable(subject, f"sent {copied} bytes of {self._name} where it lists {size}; retrying")
        if size is None and copied == limit:  # there may be more
            problem = f"sends more of {self._name} than the {in_units(limit)} that its node's disk has free"
            raise CapacityExceeded(subject, f"{problem}; give it nodes with more disk")

    def _check_mark(self, about: About) -> None:
        """Raise SourceUnavailable if the content changed while it was copied, if blocks were read unconditionally."""
        if not about.validator and self._folder.about(self._name).mark != about.mark:
            self.forget()
            raise SourceUnavailable(self._folder.subject, f"changed {self._name} while it was copied; retrying")

    def _tell(self, count: int) -> None:
        self._counted += count
        self._progress.moved(count)

    def _keep(self, out: BinaryIO, about: About, count: int) -> int:
        """Make the first `count` bytes durable and note that; return `count`."""
        out.flush()
        sync(self._coming)
        aside = self._mark.with_name(f".{self._mark.name}")
        aside.write_bytes(msgspec.json.encode(_Mark(about.mark, count)))
        aside.rename(self._mark)
        return count


class _Digested:
    """A file that is written after its first `start` bytes, and, if `wanted`, the digest of all of it."""

    def __init__(self, out: BinaryIO, start: int, *, wanted: bool) -> None:
        self._out, self._found = out, hashlib.sha256() if wanted else None
        left = start
        while left and self._found is not None and (part := out.read(min(left, CHUNK_BYTES))):
            self._found.update(part)
            left -= len(part)
        out.truncate(start)
        out.seek(start)

    def write(self, part: bytes) -> None:
        self._out.write(part)
        if self._found is not None:
            self._found.update(part)

    @property
    def sha256(self) -> str:
        return self._found.hexdigest() if self._found is not None else ""
