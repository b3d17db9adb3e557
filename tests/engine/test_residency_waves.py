"""Adapters that waves want: in their tier, replaced without a gap, told truthfully. Only the base is tiny."""

import asyncio
import errno
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest
from safetensors.torch import load_file

from mint_contracts import errors
from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source
from mint_engine.adapters import packed_file
from mint_engine.adapters.packed import Packed
from mint_engine.residency.lending import with_offered
from mint_engine.residency.turns import Terms
from mint_engine.sources.fetch import WEIGHTS
from tests.engine.made import edit_config, edit_tensors, lora_names, read_tiny
from tests.engine.tiers import NAMES, Scene, Watched, once, wanted
from tests.waiting import until


async def test_waves_get_what_they_want_in_the_tier_they_want(scene: Callable[..., Scene], store: Path) -> None:
    here = scene(store=None)
    here.residency.want(
        wanted(store, NAMES[0]) + wanted(store, NAMES[1], tier=Tier.HOST) + wanted(store, NAMES[2], tier=Tier.DISK)
    )
    await until(lambda: [here.tier(name) for name in NAMES[:3]] == [Tier.DEVICE, Tier.HOST, Tier.DISK])
    told = here.residency.report()
    assert all(told[name].revision.startswith("sha256:") and told[name].rank == 4 for name in NAMES[:3])
    assert len({told[name].revision for name in NAMES[:3]}) == 3
    assert here.loader.disk.ledger.used == sum(told[name].bytes for name in NAMES[:3]), "bytes are those it takes"
    assert await once(here, NAMES[2]) == told[NAMES[2]].revision, "and a request finds any of them"


async def test_an_unassigned_adapter_leaves_its_slot_when_idle_and_is_zeroed(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(store=None)
    here.residency.want(wanted(store, NAMES[0]))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    async with here.residency.hold(NAMES[0]) as held:
        here.residency.want([])
        with pytest.raises(errors.AdapterNotFound):
            await once(here, NAMES[0])
        assert here.slots.tenants == {held.slot: held.revision}, "a running request keeps its slot"
    await until(lambda: not here.slots.tenants and here.residency.slots.free and not here.host.ledger.used)
    assert here.slots.empty(held.slot)
    await until(lambda: not here.residency.books.copies)


async def test_waves_adapters_are_not_evicted_by_requests(scene: Callable[..., Scene], store: Path) -> None:
    here = scene(slots=2, slot_wait_s=0.05)
    here.residency.want(wanted(store, NAMES[0]))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    for name in NAMES[1:6]:
        await once(here, name)
        assert here.tier(NAMES[0]) is Tier.DEVICE
    here.residency.want(wanted(store, NAMES[0], NAMES[1]))
    await until(lambda: here.tier(NAMES[1]) is Tier.DEVICE)
    with pytest.raises(errors.Overloaded, match="wanted by waves"):
        await once(here, NAMES[2])


async def test_a_new_source_takes_over_and_the_old_one_serves_until_then(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(store=None)
    here.residency.want(wanted(store, NAMES[0], version="1"))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    async with here.residency.hold(NAMES[0]) as old:
        name = lora_names(store / NAMES[0])[0]
        edit_tensors(store / NAMES[0], {name: load_file(store / NAMES[0] / WEIGHTS)[name] + 1})
        here.loader.gate.clear()
        here.residency.want(wanted(store, NAMES[0], version="2"))
        await until(lambda: len(here.loader.fetches) == 2)
        assert await once(here, NAMES[0]) == old.revision, "while the new one loads"
        assert here.residency.report()[NAMES[0]].source.revision == "1"
        here.loader.gate.set()
        await until(lambda: here.residency.report()[NAMES[0]].source.revision == "2")
        async with here.residency.hold(NAMES[0]) as new:
            assert new.revision != old.revision
            assert here.slots.tenants == {old.slot: old.revision, new.slot: new.revision}
    await until(lambda: here.slots.tenants == {new.slot: new.revision})
    assert here.slots.empty(old.slot)


async def test_a_new_source_takes_over_even_when_every_slot_is_taken(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(slots=1, store=None)
    here.residency.want(wanted(store, NAMES[0], version="1"))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    async with here.residency.hold(NAMES[0]) as old:
        name = lora_names(store / NAMES[0])[0]
        edit_tensors(store / NAMES[0], {name: load_file(store / NAMES[0] / WEIGHTS)[name] + 1})
        here.residency.want(wanted(store, NAMES[0], version="2"))
        await until(lambda: len(here.loader.fetches) == 2)
        waiting = asyncio.create_task(once(here, NAMES[0]))
        assert here.slots.tenants == {old.slot: old.revision}
    assert await waiting in {old.revision, here.residency.report()[NAMES[0]].revision}
    await until(lambda: here.residency.report()[NAMES[0]].source.revision == "2")
    assert await once(here, NAMES[0]) != old.revision


async def test_a_failed_replacement_is_told_and_keeps_the_old_revision_serving(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(slots=1, store=None)
    here.residency.want(wanted(store, NAMES[0], version="1"))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    old = await once(here, NAMES[0])
    tensors = load_file(store / NAMES[0] / WEIGHTS)
    name = min(tensors)
    edit_tensors(store / NAMES[0], {name: tensors[name] * float("nan")})
    here.residency.want(wanted(store, NAMES[0], version="2"))
    await until(lambda: here.failure(NAMES[0]) == "NonFiniteWeights")
    told = here.residency.report()[NAMES[0]]
    assert (told.tier, told.revision, told.source.revision) == (Tier.DEVICE, old, "2")
    assert told.failure is not None
    assert told.failure.terminal
    assert await once(here, NAMES[0]) == old
    fetched = len(here.loader.fetches)
    here.residency.want(wanted(store, NAMES[0], version="2"))
    await once(here, NAMES[0])
    assert len(here.loader.fetches) == fetched, "a terminal failure is not tried again"
    edit_tensors(store / NAMES[0], {name: tensors[name] * 3})
    here.residency.want(wanted(store, NAMES[0], version="3"))
    await until(lambda: here.failure(NAMES[0]) == "" and here.residency.report()[NAMES[0]].source.revision == "3")
    assert await once(here, NAMES[0]) != old


async def test_a_replacement_that_fails_in_the_only_slot_leaves_requests_the_old_revision(
    scene: Callable[..., Scene], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, load = scene(slots=1, store=None), Watched.load
    here.residency.want(wanted(store, NAMES[0], version="1"))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    old = await once(here, NAMES[0])
    name = lora_names(store / NAMES[0])[0]
    edit_tensors(store / NAMES[0], {name: load_file(store / NAMES[0] / WEIGHTS)[name] + 1})

    def broken(self: Watched, slot: int, packed: Packed) -> None:
        if packed.revision != old:
            raise RuntimeError("device says no")
        load(self, slot, packed)

    with monkeypatch.context() as device:
        device.setattr(Watched, "load", broken)
        here.residency.want(wanted(store, NAMES[0], version="2"))
        await until(lambda: here.failure(NAMES[0]) == "Internal")
        assert await once(here, NAMES[0]) == old
        assert (here.tier(NAMES[0]), here.failure(NAMES[0])) == (Tier.DEVICE, "Internal")
    here.residency.want(wanted(store, NAMES[0], version="3"))
    await until(lambda: here.residency.report()[NAMES[0]].source.revision == "3" and not here.failure(NAMES[0]))
    assert await once(here, NAMES[0]) != old


async def test_a_replacement_that_fails_in_anothers_slot_leaves_requests_the_old_revision(
    scene: Callable[..., Scene], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Watched, slot: int, packed: Packed) -> None:
        raise RuntimeError("device says no")

    here = scene(slots=2)
    here.residency.want(wanted(store, NAMES[0], version="1"))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    async with here.residency.hold(NAMES[0]) as old:
        async with here.residency.hold(NAMES[1]):
            name = lora_names(store / NAMES[0])[0]
            edit_tensors(store / NAMES[0], {name: load_file(store / NAMES[0] / WEIGHTS)[name] + 1})
            monkeypatch.setattr(Watched, "load", broken)
            here.residency.want(wanted(store, NAMES[0], version="2"))
            await until(lambda: here.residency.books.current[NAMES[0]].source.revision == "2")
        await until(lambda: here.failure(NAMES[0]) == "Internal")
        assert await once(here, NAMES[0]) == old.revision
    assert await once(here, NAMES[0]) == old.revision, "nor does it leave its slot when it is idle"
    assert here.tier(NAMES[0]) is Tier.DEVICE


async def test_a_retryable_failure_is_tried_again_by_itself(
    scene: Callable[..., Scene], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_engine.residency.copies.FIRST_RETRY_S", 0.02)
    here, away = scene(store=None), [3]
    load = here.loader.load

    def flaky(source: Source) -> Packed:
        if away[0]:
            away[0] -= 1
            raise errors.SourceUnavailable("store", "does not answer")
        return load(source)

    monkeypatch.setattr(here.loader, "load", flaky)
    here.residency.want(wanted(store, NAMES[0]))
    await until(lambda: here.failure(NAMES[0]) == "SourceUnavailable")
    with pytest.raises(errors.SourceUnavailable) as caught:
        await once(here, NAMES[0])
    assert not caught.value.terminal
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    assert here.failure(NAMES[0]) == ""


async def test_a_disk_that_fails_for_a_while_is_told_and_the_adapter_comes_by_itself(
    scene: Callable[..., Scene], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_engine.residency.copies.FIRST_RETRY_S", 0.02)
    here, write, failures = scene(store=None), packed_file.write, [4]  # one more than a load tries

    def failing(packed: Packed, file: BinaryIO) -> None:
        if failures[0]:
            failures[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        write(packed, file)

    monkeypatch.setattr(packed_file, "write", failing)
    here.residency.want(wanted(store, NAMES[0]))
    await until(lambda: here.failure(NAMES[0]) == "SourceUnavailable")
    told = here.residency.report()[NAMES[0]].failure
    assert told is not None
    assert "written to this engine's disk (Input/output error)" in told.message
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)


async def test_each_failure_stays_with_its_adapter(scene: Callable[..., Scene], store: Path) -> None:
    here = scene(store=None, slots=4)
    edit_config(store / NAMES[0], r=99)
    (store / NAMES[1] / WEIGHTS).write_bytes(b"")
    here.residency.want(wanted(store, *NAMES[:4]))
    await until(lambda: (here.failure(NAMES[0]), here.failure(NAMES[1])) == ("RankTooLarge", "CorruptFile"))
    await until(lambda: here.tier(NAMES[2]) is here.tier(NAMES[3]) is Tier.DEVICE)
    with pytest.raises(errors.RankTooLarge):
        await once(here, NAMES[0])
    status = next(each for each in here.residency.states() if each.adapter == NAMES[0])
    assert (status.failure_reason, status.residency) == ("RankTooLarge", Tier.REMOTE)


async def test_a_defect_in_one_load_is_told_and_survived(
    scene: Callable[..., Scene], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, load, broken_one = scene(store=None), Watched.load, read_tiny(store / NAMES[0]).revision

    def broken(self: Watched, slot: int, packed: Packed) -> None:
        load(self, slot, packed)
        if packed.revision == broken_one:
            raise RuntimeError("device says no")

    monkeypatch.setattr(Watched, "load", broken)
    here.residency.want(wanted(store, NAMES[0], NAMES[1]))
    await until(lambda: here.failure(NAMES[0]) == "Internal" and here.tier(NAMES[1]) is Tier.DEVICE)
    assert len(here.residency.slots.free) == 1
    assert here.slots.empty(here.residency.slots.free[0]), "the slot of a load that failed is cleared"


async def test_host_memory_that_can_never_hold_an_adapter_is_terminal(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(store=None, host=100)
    here.residency.want(wanted(store, NAMES[0], tier=Tier.HOST) + wanted(store, NAMES[1]))
    await until(lambda: here.failure(NAMES[0]) == "CapacityExceeded")
    await until(lambda: here.tier(NAMES[1]) is Tier.DEVICE)
    assert here.host.ledger.used == 0, "the way to the device needs no place in host memory"


async def test_host_memory_full_of_wanted_adapters_is_waited_for(
    scene: Callable[..., Scene], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_engine.residency.climb.FULL_RETRY_S", 0.05)
    one = read_tiny(store / NAMES[0]).nbytes
    here = scene(store=None, host=int(one * 1.5))
    here.residency.want(wanted(store, NAMES[0], tier=Tier.HOST))
    await until(lambda: here.tier(NAMES[0]) is Tier.HOST)
    here.residency.want(wanted(store, NAMES[0], NAMES[1], tier=Tier.HOST))
    await until(lambda: here.failure(NAMES[1]) == "Overloaded")
    assert here.tier(NAMES[0]) is Tier.HOST
    here.residency.want(wanted(store, NAMES[1], tier=Tier.HOST))
    await until(lambda: here.tier(NAMES[1]) is Tier.HOST)


@pytest.mark.parametrize("seed", range(4))
async def test_books_balance_under_any_schedule(scene: Callable[..., Scene], store: Path, seed: int) -> None:
    draw = random.Random(seed)
    one = read_tiny(store / NAMES[0]).nbytes
    here = scene(slots=3, host=one * 3, slot_wait_s=0.05, terms=Terms(hold_s=0.001 * seed, late_s=0.003))
    truth = {name: await once(here, name) for name in NAMES}
    refused = 0

    @asynccontextmanager
    async def holding(name: str) -> AsyncIterator[None]:
        async with here.residency.hold(name) as held:
            assert held.revision == truth[name] == here.slots.tenants[held.slot]
            yield
            assert here.slots.tenants[held.slot] == truth[name], "the slot was pinned throughout"

    async def client() -> None:
        nonlocal refused
        for _ in range(30):
            patience_s = draw.choice([None, 0.001, 0.02])
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(patience_s), holding(draw.choice(NAMES)):
                        for _ in range(draw.randrange(5)):
                            await asyncio.sleep(0)
            except errors.Overloaded:
                refused += 1

    async def operator() -> None:
        for _ in range(25):
            names = draw.sample(NAMES, draw.randrange(3))
            here.residency.want(wanted(store, *names, tier=draw.choice([Tier.DEVICE, Tier.HOST, Tier.DISK])))
            for _ in range(draw.randrange(8)):
                await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(client())
        group.create_task(operator())
    assert refused < 90, "most are served"
    last = wanted(store, *NAMES[:3])
    here.residency.want(last)
    await until(lambda: all(here.tier(each.adapter) is Tier.DEVICE for each in last))
    here.residency.check()
    assert set(here.slots.tenants.values()) == {truth[each.adapter] for each in last}
    await until(lambda: not here.residency.books.loading)  # for a client that has left: it would take a free slot
    here.residency.want([])
    await until(lambda: len(here.residency.slots.free) == 3)
    assert all(here.slots.empty(slot) for slot in range(3))


def ahead(store: Path, *names: str) -> list[Assignment]:
    """What a wave that waits to be admitted will need."""
    return [msgspec.structs.replace(each, ahead=True) for each in wanted(store, *names, tier=Tier.DISK)]


async def test_what_is_brought_ahead_is_told_takes_no_slot_and_is_found_once_wanted(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(store=None)
    here.residency.want(wanted(store, NAMES[0]) + ahead(store, *NAMES[1:3]))
    await until(lambda: [here.tier(name) for name in NAMES[:3]] == [Tier.DEVICE, Tier.DISK, Tier.DISK])
    assert len(here.slots.tenants) == 1
    with pytest.raises(errors.AdapterNotFound):
        await once(here, NAMES[1])
    told = here.residency.report()[NAMES[1]]
    assert told.revision.startswith("sha256:")
    assert told.bytes > 0
    fetched = len(here.loader.fetches)
    here.residency.want(wanted(store, *NAMES[:2]))
    await until(lambda: here.tier(NAMES[1]) is Tier.DEVICE)
    assert here.residency.report()[NAMES[1]].revision == told.revision
    assert len(here.loader.fetches) == fetched + 1
    assert here.tier(NAMES[2]) is Tier.REMOTE


async def test_a_defect_in_what_is_brought_ahead_keeps_nothing_else_back(
    scene: Callable[..., Scene], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_engine.residency.early.RETRY_S", 0.05)
    here, defects = scene(store=None), [2]
    load = here.loader.load

    def broken(source: Source) -> Packed:
        if source.uri.endswith(NAMES[0]) and defects[0]:
            defects[0] -= 1
            raise RuntimeError("a defect")
        return load(source)

    monkeypatch.setattr(here.loader, "load", broken)
    here.residency.want(ahead(store, *NAMES[:2]))
    await until(lambda: [here.tier(name) for name in NAMES[:2]] == [Tier.DISK, Tier.DISK])


async def test_what_is_brought_ahead_takes_only_room_that_is_free_and_gives_way(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(store=Source(f"file://{store}"))
    await once(here, NAMES[0])
    each = here.loader.disk.ledger.used
    here.loader.disk.ledger.budget = 2 * each
    here.residency.want(ahead(store, *NAMES[1:4]))
    await until(lambda: len(here.residency.report().keys() & set(NAMES[1:4])) == 1)
    kept = Source(f"file://{store}/{NAMES[0]}")
    assert here.loader.disk.holds(kept), "nothing of what requests use goes for it"
    assert here.loader.disk.ledger.used == 2 * each
    await once(here, NAMES[4])
    await once(here, NAMES[5])
    assert not here.residency.report().keys() & set(NAMES[1:4]), "and it goes for what a request needs"


def test_an_offer_follows_a_want_of_what_the_same_policy_has_published_and_no_other() -> None:
    def held(uri: str, tier: Tier = Tier.DEVICE) -> dict[str, Assignment]:
        return {"team/x": Assignment("team/x", Source(uri), tier)}

    offered = held("s3://runs/revisions/team/x/new", Tier.DISK)
    assert with_offered({}, offered) == offered, "until the map tells of it"
    assert with_offered(held("s3://runs/revisions/team/x/old"), offered) == held("s3://runs/revisions/team/x/new")
    for elsewhere in ("s3://adapters/team/x", "s3://runs/revisions/team/x2/old", "s3://other/revisions/team/x/old"):
        assert with_offered(held(elsewhere), offered) == held(elsewhere)
