"""A local source whose files change while its revision is warm: the new state takes over like any new revision."""

import asyncio
import os
import random
import shutil
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mint_contracts.records import Tier
from mint_contracts.source import Source, child
from mint_engine.sources import local
from mint_engine.sources.fetch import CONFIG, WEIGHTS
from tests.engine.changes import OFTEN, answers, change
from tests.engine.made import edit_config, read_tiny
from tests.engine.tiers import NAMES, Scene, loader, once, wanted
from tests.waiting import until

NAME, OTHER = NAMES[0], NAMES[1]


def overwrite(store: Path, name: str, like: str) -> str:
    """Overwrite an adapter's files in place with another's, keeping sizes and times; return the new revision."""
    for file in (CONFIG, WEIGHTS):
        path, content = store / name / file, (store / like / file).read_bytes()
        before = path.stat()
        assert before.st_size == len(content)
        while path.stat().st_ctime_ns == before.st_ctime_ns:  # filesystem clocks are coarse
            path.write_bytes(content)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return read_tiny(store / name).revision


def revision(here: Scene, name: str = NAME) -> str:
    held = here.residency.report().get(name)
    return held.revision if held else ""


@pytest.mark.parametrize("tier", [Tier.DEVICE, Tier.HOST, Tier.DISK])
async def test_a_wave_gets_the_new_state_in_the_tier_that_it_wants(
    scene: Callable[..., Scene], store: Path, tier: Tier
) -> None:
    here = scene(store=None, **OFTEN)
    here.residency.want(wanted(store, NAME, tier=tier))
    await until(lambda: here.tier(NAME) is tier)
    assert revision(here) == read_tiny(store / NAME).revision
    new = change(store, NAME, like=OTHER)
    await until(lambda: revision(here) == new and here.tier(NAME) is tier)
    assert here.residency.report()[NAME].source == wanted(store, NAME)[0].source, (
        "the map knows the source's own name"
    )
    assert await once(here, NAME) == new
    await until(lambda: len(here.residency.books.copies) == 1)


async def test_files_overwritten_in_place_are_seen_though_sizes_and_times_are_as_before(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(**OFTEN)
    old = await once(here, OTHER)
    new = overwrite(store, OTHER, like=NAMES[2])
    assert new != old
    await answers(here, OTHER, new)


def test_files_overwritten_while_no_engine_ran_are_read_anew(store: Path, tmp_path: Path) -> None:
    source = wanted(store, OTHER)[0].source
    old = loader(tmp_path).load(source).revision
    new = overwrite(store, OTHER, like=NAMES[2])
    assert old != new == loader(tmp_path).load(source).revision


@pytest.mark.parametrize(
    ("kind", "stays"), [("fuse.gcsfuse", True), ("fuse", True), ("fuseblk", False), ("nfs4", False)]
)
def test_files_of_a_mounted_object_store_may_get_other_inodes_without_being_read_anew(
    kind: str, *, stays: bool, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the inode tells that one file has replaced another of the same size and times; there it may not."""
    device, mounts, here = store.stat().st_dev, tmp_path / "mounts", loader(tmp_path)
    others = f"1 0 {os.major(device)}:{os.minor(device) + 1} / / rw - fuse.other x rw\n"
    mounts.write_text(f"{others}2 1 {os.major(device)}:{os.minor(device)} / {store} ro - {kind} bucket ro\n")
    monkeypatch.setattr(local, "MOUNTS", mounts)
    monkeypatch.setattr(local, "_is_fuse", cache(local._is_fuse.__wrapped__))
    source, stat = wanted(store, NAME)[0].source, os.stat
    here.load(source)

    def renumbered(path: Any, **options: Any) -> os.stat_result:
        about = stat(path, **options)
        if not str(path).startswith(str(store)):
            return about
        times = {"st_mtime_ns": about.st_mtime_ns, "st_ctime_ns": about.st_ctime_ns}
        return os.stat_result((about.st_mode, about.st_ino + 1000, *about[2:10]), times)

    with here.disk.using(source):
        with monkeypatch.context() as mounted_again:
            mounted_again.setattr(os, "stat", renumbered)
            assert (here.held(source, here.state(source)) is not None) is stays
        assert here.held(source, here.state(source)) is not None
        os.utime(store / NAME / WEIGHTS)
        assert here.held(source, here.state(source)) is None, "a change is seen"


@pytest.mark.parametrize("place", ["store", "catalog"])
async def test_an_adapter_that_requests_keep_warm_is_renewed_without_anybody_asking(
    scene: Callable[..., Scene], store: Path, place: str
) -> None:
    here = scene(**OFTEN) if place == "store" else scene(store=None, **OFTEN)
    told = None if place == "store" else child(Source(f"file://{store}"), NAME)

    async def ask() -> str:
        async with here.residency.hold(NAME, told) as held:
            return held.revision

    old = await ask()
    new = change(store, NAME, like=OTHER)
    await until(lambda: set(here.slots.tenants.values()) == {new})
    assert old != new == await ask()
    assert here.tier(NAME) is Tier.DEVICE


async def test_requests_in_flight_end_on_what_they_began_with_and_none_waits(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(slots=3, **OFTEN)
    async with AsyncExitStack() as running:
        before = await running.enter_async_context(here.residency.hold(NAME))
        here.loader.gate.clear()
        fetched, new = len(here.loader.fetches), change(store, NAME, like=OTHER)
        await until(lambda: len(here.loader.fetches) > fetched)
        assert await once(here, NAME) == before.revision, "the old state answers while the new one loads"
        here.loader.gate.set()
        await until(lambda: revision(here) == new)
        assert await once(here, NAME) == new
        assert here.slots.tenants[before.slot] == before.revision
    await until(lambda: set(here.slots.tenants.values()) == {new})
    assert here.slots.empty(before.slot)


@pytest.mark.parametrize("way", ["wave", "request"])
async def test_a_broken_state_leaves_the_old_one_serving_until_it_is_mended(
    scene: Callable[..., Scene], store: Path, way: str
) -> None:
    here = scene(**OFTEN)
    if way == "wave":
        await here.place(wanted(store, NAME))
    old, fetched = await once(here, NAME), len(here.loader.fetches)
    edit_config(store / NAME, r="many")
    await until(lambda: here.failure(NAME) if way == "wave" else len(here.loader.fetches) > fetched)
    assert await once(here, NAME) == old
    assert here.tier(NAME) is Tier.DEVICE
    new = change(store, NAME, like=OTHER)
    await until(lambda: revision(here) == new and not here.failure(NAME))
    assert await once(here, NAME) == new


@pytest.mark.parametrize("left", [[], [CONFIG], [WEIGHTS], None])
async def test_a_source_that_is_gone_or_just_going_changes_nothing(
    scene: Callable[..., Scene], store: Path, left: list[str] | None
) -> None:
    here = scene(**OFTEN)
    here.residency.want(wanted(store, NAME))
    old = await once(here, NAME)
    await until(lambda: here.tier(NAME) is Tier.DEVICE)
    for each in () if left is None else {CONFIG, WEIGHTS} - {*left}:
        (store / NAME / each).unlink()
    if left is None:
        shutil.rmtree(store / NAME)
    new = change(store, OTHER, like=NAMES[2])
    here.residency.want(wanted(store, NAME, OTHER))
    await until(lambda: revision(here, OTHER) == new)
    assert await once(here, NAME) == old
    assert not here.failure(NAME)


async def test_a_source_that_a_wave_waits_for_is_seen_when_it_comes(scene: Callable[..., Scene], store: Path) -> None:
    here = scene(store=None, **OFTEN)
    shutil.move(store / NAME, store / "later")
    here.residency.want(wanted(store, NAME))
    await until(lambda: here.failure(NAME) == "SourceNotFound")
    shutil.move(store / "later", store / NAME)
    await until(lambda: here.tier(NAME) is Tier.DEVICE)
    assert not here.failure(NAME)


async def test_new_times_of_the_same_files_change_no_revision(scene: Callable[..., Scene], store: Path) -> None:
    here = scene(**OFTEN)
    old, fetched = await once(here, NAME), len(here.loader.fetches)
    os.utime(store / NAME / WEIGHTS, (1, 1))
    await until(lambda: len(here.loader.fetches) > fetched)
    await until(lambda: not here.residency.books.loading)
    assert await once(here, NAME) == old


async def test_whatever_changes_while_requests_run_each_gets_a_whole_state_and_the_last_one_stays(
    scene: Callable[..., Scene], store: Path
) -> None:
    """The scene checks the books after each change."""
    draw, here = random.Random(5), scene(slots=4, **OFTEN)
    known = {read_tiny(store / name).revision for name in NAMES}

    async def client(seed: int) -> None:
        own = random.Random(seed)
        for _ in range(30):
            async with here.residency.hold(own.choice(NAMES[:3])) as held:
                assert here.slots.tenants[held.slot] == held.revision
                assert held.revision in known
                await asyncio.sleep(own.random() * 0.01)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for seed in range(3):
            group.create_task(client(seed))
        last: dict[str, str] = {}
        for _ in range(12):
            name = draw.choice(NAMES[:3])
            last[name] = change(store, name, like=draw.choice(NAMES[3:]))
            await asyncio.sleep(0.02)
    for name, expected in last.items():
        await answers(here, name, expected)
