"""What lies in slots stays in memory: locked if that is allowed, otherwise brought back when it has left."""

import asyncio
import ctypes
import errno
import gc
import mmap
import os
import time
from pathlib import Path

import pytest

from mint_engine.residency import metrics
from mint_engine.residency.polling import Poller
from mint_engine.residency.remapping import bytes_in_memory
from mint_engine.residency.retention import Retention, RetentionReport, can_lock, has_capability
from mint_engine.residency.slots import Slots
from tests.disk import on_disk
from tests.engine.slot_memory import adapter, filed, holds, make_slots, memory_of
from tests.waiting import until

_MADV_PAGEOUT = 21
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

lockable = pytest.mark.skipif(not can_lock(1 << 30), reason="this process may not lock memory")


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> Slots:
    """Slots in a process that may not lock memory."""
    monkeypatch.setattr("mint_engine.residency.slot_rows.can_lock", lambda _nbytes: False)
    return make_slots()


class Still:
    """A watch that reports no changes."""

    async def look(self) -> bool:
        return False


def fill(slots: Slots, slot: int, path: Path) -> int:
    """Load a file into a slot; return the bytes of its complete pages, which nothing else maps."""
    size = filed(adapter(8), path).nbytes // mmap.PAGESIZE * mmap.PAGESIZE
    with path.open("rb") as file:
        os.fsync(file.fileno())  # pages cannot leave memory until they are written
    slots.load(slot, filed(adapter(8), path))
    return size


def take_away(slots: Slots, slot: int, size: int) -> int:
    """Make the system page a slot out, as when it is short of memory; return 0, or the error's number.

    Pages that the system has yet to enter on its lists are passed over, so it is asked again.
    """
    address, deadline = slots.memory[slot].data_ptr(), time.monotonic() + 60
    while _libc.madvise(address, size, _MADV_PAGEOUT) == 0:
        if bytes_in_memory(address, size) < size:
            return 0
        assert time.monotonic() < deadline, "pages do not leave memory"
    return ctypes.get_errno()


def locked_bytes() -> int:
    gc.collect()  # what earlier tests have left may be locked, too, and would be unlocked at any time
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmLck:")]
    return int(line.split()[1]) * 1024


def test_pages_that_left_memory_are_brought_back(slots: Slots, tmp_path: Path) -> None:
    assert slots.retention is Retention.BROUGHT_BACK
    size, address = fill(slots, 1, on_disk(tmp_path) / "adapter.mint"), slots.memory[1].data_ptr()
    assert slots.retain().lost == 0
    assert take_away(slots, 1, size) == 0
    report = slots.retain()
    assert report.lost > 0
    assert report.locked == 0
    assert 0 <= report.share < 1
    assert bytes_in_memory(address, size) == size
    assert slots.retain().share == 1
    assert holds(slots, 1, adapter(8))


@lockable
def test_locked_pages_do_not_leave_memory_and_are_not_copied(tmp_path: Path) -> None:
    slots = make_slots()
    assert slots.retention is Retention.LOCKED
    before, own = locked_bytes(), memory_of(slots)
    size = fill(slots, 0, tmp_path / "adapter.mint")
    assert locked_bytes() == before, "a load does not wait for the lock"
    report = slots.retain()
    assert report.mapped == report.locked >= size
    assert locked_bytes() - before >= size
    assert memory_of(slots) - own < size / 2
    assert take_away(slots, 0, size) == errno.EINVAL, "the system refuses"
    assert holds(slots, 0, adapter(8))


@lockable
@pytest.mark.parametrize("another", [True, False])
def test_memory_is_unlocked_when_its_adapter_leaves_the_slot(tmp_path: Path, another: bool) -> None:
    slots, before = make_slots(), locked_bytes()
    fill(slots, 0, tmp_path / "adapter.mint")
    assert slots.retain().locked
    if another:
        slots.load(0, adapter(1))
    else:
        slots.clear(0)
    assert locked_bytes() == before
    assert slots.retain() == RetentionReport()


@lockable
def test_the_next_tenant_is_locked_too(tmp_path: Path) -> None:
    slots, before = make_slots(), locked_bytes()
    for number in range(2):
        size = fill(slots, 0, tmp_path / f"{number}.mint")
        assert slots.retain().locked >= size
        assert locked_bytes() - before < 2 * size


async def nothing() -> None:
    """No slot was set aside."""


async def test_an_engine_looks_by_itself_and_tells_what_it_found(slots: Slots, tmp_path: Path) -> None:
    size = fill(slots, 2, on_disk(tmp_path) / "adapter.mint")
    before = metrics.SLOTS_LOST._value.get()
    take_away(slots, 2, size)
    looking = asyncio.create_task(Poller(slots, nothing, Still(), lambda: None, every_s=0.001).run())
    await until(lambda: metrics.SLOTS_LOST._value.get() > before)
    await until(lambda: metrics.SLOTS_IN_MEMORY._value.get() == 1)
    looking.cancel()
    assert metrics.SLOTS_MAPPED._value.get() >= size
    assert bytes_in_memory(slots.memory[2].data_ptr(), size) == size


def test_a_capability_is_read_from_the_mask_in_force() -> None:
    assert has_capability("Name:\tx\nCapEff:\t0000000000004000\n", 14)
    assert not has_capability("CapPrm:\t0000000000004000\nCapEff:\t0000000000000000\n", 14)
    assert not has_capability("", 14)
