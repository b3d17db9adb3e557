"""The ACL rules of docs/platform.md: as its own user, each part of MinT can do its work, and little else."""

import asyncio
import re
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from mint_contracts import functions, keys
from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.catalog_writer import CatalogWriter
from mint_contracts.entries import Entry
from mint_contracts.errors import MapUnavailable, StaleEpoch
from mint_contracts.map_reader import MapReader
from mint_contracts.map_reporter import MapReporter
from mint_contracts.map_writer import OPS_PER_CALL, MapWriter
from mint_contracts.records import BaseRecord, MapChange
from mint_contracts.settings import REDIS_PASSWORD, REDIS_USERNAME
from mint_contracts.source import Source
from mint_contracts.step_figures import StepFigures
from mint_contracts.train_reader import TrainReader
from mint_contracts.train_reporter import MissingRewards, TrainReporter
from mint_contracts.train_writer import TrainWriter
from mint_contracts.training import Policy
from mint_contracts.training_records import Progress, Stage, TrainAssignment, TrainChange
from mint_gateway.catalog import keeper
from mint_gateway.catalog.keeper import Keeper
from mint_operator.observing import hints
from mint_operator.observing.dirt import Dirt
from tests.apiserver import ROOT
from tests.contracts.placed import BASE, assignment, held, placement, record
from tests.gateway.catalogs import hanging, written
from tests.redis_process import RedisProcess, full_memory
from tests.waiting import until

ENGINE = "e-0"
CURVE = (StepFigures(1, kl=0.5),)
PARTS = ("operator", "engine", "gateway")
# The functions that each part calls, by file.
CALLED: dict[str, dict[str, Sequence[str]]] = {
    "operator": {"functions.lua": ("apply", "train", "claim", "forget", "unlist"), "catalog.lua": ("find", "leaves")},
    "engine": {"functions.lua": ("tell", "report", "leave", "progress", "trained"), "catalog.lua": ("find",)},
    "gateway": {
        "catalog.lua": (
            "apply",
            "begin",
            "complete",
            "registering",
            "retire",
            "sequences",
            "leaves",
            "find",
            "since",
            "absent",
        )
    },
}
LEASES = TrainChange(set_trains={ENGINE: (TrainAssignment("a", "demo/wave", 7, Policy("a")),)})
WHOLE = MapChange(
    base=BaseRecord(BASE),
    set_placements=tuple(placement(f"p-{number}") for number in range(OPS_PER_CALL + 1)),
    set_assigned={ENGINE: (assignment("p-0"),)},
)


def rules(part: str) -> list[str]:
    """The rules that the page gives a part's user."""
    page = (ROOT / "docs" / "platform.md").read_text().replace("\\\n", " ")
    [line] = re.findall(rf"^ +redis-cli ACL SETUSER mint-{part} (.*)$", page, re.MULTILINE)
    return shlex.split(line)


def permitted(part: str) -> set[str]:
    """The commands that these rules allow."""
    return set(re.findall(r"\+(\S+)", " ".join(rules(part))))


def commands(file: str, called: Sequence[str]) -> set[str]:
    """The commands in these functions of a library, and in those that they call."""
    code = re.sub(r"--.*", "", resources.files("mint_contracts").joinpath(file).read_text())
    bodies = dict(re.findall(r"^local function (\w+)(.*?)^end", code, re.MULTILINE | re.DOTALL))
    bodies |= dict(re.findall(r"^local function (\w+)(.*end)$", code, re.MULTILINE))
    assert not set(called) - bodies.keys()
    reached: set[str] = set()
    waiting = set(called)
    while waiting:
        reached |= waiting
        within = "".join(bodies[name] for name in waiting)
        waiting = {name for name in bodies if re.search(rf"(?<![.\w]){name}\b", within)} - reached
    return {name.lower() for each in reached for name in re.findall(r"redis.call\('(\w+)'", bodies[each])}


Attempt = Callable[[Redis], Awaitable[object]]
NEITHER: dict[str, Attempt] = {
    "the operator's keys": lambda redis: redis.hset(keys.placements(BASE), "a", "{}"),
    "the version": lambda redis: redis.set(keys.version(BASE), "9"),
    "a function's code": lambda redis: functions.load(redis),
    "a call of the operator's": lambda redis: MapWriter(redis, 2).apply(BASE, MapChange(base=BaseRecord(BASE))),
    "other keys": lambda redis: redis.get("theirs"),
}


class Users:
    """A Redis with the page's users; only the test is its default user."""

    def __init__(self, root: Redis, url: str, patch: pytest.MonkeyPatch) -> None:
        self.root, self._url, self._patch = root, url, patch

    def connect(self, part: str) -> Redis:
        """A connection, as this part of MinT makes it."""
        self._patch.setenv(REDIS_USERNAME, f"mint-{part}")
        self._patch.setenv(REDIS_PASSWORD, f"${part.upper()}_PASSWORD")
        return functions.connect(self._url)

    @asynccontextmanager
    async def working(self, part: str, used: dict[str, set[str]]) -> AsyncIterator[Redis]:
        """A part's connection; the commands that Redis runs meanwhile are added to those that the part has used."""
        await self.root.config_resetstat()
        redis = self.connect(part)
        try:
            yield redis
        finally:
            await redis.aclose()
        used[part] |= await self._commands() - {"auth", "hello", "config|resetstat"}

    async def ran(self, command: str) -> bool:
        """Whether the part at work has run a command."""
        return command in await self._commands()

    async def _commands(self) -> set[str]:
        found: dict[str, Any] = await self.root.info("commandstats")
        return {name.removeprefix("cmdstat_") for name, counts in found.items() if counts["calls"]}


@pytest.fixture
async def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Users]:
    with RedisProcess(tmp_path) as process:
        root = functions.connect(process.url)
        for part in PARTS:
            await root.execute_command(  # type: ignore[no-untyped-call]
                "ACL", "SETUSER", f"mint-{part}", *rules(part)
            )
        yield Users(root, process.url, monkeypatch)
        await root.aclose()


async def operator_works(redis: Redis) -> None:
    await functions.load(redis)
    await MapWriter(redis, 1).claim(BASE)
    await redis.ping()  # as its connections do from time to time
    reader, trains = MapReader(redis), TrainReader(redis)
    async with reader.changes() as wait:
        assert await MapWriter(redis, 1).apply(BASE, WHOLE) == 1
        while await wait(60.0) != "map":
            pass
    await TrainWriter(redis, 1).apply(BASE, LEASES)
    assert await reader.bases() == [BASE]
    assert (await reader.pulse(BASE)).version == 1
    assert len((await reader.state(BASE, [ENGINE])).placements) == OPS_PER_CALL + 1
    await reader.telling(BASE, [ENGINE])
    await reader.confirm_writes(BASE)
    await reader.holdings(BASE, [ENGINE])
    assert await trains.training(BASE) == {}
    assert await trains.edition(BASE) is None
    assert len((await trains.trains(BASE, [ENGINE]))[ENGINE]) == 1
    await trains.progress(BASE, [ENGINE])


async def operator_ends(redis: Redis) -> None:
    catalog = CatalogReader(redis)
    assert list((await MapReader(redis).pulse(BASE)).engines) == [ENGINE]
    assert (await catalog.state(BASE)).complete
    assert await catalog.find(BASE, "acme/a") is not None
    assert await catalog.all(BASE, limit=10)
    await MapWriter(redis, 1).apply(BASE, MapChange(del_placements=("p-0",), del_assigned={ENGINE: ("p-0",)}))
    await TrainWriter(redis, 1).apply(BASE, TrainChange(del_trains={ENGINE: ("a",)}, del_rewards=("a",)))
    await MapWriter(redis, 1).forget(BASE)
    assert await MapReader(redis).bases() == []


async def engine_works(redis: Redis) -> None:
    await redis.ping()
    reader, reporter = MapReader(redis), MapReporter(redis, BASE, ENGINE)
    async with reader.calls(BASE, ENGINE):
        assert list((await reader.part(BASE, ENGINE)).assigned) == ["p-0"]
    assert await reporter.tell(1, 1, [held("a")], [], over=0)
    assert await reporter.report(record(sequence=2), [held("b")], [], full=True, over=1)
    assert await reporter.report(record(sequence=3), [], ["b"], full=False, over=2)
    assert list(await reader.held(BASE, ENGINE)) == ["a"]
    trains = TrainReader(redis)
    assert list((await trains.trains(BASE, [ENGINE]))[ENGINE]) == ["a"]
    assert await trains.some_training(BASE, ["demo/wave"]) == {}
    assert not await trains.has_policy(BASE, "a")
    progress, running = TrainReporter(redis, BASE, ENGINE), [Progress("a", "demo/wave", 7, Stage.RUNNING)]
    for first, full in ((0, True), (1, False)):
        rewards = {"a": (first, [0.1])}
        assert await progress.report(1, running, [], rewards, full=full, curves={"a": CURVE}) == MissingRewards()
    await reader.placement(BASE, "a")
    await reader.base_record(BASE)
    assert await CatalogReader(redis).find(BASE, "acme/a") is not None
    await reporter.tell(2, 1, [held("a")], [], over=0)
    with pytest.raises(StaleEpoch):  # a later start has begun a report
        await reporter.tell(1, 4, [held("a")], [], over=0)
    await reporter.report(record(incarnation=2, sequence=2), [], [], full=True, over=1)
    with pytest.raises(StaleEpoch):  # and has finished it
        await reporter.report(record(sequence=4), [], [], full=True)
    await reporter.leave()


async def gateway_reads(redis: Redis) -> None:
    await redis.ping()
    reader, trains = MapReader(redis), TrainReader(redis)
    async with reader.changes():
        assert await reader.bases() == [BASE]
    assert list((await reader.pulse(BASE)).engines) == [ENGINE]
    await reader.telling(BASE, [ENGINE])
    await reader.confirm_writes(BASE)
    assert await reader.base_record(BASE) is not None
    assert len(await reader.placements(BASE)) == OPS_PER_CALL + 1
    assert list(await reader.held(BASE, ENGINE)) == ["a"]
    assert await reader.waves(BASE) == {}
    assert await reader.has_wave(BASE, "demo/wave") is False
    assert await trains.known(BASE) == {}
    assert await trains.known_edition(BASE) is None
    assert len((await trains.progress(BASE, [ENGINE]))[ENGINE]) == 1
    assert (await trains.rewards(BASE, {"a": 0}, 10))["a"].values
    assert await trains.curves(BASE, ["a"]) == {"a": CURVE}


async def keeps_catalog(users: Users, redis: Redis, folder: Path) -> None:
    """Read a catalog from its manifests, register more than a leaf of it holds, and retire some again."""
    parts = await written(folder, "acme/a", "acme/b")
    kept, reader, writer = Keeper(redis, dict), CatalogReader(redis), CatalogWriter(redis)
    with hanging(*parts) as go_on:
        looking = asyncio.create_task(kept.look(BASE, Source(folder.as_uri())))
        await until(lambda: users.ran("pexpire"))  # the lock is renewed while a part is read
        go_on()
        await looking
    await kept.sweep(BASE, Source(folder.as_uri()), young=True)
    async with reader.news(BASE):
        first = await writer.sequences(BASE, 100)
        many = [(first + at, Entry(f"acme/{at}", "s3://b/x", "v1")) for at in range(100)]
        await writer.apply(BASE, many, "part")
    for revision in range(10):  # more than are kept of one name
        sequence = await writer.sequences(BASE, 1)
        await writer.apply(BASE, [(sequence, Entry("acme/a", "s3://b/x", f"r{revision}"))], f"part-{revision}")
    sequence = await writer.sequences(BASE, 1, retiring=True)
    await writer.retire(BASE, [(sequence, Entry("acme/b", retired=True))])
    assert await reader.absent(BASE, ["acme/b", "acme/1"]) == ["acme/b"]
    assert await reader.registered(BASE, {"acme/1": Source("s3://b/x", "v1")})
    assert (await reader.page(BASE, limit=1000)).entries


async def test_each_part_works_as_its_user_and_uses_every_command_that_it_has(
    users: Users, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: dict[str, set[str]] = {part: set() for part in PARTS}
    async with users.working("operator", used) as redis:
        await operator_works(redis)
    monkeypatch.setattr(keeper, "HOLD_S", 0.3)
    async with users.working("gateway", used) as redis:
        await keeps_catalog(users, redis, tmp_path_factory.mktemp("catalog"))
    async with users.working("engine", used) as redis:
        await engine_works(redis)
    async with users.working("gateway", used) as redis:
        await gateway_reads(redis)
    async with users.working("operator", used) as redis:
        await operator_ends(redis)
    denied = [str(each["object"]) for each in await users.root.acl_log()]
    assert [each for each in denied if not each.startswith("client|")] == []  # redis-py does without
    for part in PARTS:
        assert sorted(used[part]) == sorted(permitted(part)), part


@pytest.mark.parametrize("part", PARTS)
def test_the_functions_that_a_part_calls_run_no_command_that_its_user_lacks(part: str) -> None:
    needed = set[str]().union(*(commands(file, called) for file, called in CALLED[part].items()))
    assert needed
    assert needed - permitted(part) == set()


@pytest.mark.parametrize("part", ["engine", "gateway"])
@pytest.mark.parametrize("what", NEITHER)
async def test_what_is_the_operators_is_denied_to_engines_and_gateways(users: Users, part: str, what: str) -> None:
    await MapWriter(users.root, 1).apply(BASE, MapChange(base=BaseRecord(BASE)))
    before = await users.root.get(keys.epoch(BASE)), await users.root.get(keys.version(BASE))
    redis = users.connect(part)
    with pytest.raises(MapUnavailable, match=r"Redis denies this to its user \(.*\); docs/platform.md has the ACL"):
        await functions.bounded(lambda: NEITHER[what](redis))
    await redis.aclose()
    assert (await users.root.get(keys.epoch(BASE)), await users.root.get(keys.version(BASE))) == before


async def test_an_engine_writes_no_catalog_and_a_gateway_no_report(users: Users) -> None:
    await functions.load(users.root)
    engine, gateway = users.connect("engine"), users.connect("gateway")
    for attempt in (
        CatalogWriter(engine).begin(BASE, "s3://catalog"),
        MapReporter(gateway, BASE, ENGINE).report(record(), [], [], full=True),
    ):
        with pytest.raises(MapUnavailable, match="Redis denies this to its user"):
            await attempt
    await engine.aclose()
    await gateway.aclose()


async def test_engines_wait_for_functions_until_the_operator_connects_and_loads_them(users: Users) -> None:
    engine, operator = users.connect("engine"), users.connect("operator")
    reporter = MapReporter(engine, BASE, ENGINE)
    with pytest.raises(MapUnavailable, match="Redis lacks functions that only the operator's user may load"):
        await reporter.report(record(), [], [], full=True)
    following = asyncio.create_task(hints.follow(operator, Dirt()))
    await until(users.root.function_list)
    assert await reporter.report(record(), [], [], full=True)
    following.cancel()
    await asyncio.wait([following])
    await engine.aclose()
    await operator.aclose()


async def test_the_operator_loads_functions_that_redis_did_not_take_at_first_or_has_lost_since(
    users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without losing its connection, so that gateways and engines do not wait for that."""

    async def complete() -> bool:
        return len(await users.root.function_list()) == len((functions.MAP, functions.CATALOG))

    monkeypatch.setattr(hints, "LOAD_EVERY_S", 0.0)
    monkeypatch.setattr(hints, "WAIT_S", 0.01)
    operator = users.connect("operator")
    async with full_memory(users.root):
        following = asyncio.create_task(hints.follow(operator, Dirt()))
        await until(users.root.pubsub_numpat)
        assert await users.root.function_list() == []
    await until(complete)
    await users.root.function_flush()
    await until(complete)
    following.cancel()
    await asyncio.wait([following])
    await operator.aclose()


@pytest.mark.parametrize("part", PARTS)
async def test_rules_that_are_set_again_leave_nothing_of_earlier_ones(users: Users, part: str) -> None:
    async def user() -> list[str]:
        listed = map(str, await users.root.acl_list())
        return [line for line in listed if line.startswith(f"user mint-{part} ")]

    before = await user()
    for given in (("~theirs", "%W~mint:*", "&*", "+@all", "(+@all ~*)"), rules(part)):
        await users.root.execute_command("ACL", "SETUSER", f"mint-{part}", *given)  # type: ignore[no-untyped-call]
    assert await user() == before != []
