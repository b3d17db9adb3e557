"""Adapters that waves want: in their tier, with failures reported as they are. Only the base is tiny."""

import asyncio
import errno
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mint_contracts import errors
from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source
from mint_engine.adapters import packed_file
from mint_engine.adapters.packed import Packed
from mint_engine.residency import supervision
from mint_engine.residency.decide import decide
from mint_engine.residency.lending import with_offered
from mint_engine.residency.slot_turns import SlotTerms
from mint_engine.sources.fetch import WEIGHTS
from tests.engine.made import edit_config, read_tiny
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
    await here.place(wanted(store, NAMES[0]))
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
    await here.place(wanted(store, NAMES[0]))
    for name in NAMES[1:6]:
        await once(here, name)
        assert here.tier(NAMES[0]) is Tier.DEVICE
    await here.place(wanted(store, NAMES[0], NAMES[1]))
    with pytest.raises(errors.Overloaded, match="wanted by waves"):
        await once(here, NAMES[2])


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
    here, write, failures = scene(store=None), packed_file.write_at_once, [4]  # one more than a load tries

    def failing(packed: Packed, descriptor: int) -> None:
        if failures[0]:
            failures[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        write(packed, descriptor)

    monkeypatch.setattr(packed_file, "write_at_once", failing)
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


async def test_a_defect_ends_no_loop(
    scene: Callable[..., Scene], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody awaits the loops: one that ended would leave an engine that says it serves, and loads nothing."""
    monkeypatch.setattr(supervision, "AGAIN_S", 0.01)
    troubled = dict.fromkeys(("decide", "retain"), 2)

    def raising(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def troubling(*given: Any, **options: Any) -> Any:
            troubled[name] -= 1
            if troubled[name] >= 0:
                raise RuntimeError("can't start new thread")
            return work(*given, **options)

        return troubling

    here = scene(store=None, poll_s=0.01)
    monkeypatch.setattr("mint_engine.residency.residency.decide", raising("decide", decide))
    monkeypatch.setattr(here.slots, "retain", raising("retain", here.slots.retain))
    with capture_logs() as logs:
        here.residency.want(wanted(store, NAMES[0]))
        await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE and troubled["retain"] < 0)
    told = [each["loop"] for each in logs if each["event"] == "loop_defect"]
    assert sorted(told) == ["keeper", "keeper", "poller", "poller"]


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
    await here.place(wanted(store, NAMES[0], tier=Tier.HOST))
    here.residency.want(wanted(store, NAMES[0], NAMES[1], tier=Tier.HOST))
    await until(lambda: here.failure(NAMES[1]) == "Overloaded")
    assert here.tier(NAMES[0]) is Tier.HOST
    await here.place(wanted(store, NAMES[1], tier=Tier.HOST))


@pytest.mark.parametrize("seed", range(4))
async def test_books_balance_under_any_schedule(scene: Callable[..., Scene], store: Path, seed: int) -> None:
    draw = random.Random(seed)
    one = read_tiny(store / NAMES[0]).nbytes
    here = scene(slots=3, host=one * 3, slot_wait_s=0.05, terms=SlotTerms(hold_s=0.001 * seed, late_s=0.003))
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


def test_an_offer_follows_a_want_of_what_the_same_policy_has_published_and_no_other() -> None:
    def held(uri: str, tier: Tier = Tier.DEVICE) -> dict[str, Assignment]:
        return {"team/x": Assignment("team/x", Source(uri), tier)}

    offered = held("s3://runs/revisions/team/x/new", Tier.DISK)
    assert with_offered({}, offered, {}) == offered, "until the map tells of it"
    assert with_offered(held("s3://runs/revisions/team/x/old"), offered, {}) == held("s3://runs/revisions/team/x/new")
    for elsewhere in ("s3://adapters/team/x", "s3://runs/revisions/team/x2/old", "s3://other/revisions/team/x/old"):
        assert with_offered(held(elsewhere), offered, {}) == held(elsewhere)
