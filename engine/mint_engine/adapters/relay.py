"""Writes an adapter from a source to this machine's disk, packed; a file that is already packed is streamed.

While one piece is checked, the next is read and written, so that checking adds hardly any time.
"""

import itertools
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import torch

from mint_engine.adapters import packed_file
from mint_engine.adapters.check import Fit
from mint_engine.adapters.digests import Digesting
from mint_engine.adapters.packed import Header, is_finite
from mint_engine.adapters.read import Admit, check_filled, fill, opened_packed, read_found
from mint_engine.residency.remapping import HUGE, reserve
from mint_engine.sources.fetch import PACKED, adapter_files
from mint_engine.sources.storage import Folder

# Pieces end where large pages of the page cache do (see `packed_file.write_at_once`).
PIECE_BYTES = 4 * HUGE


def relay(folder: Folder, fit: Fit, dtype: torch.dtype, admit: Admit, descriptor: int) -> None:
    """Write an adapter's packed file, in the base's `dtype`, to `descriptor`, which must be at the file's beginning.

    The file is valid only if this returns. `admit` is used as by `read_adapter`, and the same errors are raised.
    """
    found = adapter_files(folder)
    if PACKED in found and _stream(folder, found[PACKED], fit, dtype, admit, descriptor):
        return
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    packed_file.write_at_once(read_found(folder, found, fit, dtype, admit), descriptor)


def _stream(
    folder: Folder, file_bytes: int | None, fit: Fit, dtype: torch.dtype, admit: Admit, descriptor: int
) -> bool:
    """Stream a packed file; return False if it cannot be used, having another dtype or a value that is not finite."""
    with opened_packed(folder, file_bytes, fit) as (header, file):
        if header.dtype != dtype:
            return False
        admit(header.file_bytes)
        streamed = _stream_pieces(file, header, descriptor)
        check_filled(streamed.nbytes, header.run_bytes, file, folder.subject, known=file_bytes is not None)
    packed_file.check_digest(header, streamed.digest, folder.subject)
    return streamed.finite


class _Streamed(NamedTuple):
    """The result of streaming a run: bytes read, whether all values are finite, and the digest."""

    nbytes: int
    finite: bool
    digest: str


def _stream_pieces(file: BinaryIO, header: Header, descriptor: int) -> _Streamed:
    """Write the head and the run; stop before the first piece that is incomplete."""
    size, nbytes, digest = header.run_bytes, 0, Digesting(like=header.digest)
    rooms = itertools.cycle([reserve(min(PIECE_BYTES, size)).data for _ in range(2)])  # one checked, one read
    head = memoryview(packed_file.head_of(header))

    def prove(piece: memoryview) -> bool:
        digest.update(piece)
        return is_finite(torch.frombuffer(piece, dtype=header.dtype))

    with ThreadPoolExecutor(1) as beside:
        proved: list[Future[bool]] = []
        while nbytes < size:
            if len(proved) > 1:
                proved[-2].result()
            piece = next(rooms)[: min(size - nbytes, PIECE_BYTES - len(head) % PIECE_BYTES)]
            count = fill(piece, file)
            nbytes += count
            if count < len(piece):
                break
            proved.append(beside.submit(prove, piece))
            packed_file.write_both(descriptor, head, piece)
            head = head[:0]
        finite = all(each.result() for each in proved)
    return _Streamed(nbytes, finite, digest.text)
