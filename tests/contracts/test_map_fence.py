"""The map's fence: one operator writes at a time, and one with an older epoch writes nothing more."""

import asyncio
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mint_contracts import keys
from mint_contracts.errors import StaleEpoch
from mint_contracts.map_reader import MapReader
from mint_contracts.map_writer import OPS_PER_CALL, MapWriter
from mint_contracts.records import BaseRecord, MapChange
from mint_contracts.train_writer import TrainWriter
from mint_contracts.training_records import TrainChange
from tests.contracts.placed import BASE, assignment, write


async def test_an_older_epoch_is_refused_and_changes_nothing(redis_client: Redis) -> None:
    old, new, reader = MapWriter(redis_client, 1), MapWriter(redis_client, 2), MapReader(redis_client)
    await write(old, "a", why="old")
    await write(new, "a", why="new")
    before = await reader.state(BASE, ["e-0"])
    for attempt in (
        write(old, "a", "b", why="old"),
        old.apply(BASE, MapChange(base=BaseRecord(BASE), set_assigned={"e-0": (assignment("a"),)})),
        old.forget(BASE),
    ):
        with pytest.raises(StaleEpoch, match="newer writer"):
            await attempt
    assert await reader.state(BASE, ["e-0"]) == before
    assert await reader.bases() == [BASE]


async def test_a_claim_fences_off_whoever_wrote_before_if_the_base_has_been_written(redis_client: Redis) -> None:
    old, new = MapWriter(redis_client, 1), MapWriter(redis_client, 2)
    await new.claim(BASE)
    assert not await redis_client.exists(keys.epoch(BASE)), "one without a record would count as removed"
    await write(old, "a")
    await new.claim(BASE)
    for attempt in (
        old.apply(BASE, MapChange(base=BaseRecord(BASE))),
        TrainWriter(redis_client, old.epoch).apply(BASE, TrainChange(del_rewards=("a",))),
        old.claim(BASE),
    ):
        with pytest.raises(StaleEpoch, match="newer writer"):
            await attempt


async def test_the_fence_outlives_forgetting(redis_client: Redis) -> None:
    old, new = MapWriter(redis_client, 1), MapWriter(redis_client, 2)
    await write(new, "a")
    await new.forget(BASE)
    with pytest.raises(StaleEpoch):
        await write(old, "a")
    assert await MapReader(redis_client).bases() == [], "whoever was overtaken does not name it again either"


@pytest.mark.parametrize(
    ("epoch", "late"), [(1, nullcontext()), (2, pytest.raises(ResponseError, match="STALEEPOCH 2"))]
)
async def test_a_base_that_is_back_stays_listed_when_its_end_arrives_late(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch, epoch: int, late: AbstractContextManager[object]
) -> None:
    """A connection that was given up may have sent a command that Redis reads only now."""
    sent, send = list[tuple[Any, ...]](), redis_client.execute_command

    async def noted(*command: Any, **options: Any) -> Any:
        sent.append(command)
        return await send(*command, **options)  # type: ignore[no-untyped-call]

    writer, there = MapWriter(redis_client, 1), MapChange(base=BaseRecord(BASE))
    await writer.apply(BASE, there)
    with monkeypatch.context() as patched:
        patched.setattr(redis_client, "execute_command", noted)
        await writer.forget(BASE)
    assert await MapReader(redis_client).bases() == []
    await MapWriter(redis_client, epoch).apply(BASE, there)
    with late:
        await send(*sent[-1])  # type: ignore[no-untyped-call]
    assert await MapReader(redis_client).bases() == [BASE]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from("abc")), max_size=20))
async def test_whatever_the_order_a_write_wins_if_no_newer_epoch_came_before(
    redis_client: Redis, writes: list[tuple[int, str]]
) -> None:
    await redis_client.flushdb()
    reader, newest, expected = MapReader(redis_client), 0, dict[str, str]()
    for number, (epoch, adapter) in enumerate(writes):
        why = f"{epoch}/{number}"
        if epoch >= newest:
            await write(MapWriter(redis_client, epoch), adapter, why=why)
            newest, expected[adapter] = epoch, why
        else:
            with pytest.raises(StaleEpoch):
                await write(MapWriter(redis_client, epoch), adapter, why=why)
    assert {name: each.places[0].why for name, each in (await reader.placements(BASE)).items()} == expected


async def test_exactly_one_of_two_operators_that_write_at_once_wins(redis_client: Redis) -> None:
    names = [f"a-{number}" for number in range(3 * OPS_PER_CALL)]

    async def govern(epoch: int) -> bool:
        writer = MapWriter(redis_client, epoch)
        try:
            for _ in range(4):
                await write(writer, *names, why=str(epoch))
        except StaleEpoch:
            return False
        return True

    loser, winner = await asyncio.gather(govern(1), govern(2))
    assert (loser, winner) == (False, True)
    # The chunks of both were interleaved, and none of the loser's came after the winner's.
    assert {each.places[0].why for each in (await MapReader(redis_client).placements(BASE)).values()} == {"2"}
