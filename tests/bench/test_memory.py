"""A file that a benchmark claims to read from disk is nowhere in memory."""

import mmap
import os
from pathlib import Path

import pytest

from tests.bench.memory import available_bytes, forget_all, forget_pages, peak_bytes, read_bytes, resident_bytes
from tests.disk import on_disk

SIZE = 64 * mmap.PAGESIZE


def test_a_file_just_written_leaves_memory_and_is_read_from_disk(tmp_path: Path) -> None:
    path = on_disk(tmp_path) / "file"
    path.write_bytes(os.urandom(SIZE))
    forget_all([path])
    before = read_bytes()
    path.read_bytes()
    assert read_bytes() - before >= SIZE, "it comes from the disk"
    before = read_bytes()
    path.read_bytes()
    assert read_bytes() == before, "and then from memory"


def test_a_mapped_file_cannot_leave_memory_and_is_reported(tmp_path: Path) -> None:
    path = on_disk(tmp_path) / "file"
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert len(bytes(view)) == SIZE
        assert forget_pages(path) == SIZE
        with pytest.raises(RuntimeError, match="stay in memory"):
            forget_all([path])
    forget_all([path])


def test_the_system_tells_of_memory() -> None:
    assert 0 < resident_bytes() <= peak_bytes()
    assert available_bytes() > 0
