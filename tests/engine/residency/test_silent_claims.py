"""A claim whose server hangs, so that calls on it do not return, holds up only what lies on it."""

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mint_contracts.errors import SourceUnavailable
from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Location, Source
from mint_engine.adapters.relay import relay
from mint_engine.residency import loading, readers, source_stat
from mint_engine.residency.source_stat import EACH, SourceStat
from mint_engine.sources.local import FileState, place_of, state_of
from tests.engine.changes import OFTEN, change
from tests.engine.made import read_tiny
from tests.engine.tiers import NAMES, Scene
from tests.waiting import until

Scenes = Callable[..., Scene]


class Claims:
    """Two claims with the same adapters; one hangs when told to."""

    def __init__(self, root: Path) -> None:
        self.well, self.ill = root / "well", root / "ill"
        self.back, self.hanging = threading.Event(), 0
        self.back.set()
        self._lock = threading.Lock()

    def state_of(self, location: Location, names: Sequence[str], subject: str) -> list[FileState]:
        """Call the real `state_of`; on the hanging claim, only once it is back."""
        if location.host == "ill" and not self.back.is_set():
            with self._lock:
                self.hanging += 1
            assert self.back.wait(60)
        return state_of(location, names, subject)


@pytest.fixture
def claims(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Claims]:
    both = Claims(tmp_path / "claims")
    for claim in (both.well, both.ill):
        shutil.copytree(store, claim)
    monkeypatch.setenv("MINT_PVC_ROOT", str(tmp_path / "claims"))
    monkeypatch.setattr(loading, "state_of", both.state_of)
    yield both
    both.back.set()


def source(claim: str, number: int) -> Source:
    return Source(f"pvc://{claim}/{NAMES[number]}")


async def ask(here: Scene, claim: str, number: int) -> str:
    async with here.residency.hold(f"{claim}/{number}", source(claim, number)) as held:
        return held.revision


def on_disk_alone(here: Scene, claim: str, number: int) -> None:
    """Drop the copy in host memory, as a restart does."""
    here.host.drop((f"{claim}/{number}", source(claim, number)))


async def test_others_are_loaded_from_memory_disk_and_their_sources(scene: Scenes, claims: Claims) -> None:
    here = scene(slots=2, store=None)
    for number in range(8):
        await ask(here, "ill", number)
    for number in range(2):
        await ask(here, "well", number)
    for number in range(6):  # the last two are no longer in slots
        on_disk_alone(here, "ill", number)
    on_disk_alone(here, "well", 0)
    claims.back.clear()
    stuck = [asyncio.create_task(ask(here, "ill", number)) for number in range(6)]
    await until(lambda: claims.hanging == EACH)
    assert await ask(here, "ill", 7), "what is in memory asks no source"
    for number in range(8):
        assert await ask(here, "well", number) == read_tiny(claims.well / NAMES[number]).revision
    assert claims.hanging == EACH
    claims.back.set()
    await asyncio.gather(*stuck, return_exceptions=True)


async def test_its_own_are_refused_and_loaded_again_once_it_answers(
    scene: Scenes, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = scene(slots=2, store=None)
    claims.back.clear()
    with monkeypatch.context() as soon:
        soon.setattr(source_stat, "SILENT_S", 0.01)
        with pytest.raises(SourceUnavailable, match="pvc://ill, which does not respond"):
            await ask(here, "ill", 0)
    await until(lambda: claims.hanging)  # the check that nobody waits for any more may start only now
    with pytest.raises(SourceUnavailable, match="pvc://ill, which does not respond"):
        await ask(here, "ill", 1)
    assert claims.hanging == 1, "one is enough to find out when it is back"
    claims.back.set()

    async def answered() -> str:
        try:
            return await ask(here, "ill", 1)
        except SourceUnavailable:
            return ""

    assert await until(answered) == read_tiny(claims.ill / NAMES[1]).revision


async def test_changes_of_others_are_seen(scene: Scenes, claims: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    here = scene(slots=3, store=None, **OFTEN)
    await ask(here, "ill", 0)
    await ask(here, "well", 0)
    monkeypatch.setattr(source_stat, "SILENT_S", 0.5)  # not less: the healthy claim's answers might be late
    claims.back.clear()
    await until(lambda: claims.hanging)
    new = change(claims.well, NAMES[0], like=NAMES[1])

    async def changed() -> bool:
        return await ask(here, "well", 0) == new

    await until(changed)
    assert here.tier("ill/0") is Tier.DEVICE, "what it holds serves on"


async def test_others_are_brought_ahead(scene: Scenes, claims: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_stat, "SILENT_S", 0.5)
    here = scene(store=None)
    claims.back.clear()
    here.residency.want(
        Assignment(f"{claim}/0", source(claim, 0), Tier.DISK, ahead=True) for claim in ("ill", "well")
    )
    await until(lambda: here.tier("well/0") is Tier.DISK and claims.hanging)
    assert claims.hanging == 1


@pytest.mark.parametrize("by", ["wave", "requests"])
async def test_others_are_loaded_beside_what_was_being_read_when_it_hung(
    by: str, scene: Scenes, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = threading.Event()
    both = threading.Barrier(2, claims.back.clear)  # a request whose source is still looked at would be refused

    def hang(folder: Any, *given: Any) -> None:
        if "pvc://ill" in folder.subject and not hung.is_set():
            both.wait(60)
            hung.set()
            assert claims.back.wait(60)
        relay(folder, *given)

    monkeypatch.setattr(loading, "relay", hang)
    monkeypatch.setattr(readers, "PATIENCE_S", 0.01)
    here = scene(slots=4, store=None, workers=2)
    ill, well = (
        [Assignment(f"{claim}/{number}", source(claim, number), Tier.DISK) for number in range(4)]
        for claim in ("ill", "well")
    )
    asking = list[asyncio.Task[str]]()
    if by == "wave":
        here.residency.want(ill)
    else:
        asking += [asyncio.create_task(ask(here, "ill", number)) for number in range(2)]
    await until(hung.is_set)
    with monkeypatch.context() as soon:
        soon.setattr(source_stat, "SILENT_S", 0.01)
        await until(lambda: here.residency._source_stat.is_stuck(source("ill", 0)))
    if by == "wave":
        here.residency.want([*ill, *well])
        await until(lambda: all(here.tier(each.adapter) is Tier.DISK for each in well))
    else:
        for number in range(4):
            assert await ask(here, "well", number)
    claims.back.set()
    if by == "wave":
        await until(lambda: all(here.tier(each.adapter) is Tier.DISK for each in ill))
    await asyncio.gather(*asking)


async def test_sources_on_answering_claims_are_reported_beside_silent_ones(
    scene: Scenes, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = SourceStat(scene(store=None).loader)
    asked = [source(claim, number) for number in range(8) for claim in ("ill", "well")]
    asked.insert(3, Source("https://a.example/x"))
    told = await here.states(asked)
    assert told[3] is None
    assert len({*told}) == len(asked), "each has a state of its own"
    claims.back.clear()
    monkeypatch.setattr(source_stat, "SILENT_S", 0.01)
    with pytest.raises(SourceUnavailable):
        await here.state(source("ill", 0))
    monkeypatch.undo()
    monkeypatch.setenv("MINT_PVC_ROOT", str(claims.well.parent))
    assert await here.states(asked) == [
        "" if each.uri.startswith("pvc://ill") else state for each, state in zip(asked, told, strict=True)
    ]
    here.close()


async def test_a_place_is_silent_while_any_look_at_it_hangs(
    scene: Scenes, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, let = SourceStat(scene(store=None).loader), [threading.Event(), threading.Event()]
    monkeypatch.setattr(source_stat, "SILENT_S", 0.01)

    async def look(number: int) -> None:
        with pytest.raises(SourceUnavailable):
            await here._ask(source("ill", number), lambda: let[number].wait(60))

    await asyncio.gather(look(0), look(1))
    let[0].set()
    await until(lambda: sum(map(len, here._running.values())) == 1)
    assert here.is_stuck(source("ill", 2))
    assert not here.is_stuck(source("well", 2))
    let[1].set()
    await until(lambda: not here.is_stuck(source("ill", 2)))
    assert (here._running, here._late) == ({}, set())
    here.close()


async def test_only_looks_that_run_too_long_mark_a_place_silent_for_those_who_wait(
    scene: Scenes, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that got its turn a moment ago may yet be answered."""
    monkeypatch.setattr(source_stat, "EACH", 1)
    here, let = SourceStat(scene(store=None).loader), threading.Event()
    ill = source("ill", 0)

    async def wait_in_vain(*, overdue_s: float) -> None:
        """Wait for a turn until looks that have run for `overdue_s` are late."""
        monkeypatch.setattr(source_stat, "SILENT_S", 0.01)
        waiting = asyncio.create_task(here._ask(ill, lambda: None))
        await asyncio.sleep(0)
        monkeypatch.setattr(source_stat, "SILENT_S", overdue_s)
        with pytest.raises(SourceUnavailable):
            await waiting

    monkeypatch.setattr(source_stat, "SILENT_S", 60.0)
    looking = asyncio.create_task(here._ask(ill, lambda: let.wait(60)))
    await until(lambda: here._running)
    await wait_in_vain(overdue_s=60.0)
    assert not here.is_stuck(ill)
    await wait_in_vain(overdue_s=0.01)
    assert here.is_stuck(ill)
    let.set()
    assert await looking
    here.close()


async def test_a_wait_in_vain_for_a_turn_leaves_nothing_behind(
    scene: Scenes, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, ill = SourceStat(scene(store=None).loader), source("ill", 0)
    monkeypatch.setattr(source_stat, "SILENT_S", 0.01)
    here._turns[place_of(ill)] = taken = asyncio.Semaphore(0)
    with pytest.raises(SourceUnavailable):
        await here._ask(ill, lambda: None)
    assert here._running == {}
    assert taken.locked()
    here.close()
