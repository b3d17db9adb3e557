"""Rows of large slots: a packed file is mapped into a slot without a copy, and leaves nothing behind."""

import errno
import os
import random
import re
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_contracts.errors import SourceUnavailable
from mint_engine.adapters.file_identity import KnownFile, identity_of
from mint_engine.adapters.mapped import MAP_FROM_BYTES, Opener
from mint_engine.adapters.packed import Packed
from mint_engine.parallel.ranks import _opened
from mint_engine.parallel.shares import ModuleCut
from mint_engine.residency import remapping
from mint_engine.residency.arrival import Arrival
from mint_engine.residency.mapped_files import MappedFiles
from mint_engine.residency.reading import LostBlock
from mint_engine.residency.remapping import HUGE, PAGE, put_file, put_pages, put_zeros, reserve
from mint_engine.residency.slots import Alone, Slots
from tests.engine.slot_memory import (
    COUNT,
    CPU,
    LEFT,
    MAX_RANK,
    MODULES,
    RIGHT,
    adapter,
    filed,
    holds,
    make_slots,
    memory_of,
)
from tests.waiting import PATIENCE_S


def given_away(packed: Packed) -> Packed:
    """The same in pages of its own, as a policy's new weights are."""
    pages = torch.from_numpy(reserve(-(-packed.run.nbytes // HUGE) * HUGE)).view(packed.run.dtype)
    return Packed(packed.header, pages[: packed.run.numel()].copy_(packed.run))


def maps(path: Path) -> int:
    """The number of mappings that this process has of a file."""
    return Path("/proc/self/maps").read_text().count(f" {path}")


def test_a_packed_file_takes_its_place_in_a_slot_without_a_copy(tmp_path: Path) -> None:
    slots, path = make_slots(), tmp_path / "adapter.mint"
    packed = filed(adapter(8), path)
    assert packed.run.nbytes > MAP_FROM_BYTES
    before = memory_of(slots)
    for slot in range(COUNT):
        slots.load(slot, packed)
    assert maps(path) == 1 + COUNT
    assert memory_of(slots) - before < packed.run.nbytes / 2, "three copies would be six times as much"
    assert all(holds(slots, slot, packed) for slot in range(COUNT))


def test_an_unload_lets_go_of_the_file_and_of_memory(tmp_path: Path) -> None:
    slots, path = make_slots(), tmp_path / "adapter.mint"
    packed, copied = filed(adapter(8), path), adapter(8, seed=1)
    slots.load(0, packed)
    del packed
    before = memory_of(slots)
    slots.load(1, copied)
    assert memory_of(slots) - before >= copied.run.nbytes
    for slot in (0, 1):
        slots.clear(slot)
        assert holds(slots, slot, None)
        assert slots.is_empty(slot)
    assert maps(path) == 0
    assert memory_of(slots) - before < copied.run.nbytes / 2


def test_a_slot_has_its_file_mapped_until_something_else_takes_its_place(tmp_path: Path) -> None:
    slots, files, path = make_slots(), MappedFiles(), tmp_path / "adapter.mint"
    for leave in (slots.clear, lambda slot: slots.load(slot, adapter(2))):
        packed = filed(adapter(8), path)
        nbytes = packed.nbytes
        assert packed.file is not None
        files.enter(packed.file)
        slots.load(0, packed)
        del packed
        assert files.has(path)
        files.remove(path)
        assert (files.removed_bytes, maps(path)) == (nbytes, 1)
        leave(0)
        assert (files.removed_bytes, maps(path)) == (0, 0)


def test_what_is_written_to_a_slot_does_not_reach_the_file(tmp_path: Path) -> None:
    slots, packed = make_slots(), filed(adapter(8), tmp_path / "adapter.mint")
    slots.load(0, packed)
    slots.memory[0].fill_(7.0)
    slots.load(1, packed)
    assert holds(slots, 1, packed)
    assert holds(slots, 1, adapter(8))


def test_a_run_that_nobody_needs_leaves_its_pages_to_the_slot() -> None:
    slots, expected = make_slots(), adapter(8)
    before = memory_of(slots)
    packed = given_away(expected)
    slots.load(0, packed, keep=False)
    assert holds(slots, 0, expected)
    assert not packed.run.any(), "its pages have gone"
    kept = given_away(expected)
    slots.load(1, kept)
    assert holds(slots, 1, expected)
    assert torch.equal(kept.run, expected.run)
    del packed, kept
    assert holds(slots, 0, expected)
    for slot in (0, 1):
        slots.clear(slot)
    assert memory_of(slots) - before < expected.run.nbytes / 2


def test_a_run_that_shares_its_memory_is_copied() -> None:
    slots, whole = make_slots(), given_away(adapter(8))
    shared = Packed(whole.header, torch.cat((whole.run, whole.run))[: whole.run.numel()])
    slots.load(0, shared, keep=False)
    assert holds(slots, 0, whole)
    assert torch.equal(shared.run, whole.run)


@pytest.mark.parametrize("fate", ["gone", "another"])
def test_a_file_that_is_no_longer_there_is_not_needed(tmp_path: Path, fate: str) -> None:
    slots, path = make_slots(), tmp_path / "adapter.mint"
    packed = filed(adapter(8), path)
    path.unlink()
    if fate == "another":
        filed(adapter(8, seed=1), path)
    slots.load(0, packed)
    assert holds(slots, 0, adapter(8))


class Unasked(Alone):
    """Other ranks that must not be told to load."""

    def load(self, slot: int, packed: Packed) -> AbstractContextManager[None]:
        raise AssertionError(f"told to load {packed.revision} into slot {slot}")


def load_a_file_that_is_cut(folder: Path, *, shared: bool) -> str:
    """Why copying a file is refused if its mapped blocks cannot be read."""
    path = folder / "adapter.mint"
    packed, slots = filed(adapter(8), path), make_slots()
    if shared:  # one of several ranks
        cuts = dict.fromkeys(MODULES, ModuleCut())
        slots = Slots(MODULES, COUNT, MAX_RANK, torch.float32, CPU, cuts, Unasked())
    os.truncate(path, PAGE)
    with pytest.raises(LostBlock) as refused:
        slots.load(0, packed)
    assert slots.part(0, 0) is None, "the slot has no tenant"
    return f"{refused.value.reason}: {refused.value}"


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "one of several ranks"])
def test_copying_a_file_that_can_not_be_read_ends_nobody(shared: bool, tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as another:
        said = another.submit(load_a_file_that_is_cut, tmp_path, shared=shared).result(PATIENCE_S)
    assert re.match("SourceUnavailable: .*could not be read from this engine's disk", said)


def test_other_ranks_get_from_memory_what_the_disk_has_lost_of_a_file(tmp_path: Path) -> None:
    """For an adapter in pinned memory: sending it does not fail."""
    packed, path = adapter(8), tmp_path / "adapter.mint"
    path.write_bytes(bytes(PAGE))  # mapped pages beyond its end cannot be read either
    lost = Packed(packed.header, packed.run, KnownFile(path, identity_of(path.stat())))
    with _opened(lost) as descriptor:
        assert descriptor is not None
        got = Opener().open(Path(f"/proc/self/fd/{descriptor}"), "what is sent")
    assert torch.equal(got.run, packed.run)
    whole = filed(packed, path)
    assert whole.file is not None
    with _opened(whole) as descriptor:
        assert descriptor is not None
        assert identity_of(os.fstat(descriptor)) == whole.file.identity, "its own file, where that is whole"


def test_a_file_that_can_not_be_read_leaves_no_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like a failing disk, mapped pages beyond a truncated file's end cannot be read."""
    slots, path = make_slots(), tmp_path / "adapter.mint"
    packed, cut = filed(adapter(8), path), tmp_path / "cut"
    cut.write_bytes(path.read_bytes()[: 2 * PAGE])

    def failing(address: int, _descriptor: int, nbytes: int, _told: object) -> bool:
        with cut.open("rb") as file:
            return put_file(address, file.fileno(), nbytes)

    slots.load(0, adapter(4))
    with monkeypatch.context() as patched:
        patched.setattr("mint_engine.residency.slot_rows.put_file", failing)
        with pytest.raises(SourceUnavailable, match="could not be read"):
            slots.load(0, packed)
    assert slots.part(0, 0) is None, "the slot has no tenant"
    slots.clear(0)
    assert holds(slots, 0, None)
    assert not slots.memory[0].any()
    slots.load(0, packed)
    assert holds(slots, 0, packed)


def test_a_slot_that_is_being_mapped_is_never_overwritten_by_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the system reports about a later piece: a step may be reading the first."""
    slots, packed, pieces, begun = (
        make_slots(),
        filed(adapter(8), tmp_path / "adapter.mint"),
        list[int](),
        list[bool](),
    )

    def bring(_address: int, nbytes: int) -> None:
        pieces.append(nbytes)
        if len(pieces) == 2:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(remapping, "populate_pages", bring)
    with pytest.raises(LostBlock):
        slots.load(0, packed, arrival=Arrival(lambda: begun.append(slots.part(0, 0) is not None)))
    assert begun == [True], "its tables were there before anything was told"
    assert pieces == [HUGE, packed.header.file_bytes - HUGE]


@settings(max_examples=15)
@given(st.integers(0, 1 << 30))
def test_any_order_of_loads_and_unloads_leaves_what_was_loaded_last(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    slots, draw, folder = make_slots(), random.Random(seed), tmp_path_factory.mktemp("files")
    tenants: dict[int, Packed] = {}
    for turn in range(8):
        slot = draw.randrange(COUNT)
        if draw.random() < 0.25:
            slots.clear(slot)
            tenants.pop(slot, None)
            continue
        packed = adapter(draw.choice((1, 5, 8)), draw.choice(((LEFT,), (RIGHT,), (LEFT, RIGHT))), seed=turn)
        tenants[slot] = filed(packed, folder / str(turn)) if draw.random() < 0.5 else packed
        if draw.random() < 0.3:
            slots.load(slot, given_away(packed), keep=False)
        else:
            slots.load(slot, tenants[slot])
    for slot in range(COUNT):
        assert holds(slots, slot, tenants.get(slot))


def test_memory_begins_where_large_pages_can_and_is_zero() -> None:
    memory = reserve(3 * PAGE)
    assert memory.ctypes.data % HUGE == 0
    assert not memory.any()


def test_a_file_and_then_zeros_take_the_place_of_memory(tmp_path: Path) -> None:
    memory, path = reserve(4 * PAGE), tmp_path / "file"
    path.write_bytes(os.urandom(PAGE + 5))
    memory[:] = 1
    with path.open("rb") as file:
        assert put_file(memory.ctypes.data, file.fileno(), PAGE + 5)
    assert memory[: PAGE + 5].tobytes() == path.read_bytes()
    assert not memory[PAGE + 5 : 2 * PAGE].any(), "the rest of a file's last page is zero"
    assert memory[2 * PAGE :].all(), "and what lies beyond is left alone"
    put_zeros(memory.ctypes.data + PAGE, 1)
    assert memory[:PAGE].tobytes() == path.read_bytes()[:PAGE]
    assert not memory[PAGE : 2 * PAGE].any()


def test_pages_take_the_place_of_memory_and_leave_zeros() -> None:
    memory, source = reserve(3 * HUGE), reserve(HUGE)
    memory[:], source[:] = 1, 2
    assert put_pages(memory.ctypes.data + HUGE, source.ctypes.data, HUGE)
    assert (memory[HUGE : 2 * HUGE] == 2).all()
    assert memory[:HUGE].all()
    assert memory[2 * HUGE :].all()
    assert not source.any()
    source[:] = 3
    assert (memory[HUGE : 2 * HUGE] == 2).all(), "they are nobody else's any more"


def test_pages_that_can_not_be_moved_leave_zeros_in_their_place() -> None:
    """Systems before Linux 5.13 cannot move a file's pages and leave them mapped; here, overlapping memory fails."""
    memory = reserve(2 * HUGE)
    memory[:] = 1
    assert not put_pages(memory.ctypes.data, memory.ctypes.data + PAGE, HUGE)
    assert not memory[:HUGE].any()
    assert memory[HUGE:].all()


def test_whoever_waits_for_a_file_hears_of_each_large_page_once_it_is_there(tmp_path: Path) -> None:
    size = 5 * HUGE + PAGE
    memory, path, told = reserve(size), tmp_path / "file", list[int]()

    def tell(present: int) -> None:
        told.append(present)
        assert remapping.bytes_in_memory(memory.ctypes.data, size) >= present

    path.write_bytes(os.urandom(size))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert put_file(memory.ctypes.data, file.fileno(), size, tell)
    assert told == [0, *range(HUGE, size, HUGE), size]
    assert memory.tobytes() == path.read_bytes()


def test_a_file_that_cannot_be_mapped_is_reported_and_leaves_zeros() -> None:
    memory, (reader, writer) = reserve(PAGE), os.pipe()
    memory[:] = 1
    try:
        assert not put_file(memory.ctypes.data, reader, PAGE)
    finally:
        os.close(reader)
        os.close(writer)
    assert not memory.any()
