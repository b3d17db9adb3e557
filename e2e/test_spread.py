"""Two engines, six adapters, two copies of one: they are spread as planned, and reported as they are."""

import asyncio
from collections import Counter

from e2e.asking import ask
from e2e.samples import GOOD
from e2e.waiting import until
from e2e.world import NAMESPACE, Waves, World, wave
from mint_contracts import placement_pb2
from mint_gateway.client import Client

RANKS = {adapter.name: adapter.rank for adapter in GOOD}
TWICE, *ONCE = RANKS


def test_six_adapters_one_of_them_twice_are_spread_over_two_engines(world: World, waves: Waves) -> None:
    waves("once", wave(ONCE))
    waves("twice", wave([TWICE], replicas=2))
    for name in ("once", "twice"):
        world.kube.wait(f"adapterwave/{name}", "Ready", NAMESPACE)

    placed = until("the gateway to see each wanted copy in a slot", lambda: _in_slots(world))

    ranks = Counter[str]()
    for name, holders in placed.items():
        for holder in holders:
            ranks[holder.engine] += RANKS[name]
    assert {name: len(holders) for name, holders in placed.items()} == {TWICE: 2} | dict.fromkeys(ONCE, 1)
    # A step's cost grows with the ranks, so these (92 in all) are spread. An adapter that no engine has read counts
    # with the largest rank, and one that is warm on an engine stays there if that is hardly more loaded.
    assert len(ranks) == 2
    assert max(ranks.values()) - min(ranks.values()) <= 2 * max(RANKS.values()), ranks
    for holders in placed.values():
        for holder in holders:
            assert holder.wanted_because


def _in_slots(world: World) -> dict[str, list[placement_pb2.Holder]]:
    """Return the wanted copies of each adapter; none while one of them all is not in a slot or not available."""
    rows = [row for row in asyncio.run(_placements(world)) if row.adapter in RANKS]
    placed = {row.adapter: [holder for holder in row.holders if holder.wanted] for row in rows}
    copies = [holder for holders in placed.values() for holder in holders]
    there = all((each.residency, each.available) == ("Device", True) for each in copies)
    return placed if there and len(copies) == len(RANKS) + 1 else {}


def test_explain_says_which_engine_would_answer_and_why(world: World, waves: Waves) -> None:
    waves("explained", wave([TWICE]))
    world.kube.wait("adapterwave/explained", "Ready", NAMESPACE)

    def explained() -> placement_pb2.Explanation:
        return ask(world, lambda client: client.explain(TWICE, f"{NAMESPACE}/smollm2"))

    until("the gateway to know of this wave alone", lambda: list(explained().waves) == [f"{NAMESPACE}/explained"])
    said = explained()
    assert said.chosen_engine in {"smollm2-0", "smollm2-1"}
    assert said.chosen_because


def test_status_counts_copies_by_residency_and_engine(world: World, waves: Waves) -> None:
    waves("counted", wave([TWICE, ONCE[0]], replicas=2))
    world.kube.wait("adapterwave/counted", "Ready", NAMESPACE)

    status = world.status("adapterwave", "counted")

    assert status["phase"] == "Ready"
    assert status["summary"] == "4/4"
    assert status["counts"]["device"] == 4
    assert [engine["name"] for engine in status["engines"]] == ["smollm2-0", "smollm2-1"]
    assert [engine["ready"] for engine in status["engines"]] == [2, 2]


def test_deleting_a_wave_frees_its_slots(world: World, waves: Waves) -> None:
    names = {TWICE, ONCE[0]}

    def on_device(names: set[str] | None) -> int:
        rows = [row for row in asyncio.run(_placements(world)) if names is None or row.adapter in names]
        return sum(holder.residency == "Device" for row in rows for holder in row.holders)

    def told() -> int:
        return int(world.status("basemodel", "smollm2")["slots"]["used"])

    waves("freed", wave(sorted(names), replicas=2))
    world.kube.wait("adapterwave/freed", "Ready", NAMESPACE)
    until("four slots in use", lambda: on_device(names) == 4)

    world.kube.kubectl("delete", "adapterwave", "freed", "-n", NAMESPACE, "--timeout=30s")

    until("the wave's slots to be free", lambda: on_device(names) == 0)
    until("the base's status to say so", lambda: told() == on_device(None))


async def _placements(world: World) -> list[placement_pb2.Explanation]:
    async with Client(world.gateway) as client:
        return await client.placements(f"{NAMESPACE}/smollm2")
