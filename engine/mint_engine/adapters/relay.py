"""Writing what a source holds of an adapter to this machine's disk, packed; of what is packed already only pieces are
ever in memory of our own.

While one piece is hashed, the next is read and written, so that all of it takes hardly longer than its digest: 0.11 s
for 132 MB, where reading, proving and then writing them took 0.26 s.
"""

import hashlib
import itertools
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

import torch

from mint_engine.adapters import packed_file
from mint_engine.adapters.check import Fit
from mint_engine.adapters.packed import Header, is_finite
from mint_engine.adapters.read import Admit, check_filled, fill, opened_packed, read_found
from mint_engine.residency.remapping import HUGE, reserve
from mint_engine.sources.fetch import PACKED, adapter_files
from mint_engine.sources.storage import Folder

# The first is written together with the head, as the whole of a small adapter is (see `packed_file.write_at_once`).
PIECE_BYTES = 8 * HUGE


def relay(folder: Folder, fit: Fit, dtype: torch.dtype, admit: Admit, descriptor: int) -> None:
    """Write an adapter's packed file, in the base's `dtype`, from where `descriptor` is: its beginning.

    What is written is nothing unless this returns. `admit` is told and raises, and this raises, as `read_adapter`.
    """
    found = adapter_files(folder)
    if PACKED in found and _pass_on(folder, found[PACKED], fit, dtype, admit, descriptor):
        return
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    packed_file.write_at_once(read_found(folder, found, fit, dtype, admit), descriptor)


def _pass_on(
    folder: Folder, file_bytes: int | None, fit: Fit, dtype: torch.dtype, admit: Admit, descriptor: int
) -> bool:
    """False where that can not be: it is of another dtype, or something in it is not finite."""
    with opened_packed(folder, file_bytes, fit) as (header, file):
        if header.dtype != dtype:
            return False
        admit(header.file_bytes)
        passed = _Passed(descriptor, header)
        passed.all_of(file)
        check_filled(passed.nbytes, header.run_bytes, file, folder.subject, known=file_bytes is not None)
    packed_file.check_digest(header, passed.digest.hexdigest(), folder.subject)
    return passed.finite


class _Passed:
    """What has been passed on of a packed file whose header that is."""

    def __init__(self, descriptor: int, header: Header) -> None:
        self._descriptor, self._header = descriptor, header
        self.nbytes, self.finite, self.digest = 0, True, hashlib.sha256()  # of what came of the run

    def all_of(self, file: BinaryIO) -> None:
        """Pass on the run, as far as whole pieces of it come."""
        size = self._header.run_bytes
        pieces = [reserve(min(PIECE_BYTES, size)).data for _ in range(2)]  # one is hashed, the other is read
        hashed: list[Future[None]] = []
        head = memoryview(packed_file.head_of(self._header))
        with ThreadPoolExecutor(1) as beside:
            for number in itertools.count():
                if number >= 2:
                    hashed[number - 2].result()
                piece = pieces[number % 2][: size - self.nbytes]
                count = fill(piece, file)
                self.nbytes += count
                if not piece or count < len(piece):
                    return
                hashed.append(beside.submit(self.digest.update, piece))
                self.finite = self.finite and is_finite(torch.frombuffer(piece, dtype=self._header.dtype))
                packed_file.write_both(self._descriptor, head, piece)
                head = head[:0]
