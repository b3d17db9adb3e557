"""Adapters that requests ask for: loaded once, kept warm, evicted under pressure. Only the base is tiny."""

import asyncio
import errno
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from weakref import ref

import pytest
import torch
from safetensors.torch import load_file

from mint_contracts import errors
from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source, child
from mint_engine.adapters import mapped
from mint_engine.adapters.file_identity import Identity, identity_of
from mint_engine.adapters.packed import Packed
from mint_engine.residency.reading import LostBlock
from mint_engine.sources.fetch import WEIGHTS
from tests.engine.tiers import NAMES, Q0, Scene, Watched, once, wanted
from tests.waiting import until


async def test_a_request_loads_its_adapter_and_finds_it_warm_the_next_time(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene()
    async with here.residency.hold(NAMES[0]) as held:
        a = load_file(store / NAMES[0] / WEIGHTS)[f"base_model.model.{Q0}.lora_A.weight"]
        part = here.slots.part(here.slots.index[Q0], held.slot)
        assert part is not None
        assert torch.equal(part[0], a)
        assert held.revision == here.slots.tenants[held.slot]
        assert here.residency.states()[0].requests_in_flight == 1
    async with here.residency.hold(NAMES[0]) as again:
        assert again == held
    assert len(here.slots.loads) == 1
    assert here.tier(NAMES[0]) is Tier.DEVICE


async def test_requests_for_one_cold_adapter_share_one_load(scene: Callable[..., Scene]) -> None:
    here, slots = scene(), set()
    here.loader.gate.clear()

    async def ask() -> None:
        async with here.residency.hold(NAMES[0]) as held:
            slots.add(held)

    asking = [asyncio.create_task(ask()) for _ in range(20)]
    await until(lambda: here.loader.fetches)
    here.loader.gate.set()
    await asyncio.gather(*asking)
    assert len(slots) == len(here.loader.fetches) == len(here.slots.loads) == 1


async def test_different_cold_adapters_load_at_the_same_time(scene: Callable[..., Scene]) -> None:
    here = scene(slots=4)
    here.loader.gate.clear()

    async def ask(name: str) -> None:
        async with here.residency.hold(name):
            pass

    asking = [asyncio.create_task(ask(name)) for name in NAMES[:4]]
    await until(lambda: len(here.loader.fetches) == 4)
    here.loader.gate.set()
    await asyncio.gather(*asking)
    assert {here.tier(name) for name in NAMES[:4]} == {Tier.DEVICE}


async def test_a_client_that_goes_away_lets_go_and_the_load_ends_well(scene: Callable[..., Scene]) -> None:
    here = scene()
    here.loader.gate.clear()
    holding = here.residency.hold(NAMES[0])
    asking = asyncio.create_task(holding.__aenter__())
    await until(lambda: here.loader.fetches)
    asking.cancel()
    await asyncio.wait({asking})
    here.loader.gate.set()
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    assert here.residency.states()[0].requests_in_flight == 0


async def test_the_least_recently_used_slot_goes_to_the_next_adapter_and_is_zeroed_first(
    scene: Callable[..., Scene],
) -> None:
    here = scene(slots=2)
    for name in (NAMES[0], NAMES[1], NAMES[0], NAMES[2]):
        async with here.residency.hold(name):
            pass
    assert here.tier(NAMES[1]) is Tier.HOST, "demoted, not forgotten"
    assert {here.tier(NAMES[0]), here.tier(NAMES[2])} == {Tier.DEVICE}
    fetched = len(here.loader.fetches)
    async with here.residency.hold(NAMES[1]):
        assert len(here.loader.fetches) == fetched, "from host memory"


async def test_what_serves_from_its_slot_leaves_host_memory_and_disk_after_what_nobody_asks_for(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene()
    for name in (NAMES[0], NAMES[1], NAMES[0]):
        await once(here, name)
    assert len(here.loader.fetches) == 2, "the last one finds it in its slot"
    for tier in (here.host, here.loader.disk):
        tier.ledger.budget = tier.ledger.used
    await once(here, NAMES[2])
    kept, given_up = (Source(f"file://{store}/{name}") for name in NAMES[:2])
    assert here.host.get((NAMES[0], kept)) is not None
    assert here.host.get((NAMES[1], given_up)) is None
    assert (here.loader.disk.holds(kept), here.loader.disk.holds(given_up)) == (True, False)


def inodes_of(folder: Path) -> set[int]:
    """The inodes of the files in a folder, and of removed ones that this process still has mapped."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if f" {folder}/" in line]
    return {int(line[4]) for line in lines} | {path.stat().st_ino for path in folder.iterdir()}


async def test_files_in_host_memory_and_on_disk_take_no_more_of_the_disk_than_its_cache_may(
    scene: Callable[..., Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "MAP_FROM_BYTES", 0)
    here, folder = scene(), tmp_path / "disk"
    await once(here, NAMES[0])
    each = here.host.ledger.used
    here.loader.disk.ledger.budget = 3 * each
    for name in (*NAMES[1:], NAMES[0]):
        await once(here, name)
        assert len(inodes_of(folder)) <= 3, "removed files that are mapped among them"
    assert here.host.ledger.used == here.loader.disk.ledger.used == 3 * each
    assert len(here.residency.states()) == 3, "what host memory has let go of is forgotten"


async def test_loads_that_wait_for_a_slot_pin_no_more_than_host_memory_may(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, copies, most = scene(slots=1), list[ref[torch.Tensor]](), 0

    def pin(run: torch.Tensor) -> torch.Tensor:
        nonlocal most
        pinned = run.clone()
        copies.append(ref(pinned))
        most = max(most, sum(each() is not None for each in copies))
        return pinned

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)  # there may be no GPU to pin memory for
    here.host.pinned = True
    async with here.residency.hold(NAMES[0]):
        here.host.ledger.budget = here.host.ledger.used
        waiting = [asyncio.create_task(once(here, name)) for name in NAMES[1:]]
        await until(lambda: len(here.residency.slots._line) == len(waiting))
        here.residency.check()
    assert len(set(await asyncio.gather(*waiting))) == len(waiting), "from their files"
    assert most == 1
    assert len(copies) > 1, "a copy that nobody uses gives way"


async def test_a_copy_that_cannot_be_pinned_takes_no_host_memory(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = scene()
    here.host.pinned = True
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda _: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(errors.Internal):
        await once(here, NAMES[0])
    assert (here.host.ledger.used, here.host.imbalance()) == (0, "")


async def test_a_slot_in_use_is_waited_for_and_refused_when_that_takes_too_long(scene: Callable[..., Scene]) -> None:
    here = scene(slots=1, slot_wait_s=0.05)
    async with here.residency.hold(NAMES[0]):
        with pytest.raises(errors.Overloaded, match="has no slot: all 1 are") as caught:
            async with here.residency.hold(NAMES[1]):
                pass
        assert caught.value.retry_after_s
    patient = scene(slots=1, slot_wait_s=20)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(patient.residency.hold(NAMES[0]))
        waiting = asyncio.create_task(stack.enter_async_context(patient.residency.hold(NAMES[1])))
        await until(lambda: len(patient.loader.fetches) == 2)
        assert not waiting.done()
        await stack.aclose()
        await waiting
        assert patient.tier(NAMES[1]) is Tier.DEVICE
        await stack.aclose()


async def test_a_slot_that_can_not_be_cleared_is_nobodys_until_it_can(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a device or system refuses everything, the next tenant must not find half of the last one."""
    here = scene(slots=2, slot_wait_s=0.05, poll_s=0.02)
    load = here.slots.load

    def load_half(slot: int, packed: Packed, *, keep: bool = True) -> None:
        load(slot, packed, keep=keep)
        raise RuntimeError("the device is gone")

    def refuse(slot: int) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    await once(here, NAMES[0])
    with monkeypatch.context() as broken:
        broken.setattr(here.slots, "load", load_half)
        broken.setattr(here.slots, "clear", refuse)
        with pytest.raises(errors.Internal, match="RuntimeError"):
            await once(here, NAMES[1])
        table = here.residency.slots
        assert (table.free, len(table.aside)) == ([], 1)
        here.residency.check()
        assert await once(here, NAMES[0]), "what is in other slots is served"
    await until(lambda: len(table.free) == 1)
    assert table.free == [slot for slot in range(2) if here.slots.empty(slot)]
    assert not table.aside
    assert await once(here, NAMES[2])


async def test_loads_come_first_while_as_many_requests_wait_as_run(scene: Callable[..., Scene]) -> None:
    """Otherwise a batch would stay half empty so that those in it run a little faster."""
    here = scene(slots=4)
    books = here.residency.books

    def loads_first() -> bool:
        return books.loads_first

    assert loads_first(), "nobody runs"
    async with here.residency.hold(NAMES[0]), here.residency.hold(NAMES[0]), asyncio.TaskGroup() as group:
        assert not loads_first()
        here.loader.gate.clear()
        first, second = (group.create_task(once(here, name)) for name in NAMES[1:3])
        await until(lambda: books.awaiting.total == 2)
        assert loads_first()
        second.cancel()
        await until(lambda: not loads_first())
        here.loader.gate.set()
        await first
        assert books.awaiting.total == 0


async def test_too_many_loads_at_once_are_refused_with_a_time_to_come_back(scene: Callable[..., Scene]) -> None:
    here = scene(slots=4, loads_waiting=2)
    here.loader.gate.clear()
    async with asyncio.TaskGroup() as group:
        for name in NAMES[:2]:
            group.create_task(once(here, name))
        await until(lambda: len(here.loader.fetches) == 2)
        with pytest.raises(errors.Overloaded) as caught:
            await once(here, NAMES[2])
        assert caught.value.retry_after_s
        here.loader.gate.set()
    await once(here, NAMES[2])


async def test_requests_that_wait_for_loads_are_bounded_and_one_adapter_leaves_room_for_others(
    scene: Callable[..., Scene],
) -> None:
    here = scene(slots=4, requests_waiting=10)
    here.loader.gate.clear()
    waiting = here.residency.books.awaiting
    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(once(here, NAMES[0]))
        await until(lambda: waiting.of(NAMES[0]) == 8)
        with pytest.raises(errors.Overloaded, match="8 of them for this one") as caught:
            await once(here, NAMES[0])
        assert caught.value.retry_after_s
        for name in NAMES[1:3]:
            group.create_task(once(here, name))
        await until(lambda: waiting.total == 10)
        with pytest.raises(errors.Overloaded, match="10 requests already wait"):
            await once(here, NAMES[3])
        assert len(here.residency.books.loading) == 3, "what is refused is not loaded"
        here.loader.gate.set()
    assert waiting.total == 0
    await once(here, NAMES[3])


async def test_one_client_leaves_loads_and_places_to_wait_for_others(scene: Callable[..., Scene]) -> None:
    here = scene(slots=4, loads_waiting=4, requests_waiting=8)
    here.loader.gate.clear()
    async with asyncio.TaskGroup() as group:
        for name in NAMES[:2]:
            group.create_task(once(here, name, "many"))
        await until(lambda: len(here.residency.books.loading) == 2)
        needed = "2 adapters that requests with your key need are loading or waiting"
        with pytest.raises(errors.Overloaded, match=f"{needed}, and 2 more are left for other keys"):
            await once(here, NAMES[2], "many")
        group.create_task(once(here, NAMES[2], "one"))
        for _ in range(2):
            group.create_task(once(here, NAMES[0], "many"))
        await until(lambda: here.residency.books.awaiting.total == 5)
        waiting = "4 requests with your key already wait for adapters"
        with pytest.raises(errors.Overloaded, match=f"{waiting}, and 3 more are left for other keys"):
            await once(here, NAMES[0], "many")
        group.create_task(once(here, NAMES[0], "one"))
        group.create_task(once(here, NAMES[3], "third"))
        await until(lambda: len(here.residency.books.loading) == 4)
        with pytest.raises(errors.Overloaded, match="4 other adapters are loading or waiting"):
            await once(here, NAMES[4], "fourth")
        here.loader.gate.set()
    await once(here, NAMES[4], "many")


async def test_unknown_adapters_are_not_found_with_and_without_a_store(scene: Callable[..., Scene]) -> None:
    with pytest.raises(errors.AdapterNotFound, match=r"nor in the adapter store .* or publish it if it is a policy"):
        await once(scene(), "team/none")
    with pytest.raises(errors.AdapterNotFound, match=r"has no adapter store; .* or publish it if it is a policy"):
        await once(scene(store=None), NAMES[0])
    with pytest.raises(errors.InvalidRequest):
        await once(scene(), "../etc/passwd")


async def test_a_name_that_was_not_found_is_remembered_for_a_while(scene: Callable[..., Scene]) -> None:
    here = scene()
    for _ in range(5):
        with pytest.raises(errors.AdapterNotFound):
            await once(here, "team/none")
    assert len(here.loader.fetches) == 1
    assert here.residency.report() == {}, "names that anybody may make up do not get into the map"


async def test_a_store_child_is_the_same_copy_for_waves_and_requests(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(store=Source(f"file://{store}"))
    await once(here, NAMES[0])
    await here.place([Assignment(NAMES[0], child(Source(f"file://{store}"), NAMES[0]), Tier.DEVICE)])
    assert len(here.slots.loads) == 1


async def test_a_file_of_which_the_disk_has_lost_a_block_since_it_was_read_is_brought_anew(
    scene: Callable[..., Scene], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every load of this file into a slot fails, as on a failing disk; loads of other files do not."""
    monkeypatch.setattr("mint_engine.adapters.mapped.MAP_FROM_BYTES", 0)
    here, load, lost = scene(), Watched.load, list[Identity]()

    def failing(slots: Watched, slot: int, packed: Packed, *, keep: bool = True) -> None:
        assert packed.file is not None
        lost.append(packed.file.identity)
        if packed.file.identity == lost[0]:
            raise LostBlock(f"revision {packed.revision}", "could not be read from this engine's disk")
        load(slots, slot, packed, keep=keep)

    monkeypatch.setattr(Watched, "load", failing)
    (want,) = wanted(store, NAMES[0])
    await here.place([want])
    assert len(lost) == 2
    (only,) = (tmp_path / "disk").iterdir()
    assert identity_of(only.stat()) == lost[1]


async def test_a_file_that_another_rank_could_not_read_stays_here(
    scene: Callable[..., Scene], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in this engine's tiers is good: the next load fetches nothing."""
    monkeypatch.setattr("mint_engine.adapters.mapped.MAP_FROM_BYTES", 0)
    here, load, told = scene(), Watched.load, list[Identity]()

    def failing(slots: Watched, slot: int, packed: Packed, *, keep: bool = True) -> None:
        assert packed.file is not None
        told.append(packed.file.identity)
        if len(told) == 1:
            raise errors.SourceUnavailable(f"revision {packed.revision}", "could not be read by every rank; retrying")
        load(slots, slot, packed, keep=keep)

    monkeypatch.setattr(Watched, "load", failing)
    (want,) = wanted(store, NAMES[0])
    await here.place([want])
    (only,) = (tmp_path / "disk").iterdir()
    assert told == [identity_of(only.stat())] * 2
    assert len(here.loader.fetches) == 1
