"""What the operator reads of training: waves' records, which are large, only when they have changed."""

from collections.abc import Awaitable, Callable, Sequence

import pytest
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.records import MapState
from mint_contracts.source import Source
from mint_contracts.train_reader import TrainReader
from mint_contracts.train_writer import TrainWriter
from mint_contracts.training import Policies, Policy, Train
from mint_contracts.training_records import TrainAssignment, TrainChange, WaveTraining
from mint_operator.observing import train_view
from mint_operator.observing.train_view import TrainView
from mint_operator.planning.snapshot import BaseMap

BASE, ENGINE, STORE = "team/smol", "smol-0", Source(uri="pvc://training/runs")


class CountingReader(TrainReader):
    """Counts the reads of records, and of leases."""

    records = leases = 0

    async def training(self, base: str, *, partly: bool = False) -> dict[str, WaveTraining]:
        self.records += 1
        return await super().training(base, partly=partly)

    async def trains(
        self, base: str, engines: Sequence[str], *, partly: bool = False
    ) -> dict[str, dict[str, TrainAssignment]]:
        self.leases += 1
        return await super().trains(base, engines, partly=partly)


def record(wave: str, steps: int = 50) -> WaveTraining:
    return WaveTraining(wave=wave, generation=1, train=Train(policies=Policies(), steps=steps), store=STORE)


def lease(number: int) -> TrainChange:
    return TrainChange(set_trains={ENGINE: (TrainAssignment("team/a", "team/w", number, Policy("team/a")),)})


def map_of(version: int | None) -> dict[str, BaseMap]:
    return {BASE: BaseMap(state=MapState(version, None, {}, {}, {}), engines=())}


Settled = tuple[CountingReader, TrainView, Callable[..., Awaitable[int]]]


@pytest.fixture
async def settled(redis_client: Redis) -> Settled:
    """A view that has read one wave, and a function that looks again and returns how often records were read."""
    reader = CountingReader(redis_client)
    view = TrainView(reader, look_s=0.0)

    async def look(version: int | None = 1) -> int:
        before = reader.records
        await view.look(map_of(version), {BASE: [ENGINE]})
        return reader.records - before

    await TrainWriter(redis_client, 1).apply(BASE, TrainChange(set_training=(record("team/w"),)))
    await look()
    await look()
    assert await look() == 0
    return reader, view, look


async def test_records_are_read_once_for_each_change_and_leases_at_every_look(
    redis_client: Redis, settled: Settled
) -> None:
    reader, view, look = settled
    writer, before = TrainWriter(redis_client, 1), reader.leases
    for version in (1, 2, 3):
        await writer.apply(BASE, lease(version))
        view.invalidate(BASE, lease(version))
        assert await look(version) == 0
        assert view.known[BASE].written.trains[ENGINE]["team/a"].lease == version
    assert reader.leases == before + 3
    await writer.apply(BASE, TrainChange(set_training=(record("team/w", 60), record("team/v"))))
    assert [await look() for _ in range(2)] == [1, 0], "whoever wrote"
    assert {name: each.train.steps for name, each in view.known[BASE].written.training.items()} == {
        "team/w": 60,
        "team/v": 50,
    }
    await writer.apply(BASE, TrainChange(del_training=("team/w", "team/v")))
    await look()
    assert view.known[BASE].written.training == {}


async def test_records_are_read_again_after_a_write_to_them_that_failed(settled: Settled) -> None:
    _, view, look = settled
    view.invalidate(BASE, TrainChange(set_training=(record("team/w", 60),)))
    assert [await look() for _ in range(2)] == [1, 0]


async def test_lost_records_are_noticed_at_the_next_look(redis_client: Redis, settled: Settled) -> None:
    _, view, look = settled
    await redis_client.flushdb()
    await look(None)
    assert view.known[BASE].written.training == {}
    assert "team/w" in view.known[BASE].state.training, "what was lost is remembered"


async def test_records_of_an_older_state_of_redis_are_noticed_at_the_next_look(
    redis_client: Redis, settled: Settled
) -> None:
    _, view, look = settled
    both = keys.training(BASE), keys.editions(BASE)
    for key in both:
        await redis_client.copy(key, f"older:{key}")
    await TrainWriter(redis_client, 1).apply(BASE, TrainChange(set_training=(record("team/w", 60),)))
    await look()
    for key in both:
        await redis_client.copy(f"older:{key}", key, replace=True)
    await look()
    assert view.known[BASE].written.training["team/w"].train.steps == 50


async def test_records_that_were_changed_without_an_edition_are_noticed_in_time(
    redis_client: Redis, settled: Settled, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, view, look = settled
    await redis_client.hdel(keys.training(BASE), "team/w")
    assert await look() == 0
    monkeypatch.setattr(train_view, "FULL_READ_S", 0.0)
    assert await look() == 1
    assert view.known[BASE].written.training == {}
