"""A wanted adapter's new source takes over without a gap, or fails and leaves the old revision serving."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mint_contracts.records import Tier
from mint_engine.adapters.packed import Packed
from mint_engine.sources.fetch import WEIGHTS
from tests.engine.changes import shift
from tests.engine.made import edit_tensors
from tests.engine.tiers import NAMES, Scene, Watched, once, wanted
from tests.waiting import until


async def test_a_new_source_takes_over_and_the_old_one_serves_until_then(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(store=None)
    await here.place(wanted(store, NAMES[0], version="1"))
    async with here.residency.hold(NAMES[0]) as old:
        shift(store / NAMES[0])
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
    await here.place(wanted(store, NAMES[0], version="1"))
    async with here.residency.hold(NAMES[0]) as old:
        shift(store / NAMES[0])
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
    await here.place(wanted(store, NAMES[0], version="1"))
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
    await here.place(wanted(store, NAMES[0], version="1"))
    old = await once(here, NAMES[0])
    shift(store / NAMES[0])

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
    await here.place(wanted(store, NAMES[0], version="1"))
    async with here.residency.hold(NAMES[0]) as old:
        async with here.residency.hold(NAMES[1]):
            shift(store / NAMES[0])
            monkeypatch.setattr(Watched, "load", broken)
            here.residency.want(wanted(store, NAMES[0], version="2"))
            await until(lambda: here.residency.books.current[NAMES[0]].source.revision == "2")
        await until(lambda: here.failure(NAMES[0]) == "Internal")
        assert await once(here, NAMES[0]) == old.revision
    assert await once(here, NAMES[0]) == old.revision, "nor does it leave its slot when it is idle"
    assert here.tier(NAMES[0]) is Tier.DEVICE
