"""Writing in pieces that are flushed on the way gives the same file as one write, and disk errors are raised."""

import os
from pathlib import Path

import pytest

from mint_engine.policies.stored import writing
from mint_engine.policies.stored.writing import write_along

CONTENT = bytes(range(256)) * 20


@pytest.mark.parametrize("piece", [1, 100, 256, len(CONTENT) - 1, len(CONTENT), len(CONTENT) + 1])
@pytest.mark.parametrize("most", [60, 1 << 20])  # bytes that the system accepts per write
def test_the_complete_content_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, most: int
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:most]))
    monkeypatch.setattr(writing, "PIECE_BYTES", piece)
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.seek(4096)
        write_along(file.fileno(), memoryview(CONTENT))
        assert file.tell() == 4096 + len(CONTENT)
        file.seek(0)
        write_along(file.fileno(), memoryview(b"head"))
        write_along(file.fileno(), memoryview(b""))
    assert (tmp_path / "file").read_bytes() == b"head".ljust(4096, b"\0") + CONTENT


def test_a_full_disk_is_told() -> None:
    with Path("/dev/full").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        write_along(file.fileno(), memoryview(CONTENT))
