"""Packed files go to the disk in pieces, with the same bytes or the same error as when read whole."""

import hashlib
import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mint_contracts.errors import CapacityExceeded, CorruptFile, NonFiniteWeights
from mint_engine.adapters import packed_file, relay
from mint_engine.adapters.digests import digest_of
from mint_engine.adapters.packed import Packed, bytes_of
from mint_engine.sources.fetch import PACKED
from mint_engine.sources.local import LocalFolder
from tests.engine.made import peft_adapter, read_tiny, tiny_fit

Pieces = Callable[[int], None]


@pytest.fixture
def packed(tmp_path: Path) -> Packed:
    peft_adapter(tmp_path / "peft")
    return read_tiny(tmp_path / "peft")


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> Pieces:
    return lambda nbytes: monkeypatch.setattr(relay, "PIECE_BYTES", nbytes)


def blob_of(packed: Packed) -> bytes:
    return packed_file.head_of(packed.header) + bytes(bytes_of(packed.run))


def with_run(packed: Packed, run: torch.Tensor) -> Packed:
    return Packed(packed_file.complete(packed.header, run), run)


def relayed(
    tmp_path: Path, blob: bytes, dtype: torch.dtype = torch.float32, kind: type[LocalFolder] = LocalFolder
) -> bytes:
    folder = tmp_path / "source"
    folder.mkdir(exist_ok=True)
    (folder / PACKED).write_bytes(blob)
    out = tmp_path / "out"
    with out.open("wb") as file:
        relay.relay(kind(folder, "it"), tiny_fit(), dtype, lambda _: None, file.fileno())
    return out.read_bytes()


@pytest.mark.parametrize("nbytes", [4, 256, 1024, 3072, 16 << 20])
def test_a_packed_file_arrives_byte_for_byte(tmp_path: Path, packed: Packed, pieces: Pieces, nbytes: int) -> None:
    pieces(nbytes)
    assert relayed(tmp_path, blob_of(packed)) == blob_of(packed)


def test_a_file_of_format_1_arrives_as_it_is(tmp_path: Path, packed: Packed, pieces: Pieces) -> None:
    pieces(1024)
    header = replace(packed.header, digest=hashlib.sha256(bytes_of(packed.run)).hexdigest())
    blob = blob_of(Packed(header, packed.run))
    assert relayed(tmp_path, blob) == blob
    with pytest.raises(CorruptFile, match="do not match their digest"):
        relayed(tmp_path, blob[:-4] + b"\0" * 4)


@pytest.mark.parametrize("nbytes", [1024, 1536])
def test_its_head_is_written_together_with_what_follows_and_pieces_end_where_large_pages_do(
    tmp_path: Path, packed: Packed, pieces: Pieces, monkeypatch: pytest.MonkeyPatch, nbytes: int
) -> None:
    writev, written = os.writev, list[int]()

    def seen(descriptor: int, parts: tuple[memoryview, memoryview]) -> int:
        written.append(writev(descriptor, parts))
        return written[-1]

    monkeypatch.setattr(os, "writev", seen)
    pieces(nbytes)
    relayed(tmp_path, blob_of(packed))
    ends = list(itertools.accumulate(written))
    assert written[0] > packed.header.head_bytes
    assert len(ends) > 2
    assert all(end % nbytes == 0 for end in ends[:-1])
    assert ends[-1] == packed.header.file_bytes


def test_a_packed_file_of_another_dtype_is_converted(tmp_path: Path, packed: Packed) -> None:
    run = packed.run.to(torch.bfloat16)
    told = packed.header
    header = packed_file.describe(told.config, told.base, told.layout, told.scalings, run)
    assert relayed(tmp_path, blob_of(packed), torch.bfloat16) == blob_of(Packed(header, run))


@pytest.mark.parametrize("at", [0, 300, -1])
def test_one_changed_byte_of_any_piece_is_found(tmp_path: Path, packed: Packed, pieces: Pieces, at: int) -> None:
    pieces(1024)
    changed = packed.run.clone()
    changed[at] += 1
    with pytest.raises(CorruptFile, match="do not match their digest"):
        relayed(tmp_path, packed_file.head_of(packed.header) + changed.numpy().tobytes())


class Unsized(LocalFolder):
    """A source that tells no sizes, like some web servers."""

    def files(self, *names: str) -> dict[str, int | None]:
        return dict.fromkeys(super().files(*names))


@pytest.mark.parametrize("cut", [1, 2, 1024, 1025])
def test_a_file_that_ends_early_is_reported_as_truncated(
    tmp_path: Path, packed: Packed, pieces: Pieces, cut: int
) -> None:
    pieces(1024)
    with pytest.raises(CorruptFile, match="is truncated: gave"):
        relayed(tmp_path, blob_of(packed)[:-cut], kind=Unsized)


@pytest.mark.parametrize("at", [0, 300, -1])
def test_non_finite_tensors_are_named(tmp_path: Path, packed: Packed, pieces: Pieces, at: int) -> None:
    pieces(1024)
    broken = packed.run.clone()
    broken[at] = torch.nan
    with pytest.raises(NonFiniteWeights, match=r"has NaN or infinity in model\.layers"):
        relayed(tmp_path, blob_of(with_run(packed, broken)))


def test_nothing_is_written_before_there_is_room(tmp_path: Path, packed: Packed) -> None:
    folder, out = tmp_path / "source", tmp_path / "out"
    folder.mkdir()
    (folder / PACKED).write_bytes(blob_of(packed))

    def refuse(nbytes: int) -> None:
        assert nbytes == packed.header.file_bytes
        raise CapacityExceeded("it", "has no room")

    with out.open("wb") as file, pytest.raises(CapacityExceeded):
        relay.relay(LocalFolder(folder, "it"), tiny_fit(), torch.float32, refuse, file.fileno())
    assert out.read_bytes() == b""


def test_digests_can_be_taken_later_than_where_the_run_begins_is_known(packed: Packed) -> None:
    told = packed.header
    outline = packed_file.outline(told.config, told.base, told.layout, told.scalings, told.dtype)
    assert outline.head_bytes == told.head_bytes
    complete = packed_file.complete(outline, packed.run)
    assert packed_file.head_of(complete) == packed_file.head_of(told)
    assert complete.digest == digest_of(bytes_of(packed.run))
