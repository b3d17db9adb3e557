"""The training part of the map on a real Redis: who may write it, what is read, and when it counts as known."""

import msgspec
import pytest
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.errors import StaleEpoch
from mint_contracts.map_reader import MapReader
from mint_contracts.map_writer import MapWriter
from mint_contracts.records import BaseRecord, MapChange
from mint_contracts.rewards import Rewards
from mint_contracts.source import Source
from mint_contracts.train_reader import TrainReader
from mint_contracts.train_writer import OPS_PER_CALL, TrainWriter
from mint_contracts.training import (
    Dataset,
    ExactMatch,
    Loss,
    Policies,
    Policy,
    Reward,
    RewardService,
    Train,
    Weighted,
)
from mint_contracts.training_records import (
    Order,
    PartAssignment,
    PartTraining,
    Progress,
    Published,
    Stage,
    TrainAssignment,
    TrainChange,
    TrainState,
    WaveTraining,
)
from tests.redis_process import full_memory

BASE = "demo/smollm2"
WAVE = WaveTraining(
    wave="demo/w",
    generation=3,
    train=Train(
        policies=Policies(), dataset=Dataset(lines=['{"prompt": "x"}']), reward=Reward(exact_match=ExactMatch())
    ),
    store=Source("s3://runs"),
    run="uid",
    policies=("demo/a", "demo/b"),
    phase="Training",
)


def lease(policy: str) -> TrainAssignment:
    settings = Policy(policy, rank=8)
    return TrainAssignment(policy, "demo/w", 7, settings, Order.PAUSE, incarnation=2, run="uid", saved=5)


def change(*policies: str, engine: str = "e-0") -> TrainChange:
    return TrainChange(set_training=(WAVE,), set_trains={engine: tuple(lease(policy) for policy in policies)})


async def state(reader: TrainReader, engines: list[str]) -> TrainState:
    """Read everything that the map says about training, for these engines."""
    training, trains = await reader.training(BASE), await reader.trains(BASE, engines)
    return TrainState(training, trains, await reader.progress(BASE, engines))


async def test_every_record_comes_back_as_it_was_written(redis_client: Redis) -> None:
    await TrainWriter(redis_client, epoch=1).apply(BASE, change("demo/a", "demo/b"))
    found = await state(TrainReader(redis_client), ["e-0", "e-1"])
    assert found.training == {"demo/w": WAVE}
    assert found.trains == {"e-0": {"demo/a": lease("demo/a"), "demo/b": lease("demo/b")}, "e-1": {}}


async def test_a_record_that_cannot_be_read_hinders_no_other_and_is_given_in_part_where_asked(
    redis_client: Redis,
) -> None:
    """After a rollback, the map may hold fields written by a newer version that this one does not know."""
    await TrainWriter(redis_client, epoch=1).apply(BASE, change("demo/a", "demo/b"))
    newer = msgspec.json.decode(msgspec.json.encode(lease("demo/a"))) | {"settings": {"name": "demo/a", "tape": "x"}}
    await redis_client.hset(keys.trains(BASE, "e-0"), "demo/a", msgspec.json.encode(newer).decode())
    wave = msgspec.json.decode(msgspec.json.encode(WAVE)) | {"train": {"policies": {}, "tape": "x"}}
    await redis_client.hset(keys.training(BASE), "demo/w", msgspec.json.encode(wave).decode())
    reader = TrainReader(redis_client)
    assert await state(reader, ["e-0"]) == TrainState({}, {"e-0": {"demo/b": lease("demo/b")}}, {"e-0": {}})
    found = (await reader.trains(BASE, ["e-0"], partly=True))["e-0"]
    assert found["demo/b"] == lease("demo/b")
    part = found["demo/a"]
    assert isinstance(part, PartAssignment)
    assert (part.lease, part.order, part.incarnation, part.settings) == (7, Order.PAUSE, 2, Policy("demo/a"))
    assert part.saved == 5
    [(name, record)] = (await reader.training(BASE, partly=True)).items()
    assert isinstance(record, PartTraining)
    assert (name, record.run, record.policies, record.store) == ("demo/w", "uid", WAVE.policies, WAVE.store)


async def test_records_of_an_earlier_version_tell_of_no_checkpoint(redis_client: Redis) -> None:
    progress = Progress("demo/a", "demo/w", 7, Stage.RUNNING, run="uid", step=5, saved=5)
    for key, record in ((keys.trains(BASE, "e-0"), lease("demo/a")), (keys.progress(BASE, "e-0"), progress)):
        older = msgspec.to_builtins(record)
        del older["saved"]
        await redis_client.hset(key, "demo/a", msgspec.json.encode(older).decode())
    found = await state(TrainReader(redis_client), ["e-0"])
    assert found.trains["e-0"]["demo/a"] == msgspec.structs.replace(lease("demo/a"), saved=0)
    assert found.progress["e-0"]["demo/a"] == msgspec.structs.replace(progress, saved=0)


async def test_a_lease_is_read_whole_whatever_a_manifest_may_not_say_any_more(redis_client: Redis) -> None:
    """An earlier version granted it under its own rules, and an engine trains by it."""
    judge = Weighted(2000.0, Reward(service=RewardService("judge.team.svc:8470", timeout_s=900.0, retries=20)))
    settings = Policy(
        "demo/a",
        dataset=Dataset(uri="s3://data/a.jsonl", system="x" * 10_000, shuffle_seed=-1),
        reward=Reward(sum=[judge] * 9),
        loss=Loss(clip_high=1000.0),
    )
    granted = msgspec.structs.replace(lease("demo/a"), settings=settings)
    await TrainWriter(redis_client, epoch=1).apply(BASE, TrainChange(set_trains={"e-0": (granted,)}))
    assert (await TrainReader(redis_client).trains(BASE, ["e-0"]))["e-0"] == {"demo/a": granted}


async def test_words_and_orders_that_are_not_known_are_read_as_far_as_they_can_be(redis_client: Redis) -> None:
    ended = Progress("demo/a", "", 7, Stage.COMPLETE, step=5)
    wave = msgspec.structs.replace(WAVE, last_words=(ended, msgspec.structs.replace(ended, policy="demo/b")))
    newer = msgspec.to_builtins(wave)
    newer["last_words"][1]["stage"] = "Taped"
    await redis_client.hset(keys.training(BASE), "demo/w", msgspec.json.encode(newer).decode())
    await redis_client.hset(keys.training(BASE), "demo/odd", '{"wave": 7}')
    leased = msgspec.to_builtins(lease("demo/a")) | {"order": "Tape"}
    await redis_client.hset(keys.trains(BASE, "e-0"), "demo/a", msgspec.json.encode(leased).decode())
    await redis_client.hset(keys.trains(BASE, "e-0"), "demo/odd", '{"policy": 7}')
    newest = msgspec.structs.replace(
        ended, wave="demo/w", run="uid", published=Published("sha256:1", 5, Source("s3://r"))
    )
    for name, stage in (("demo/a", "Taped"), ("demo/odd", 7)):
        fields = msgspec.to_builtins(newest) | {"policy": name, "stage": stage}
        await redis_client.hset(keys.progress(BASE, "e-0"), name, msgspec.json.encode(fields).decode())
    await redis_client.hset(keys.progress(BASE, "e-0"), "demo/none", '{"policy": "demo/none"}')
    reader = TrainReader(redis_client)
    assert await state(reader, ["e-0"]) == TrainState({}, {"e-0": {}}, {"e-0": {}})
    [record] = (await reader.training(BASE, partly=True)).values()
    assert (record.run, record.last_words) == ("uid", (ended,))
    [assigned] = (await reader.trains(BASE, ["e-0"], partly=True))["e-0"].values()
    assert (assigned.lease, assigned.order) == (7, Order.PAUSE), "nobody is told to go on by it"
    progress = (await reader.progress(BASE, ["e-0"], partly=True))["e-0"]
    assert progress["demo/a"] == msgspec.structs.replace(newest, stage=Stage.LOADING)
    assert sorted(progress) == ["demo/a", "demo/odd"]


@pytest.mark.parametrize("odd", ["{", "7", "[]", '{"settings": 7}', '{"last_words": 7}', '{"order": []}'])
@pytest.mark.parametrize("partly", [False, True])
async def test_a_record_that_is_nothing_like_one_is_passed_over(odd: str, partly: bool, redis_client: Redis) -> None:
    await TrainWriter(redis_client, epoch=1).apply(BASE, change("demo/a"))
    progress = Progress("demo/a", "demo/w", 7, Stage.RUNNING)
    await redis_client.hset(keys.progress(BASE, "e-0"), "demo/a", msgspec.json.encode(progress).decode())
    for key in (keys.training(BASE), keys.trains(BASE, "e-0"), keys.progress(BASE, "e-0")):
        await redis_client.hset(key, "odd", odd)
    reader = TrainReader(redis_client)
    assert await reader.training(BASE, partly=partly) == {"demo/w": WAVE}
    assert await reader.trains(BASE, ["e-0"], partly=partly) == {"e-0": {"demo/a": lease("demo/a")}}
    assert await reader.progress(BASE, ["e-0"], partly=partly) == {"e-0": {"demo/a": progress}}


async def test_a_waves_policy_is_found_by_its_name_without_reading_the_waves(redis_client: Redis) -> None:
    reader = TrainReader(redis_client)
    assert not await reader.has_policy(BASE, "demo/a")
    other = msgspec.structs.replace(WAVE, wave="demo/v", policies=("demo/c",), message='"demo/d" ' * 100_000)
    await TrainWriter(redis_client, epoch=1).apply(BASE, TrainChange(set_training=(WAVE, other)))
    for odd in ("{", '"demo/e"', '["demo/e"]', '{"policies": "demo/e"}', '{"run": "demo/e", "policies": null}'):
        await redis_client.hset(keys.training(BASE), odd, odd)
    sent = (await redis_client.info("stats"))["total_net_output_bytes"]
    has = [await reader.has_policy(BASE, f"demo/{letter}") for letter in "abcde"]
    assert has == [True, True, True, False, False], "a record may mention names that are none of its policies"
    assert not await reader.has_policy(BASE, "demo"), "nor is a part of a name one"
    assert (await redis_client.info("stats"))["total_net_output_bytes"] - sent < len(other.message)
    await TrainWriter(redis_client, epoch=1).apply(BASE, TrainChange(del_training=("demo/w",)))
    assert [await reader.has_policy(BASE, name) for name in WAVE.policies] == [False, False]


async def test_a_waves_record_is_given_in_part_whatever_its_last_words_are(redis_client: Redis) -> None:
    newer = msgspec.to_builtins(WAVE) | {"last_words": {"demo/a": "Taped"}}
    await redis_client.hset(keys.training(BASE), "demo/w", msgspec.json.encode(newer).decode())
    [record] = (await TrainReader(redis_client).training(BASE, partly=True)).values()
    assert (record.run, record.last_words) == ("uid", ())


async def test_an_older_operator_changes_nothing(redis_client: Redis) -> None:
    await TrainWriter(redis_client, epoch=2).apply(BASE, change("demo/a"))
    with pytest.raises(StaleEpoch):
        await TrainWriter(redis_client, epoch=1).apply(BASE, TrainChange(del_trains={"e-0": ("demo/a",)}))
    assert (await TrainReader(redis_client).trains(BASE, ["e-0"]))["e-0"].keys() == {"demo/a"}


async def test_leases_alone_do_not_make_a_lost_map_known(redis_client: Redis) -> None:
    writer, leases, reader = MapWriter(redis_client, 1), TrainWriter(redis_client, 1), MapReader(redis_client)
    await leases.apply(BASE, change("demo/a"))
    assert await reader.version(BASE) is None
    await writer.apply(BASE, MapChange(base=BaseRecord(BASE)))
    known = await reader.version(BASE)
    assert known is not None
    await leases.apply(BASE, change("demo/b"))
    assert await reader.version(BASE) == known


async def test_engines_whose_leases_change_are_called_and_no_others(redis_client: Redis) -> None:
    reader = MapReader(redis_client)
    async with reader.calls(BASE, "e-0") as first, reader.calls(BASE, "e-1") as second:
        await TrainWriter(redis_client, 1).apply(BASE, change("demo/a"))
        assert "map" in [await first(0.5), await first(0.5)]  # the first call is for the subscription itself
        assert [await second(0.1), await second(0.1)] == [None, None]
    assert await redis_client.hgetall(keys.editions(BASE)) == {"e-0": "1", "": "1"}


async def test_an_edition_grows_with_every_change_of_waves_records_and_with_nothing_else(redis_client: Redis) -> None:
    reader, writer, found = TrainReader(redis_client), TrainWriter(redis_client, 1), []
    both = change("demo/a")
    for each in (TrainChange(set_trains=both.set_trains), both, both, TrainChange(del_training=("demo/w",))):
        await writer.apply(BASE, each)
        found.append(await reader.edition(BASE))
    assert found == [None, 1, 2, 3]


async def test_large_changes_go_in_parts_and_arrive_whole(redis_client: Redis) -> None:
    names = [f"demo/{number}" for number in range(2 * OPS_PER_CALL + 3)]
    await TrainWriter(redis_client, 1).apply(BASE, change(*names))
    found = await state(TrainReader(redis_client), ["e-0"])
    assert found.trains["e-0"].keys() == set(names)
    gone = TrainChange(del_training=tuple(found.training), del_trains={"e-0": tuple(found.trains["e-0"])})
    await TrainWriter(redis_client, 1).apply(BASE, gone)
    left = await state(TrainReader(redis_client), ["e-0"])
    assert (left.training, left.trains) == ({}, {"e-0": {}})
    assert await redis_client.hget(keys.editions(BASE), "e-0") == "2"


async def test_history_goes_with_its_wave(redis_client: Redis) -> None:
    for policy in ("demo/a", "demo/b"):
        await redis_client.rpush(keys.rewards(BASE, policy), 0.25, 0.5)
    await TrainWriter(redis_client, 1).apply(BASE, TrainChange(del_rewards=("demo/a",)))
    left = await TrainReader(redis_client).rewards(BASE, {"demo/a": 0, "demo/b": 0}, most=1)
    assert left == {"demo/a": Rewards(), "demo/b": Rewards(1, (0.5,))}


async def test_where_memory_is_full_leases_are_still_given_and_taken(redis_client: Redis) -> None:
    writer, reader = TrainWriter(redis_client, 1), TrainReader(redis_client)
    await writer.apply(BASE, change("demo/a"))
    async with full_memory(redis_client):
        await writer.apply(BASE, change("demo/b"))
        await writer.apply(BASE, TrainChange(del_trains={"e-0": ("demo/a",)}))
    assert (await reader.trains(BASE, ["e-0"]))["e-0"].keys() == {"demo/b"}


async def test_a_base_that_is_forgotten_takes_its_training_along(redis_client: Redis) -> None:
    await TrainWriter(redis_client, 1).apply(BASE, change("demo/a"))
    await MapWriter(redis_client, 1).forget(BASE)
    found = await state(TrainReader(redis_client), ["e-0"])
    assert (found.training, found.trains) == ({}, {"e-0": {}})
