"""One tenant's key reaches nothing of another tenant: every call and every route is checked."""

from typing import Any

import grpc
import openai
import pytest
from aiohttp import web
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from mint_contracts import errors
from mint_contracts.catalog_pb2 import CatalogEntry, RegisterRequest
from mint_contracts.training_records import published_in
from mint_gateway.client import Client, question
from mint_gateway.http.door import Door
from mint_gateway.page.files import FILES
from mint_gateway.security import scope_filter
from mint_gateway.security.keys import opaque
from mint_gateway.security.scope import Scope
from mint_gateway.view import MapView
from tests.contracts.catalogs import entry
from tests.gateway import paged, trained
from tests.gateway.catalogs import lines
from tests.gateway.command import mint
from tests.gateway.scene import Scene
from tests.gateway.tenants import (
    NOBODY,
    SHARED,
    TENANTS,
    TRAINING,
    Ask,
    Check,
    Tenants,
    key_of,
    own,
    raise_error,
    refused,
    stored,
    stream,
    unlearnt,
)
from tests.waiting import until


@pytest.fixture
async def registered(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every gRPC method and HTTP route of the gateways started after this."""
    found: set[str] = set()
    server, application = type(grpc.aio.server()), Door.application
    add = server.add_generic_rpc_handlers

    def added(self: Any, handlers: Any) -> None:
        for handler in handlers:
            found.update(handler._method_handlers)
        add(self, handlers)

    def seen(door: Door) -> web.Application:
        served = application(door)
        for route in served.router.routes():
            assert route.resource
            found.add(f"{'GET' if route.method == 'HEAD' else route.method} {route.resource.canonical}")
        return served

    monkeypatch.setattr(server, "add_generic_rpc_handlers", added)
    monkeypatch.setattr(Door, "application", seen)
    return found


async def generate(tenants: Tenants, me: str, other: str) -> None:
    client = tenants.clients[me]
    await tenants.clients["admin"].retire([f"{other}/dog"], SHARED)

    async def ask(adapter: str, base: str) -> object:
        asked = question("Ahoy?", base_model=base, adapter=adapter)
        asked.client = opaque(other)  # which counts for nothing
        return await client.answer(asked)

    for name in ("bot", "twin", "made", "cat"):
        assert await ask(f"{me}/{name}", SHARED)
        await unlearnt(ask, me, other, name)
    assert await ask(f"{me}/cat@r1", SHARED)
    for name in ("cat@r1", "dog"):
        await unlearnt(ask, me, other, name)
    await ask(f"{me}/twin", "")
    assert [engine.base for engine in tenants.engines.values() if engine.seen] == [SHARED], "the other's is not meant"
    salt = Scope((f"{me}/",), frozenset({me, "models"})).salt("")
    assert {each.cache_salt for each in tenants.engines[SHARED].seen} == {salt}, "what is cached is each tenant's own"
    assert {each.client for each in tenants.engines[SHARED].seen} == {opaque(me)}, "its key's turns are its own"
    for base in (SHARED, own(me)):
        assert await ask("", base)
    assert await refused(ask("", own(other)), own(other)) == await refused(ask("", own(NOBODY)), own(NOBODY))


async def explain(tenants: Tenants, me: str, other: str) -> None:
    client = tenants.clients[me]
    await tenants.clients["admin"].retire([f"{other}/dog"], SHARED)
    await unlearnt(client.explain, me, other, "dog")
    for name in ("bot", "twin", "made", "cat"):
        why = await client.explain(f"{me}/{name}", SHARED)
        assert why.chosen_engine == "e-of-models"
        assert other not in repr(why)
        await unlearnt(client.explain, me, other, name)
    assert list((await client.explain(f"{me}/bot")).waves) == [f"{me}/wave"]
    assert (await client.explain(f"{me}/twin")).base_model == SHARED


async def explain_wave(tenants: Tenants, me: str, other: str) -> None:
    client = tenants.clients[me]
    why = await client.explain_wave(f"{me}/wave")
    assert (why.position, why.queue, why.adapters) == (1, 1, 2), "others do not count"
    assert [each.namespace for each in why.namespaces] == [me]
    assert other not in repr(why)
    theirs, nobodys = f"{other}/wave", f"{NOBODY}/wave"
    refusal = await refused(client.explain_wave(theirs), theirs)
    assert refusal == await refused(client.explain_wave(nobodys), nobodys)
    assert refusal[0] == "NotFound"
    everything = await tenants.clients["admin"].explain_wave(f"{TENANTS[1]}/wave")
    assert (everything.position, everything.queue, len(everything.namespaces)) == (2, 2, 2)


async def list_placements(tenants: Tenants, me: str, other: str) -> None:
    client = tenants.clients[me]
    mine = [(SHARED, f"{me}/{name}") for name in ("bot", "made", "twin")]
    found = await client.placements()
    assert [(each.base_model, each.adapter) for each in found] == mine
    assert other not in repr(found)
    assert len(await client.placements(SHARED)) == 3
    first = await client.placements_page(size=1)
    assert [each.adapter for each in (await client.placements_page(token=first.next_page_token)).placements] == [
        name for _, name in mine[1:]
    ]
    assert await client.placements(own(me)) == []
    refusal = await refused(client.placements(own(other)), own(other))
    assert refusal == await refused(client.placements(own(NOBODY)), own(NOBODY))
    assert len(await tenants.clients["admin"].placements()) == 8


async def list_catalog(tenants: Tenants, me: str, other: str) -> None:
    client = tenants.clients[me]
    page = await client.catalog_page(SHARED)
    assert ([each.name for each in page.entries], page.total) == ([f"{me}/cat", f"{me}/dog"], 0)
    first = await client.catalog_page(SHARED, size=1)
    second = await client.catalog_page(SHARED, size=1, token=first.next_page_token)
    assert [each.name for each in (*first.entries, *second.entries)] == [f"{me}/cat", f"{me}/dog"]
    for prefix in (f"{other}/", other, f"{other}/cat", NOBODY):
        assert not (await client.catalog_page(SHARED, prefix=prefix)).entries
    assert [each.name for each in (await client.catalog_page(SHARED, prefix=f"{me}/d")).entries] == [f"{me}/dog"]
    refusal = await refused(client.catalog_page(own(other)), own(other))
    assert refusal == await refused(client.catalog_page(own(NOBODY)), own(NOBODY))
    assert (await tenants.clients["admin"].catalog_page(SHARED)).total == 4


async def resolve(tenants: Tenants, me: str, other: str) -> None:
    client = tenants.clients[me]
    assert (await client.resolve(f"{me}/cat", SHARED)).uri
    await tenants.clients["admin"].retire([f"{other}/dog"], SHARED)
    for name in ("cat", "cat@r1", "dog"):
        theirs = f"{other}/{name}"
        refusal = await refused(client.resolve(theirs, SHARED), theirs)
        assert refusal == await refused(client.resolve(f"{me}/none", SHARED), f"{me}/none")
    refusal = await refused(client.resolve(f"{me}/cat", own(other)), own(other))
    assert refusal == await refused(client.resolve(f"{me}/cat", own(NOBODY)), own(NOBODY))


async def register(tenants: Tenants, me: str, other: str) -> None:
    client, admin = tenants.clients[me], tenants.clients["admin"]
    mine, theirs = entry(f"{me}/new"), entry(f"{other}/new")
    taken = CatalogEntry(name=f"{other}/cat", uri="s3://stolen")
    for request in (
        RegisterRequest(base_model=SHARED, lines=lines([mine, theirs])),
        RegisterRequest(base_model=SHARED, lines=b"no line\n" + lines([theirs])),
        RegisterRequest(base_model=SHARED, entries=[taken]),
        RegisterRequest(base_model=SHARED, entries=[CatalogEntry(name=f"{other}/cat", retired=True)]),
    ):
        with pytest.raises(errors.PermissionDenied, match=f"adapter '{other}/.*is outside your key's scope; contact"):
            await client.register(stream(request))
    for base in (own(other), own(NOBODY)):
        with pytest.raises(errors.PermissionDenied, match=f"base model '{base}': is outside your key's scope"):
            await client.register(stream(RegisterRequest(base_model=base, lines=lines([mine]))))
    borrowed = CatalogEntry(name=f"{me}/new", uri=stored(f"{other}/x"))
    with pytest.raises(errors.PermissionDenied, match=f"{other}/x, which is outside your key's scope"):
        await client.register(stream(RegisterRequest(base_model=own(me), entries=[borrowed])))
    taught = CatalogEntry(name=f"{me}/new", uri=f"{published_in(TRAINING, f'{other}/x').uri}/1-2")
    with pytest.raises(errors.PermissionDenied, match=f"{other}/x/.published/1-2, which is outside your key's scope"):
        await client.register(stream(RegisterRequest(base_model=SHARED, entries=[taught])))
    assert set(await listed_on(admin, SHARED)) == {
        f"{tenant}/{name}" for tenant in TENANTS for name in ("cat", "dog")
    }
    assert (await admin.resolve(f"{other}/cat", SHARED)).uri != "s3://stolen"
    assert (await client.register(stream(RegisterRequest(base_model=SHARED, lines=lines([mine]))))).registered == 1
    lent = CatalogEntry(name=f"{me}/new", uri=stored(f"{me}/x"))
    assert (await client.register(stream(RegisterRequest(base_model=own(me), entries=[lent])))).registered == 1


async def retire(tenants: Tenants, me: str, other: str) -> None:
    client, admin = tenants.clients[me], tenants.clients["admin"]
    for names in ([f"{other}/cat"], [f"{me}/cat", f"{other}/cat"], [f"{other}/none"]):
        with pytest.raises(errors.PermissionDenied, match=f"adapter '{other}/.*contact the gateway's administrator"):
            await client.retire(names, SHARED)
    for base in (own(other), own(NOBODY)):
        with pytest.raises(errors.PermissionDenied, match="is outside your key's scope"):
            await client.retire([f"{me}/cat"], base)
    assert len(await listed_on(admin, SHARED)) == 4
    await client.retire([f"{me}/cat"], SHARED)
    assert len(await listed_on(admin, SHARED)) == 3


async def watch_wave(tenants: Tenants, me: str, other: str) -> None:
    client = tenants.clients[me]
    seen = await anext(client.watch(f"{me}/lessons", history=True))
    assert [each.policy for each in seen.policies] == [f"{me}/lessons-0"]
    assert (seen.policy_count, seen.step) == (1, 1)
    theirs, nobodys = f"{other}/lessons", f"{NOBODY}/lessons"
    refusal = await refused(anext(client.watch(theirs)), theirs)
    assert refusal == await refused(anext(client.watch(nobodys)), nobodys)
    assert refusal[0] == "NotFound"
    everything = await anext(tenants.clients["admin"].watch(theirs))
    assert everything.policy_count == 2


async def list_waves(tenants: Tenants, me: str, other: str) -> None:
    client = tenants.clients[me]
    for base in ("", SHARED):
        assert [(each.wave, each.policy_count) for each in await client.waves(base)] == [(f"{me}/lessons", 1)]
    refusal = await refused(client.waves(own(other)), own(other))
    assert refusal == await refused(client.waves(own(NOBODY)), own(NOBODY))
    assert len(await tenants.clients["admin"].waves()) == 2


def by_http(tenants: Tenants, me: str, path: str, **body: object) -> Ask:
    """Return an Ask over HTTP: an error response becomes the exception that it carries."""

    async def ask(name: str, base: str) -> object:
        request = body | {"model": name} | ({"base_model": base} if base else {})
        status, answer = await tenants.http(me, "POST", path, request)
        return answer if status == 200 else raise_error(status, answer)

    return ask


async def asked_by_http(me: str, other: str, ask: Ask) -> None:
    for name in ("bot", "twin", "made", "cat"):
        assert await ask(f"{me}/{name}", SHARED)
        await unlearnt(ask, me, other, name)
    assert await ask(f"{me}/twin", "")
    for base in (SHARED, own(me)):
        assert await ask(base, "")
    for base in (own(other), own(NOBODY)):
        assert (await refused(ask(base, base), base))[0] == "BaseModelNotFound"
    assert await refused(ask(own(other), ""), own(other)) == await refused(ask(own(NOBODY), ""), own(NOBODY))


async def complete(tenants: Tenants, me: str, other: str) -> None:
    await asked_by_http(me, other, by_http(tenants, me, "/v1/completions", prompt="Ahoy"))
    ask = by_http(tenants, me, "/v1/completions", prompt=["Ahoy", "Hey"], stream=True)
    await unlearnt(ask, me, other, "bot")


async def chat(tenants: Tenants, me: str, other: str) -> None:
    messages = [{"role": "user", "content": "Ahoy?"}]
    await asked_by_http(me, other, by_http(tenants, me, "/v1/chat/completions", messages=messages))


async def models(tenants: Tenants, me: str, other: str) -> None:
    _, answer = await tenants.http(me, "GET", "/v1/models")
    mine = sorted([SHARED, own(me), *(f"{me}/{name}" for name in ("bot", "made", "twin"))])
    assert [each["id"] for each in answer["data"]] == mine
    assert {each["parent"] for each in answer["data"]} == {None, SHARED}
    assert other not in repr(answer)
    _, page = await tenants.http(me, "GET", f"/v1/models?limit=1&after={mine[1]}")
    assert ([each["id"] for each in page["data"]], page["has_more"]) == ([mine[2]], True)
    _, last = await tenants.http(me, "GET", f"/v1/models?limit=1&after={mine[3]}")
    assert (last["last_id"], last["has_more"]) == (mine[4], False)


async def model(tenants: Tenants, me: str, other: str) -> None:
    for name, parent in ((f"{me}/bot", SHARED), (f"{me}/twin", SHARED), (own(me), None), (SHARED, None)):
        status, answer = await tenants.http(me, "GET", f"/v1/models/{name}")
        assert (status, answer["parent"]) == (200, parent)
        assert other not in repr(answer)
    await tenants.clients["admin"].retire([f"{other}/dog"], SHARED)
    for name in ("bot", "twin", "made", "cat", "dog", "own"):
        responses = [await tenants.http(me, "GET", f"/v1/models/{who}/{name}") for who in (other, NOBODY)]
        assert responses[0][0] >= 400
        assert repr(responses[0]).replace(other, "NAME") == repr(responses[1]).replace(NOBODY, "NAME")


CHECKS: dict[str, Check] = {
    "/mint.v1.Sampler/Generate": generate,
    "/mint.v1.Placement/Explain": explain,
    "/mint.v1.Placement/ExplainWave": explain_wave,
    "/mint.v1.Placement/ListPlacements": list_placements,
    "/mint.v1.Catalog/List": list_catalog,
    "/mint.v1.Catalog/Resolve": resolve,
    "/mint.v1.Catalog/Register": register,
    "/mint.v1.Catalog/Retire": retire,
    "/mint.v1.Waves/WatchWave": watch_wave,
    "/mint.v1.Waves/ListWaves": list_waves,
    **{f"/mint.v1.Trainer/{call}": check for call, check in trained.CHECKS.items()},
    "POST /v1/completions": complete,
    "POST /v1/chat/completions": chat,
    "GET /v1/models": models,
    "GET /v1/models/{model}": model,
    **{f"GET /v1/mint/{route}": check for route, check in paged.CHECKS.items()},
}
# Routes that require no key reveal no names.
OPEN = {"GET /health", "GET /live", *(f"GET {path}" for path in FILES)}
OPEN_SERVICES = (f"/{health.SERVICE_NAME}/", f"/{reflection.SERVICE_NAME}/")


@pytest.mark.parametrize(("me", "other"), [TENANTS, TENANTS[::-1]], ids=TENANTS)
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
async def test_a_scoped_key_reaches_what_is_its_own_and_learns_of_nothing_else(
    tenants: Tenants, check: Check, me: str, other: str
) -> None:
    await check(tenants, me, other)


async def test_each_method_and_route_that_a_gateway_serves_is_checked(registered: set[str], scene: Scene) -> None:
    await scene.open()
    assert {name for name in registered if not name.startswith(OPEN_SERVICES)} == CHECKS.keys() | OPEN


async def listed_on(client: Client, base: str) -> list[str]:
    page = await client.catalog_page(base, size=1000)
    return [each.name for each in page.entries]


async def test_a_key_without_a_scope_opens_all_as_ever(tenants: Tenants) -> None:
    admin = tenants.clients["admin"]
    for tenant in TENANTS:
        for base, name in ((SHARED, "bot"), (SHARED, "made"), (SHARED, "cat"), (own(tenant), "")):
            adapter = f"{tenant}/{name}" if name else ""
            assert await admin.answer(question("Ahoy?", base_model=base, adapter=adapter))
        with pytest.raises(errors.InvalidRequest, match="could be on several base models; name one of"):
            await admin.answer(question("Ahoy?", adapter=f"{tenant}/twin"))
    _, answer = await tenants.http("admin", "GET", "/v1/models")
    assert len(answer["data"]) == 9


async def test_openais_client_sees_its_tenants_models_alone(tenants: Tenants) -> None:
    url = f"{tenants.scene.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=key_of("acme"), max_retries=0) as client:
        assert all("rival" not in each.id for each in (await client.models.list()).data)
        with pytest.raises(openai.NotFoundError, match="no wave serves it"):
            await client.completions.create(model="rival/bot", prompt="Ahoy", extra_body={"base_model": SHARED})


async def test_a_list_of_models_makes_each_base_narrow_once_however_many_it_has(
    tenants: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restricting a view takes time proportional to its engines; doing it for each model would delay others."""
    narrowed, narrow = list[str](), scope_filter._view

    def noted(view: MapView, scope: Scope) -> MapView:
        narrowed.append(view.base)
        return narrow(view, scope)

    monkeypatch.setattr(scope_filter, "_view", noted)
    _, answer = await tenants.http("acme", "GET", "/v1/models")
    assert len(answer["data"]) == 5
    assert sorted(narrowed) == [own("acme"), SHARED]


async def test_the_command_line_says_what_its_key_does_not_open(tenants: Tenants) -> None:
    target, key = tenants.scene.target, key_of("acme")
    code, out, _ = await mint(target, "catalog", "list", "--base", SHARED, MINT_API_KEY=key)
    assert (code, out.splitlines()[-1]) == (0, "2 shown")
    code, _, err = await mint(target, "catalog", "retire", "--base", SHARED, "rival/cat", MINT_API_KEY=key)
    assert (code, err) == (
        1,
        "mint: PermissionDenied: adapter 'rival/cat': is outside your key's scope; "
        "contact the gateway's administrator\n",
    )


async def test_a_catalog_is_listed_over_several_beginnings_as_over_one(tenants: Tenants) -> None:
    tenants.scope({"admin": {"adapters": ["rival/d", "acme/", "acme/cat", "rival/dog"]}})
    admin = tenants.clients["admin"]

    async def narrow() -> bool:
        return (await admin.catalog_page(SHARED)).total == 0

    await until(narrow)
    found, token = [], ""
    while True:
        page = await admin.catalog_page(SHARED, size=1, token=token)
        found += [each.name for each in page.entries]
        token = page.next_page_token
        if not token:
            break
    assert found == ["acme/cat", "acme/dog", "rival/dog"]
    assert [each.name for each in (await admin.catalog_page(SHARED, prefix="rival/")).entries] == ["rival/dog"]
