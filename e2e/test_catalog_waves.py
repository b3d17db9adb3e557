"""A wave over the catalog follows what is registered and retired, and says why it stands as it does."""

import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import msgspec
import pytest

from e2e.asking import ask
from e2e.samples import GOOD, Adapter
from e2e.waiting import until
from e2e.world import NAMESPACE, Waves, World
from mint_contracts.catalog_pb2 import RegisterRequest
from mint_contracts.entries import Entry
from mint_contracts.errors import MintError
from mint_contracts.placement_pb2 import WaveExplanation
from mint_gateway.client import Client, question

BASE = f"{NAMESPACE}/smollm2"
FOLDER = "file:///mint/tmp/e2e-catalog"  # in the only gateway: enough for a catalog that ends with the test


@pytest.fixture
def catalogued(world: World) -> Iterator[World]:
    """The world whose base has a catalog, during one test."""
    patch(world, {"manifests": {"uri": FOLDER}})
    until("the catalog to be read", lambda: worked(world, lambda client: client.catalog_page(BASE)))
    yield world
    patch(world, None)


def patch(world: World, catalog: dict[str, Any] | None) -> None:
    text = json.dumps({"spec": {"catalog": catalog}})
    world.kube.kubectl("patch", "basemodel", "smollm2", "-n", NAMESPACE, "--type=merge", "-p", text)


def worked(world: World, call: Callable[[Client], Coroutine[Any, Any, object]]) -> bool:
    try:
        ask(world, call)
    except MintError:
        return False
    return True


def register(world: World, *adapters: Adapter) -> None:
    """Register adapters of the claim in the catalog, as chosen/<last part of their name>."""
    entries = [
        Entry(chosen(each), f"pvc://mint-samples/adapters/{each.name}", labels={"suite": "e2e"}) for each in adapters
    ]

    async def once() -> AsyncIterator[RegisterRequest]:
        yield RegisterRequest(base_model=BASE, lines=msgspec.json.Encoder().encode_lines(entries))

    reply = ask(world, lambda client: client.register(once()))
    assert reply.registered == len(entries), reply


def chosen(adapter: Adapter) -> str:
    return f"chosen/{adapter.name.rpartition('/')[2]}"


def test_a_wave_over_the_catalog_follows_it(catalogued: World, waves: Waves) -> None:
    world, names = catalogued, [chosen(each) for each in GOOD[:3]]
    register(world, *GOOD[:2])
    selector = {"prefix": "chosen/", "labels": {"suite": "e2e"}}
    waves("chosen", {"baseModelRef": {"name": "smollm2"}, "adapters": {"selector": selector}})
    world.kube.wait("adapterwave/chosen", "Ready", NAMESPACE)

    register(world, GOOD[2])
    until("the third adapter", lambda: world.status("adapterwave", "chosen").get("summary") == "3/3")
    answer = ask(world, lambda client: client.answer(question("Where is the sea?", adapter=names[2], max_tokens=4)))
    assert answer.adapter == names[2]
    until("the gateway to see it, too", lambda: explained(world).ready == 3)
    why = explained(world)
    assert (why.chosen_by, why.admitted, why.wanted, why.ready, why.missing_count) == ("selector", True, 3, 3, 0)

    ask(world, lambda client: client.retire(names[:1], BASE))
    until("one adapter less", lambda: world.status("adapterwave", "chosen").get("summary") == "2/2")
    ask(world, lambda client: client.retire(names[1:], BASE))
    until("nothing", lambda: world.condition("adapterwave", "chosen", "Admitted").get("reason") == "NoMatch")
    why = explained(world)
    assert (why.admitted, why.reason) == (False, "NoMatch")


def explained(world: World) -> WaveExplanation:
    return ask(world, lambda client: client.explain_wave(f"{NAMESPACE}/chosen"))
