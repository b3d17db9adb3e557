"""What waiting waves will need is fetched to disk ahead: only into free space, and found there once wanted."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mint_contracts import errors
from mint_contracts.records import Tier
from mint_contracts.source import Source
from mint_engine.adapters.packed import Packed
from tests.engine.tiers import NAMES, Scene, ahead, once, wanted
from tests.waiting import until


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
    await here.place(wanted(store, *NAMES[:2]))
    assert here.residency.report()[NAMES[1]].revision == told.revision
    assert len(here.loader.fetches) == fetched + 1
    assert here.tier(NAMES[2]) is Tier.REMOTE


async def test_a_defect_in_what_is_brought_ahead_keeps_nothing_else_back(
    scene: Callable[..., Scene], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_engine.residency.prefetch.RETRY_S", 0.05)
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
