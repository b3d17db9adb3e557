"""The memory of slots: one row each, which holds a copy of one run or, on a CPU, the pages of the run itself.

A CPU computes from the page cache as well as from any other memory, so a packed file need not be copied: it is mapped
into the row, header included, and unmapped without zeroing anything. The pages of a run that nobody else needs, such
as a policy's new weights, are moved into the row. Rows too short for large pages, all other runs, and other devices
get copies. A system short of memory drops a file's pages first, so `retain` keeps them there (see `retention`).

Letters in shapes: S slots, W elements of a row.
"""

import threading
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from mint_engine.adapters.file_identity import KnownFile
from mint_engine.adapters.packed import Packed
from mint_engine.adapters.packed_file import MAX_HEAD_BYTES
from mint_engine.model.device import zeros
from mint_engine.residency.reading import read, unreadable
from mint_engine.residency.remapping import (
    HUGE,
    PAGE,
    bytes_in_memory,
    lock,
    populate_pages,
    put_file,
    put_pages,
    put_zeros,
    reserve,
)
from mint_engine.residency.retention import Retention, RetentionReport, can_lock

OnPresent = Callable[[int, int], None]  # (element at which the run begins, bytes of the row that are in memory)


class SlotRows:
    """Rows of at least `width` elements. `load` and `clear` may run on any thread, but only on a row nobody reads."""

    def __init__(self, count: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._remaps = device.type == "cpu" and width * dtype.itemsize >= HUGE and count > 0
        if self._remaps:
            row_bytes = -(-(MAX_HEAD_BYTES + width * dtype.itemsize) // HUGE) * HUGE
            self.memory = torch.from_numpy(reserve(count * row_bytes)).view(dtype).view(count, -1)  # [S, W]
        else:
            self.memory = zeros((count, width), dtype, device)  # [S, W]
        # Where the rows are in this process's own memory, for what is mapped there.
        self._first, self._row_bytes = self.memory.data_ptr() if self._remaps else 0, self.memory[:1].nbytes
        self.filled = [0] * count  # elements of each row that may be its tenant's
        self._files: list[KnownFile | None] = [None] * count  # the file mapped into each row
        self._locked = [False] * count
        self._guards = [threading.Lock() for _ in range(count)]  # keep a row from being tended while it changes
        self.retention = Retention.COPIED
        if self._remaps:
            self.retention = Retention.LOCKED if can_lock(self.memory.nbytes) else Retention.BROUGHT_BACK

    def load(self, slot: int, packed: Packed, *, keep: bool, on_present: OnPresent | None) -> int:
        """Load a packed adapter into a row, replacing its tenant; return the element at which its run begins.

        With `keep=False` the run's pages may be moved into the row, which leaves zeros in the run. `on_present` is
        called as a mapped file is read. Raises LostBlock if the file cannot be read; the row must then be cleared.
        """
        with self._guards[slot]:
            self._locked[slot] = False
            if self._remaps and packed.file is not None:
                start = packed.header.head_bytes // self.memory.itemsize
                with packed.file.open() as descriptor:
                    if descriptor is not None and self._put_file(
                        slot, descriptor, packed, on_present and partial(on_present, start)
                    ):
                        return start
            if keep or not self._put_pages(slot, packed.run):
                self._copy(slot, read(packed))
            return 0

    def clear(self, slot: int) -> None:
        """Zero a row. Rows whose pages can be remapped (on a CPU) release their memory."""
        with self._guards[slot]:
            self._clear(slot)

    def retain(self) -> RetentionReport:
        """Keep mapped files' pages in memory: lock them, or else read back those that were dropped.

        Loads need not do this themselves: recently used pages are dropped last. Any thread may call it at any time.
        """
        return RetentionReport.of(self._retain(slot) for slot in range(len(self.filled)))

    def _retain(self, slot: int) -> RetentionReport:
        with self._guards[slot]:
            address, size = self._address(slot), self._file_bytes(slot)
            if size and self.retention is Retention.LOCKED and not self._locked[slot]:
                self._locked[slot] = lock(address, size)
            if not size or self._locked[slot]:
                return RetentionReport(mapped=size, locked=size)
            lost = size - bytes_in_memory(address, size)
            if lost:
                populate_pages(address, size)
            return RetentionReport(mapped=size, lost=lost)

    def _clear(self, slot: int) -> None:
        if self._remaps:
            put_zeros(self._address(slot), self.filled[slot] * self.memory.itemsize)
        else:
            _zero(self.memory[slot, : self.filled[slot]])
        self.filled[slot], self._files[slot] = 0, None
        self._locked[slot] = False

    def _put_file(self, slot: int, descriptor: int, packed: Packed, on_present: Callable[[int], None] | None) -> bool:
        """Map the complete file at the row's beginning. Return False, leaving zeros, if files cannot be mapped."""
        size, before = packed.header.file_bytes, self.filled[slot]
        self.filled[slot] = max(before, size // self.memory.itemsize)  # until the rest is zero
        self._files[slot] = packed.file
        address, rest = self._address(slot), -(-size // PAGE) * PAGE
        try:
            mapped = put_file(address, descriptor, size, on_present)
        except OSError as error:
            raise unreadable(packed, error) from error
        put_zeros(address + rest, before * self.memory.itemsize - rest)
        self.filled[slot] = size // self.memory.itemsize if mapped else 0
        self._files[slot] = packed.file if mapped else None
        return mapped

    def _put_pages(self, slot: int, run: torch.Tensor) -> bool:
        """Move a run's pages into the row. Return False if it shares them with others or they cannot be moved."""
        size, whole = -(-run.nbytes // HUGE) * HUGE, run.untyped_storage()
        if not self._remaps or whole.nbytes() != size or run.data_ptr() != whole.data_ptr() or run.data_ptr() % HUGE:
            return False
        before = self.filled[slot]
        self.filled[slot] = max(before, run.numel())  # until the rest is zero
        if not put_pages(self._address(slot), run.data_ptr(), size):
            return False
        put_zeros(self._address(slot) + size, before * self.memory.itemsize - size)
        self.filled[slot], self._files[slot] = run.numel(), None
        return True

    def _copy(self, slot: int, run: torch.Tensor) -> None:
        if self._file_bytes(slot):  # writing would copy the file's pages, with one fault per page
            self._clear(slot)
        count, before = run.numel(), self.filled[slot]
        self.filled[slot] = max(count, before)  # until the copy has ended
        row = self.memory[slot]
        _copy(row[:count], run)
        _zero(row[count:before])
        self.filled[slot] = count

    def _file_bytes(self, slot: int) -> int:
        file = self._files[slot]
        return 0 if file is None else file.identity.nbytes

    def _address(self, slot: int) -> int:
        return self._first + slot * self._row_bytes


def _copy(into: torch.Tensor, run: torch.Tensor) -> None:
    """Copy a run. On a CPU use one thread, without the GIL, so that the other threads go on with their step."""
    if into.device.type == "cpu":
        np.copyto(into.view(torch.uint8).numpy(), run.view(torch.uint8).numpy())
    else:
        into.copy_(run, non_blocking=True)


def _zero(row: torch.Tensor) -> None:
    if row.device.type == "cpu":
        row.view(torch.uint8).numpy().fill(0)
    else:
        row.zero_()
