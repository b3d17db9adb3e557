"""A name alone means the one base that knows it, through either door and whatever engines hold."""

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from mint_contracts.catalog_pb2 import RegisterRequest
from mint_contracts.entries import Entry
from mint_contracts.errors import AdapterNotFound, InvalidRequest, MapUnavailable, Unavailable
from mint_contracts.records import BaseRecord, MapChange, Tier
from mint_contracts.source import Source
from mint_gateway import answers
from mint_gateway.catalog.resolver import Resolver
from mint_gateway.client import question
from mint_gateway.security.door_security import DoorSecurity
from mint_gateway.security.scopes import SCOPES_FILE
from mint_gateway.server import OPEN
from tests.contracts.catalogs import entry
from tests.gateway.catalogs import followed, lines
from tests.gateway.scene import BASE, LIMIT_S, PATIENT, STORE, Scene, complete
from tests.gateway.scripted import ScriptedEngine
from tests.gateway.secrets import mount
from tests.gateway.tenants import SHARED, Tenants, stream
from tests.redis_process import RedisProcess
from tests.waiting import until

OTHER = "demo/other"
ADAPTER = "team/x"
DOUBT = f"could be on several base models; name one of {OTHER}, {BASE}"


class Two:
    """Two bases, each with a catalog and an engine."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene, self._folder = scene, folder
        self.engines: dict[str, ScriptedEngine] = {}

    async def begin(self, *stores: str, security: DoorSecurity = OPEN, key: str = "") -> None:
        """Start; the bases in `stores` also have a store."""
        for number, base in enumerate((BASE, OTHER)):
            store = Source(f"{STORE}/{number}") if base in stores else None
            record = BaseRecord(base, store, catalog=Source(f"file://{self._folder}/{base}"))
            self.scene.versions[base] = await self.scene.writer.apply(base, MapChange(base=record))
            self.engines[base] = await self.scene.engine(f"e-{number}", base)
        await self.scene.open(PATIENT, security, key=key)
        await self.scene.seen(*self.engines.values())
        for base in self.engines:
            await complete(self.scene.redis, base)

    async def register(self, base: str, adapter: str = ADAPTER) -> None:
        request = RegisterRequest(base_model=base, lines=lines([entry(adapter)]))
        await self.scene.client.register(stream(request))

    async def ask(self, base: str = "") -> str:
        """Return the base that answers."""
        asked = question("Ahoy?", adapter=ADAPTER, base_model=base)
        answer = await self.scene.client.answer(asked)
        return next(name for name, engine in self.engines.items() if engine.name == answer.engine)

    async def model(self, query: str = "") -> tuple[int, Any]:
        """Return the status and JSON of the Models API."""
        url = f"{self.scene.url}/v1/models/{ADAPTER}{query}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status, await answer.json()


@pytest.fixture
def two(scene: Scene, tmp_path: Path) -> Two:
    return Two(scene, tmp_path)


@pytest.mark.parametrize("stores", [(), (BASE,), (BASE, OTHER)])
async def test_a_name_that_one_base_registered_means_that_base(two: Two, stores: tuple[str, ...]) -> None:
    await two.begin(*stores)
    await two.register(OTHER)
    assert await two.ask() == OTHER
    assert two.engines[OTHER].seen[-1].whence.uri == entry(ADAPTER).uri
    status, body = await two.model()
    assert (status, body["parent"], body["base_models"]) == (200, OTHER, [OTHER])
    assert (await two.scene.client.explain(ADAPTER)).base_model == OTHER


async def test_a_name_that_two_bases_registered_needs_the_base_beside_it(two: Two) -> None:
    await two.begin()
    for base in (BASE, OTHER):
        await two.register(base)
    with pytest.raises(InvalidRequest, match=DOUBT):
        await two.ask()
    status, body = await two.model()
    assert (status, body["error"]["code"]) == (400, "InvalidRequest")
    for base in (BASE, OTHER):
        assert await two.ask(base) == base
        status, body = await two.model(f"?base_model={base}")
        assert (status, body["base_models"]) == (200, [base])
    assert (await two.model("?base_model=demo/nobody"))[0] == 404


async def test_a_waves_adapter_over_two_bases_is_told_of_the_one_that_is_named(two: Two) -> None:
    await two.begin()
    for base, engine in two.engines.items():
        await two.scene.place(ADAPTER, engine.name, base=base)
    await two.scene.seen()
    status, body = await two.model(f"?base_model={OTHER}")
    assert (status, body["base_models"]) == (200, [OTHER])


async def test_what_two_stores_may_have_means_no_other_base_as_engines_fetch_and_drop_it(two: Two) -> None:
    await two.begin(BASE, OTHER)
    for engine in two.engines.values():
        engine.before_stores = True
    for holder in (None, BASE, OTHER):
        for number, (base, engine) in enumerate(two.engines.items()):
            engine.held.clear()
            if base == holder:
                await engine.hold(ADAPTER, f"{STORE}/{number}/{ADAPTER}", Tier.DEVICE)
            await engine.report()
        await two.scene.seen(*two.engines.values())
        with pytest.raises(InvalidRequest, match=DOUBT):
            await two.ask()
    assert await two.ask(BASE) == BASE


@pytest.mark.parametrize("has", [BASE, OTHER])
async def test_a_name_that_only_one_of_two_stores_has_means_its_base(two: Two, has: str) -> None:
    await two.begin(BASE, OTHER)
    for base, engine in two.engines.items():
        engine.stored = {ADAPTER} if base == has else set()
    assert await two.ask() == has


async def test_a_name_that_both_stores_have_needs_the_base_beside_it(two: Two) -> None:
    await two.begin(BASE, OTHER)
    for engine in two.engines.values():
        engine.stored = {ADAPTER}
    with pytest.raises(InvalidRequest, match=DOUBT):
        await two.ask()


@pytest.mark.parametrize("others", [set(), {ADAPTER}])
async def test_a_name_is_neither_guessed_nor_doubted_for_good_while_a_store_that_could_decide_does_not_answer(
    two: Two, others: set[str]
) -> None:
    await two.begin(BASE, OTHER)
    two.engines[BASE].stored, two.engines[OTHER].stored = None, others
    if not others:
        assert await two.ask() == BASE, "the only one that may have it"
        return
    problem = f"could be on several base models, but {BASE} cannot tell now; retry, or name one of {OTHER}, {BASE}"
    with pytest.raises(Unavailable, match=problem) as error:
        await two.ask()
    assert error.value.retry_after_s == answers.FRESH_S, "before which the same answer is remembered"
    assert (await two.model())[0] == 503
    assert await two.ask(OTHER) == OTHER


@pytest.mark.parametrize("gone", [True, False], ids=["its engine is away", "the store does not answer"])
async def test_a_name_keeps_its_base_while_the_store_of_another_that_lacked_it_cannot_be_asked(
    two: Two, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    monkeypatch.setattr(answers, "FRESH_S", 0.0)
    await two.begin(BASE, OTHER)
    two.engines[BASE].stored, two.engines[OTHER].stored = {ADAPTER}, set()
    assert await two.ask() == BASE
    if gone:
        await two.engines[OTHER].leave()
        await until(lambda: not two.scene.gateway.mirror.views[OTHER].engines["e-1"].alive)
    else:
        two.engines[OTHER].stored = None
    for _ in range(2):
        assert await two.ask() == BASE
    if not gone:
        two.engines[BASE].stored, two.engines[OTHER].stored = set(), {ADAPTER}
        assert await two.ask() == OTHER, "what it tells now is what counts"


async def test_a_name_that_a_store_lacked_when_it_was_last_asked_may_be_there_if_it_is_nowhere_else(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been added since then, so it is not said to be unknown."""
    monkeypatch.setattr(answers, "FRESH_S", 0.0)
    await two.begin(BASE, OTHER)
    two.engines[BASE].stored, two.engines[OTHER].stored = set(), set()
    with pytest.raises(AdapterNotFound):
        await two.ask()
    two.engines[OTHER].stored = None
    for _ in range(2):
        assert await two.ask() == OTHER
    two.engines[BASE].stored = None
    with pytest.raises(Unavailable, match=f"but {OTHER}, {BASE} cannot tell now"):
        await two.ask()


async def test_a_new_base_takes_no_name_from_a_store_before_an_engine_of_it_has_been_ready(two: Two) -> None:
    await two.begin(BASE, OTHER)
    two.engines[BASE].stored = {ADAPTER}
    await two.engines[OTHER].leave()
    record = BaseRecord(OTHER, Source(f"{STORE}/1"), unserved=True)
    two.scene.versions[OTHER] = await two.scene.writer.apply(OTHER, MapChange(base=record))
    await two.scene.seen()
    await until(lambda: not two.scene.gateway.mirror.views[OTHER].engines["e-1"].alive)
    assert await two.ask() == BASE


async def test_stores_are_asked_once_for_all_that_ask_for_a_name_within_a_moment(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "FRESH_S", LIMIT_S)
    await two.begin(BASE, OTHER)
    for engine in two.engines.values():
        engine.stored = set()
    for _ in range(2):
        for each in await asyncio.gather(*(two.ask() for _ in range(8)), return_exceptions=True):
            assert isinstance(each, AdapterNotFound)
    assert [engine.looked for engine in two.engines.values()] == [[ADAPTER], [ADAPTER]]


async def test_no_store_is_asked_for_a_name_that_the_key_does_not_open(two: Two, tmp_path: Path) -> None:
    scopes = mount(tmp_path / "scopes", {SCOPES_FILE: json.dumps({"acme": {"adapters": ["acme/"]}}).encode()})
    security = DoorSecurity.by(None, mount(tmp_path / "keys", {"acme": b"key-of-acme"}), scopes)
    await two.begin(BASE, OTHER, security=security, key="key-of-acme")
    for engine in two.engines.values():
        engine.stored = {ADAPTER}
    with pytest.raises(AdapterNotFound, match="no base model serves it"):
        await two.ask()
    assert [engine.looked for engine in two.engines.values()] == [[], []]


@pytest.mark.parametrize("storing", [(), (BASE, OTHER)])
async def test_a_name_that_neither_the_map_nor_a_store_has_is_no_model(two: Two, storing: tuple[str, ...]) -> None:
    """As OpenAI's API and vLLM answer."""
    await two.begin(*storing)
    for engine in two.engines.values():
        engine.stored = set()
    with pytest.raises(AdapterNotFound, match="no base model serves it; available:"):
        await two.ask()
    async with openai.AsyncOpenAI(base_url=f"{two.scene.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError, match="no base model serves it; available:"):
            await client.completions.create(model="gpt-4o-mini", prompt="Ahoy?")
        with pytest.raises(openai.NotFoundError, match="no base model serves it"):
            await client.models.retrieve("gpt-4o-mini")


async def test_a_retired_name_is_said_to_be_retired(two: Two) -> None:
    await two.begin()
    await two.register(OTHER)
    await two.scene.client.retire([ADAPTER], OTHER)
    with pytest.raises(AdapterNotFound, match=f"was retired from the catalog of {OTHER}"):
        await two.ask()


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The bases and names looked up in catalogs."""
    found, find = list[tuple[str, str]](), Resolver.find

    async def noted(self: Resolver, base: str, asked: str) -> Entry | None:
        found.append((base, asked))
        return await find(self, base, asked)

    monkeypatch.setattr(Resolver, "find", noted)
    return found


async def test_no_catalog_is_asked_where_a_wave_decides(two: Two, asked_for: list[tuple[str, str]]) -> None:
    await two.begin()
    await two.scene.place(ADAPTER, "e-0")
    await two.scene.seen()
    assert await two.ask() == BASE
    assert asked_for == []


async def test_one_catalog_is_asked_where_its_base_is_named(two: Two, asked_for: list[tuple[str, str]]) -> None:
    await two.begin()
    await two.register(OTHER)
    assert await two.ask(OTHER) == OTHER
    assert {base for base, _ in asked_for} == {OTHER}


async def test_no_catalog_is_asked_for_a_name_that_the_key_does_not_open(
    tenants: Tenants, asked_for: list[tuple[str, str]]
) -> None:
    with pytest.raises(AdapterNotFound):
        await tenants.clients["acme"].answer(question("Ahoy?", adapter="rival/cat"))
    assert asked_for == []
    assert await tenants.clients["acme"].answer(question("Ahoy?", adapter="acme/cat"))
    assert {base for base, _ in asked_for} == {SHARED, "acme/own"}, "the other tenant's base is not asked"


@pytest.mark.parametrize("stores", [(), (BASE,)], ids=["which another lists", "which another's store has"])
async def test_a_catalog_that_can_never_be_read_holds_up_no_name(two: Two, stores: tuple[str, ...]) -> None:
    await two.begin(*stores)
    two.engines[BASE].stored = {ADAPTER}
    if not stores:
        await two.register(BASE)
    third, folder = "demo/third", Source(f"file://{__file__}/catalog")
    two.scene.versions[third] = await two.scene.writer.apply(third, MapChange(base=BaseRecord(third, catalog=folder)))
    await two.scene.seen()
    assert await two.ask() == BASE
    with pytest.raises(MapUnavailable, match=f"catalog of {third}"):
        await two.scene.client.answer(question("Ahoy?", adapter="team/unknown"))
    two.engines[BASE].stored = None
    with pytest.raises(Unavailable, match=f"{BASE} cannot tell now" if stores else f"catalog of {third}"):
        await two.scene.client.answer(question("Ahoy?", adapter="team/doubtful"))


async def test_while_a_catalog_cannot_be_asked_a_name_is_not_said_to_be_unknown(
    fragile: Scene, own_redis: RedisProcess, tmp_path: Path, news: list[tuple[str, str]]
) -> None:
    """Nor guessed, since both bases may have it. Names asked for before are still answered."""
    two = Two(fragile, tmp_path)
    await two.begin()
    for named in ((BASE, "team/y"), (OTHER, ADAPTER)):
        await followed(fragile.redis, named[0])
        await two.register(*named)
        await until(partial(news.__contains__, named))
    assert await two.ask() == OTHER
    own_redis.kill()
    await until(lambda: fragile.gateway.mirror.away)
    assert await two.ask() == OTHER
    with pytest.raises(MapUnavailable):
        await asyncio.wait_for(fragile.client.answer(question("Ahoy?", adapter="team/never-asked")), 60)
