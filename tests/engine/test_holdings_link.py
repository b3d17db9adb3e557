"""Bring the map's record of an engine's holdings up to date: in pieces, resuming after a lost answer."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from enum import StrEnum
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mint_contracts import functions, keys, map_reporter
from mint_contracts.errors import MapUnavailable, StaleEpoch
from mint_contracts.map_reader import MapReader
from mint_contracts.map_reporter import MapReporter
from mint_contracts.records import EngineRecord, Held, Tier
from mint_engine import holdings_link
from mint_engine.holdings_link import HoldingsLink
from tests.contracts.placed import BASE, held, record
from tests.engine_views import engine_views
from tests.redis_process import patient, without_replicas
from tests.relay import relaying

ENGINE = "e-0"
PIECE = 3
HELD = {name: held(name) for name in "abcdefghij"}  # in four pieces
PIECES = 4

pytestmark = pytest.mark.usefixtures("small_pieces")


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings_link, "HELD_PER_CALL", PIECE)


class Calls:
    """Calls to the map's functions, by name; one of the next calls (counted from 0) can be made to go wrong."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.befall(-1)
        self._delayed: Awaitable[Any] | None = None
        monkeypatch.setattr(map_reporter, "call", self._call)

    def befall(
        self, at: int, *, before: Callable[[], Awaitable[Any]] | None = None, lost: bool = False, late: bool = False
    ) -> None:
        """`before` runs before call `at`; its answer is `lost`, or it is carried out `late`: after the next call."""
        self.made.clear()
        self._at, self._before, self._lost, self._late = at, before, lost, late

    async def _call(self, redis: Redis, function: str, names: list[str], args: list[str]) -> Any:
        call = functions.call(redis, function, names, args)
        before, lost, late = None, False, False
        if len(self.made) == self._at:
            before, lost, late = self._before, self._lost, self._late
            self._at = -1
        self.made.append(function)
        if before is not None:
            await before()
        if late:
            self._delayed = call
        else:
            answer = await call
            delayed, self._delayed = self._delayed, None
            if delayed is not None:
                with suppress(StaleEpoch):
                    await delayed
        if lost or late:
            raise MapUnavailable("placement map", "Redis did not answer (as a test has it)")
        return answer


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def link(redis: Redis, incarnation: int = 1) -> HoldingsLink:
    def describe(sequence: int) -> EngineRecord:
        return record(ENGINE, incarnation, sequence)

    return HoldingsLink(MapReporter(redis, BASE, ENGINE), ENGINE, describe)


async def brought(by: HoldingsLink, holdings: Mapping[str, Held]) -> None:
    """Bring the map to these holdings, within three tries."""
    for _ in range(3):
        with suppress(MapUnavailable):
            await by.bring(holdings)
            return
    raise AssertionError("the map was not brought to it by three tries")


async def said(redis: Redis) -> dict[str, Held] | None:
    """What a reader believes the engine holds; None if it does not know the engine, or believes it dead."""
    views = await engine_views(MapReader(redis), BASE)
    return views[0].held if views and views[0].record is not None else None


async def test_much_is_told_in_pieces_and_what_changes_then_alone(redis_client: Redis, calls: Calls) -> None:
    telling = link(redis_client)
    assert (await telling.bring(HELD)).in_full
    assert calls.made == ["tell"] * (PIECES - 1) + ["report"]
    assert await said(redis_client) == HELD
    calls.made.clear()
    changed = {**HELD, "a": held("a", Tier.HOST)}
    del changed["b"]
    assert not (await telling.bring(changed)).in_full
    assert calls.made == ["report"]
    assert await said(redis_client) == changed


async def test_changes_are_reported_in_pieces_too(redis_client: Redis, calls: Calls) -> None:
    telling = link(redis_client)
    await telling.bring({})
    calls.made.clear()
    await telling.bring(HELD)
    assert calls.made == ["report"] * PIECES
    assert await said(redis_client) == HELD
    await telling.bring({})
    assert await said(redis_client) == {}


@pytest.mark.parametrize("late", [False, True], ids=["answer", "call"])
@pytest.mark.parametrize("at", range(PIECES))
async def test_after_a_lost_answer_it_goes_on_behind_what_was_told(
    redis_client: Redis, calls: Calls, at: int, late: bool
) -> None:
    """Also if the call itself arrives only after the next, which asks for the same."""
    telling = link(redis_client)
    calls.befall(at, lost=not late, late=late)
    with pytest.raises(MapUnavailable):
        await telling.bring(HELD)
    calls.made.clear()
    assert (await telling.bring(HELD)).in_full
    again = ["tell"] * (PIECES - at - 1) + ["report"]
    assert calls.made == (again if at < PIECES - 1 else ["report", "report"])  # the last was there: then a heartbeat
    assert await said(redis_client) == HELD


@pytest.mark.parametrize("late", [False, True], ids=["answer", "call"])
async def test_after_the_lost_answer_to_a_change_nothing_is_told_in_full(
    redis_client: Redis, calls: Calls, late: bool
) -> None:
    telling = link(redis_client)
    await telling.bring(HELD)
    calls.befall(0, lost=not late, late=late)
    with pytest.raises(MapUnavailable):
        await telling.bring({**HELD, "k": held("k")})
    calls.made.clear()
    without = {name: each for name, each in HELD.items() if name != "a"}
    assert not (await telling.bring(without)).in_full
    assert calls.made == ["report", "report"]
    assert await said(redis_client) == without


async def test_a_write_whose_answer_was_cut_off_is_known_to_be_done(
    redis_client: Redis, redis_server: str, calls: Calls
) -> None:
    with relaying(urlsplit(redis_server).netloc) as relay:
        redis = patient(f"redis://127.0.0.1:{relay.port}/0")
        telling, changed = link(redis), {**HELD, "a": held("a", Tier.HOST)}
        await telling.bring(HELD)
        calls.made.clear()
        relay.fault = "cut"
        with pytest.raises(MapUnavailable):
            await telling.bring(changed)
        assert await said(redis_client) == changed
        relay.heal()
        assert not (await telling.bring(changed)).in_full
        assert calls.made == ["report"] * 3  # the change, the same again, a heartbeat
        assert await said(redis_client) == changed
        await redis.aclose()


@pytest.mark.parametrize("at", range(PIECES))
async def test_a_report_that_redis_refused_for_a_while_is_resumed(redis_client: Redis, calls: Calls, at: int) -> None:
    """Redis has not stored the piece, but still has those before it."""
    telling = link(redis_client)
    async with AsyncExitStack() as refusing:
        calls.befall(at, before=lambda: refusing.enter_async_context(without_replicas(redis_client)))
        for _ in range(2):
            with pytest.raises(MapUnavailable, match="NOREPLICAS"):
                await telling.bring(HELD)
    calls.made.clear()
    await telling.bring(HELD)
    assert calls.made == ["tell"] * (PIECES - at - 1) + ["report"] * (1 if at < PIECES - 1 else 2)
    assert await said(redis_client) == HELD


async def test_after_a_piece_that_redis_cannot_take_all_is_told_anew(redis_client: Redis, calls: Calls) -> None:
    telling, key = link(redis_client), keys.telling(BASE, ENGINE)
    calls.befall(1, before=lambda: redis_client.set(key, "not a hash"))
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await telling.bring(HELD)
    await redis_client.delete(key)
    calls.made.clear()
    await telling.bring(HELD)
    assert calls.made == ["tell"] * (PIECES - 1) + ["report"]
    assert await said(redis_client) == HELD


async def test_changes_since_a_lost_answer_are_reported_with_the_rest(redis_client: Redis, calls: Calls) -> None:
    telling = link(redis_client)
    calls.befall(1, lost=True)
    with pytest.raises(MapUnavailable):
        await telling.bring(HELD)
    now = {name: held(name, Tier.HOST) for name in "bcdefghijkl"}
    await telling.bring(now)
    assert await said(redis_client) == now


@pytest.mark.parametrize("at", range(1, PIECES))
@pytest.mark.parametrize("everything", [False, True], ids=["pieces", "everything"])
async def test_where_the_pieces_before_are_lost_all_is_told_anew(
    redis_client: Redis, calls: Calls, at: int, everything: bool
) -> None:
    async def lose() -> None:
        await (redis_client.flushall() if everything else redis_client.delete(keys.telling(BASE, ENGINE)))

    calls.befall(at, before=lose)
    await link(redis_client).bring(HELD)
    assert calls.made == ["tell"] * at + [["report"], ["tell"]][at < PIECES - 1] + ["tell"] * (PIECES - 1) + [
        "report"
    ]
    assert await said(redis_client) == HELD


async def test_a_map_that_is_lost_each_time_is_tried_again_later(redis_client: Redis, calls: Calls) -> None:
    telling = link(redis_client)

    async def lose_and_again() -> None:
        await redis_client.flushall()
        calls.befall(2, before=redis_client.flushall)

    calls.befall(2, before=lose_and_again)
    with pytest.raises(MapUnavailable, match="lost again"):
        await telling.bring(HELD)
    await telling.bring(HELD)
    assert await said(redis_client) == HELD


async def test_a_map_that_has_gone_back_is_told_all_anew(redis_client: Redis, redis_server: str) -> None:
    """As with a Redis that syncs its disk once a second, or a replica that took over: it still knows the engine."""
    telling = link(redis_client)
    await telling.bring(HELD)
    names = await redis_client.keys("*")
    async with Redis.from_url(redis_server) as raw:
        before = {name: await raw.dump(name) for name in names}
        await telling.bring({})
        for name, dumped in before.items():
            assert dumped is not None
            await raw.restore(name, 0, dumped, replace=True)
    assert await said(redis_client) == HELD
    assert (await telling.bring({})).in_full
    assert await said(redis_client) == {}


async def test_the_next_heartbeat_notices_holdings_missing_from_the_map(redis_client: Redis) -> None:
    telling = link(redis_client)
    await telling.bring(HELD)
    await redis_client.hdel(keys.held(BASE, ENGINE), "c")
    assert (await telling.bring(HELD)).in_full
    assert await said(redis_client) == HELD


async def test_a_start_in_the_middle_of_anothers_telling_is_heard_alone(redis_client: Redis, calls: Calls) -> None:
    first, second = link(redis_client, 1), link(redis_client, 2)
    await first.bring({"old": held("old")})
    calls.befall(1, lost=True)
    with pytest.raises(MapUnavailable):
        await first.bring(HELD)
    calls.befall(2, lost=True)
    with pytest.raises(MapUnavailable):
        await second.bring(HELD)
    await second.bring(HELD)
    with pytest.raises(StaleEpoch):
        await first.bring(HELD)
    assert await said(redis_client) == HELD


async def test_a_start_that_ended_as_it_told_leaves_nothing_behind(redis_client: Redis, calls: Calls) -> None:
    await link(redis_client, 1).bring({"old": held("old")})
    calls.befall(2, lost=True)
    with pytest.raises(MapUnavailable):
        await link(redis_client, 2).bring(HELD)
    assert await said(redis_client) == {"old": held("old")}
    few = {"a": held("a", Tier.HOST)}
    await link(redis_client, 3).bring(few)
    assert await said(redis_client) == few
    assert not await redis_client.exists(keys.telling(BASE, ENGINE))


class Fate(StrEnum):
    """What goes wrong with one call."""

    NOTHING = "nothing"
    LOST = "its answer is lost"
    LATE = "it is carried out behind the next"
    FLUSHED = "the map is emptied before it"
    FORGOTTEN = "what was told in part is gone before it"
    RESTARTED = "its answer is lost and the engine starts anew"


holdings = st.dictionaries(st.sampled_from("abcdefghijklmnop"), st.sampled_from(Tier), max_size=16)
steps = st.lists(st.tuples(holdings, st.integers(0, 6), st.sampled_from(Fate)), min_size=1, max_size=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(steps)
async def test_the_map_converges_to_the_engines_holdings_after_any_faults(
    redis_client: Redis, calls: Calls, steps: list[tuple[dict[str, Tier], int, Fate]]
) -> None:
    await redis_client.flushall()
    incarnation = 1
    telling = link(redis_client, incarnation)
    for tiers, at, fate in steps:
        now = {name: held(name, tier) for name, tier in tiers.items()}
        before: Callable[[], Awaitable[Any]] | None = None
        if fate is Fate.FLUSHED:
            before = redis_client.flushall
        elif fate is Fate.FORGOTTEN:
            before = partial(redis_client.delete, keys.telling(BASE, ENGINE))
        lost = fate in (Fate.LOST, Fate.RESTARTED)
        calls.befall(-1 if fate is Fate.NOTHING else at, before=before, lost=lost, late=fate is Fate.LATE)
        try:
            await telling.bring(now)
        except MapUnavailable:
            if fate is Fate.RESTARTED:
                incarnation += 1
                telling = link(redis_client, incarnation)
        await brought(telling, now)
        assert await said(redis_client) == now
        assert await redis_client.hlen(keys.held(BASE, ENGINE)) == len(now)
