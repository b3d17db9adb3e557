"""A wave with a ttl ends by itself: it reports that, releases its adapters, and takes nothing from others."""

import json
from datetime import UTC, datetime
from typing import Any

from e2e.asking import ask
from e2e.samples import TRAINED
from e2e.waiting import until
from e2e.world import NAMESPACE, Waves, World, wave
from mint_contracts import placement_pb2
from mint_gateway.client import question

BASE = f"{NAMESPACE}/smollm2"
STAYS = [f"{NAMESPACE}/stays"]
OWN, SHARED = (adapter.name for adapter in TRAINED[:2])
LEFT_S = 15  # for a wave that is Ready and has answered, so that a slow start is not mistaken for its end


def test_a_wave_is_expired_and_complete_when_its_ttl_ends_and_nobody_else_loses_anything(
    world: World, waves: Waves
) -> None:
    waves("stays", wave([SHARED]))
    waves("brief", lasting("1h"))
    for name in ("stays", "brief"):
        world.kube.wait(f"adapterwave/{name}", "Ready", NAMESPACE)
    assert world.condition("adapterwave", "brief", "Admitted")["message"].endswith("(spec.serve.ttl)")
    assert answerer(world, OWN) == OWN
    until("a slot of each engine for each", lambda: (on_device(world, OWN), on_device(world, SHARED)) == (2, 2))
    ready = world.condition("adapterwave", "stays", "Ready")

    last(world, f"{age_s(world) + LEFT_S}s")

    world.kube.wait("adapterwave/brief", "Complete", NAMESPACE)
    world.kube.wait("adapterwave/brief", "Ready=false", NAMESPACE)
    status = world.status("adapterwave", "brief")
    assert (status["phase"], status["summary"]) == ("Expired", "0/0")
    assert {each["reason"] for each in status["conditions"]} == {"Expired"}
    until("its own adapter's slots to be free", lambda: on_device(world, OWN) == 0)
    until("the second copy of the shared one to go", lambda: on_device(world, SHARED) == 1)
    until(
        "only the other wave to be told of", lambda: (wanted_by(world, OWN), wanted_by(world, SHARED)) == ([], STAYS)
    )
    assert world.condition("adapterwave", "stays", "Ready") == ready
    assert answerer(world, SHARED) == SHARED


def test_one_that_has_expired_says_so_when_asked_goes_on_by_demand_and_comes_back_with_a_longer_ttl(
    world: World, waves: Waves
) -> None:
    waves("brief", lasting("1s"))
    world.kube.wait("adapterwave/brief", "Complete", NAMESPACE)

    why = ask(world, lambda client: client.explain_wave(f"{NAMESPACE}/brief"))
    assert (why.admitted, why.reason, why.wanted, why.chosen_by, why.adapters) == (False, "Expired", 0, "names", 2)
    assert why.decided_by.startswith("not admitted (Expired): expired at ")
    assert answerer(world, OWN) == OWN

    last(world, "1h")
    world.kube.wait("adapterwave/brief", "Ready", NAMESPACE)
    assert not world.condition("adapterwave", "brief", "Complete")
    until("its adapter to be its own again", lambda: wanted_by(world, OWN) == [f"{NAMESPACE}/brief"])


def lasting(ttl: str) -> dict[str, Any]:
    """Return the spec of a wave that holds both adapters on both engines for `ttl`."""
    spec = wave([OWN, SHARED], replicas=2)
    return spec | {"serve": spec["serve"] | {"ttl": ttl}}


def last(world: World, ttl: str) -> None:
    """Change the wave's ttl."""
    text = json.dumps({"spec": {"serve": {"ttl": ttl}}})
    world.kube.kubectl("patch", "adapterwave", "brief", "-n", NAMESPACE, "--type=merge", "-p", text)


def age_s(world: World) -> int:
    """Return the wave's age."""
    created = world.kube.get("adapterwave", "brief", NAMESPACE)["metadata"]["creationTimestamp"]
    return int((datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds())


def answerer(world: World, adapter: str) -> str:
    """Return the adapter that answers a question to `adapter`."""
    hello = question("Where is the sea?", adapter=adapter, max_tokens=4)
    return ask(world, lambda client: client.answer(hello)).adapter


def wanted_by(world: World, adapter: str) -> list[str]:
    """Return the waves for which the adapter is placed."""
    return list(explained(world, adapter).waves)


def explained(world: World, adapter: str) -> placement_pb2.Explanation:
    return ask(world, lambda client: client.explain(adapter, BASE))


def on_device(world: World, adapter: str) -> int:
    """Return how many engines report the adapter in a slot."""
    return sum(holder.residency == "Device" for holder in explained(world, adapter).holders)
