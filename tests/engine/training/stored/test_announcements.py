"""Published names, announced in real stores: the newest revision counts, and only the announcer withdraws a name."""

import asyncio
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mint_contracts.errors import SourceUnavailable, StaleLease
from mint_contracts.source import Source, child
from mint_contracts.training_records import published_in
from mint_engine.policies.stored import announcement_cache
from mint_engine.policies.stored.announcement_cache import AnnouncementCache
from mint_engine.policies.stored.announcements import Announcements, Announcer
from mint_engine.policies.stored.series import Name
from mint_engine.policies.stored.store import Store
from tests.engine.training.publications import Held
from tests.engine.training.recorded_store import Asked
from tests.engine.training.training_engine import Gate
from tests.waiting import PATIENCE_S, until

BASE = "demo/tiny"
ONE = Announcer("e-0", 1)


def at(store: Store, policy: str, lease: int, step: int) -> Source:
    return child(published_in(store.source, policy), str(Name(lease, step)))


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_a_name_means_its_newest_revision_on_its_own_base(scheme: str, opened: Callable[[str], Store]) -> None:
    store = opened(scheme)
    here = Announcements(store, BASE)
    assert here.standing() == {}
    for policy in ("one", "acme/one", "acme/one/two-3.x_4"):
        for step in (1, 2):
            here.announce(policy, Name(1, step), ONE)
    assert here.standing() == {
        policy: at(store, policy, 1, 2) for policy in ("one", "acme/one", "acme/one/two-3.x_4")
    }
    assert len(store.names(f"announced/{BASE}")) == 3, "what is not the newest is nothing any more"
    assert Announcements(store, "demo/tiny-2").standing() == {}
    here.withdraw("acme/one", ONE)
    assert set(here.standing()) == {"one", "acme/one/two-3.x_4"}


def test_the_longest_name_that_can_be_fits_into_a_files(store: Store) -> None:
    policy = "a" * 200
    Announcements(store, BASE).announce(policy, Name(1, 1), ONE)
    assert set(Announcements(store, BASE).standing()) == {policy}


def test_an_older_lease_announces_nothing_any_more(store: Store) -> None:
    here = Announcements(store, BASE)
    here.announce("one", Name(2, 1), Announcer("e-1", 2))
    with pytest.raises(StaleLease):
        here.announce("one", Name(1, 9), ONE)
    assert here.standing() == {"one": at(store, "one", 2, 1)}


def test_late_writes_of_an_older_lease_replace_nothing(store: Store) -> None:
    with ThreadPoolExecutor() as threads, Gate() as gate:
        late = threads.submit(Announcements(Held(store, write=gate), BASE).announce, "one", Name(1, 9), ONE)
        asyncio.run(gate.reached())
        Announcements(store, BASE).announce("one", Name(2, 1), Announcer("e-1", 2))
        gate.open()
        late.result(60)
    assert Announcements(store, BASE).standing() == {"one": at(store, "one", 2, 1)}


@pytest.mark.parametrize(
    ("announcer", "withdrawn"),
    [
        (Announcer("e-0", 7), True),  # the same engine and the same life
        (Announcer("e-1", 7), True),  # the same life, withdrawn by another engine
        (Announcer("e-0", 8), True),  # a later life on the same engine
        (Announcer("e-0", 0), True),  # whichever life was the latest on that engine
        (Announcer("e-0", 6), False),
        (Announcer("e-1", 8), False),
        (Announcer("e-1", 0), False),
    ],
)
def test_only_some_announcers_may_withdraw_a_name(store: Store, announcer: Announcer, withdrawn: bool) -> None:
    here = Announcements(store, BASE)
    here.announce("one", Name(9, 1), Announcer("e-0", 7))
    here.withdraw("one", announcer)
    assert (here.standing() == {}) is withdrawn


def test_a_name_whose_announcement_cannot_be_read_keeps_its_meaning(store: Store) -> None:
    here = Announcements(store, BASE)
    here.announce("one", Name(1, 1), ONE)
    store.write(f"announced/{BASE}/one@{Name(1, 1)}", b"{")
    here.withdraw("one", ONE)
    assert here.standing() == {"one": at(store, "one", 1, 1)}


async def test_engines_hear_of_each_others_within_a_look(store: Store) -> None:
    first, second = (AnnouncementCache(store.source, BASE, engine, look_s=0.01) for engine in ("e-0", "e-1"))
    heard: list[dict[str, Source]] = []
    second.on_change = lambda: heard.append(dict(second.known))
    looking = asyncio.create_task(second.run())
    await second.first(60)
    assert heard == []
    source = at(store, "one", 1, 1)
    await first.announce("one", 1, Name(1, 1), source)
    assert first.known == {"one": source}
    await until(lambda: heard == [{"one": source}])
    await first.withdraw("one", 1)
    assert first.known == {}
    await until(lambda: heard == [{"one": source}, {}])
    looking.cancel()


async def test_a_look_that_began_before_a_name_was_withdrawn_does_not_bring_it_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = AnnouncementCache(store.source, BASE, "e-0")
    await cache.announce("one", 1, Name(1, 1), at(store, "one", 1, 1))
    standing = Announcements.standing
    with Gate() as gate:

        def late(self: Announcements) -> dict[str, Source]:
            found = standing(self)
            if found:
                gate.go_by()
            return found

        monkeypatch.setattr(Announcements, "standing", late)
        looking = asyncio.create_task(cache.look())
        await gate.reached()
        await cache.withdraw("one", 1)
        assert cache.known == {}
        gate.open()
        await looking
    assert cache.known == {}


async def test_a_look_comes_to_its_end_however_often_something_is_published_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, standing, loop = (
        AnnouncementCache(store.source, BASE, "e-0"),
        Announcements.standing,
        asyncio.get_running_loop(),
    )
    steps = itertools.count(1)

    def busily(self: Announcements) -> dict[str, Source]:
        found, step = standing(self), next(steps)
        source = at(store, "one", 1, step)
        asyncio.run_coroutine_threadsafe(cache.announce("one", 1, Name(1, step), source), loop).result(PATIENCE_S)
        return found

    Announcements(store, BASE).announce("two", Name(1, 1), ONE)
    monkeypatch.setattr(Announcements, "standing", busily)
    await asyncio.wait_for(cache.clear("three", time.monotonic()), 60)
    assert cache.known == {"one": at(store, "one", 1, 1), "two": at(store, "two", 1, 1)}


@pytest.mark.parametrize("scheme", ["file", "s3"])
async def test_names_that_a_wave_takes_are_cleared_by_one_listing(
    scheme: str, opened: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, asked = opened(scheme), Asked()
    for engine in ("e-0", "e-1"):
        Announcements(store, BASE).announce(f"of-{engine}", Name(1, 1), Announcer(engine, 1))
    cache = AnnouncementCache(store.source, BASE, "e-0")
    monkeypatch.setattr(announcement_cache, "store_of", asked.store_of)
    since = time.monotonic()
    await asyncio.gather(*(cache.clear(f"policy-{number}", since) for number in range(100)))
    await cache.clear("policy-100", since)
    assert asked == [("names", f"announced/{BASE}")]
    await cache.clear("of-e-1", since)
    await cache.clear("of-e-0", since)
    assert cache.known == Announcements(store, BASE).standing() == {"of-e-1": at(store, "of-e-1", 1, 1)}
    await cache.clear("policy-100", time.monotonic())
    assert [what for what, _ in asked] == ["names", "names", "read", "names", "read", "delete", "names"]


async def test_a_look_that_began_before_a_wave_took_a_name_does_not_tell_that_it_is_free(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, standing, gates = (
        AnnouncementCache(store.source, BASE, "e-0"),
        Announcements.standing,
        [Gate(), Gate(after=1)],
    )
    with gates[0], gates[1]:

        def late(self: Announcements) -> dict[str, Source]:
            found = standing(self)
            for gate in gates:
                gate.go_by()
            return found

        monkeypatch.setattr(Announcements, "standing", late)
        early = asyncio.create_task(cache.clear("other", time.monotonic()))
        await gates[0].reached()
        Announcements(store, BASE).announce("one", Name(1, 1), ONE)
        clearing = asyncio.create_task(cache.clear("one", time.monotonic()))
        gates[0].open()
        await early
        assert cache.known == {}
        await gates[1].reached()
        gates[1].open()
        await clearing
    assert Announcements(store, BASE).standing() == {}


async def test_a_store_that_is_away_is_told_to_all_who_clear_names(tmp_path: Path) -> None:
    cache = AnnouncementCache(Source(f"file://{tmp_path}/runs"), BASE, "e-0")
    since = time.monotonic()
    clearing = [cache.clear(f"policy-{number}", since) for number in range(3)]
    assert {type(each) for each in await asyncio.gather(*clearing, return_exceptions=True)} == {SourceUnavailable}
    (tmp_path / "runs").mkdir()
    await cache.clear("policy-0", since)


async def test_what_was_known_earlier_does_not_take_the_place_of_what_was_written_since(store: Store) -> None:
    cache = AnnouncementCache(store.source, BASE, "e-0")
    old, new = ({name: at(store, name, 1, step) for name in ("one", "two", "three")} for step in (1, 2))
    await cache.announce("one", 1, Name(1, 2), new["one"])
    await cache.withdraw("two", 1)
    cache.presume(old)
    assert cache.known == {"one": new["one"], "three": old["three"]}


async def test_a_store_that_is_away_leaves_what_is_known(store: Store) -> None:
    cache = AnnouncementCache(Source("file:///nowhere/at/all"), BASE, "e-0", look_s=0.01)
    cache.known = known = {"one": at(store, "one", 1, 1)}
    looking = asyncio.create_task(cache.run())
    await cache.first(0.1)
    assert cache.known == known
    assert not looking.done()
    looking.cancel()
