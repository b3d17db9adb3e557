"""Followers of the map read only what has changed, as long as the map knows what that is."""

import msgspec
import pytest
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.errors import MapUnavailable
from mint_contracts.map_reader import MOST_RECENT, Known, MapReader
from mint_contracts.map_reporter import MapReporter
from mint_contracts.map_writer import OPS_PER_CALL, RECENT_ADAPTERS, MapWriter
from mint_contracts.records import EngineRecord, Held, MapChange, Tier
from tests.contracts.placed import BASE, assignment, held, losing_before, placement, record, write

LARGE = MapChange(
    set_placements=(placement("late"),),
    set_assigned={"e-0": tuple(assignment(f"a-{number:05}") for number in range(OPS_PER_CALL))},
)


async def test_what_changed_since_a_version_is_known_for_a_while(redis_client: Redis) -> None:
    writer, reader = MapWriter(redis_client, epoch=1), MapReader(redis_client)
    first = await write(writer, "a", "b", "c")
    before = await reader.placements(BASE)
    await write(writer, "b", why="moved")
    now = await writer.apply(BASE, MapChange(set_placements=(placement("d"),), del_placements=("c",)))
    moved = {"a": placement("a"), "b": placement("b", why="moved"), "d": placement("d")}
    assert await reader.placements_since(BASE, before, first, now) == moved
    assert await reader.placements_since(BASE, {"c": placement("c")}, now - 1, now) == {"d": placement("d")}
    assert await reader.placements_since(BASE, {}, now, now) is None
    for _ in range(MOST_RECENT):
        now = await write(writer, "a")
    assert await reader.placements_since(BASE, {}, now - MOST_RECENT, now) == {"a": placement("a")}
    assert await reader.placements_since(BASE, {}, now - MOST_RECENT - 1, now) is None
    assert await redis_client.hlen(keys.recent(BASE)) == MOST_RECENT


async def test_too_many_placements_at_once_are_better_all_read(redis_client: Redis) -> None:
    writer, reader = MapWriter(redis_client, epoch=1), MapReader(redis_client)
    before = await write(writer, "a")
    many = tuple(placement(f"m-{number}") for number in range(RECENT_ADAPTERS + 1))
    now = await writer.apply(BASE, MapChange(set_placements=many))
    assert await reader.placements_since(BASE, {}, before, now) is None
    assert await reader.placements_since(BASE, {}, now, await write(writer, "b")) == {"b": placement("b")}


async def test_a_version_that_an_earlier_mint_wrote_is_not_known(redis_client: Redis) -> None:
    writer, reader = MapWriter(redis_client, epoch=1), MapReader(redis_client)
    before = await write(writer, "a")
    await redis_client.incr(keys.version(BASE))
    assert await reader.placements_since(BASE, {}, before, await write(writer, "b")) is None


async def test_versions_that_begin_anew_are_not_taken_for_those_of_an_earlier_map(redis_client: Redis) -> None:
    writer, reader = MapWriter(redis_client, epoch=1), MapReader(redis_client)
    for name in ("a", "b", "c"):
        await write(writer, name)
    await redis_client.delete(keys.version(BASE))
    first = await write(writer, "d")
    many = tuple(placement(f"m-{number}") for number in range(RECENT_ADAPTERS + 1))
    now = await writer.apply(BASE, MapChange(set_placements=many))
    assert await reader.placements_since(BASE, {}, first, now) is None
    await write(writer, "e")
    assert await redis_client.hlen(keys.recent(BASE)) == 1, "nothing of before is kept"


async def test_a_change_that_a_later_mint_notes_in_another_form_is_not_known(redis_client: Redis) -> None:
    writer, reader = MapWriter(redis_client, epoch=1), MapReader(redis_client)
    before = await write(writer, "a")
    now = await write(writer, "b")
    await redis_client.hset(keys.recent(BASE), str(now), '{"adapters": 1}')
    assert await reader.placements_since(BASE, {}, before, now) is None


async def _cut_off() -> None:
    raise MapUnavailable("placement map", "Redis did not answer")


@pytest.mark.parametrize("after", [LARGE, msgspec.structs.replace(LARGE, set_assigned={})], ids=["parts", "whole"])
async def test_what_a_change_that_was_cut_off_had_placed_is_not_known(
    after: MapChange, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one does not place it again: it is there. But the version still says nothing of it."""
    writer, reader = MapWriter(redis_client, epoch=1), MapReader(redis_client)
    before = await write(writer, "a")
    with monkeypatch.context() as patched:
        losing_before(patched, 1, _cut_off)
        with pytest.raises(MapUnavailable):
            await writer.apply(BASE, LARGE)
    assert sorted(await reader.placements(BASE)) == ["a", "late"]
    rest = msgspec.structs.replace(after, set_placements=(placement("b"),))
    now = await writer.apply(BASE, rest)
    assert await reader.placements_since(BASE, {}, before, now) is None
    assert await reader.placements_since(BASE, {}, now, await write(writer, "c")) == {"c": placement("c")}


async def known(reader: MapReader, before: EngineRecord, holds: dict[str, Held]) -> dict[str, Known]:
    """Return what a follower knows that has read `before` and what the engine held then."""
    now = (await reader.pulse(BASE)).engines["e-0"]
    assert now is not None
    return {"e-0": Known(holds, before.incarnation, before.sequence, now.sequence)}


async def test_what_an_engine_holds_is_known_by_what_its_last_reports_changed(redis_client: Redis) -> None:
    reader, reporter = MapReader(redis_client), MapReporter(redis_client, BASE, "e-0")
    await reporter.report(record(), [held("a"), held("b"), held("c")], [], full=True)
    holds = await reader.held(BASE, "e-0")
    await reporter.report(record(sequence=2), [held("d"), held("b", Tier.HOST)], ["c"], full=False, over=1)
    await reporter.report(record(sequence=3), [held("d", Tier.DISK)], ["a"], full=False, over=2)
    await redis_client.hset(keys.held(BASE, "e-0"), "unread", "{}")
    there = {"b": held("b", Tier.HOST), "d": held("d", Tier.DISK)}
    assert await reader.holdings(BASE, ["e-0"], await known(reader, record(), holds)) == {"e-0": there}
    for sequence in range(4, MOST_RECENT + 3):
        await reporter.report(record(sequence=sequence), [held("d")], [], full=False, over=sequence - 1)
    there["d"] = held("d")
    assert await redis_client.hlen(keys.held_recently(BASE, "e-0")) == MOST_RECENT
    assert await reader.holdings(BASE, ["e-0"], await known(reader, record(sequence=2), there)) == {"e-0": there}


@pytest.mark.parametrize("how", ["full", "many", "later start", "earlier mint"])
async def test_what_followers_cannot_know_of_an_engine_they_read_completely(how: str, redis_client: Redis) -> None:
    reader, reporter = MapReader(redis_client), MapReporter(redis_client, BASE, "e-0")
    await reporter.report(record(), [held("a")], [], full=True)
    await reporter.report(record(sequence=2), [held("b")], [], full=False, over=1)
    holds, before = await reader.held(BASE, "e-0"), record(sequence=2)
    added = [held(f"m-{number}") for number in range(MOST_RECENT)]
    if how == "full":
        await reporter.report(record(sequence=3), added[:1], [], full=True)
    elif how == "many":
        await reporter.report(record(sequence=3), added, ["a"], full=False, over=2)
    elif how == "later start":
        before = record()
        await reporter.report(record(incarnation=2, sequence=2), added[:1], [], full=True)
    else:
        await redis_client.unlink(keys.held_recently(BASE, "e-0"))
        await reporter.report(record(sequence=3), added[:1], ["a"], full=False, over=2)
        before = record()
    now = await reader.held(BASE, "e-0")
    assert now != holds
    assert await reader.holdings(BASE, ["e-0"], await known(reader, before, holds)) == {"e-0": now}
