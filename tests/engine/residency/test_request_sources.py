"""Requests for adapters that no wave wants here, with the source from another engine's wave or the catalog."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mint_contracts.errors import AdapterNotFound, InvalidRequest
from mint_contracts.records import Tier
from mint_contracts.source import Source
from mint_engine.adapters.relay import relay
from mint_engine.sources.storage import Folder
from tests.engine.tiers import NAMES, Scene, once, wanted
from tests.waiting import until


def told(store: Path, index: int) -> Source:
    return Source(f"file://{store}/{NAMES[index]}", f"r{index}")


async def test_an_adapter_is_fetched_from_where_the_request_says_and_stays_warm(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(store=None)
    for _ in range(2):
        async with here.residency.hold("named/elsewhere", told(store, 3)):
            pass
    assert here.loader.fetches == [told(store, 3).uri]
    assert here.tier("named/elsewhere") is Tier.DEVICE
    assert here.residency.report()["named/elsewhere"].source == told(store, 3)
    with pytest.raises(AdapterNotFound):
        async with here.residency.hold("named/elsewhere2"):
            pass


async def test_two_revisions_answer_side_by_side(scene: Callable[..., Scene], store: Path) -> None:
    here = scene(slots=4, store=None)
    async with (
        here.residency.hold("a/b", told(store, 2)) as newest,
        here.residency.hold("a/b@r1", told(store, 1)) as pinned,
    ):
        assert newest.slot != pinned.slot
        assert newest.revision != pinned.revision
    assert sorted(here.residency.report()) == ["a/b", "a/b@r1"]


async def test_cold_names_of_one_source_share_what_the_first_one_reads(
    scene: Callable[..., Scene], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    meeting = threading.Barrier(2)  # met only if two reads run at the same time

    def counted(folder: Folder, *rest: Any) -> None:
        reads.append(folder.subject)
        with suppress(threading.BrokenBarrierError):
            meeting.wait(0.5)
        relay(folder, *rest)

    monkeypatch.setattr("mint_engine.residency.loading.relay", counted)
    here = scene(slots=4, store=None)
    here.loader.gate.clear()

    async def ask(name: str) -> str:
        async with here.residency.hold(name, told(store, 1)) as held:
            return held.revision

    asking = [asyncio.create_task(ask(name)) for name in ("a/b", "a/b@r1", "a/b@newest")]
    await until(lambda: len(here.loader.fetches) == 3)
    here.loader.gate.set()
    assert len(set(await asyncio.gather(*asking))) == len(reads) == 1


async def test_a_copy_is_dropped_once_the_catalog_names_another_source(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(store=None)
    async with here.residency.hold("a/b", told(store, 1)) as old:
        async with here.residency.hold("a/b", told(store, 2)) as new:
            assert old.revision != new.revision
        assert here.slots.tenants[old.slot] == old.revision  # in use until its request ends
    await until(lambda: list(here.slots.tenants.values()) == [new.revision])
    assert here.residency.report()["a/b"].source == told(store, 2)


async def test_a_copy_from_elsewhere_is_replaced_by_the_stores(scene: Callable[..., Scene], store: Path) -> None:
    here = scene()
    async with here.residency.hold(NAMES[0], told(store, 1)) as elsewhere:
        pass
    assert here.residency.report()[NAMES[0]].source == told(store, 1)
    async with here.residency.hold(NAMES[0]) as stored:
        assert stored.revision != elsewhere.revision
    await until(lambda: list(here.slots.tenants.values()) == [stored.revision])
    assert here.residency.report()[NAMES[0]].source == Source(f"file://{store}/{NAMES[0]}")


async def test_a_waves_source_takes_precedence_over_the_catalogs(scene: Callable[..., Scene], store: Path) -> None:
    here = scene()
    here.residency.want(wanted(store, NAMES[0]))
    async with here.residency.hold(NAMES[0], told(store, 5)):
        pass
    assert here.loader.fetches == [f"file://{store}/{NAMES[0]}"]


async def test_a_requests_source_takes_precedence_over_the_engines_own_revision(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(store=None)
    own = told(store, 1)
    here.residency.lending.offer("a/b", own, here.loader.load(own))
    mine = here.residency.report()["a/b"]
    assert (mine.source, mine.tier, mine.published) == (own, Tier.HOST, True)
    assert await once(here, "a/b") == mine.revision
    async with here.residency.hold("a/b", told(store, 2)) as catalogued:
        assert catalogued.revision != mine.revision
    async with here.residency.hold("a/b", own) as again:
        assert again.revision == mine.revision
    here.residency.lending.withdraw("a/b")
    assert not here.residency.report()["a/b"].published


async def test_a_waves_adapter_is_not_reported_as_published(scene: Callable[..., Scene], store: Path) -> None:
    here = scene()
    own = told(store, 1)
    here.residency.lending.offer(NAMES[0], own, here.loader.load(own))
    await here.place(wanted(store, NAMES[0], tier=Tier.HOST))
    assert not here.residency.report()[NAMES[0]].published


async def test_an_announced_revision_is_reported_before_requests_and_read_by_the_first(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(store=None)
    here.residency.lending.announce({"a/b": told(store, 1)})
    mine = here.residency.report()["a/b"]
    assert (mine.source, mine.tier, mine.published) == (told(store, 1), Tier.REMOTE, True)
    assert not here.loader.fetches
    revision = await once(here, "a/b")
    mine = here.residency.report()["a/b"]
    assert (mine.revision, mine.tier, mine.published) == (revision, Tier.DEVICE, True)
    async with here.residency.hold("a/b", told(store, 2)) as catalogued:
        assert catalogued.revision != revision
    assert await once(here, "a/b") == revision, "who is told nothing means what is announced"


async def test_a_newer_announcement_takes_the_older_ones_place_and_none_leaves_nothing(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(store=None)
    here.residency.lending.announce({"a/b": told(store, 1)})
    first = await once(here, "a/b")
    here.residency.lending.announce({"a/b": told(store, 2)})
    assert here.residency.report()["a/b"].source == told(store, 2)
    second = await once(here, "a/b")
    assert second != first
    await until(lambda: list(here.slots.tenants.values()) == [second])
    here.residency.lending.announce({})
    await until(lambda: not here.slots.tenants)
    assert not here.residency.report()
    with pytest.raises(AdapterNotFound):
        await once(here, "a/b")


async def test_a_waves_source_takes_precedence_over_announcements(scene: Callable[..., Scene], store: Path) -> None:
    here = scene()
    here.residency.want(wanted(store, NAMES[0], tier=Tier.HOST))
    here.residency.lending.announce({NAMES[0]: told(store, 1)})
    await until(lambda: here.tier(NAMES[0]) is Tier.HOST)
    held = here.residency.report()[NAMES[0]]
    assert (held.source, held.published) == (Source(f"file://{store}/{NAMES[0]}"), False)
    await once(here, NAMES[0])
    assert here.loader.fetches == [f"file://{store}/{NAMES[0]}"]


async def test_a_later_announcement_of_another_engine_is_newer_than_ones_own_revision(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(store=None)
    own, newer = sorted((told(store, 1), told(store, 2)), key=lambda each: each.uri)
    here.residency.lending.offer("a/b", own, here.loader.load(own))
    here.residency.lending.announce({"a/b": newer})
    await until(lambda: here.residency.report()["a/b"].source == newer)
    second = await once(here, "a/b")
    here.residency.lending.announce({"a/b": own})
    await until(lambda: here.residency.report()["a/b"].source == own)
    assert await once(here, "a/b") != second


@pytest.mark.parametrize("name", ["a/b@", "a b@r1", "a/b@r 1", "a/b@r1@r2"])
async def test_invalid_names_are_refused(scene: Callable[..., Scene], store: Path, name: str) -> None:
    with pytest.raises(InvalidRequest):
        async with scene().residency.hold(name, told(store, 0)):
            pass
